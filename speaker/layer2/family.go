package layer2

import (
	"net/netip"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// Family is an address family: IPv4 neighbours are found with ARP (RFC 826), IPv6 ones with neighbour discovery
// (RFC 4861). Each has ports of its own.
type Family uint8

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// String returns "IPv4" or "IPv6".
func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// FamilyOf returns the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is6() {
		return IPv6
	}
	return IPv4
}

var (
	// broadcastMAC is the Ethernet address of everybody.
	broadcastMAC = facts.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	// allNodesMAC is that of every IPv6 host, ff02::1 (RFC 2464 section 7).
	allNodesMAC = facts.MAC{0x33, 0x33, 0, 0, 0, 1}
)

// AnnouncementMAC returns the Ethernet address to which news about an address go.
func AnnouncementMAC(a netip.Addr) facts.MAC {
	if a.Is6() {
		return allNodesMAC
	}
	return broadcastMAC
}

// RequestMAC returns the Ethernet address to which questions about an address go: everybody's, or for IPv6 that of the
// solicited-node group (RFC 4291 section 2.7.1), which hosts whose addresses end alike share.
func RequestMAC(a netip.Addr) facts.MAC {
	if !a.Is6() {
		return broadcastMAC
	}
	b := a.As16()
	return facts.MAC{0x33, 0x33, 0xff, b[13], b[14], b[15]}
}

// unspecifiedAddress is the address of who has none yet.
func unspecifiedAddress(f Family) netip.Addr {
	if f == IPv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}
