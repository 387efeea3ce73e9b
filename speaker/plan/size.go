package plan

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// overloaded says whether the advertisements give one route more communities than a message can carry. Without some of them the
// route might go where it must not, so that it is not announced at all.
func overloaded(ads []offer) bool {
	all := 0
	for _, o := range ads {
		all += len(o.ad.Communities) + len(o.ad.Extended)
	}
	if all <= intent.FewCommunities {
		return false
	}
	for _, o := range ads {
		for _, peer := range append([]string{""}, o.ad.Peers...) { // the empty one stands for a peer that nobody names
			for _, a := range o.addresses {
				if united(ads, peer, prefix(o.ad, a)).Overloaded() {
					return true
				}
			}
		}
	}
	return false
}

// united is what the advertisements say together of a prefix to a peer.
func united(ads []offer, peer string, p netip.Prefix) intent.Attributes {
	var out intent.Attributes
	for _, o := range ads {
		to := len(o.ad.Peers) == 0 || slices.Contains(o.ad.Peers, peer)
		if to && slices.ContainsFunc(o.addresses, func(a netip.Addr) bool { return prefix(o.ad, a) == p }) {
			out = merge(out, o.ad)
		}
	}
	return out
}
