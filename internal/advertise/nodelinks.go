package advertise

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// LinkState is a link of a node, as its speaker describes it.
type LinkState struct {
	Name string
	// IsDown means that the link is down or without carrier.
	IsDown bool
	// IsVirtualRouter means that its Ethernet address belongs to a virtual router.
	IsVirtualRouter bool
	// Families are those for which the node can answer on the link.
	Families []ipfamily.Family
	Subnets  []netip.Prefix
}

var _ Link = LinkState{}

// InterfaceIndex is part of Link. The index is not known.
func (LinkState) InterfaceIndex() int { return 0 }

// InterfaceName is part of Link.
func (l LinkState) InterfaceName() string { return l.Name }

// CanSendFamilyOf is part of Link.
func (l LinkState) CanSendFamilyOf(a netip.Addr) bool {
	return slices.Contains(l.Families, ipfamily.FamilyOf(a))
}

// CoversAddress is part of Link.
func (l LinkState) CoversAddress(a netip.Addr) bool {
	return slices.ContainsFunc(l.Subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// HasVirtualRouterMAC is part of Link.
func (l LinkState) HasVirtualRouterMAC() bool { return l.IsVirtualRouter }

// layer2Fault returns why the node answers ARP and NDP for none of the addresses of the Service.
func (n *NodeStateForService) layer2Fault(c *serviceCoverage, node *view.Node) names.Explanation {
	if n.Layer2Fault.Reason == names.ReasonRawSocketDenied || n.Links == nil {
		return n.Layer2Fault
	}
	var first names.Explanation
	for i, a := range c.layer2.Addresses {
		why := n.linkFault(c.layer2.AdsOfAddress(i), node, a, c.subnetReachOfEachAddress[i])
		if !why.IsSet() {
			return n.Layer2Fault
		}
		first = names.Explanation{Reason: cmp.Or(first.Reason, why.Reason), Text: cmp.Or(first.Text, why.Text)}
	}
	if n.Layer2Fault.IsSet() && first.Reason == names.ReasonNoLinks {
		return n.Layer2Fault // it concerns every address
	}
	return first
}

// linkFault returns why the node cannot answer for the address: what its speaker decides.
func (n *NodeStateForService) linkFault(ads []*snapshot.L2Advertisement, node *view.Node, a netip.Addr, reach SubnetReachedByAnyNode) names.Explanation {
	links := LinksOfNode[LinkState]{HasAddressOfFamily: slices.ContainsFunc(n.Links, func(l LinkState) bool { return l.CanSendFamilyOf(a) })}
	var usable, downInSubnet []string
	for _, l := range n.Links {
		if l.IsDown {
			links.DownLinks = append(links.DownLinks, l)
			if l.CoversAddress(a) {
				downInSubnet = append(downInSubnet, l.Name)
			}
			continue
		}
		links.UsableLinks, usable = append(links.UsableLinks, l), append(usable, l.Name)
	}
	_, reason := AnsweringLinkIndexes(ads, node, a, links, reach)
	switch reason {
	case "":
		return names.Explanation{}
	case names.ReasonLinkDown:
		return names.NewExplanation(reason, "its link %s in the subnet of %s is down or has no carrier: repair the link", strings.Join(downInSubnet, ", "), a)
	case names.ReasonNoAddressFamily:
		return names.NewExplanation(reason, "it has no %s address on a usable link, so that it cannot answer for %s: give it one", ipfamily.FamilyOf(a), a)
	}
	allUsable := cmp.Or(strings.Join(usable, ", "), "none")
	if wanted := interfacesOfAds(ads, node); len(wanted) > 0 {
		return names.NewExplanation(reason, "the L2Advertisements limit the Service to links with exactly the names %s, and the usable links are %s: correct spec.interfaces, or repair the link", strings.Join(wanted, ", "), allUsable)
	}
	return names.NewExplanation(reason, "none of its usable links (%s) is in the subnet of %s, and only nodes with such a link answer: give the node one, or name the links in spec.interfaces of the L2Advertisement", allUsable, a)
}

// interfacesOfAds returns the interfaces to which the advertisements limit the node, sorted; none
// if one of them has no limit.
func interfacesOfAds(ads []*snapshot.L2Advertisement, node *view.Node) []string {
	var out []string
	for _, ad := range ads {
		switch {
		case !anyNodeSelectorMatches(ad.NodeSelectors, node):
		case len(ad.Interfaces) == 0:
			return nil
		default:
			out = append(out, ad.Interfaces...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
