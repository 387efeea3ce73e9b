package explain

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/internal/view"
)

// describeAddressesOutsideSubnets says which addresses are only announced by layer 2, and in no
// subnet of a node, as the end of a sentence. That works if routers have a route, which nobody here
// can see.
func describeAddressesOutsideSubnets(c *serviceDiagnosis) string {
	for _, s := range c.announcementFinding.Sessions {
		if !s.Fault.IsSet() {
			return ""
		}
	}
	var outside []netip.Addr
	for _, a := range c.view.AssignedAddresses {
		if isInSubnet, known := c.installation.hasNodeInSubnetOf(a); known && !isInSubnet {
			outside = append(outside, a)
		}
	}
	if len(outside) == 0 {
		return ""
	}
	return "; no node has a link in the subnet of " + view.JoinAddresses(outside) + ", so that clients need a route to it: check it, and spec.addresses of the pool"
}

// hasNodeInSubnetOf reports whether a link of a node has a subnet with the address. That is unknown
// if a speaker does not describe its links.
func (i *installation) hasNodeInSubnetOf(a netip.Addr) (isInSubnet, known bool) {
	contains := func(text string) bool {
		p, err := netip.ParsePrefix(text)
		return err == nil && p.Contains(a)
	}
	for _, s := range i.speakerStatusByNode {
		if !slices.ContainsFunc(s.Links, func(l v1alpha1.SpeakerLink) bool { return len(l.Subnets) > 0 }) {
			return false, false
		}
		isInSubnet = isInSubnet || slices.ContainsFunc(s.Links, func(l v1alpha1.SpeakerLink) bool { return slices.ContainsFunc(l.Subnets, contains) })
	}
	return isInSubnet, len(i.speakerStatusByNode) > 0
}
