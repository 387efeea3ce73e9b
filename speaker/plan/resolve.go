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

// resolvePeer is a configured peer as a node peers with it. What the node lacks for it blocks the peer, and says so.
func resolvePeer(p *snapshot.Peer, self *view.Node, links facts.LinkSet) intent.Peer {
	mine, theirs, err := p.ASNsForNode(self.Labels)
	out := intent.Peer{
		Name: p.Name, Address: p.Address, Port: p.Port, Unnumbered: p.Interface != "", Device: cmp.Or(p.Interface, p.VRF), SourceAddress: p.SourceAddress,
		LocalASN: cmp.Or(p.LocalASN, mine), PeerASN: theirs, RouterID: p.RouterID,
		HoldTime: p.HoldTime, KeepaliveTime: p.KeepaliveInterval, ConnectTime: p.ConnectInterval, Password: p.Password, Multihop: p.MultiHop,
		IPv4: p.DualStack || p.Address.Is4() || p.Interface != "", IPv6: p.DualStack || p.Address.Is6() || p.Interface != "",
		GracefulRestart: p.GracefulRestart, RestartTime: gracefulRestartTimeout, MaxHops: p.TTLSecurityHops, Passive: p.Passive,
	}
	if p.Address.Is6() && p.Address.IsLinkLocalUnicast() {
		out.Address = p.Address.WithZone(p.VRF)
	}
	if p.DefaultGateway != 0 {
		out.IPv4, out.IPv6 = p.DualStack || p.DefaultGateway == view.IPv4, p.DualStack || p.DefaultGateway == view.IPv6
		if out.Address = preferredGateway(p.DefaultGateway, links); !out.Address.IsValid() {
			out.Blocked = newBlock(names.ReasonNoGateway, fmt.Sprintf("this node has no default gateway of IPv%d: add a default route, or write peerAddress", p.DefaultGateway))
		}
	}
	if err != nil {
		out.Blocked = newBlock(names.ReasonNodeLabel, err.Error())
	}
	if p.Fault != nil {
		out.Blocked = newBlock(p.Fault.Reason, p.Fault.Text)
	}
	// Without the capability a session carries IPv4 alone, over IPv4. Where that is not what is asked for, it stays.
	out.NoMultiprotocol = p.DisableMultiprotocol && out.IPv4 && !out.IPv6
	switch p.DynamicASN {
	case snapshot.InternalASN:
		out.DynamicASN = intent.ASNInternal
	case snapshot.ExternalASN:
		out.DynamicASN = intent.ASNExternal
	}
	if b := p.BFD; b != nil && !out.Blocked.IsSet() {
		out.BFD = &intent.BFD{
			TransmitInterval: b.TransmitInterval, ReceiveInterval: b.ReceiveInterval, EchoInterval: b.EchoInterval, Multiplier: b.DetectMultiplier,
			EchoMode: b.EchoMode, Passive: b.PassiveMode, MinTTL: b.MinimumTTL,
		}
	}
	return out
}

// duplicateOf returns the name of a peer with which the router would take this one for the same on a node: of an older one, or, where this
// one is the default gateway, of one that names its address. It is empty when there is none.
func duplicateOf(p *snapshot.Peer, router netip.Addr, s *snapshot.Snapshot, self *view.Node) string {
	for _, q := range s.Peers {
		same := slices.Contains(p.DuplicateOf, q.Name) ||
			p.DefaultGateway != 0 && q.Address.IsValid() && q.Address == router.WithZone("") && q.Port == p.Port && q.VRF == p.VRF && q.SourceAddress == p.SourceAddress
		if same && q.Fault == nil && matchesAny(q.NodeSelectors, labels.Set(self.Labels)) {
			return q.Name
		}
	}
	return ""
}

func newBlock(r names.Reason, text string) intent.BlockReason {
	return intent.BlockReason{Reason: string(r), Text: text}
}

// isUnusable says whether no session can be with a peer as things are. A default gateway may be gone for an instant, and sessions
// outlive that.
func isUnusable(p *intent.Peer) bool {
	return p.Blocked.IsSet() && p.Blocked.Reason != string(names.ReasonNoGateway)
}

// preferredGateway returns the lowest of the node's preferred default gateways of a family, with its link as zone where it needs one; invalid when
// there is none.
func preferredGateway(f view.Family, links facts.LinkSet) netip.Addr {
	var best netip.Addr
	for _, l := range links {
		for _, a := range l.PreferredGateways {
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
