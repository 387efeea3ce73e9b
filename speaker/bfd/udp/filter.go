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
	// ipHeaderOffset makes an offset count from the IP header (SKF_NET_OFF); others count from the UDP header.
	ipHeaderOffset = 0xfff00000
	// yourDiscriminatorOffset is where a packet has the discriminator that it was sent to.
	yourDiscriminatorOffset = udpHeaderLength + 8
	minPacketLength         = 24
	// maxFilteredSessions is the number of sessions up to which the kernel knows their neighbours; a program has 4096
	// instructions at most, and costs time for every packet.
	maxFilteredSessions = 100
)

// attachSessionFilter has the kernel drop what no neighbour can have meant for one of the sessions, so that a flood takes no room in the
// receive buffer from those that are: too short, of another version, from beyond a router where there must be none (RFC
// 5881 section 5), from a stranger, or with a discriminator that is not ours.
func attachSessionFilter(fd int, at listenerKey, users map[*sender]struct{}) error {
	pass, drop := bpf.RetConstant{Val: maxDatagram}, bpf.RetConstant{Val: 0}
	program := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: udpHeaderLength + minPacketLength, SkipTrue: 1},
		drop,
		bpf.LoadAbsolute{Off: udpHeaderLength, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 5},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 1, SkipTrue: 1},
		drop,
		bpf.LoadAbsolute{Off: ipHeaderOffset + ttlOffset(at.ipv6), Size: 1},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: minTTL(at.multihop), SkipTrue: 1},
		drop,
	}
	if len(users) > maxFilteredSessions {
		return attachFilter(fd, append(program, pass))
	}
	for p := range maps.Keys(users) {
		program = append(program, acceptFromNeighbour(p.key.Peer, p.discriminator)...)
	}
	return attachFilter(fd, append(program, drop))
}

// acceptFromNeighbour passes packets from the address that have the discriminator, or none, and leaves others to what follows.
func acceptFromNeighbour(from netip.Addr, discriminator uint32) []bpf.Instruction {
	tail := []bpf.Instruction{
		bpf.LoadAbsolute{Off: yourDiscriminatorOffset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: discriminator, SkipTrue: 1},
		bpf.RetConstant{Val: maxDatagram},
	}
	words := from.AsSlice()
	var out []bpf.Instruction
	for i := 0; i < len(words); i += 4 {
		left := uint8(len(words)-i-4)/4*2 + uint8(len(tail)) // instructions after this pair
		out = append(out,
			bpf.LoadAbsolute{Off: ipHeaderOffset + sourceOffset(from.Is6()) + uint32(i), Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(words[i:]), SkipTrue: left},
		)
	}
	return append(out, tail...)
}

// ttlOffset is where the TTL or hop limit is in the IP header, sourceOffset where the sender's address is.
func ttlOffset(v6 bool) uint32 {
	if v6 {
		return 7
	}
	return 8
}

func sourceOffset(v6 bool) uint32 {
	if v6 {
		return 8
	}
	return 12
}

func minTTL(multihop bool) uint32 {
	if multihop {
		return 1 // each session has its own
	}
	return 255
}

// attachFilter gives a socket a filter.
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
