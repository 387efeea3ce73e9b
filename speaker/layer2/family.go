package layer2

import (
	"net/netip"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
)

var (
	// broadcastMAC is the Ethernet broadcast address.
	broadcastMAC = facts.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	// allNodesMAC is the Ethernet address of the IPv6 group of all nodes, ff02::1 (RFC
	// 2464 section 7).
	allNodesMAC = facts.MAC{0x33, 0x33, 0, 0, 0, 1}
)

// AnnouncementDestinationMAC returns the Ethernet address to which announcements of an address are
// sent.
func AnnouncementDestinationMAC(a netip.Addr) facts.MAC {
	if a.Is6() {
		return allNodesMAC
	}
	return broadcastMAC
}

// RequestDestinationMAC returns the Ethernet address to which requests for an address are sent: the
// broadcast address, or for IPv6 the address of the solicited-node group (RFC 4291 section 2.7.1).
// Addresses with the same last three bytes share that group.
func RequestDestinationMAC(a netip.Addr) facts.MAC {
	if !a.Is6() {
		return broadcastMAC
	}
	b := a.As16()
	return facts.MAC{0x33, 0x33, 0xff, b[13], b[14], b[15]}
}

// unspecifiedAddress returns the sender address of a host that has no address yet.
func unspecifiedAddress(f ipfamily.Family) netip.Addr {
	if f == ipfamily.IPv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}
