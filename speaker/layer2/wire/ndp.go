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

// The layout of ICMPv6 over IPv6 over Ethernet (RFC 8200 section 3), in bytes from the
// start of the frame.
const (
	ip6HeaderOffsetInFrame        = 14
	ip6PayloadLengthOffsetInFrame = 18 // of what follows the header
	ip6NextHeaderOffsetInFrame    = 20
	ip6HopLimitOffsetInFrame      = 21
	ip6SourceOffsetInFrame        = 22
	ip6DestinationOffsetInFrame   = 38
	icmp6Offset                   = 54
	icmp6CodeOffset               = 55
	ndpMinFrameLength             = icmp6Offset + 24 // a solicitation without options
	typeNeighborSolicitation      = 135              // RFC 4861 section 4.3
	typeNeighborAdvertisement     = 136              // RFC 4861 section 4.4
)

// ndpFilter passes Neighbor Solicitations and Advertisements without extension headers, which a
// sender must not add (RFC 6980). It also passes MLD queries, which have a Hop-by-Hop header. It
// drops everything else in the kernel, like arpFilter.
var ndpFilter = []bpf.Instruction{
	bpf.LoadExtension{Num: bpf.ExtType},
	bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: unix.PACKET_MULTICAST, SkipTrue: 13},
	bpf.LoadAbsolute{Off: etherTypeOffset, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IPV6, SkipTrue: 11},
	bpf.LoadAbsolute{Off: ip6NextHeaderOffsetInFrame, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMPV6, SkipFalse: 3},
	bpf.LoadAbsolute{Off: icmp6Offset, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeNeighborSolicitation, SkipTrue: 6},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeNeighborAdvertisement, SkipTrue: 5, SkipFalse: 6},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_HOPOPTS, SkipTrue: 5},
	bpf.LoadAbsolute{Off: hopByHopOffset, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 3},
	bpf.LoadAbsolute{Off: mldMessageOffset, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: typeMLDQuery, SkipTrue: 1},
	bpf.RetConstant{Val: maxFrameBytes},
	bpf.RetConstant{Val: 0},
}

// decodeNDP reads an Ethernet frame that contains a Neighbor Solicitation or Advertisement. It
// checks the rules of RFC 4861 sections 7.1.1 and 7.1.2.
func decodeNDP(b []byte) (layer2.ARPOrNDPFrame, bool) {
	if len(b) < ndpMinFrameLength || binary.BigEndian.Uint16(b[etherTypeOffset:]) != unix.ETH_P_IPV6 || b[ip6HeaderOffsetInFrame]>>4 != 6 ||
		b[ip6NextHeaderOffsetInFrame] != unix.IPPROTO_ICMPV6 || b[ip6HopLimitOffsetInFrame] != ndp.HopLimit || b[icmp6CodeOffset] != 0 {
		return layer2.ARPOrNDPFrame{}, false
	}
	end := icmp6Offset + int(binary.BigEndian.Uint16(b[ip6PayloadLengthOffsetInFrame:]))
	if end < ndpMinFrameLength || end > len(b) || !isICMPv6ChecksumValid(b[ip6SourceOffsetInFrame:icmp6Offset], b[icmp6Offset:end]) {
		return layer2.ARPOrNDPFrame{}, false
	}
	m, err := ndp.ParseMessage(b[icmp6Offset:end])
	if err != nil {
		return layer2.ARPOrNDPFrame{}, false
	}
	source, target := netip.AddrFrom16([16]byte(b[ip6SourceOffsetInFrame:ip6DestinationOffsetInFrame])), netip.AddrFrom16([16]byte(b[ip6DestinationOffsetInFrame:icmp6Offset]))
	f := layer2.ARPOrNDPFrame{EthernetDestination: facts.MAC(b[0:6]), EthernetSource: facts.MAC(b[6:12]), SenderMAC: facts.MAC(b[6:12])}
	switch m := m.(type) {
	case *ndp.NeighborSolicitation:
		mac, given := findLinkLayerAddressOption(m.Options, ndp.Source)
		if m.TargetAddress.IsMulticast() || source.IsMulticast() || source.Is4In6() {
			return layer2.ARPOrNDPFrame{}, false
		}
		// a sender without an address asks the group, and gives no link-layer address
		if source.IsUnspecified() {
			if group, err := ndp.SolicitedNodeMulticast(m.TargetAddress); err != nil || given || target != group {
				return layer2.ARPOrNDPFrame{}, false
			}
		}
		if given {
			f.SenderMAC = mac
		}
		f.Operation, f.SenderIP, f.TargetIP = layer2.Request, source, m.TargetAddress
	case *ndp.NeighborAdvertisement:
		if m.TargetAddress.IsMulticast() || (m.Solicited && target.IsMulticast()) {
			return layer2.ARPOrNDPFrame{}, false
		}
		f.Unsolicited = !m.Solicited && !target.IsMulticast()
		if target.IsMulticast() {
			target = m.TargetAddress // as in an announcement with ARP
		}
		if mac, given := findLinkLayerAddressOption(m.Options, ndp.Target); given {
			f.SenderMAC = mac
		}
		f.Operation, f.SenderIP, f.TargetMAC, f.TargetIP = layer2.Reply, m.TargetAddress, f.EthernetDestination, target
	default:
		return layer2.ARPOrNDPFrame{}, false
	}
	return f, true
}

// findLinkLayerAddressOption returns the Ethernet address in the options.
func findLinkLayerAddressOption(options []ndp.Option, d ndp.Direction) (facts.MAC, bool) {
	for _, o := range options {
		if l, ok := o.(*ndp.LinkLayerAddress); ok && l.Direction == d && len(l.Addr) == 6 {
			return facts.MAC(l.Addr), true
		}
	}
	return facts.MAC{}, false
}

// isICMPv6ChecksumValid checks the ICMPv6 checksum. A packet socket receives packets before the
// kernel has checked it.
func isICMPv6ChecksumValid(addresses, message []byte) bool {
	return icmpv6Checksum(addresses, message) == 0xffff
}

// icmpv6Checksum sums up a message and its pseudo-header (RFC 8200 section 8.1).
func icmpv6Checksum(addresses, message []byte) uint16 {
	return onesComplementSum(uint32(len(message))+unix.IPPROTO_ICMPV6, addresses, message)
}

// onesComplementSum returns the one's complement sum of the Internet checksum (RFC 1071).
func onesComplementSum(sum uint32, parts ...[]byte) uint16 {
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

var allNodesGroup = netip.MustParseAddr("ff02::1")

// encodeNDP writes the frame into b, which has room for it, and returns the written bytes. An
// advertisement has the announced address as its source, and always has the override flag.
func encodeNDP(b []byte, f layer2.ARPOrNDPFrame) ([]byte, error) {
	source, target := f.SenderIP, f.TargetIP
	mac := net.HardwareAddr(f.SenderMAC[:])
	var m ndp.Message
	if f.Operation == layer2.Request {
		s := &ndp.NeighborSolicitation{TargetAddress: f.TargetIP}
		if !source.IsUnspecified() { // a sender without an address must not send this option
			s.Options = []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: mac}}
		}
		if f.EthernetDestination[0]&1 == 1 {
			group, err := ndp.SolicitedNodeMulticast(f.TargetIP)
			if err != nil {
				return nil, err
			}
			target = group
		}
		m = s
	} else {
		if target == source {
			target = allNodesGroup
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
	if icmp6Offset+len(payload) > cap(b) {
		return nil, fmt.Errorf("a message of %d bytes is too long", len(payload))
	}
	b = b[:icmp6Offset+len(payload)]
	copy(b[0:6], f.EthernetDestination[:])
	copy(b[6:12], f.EthernetSource[:])
	binary.BigEndian.PutUint16(b[etherTypeOffset:], unix.ETH_P_IPV6)
	binary.BigEndian.PutUint32(b[ip6HeaderOffsetInFrame:], 6<<28)
	binary.BigEndian.PutUint16(b[ip6PayloadLengthOffsetInFrame:], uint16(len(payload)))
	b[ip6NextHeaderOffsetInFrame], b[ip6HopLimitOffsetInFrame] = unix.IPPROTO_ICMPV6, ndp.HopLimit
	s, t := source.As16(), target.As16()
	copy(b[ip6SourceOffsetInFrame:], s[:])
	copy(b[ip6DestinationOffsetInFrame:], t[:])
	copy(b[icmp6Offset:], payload)
	return b, nil
}
