package udp

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	udpHeaderLength = 8
	// bpfIPHeaderOffsetBase makes an offset relative to the IP header
	// (SKF_NET_OFF). Others are relative to the UDP header.
	bpfIPHeaderOffsetBase = 0xfff00000
	// yourDiscriminatorOffset is the offset of Your Discriminator.
	yourDiscriminatorOffset = udpHeaderLength + 8
	minControlPacketBytes   = 24
	// maxSessionsInKernelFilter bounds the sessions for which the kernel filters by neighbour. A
	// program has at most 4096 instructions and costs time for every packet.
	maxSessionsInKernelFilter = 100
)

// attachSessionFilter makes the kernel drop datagrams that cannot belong to a
// session, so that a flood does not fill the receive buffer: datagrams that are too
// short, of another version, from beyond a router on a single hop (RFC 5881 section
// 5), from an unknown address, or with an unknown discriminator.
func attachSessionFilter(fd int, key listenerKey, senders map[*sender]struct{}) error {
	pass, drop := bpf.RetConstant{Val: maxReadDatagramBytes}, bpf.RetConstant{Val: 0}
	program := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: udpHeaderLength + minControlPacketBytes, SkipTrue: 1},
		drop,
		bpf.LoadAbsolute{Off: udpHeaderLength, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 5},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 1, SkipTrue: 1},
		drop,
		bpf.LoadAbsolute{Off: bpfIPHeaderOffsetBase + ttlOffsetInIPHeader(key.ipv6), Size: 1},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: minAcceptedTTL(key.multihop), SkipTrue: 1},
		drop,
	}
	if len(senders) > maxSessionsInKernelFilter {
		return attachFilter(fd, append(program, pass))
	}
	for s := range maps.Keys(senders) {
		program = append(program, neighbourFilterInstructions(s.key.PeerAddress, s.discriminator)...)
	}
	return attachFilter(fd, append(program, drop))
}

// neighbourFilterInstructions returns instructions that accept packets from the address
// with the discriminator or without one. Other packets fall through.
func neighbourFilterInstructions(from netip.Addr, discriminator uint32) []bpf.Instruction {
	tail := []bpf.Instruction{
		bpf.LoadAbsolute{Off: yourDiscriminatorOffset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: discriminator, SkipTrue: 1},
		bpf.RetConstant{Val: maxReadDatagramBytes},
	}
	words := from.AsSlice()
	var out []bpf.Instruction
	for i := 0; i < len(words); i += 4 {
		left := uint8(len(words)-i-4)/4*2 + uint8(len(tail)) // instructions after this pair
		out = append(out,
			bpf.LoadAbsolute{Off: bpfIPHeaderOffsetBase + sourceAddressOffsetInIPHeader(from.Is6()) + uint32(i), Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(words[i:]), SkipTrue: left},
		)
	}
	return append(out, tail...)
}

// ttlOffsetInIPHeader is the offset of the TTL or hop limit in the IP header.
func ttlOffsetInIPHeader(v6 bool) uint32 {
	if v6 {
		return 7
	}
	return 8
}

func sourceAddressOffsetInIPHeader(v6 bool) uint32 {
	if v6 {
		return 8
	}
	return 12
}

func minAcceptedTTL(multihop bool) uint32 {
	if multihop {
		return 1 // each session has its own
	}
	return 255
}

// attachFilter sets the filter of a socket.
func attachFilter(fd int, program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return fmt.Errorf("assembling the filter: %w", err)
	}
	code := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	f := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &f); err != nil {
		return fmt.Errorf("attaching the filter: %w", err)
	}
	return nil
}
