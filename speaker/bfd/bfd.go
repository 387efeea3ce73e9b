// Package bfd tells within a fraction of a second that a router is no longer reached: BFD for single-hop and multihop paths
// (RFC 5880, 5881, 5883) in asynchronous mode. The Engine is given the sessions to run and reports which of them come Up and
// go Down; package session is the protocol as a pure state machine, package udp the Linux sockets, package cable their
// in-memory stand-in. It sends no routes and resets no BGP session; it does not know what its sessions are for.
package bfd

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

// Key tells sessions apart. It is comparable.
type Key struct {
	// Peer is the neighbour's address, without a zone: Interface says where a link-local one is.
	Peer netip.Addr
	// Local is the address to send from, and the only one to listen on; the zero value leaves the choice to the kernel.
	Local netip.Addr
	// Interface binds the session to a link. A link-local Peer needs one; multihop sessions have none.
	Interface string
	// VRF is the VRF device whose routes and ports the session uses; empty is the default.
	VRF string
	// Multihop sessions cross routers (RFC 5883); all others reach a neighbour on a link (RFC 5881).
	Multihop bool
}

// String names the session for logs.
func (k Key) String() string {
	s := k.PeerLabel()
	if k.VRF != "" {
		s += " in VRF " + k.VRF
	}
	if k.Multihop {
		s += " (multihop)"
	}
	return s
}

// PeerLabel is the peer as metrics name it: its address, with the link where it is link-local.
func (k Key) PeerLabel() string {
	if k.Peer.IsLinkLocalUnicast() && k.Interface != "" {
		return k.Peer.WithZone(k.Interface).String()
	}
	return k.Peer.String()
}

// Profile is how a session runs. DefaultProfile has the defaults; the zero value is not valid. The intervals are rounded
// down to whole microseconds on the wire.
type Profile struct {
	// ReceiveInterval and Transmit are the intervals at which packets may come and are to be sent while the session is Up, from
	// 10 ms to 60 s. The slower side decides.
	ReceiveInterval, TransmitInterval time.Duration
	// DetectMultiplier is how many intervals without a packet make the neighbour give the path up, 2 to 255.
	DetectMultiplier uint8
	// EchoMode also sends packets through the neighbour's forwarding plane, every EchoInterval (10 ms to 60 s).
	EchoMode     bool
	EchoInterval time.Duration
	// Passive waits for the neighbour to begin.
	Passive bool
	// MinimumTTL is the least TTL or hop limit that a packet of a multihop session may arrive with, 1 to 254; on a
	// single hop it is always 255 (RFC 5881 section 5).
	MinimumTTL uint8
}

// DefaultProfile returns what a profile without any field means: a path is given up after 900 ms.
func DefaultProfile() Profile {
	return Profile{
		ReceiveInterval: 300 * time.Millisecond, TransmitInterval: 300 * time.Millisecond, DetectMultiplier: 3,
		EchoInterval: 50 * time.Millisecond, MinimumTTL: 254,
	}
}

// The range of every interval: below it a busy host gives up paths that are fine.
const (
	minInterval = 10 * time.Millisecond
	maxInterval = 60 * time.Second
)

// Session is one to run.
type Session struct {
	Key
	Profile
}

// Fault is why a session does not run, or not as asked for. Its zero value is no fault.
type Fault struct {
	Reason names.Reason
	Text   string
}

// Validate returns the Fault that keeps the session from being run, or none.
func (s Session) Validate() Fault {
	invalid := func(format string, args ...any) Fault {
		return Fault{names.ReasonInvalidBFD, fmt.Sprintf(format, args...)}
	}
	for name, d := range map[string]time.Duration{"receive interval": s.ReceiveInterval, "transmit interval": s.TransmitInterval, "echo interval": s.EchoInterval} {
		if d < minInterval || d > maxInterval {
			return invalid("the %s is %s; it has to be from %s to %s", name, d, minInterval, maxInterval)
		}
	}
	switch {
	case s.DetectMultiplier < 2:
		return invalid("the detect multiplier is %d; it has to be from 2 to 255", s.DetectMultiplier)
	case s.MinimumTTL < 1 || s.MinimumTTL > 254:
		return invalid("the minimum TTL is %d; it has to be from 1 to 254", s.MinimumTTL)
	case !s.Peer.IsValid() || s.Peer.IsUnspecified() || s.Peer.IsMulticast() || s.Peer.Zone() != "" || s.Peer.Is4In6():
		return invalid("%s is no address of a neighbour", s.Peer)
	case s.Peer.Is6() && s.Peer.IsLinkLocalUnicast() && s.Interface == "":
		return invalid("the neighbour %s is link-local: name the interface that it is on", s.Peer)
	case s.Local.IsValid() && s.Local.Is4() != s.Peer.Is4():
		return invalid("the source address %s and the neighbour %s are not of one family", s.Local, s.Peer)
	case s.Multihop && s.Interface != "":
		return invalid("a multihop session to %s is bound to the interface %s: routes choose the interface", s.Peer, s.Interface)
	}
	return Fault{}
}

// echoFault says that the session runs without the echo packets that it is to send.
func (s Session) echoFault() Fault {
	if s.EchoMode && s.Multihop {
		return Fault{names.ReasonEchoUnsupported, fmt.Sprintf("echo packets would not come back from %s, which is several hops away (RFC 5883 section 3), so that control packets alone watch the path: turn echoMode off in the profile, or use another", s.Peer)}
	}
	return Fault{}
}

// machineConfig is the part of the session that the protocol acts by.
func (s Session) machineConfig() session.Config {
	c := session.Config{DesiredMinTxInterval: s.TransmitInterval, RequiredMinRxInterval: s.ReceiveInterval, DetectMultiplier: s.DetectMultiplier, Passive: s.Passive}
	if s.EchoMode && s.echoFault() == (Fault{}) {
		c.EchoInterval = s.EchoInterval
	}
	return c
}

// Event says that a session came Up, or is no longer.
type Event struct {
	Key Key
	Up  bool
	// Cause is why, Text the same in words for people.
	Cause session.Cause
	Text  string
	At    time.Time
}

// IsPathFailure says that the path is lost and routes through it have to go. An end that an administrator asked for, here or there,
// says nothing about the path (RFC 5882 section 3.2).
func (e Event) IsPathFailure() bool {
	return !e.Up && e.Cause != session.CauseNeighbourAdminDown && e.Cause != session.CauseStopped
}
