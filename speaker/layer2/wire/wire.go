// Package wire is the Linux side of layer 2: AF_PACKET sockets that see ARP frames alone. It is the only importer of the
// raw-socket libraries. It keeps no state but its sockets; errors are told apart here, and nowhere else. Package segment
// is its in-memory stand-in.
package wire

import (
	"errors"
	"fmt"
	"net"
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
const maxFrame = 128

// Open opens a socket on the link.
func (Wire) Open(l facts.Link) (layer2.Port, error) {
	program, err := bpf.Assemble(filter)
	if err != nil {
		return nil, fmt.Errorf("assembling the ARP filter: %w", err)
	}
	// The filter is set before the socket is bound, so that no other frame is ever queued.
	c, err := packet.Listen(&net.Interface{Index: l.Index, Name: l.Name}, packet.Raw, unix.ETH_P_ARP, &packet.Config{Filter: program})
	if err != nil {
		return nil, fmt.Errorf("opening ARP socket on %q: %w", l.Name, classify(err))
	}
	raw, err := c.SyscallConn()
	if err != nil {
		_ = c.Close() // nothing was sent yet
		return nil, fmt.Errorf("opening ARP socket on %q: %w", l.Name, err)
	}
	_ = raw.Control(enlarge) // fails on a closed socket alone
	p := &port{name: l.Name, conn: c, raw: raw, in: make([]byte, maxFrame), out: make([]byte, maxFrame)}
	p.read, p.write = p.readOnce, p.writeOnce
	return p, nil
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
		return layer2.ErrBusy
	}
	return err
}

// port is one socket. Read is called by one goroutine, Write by one other.
type port struct {
	name string
	conn *packet.Conn
	raw  syscall.RawConn

	// read and write are the methods of that name plus Once, kept so that no closure is made for a frame. They
	// pass what follows between themselves and their callers.
	read, write       func(fd uintptr) bool
	in, out           []byte
	readLen, writeLen int
	readErr, writeErr error
}

// Read returns the next ARP frame; what cannot be decoded is passed over.
func (p *port) Read() (layer2.Frame, error) {
	for {
		err := p.raw.Read(p.read)
		if err == nil {
			err = p.readErr
		}
		if err != nil {
			return layer2.Frame{}, fmt.Errorf("reading ARP on %q: %w", p.name, classify(err))
		}
		if f, ok := decodeARP(p.in[:p.readLen]); ok {
			return f, nil
		}
	}
}

// readOnce reads a frame; false asks to be called again when there is one.
func (p *port) readOnce(fd uintptr) bool {
	p.readLen, p.readErr = unix.Read(int(fd), p.in)
	return p.readErr != unix.EAGAIN && p.readErr != unix.EINTR
}

// Write sends a frame, or answers ErrBusy when it would have to wait.
func (p *port) Write(f layer2.Frame) error {
	if !f.SenderIP.Is4() || !f.TargetIP.Is4() {
		return fmt.Errorf("sending ARP on %q: %w: it carries IPv4 only, not %s and %s", p.name, layer2.ErrBusy, f.SenderIP, f.TargetIP)
	}
	p.writeLen = len(encodeARP(p.out, f))
	err := p.raw.Write(p.write)
	if err == nil {
		err = p.writeErr
	}
	if err != nil {
		return fmt.Errorf("sending ARP on %q: %w", p.name, classify(err))
	}
	return nil
}

func (p *port) writeOnce(fd uintptr) bool {
	_, p.writeErr = unix.Write(int(fd), p.out[:p.writeLen])
	return true
}

// Close ends a blocked Read.
func (p *port) Close() error { return p.conn.Close() }
