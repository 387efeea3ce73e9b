package wire

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// The layout of an ARP frame for IPv4 over Ethernet (RFC 826), in bytes. The layout is fixed, so
// frames are read and written in place, without an allocation per frame. The tests compare the
// result with the library mdlayher/arp.
const (
	etherTypeOffset    = 12
	arpTypesOffset     = 14 // hardware type and protocol type, two bytes each
	arpLengthsOffset   = 18 // of the hardware address and of the protocol address
	arpOperationOffset = 20
	senderMACOffset    = 22
	senderIPOffset     = 28
	targetMACOffset    = 32
	targetIPOffset     = 38
	arpFrameLength     = 42 // without the padding to 60 bytes

	arpTypesEthernetIPv4 = 1<<16 | unix.ETH_P_IP
	arpAddressLengths    = 6<<8 | 4
)

// decodeARP reads an Ethernet frame that contains ARP.
func decodeARP(b []byte) (layer2.Frame, bool) {
	if len(b) < arpFrameLength || binary.BigEndian.Uint16(b[etherTypeOffset:]) != unix.ETH_P_ARP ||
		binary.BigEndian.Uint32(b[arpTypesOffset:]) != arpTypesEthernetIPv4 || binary.BigEndian.Uint16(b[arpLengthsOffset:]) != arpAddressLengths {
		return layer2.Frame{}, false
	}
	return layer2.Frame{
		EthernetDestination: facts.MAC(b[0:6]), EthernetSource: facts.MAC(b[6:12]),
		Operation: layer2.Operation(binary.BigEndian.Uint16(b[arpOperationOffset:])),
		SenderMAC: facts.MAC(b[senderMACOffset:senderIPOffset]), SenderIP: netip.AddrFrom4([4]byte(b[senderIPOffset:targetMACOffset])),
		TargetMAC: facts.MAC(b[targetMACOffset:targetIPOffset]), TargetIP: netip.AddrFrom4([4]byte(b[targetIPOffset:arpFrameLength])),
	}, true
}

// encodeARP writes the frame into b, which has room for it, and returns the written bytes.
func encodeARP(b []byte, f layer2.Frame) ([]byte, error) {
	b = b[:arpFrameLength]
	copy(b[0:6], f.EthernetDestination[:])
	copy(b[6:12], f.EthernetSource[:])
	binary.BigEndian.PutUint16(b[etherTypeOffset:], unix.ETH_P_ARP)
	binary.BigEndian.PutUint32(b[arpTypesOffset:], arpTypesEthernetIPv4)
	binary.BigEndian.PutUint16(b[arpLengthsOffset:], arpAddressLengths)
	binary.BigEndian.PutUint16(b[arpOperationOffset:], uint16(f.Operation))
	copy(b[senderMACOffset:], f.SenderMAC[:])
	sender, target := f.SenderIP.As4(), f.TargetIP.As4()
	copy(b[senderIPOffset:], sender[:])
	copy(b[targetMACOffset:], f.TargetMAC[:])
	copy(b[targetIPOffset:], target[:])
	return b, nil
}
