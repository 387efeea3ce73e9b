// Package bfd detects within a fraction of a second that a router is unreachable: BFD for
// single-hop and multihop paths (RFC 5880, 5881, 5883) in asynchronous mode. Engine.Set declares
// the sessions, and Engine.Events reports which of them come Up and go Down. Package session is the
// protocol as a pure state machine, package udp has the Linux sockets, and package bfdtest replaces
// them in tests. This package does not know the purpose of its sessions.
package bfd

import (
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

// SessionKey identifies a session. It is comparable.
type SessionKey struct {
	// PeerAddress is the neighbour's address, without a zone: Interface has the link of a
	// link-local one.
	PeerAddress netip.Addr
	// LocalAddress is the only address to send from and to receive
	// on. If it is invalid, the kernel chooses.
	LocalAddress netip.Addr
	// Interface binds the session to a link. A link-local PeerAddress
	// needs it; a multihop session has none.
	Interface string
	// VRF is the VRF device of the session; empty for the default VRF.
	VRF string
	// Multihop sessions cross routers (RFC 5883). Others reach a neighbour on a link (RFC 5881).
	Multihop bool
}

// String names the session for logs.
func (k SessionKey) String() string {
	s := k.PeerMetricLabel()
	if k.VRF != "" {
		s += " in VRF " + k.VRF
	}
	if k.Multihop {
		s += " (multihop)"
	}
	return s
}

// PeerMetricLabel is the value of the metrics' label peer: the
// address, with the link if it is link-local.
func (k SessionKey) PeerMetricLabel() string {
	if k.PeerAddress.IsLinkLocalUnicast() && k.Interface != "" {
		return k.PeerAddress.WithZone(k.Interface).String()
	}
	return k.PeerAddress.String()
}

// Profile has the parameters of a session. The zero value is invalid. The
// intervals are rounded down to whole microseconds on the wire.
type Profile struct {
	// ReceiveInterval is the shortest interval at which we can receive packets
	// while the session is Up, from 10 ms to 60 s. The slower side decides.
	ReceiveInterval time.Duration
	// TransmitInterval is the shortest interval at which we want to send packets
	// while the session is Up, from 10 ms to 60 s. The slower side decides.
	TransmitInterval time.Duration
	// DetectMultiplier is how many intervals without a packet the neighbour
	// waits before it declares the path down, from 2 to 255.
	DetectMultiplier uint8
	// EchoMode also sends echo packets, which the neighbour's forwarding plane returns.
	EchoMode bool
	// EchoInterval is the interval between echo packets, from 10 ms to 60 s.
	EchoInterval time.Duration
	// Passive waits for the neighbour's first packet.
	Passive bool
	// MinimumTTL is the lowest accepted TTL or hop limit of a multihop session, from
	// 1 to 254. It is always 255 on a single hop (RFC 5881 section 5).
	MinimumTTL uint8
}

// The range of every interval. With shorter ones a busy host would declare working paths down.
const (
	minAllowedPacketInterval = 10 * time.Millisecond
	maxAllowedPacketInterval = 60 * time.Second
)

// SessionConfig is a session to run.
type SessionConfig struct {
	SessionKey
	Profile
}

// Validate says what makes the session invalid.
func (s SessionConfig) Validate() names.Explanation {
	invalid := func(format string, args ...any) names.Explanation {
		return names.NewExplanation(names.ReasonInvalidBFD, format, args...)
	}
	for name, d := range map[string]time.Duration{"receive interval": s.ReceiveInterval, "transmit interval": s.TransmitInterval, "echo interval": s.EchoInterval} {
		if d < minAllowedPacketInterval || d > maxAllowedPacketInterval {
			return invalid("the %s is %s; it must be from %s to %s", name, d, minAllowedPacketInterval, maxAllowedPacketInterval)
		}
	}
	switch {
	case s.DetectMultiplier < 2:
		return invalid("the detect multiplier is %d; it must be from 2 to 255", s.DetectMultiplier)
	case s.MinimumTTL < 1 || s.MinimumTTL > 254:
		return invalid("the minimum TTL is %d; it must be from 1 to 254", s.MinimumTTL)
	case !s.PeerAddress.IsValid() || s.PeerAddress.IsUnspecified() || s.PeerAddress.IsMulticast() || s.PeerAddress.Zone() != "" || s.PeerAddress.Is4In6():
		return invalid("%s is not a valid neighbour address", s.PeerAddress)
	case s.PeerAddress.Is6() && s.PeerAddress.IsLinkLocalUnicast() && s.Interface == "":
		return invalid("the neighbour %s is link-local: set the interface that it is on", s.PeerAddress)
	case s.LocalAddress.IsValid() && s.LocalAddress.Is4() != s.PeerAddress.Is4():
		return invalid("the source address %s and the neighbour %s are of different address families", s.LocalAddress, s.PeerAddress)
	case s.Multihop && s.Interface != "":
		return invalid("a multihop session to %s is bound to the interface %s: remove the interface, since routes choose it", s.PeerAddress, s.Interface)
	}
	return names.Explanation{}
}

// explainEchoFault says why the session cannot send the configured echo packets.
func (s SessionConfig) explainEchoFault() names.Explanation {
	if s.EchoMode && s.Multihop {
		return names.NewExplanation(names.ReasonEchoUnsupported, "echo packets do not return from %s, which is several hops away (RFC 5883 section 3): only control packets watch the path; set echoMode: false in the profile, or use another profile", s.PeerAddress)
	}
	return names.Explanation{}
}

// toStateMachineConfig returns the configuration of the session's state machine.
func (s SessionConfig) toStateMachineConfig() session.Config {
	c := session.Config{
		DesiredMinTxInterval:  s.TransmitInterval,
		RequiredMinRxInterval: s.ReceiveInterval,
		DetectMultiplier:      s.DetectMultiplier,
		Passive:               s.Passive,
	}
	if s.EchoMode && !s.explainEchoFault().IsSet() {
		c.EchoInterval = s.EchoInterval
	}
	return c
}

// Event reports that a session came Up or left the state Up.
type Event struct {
	Key SessionKey
	Up  bool
	// Cause is why the session changed.
	Cause session.Cause
	// CauseText describes the cause for people.
	CauseText string
	ChangedAt time.Time
}

// IsPathFailure reports whether the path has failed, so that routes through it must go. An
// administrative shutdown on either side says nothing about the path (RFC 5882 section 3.2).
func (e Event) IsPathFailure() bool {
	return !e.Up && e.Cause != session.CauseNeighbourSignalledAdminDown && e.Cause != session.CauseStoppedLocally
}
