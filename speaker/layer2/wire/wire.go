// Package wire is the Linux side of layer 2: AF_PACKET sockets that see ARP, or neighbour discovery, and nothing else. What
// they see lies in a ring that the kernel shares with the speaker. It keeps no state but its sockets; errors are told
// apart here, and nowhere else. It needs the capability NET_RAW and no other. Package segment is its in-memory stand-in.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// Wire opens AF_PACKET sockets in the network namespace of the calling thread.
type Wire struct{}

var _ layer2.Wire = Wire{}

// arpFilter passes ARP requests and replies for IPv4 over Ethernet and drops the rest in the kernel, as it drops what is
// not for this host: frames that it sent itself, and those of a VLAN that it has no link for, which the kernel marks
// as another host's.
var arpFilter = []bpf.Instruction{
	bpf.LoadExtension{Num: bpf.ExtType},
	bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: unix.PACKET_MULTICAST, SkipTrue: 7},
	bpf.LoadAbsolute{Off: etherTypeOffset, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_ARP, SkipTrue: 5},
	bpf.LoadAbsolute{Off: arpTypesOffset, Size: 4},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: arpTypesEthernetIPv4, SkipTrue: 3},
	bpf.LoadAbsolute{Off: arpOperationOffset, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(layer2.Reply), SkipTrue: 1},
	bpf.RetConstant{Val: maxFrameLength},
	bpf.RetConstant{Val: 0},
}

// filterForLink passes on to a filter what arrived on a link itself. A packet socket on a link sees what arrives for the VLANs
// and macvlans on top of it too: their segments are others, where the same address may be somebody else's by right.
func filterForLink(index int, filter []bpf.Instruction) []bpf.Instruction {
	return append([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(index), SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}, filter...)
}

// maxFrameLength is how much of a frame is read, in bytes.
const maxFrameLength = 512

// protocol is what differs between the families.
type protocol struct {
	name      string
	etherType uint16
	slotSize  int // bytes of a frame's place in the ring
	slotCount int // of them
	filter    []bpf.Instruction
	decode    func(b []byte) (layer2.Frame, bool)
	encode    func(b []byte, f layer2.Frame) ([]byte, error)
}

func protocolOf(f layer2.Family) protocol {
	if f == layer2.IPv6 {
		return protocol{"NDP", unix.ETH_P_IPV6, ndpSlotSize, ndpSlotCount, ndpFilter, decodeNDP, encodeNDP}
	}
	return protocol{"ARP", unix.ETH_P_ARP, arpSlotSize, arpSlotCount, arpFilter, decodeARP, encodeARP}
}

// OpenPort opens a socket on the link.
func (Wire) OpenPort(l facts.Link, family layer2.Family) (layer2.Port, error) {
	p := &port{linkName: l.Name, protocol: protocolOf(family), family: family, writeBuffer: make([]byte, 0, maxFrameLength)}
	p.writeFunc = p.writeOnce
	if err := p.openSocket(l); err != nil {
		return nil, fmt.Errorf("opening %s socket on %q: %w", p.protocol.name, l.Name, classifyError(err))
	}
	return p, nil
}

// openSocket opens the socket; nothing stays open after an error.
func (p *port) openSocket(l facts.Link) error {
	fd, err := openPacketSocket(filterForLink(l.Index, p.protocol.filter))
	if err != nil {
		return err
	}
	p.file = os.NewFile(uintptr(fd), p.protocol.name)
	p.ring, err = newReceiveRing(fd, p.protocol.slotSize, p.protocol.slotCount)
	if err == nil {
		// The filter and the ring are there before the socket is bound, so that no other frame is ever queued.
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkByteOrder(p.protocol.etherType), Ifindex: l.Index})
	}
	if err == nil {
		p.rawConn, err = p.file.SyscallConn()
	}
	if err == nil && p.family == layer2.IPv6 {
		p.memberships, err = newGroupMemberships(l, p.rawConn.Control, p.writeReport)
	}
	if err != nil {
		_ = p.Close() // nothing was sent yet
	}
	return err
}

// openPacketSocket makes a packet socket that is bound to no link, and so sees nothing, with a filter.
func openPacketSocket(filter []bpf.Instruction) (int, error) {
	program, err := bpf.Assemble(filter)
	if err != nil {
		return -1, fmt.Errorf("assembling the filter: %w", err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	code := make([]unix.SockFilter, len(program))
	for i, op := range program {
		code[i] = unix.SockFilter{Code: op.Op, Jt: op.Jt, Jf: op.Jf, K: op.K}
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		_ = unix.Close(fd) // nothing was written
		return -1, fmt.Errorf("setting the filter: %w", err)
	}
	return fd, nil
}

// networkByteOrder turns a number into network byte order, on a machine of either order.
func networkByteOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// classifyError gives an error the name by which the engine knows it.
func classifyError(err error) error {
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
