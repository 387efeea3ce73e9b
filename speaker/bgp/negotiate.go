package bgp

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// configuredFamilies returns the address families of the peer's configuration.
func configuredFamilies(p *intent.Peer) []message.AFI {
	var out []message.AFI
	if p.CarriesIPv4Routes {
		out = append(out, message.FamilyIPv4)
	}
	if p.CarriesIPv6Routes {
		out = append(out, message.FamilyIPv6)
	}
	return out
}

// chooseRouterID returns our BGP identifier: the configured one, else the node's internal IPv4
// address, else a hash of the node's name. All routers get the same one (RFC 4271 section 4.2). The
// hash is a unicast address, since older routers refuse any other; RFC 6286 requires only that it
// is unique within the AS.
func chooseRouterID(configured netip.Addr, nodeInternalIPs []netip.Addr, node string) netip.Addr {
	if configured.Is4() {
		return configured
	}
	for _, a := range nodeInternalIPs {
		if a.Is4() {
			return a
		}
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(node))
	s := h.Sum32()
	first := byte(1 + s>>24%222) // 1 to 222; without 127 the range ends with 223
	if first >= 127 {
		first++
	}
	return netip.AddrFrom4([4]byte{first, byte(s >> 16), byte(s >> 8), byte(s)})
}

// openMessageInputs are what our OPEN depends on.
type openMessageInputs struct {
	peer     *intent.Peer
	routerID netip.Addr
	// speakerHasRestarted is true while routers may still keep routes from before this process.
	speakerHasRestarted bool
	// overIPv6 is set if the connection runs over IPv6.
	overIPv6 bool
	// forwardingLost is set if the node may have booted since routers kept routes of it.
	forwardingLost bool
	// omittedCapabilities are capabilities that the router refused.
	omittedCapabilities []message.CapabilityCode
}

// buildOpen returns our OPEN.
func buildOpen(s *openMessageInputs) message.OpenMessage {
	p := s.peer
	o := message.OpenMessage{
		ASN:                  p.LocalASN,
		HoldSeconds:          uint16(p.HoldTime / time.Second),
		RouterID:             s.routerID,
		SupportsFourOctetASN: true,
		SupportsRouteRefresh: true,
	}
	if !p.NoMultiprotocol {
		o.Families = configuredFamilies(p)
		// over IPv4 the next hop is the session's
		o.SupportsExtendedNextHop = p.CarriesIPv4Routes && s.overIPv6
		o.SupportsLinkLocalNextHop = s.overIPv6
	}
	if p.GracefulRestart {
		// Kubernetes forwards while the speaker restarts, so that the F bit is set, but not while
		// the node boots (RFC 4724 section 4.1).
		g := &message.GracefulRestartCapability{
			SenderHasRestarted:     s.speakerHasRestarted,
			GracefulNotification:   true,
			RestartSeconds:         uint16(min(p.RestartTime/time.Second, 4095)),
			ForwardingKeptByFamily: map[message.AFI]bool{},
		}
		for _, f := range configuredFamilies(p) {
			g.ForwardingKeptByFamily[f] = !s.forwardingLost
		}
		o.GracefulRestart = g
	}
	return o.WithoutCapabilities(s.omittedCapabilities)
}

// routerOpenRejection is why we reject the router's OPEN.
type routerOpenRejection struct {
	*message.Notification
	reason names.Reason
}

// Unwrap returns the NOTIFICATION.
func (r routerOpenRejection) Unwrap() error { return r.Notification }

// negotiateOpens compares the router's OPEN with the
// configuration. The error is a *message.Notification.
func negotiateOpens(p *intent.Peer, local, remote message.OpenMessage) (NegotiatedParameters, error) {
	n := NegotiatedParameters{LocalOpen: local, RemoteOpen: remote}
	if f := checkRouterASN(p, remote.ASN); f != nil {
		return n, f
	}
	if remote.ASN == local.ASN && remote.RouterID == local.RouterID {
		return n, &message.Notification{Code: message.CodeOpenMessageError, Subcode: 3, FaultText: fmt.Sprintf("its router ID %s is also ours: change one of them", remote.RouterID)}
	}
	theirs := remote.Families
	if !remote.HasMultiprotocol { // without the capability: IPv4 unicast, RFC 4760 section 8
		theirs = []message.AFI{message.FamilyIPv4}
	}
	for _, f := range configuredFamilies(p) {
		if slices.Contains(theirs, f) && (len(local.Families) > 0 || f == message.FamilyIPv4) {
			n.CommonFamilies = append(n.CommonFamilies, f)
		}
	}
	if len(n.CommonFamilies) == 0 {
		return n, routerOpenRejection{reason: names.ReasonFamilyNotCarried, Notification: &message.Notification{Code: message.CodeOpenMessageError, Subcode: 7, FaultText: fmt.Sprintf("it supports %s and we use %v: activate a common address family for this neighbour on the router", describeFamilies(theirs), configuredFamilies(p))}}
	}
	n.HoldTime = time.Duration(min(local.HoldSeconds, remote.HoldSeconds)) * time.Second
	n.KeepaliveInterval = keepaliveInterval(p, n.HoldTime)
	n.ExtendedNextHop = local.SupportsExtendedNextHop && remote.SupportsExtendedNextHop
	n.FourOctetASN = local.SupportsFourOctetASN && remote.SupportsFourOctetASN
	n.AllowsLinkLocalOnlyNextHop = local.SupportsLinkLocalNextHop && remote.SupportsLinkLocalNextHop
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

// describeFamilies names the families of a router.
func describeFamilies(all []message.AFI) string {
	if len(all) == 0 {
		return "neither IPv4 nor IPv6 unicast"
	}
	return fmt.Sprint(all)
}
