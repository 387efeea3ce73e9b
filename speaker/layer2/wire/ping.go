package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// The layout of ICMP over IPv4 without options over Ethernet (RFC 791 section 3.1; RFC 792), in
// bytes from the start of the frame.
const (
	ip4HeaderOffset        = 14
	ip4TotalLengthOffset   = 16
	ip4FragmentFieldOffset = 20
	ip4TTLOffset           = 22
	ip4ProtocolOffset      = 23
	ip4ChecksumOffset      = 24
	ip4SourceOffset        = 26
	ip4DestinationOffset   = 30
	icmp4Offset            = 34

	ip4VersionAndLengthByte = 0x45   // version 4, a header of 20 bytes
	ip4FragmentMask         = 0x3fff // more fragments, or not the first one
	typeEchoRequest4        = 8
	typeEchoRequest6        = 128 // RFC 4443 section 4.1
	typeEchoReply6          = 129
	echoMinLength           = 8 // bytes of an echo without data

	// echoReplyHopLimit is the TTL or hop limit of a reply.
	echoReplyHopLimit = 64
	// maxEchoFrameLength is the longest frame that is read, in bytes: a jumbo frame.
	maxEchoFrameLength = 9216
)

// pingFilter4 passes unfragmented echo requests to this host, and drops everything
// else in the kernel.
var pingFilter4 = []bpf.Instruction{
	bpf.LoadExtension{Num: bpf.ExtType},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PACKET_HOST, SkipTrue: 11},
	bpf.LoadAbsolute{Off: etherTypeOffset, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IP, SkipTrue: 9},
	bpf.LoadAbsolute{Off: ip4HeaderOffset, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: ip4VersionAndLengthByte, SkipTrue: 7},
	bpf.LoadAbsolute{Off: ip4FragmentFieldOffset, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: ip4FragmentMask, SkipTrue: 5},
	bpf.LoadAbsolute{Off: ip4ProtocolOffset, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMP, SkipTrue: 3},
	bpf.LoadAbsolute{Off: icmp4Offset, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: typeEchoRequest4 << 8, SkipTrue: 1},
	bpf.RetConstant{Val: maxEchoFrameLength},
	bpf.RetConstant{Val: 0},
}

// pingFilter6 is the same for IPv6.
var pingFilter6 = []bpf.Instruction{
	bpf.LoadExtension{Num: bpf.ExtType},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PACKET_HOST, SkipTrue: 7},
	bpf.LoadAbsolute{Off: etherTypeOffset, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IPV6, SkipTrue: 5},
	bpf.LoadAbsolute{Off: ip6NextHeaderOffsetInFrame, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 3},
	bpf.LoadAbsolute{Off: icmp6Offset, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: typeEchoRequest6 << 8, SkipTrue: 1},
	bpf.RetConstant{Val: maxEchoFrameLength},
	bpf.RetConstant{Val: 0},
}

// rawSocketPingResponder receives the echo requests of one family on one link.
type rawSocketPingResponder struct {
	linkName string
	file     *os.File
	// buildPingReply turns a request into its reply, in place.
	buildPingReply func(b []byte, held func(netip.Addr) bool) ([]byte, bool)
}

var _ layer2.PingResponderOpener = PacketSocketOpener{}

// OpenPingResponder opens a socket for echo requests on the link.
func (PacketSocketOpener) OpenPingResponder(l facts.Link, f ipfamily.Family) (layer2.PingResponder, error) {
	p := &rawSocketPingResponder{linkName: l.Name, buildPingReply: buildPingReply4}
	filter, protocol := pingFilter4, uint16(unix.ETH_P_IP)
	if f == ipfamily.IPv6 {
		p.buildPingReply, filter, protocol = buildPingReply6, pingFilter6, unix.ETH_P_IPV6
	}
	fd, err := openPacketSocket(filterForLink(l.Index, filter))
	if err == nil {
		p.file = os.NewFile(uintptr(fd), "ping")
		if err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkByteOrder(protocol), Ifindex: l.Index}); err != nil {
			_ = p.file.Close() // nothing was sent yet
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening a socket for pings on %q: %w", l.Name, toEngineError(err))
	}
	return p, nil
}

// AnswerPings answers until the socket fails or is closed.
func (p *rawSocketPingResponder) AnswerPings(held func(netip.Addr) bool) error {
	b := make([]byte, maxEchoFrameLength)
	for {
		n, err := p.file.Read(b)
		if err != nil {
			return fmt.Errorf("reading pings on %q: %w", p.linkName, toEngineError(err))
		}
		answer, ok := p.buildPingReply(b[:n], held)
		if !ok {
			continue
		}
		// A reply that finds no room in the send buffer is lost, like any packet.
		if _, err := p.file.Write(answer); err != nil && !errors.Is(toEngineError(err), layer2.ErrFrameNotSent) && !errors.Is(err, unix.EMSGSIZE) {
			return fmt.Errorf("answering a ping on %q: %w", p.linkName, toEngineError(err))
		}
	}
}

// Close ends Serve. It does not wait for it.
func (p *rawSocketPingResponder) Close() error { return p.file.Close() }

// buildPingReply4 turns a frame with an echo request into the reply.
func buildPingReply4(b []byte, held func(netip.Addr) bool) ([]byte, bool) {
	if len(b) < icmp4Offset+echoMinLength || binary.BigEndian.Uint16(b[etherTypeOffset:]) != unix.ETH_P_IP || b[ip4HeaderOffset] != ip4VersionAndLengthByte ||
		binary.BigEndian.Uint16(b[ip4FragmentFieldOffset:])&ip4FragmentMask != 0 || b[ip4ProtocolOffset] != unix.IPPROTO_ICMP ||
		binary.BigEndian.Uint16(b[icmp4Offset:]) != typeEchoRequest4<<8 {
		return nil, false
	}
	// the rest is padding
	end := ip4HeaderOffset + int(binary.BigEndian.Uint16(b[ip4TotalLengthOffset:]))
	if end < icmp4Offset+echoMinLength || end > len(b) || onesComplementSum(0, b[ip4HeaderOffset:icmp4Offset]) != 0xffff || onesComplementSum(0, b[icmp4Offset:end]) != 0xffff {
		return nil, false
	}
	source, target := netip.AddrFrom4([4]byte(b[ip4SourceOffset:ip4DestinationOffset])), netip.AddrFrom4([4]byte(b[ip4DestinationOffset:icmp4Offset]))
	if !canReplyToSource(b, source) || !held(target) {
		return nil, false
	}
	swapMACs(b)
	copy(b[ip4SourceOffset:], target.AsSlice())
	copy(b[ip4DestinationOffset:], source.AsSlice())
	b[ip4TTLOffset], b[icmp4Offset] = echoReplyHopLimit, 0
	binary.BigEndian.PutUint16(b[ip4ChecksumOffset:], 0)
	binary.BigEndian.PutUint16(b[ip4ChecksumOffset:], ^onesComplementSum(0, b[ip4HeaderOffset:icmp4Offset]))
	binary.BigEndian.PutUint16(b[icmp4Offset+2:], 0)
	binary.BigEndian.PutUint16(b[icmp4Offset+2:], ^onesComplementSum(0, b[icmp4Offset:end]))
	return b[:end], true
}

// buildPingReply6 does the same for IPv6 (RFC 4443 section 4.2).
func buildPingReply6(b []byte, held func(netip.Addr) bool) ([]byte, bool) {
	if len(b) < icmp6Offset+echoMinLength || binary.BigEndian.Uint16(b[etherTypeOffset:]) != unix.ETH_P_IPV6 || b[ip6HeaderOffsetInFrame]>>4 != 6 ||
		b[ip6NextHeaderOffsetInFrame] != unix.IPPROTO_ICMPV6 || binary.BigEndian.Uint16(b[icmp6Offset:]) != typeEchoRequest6<<8 {
		return nil, false
	}
	end := icmp6Offset + int(binary.BigEndian.Uint16(b[ip6PayloadLengthOffsetInFrame:]))
	if end < icmp6Offset+echoMinLength || end > len(b) || !isICMPv6ChecksumValid(b[ip6SourceOffsetInFrame:icmp6Offset], b[icmp6Offset:end]) {
		return nil, false
	}
	source, target := netip.AddrFrom16([16]byte(b[ip6SourceOffsetInFrame:ip6DestinationOffsetInFrame])), netip.AddrFrom16([16]byte(b[ip6DestinationOffsetInFrame:icmp6Offset]))
	if source.Is4In6() || !canReplyToSource(b, source) || !held(target) {
		return nil, false
	}
	swapMACs(b)
	copy(b[ip6SourceOffsetInFrame:], target.AsSlice())
	copy(b[ip6DestinationOffsetInFrame:], source.AsSlice())
	b[ip6HopLimitOffsetInFrame], b[icmp6Offset] = echoReplyHopLimit, typeEchoReply6
	binary.BigEndian.PutUint16(b[icmp6Offset+2:], 0)
	binary.BigEndian.PutUint16(b[icmp6Offset+2:], ^icmpv6Checksum(b[ip6SourceOffsetInFrame:icmp6Offset], b[icmp6Offset:end]))
	return b[:end], true
}

// canReplyToSource says whether a reply can be sent to the source: the address of a single host.
func canReplyToSource(b []byte, source netip.Addr) bool {
	return b[6]&1 == 0 && !source.IsUnspecified() && !source.IsMulticast() && !source.IsLoopback() && source != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// swapMACs exchanges the source and destination Ethernet addresses of a frame.
func swapMACs(b []byte) {
	var to [6]byte
	copy(to[:], b[0:6])
	copy(b[0:6], b[6:12])
	copy(b[6:12], to[:])
}
