// Package wire is the Linux side of layer 2: AF_PACKET sockets that see ARP, or neighbour discovery, and nothing else. It is the only importer of the
// raw-socket libraries. It keeps no state but its sockets; errors are told apart here, and nowhere else. Package segment
// is its in-memory stand-in.
package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// Wire opens AF_PACKET sockets in the network namespace of the calling thread.
type Wire struct{}

var _ layer2.Wire = Wire{}

// receiveBuffer is what the socket may hold while the speaker does not run, in bytes: with the kernel's overhead about
// 5,000 frames of ARP.
const receiveBuffer = 4 << 20

// filter passes ARP requests and replies for IPv4 over Ethernet and drops the rest in the kernel, as it drops what is
// not for this host: frames that it sent itself, and those of a VLAN that it has no link for, which the kernel marks
// as another host's.
var filter = []bpf.Instruction{
	bpf.LoadExtension{Num: bpf.ExtType},
	bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: unix.PACKET_MULTICAST, SkipTrue: 7},
	bpf.LoadAbsolute{Off: etherType, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_ARP, SkipTrue: 5},
	bpf.LoadAbsolute{Off: arpHardware, Size: 4},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: ethernetIPv4, SkipTrue: 3},
	bpf.LoadAbsolute{Off: arpOp, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(layer2.Reply), SkipTrue: 1},
	bpf.RetConstant{Val: maxFrame},
	bpf.RetConstant{Val: 0},
}

// maxFrame is how much of a frame is read, in bytes.
const maxFrame = 512

// protocol is what differs between the families.
type protocol struct {
	name      string
	etherType int
	filter    []bpf.Instruction
	decode    func(b []byte) (layer2.Frame, bool)
	encode    func(b []byte, f layer2.Frame) ([]byte, error)
}

func protocolOf(f layer2.Family) protocol {
	if f == layer2.IPv6 {
		return protocol{"NDP", unix.ETH_P_IPV6, ndpFilter, decodeNDP, encodeNDP}
	}
	return protocol{"ARP", unix.ETH_P_ARP, filter, decodeARP, encodeARP}
}

// Open opens a socket on the link.
func (Wire) Open(l facts.Link, family layer2.Family) (layer2.Port, error) {
	p := &port{
		link: l.Name, protocol: protocolOf(family), family: family,
		in: make([]byte, maxFrame), out: make([]byte, 0, maxFrame),
	}
	p.read, p.write = p.readOnce, p.writeOnce
	if err := p.open(l); err != nil {
		return nil, fmt.Errorf("opening %s socket on %q: %w", p.protocol.name, l.Name, classify(err))
	}
	return p, nil
}

// open opens the socket; nothing stays open after an error.
func (p *port) open(l facts.Link) error {
	program, err := bpf.Assemble(p.protocol.filter)
	if err != nil {
		return fmt.Errorf("assembling the filter: %w", err)
	}
	// The filter is set before the socket is bound, so that no other frame is ever queued.
	ifi := &net.Interface{Index: l.Index, Name: l.Name}
	p.conn, err = packet.Listen(ifi, packet.Raw, p.protocol.etherType, &packet.Config{Filter: program})
	if err != nil {
		return err
	}
	p.raw, err = p.conn.SyscallConn()
	if err == nil {
		err = p.raw.Control(enlarge)
	}
	if err == nil && p.family == layer2.IPv6 {
		p.groups, err = newGroups(l.Index, p.raw.Control)
	}
	if err != nil {
		_ = p.conn.Close() // nothing was sent yet
	}
	return err
}

// enlarge asks for a large receive buffer. A smaller one only loses frames sooner, so that a refusal is no error;
// passing the system's limit (net.core.rmem_max) needs NET_ADMIN, which the speaker commonly lacks.
func enlarge(fd uintptr) {
	if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
}

// classify gives an error the name by which the engine knows it.
func classify(err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return layer2.ErrDenied
	case errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w (%w)", layer2.ErrLinkGone, err)
	case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EAGAIN):
		return layer2.ErrNotSent
	}
	return err
}

// port is one socket. Read is called by one goroutine, Write by one other.
type port struct {
	link     string
	protocol protocol
	family   layer2.Family
	conn     *packet.Conn
	raw      syscall.RawConn
	groups   *groups // nil for IPv4

	// read and write are the methods of that name plus Once, kept so that no closure is made for a frame. They
	// pass what follows between themselves and their callers.
	read, write       func(fd uintptr) bool
	in, out           []byte
	readLen           int
	readErr, writeErr error
}

// Read returns the next frame; what cannot be decoded is passed over.
func (p *port) Read() (layer2.Frame, error) {
	for {
		err := p.raw.Read(p.read)
		if err == nil {
			err = p.readErr
		}
		if err != nil {
			return layer2.Frame{}, fmt.Errorf("reading %s on %q: %w", p.protocol.name, p.link, classify(err))
		}
		if f, ok := p.protocol.decode(p.in[:p.readLen]); ok {
			return f, nil
		}
	}
}

// readOnce reads a frame; false asks to be called again when there is one.
func (p *port) readOnce(fd uintptr) bool {
	p.readLen, p.readErr = unix.Read(int(fd), p.in)
	return p.readErr != unix.EAGAIN && p.readErr != unix.EINTR
}

// Write sends a frame, or answers ErrNotSent when it would have to wait.
func (p *port) Write(f layer2.Frame) error {
	if layer2.FamilyOf(f.SenderIP) != p.family || layer2.FamilyOf(f.TargetIP) != p.family {
		return fmt.Errorf("sending %s on %q: %w: %s and %s are not both %s", p.protocol.name, p.link, layer2.ErrNotSent, f.SenderIP, f.TargetIP, p.family)
	}
	b, err := p.protocol.encode(p.out[:0], f)
	if err != nil {
		return fmt.Errorf("encoding %s for %q: %w: %w", p.protocol.name, p.link, layer2.ErrNotSent, err)
	}
	p.out = b
	if err = p.raw.Write(p.write); err == nil {
		err = p.writeErr
	}
	if err != nil {
		return fmt.Errorf("sending %s on %q: %w", p.protocol.name, p.link, classify(err))
	}
	return nil
}

func (p *port) writeOnce(fd uintptr) bool {
	_, p.writeErr = unix.Write(int(fd), p.out)
	return true
}

// Join lets questions about an IPv6 address in.
func (p *port) Join(a netip.Addr) error {
	if p.groups == nil {
		return nil
	}
	return p.groups.join(a)
}

// Leave keeps them out again.
func (p *port) Leave(a netip.Addr) {
	if p.groups != nil {
		p.groups.leave(a)
	}
}

// Close ends a blocked Read. Like Join, Leave and Write it belongs to the port's owner.
func (p *port) Close() error {
	if p.groups != nil {
		p.groups.close()
	}
	return p.conn.Close()
}
