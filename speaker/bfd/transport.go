package bfd

import (
	"errors"
	"net/netip"
	"time"
)

// Errors of a Sender. With any other error the packet was not sent, and the next one may be.
var (
	// ErrPortInUse means that another program uses the UDP port of BFD.
	ErrPortInUse = errors.New("another program on this node uses the UDP port of BFD: stop the other BFD daemon, such as FRR's bfdd")
	// ErrEchoUnsupported means that echo packets cannot be sent to this neighbour.
	ErrEchoUnsupported = errors.New("echo packets cannot be sent")
)

// Transport is the network: UDP for control packets, the link itself for echo
// packets. Only the Engine's goroutine calls its methods, but for Wake. Only WaitForDatagramUntil
// blocks.
type Transport interface {
	// OpenSender returns the Sender of a session with our discriminator. ReopenLostSockets
	// and SendControl retry what cannot be opened yet. A Transport may drop
	// datagrams that no open Sender's neighbour can have sent.
	OpenSender(k SessionKey, discriminator uint32) Sender
	// WaitForDatagramUntil returns when there may be something to receive, after Wake, or at the
	// deadline. It begins now. If the deadline has passed, it only looks.
	WaitForDatagramUntil(now, deadline time.Time)
	// Wake ends the WaitForDatagramUntil under way, or else the next one. Any goroutine may call
	// it.
	Wake()
	// Receive returns the next of the datagrams that had arrived when the last WaitForDatagramUntil
	// returned. It may return later ones as well.
	Receive() (ReceivedDatagram, bool)
	// Close closes everything, open Senders included.
	Close()
}

// Sender sends for one session, always from the same UDP port (RFC 5881 section 4).
type Sender interface {
	// ReopenLostSockets opens lost sockets again, such as after the link
	// was recreated, and returns why one is not open.
	ReopenLostSockets() error
	// SendControl sends a control packet with a TTL of 255.
	SendControl(packet []byte) error
	// SendEcho sends a packet that the neighbour's forwarding plane returns (RFC 5881 section 4).
	SendEcho(payload []byte) error
	Close()
}

// ReceivedDatagram is a received datagram.
type ReceivedDatagram struct {
	// SourceAddress and To are the addresses, without zones.
	SourceAddress, DestinationAddress netip.Addr
	// ArrivalInterface is the link that it arrived on.
	ArrivalInterface string
	// VRF is the VRF device that received it; empty for the default VRF.
	VRF string
	// TTL is the TTL or hop limit on arrival.
	TTL uint8
	// ArrivedOnMultihopPort means that it came to the port of multihop sessions.
	ArrivedOnMultihopPort bool
	// IsEchoPacket means that it is an echo packet.
	IsEchoPacket bool
	// Payload is valid until the next Receive.
	Payload []byte
}
