package advertise

import (
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// Layer2Coverage has the L2Advertisements that cover a Service.
type Layer2Coverage struct {
	// Ads cover at least one address. They are in the order of the Snapshot.
	Ads []*snapshot.L2Advertisement
	// Addresses are the addresses with an advertisement for their own pool. Without any
	// advertisement they are all addresses of the Service.
	Addresses []netip.Addr
	// adsOfEachAddress has the advertisements of each of the Addresses. It is nil if all of them
	// are in one pool: Ads then cover each address.
	adsOfEachAddress [][]*snapshot.L2Advertisement
}

// L2AdsCoveringService returns the L2Advertisements that cover the Service. The reason is empty if
// they let at least some nodes announce it, as far as the Service is concerned.
func L2AdsCoveringService(s *snapshot.Snapshot, svc *Service) (Layer2Coverage, names.Reason) {
	c := Layer2Coverage{Addresses: svc.Addresses}
	pools, reason := findPoolOfEachAddress(s, svc)
	if reason != "" {
		return c, reason
	}
	c.Ads = selectL2Ads(s, pools, svc)
	if len(c.Ads) == 0 {
		return c, names.ReasonNoAdvertisement
	}
	if slices.ContainsFunc(pools, func(p *snapshot.Pool) bool { return p != pools[0] }) {
		c.Addresses = nil
		for i, a := range svc.Addresses {
			if ads := selectL2Ads(s, pools[i:i+1], svc); len(ads) > 0 {
				c.Addresses, c.adsOfEachAddress = append(c.Addresses, a), append(c.adsOfEachAddress, ads)
			}
		}
	}
	// The Services of a shared address need the same node, and selectors might separate them.
	if svc.HasSharingKey && slices.ContainsFunc(c.Ads, hasServiceSelector) {
		return c, names.ReasonSharedWithServiceSelector
	}
	return c, ""
}

// selectL2Ads returns the advertisements that name one of the pools and select the Service.
func selectL2Ads(s *snapshot.Snapshot, pools []*snapshot.Pool, svc *Service) []*snapshot.L2Advertisement {
	var out []*snapshot.L2Advertisement
	for _, ad := range s.L2Advertisements {
		if namesAnyPool(ad.Pools, pools) && snapshot.AnySelectorMatches(ad.ServiceSelectors, svc.Labels) {
			out = append(out, ad)
		}
	}
	return out
}

func hasServiceSelector(ad *snapshot.L2Advertisement) bool { return len(ad.ServiceSelectors) > 0 }

// L2AdvertisementsOfPool returns the L2Advertisements that name the pool, whichever Services they
// select.
func L2AdvertisementsOfPool(s *snapshot.Snapshot, pool string) []*snapshot.L2Advertisement {
	if s == nil {
		return nil
	}
	var out []*snapshot.L2Advertisement
	for _, ad := range s.L2Advertisements {
		if slices.Contains(ad.Pools, pool) {
			out = append(out, ad)
		}
	}
	return out
}

// AdsOfAddress returns the advertisements that cover Addresses[i].
func (c *Layer2Coverage) AdsOfAddress(i int) []*snapshot.L2Advertisement {
	if c.adsOfEachAddress == nil {
		return c.Ads
	}
	return c.adsOfEachAddress[i]
}

// AdmittedNodesKey is the same for coverages that admit the same nodes with the same scores.
func (c *Layer2Coverage) AdmittedNodesKey() string {
	if len(c.Ads) == 1 {
		return c.Ads[0].Name
	}
	groups := c.adsOfEachAddress
	if groups == nil {
		groups = [][]*snapshot.L2Advertisement{c.Ads}
	}
	var key strings.Builder
	for _, ads := range groups {
		for _, ad := range ads {
			key.WriteString(ad.Name)
			key.WriteByte('/')
		}
		key.WriteByte('|')
	}
	return key.String()
}

// NodeExclusionReason returns why the advertisements do not admit the node. It is empty if they do.
// One node announces all addresses of a Service, so that each address needs an advertisement that
// selects the node.
func (c *Layer2Coverage) NodeExclusionReason(n *view.Node) names.Reason {
	switch {
	case n.NetworkUnavailable:
		return names.ReasonNodeNetworkUnavailable
	case n.IsExcluded:
		return names.ReasonNodeExcluded
	case n.IsLeaving:
		return names.ReasonNodeLeaving
	case !c.selectsNodeForAllAddresses(n):
		return names.ReasonNoAdvertisement
	}
	return ""
}

func (c *Layer2Coverage) selectsNodeForAllAddresses(n *view.Node) bool {
	for i := range c.adsOfEachAddress {
		if !anyL2AdSelectsNode(c.adsOfEachAddress[i], n) {
			return false
		}
	}
	return anyL2AdSelectsNode(c.Ads, n)
}

func anyL2AdSelectsNode(ads []*snapshot.L2Advertisement, n *view.Node) bool {
	return slices.ContainsFunc(ads, func(ad *snapshot.L2Advertisement) bool { return anyNodeSelectorMatches(ad.NodeSelectors, n) })
}

// PreferenceScore sums the weights of the preferences that match the node, over the advertisements
// that select it.
func (c *Layer2Coverage) PreferenceScore(n *view.Node) int {
	sum := 0
	for _, ad := range c.Ads {
		if !anyNodeSelectorMatches(ad.NodeSelectors, n) {
			continue
		}
		for _, p := range ad.Preferences {
			if p.NodeSelector.Matches(labels.Set(n.Labels)) {
				sum += p.Weight
			}
		}
	}
	return sum
}

// StrictestWireCheck is the strictest of the advertisements.
func (c *Layer2Coverage) StrictestWireCheck() snapshot.WireCheck {
	var strictest snapshot.WireCheck
	for _, ad := range c.Ads {
		strictest = max(strictest, ad.WireCheck)
	}
	return strictest
}

// MayRebalance says whether a node that holds too many addresses may give those of the Service
// away.
func (c *Layer2Coverage) MayRebalance() bool {
	return slices.ContainsFunc(c.Ads, func(ad *snapshot.L2Advertisement) bool { return ad.Rebalance })
}
