package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// The layout of ICMP over IPv4 without options over Ethernet (RFC 791 section 3.1; RFC 792), in bytes from the start of
// the frame.
const (
	ip4Header   = 14
	ip4Length   = 16
	ip4Fragment = 20
	ip4TTL      = 22
	ip4Protocol = 23
	ip4Sum      = 24
	ip4Source   = 26
	ip4Target   = 30
	icmp4       = 34

	ip4Plain     = 0x45   // version 4, a header of 20 bytes
	fragmented   = 0x3fff // more fragments, or not the first one
	echoRequest4 = 8
	echoRequest6 = 128 // RFC 4443 section 4.1
	echoReply6   = 129
	echoMin      = 8 // bytes of an echo without data

	// echoHops is what an answer may travel.
	echoHops = 64
	// echoLength is the longest frame that is read, one of a network with jumbo frames.
	echoLength = 9216
)

// pingFilter passes echo requests that are for this host, in one piece, and drops the rest in the kernel.
var pingFilter = []bpf.Instruction{
	bpf.LoadExtension{Num: bpf.ExtType},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PACKET_HOST, SkipTrue: 11},
	bpf.LoadAbsolute{Off: etherType, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IP, SkipTrue: 9},
	bpf.LoadAbsolute{Off: ip4Header, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: ip4Plain, SkipTrue: 7},
	bpf.LoadAbsolute{Off: ip4Fragment, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: fragmented, SkipTrue: 5},
	bpf.LoadAbsolute{Off: ip4Protocol, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMP, SkipTrue: 3},
	bpf.LoadAbsolute{Off: icmp4, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: echoRequest4 << 8, SkipTrue: 1},
	bpf.RetConstant{Val: echoLength},
	bpf.RetConstant{Val: 0},
}

// ping6Filter is the same for IPv6.
var ping6Filter = []bpf.Instruction{
	bpf.LoadExtension{Num: bpf.ExtType},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PACKET_HOST, SkipTrue: 7},
	bpf.LoadAbsolute{Off: etherType, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IPV6, SkipTrue: 5},
	bpf.LoadAbsolute{Off: ip6Next, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 3},
	bpf.LoadAbsolute{Off: icmp6, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: echoRequest6 << 8, SkipTrue: 1},
	bpf.RetConstant{Val: echoLength},
	bpf.RetConstant{Val: 0},
}

// pings is a socket that sees echo requests of one family on one link.
type pings struct {
	link string
	file *os.File
	// answer turns a request into the answer, in place.
	answer func(b []byte, held func(netip.Addr) bool) ([]byte, bool)
}

var _ layer2.PingWire = Wire{}

// OpenPings opens a socket for echo requests on the link.
func (Wire) OpenPings(l facts.Link, f layer2.Family) (layer2.Pings, error) {
	p := &pings{link: l.Name, answer: answerPing4}
	filter, protocol := pingFilter, uint16(unix.ETH_P_IP)
	if f == layer2.IPv6 {
		p.answer, filter, protocol = answerPing6, ping6Filter, unix.ETH_P_IPV6
	}
	fd, err := socket(arrivedOn(l.Index, filter))
	if err == nil {
		p.file = os.NewFile(uintptr(fd), "ping")
		if err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swap(protocol), Ifindex: l.Index}); err != nil {
			_ = p.file.Close() // nothing was sent yet
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening a socket for pings on %q: %w", l.Name, classify(err))
	}
	return p, nil
}

// Serve answers until the socket fails or is closed.
func (p *pings) Serve(held func(netip.Addr) bool) error {
	b := make([]byte, echoLength)
	for {
		n, err := p.file.Read(b)
		if err != nil {
			return fmt.Errorf("reading pings on %q: %w", p.link, classify(err))
		}
		answer, ok := p.answer(b[:n], held)
		if !ok {
			continue
		}
		// An answer that finds no room is lost, like any packet.
		if _, err := p.file.Write(answer); err != nil && !errors.Is(classify(err), layer2.ErrNotSent) && !errors.Is(err, unix.EMSGSIZE) {
			return fmt.Errorf("answering a ping on %q: %w", p.link, classify(err))
		}
	}
}

// Close ends Serve, and waits for nobody.
func (p *pings) Close() error { return p.file.Close() }

// answerPing4 turns a frame with an echo request into the answer.
func answerPing4(b []byte, held func(netip.Addr) bool) ([]byte, bool) {
	if len(b) < icmp4+echoMin || binary.BigEndian.Uint16(b[etherType:]) != unix.ETH_P_IP || b[ip4Header] != ip4Plain ||
		binary.BigEndian.Uint16(b[ip4Fragment:])&fragmented != 0 || b[ip4Protocol] != unix.IPPROTO_ICMP ||
		binary.BigEndian.Uint16(b[icmp4:]) != echoRequest4<<8 {
		return nil, false
	}
	end := ip4Header + int(binary.BigEndian.Uint16(b[ip4Length:])) // what follows is padding
	if end < icmp4+echoMin || end > len(b) || sumUp(0, b[ip4Header:icmp4]) != 0xffff || sumUp(0, b[icmp4:end]) != 0xffff {
		return nil, false
	}
	source, target := netip.AddrFrom4([4]byte(b[ip4Source:ip4Target])), netip.AddrFrom4([4]byte(b[ip4Target:icmp4]))
	if !pingable(b, source) || !held(target) {
		return nil, false
	}
	turn(b)
	copy(b[ip4Source:], target.AsSlice())
	copy(b[ip4Target:], source.AsSlice())
	b[ip4TTL], b[icmp4] = echoHops, 0
	binary.BigEndian.PutUint16(b[ip4Sum:], 0)
	binary.BigEndian.PutUint16(b[ip4Sum:], ^sumUp(0, b[ip4Header:icmp4]))
	binary.BigEndian.PutUint16(b[icmp4+2:], 0)
	binary.BigEndian.PutUint16(b[icmp4+2:], ^sumUp(0, b[icmp4:end]))
	return b[:end], true
}

// answerPing6 does the same for IPv6 (RFC 4443 section 4.2).
func answerPing6(b []byte, held func(netip.Addr) bool) ([]byte, bool) {
	if len(b) < icmp6+echoMin || binary.BigEndian.Uint16(b[etherType:]) != unix.ETH_P_IPV6 || b[ip6Header]>>4 != 6 ||
		b[ip6Next] != unix.IPPROTO_ICMPV6 || binary.BigEndian.Uint16(b[icmp6:]) != echoRequest6<<8 {
		return nil, false
	}
	end := icmp6 + int(binary.BigEndian.Uint16(b[ip6Length:]))
	if end < icmp6+echoMin || end > len(b) || !checksumRight(b[ip6Source:icmp6], b[icmp6:end]) {
		return nil, false
	}
	source, target := netip.AddrFrom16([16]byte(b[ip6Source:ip6Target])), netip.AddrFrom16([16]byte(b[ip6Target:icmp6]))
	if source.Is4In6() || !pingable(b, source) || !held(target) {
		return nil, false
	}
	turn(b)
	copy(b[ip6Source:], target.AsSlice())
	copy(b[ip6Target:], source.AsSlice())
	b[ip6Hops], b[icmp6] = echoHops, echoReply6
	binary.BigEndian.PutUint16(b[icmp6+2:], 0)
	binary.BigEndian.PutUint16(b[icmp6+2:], ^checksum(b[ip6Source:icmp6], b[icmp6:end]))
	return b[:end], true
}

// pingable says whether one host sent the frame, which can be answered.
func pingable(b []byte, source netip.Addr) bool {
	return b[6]&1 == 0 && !source.IsUnspecified() && !source.IsMulticast() && !source.IsLoopback() && source != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// turn sends a frame back to where it came from.
func turn(b []byte) {
	var to [6]byte
	copy(to[:], b[0:6])
	copy(b[0:6], b[6:12])
	copy(b[6:12], to[:])
}
