// Package wire is the Linux side of layer 2: AF_PACKET sockets that see ARP frames alone. It is the only importer of the
// raw-socket libraries. It keeps no state but its sockets; errors are told apart here, and nowhere else. Package segment
// is its in-memory stand-in.
package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// Wire opens AF_PACKET sockets in the network namespace of the process.
type Wire struct{}

var _ layer2.Wire = Wire{}

// receiveBuffer is what the socket may hold while the speaker does not run: at 64 bytes of ARP a frame, with the kernel's
// overhead, about 5,000 frames.
const receiveBuffer = 4 << 20

// filter passes ARP requests and replies for IPv4 over Ethernet and drops the rest in the kernel (RFC 826: hardware type,
// protocol type and operation at bytes 14, 16 and 20 of the frame), and the frames that this host sent itself.
var filter = []bpf.Instruction{
	bpf.LoadExtension{Num: bpf.ExtType},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 7},
	bpf.LoadAbsolute{Off: 12, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_ARP, SkipTrue: 5},
	bpf.LoadAbsolute{Off: 14, Size: 4},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 1<<16 | unix.ETH_P_IP, SkipTrue: 3},
	bpf.LoadAbsolute{Off: 20, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: 2, SkipTrue: 1},
	bpf.RetConstant{Val: 128},
	bpf.RetConstant{Val: 0},
}

// Open opens a socket on the link.
func (Wire) Open(l facts.Link) (layer2.Port, error) {
	ifi, err := net.InterfaceByIndex(l.Index)
	if err != nil {
		return nil, fmt.Errorf("opening ARP socket on %q: %w", l.Name, err)
	}
	program, err := bpf.Assemble(filter)
	if err != nil {
		return nil, fmt.Errorf("assembling the ARP filter: %w", err)
	}
	c, err := packet.Listen(ifi, packet.Raw, unix.ETH_P_ARP, &packet.Config{Filter: program})
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("opening ARP socket on %q: %w", l.Name, layer2.ErrDenied)
	}
	if err != nil {
		return nil, fmt.Errorf("opening ARP socket on %q: %w", l.Name, err)
	}
	if raw, err := c.SyscallConn(); err == nil {
		// A smaller buffer only loses frames sooner, so that a refusal is no error.
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer) })
	}
	return &port{name: l.Name, conn: c, buf: make([]byte, 128)}, nil
}

// port is one socket. Read is called by one goroutine, Write by one other.
type port struct {
	name string
	conn *packet.Conn
	buf  []byte
}

// Read returns the next ARP frame; what cannot be decoded is passed over.
func (p *port) Read() (layer2.Frame, error) {
	for {
		n, _, err := p.conn.ReadFrom(p.buf)
		if err != nil {
			return layer2.Frame{}, fmt.Errorf("reading ARP on %q: %w", p.name, err)
		}
		if f, ok := decode(p.buf[:n]); ok {
			return f, nil
		}
	}
}

// decode reads an Ethernet frame with ARP in it.
func decode(b []byte) (layer2.Frame, bool) {
	var e ethernet.Frame
	var a arp.Packet
	if e.UnmarshalBinary(b) != nil || a.UnmarshalBinary(e.Payload) != nil {
		return layer2.Frame{}, false
	}
	if !a.SenderIP.Is4() || !a.TargetIP.Is4() || len(a.SenderHardwareAddr) != 6 || len(a.TargetHardwareAddr) != 6 {
		return layer2.Frame{}, false
	}
	return layer2.Frame{
		Destination: facts.MAC(e.Destination), Source: facts.MAC(e.Source), Operation: layer2.Operation(a.Operation),
		SenderMAC: facts.MAC(a.SenderHardwareAddr), SenderIP: a.SenderIP,
		TargetMAC: facts.MAC(a.TargetHardwareAddr), TargetIP: a.TargetIP,
	}, true
}

// Write sends a frame.
func (p *port) Write(f layer2.Frame) error {
	b, err := encode(f)
	if err != nil {
		return fmt.Errorf("encoding ARP for %q: %w", p.name, err)
	}
	if _, err := p.conn.WriteTo(b, &packet.Addr{HardwareAddr: f.Destination[:]}); err != nil {
		return fmt.Errorf("sending ARP on %q: %w", p.name, err)
	}
	return nil
}

func encode(f layer2.Frame) ([]byte, error) {
	sender, target := f.SenderIP, f.TargetIP
	if !sender.Is4() || !target.Is4() {
		return nil, fmt.Errorf("ARP carries IPv4 only, not %s and %s", sender, target)
	}
	a, err := arp.NewPacket(arp.Operation(f.Operation), f.SenderMAC[:], netip.AddrFrom4(sender.As4()), f.TargetMAC[:], netip.AddrFrom4(target.As4()))
	if err != nil {
		return nil, err
	}
	payload, err := a.MarshalBinary()
	if err != nil {
		return nil, err
	}
	e := ethernet.Frame{Destination: f.Destination[:], Source: f.Source[:], EtherType: ethernet.EtherTypeARP, Payload: payload}
	return e.MarshalBinary()
}

// Close ends a blocked Read.
func (p *port) Close() error { return p.conn.Close() }
