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
	etherTypeOffset                   = 12
	arpHardwareAndProtocolTypesOffset = 14 // hardware type and protocol type, two bytes each
	arpLengthsOffset                  = 18 // of the hardware address and of the protocol address
	arpOperationOffset                = 20
	arpSenderMACOffset                = 22
	arpSenderIPOffset                 = 28
	arpTargetMACOffset                = 32
	arpTargetIPOffset                 = 38
	arpFrameLength                    = 42 // without the padding to 60 bytes

	arpTypesEthernetIPv4 = 1<<16 | unix.ETH_P_IP
	arpAddressLengths    = 6<<8 | 4
)

// decodeARP reads an Ethernet frame that contains ARP.
func decodeARP(b []byte) (layer2.ARPOrNDPFrame, bool) {
	if len(b) < arpFrameLength || binary.BigEndian.Uint16(b[etherTypeOffset:]) != unix.ETH_P_ARP ||
		binary.BigEndian.Uint32(b[arpHardwareAndProtocolTypesOffset:]) != arpTypesEthernetIPv4 || binary.BigEndian.Uint16(b[arpLengthsOffset:]) != arpAddressLengths {
		return layer2.ARPOrNDPFrame{}, false
	}
	return layer2.ARPOrNDPFrame{
		EthernetDestination: facts.MAC(b[0:6]), EthernetSource: facts.MAC(b[6:12]),
		Operation: layer2.Operation(binary.BigEndian.Uint16(b[arpOperationOffset:])),
		SenderMAC: facts.MAC(b[arpSenderMACOffset:arpSenderIPOffset]), SenderIP: netip.AddrFrom4([4]byte(b[arpSenderIPOffset:arpTargetMACOffset])),
		TargetMAC: facts.MAC(b[arpTargetMACOffset:arpTargetIPOffset]), TargetIP: netip.AddrFrom4([4]byte(b[arpTargetIPOffset:arpFrameLength])),
	}, true
}

// encodeARP writes the frame into b, which has room for it, and returns the written bytes.
func encodeARP(b []byte, f layer2.ARPOrNDPFrame) ([]byte, error) {
	b = b[:arpFrameLength]
	copy(b[0:6], f.EthernetDestination[:])
	copy(b[6:12], f.EthernetSource[:])
	binary.BigEndian.PutUint16(b[etherTypeOffset:], unix.ETH_P_ARP)
	binary.BigEndian.PutUint32(b[arpHardwareAndProtocolTypesOffset:], arpTypesEthernetIPv4)
	binary.BigEndian.PutUint16(b[arpLengthsOffset:], arpAddressLengths)
	binary.BigEndian.PutUint16(b[arpOperationOffset:], uint16(f.Operation))
	copy(b[arpSenderMACOffset:], f.SenderMAC[:])
	sender, target := f.SenderIP.As4(), f.TargetIP.As4()
	copy(b[arpSenderIPOffset:], sender[:])
	copy(b[arpTargetMACOffset:], f.TargetMAC[:])
	copy(b[arpTargetIPOffset:], target[:])
	return b, nil
}
