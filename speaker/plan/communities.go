package plan

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// haveTooManyCommunities says whether the advertisements give one route more communities than a message can carry. Without some of them the
// route might go where it must not, so that it is not announced at all.
func haveTooManyCommunities(ads []adCoverage) bool {
	all := 0
	for _, o := range ads {
		all += len(o.ad.Communities) + len(o.ad.ExtendedCommunities)
	}
	if all <= intent.SafeCommunityCount {
		return false
	}
	for _, o := range ads {
		for _, peer := range append([]string{""}, o.ad.Peers...) { // the empty one stands for a peer that nobody names
			for _, a := range o.addresses {
				if combinedAttributes(ads, peer, announcedPrefix(o.ad, a)).HasTooManyCommunities() {
					return true
				}
			}
		}
	}
	return false
}

// combinedAttributes is what the advertisements say together of a prefix to a peer.
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
