package advertise

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// Link is a network interface of a node.
type Link interface {
	InterfaceIndex() int
	InterfaceName() string
	// CanSendFamilyOf says whether frames about the address can be sent on the link.
	CanSendFamilyOf(netip.Addr) bool
	// CoversAddress says whether a subnet of the link covers the address.
	CoversAddress(netip.Addr) bool
}

// Links returns the indexes of the links of a node on which the address is announced, sorted: those
// that the advertisements for this node name. If an advertisement names none, it adds the links
// whose subnet covers the address. If there is no such link, it adds every usable link, because an
// address outside the node's subnets may still be routed to the segment. Without a node, all
// advertisements count.
func Links[L Link](ads []*snapshot.L2Advertisement, node *view.Node, a netip.Addr, links []L) []int {
	var out []int
	for _, ad := range ads {
		if node != nil && !selectsNode(ad.NodeSelectors, node) {
			continue
		}
		if len(ad.Interfaces) == 0 {
			out = appendLinksOfSubnet(out, a, links)
			continue
		}
		for i := range links {
			if links[i].CanSendFamilyOf(a) && slices.Contains(ad.Interfaces, links[i].InterfaceName()) {
				out = append(out, links[i].InterfaceIndex())
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// appendLinksOfSubnet appends the links whose subnet covers a, or else all links that can carry a.
func appendLinksOfSubnet[L Link](out []int, a netip.Addr, links []L) []int {
	before := len(out)
	for i := range links {
		if links[i].CanSendFamilyOf(a) && links[i].CoversAddress(a) {
			out = append(out, links[i].InterfaceIndex())
		}
	}
	if len(out) > before {
		return out
	}
	for i := range links {
		if links[i].CanSendFamilyOf(a) {
			out = append(out, links[i].InterfaceIndex())
		}
	}
	return out
}
