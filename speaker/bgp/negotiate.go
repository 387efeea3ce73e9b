package bgp

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// configuredFamilies returns the address families of the peer's configuration.
func configuredFamilies(p *intent.Peer) []message.AFI {
	var out []message.AFI
	if p.IPv4 {
		out = append(out, message.FamilyIPv4)
	}
	if p.IPv6 {
		out = append(out, message.FamilyIPv6)
	}
	return out
}

// chooseRouterID returns our BGP identifier: the configured one, else the session's IPv4 address,
// else a hash of the node's name. RFC 6286 requires only that it is unique within the AS.
func chooseRouterID(given, local netip.Addr, node string) netip.Addr {
	if given.Is4() {
		return given
	}
	if local.Is4() {
		return local
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(node))
	s := h.Sum32() | 1 // never 0.0.0.0
	return netip.AddrFrom4([4]byte{byte(s >> 24), byte(s >> 16), byte(s >> 8), byte(s)})
}

// buildOpen returns our OPEN. restarted is true while routers
// may still keep routes from before this process.
func buildOpen(p *intent.Peer, id netip.Addr, restarted bool) message.OpenMessage {
	o := message.OpenMessage{
		ASN:                  p.LocalASN,
		HoldSeconds:          uint16(p.HoldTime / time.Second),
		RouterID:             id,
		SupportsFourOctetASN: true,
		SupportsRouteRefresh: true,
	}
	if !p.NoMultiprotocol {
		o.Families = configuredFamilies(p)
		o.SupportsExtendedNextHop = p.IPv4
	}
	if p.GracefulRestart {
		// Kubernetes forwards while the speaker restarts: the F bit is always set.
		g := &message.GracefulRestartCapability{
			SenderHasRestarted:     restarted,
			GracefulNotification:   true,
			RestartSeconds:         uint16(min(p.RestartTime/time.Second, 4095)),
			ForwardingKeptByFamily: map[message.AFI]bool{},
		}
		for _, f := range configuredFamilies(p) {
			g.ForwardingKeptByFamily[f] = true
		}
		o.GracefulRestart = g
	}
	return o
}

// negotiate compares the router's OPEN with the
// configuration. The error is a *message.Notification.
func negotiate(p *intent.Peer, local, remote message.OpenMessage) (Negotiated, error) {
	n := Negotiated{LocalOpen: local, RemoteOpen: remote}
	if f := checkRouterASN(p, remote.ASN); f != nil {
		return n, f
	}
	if remote.ASN == local.ASN && remote.RouterID == local.RouterID {
		return n, &message.Notification{Code: message.CodeOpenMessageError, Subcode: 3, FaultText: fmt.Sprintf("its router ID %s is also ours: change one of them", remote.RouterID)}
	}
	if local.ASN > 0xffff && !remote.SupportsFourOctetASN {
		return n, &message.Notification{Code: message.CodeOpenMessageError, Subcode: 7, FaultText: fmt.Sprintf("it does not support AS numbers of four octets, and ours is %d", local.ASN)}
	}
	theirs := remote.Families
	if len(theirs) == 0 { // without the capability: IPv4 unicast, RFC 4760 section 8
		theirs = []message.AFI{message.FamilyIPv4}
	}
	for _, f := range configuredFamilies(p) {
		if slices.Contains(theirs, f) && (len(local.Families) > 0 || f == message.FamilyIPv4) {
			n.CommonFamilies = append(n.CommonFamilies, f)
		}
	}
	if len(n.CommonFamilies) == 0 {
		return n, &message.Notification{Code: message.CodeOpenMessageError, Subcode: 7, FaultText: fmt.Sprintf("it supports %v and we use %v: activate a common address family for this neighbour on the router", theirs, configuredFamilies(p))}
	}
	n.HoldTime = time.Duration(min(local.HoldSeconds, remote.HoldSeconds)) * time.Second
	n.KeepaliveInterval = keepaliveInterval(p, n.HoldTime)
	n.ExtendedNextHop = local.SupportsExtendedNextHop && remote.SupportsExtendedNextHop
	n.GracefulRestart = local.GracefulRestart != nil && remote.GracefulRestart != nil
	n.GracefulNotification = n.GracefulRestart && remote.GracefulRestart.GracefulNotification
	return n, nil
}

// keepaliveInterval returns the interval between our keepalives: a third of
// the hold time, or the configured interval if that is shorter.
func keepaliveInterval(p *intent.Peer, hold time.Duration) time.Duration {
	if hold == 0 {
		return 0
	}
	out := hold / 3
	if p.KeepaliveTime > 0 && p.KeepaliveTime < out {
		out = p.KeepaliveTime
	}
	return max(out.Truncate(time.Second), time.Second)
}

func checkRouterASN(p *intent.Peer, got uint32) *message.Notification {
	var want string
	switch {
	case p.AcceptedASNs == intent.AcceptInternalASN && got != p.LocalASN:
		want = fmt.Sprintf("the internal %d", p.LocalASN)
	case p.AcceptedASNs == intent.AcceptExternalASN && got == p.LocalASN:
		want = "an external one"
	case p.AcceptedASNs == intent.AcceptOnlyPeerASN && got != p.PeerASN:
		want = fmt.Sprint(p.PeerASN)
	default:
		return nil
	}
	return &message.Notification{Code: message.CodeOpenMessageError, Subcode: 2, FaultText: fmt.Sprintf("its AS number is %d, and the BGPPeer asks for %s: correct one of them", got, want)}
}

// chooseNextHop returns the next hop for a family; invalid when there is none.
func chooseNextHop(f message.AFI, extended bool, ipv4, ipv6 netip.Addr) netip.Addr {
	switch {
	case f == message.FamilyIPv6:
		return ipv6
	case ipv4.IsValid():
		return ipv4
	case extended: // RFC 8950
		return ipv6
	}
	return netip.Addr{}
}
