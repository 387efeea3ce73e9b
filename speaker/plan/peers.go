package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// peer is a configured peer as a node peers with it. What the node lacks for it blocks the peer, and says so.
func peer(p *snapshot.Peer, self *view.Node, links facts.LinkSet) intent.Peer {
	mine, theirs, err := p.ASNs(self.Labels)
	out := intent.Peer{
		Name: p.Name, Address: p.Address, Port: p.Port, Unnumbered: p.Interface != "", Device: cmp.Or(p.Interface, p.VRF), Source: p.Source,
		LocalASN: cmp.Or(p.LocalASN, mine), PeerASN: theirs, RouterID: p.RouterID,
		Hold: p.Hold, Keepalive: p.Keepalive, Connect: p.Connect, Password: p.Password, Multihop: p.MultiHop,
		IPv4: p.DualStack || p.Address.Is4() || p.Interface != "", IPv6: p.DualStack || p.Address.Is6() || p.Interface != "",
		GracefulRestart: p.GracefulRestart, RestartTime: restartTime, Hops: p.Hops, Passive: p.Passive,
	}
	if p.Address.Is6() && p.Address.IsLinkLocalUnicast() {
		out.Address = p.Address.WithZone(p.VRF)
	}
	if p.Gateway != 0 {
		out.IPv4, out.IPv6 = p.DualStack || p.Gateway == view.IPv4, p.DualStack || p.Gateway == view.IPv6
		if out.Address = gateway(p.Gateway, links); !out.Address.IsValid() {
			out.Blocked = block(names.ReasonNoGateway, fmt.Sprintf("this node has no default gateway of IPv%d: add a default route, or write peerAddress", p.Gateway))
		}
	}
	if err != nil {
		out.Blocked = block(names.ReasonNodeLabel, err.Error())
	}
	if p.Fault != nil {
		out.Blocked = block(p.Fault.Reason, p.Fault.Text)
	}
	// Without the capability a session carries IPv4 alone, over IPv4. Where that is not what is asked for, it stays.
	out.NoMultiprotocol = p.DisableMP && out.IPv4 && !out.IPv6
	switch p.Dynamic {
	case snapshot.InternalASN:
		out.ASNs = intent.ASNInternal
	case snapshot.ExternalASN:
		out.ASNs = intent.ASNExternal
	}
	if b := p.BFD; b != nil && !out.Blocked.Any() {
		out.BFD = &intent.BFD{
			Transmit: b.Transmit, Receive: b.Receive, Echo: b.EchoInterval, Multiplier: b.Multiplier,
			EchoMode: b.Echo, Passive: b.Passive, MinTTL: b.MinimumTTL,
		}
	}
	return out
}

// repeats returns the name of a peer with which the router would take this one for the same on a node: of an older one, or, where this
// one is the default gateway, of one that names its address. It is empty when there is none.
func repeats(p *snapshot.Peer, router netip.Addr, s *snapshot.Snapshot, self *view.Node) string {
	for _, q := range s.Peers {
		same := slices.Contains(p.Repeats, q.Name) ||
			p.Gateway != 0 && q.Address.IsValid() && q.Address == router.WithZone("") && q.Port == p.Port && q.VRF == p.VRF && q.Source == p.Source
		if same && q.Fault == nil && matches(q.NodeSelectors, labels.Set(self.Labels)) {
			return q.Name
		}
	}
	return ""
}

func block(r names.Reason, text string) intent.Block {
	return intent.Block{Reason: string(r), Text: text}
}

// hopeless says whether no session can be with a peer as things are. A default gateway may be gone for an instant, and sessions
// outlive that.
func hopeless(p *intent.Peer) bool {
	return p.Blocked.Any() && p.Blocked.Reason != string(names.ReasonNoGateway)
}

// gateway returns the lowest of the node's preferred default gateways of a family, with its link as zone where it needs one; invalid when
// there is none.
func gateway(f view.Family, links facts.LinkSet) netip.Addr {
	var best netip.Addr
	for _, l := range links {
		for _, a := range l.Preferred {
			if view.FamilyOf(a) != f {
				continue
			}
			if a.IsLinkLocalUnicast() {
				a = a.WithZone(l.Name)
			}
			if !best.IsValid() || a.Less(best) {
				best = a
			}
		}
	}
	return best
}
