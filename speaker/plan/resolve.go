package plan

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// resolvePeer resolves a configured peer for this node. If the node lacks something, the peer is
// blocked with a reason.
func resolvePeer(p *snapshot.Peer, self *view.Node, links facts.LinkSet) intent.Peer {
	mine, theirs, err := p.ASNsForNode(self.Labels)
	out := intent.Peer{
		Name: p.Name, Address: p.Address, Port: p.Port, Unnumbered: p.Interface != "", Device: cmp.Or(p.Interface, p.VRF), SourceAddress: p.SourceAddress,
		LocalASN: cmp.Or(p.LocalASN, mine), PeerASN: theirs, RouterID: p.RouterID,
		HoldTime: p.HoldTime, KeepaliveTime: p.KeepaliveInterval, MaxReconnectDelay: p.ConnectInterval, Password: p.Password, Multihop: p.MultiHop,
		CarriesIPv4Routes: p.CarriesFamily(ipfamily.IPv4), CarriesIPv6Routes: p.CarriesFamily(ipfamily.IPv6),
		GracefulRestart: p.GracefulRestart, RestartTime: cmp.Or(p.RestartTime, gracefulRestartKeepRoutesTimeout), MaxHops: p.MaxTTLSecurityHops, Passive: p.Passive,
		NextHopIPv4: p.NextHopIPv4, NextHopIPv6: p.NextHopIPv6, DrainDelay: p.DrainDelay, HasDrainDelay: p.HasDrainDelay, BFDStrict: p.BFDStrict,
	}
	if p.Address.Is6() && p.Address.IsLinkLocalUnicast() {
		out.Address = p.Address.WithZone(p.VRF)
	}
	if p.DefaultGatewayFamily != 0 {
		if out.Address = preferredDefaultGateway(p.DefaultGatewayFamily, links); !out.Address.IsValid() {
			out.BlockedExplanation = names.NewExplanation(names.ReasonNoGateway, "this node has no IPv%d default gateway: add a default route, or set peerAddress in the BGPPeer", p.DefaultGatewayFamily)
		}
	}
	if err != nil {
		out.BlockedExplanation = names.Explanation{Reason: names.ReasonNodeLabel, Text: err.Error()}
	}
	if p.FirstProblem != nil {
		out.BlockedExplanation = names.Explanation{Reason: p.FirstProblem.Reason, Text: p.FirstProblem.Text}
	}
	// Without the capability a session carries only IPv4, over IPv4. A peer that needs
	// more keeps it.
	out.NoMultiprotocol = p.DisableMultiprotocol && out.CarriesIPv4Routes && !out.CarriesIPv6Routes
	switch p.DynamicASN {
	case snapshot.InternalASN:
		out.AcceptedASNs = intent.AcceptInternalASN
	case snapshot.ExternalASN:
		out.AcceptedASNs = intent.AcceptExternalASN
	}
	if b := p.BFD; b != nil && !out.BlockedExplanation.IsSet() {
		out.BFD = &intent.BFD{
			TransmitInterval: b.TransmitInterval, ReceiveInterval: b.ReceiveInterval, EchoInterval: b.EchoInterval, Multiplier: b.DetectMultiplier,
			EchoMode: b.EchoMode, Passive: b.PassiveMode, MinTTL: b.MinimumMultihopTTL,
		}
	}
	return out
}

// findPeerWithSameRouter returns the name of another peer of this node that the router cannot tell
// from this one: an older peer, or, if this peer is the default gateway, a peer with the gateway's
// address. It returns "" if there is none.
func findPeerWithSameRouter(p *snapshot.Peer, router netip.Addr, s *snapshot.Snapshot, self *view.Node) string {
	for _, q := range s.Peers {
		same := slices.Contains(p.OlderPeersWithSameSession, q.Name) ||
			p.DefaultGatewayFamily != 0 && q.Address.IsValid() && q.Address == router.WithZone("") && q.Port == p.Port && q.VRF == p.VRF && q.SourceAddress == p.SourceAddress
		if same && q.FirstProblem == nil && q.SelectsNode(self.Labels) {
			return q.Name
		}
	}
	return ""
}

// isPeerUnusable says whether no session with the peer is possible for now. A missing default
// gateway does not count: it may be missing for an instant, and sessions survive that.
func isPeerUnusable(p *intent.Peer) bool {
	return p.BlockedExplanation.IsSet() && p.BlockedExplanation.Reason != names.ReasonNoGateway
}

// preferredDefaultGateway returns the lowest address among the node's preferred default gateways of
// a family. A link-local address has its link as zone. The address is invalid if there is none.
func preferredDefaultGateway(f ipfamily.Family, links facts.LinkSet) netip.Addr {
	var best netip.Addr
	for _, l := range links {
		for _, a := range l.LowestMetricDefaultGateways {
			if ipfamily.FamilyOf(a) != f {
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
