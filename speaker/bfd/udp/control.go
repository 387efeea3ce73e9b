package udp

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/bfd"
)

// toReceivedDatagram returns the bytes of a received message with its addresses and its TTL. It
// does not read the BFD packet itself.
func (t *Transport) toReceivedDatagram(m receivedMessage, key listenerKey) bfd.ReceivedDatagram {
	d := bfd.ReceivedDatagram{SourceAddress: decodeSockaddr(m.sourceAddress), VRF: key.vrf, ArrivedOnMultihopPort: key.multihop, Payload: m.payload}
	for rest := m.ancillaryData; len(rest) >= unix.SizeofCmsghdr; {
		header, data, remainder, err := unix.ParseOneSocketControlMessage(rest)
		if err != nil {
			break
		}
		t.fillDatagramFromAncillaryData(&d, header, data)
		rest = remainder
	}
	return d
}

// decodeSockaddr returns the address of a kernel's struct sockaddr. The address is invalid if it is
// not an IP address.
func decodeSockaddr(b []byte) netip.Addr {
	if len(b) < 2 {
		return netip.Addr{}
	}
	switch family := binary.NativeEndian.Uint16(b); {
	case family == unix.AF_INET && len(b) >= 8: // family, port, address
		return netip.AddrFrom4([4]byte(b[4:8]))
	case family == unix.AF_INET6 && len(b) >= 24: // family, port, flow, address
		return netip.AddrFrom16([16]byte(b[8:24]))
	}
	return netip.Addr{}
}

// fillDatagramFromAncillaryData adds the kernel's ancillary data to a datagram.
func (t *Transport) fillDatagramFromAncillaryData(d *bfd.ReceivedDatagram, header unix.Cmsghdr, data []byte) {
	is := func(level, kind int32, minLength int) bool {
		return header.Level == level && header.Type == kind && len(data) >= minLength
	}
	switch {
	case is(unix.IPPROTO_IP, unix.IP_TTL, 4), is(unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT, 4):
		d.TTL = uint8(binary.NativeEndian.Uint32(data))
	case is(unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo):
		// struct in_pktinfo: link, local address, destination
		d.ArrivalInterface = t.cachedLinkName(int(binary.NativeEndian.Uint32(data)))
		d.DestinationAddress = netip.AddrFrom4([4]byte(data[8:12]))
	case is(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo):
		// struct in6_pktinfo: destination, link
		d.DestinationAddress = netip.AddrFrom16([16]byte(data[:16]))
		d.ArrivalInterface = t.cachedLinkName(int(binary.NativeEndian.Uint32(data[16:])))
	}
}
