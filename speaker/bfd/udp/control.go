package udp

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/bfd"
)

// fillDatagramFromAncillaryData adds the kernel's ancillary data to a datagram.
func (t *Transport) fillDatagramFromAncillaryData(d *bfd.ReceivedDatagram, m unix.SocketControlMessage) {
	is := func(level, kind int32, minLength int) bool {
		return m.Header.Level == level && m.Header.Type == kind && len(m.Data) >= minLength
	}
	switch {
	case is(unix.IPPROTO_IP, unix.IP_TTL, 4), is(unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT, 4):
		d.TTL = uint8(binary.NativeEndian.Uint32(m.Data))
	case is(unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo):
		// struct in_pktinfo: link, local address, destination
		d.ArrivalInterface = t.cachedLinkName(int(binary.NativeEndian.Uint32(m.Data)))
		d.DestinationAddress = netip.AddrFrom4([4]byte(m.Data[8:12]))
	case is(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo):
		// struct in6_pktinfo: destination, link
		d.DestinationAddress = netip.AddrFrom16([16]byte(m.Data[:16]))
		d.ArrivalInterface = t.cachedLinkName(int(binary.NativeEndian.Uint32(m.Data[16:])))
	}
}
