package bfd

import (
	"errors"
	"net/netip"
)

// What the methods of a Port may answer; any other error means that the packet was not sent, and the next may be.
var (
	// ErrPortInUse says that another program has the UDP port of BFD.
	ErrPortInUse = errors.New("another program on this node has the UDP port of BFD: stop the other BFD daemon, FRR's bfdd say")
	// ErrEchoUnsupported says that echo packets cannot be sent to this neighbour from here.
	ErrEchoUnsupported = errors.New("echo packets cannot be sent")
)

// Transport is the network: UDP for control packets, the link itself for echo packets. The Engine's goroutine alone calls its
// methods; none of them waits.
type Transport interface {
	// OpenSender returns the Port of a session with that discriminator of ours. What cannot be opened yet is tried again by
	// Check and Send. A Wire may drop unseen what no open Port's neighbour can have meant for it.
	OpenSender(k Key, discriminator uint32) Sender
	// Ready delivers a value whenever there may be something to receive.
	Ready() <-chan struct{}
	// Receive takes the next datagram that arrived, if there is one.
	Receive() (Datagram, bool)
	// Close ends everything, open ports included.
	Close()
}

// Sender sends for one session, always from the same UDP port (RFC 5881 section 4).
type Sender interface {
	// EnsureOpen opens again what was lost, when the link went away and came back say, and tells what is still missing.
	EnsureOpen() error
	// SendControl sends a control packet with a TTL of 255.
	SendControl(packet []byte) error
	// SendEcho sends a packet that the neighbour's forwarding plane returns (RFC 5881 section 4).
	SendEcho(payload []byte) error
	Close()
}

// Datagram is what arrived.
type Datagram struct {
	// From and To are the addresses, without zones.
	From, To netip.Addr
	// Interface is the link that it arrived on; VRF the device whose port received it, if not the default one.
	Interface, VRF string
	// TTL is the TTL or hop limit that was left.
	TTL uint8
	// Multihop says that it came to the port of multihop sessions; Echo that it is an echo packet.
	Multihop, Echo bool
	// Payload is valid until the next Receive.
	Payload []byte
}
