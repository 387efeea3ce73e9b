package plan

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// haveTooManyCommunities says whether the advertisements give a route more communities than a
// message can carry. Such a route is not announced at all: with some communities missing, routers
// might pass it on to where it must not go.
func haveTooManyCommunities(ads []adCoverage) bool {
	all := 0
	for _, o := range ads {
		all += len(o.ad.Communities) + len(o.ad.ExtendedCommunities)
	}
	if all <= intent.SafeCommunityCount {
		return false
	}
	for _, o := range ads {
		// the empty name is any peer that no advertisement names
		for _, peer := range append([]string{""}, o.ad.Peers...) {
			for _, a := range o.addresses {
				if combinedAttributes(ads, peer, announcedPrefix(o.ad, a)).HasTooManyCommunities() {
					return true
				}
			}
		}
	}
	return false
}

// combinedAttributes returns the attributes of a prefix for a peer, over all advertisements.
func combinedAttributes(ads []adCoverage, peer string, p netip.Prefix) intent.Attributes {
	var out intent.Attributes
	for _, o := range ads {
		to := len(o.ad.Peers) == 0 || slices.Contains(o.ad.Peers, peer)
		if to && slices.ContainsFunc(o.addresses, func(a netip.Addr) bool { return announcedPrefix(o.ad, a) == p }) {
			out = mergeAdvertisement(out, o.ad)
		}
	}
	return out
}
