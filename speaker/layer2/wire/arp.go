package wire

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// The layout of an ARP frame for IPv4 over Ethernet (RFC 826), in bytes. It is fixed, so that it is read and written in
// place: nothing is allocated for a frame of a flood. The library mdlayher/arp is the tests' second opinion.
const (
	etherType   = 12
	arpHardware = 14 // hardware type and protocol type, two bytes each
	arpLengths  = 18 // of the hardware and the protocol address
	arpOp       = 20
	senderMAC   = 22
	senderIP    = 28
	targetMAC   = 32
	targetIP    = 38
	arpFrame    = 42 // without the padding to 60 that the wire adds

	ethernetIPv4 = 1<<16 | unix.ETH_P_IP
	lengths      = 6<<8 | 4
)

// decodeARP reads an Ethernet frame with ARP in it.
func decodeARP(b []byte) (layer2.Frame, bool) {
	if len(b) < arpFrame || binary.BigEndian.Uint16(b[etherType:]) != unix.ETH_P_ARP ||
		binary.BigEndian.Uint32(b[arpHardware:]) != ethernetIPv4 || binary.BigEndian.Uint16(b[arpLengths:]) != lengths {
		return layer2.Frame{}, false
	}
	return layer2.Frame{
		Destination: facts.MAC(b[0:6]), Source: facts.MAC(b[6:12]),
		Operation: layer2.Operation(binary.BigEndian.Uint16(b[arpOp:])),
		SenderMAC: facts.MAC(b[senderMAC:senderIP]), SenderIP: netip.AddrFrom4([4]byte(b[senderIP:targetMAC])),
		TargetMAC: facts.MAC(b[targetMAC:targetIP]), TargetIP: netip.AddrFrom4([4]byte(b[targetIP:arpFrame])),
	}, true
}

// encodeARP writes the frame into b, whose capacity suffices, and returns what was written.
func encodeARP(b []byte, f layer2.Frame) ([]byte, error) {
	b = b[:arpFrame]
	copy(b[0:6], f.Destination[:])
	copy(b[6:12], f.Source[:])
	binary.BigEndian.PutUint16(b[etherType:], unix.ETH_P_ARP)
	binary.BigEndian.PutUint32(b[arpHardware:], ethernetIPv4)
	binary.BigEndian.PutUint16(b[arpLengths:], lengths)
	binary.BigEndian.PutUint16(b[arpOp:], uint16(f.Operation))
	copy(b[senderMAC:], f.SenderMAC[:])
	sender, target := f.SenderIP.As4(), f.TargetIP.As4()
	copy(b[senderIP:], sender[:])
	copy(b[targetMAC:], f.TargetMAC[:])
	copy(b[targetIP:], target[:])
	return b, nil
}
