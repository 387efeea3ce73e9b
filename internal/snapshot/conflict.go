package snapshot

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
)

// MaxCommunityBytesPerRoute is how many bytes of communities a route may have: a standard one takes
// 4, an extended one 8, a large one 12. A message has at most 4096 bytes (RFC 4271, section 4.1),
// and everything else in an UPDATE needs less than the rest.
const MaxCommunityBytesPerRoute = 3800

// FindAdvertisementConflict says why a speaker cannot announce a Service by all advertisements that
// select it, and what to do. The Reason is empty when it can.
func FindAdvertisementConflict(ads []*BGPAdvertisement, addresses []netip.Addr, nodes []Node) (names.Reason, string) {
	for i, x := range ads {
		var standard, large, extended []string
		for j, y := range ads {
			if !havePeerInCommon(x.Peers, y.Peers) || !haveNodeInCommon(x.NodeSelectors, y.NodeSelectors, nodes) || !slices.ContainsFunc(addresses, func(a netip.Addr) bool { return x.prefixLengthFor(a) == y.prefixLengthFor(a) }) {
				continue
			}
			if j < i && x.LocalPref != y.LocalPref {
				return names.ReasonConflictingAdvertisements, fmt.Sprintf(
					"the BGPAdvertisements %q and %q both select the Service, with a localPref of %d and of %d: write the same value in both, or separate them by serviceSelectors, peers or nodeSelectors",
					y.Name, x.Name, y.LocalPref, x.LocalPref)
			}
			for _, c := range y.Communities {
				if c.Large {
					large = append(large, c.String())
				} else {
					standard = append(standard, c.String())
				}
			}
			for _, c := range y.ExtendedCommunities {
				extended = append(extended, string(c[:]))
			}
		}
		if 4*countDistinctTexts(standard)+8*countDistinctTexts(extended)+12*countDistinctTexts(large) > MaxCommunityBytesPerRoute {
			return names.ReasonTooManyCommunities, fmt.Sprintf(
				"the BGPAdvertisements that select the Service, %q among them, have more communities in total than a route can carry: remove some, or separate them by peers", x.Name)
		}
	}
	return "", ""
}

// countDistinctTexts counts the different texts.
func countDistinctTexts(texts []string) int {
	slices.Sort(texts)
	return len(slices.Compact(texts))
}
