// Package wire is the Linux side of layer 2: AF_PACKET sockets that receive only ARP or neighbour
// discovery. The kernel puts frames into a ring that it shares with the speaker. Only this package
// classifies the errors of sockets. It needs the capability NET_RAW and no other. Package
// layer2test replaces it in tests.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// PacketSocketOpener opens AF_PACKET sockets in the network namespace of the calling thread.
type PacketSocketOpener struct{}

var _ layer2.PortOpener = PacketSocketOpener{}

// arpFilter passes ARP requests and replies for IPv4 over Ethernet and drops everything else in the
// kernel. It also drops frames that are not for this host: those that it sent itself, and those of
// a VLAN for which it has no link, which the kernel marks as frames to another host.
var arpFilter = []bpf.Instruction{
	bpf.LoadExtension{Num: bpf.ExtType},
	bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: unix.PACKET_MULTICAST, SkipTrue: 7},
	bpf.LoadAbsolute{Off: etherTypeOffset, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_ARP, SkipTrue: 5},
	bpf.LoadAbsolute{Off: arpHardwareAndProtocolTypesOffset, Size: 4},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: arpTypesEthernetIPv4, SkipTrue: 3},
	bpf.LoadAbsolute{Off: arpOperationOffset, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(layer2.Reply), SkipTrue: 1},
	bpf.RetConstant{Val: maxFrameBytes},
	bpf.RetConstant{Val: 0},
}

// filterForLink limits a filter to frames that arrived on the link itself. A packet socket also
// receives what arrives for VLANs and macvlans on top of its link. Their segments are separate, and
// another host may use the same address there.
func filterForLink(index int, filter []bpf.Instruction) []bpf.Instruction {
	return append([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(index), SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}, filter...)
}

// maxFrameBytes is how many bytes of a frame are read.
const maxFrameBytes = 512

// neighbourProtocol has what differs between the families.
type neighbourProtocol struct {
	name          string
	etherType     uint16
	ringSlotBytes int // bytes per frame in the ring
	ringSlotCount int // frames in the ring
	filter        []bpf.Instruction
	decode        func(b []byte) (layer2.ARPOrNDPFrame, bool)
	encode        func(b []byte, f layer2.ARPOrNDPFrame) ([]byte, error)
}

func protocolOfFamily(f ipfamily.Family) neighbourProtocol {
	if f == ipfamily.IPv6 {
		return neighbourProtocol{"NDP", unix.ETH_P_IPV6, ndpRingSlotBytes, ndpRingSlotCount, ndpFilter, decodeNDP, encodeNDP}
	}
	return neighbourProtocol{"ARP", unix.ETH_P_ARP, arpRingSlotBytes, arpRingSlotCount, arpFilter, decodeARP, encodeARP}
}

// OpenPort opens a socket on the link.
func (PacketSocketOpener) OpenPort(l facts.Link, family ipfamily.Family) (layer2.Port, error) {
	p := &packetSocketPort{linkName: l.Name, protocol: protocolOfFamily(family), family: family, writeBuffer: make([]byte, 0, maxFrameBytes)}
	p.writeBufferedFrameFunc = p.writeBufferedFrame
	if err := p.openSocket(l); err != nil {
		return nil, fmt.Errorf("opening %s socket on %q: %w", p.protocol.name, l.Name, toEngineError(err))
	}
	return p, nil
}

// openSocket opens the socket. After an error nothing stays open.
func (p *packetSocketPort) openSocket(l facts.Link) error {
	fd, err := openPacketSocket(filterForLink(l.Index, p.protocol.filter))
	if err != nil {
		return err
	}
	p.file = os.NewFile(uintptr(fd), p.protocol.name)
	p.receiveRing, err = newReceiveRing(fd, p.protocol.ringSlotBytes, p.protocol.ringSlotCount)
	if err == nil {
		// The filter and the ring are set before the socket is bound, so that no other
		// frame is ever queued.
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkByteOrder(p.protocol.etherType), Ifindex: l.Index})
	}
	if err == nil {
		p.rawConn, err = p.file.SyscallConn()
	}
	if err == nil && p.family == ipfamily.IPv6 {
		p.memberships, err = newGroupMemberships(l, p.rawConn.Control, p.writeMLDReport)
	}
	if err != nil {
		_ = p.Close() // nothing was sent yet
	}
	return err
}

// openPacketSocket opens a packet socket with a filter. It is bound to no link, so it
// receives nothing yet.
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

// networkByteOrder converts a number to network byte order, on machines of either byte order.
func networkByteOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// toEngineError turns an error of the kernel into the error that the engine knows.
func toEngineError(err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return layer2.ErrRawSocketsDenied
	case errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w (%w)", layer2.ErrLinkDownOrGone, err)
	case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EAGAIN):
		return layer2.ErrFrameNotSent
	}
	return err
}
