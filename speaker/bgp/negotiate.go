package bgp

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/bgp/frame"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// families returns those that the peer is to carry.
func families(p *intent.Peer) []frame.Family {
	var out []frame.Family
	if p.IPv4 {
		out = append(out, frame.IPv4)
	}
	if p.IPv6 {
		out = append(out, frame.IPv6)
	}
	return out
}

// routerID returns the BGP identifier of our end: as given, else the session's IPv4 address, else a number made of the
// node's name (RFC 6286 asks for no more than uniqueness within the AS).
func routerID(given, local netip.Addr, node string) netip.Addr {
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

// open returns our OPEN. restarted says that this process has begun anew and routes of its former life may still be kept.
func open(p *intent.Peer, id netip.Addr, restarted bool) frame.Open {
	o := frame.Open{
		ASN: p.LocalASN, Hold: uint16(p.Hold / time.Second), ID: id, FourOctet: true, Refresh: true,
	}
	if !p.NoMultiprotocol {
		o.Families = families(p)
		o.ExtendedNextHop = p.IPv4
	}
	if p.GracefulRestart {
		// Forwarding is kubernetes' and goes on while the speaker is away: F is always true.
		g := &frame.Graceful{Restarting: restarted, Notification: true, Seconds: uint16(min(p.RestartTime/time.Second, 4095)), Families: map[frame.Family]bool{}}
		for _, f := range families(p) {
			g.Families[f] = true
		}
		o.Graceful = g
	}
	return o
}

// agree holds the router's OPEN against what is configured. A *frame.Fault says what does not fit.
func agree(p *intent.Peer, self, peer frame.Open) (Agreed, error) {
	a := Agreed{Self: self, Peer: peer}
	if f := asnFault(p, peer.ASN); f != nil {
		return a, f
	}
	if peer.ASN == self.ASN && peer.ID == self.ID {
		return a, &frame.Fault{Code: frame.CodeOpen, Subcode: 3, Text: fmt.Sprintf("its router ID %s is ours: give one of both another", peer.ID)}
	}
	if self.ASN > 0xffff && !peer.FourOctet {
		return a, &frame.Fault{Code: frame.CodeOpen, Subcode: 7, Text: fmt.Sprintf("it does not know AS numbers of four octets, and ours is %d", self.ASN)}
	}
	theirs := peer.Families
	if len(theirs) == 0 { // without the capability a session carries IPv4 unicast, RFC 4760 section 8
		theirs = []frame.Family{frame.IPv4}
	}
	for _, f := range families(p) {
		if slices.Contains(theirs, f) && (len(self.Families) > 0 || f == frame.IPv4) {
			a.Families = append(a.Families, f)
		}
	}
	if len(a.Families) == 0 {
		return a, &frame.Fault{Code: frame.CodeOpen, Subcode: 7, Text: fmt.Sprintf("it carries %v and we %v: activate a common address family for this neighbour on the router", theirs, families(p))}
	}
	a.Hold = time.Duration(min(self.Hold, peer.Hold)) * time.Second
	a.Keepalive = keepalive(p, a.Hold)
	a.ExtendedNextHop = self.ExtendedNextHop && peer.ExtendedNextHop
	a.Graceful = self.Graceful != nil && peer.Graceful != nil
	a.Notification = a.Graceful && peer.Graceful.Notification
	return a, nil
}

// keepalive returns the interval between our keepalives under a hold time: a third of it, or less where the peer asks for less.
func keepalive(p *intent.Peer, hold time.Duration) time.Duration {
	if hold == 0 {
		return 0
	}
	out := hold / 3
	if p.Keepalive > 0 && p.Keepalive < out {
		out = p.Keepalive
	}
	return max(out.Truncate(time.Second), time.Second)
}

func asnFault(p *intent.Peer, got uint32) *frame.Fault {
	var want string
	switch {
	case p.ASNs == intent.ASNInternal && got != p.LocalASN:
		want = fmt.Sprintf("the internal %d", p.LocalASN)
	case p.ASNs == intent.ASNExternal && got == p.LocalASN:
		want = "an external one"
	case p.ASNs == intent.ASNGiven && got != p.PeerASN:
		want = fmt.Sprint(p.PeerASN)
	default:
		return nil
	}
	return &frame.Fault{Code: frame.CodeOpen, Subcode: 2, Text: fmt.Sprintf("its AS number is %d, and the BGPPeer asks for %s: correct one of both", got, want)}
}

// nextHop returns the next hop for a family, invalid when there is none.
func nextHop(f frame.Family, extended bool, v4, v6 netip.Addr) netip.Addr {
	switch {
	case f == frame.IPv6:
		return v6
	case v4.IsValid():
		return v4
	case extended: // RFC 8950
		return v6
	}
	return netip.Addr{}
}
