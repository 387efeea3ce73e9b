package session

import (
	"encoding/binary"
	"time"
)

// State is the state of a session, with its number on the wire (RFC 5880 section 4.1).
type State uint8

// The states of RFC 5880 section 6.2.
const (
	AdminDown State = iota
	Down
	Init
	Up
)

// String returns the RFC's name of the state.
func (s State) String() string { return [...]string{"AdminDown", "Down", "Init", "Up"}[s&3] }

// Diagnostic is why a session last left the state Up, with
// its number on the wire (RFC 5880 section 4.1).
type Diagnostic uint8

// The diagnostics that this package sends. String names all of them.
const (
	DiagnosticNone                   Diagnostic = 0
	DiagnosticDetectionExpired       Diagnostic = 1
	DiagnosticEchoFailed             Diagnostic = 2
	DiagnosticNeighbourSignalledDown Diagnostic = 3
	DiagnosticAdminDown              Diagnostic = 7
)

// String names the diagnostic in words.
func (d Diagnostic) String() string {
	words := [...]string{
		"no diagnostic", "control detection time expired", "echo function failed", "neighbour signalled session down",
		"forwarding plane reset", "path down", "concatenated path down", "administratively down", "reverse concatenated path down",
	}
	if int(d) < len(words) {
		return words[d]
	}
	return "an unassigned diagnostic"
}

// Packet is a BFD Control packet (RFC 5880 section 4.1). The zero value is invalid on the wire.
type Packet struct {
	Diagnostic Diagnostic
	State      State
	// Poll is the P bit: it requests a packet with Final, at once (RFC 5880 section 6.5).
	Poll bool
	// Final is the F bit: the packet answers a Poll. No packet has both bits.
	Final bool
	// ControlPlaneIndependent is the C bit: the sender's BFD does not
	// share fate with its control plane. We never set it.
	ControlPlaneIndependent bool
	// AuthenticationPresent is the A bit. The authentication section is not decoded.
	AuthenticationPresent bool
	// Demand is the D bit: the sender wants no periodic packets while both sides are Up.
	Demand bool
	// DetectMultiplier is how many intervals may pass without a packet; 0 is invalid.
	DetectMultiplier uint8
	// MyDiscriminator is the sender's, never 0.
	MyDiscriminator uint32
	// YourDiscriminator is the receiver's, or 0 if the sender does not know it.
	YourDiscriminator uint32
	// DesiredMinTxInterval is the shortest interval at which the sender wants to send.
	// Intervals are multiples of 1 µs up to about 71 minutes.
	DesiredMinTxInterval time.Duration
	// RequiredMinRxInterval is the shortest interval at which the sender can receive; 0 if
	// it wants no periodic packets.
	RequiredMinRxInterval time.Duration
	// RequiredMinEchoRxInterval is the shortest interval at which the sender can receive
	// echo packets; 0 if it accepts none.
	RequiredMinEchoRxInterval time.Duration
}

const (
	protocolVersion = 1
	// unauthenticatedPacketBytes is the length of a packet without an authentication
	// section, minAuthenticatedPacketBytes the least with one, in bytes.
	unauthenticatedPacketBytes  = 24
	minAuthenticatedPacketBytes = 26
)

// The flags in the second byte.
const (
	flagPoll                    = 1 << 5
	flagFinal                   = 1 << 4
	flagControlPlaneIndependent = 1 << 3
	flagAuthenticationPresent   = 1 << 2
	flagDemand                  = 1 << 1
	flagMultipoint              = 1 << 0
)

// DiscardReason is why a received packet was discarded; empty
// if it was accepted. It is a label of a metric.
type DiscardReason string

// The discard rules of RFC 5880 section 6.8.6 and of the transports: the TTL
// of RFC 5881 section 5 and RFC 5883, and packets without a session.
const (
	NotDiscarded                    DiscardReason = ""
	DiscardBadVersion               DiscardReason = "version"
	DiscardBadLength                DiscardReason = "length"
	DiscardZeroMultiplier           DiscardReason = "multiplier"
	DiscardMultipoint               DiscardReason = "multipoint"
	DiscardZeroMyDiscriminator      DiscardReason = "my_discriminator"
	DiscardUnknownSession           DiscardReason = "session"
	DiscardZeroYourDiscriminator    DiscardReason = "state"
	DiscardUnexpectedAuthentication DiscardReason = "authentication"
	DiscardLowTTL                   DiscardReason = "ttl"
	DiscardSessionAdminDown         DiscardReason = "admin_down"
)

// DiscardReasons are all reasons but NotDiscarded.
var DiscardReasons = [...]DiscardReason{
	DiscardBadVersion, DiscardBadLength, DiscardZeroMultiplier, DiscardMultipoint, DiscardZeroMyDiscriminator, DiscardUnknownSession, DiscardZeroYourDiscriminator, DiscardUnexpectedAuthentication, DiscardLowTTL, DiscardSessionAdminDown,
}

// ParsePacket decodes the payload of a datagram. It applies the rules of RFC 5880 section 6.8.6
// that need no session. It ignores bytes after the packet's own length.
func ParsePacket(b []byte) (Packet, DiscardReason) {
	if len(b) < unauthenticatedPacketBytes {
		return Packet{}, DiscardBadLength
	}
	flags := b[1]
	least := unauthenticatedPacketBytes
	if flags&flagAuthenticationPresent != 0 {
		least = minAuthenticatedPacketBytes
	}
	p := Packet{
		Diagnostic: Diagnostic(b[0] & 0x1f), State: State(flags >> 6),
		Poll: flags&flagPoll != 0, Final: flags&flagFinal != 0, ControlPlaneIndependent: flags&flagControlPlaneIndependent != 0,
		AuthenticationPresent: flags&flagAuthenticationPresent != 0, Demand: flags&flagDemand != 0,
		DetectMultiplier: b[2], MyDiscriminator: binary.BigEndian.Uint32(b[4:]), YourDiscriminator: binary.BigEndian.Uint32(b[8:]),
		DesiredMinTxInterval: decodeMicroseconds(b[12:]), RequiredMinRxInterval: decodeMicroseconds(b[16:]), RequiredMinEchoRxInterval: decodeMicroseconds(b[20:]),
	}
	switch {
	case b[0]>>5 != protocolVersion:
		return Packet{}, DiscardBadVersion
	case int(b[3]) < least || int(b[3]) > len(b):
		return Packet{}, DiscardBadLength
	case p.DetectMultiplier == 0:
		return Packet{}, DiscardZeroMultiplier
	case flags&flagMultipoint != 0:
		return Packet{}, DiscardMultipoint
	case p.MyDiscriminator == 0:
		return Packet{}, DiscardZeroMyDiscriminator
	case p.YourDiscriminator == 0 && p.State != Down && p.State != AdminDown:
		return Packet{}, DiscardZeroYourDiscriminator
	}
	return p, NotDiscarded
}

func decodeMicroseconds(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Microsecond
}

// AppendEncoded appends the encoded packet. It never sets the A
// bit, since authentication is not supported.
func (p Packet) AppendEncoded(b []byte) []byte {
	flags := byte(p.State) << 6
	flags |= flagBit(p.Poll, flagPoll) | flagBit(p.Final, flagFinal) | flagBit(p.ControlPlaneIndependent, flagControlPlaneIndependent) | flagBit(p.Demand, flagDemand)
	b = append(b, protocolVersion<<5|byte(p.Diagnostic)&0x1f, flags, p.DetectMultiplier, unauthenticatedPacketBytes)
	b = binary.BigEndian.AppendUint32(b, p.MyDiscriminator)
	b = binary.BigEndian.AppendUint32(b, p.YourDiscriminator)
	for _, d := range [...]time.Duration{p.DesiredMinTxInterval, p.RequiredMinRxInterval, p.RequiredMinEchoRxInterval} {
		b = binary.BigEndian.AppendUint32(b, uint32(d/time.Microsecond))
	}
	return b
}

func flagBit(set bool, bit byte) byte {
	if set {
		return bit
	}
	return 0
}
