package udp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/internal/latest"
)

const (
	// sniffRoundInterval is the time between two rounds of listening. Somebody who looks for a
	// fault of the configuration can wait for it.
	sniffRoundInterval = 20 * time.Second
	// sniffRoundTimeout is how long a round takes. A router whose session is not Up sends at least
	// once a second, unless it is configured otherwise (RFC 5880 section 6.8.3).
	sniffRoundTimeout = 3 * time.Second
	// sniffReadTimeout bounds one read, so that a round also ends without any packet.
	sniffReadTimeout = 500 * time.Millisecond
)

// BFDRequestSniffer finds out which routers ask for a BFD session that is not configured on this
// node. It reads copies of their packets and binds no port: another BFD daemon of the node may have
// it. Any goroutine may call its methods.
type BFDRequestSniffer struct {
	routersToSniff               *latest.Value[[]netip.Addr]
	updatesOfRoutersAskingForBFD *latest.Value[[]netip.Addr]
}

// NewBFDRequestSniffer returns a BFDRequestSniffer. It listens to nobody before SetRoutersToSniff
// and Run.
func NewBFDRequestSniffer() *BFDRequestSniffer {
	return &BFDRequestSniffer{routersToSniff: latest.NewValue[[]netip.Addr](), updatesOfRoutersAskingForBFD: latest.NewValue[[]netip.Addr]()}
}

// SetRoutersToSniff sets the routers to listen to; none ends it. The addresses have no zones.
func (o *BFDRequestSniffer) SetRoutersToSniff(routers []netip.Addr) { o.routersToSniff.Put(routers) }

// UpdatesOfRoutersAskingForBFD delivers those of the routers that ask for a session, sorted, at
// each change.
func (o *BFDRequestSniffer) UpdatesOfRoutersAskingForBFD() <-chan []netip.Addr {
	return o.updatesOfRoutersAskingForBFD.C()
}

// Run listens until ctx ends. A socket that cannot be opened is not worth a report: then nothing is
// known about the routers.
func (o *BFDRequestSniffer) Run(ctx context.Context) error {
	var routers, heardBefore []netip.Addr
	round := time.NewTimer(time.Hour)
	round.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case routers = <-o.routersToSniff.C():
		case <-round.C:
		}
		var heard []netip.Addr
		if len(routers) > 0 {
			heard, _ = sniffBFDRequests(ctx, routers)
			round.Reset(sniffRoundInterval)
		}
		if ctx.Err() == nil && !slices.Equal(heard, heardBefore) {
			heardBefore = heard
			o.updatesOfRoutersAskingForBFD.Put(heard)
		}
	}
}

// sniffBFDRequests listens for one round. It returns the routers that ask for a session, sorted.
func sniffBFDRequests(ctx context.Context, routers []netip.Addr) ([]netip.Addr, error) {
	fd, err := openSniffingSocket()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	heard := map[netip.Addr]struct{}{}
	buffer := make([]byte, maxSniffedPacketBytes)
	ends := time.After(sniffRoundTimeout)
	for len(heard) < len(routers) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-ends:
			return slices.SortedFunc(maps.Keys(heard), netip.Addr.Compare), nil
		default:
		}
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, fmt.Errorf("reading packets: %w", err)
		}
		if source, ok := parseBFDRequestSource(buffer[:n]); ok && slices.Contains(routers, source) {
			heard[source] = struct{}{}
		}
	}
	return slices.SortedFunc(maps.Keys(heard), netip.Addr.Compare), nil
}

// maxSniffedPacketBytes is the length of the longest packet that is looked at: IPv6, UDP, and a
// control packet with authentication.
const maxSniffedPacketBytes = 128

// openSniffingSocket opens a socket that gets a copy of each packet to a port of BFD.
func openSniffingSocket() (int, error) {
	// Without a protocol, no packet arrives before the filter is set.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening a packet socket: %w", err)
	}
	limit := unix.NsecToTimeval(sniffReadTimeout.Nanoseconds())
	err = errors.Join(
		attachFilter(fd, bfdPortsFilter()),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL})}),
	)
	if err != nil {
		_ = unix.Close(fd) // nothing was received
		return -1, fmt.Errorf("preparing a packet socket: %w", err)
	}
	return fd, nil
}

// The offsets in a packet, from its IP header.
const (
	protocolOffsetIPv4         = 9
	protocolOffsetIPv6         = 6
	headerLengthIPv6           = 40
	destinationPortOffsetInUDP = 2
)

// bfdPortsFilter accepts UDP packets to the ports of control packets.
func bfdPortsFilter() []bpf.Instruction {
	return []bpf.Instruction{
		/* 0 */ bpf.LoadAbsolute{Off: 0, Size: 1},
		/* 1 */ bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		/* 2 */ bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipTrue: 7},
		/* 3 */ bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 4, SkipTrue: 12},
		/* 4 */ bpf.LoadAbsolute{Off: protocolOffsetIPv4, Size: 1},
		/* 5 */ bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 10},
		/* 6 */ bpf.LoadMemShift{Off: 0}, // X is the length of the IP header
		/* 7 */ bpf.LoadIndirect{Off: destinationPortOffsetInUDP, Size: 2},
		/* 8 */ bpf.JumpIf{Cond: bpf.JumpEqual, Val: singleHopPort, SkipTrue: 6},
		/* 9 */ bpf.JumpIf{Cond: bpf.JumpEqual, Val: multihopPort, SkipTrue: 5, SkipFalse: 6},
		/* 10 */ bpf.LoadAbsolute{Off: protocolOffsetIPv6, Size: 1},
		/* 11 */ bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 4},
		/* 12 */ bpf.LoadAbsolute{Off: headerLengthIPv6 + destinationPortOffsetInUDP, Size: 2},
		/* 13 */ bpf.JumpIf{Cond: bpf.JumpEqual, Val: singleHopPort, SkipTrue: 1},
		/* 14 */ bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: multihopPort, SkipTrue: 1},
		/* 15 */ bpf.RetConstant{Val: maxSniffedPacketBytes},
		/* 16 */ bpf.RetConstant{Val: 0},
	}
}

// parseBFDRequestSource returns the source of a control packet that the filter accepted, if its
// sender knows no session of this node yet: Your Discriminator is zero (RFC 5880 section 6.8.6).
func parseBFDRequestSource(packet []byte) (netip.Addr, bool) {
	if len(packet) < 1 {
		return netip.Addr{}, false
	}
	headerLength, sourceOffset, sourceLength := headerLengthIPv6, sourceAddressOffsetInIPHeader(true), 16
	if packet[0]>>4 == 4 {
		headerLength, sourceOffset, sourceLength = int(packet[0]&15)*4, sourceAddressOffsetInIPHeader(false), 4
	}
	if len(packet) < headerLength+udpHeaderLength+minControlPacketBytes {
		return netip.Addr{}, false
	}
	source, _ := netip.AddrFromSlice(packet[sourceOffset : int(sourceOffset)+sourceLength])
	control := packet[headerLength+udpHeaderLength:]
	return source, control[0]>>5 == 1 && binary.BigEndian.Uint32(packet[headerLength+yourDiscriminatorOffset:]) == 0
}
