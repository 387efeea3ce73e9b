package advertise

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
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
	// HasVirtualRouterMAC says whether the Ethernet address of the link belongs to a virtual
	// router.
	HasVirtualRouterMAC() bool
}

// SubnetReachedByAnyNode says whether a node that the advertisements select has a link whose subnet
// covers the address.
type SubnetReachedByAnyNode bool

// The values of SubnetReachedByAnyNode.
const (
	NoNodeReachesSubnet   SubnetReachedByAnyNode = false
	SomeNodeReachesSubnet SubnetReachedByAnyNode = true
)

// AnnouncingLinkIndexes returns the indexes of the links of a node on which the address is
// announced, sorted: those that the advertisements for this node name. If an advertisement names
// none, it adds the links whose subnet covers the address. If no node has such a link, it adds
// every usable link, because an address outside all subnets may still be routed to the segment. A
// link of a virtual router counts only if it is named: several nodes may have one on one segment.
// Without a node, all advertisements count.
func AnnouncingLinkIndexes[L Link](ads []*snapshot.L2Advertisement, node *view.Node, a netip.Addr, links []L, reach SubnetReachedByAnyNode) []int {
	var out []int
	for _, ad := range ads {
		if node != nil && !anyNodeSelectorMatches(ad.NodeSelectors, node) {
			continue
		}
		if len(ad.Interfaces) == 0 {
			out = appendLinkIndexesInSubnetOrAll(out, a, links, reach)
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

// appendLinkIndexesInSubnetOrAll appends the links whose subnet covers a. If no node has one, it
// appends all links that can carry a.
func appendLinkIndexesInSubnetOrAll[L Link](out []int, a netip.Addr, links []L, reach SubnetReachedByAnyNode) []int {
	for i := range links {
		if links[i].CanSendFamilyOf(a) && !links[i].HasVirtualRouterMAC() && (reach == NoNodeReachesSubnet || links[i].CoversAddress(a)) {
			out = append(out, links[i].InterfaceIndex())
		}
	}
	return out
}

// LinksOfNode are the links of a node, as far as they decide whether it can answer for an address.
type LinksOfNode[L Link] struct {
	// UsableLinks are those on which frames can be sent, DownLinks those that are down or without
	// carrier.
	UsableLinks, DownLinks []L
	// HasAddressOfFamily means that the node has an address of the family of the address.
	HasAddressOfFamily bool
	// AreRawSocketsDenied means that the node can send no frame at all.
	AreRawSocketsDenied bool
}

// AnsweringLinkIndexes returns the indexes of the links of a node on which it can answer for the
// address, or why there is none.
func AnsweringLinkIndexes[L Link](ads []*snapshot.L2Advertisement, node *view.Node, a netip.Addr, n LinksOfNode[L], reach SubnetReachedByAnyNode) ([]int, names.Reason) {
	links := AnnouncingLinkIndexes(ads, node, a, n.UsableLinks, reach)
	switch {
	case len(links) > 0 && n.HasAddressOfFamily:
		return links, ""
	case n.AreRawSocketsDenied:
		return nil, names.ReasonRawSocketDenied
	case len(links) == 0 && slices.ContainsFunc(n.DownLinks, func(l L) bool { return l.CoversAddress(a) }):
		return nil, names.ReasonLinkDown
	case !n.HasAddressOfFamily && len(n.UsableLinks) > 0:
		return nil, names.ReasonNoAddressFamily
	}
	return nil, names.ReasonNoLinks
}

// LinkWithSubnets is a link that may be in the subnet of an address.
type LinkWithSubnets interface {
	CoversAddress(netip.Addr) bool
	HasVirtualRouterMAC() bool
}

// AnyLinkCoversAddress says whether one of the links is in the subnet of the address, even if it is
// down.
func AnyLinkCoversAddress[L LinkWithSubnets](links []L, a netip.Addr) bool {
	return slices.ContainsFunc(links, func(l L) bool { return !l.HasVirtualRouterMAC() && l.CoversAddress(a) })
}

// OtherNodesLink is a link of another node, as far as that node describes it.
type OtherNodesLink interface {
	// HasName says whether the link has this name.
	HasName(string) bool
	CoversAddress(netip.Addr) bool
	HasVirtualRouterMAC() bool
}

// AdsAdmitLinkOfOtherNode says whether the advertisements let another node announce the address on
// its link.
func AdsAdmitLinkOfOtherNode(ads []*snapshot.L2Advertisement, node *view.Node, l OtherNodesLink, a netip.Addr, reach SubnetReachedByAnyNode) bool {
	for _, ad := range ads {
		switch {
		case !anyNodeSelectorMatches(ad.NodeSelectors, node):
		case len(ad.Interfaces) > 0:
			if slices.ContainsFunc(ad.Interfaces, l.HasName) {
				return true
			}
		case !l.HasVirtualRouterMAC() && (reach == NoNodeReachesSubnet || l.CoversAddress(a)):
			return true
		}
	}
	return false
}

// AnyL2AdSelectsNode says whether one of the advertisements selects the node.
func AnyL2AdSelectsNode(ads []*snapshot.L2Advertisement, node *view.Node) bool {
	return anyL2AdSelectsNode(ads, node)
}
