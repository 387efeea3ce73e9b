package wire

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/ndp"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// The layout of ICMPv6 over IPv6 over Ethernet (RFC 8200 section 3), in bytes from the start of the frame.
const (
	ip6Header  = 14
	ip6Length  = 18 // of what follows the header
	ip6Next    = 20
	ip6Hops    = 21
	ip6Source  = 22
	ip6Target  = 38
	icmp6      = 54
	icmp6Code  = 55
	icmp6Min   = icmp6 + 24 // a solicitation without options
	solicited  = 135        // Neighbor Solicitation (RFC 4861 section 4.3)
	advertised = 136        // Neighbor Advertisement (section 4.4)
)

// ndpFilter passes Neighbor Solicitations and Advertisements that are not behind an extension header, none of which a
// sender may put there (RFC 6980), and the questions of MLD, which are behind one; it drops the rest in the kernel, as
// filter does.
var ndpFilter = []bpf.Instruction{
	bpf.LoadExtension{Num: bpf.ExtType},
	bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: unix.PACKET_MULTICAST, SkipTrue: 13},
	bpf.LoadAbsolute{Off: etherType, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IPV6, SkipTrue: 11},
	bpf.LoadAbsolute{Off: ip6Next, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMPV6, SkipFalse: 3},
	bpf.LoadAbsolute{Off: icmp6, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: solicited, SkipTrue: 6},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: advertised, SkipTrue: 5, SkipFalse: 6},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_HOPOPTS, SkipTrue: 5},
	bpf.LoadAbsolute{Off: hopByHop, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 3},
	bpf.LoadAbsolute{Off: mld, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: mldQuery, SkipTrue: 1},
	bpf.RetConstant{Val: maxFrame},
	bpf.RetConstant{Val: 0},
}

// decodeNDP reads an Ethernet frame with a Neighbor Solicitation or Advertisement in it that is valid by RFC 4861
// sections 7.1.1 and 7.1.2.
func decodeNDP(b []byte) (layer2.Frame, bool) {
	if len(b) < icmp6Min || binary.BigEndian.Uint16(b[etherType:]) != unix.ETH_P_IPV6 || b[ip6Header]>>4 != 6 ||
		b[ip6Next] != unix.IPPROTO_ICMPV6 || b[ip6Hops] != ndp.HopLimit || b[icmp6Code] != 0 {
		return layer2.Frame{}, false
	}
	end := icmp6 + int(binary.BigEndian.Uint16(b[ip6Length:]))
	if end < icmp6Min || end > len(b) || !checksumRight(b[ip6Source:icmp6], b[icmp6:end]) {
		return layer2.Frame{}, false
	}
	m, err := ndp.ParseMessage(b[icmp6:end])
	if err != nil {
		return layer2.Frame{}, false
	}
	source, target := netip.AddrFrom16([16]byte(b[ip6Source:ip6Target])), netip.AddrFrom16([16]byte(b[ip6Target:icmp6]))
	f := layer2.Frame{Destination: facts.MAC(b[0:6]), Source: facts.MAC(b[6:12]), SenderMAC: facts.MAC(b[6:12])}
	switch m := m.(type) {
	case *ndp.NeighborSolicitation:
		mac, given := linkLayer(m.Options, ndp.Source)
		if m.TargetAddress.IsMulticast() || source.IsMulticast() || source.Is4In6() {
			return layer2.Frame{}, false
		}
		if source.IsUnspecified() { // who has no address asks the group, and does not say where it is
			if group, err := ndp.SolicitedNodeMulticast(m.TargetAddress); err != nil || given || target != group {
				return layer2.Frame{}, false
			}
		}
		if given {
			f.SenderMAC = mac
		}
		f.Operation, f.SenderIP, f.TargetIP = layer2.Request, source, m.TargetAddress
	case *ndp.NeighborAdvertisement:
		if m.TargetAddress.IsMulticast() || (m.Solicited && target.IsMulticast()) {
			return layer2.Frame{}, false
		}
		f.Unsolicited = !m.Solicited && !target.IsMulticast()
		if target.IsMulticast() {
			target = m.TargetAddress // as it is in an announcement with ARP
		}
		if mac, given := linkLayer(m.Options, ndp.Target); given {
			f.SenderMAC = mac
		}
		f.Operation, f.SenderIP, f.TargetMAC, f.TargetIP = layer2.Reply, m.TargetAddress, f.Destination, target
	default:
		return layer2.Frame{}, false
	}
	return f, true
}

// linkLayer returns the Ethernet address among the options.
func linkLayer(options []ndp.Option, d ndp.Direction) (facts.MAC, bool) {
	for _, o := range options {
		if l, ok := o.(*ndp.LinkLayerAddress); ok && l.Direction == d && len(l.Addr) == 6 {
			return facts.MAC(l.Addr), true
		}
	}
	return facts.MAC{}, false
}

// checksumRight says whether the ICMPv6 checksum is. A packet socket sees packets before the kernel has looked at it.
func checksumRight(addresses, message []byte) bool { return checksum(addresses, message) == 0xffff }

// checksum sums a message up with its pseudo-header (RFC 8200 section 8.1).
func checksum(addresses, message []byte) uint16 {
	return sumUp(uint32(len(message))+unix.IPPROTO_ICMPV6, addresses, message)
}

// sumUp is the one's complement sum of the Internet checksum (RFC 1071).
func sumUp(sum uint32, parts ...[]byte) uint16 {
	for _, part := range parts {
		for ; len(part) > 1; part = part[2:] {
			sum += uint32(part[0])<<8 | uint32(part[1])
		}
		if len(part) == 1 {
			sum += uint32(part[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

var allNodes = netip.MustParseAddr("ff02::1")

// encodeNDP writes the frame into b, whose capacity suffices, and returns what was written. An advertisement comes from
// the address that it is about, and always overrides what its hearer knew.
func encodeNDP(b []byte, f layer2.Frame) ([]byte, error) {
	source, target := f.SenderIP, f.TargetIP
	mac := net.HardwareAddr(f.SenderMAC[:])
	var m ndp.Message
	if f.Operation == layer2.Request {
		s := &ndp.NeighborSolicitation{TargetAddress: f.TargetIP}
		if !source.IsUnspecified() { // who has no address yet must not give this option
			s.Options = []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: mac}}
		}
		if f.Destination[0]&1 == 1 {
			group, err := ndp.SolicitedNodeMulticast(f.TargetIP)
			if err != nil {
				return nil, err
			}
			target = group
		}
		m = s
	} else {
		if target == source {
			target = allNodes
		}
		m = &ndp.NeighborAdvertisement{
			Solicited: !target.IsMulticast() && !f.Unsolicited, Override: true, TargetAddress: source,
			Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: mac}},
		}
	}
	payload, err := ndp.MarshalMessageChecksum(m, source, target)
	if err != nil {
		return nil, err
	}
	if icmp6+len(payload) > cap(b) {
		return nil, fmt.Errorf("a message of %d bytes is too long", len(payload))
	}
	b = b[:icmp6+len(payload)]
	copy(b[0:6], f.Destination[:])
	copy(b[6:12], f.Source[:])
	binary.BigEndian.PutUint16(b[etherType:], unix.ETH_P_IPV6)
	binary.BigEndian.PutUint32(b[ip6Header:], 6<<28)
	binary.BigEndian.PutUint16(b[ip6Length:], uint16(len(payload)))
	b[ip6Next], b[ip6Hops] = unix.IPPROTO_ICMPV6, ndp.HopLimit
	s, t := source.As16(), target.As16()
	copy(b[ip6Source:], s[:])
	copy(b[ip6Target:], t[:])
	copy(b[icmp6:], payload)
	return b, nil
}
