package advertise

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// BGPCoverage is a BGPAdvertisement with the addresses of a Service that are in its pools.
type BGPCoverage struct {
	Ad        *snapshot.BGPAdvertisement
	Addresses []netip.Addr
}

// Equal says whether both are the same.
func (c BGPCoverage) Equal(o BGPCoverage) bool {
	return c.Ad == o.Ad && slices.Equal(c.Addresses, o.Addresses)
}

// AdmitsPeer says whether the advertisement is for the peer of this name.
func (c BGPCoverage) AdmitsPeer(name string) bool {
	return len(c.Ad.Peers) == 0 || slices.Contains(c.Ad.Peers, name)
}

// BGPAdsCoveringService returns the BGPAdvertisements that cover the Service on any node, in the
// order of the Snapshot. The reason is empty if there is one.
func BGPAdsCoveringService(s *snapshot.Snapshot, svc *Service) ([]BGPCoverage, names.Reason) {
	pools, reason := findPoolOfEachAddress(s, svc)
	if reason != "" {
		return nil, reason
	}
	var out []BGPCoverage
	for _, ad := range s.BGPAdvertisements {
		if !namesAnyPool(ad.Pools, pools) || !snapshot.AnySelectorMatches(ad.ServiceSelectors, svc.Labels) {
			continue
		}
		c := BGPCoverage{Ad: ad, Addresses: svc.Addresses}
		if slices.ContainsFunc(pools, func(p *snapshot.Pool) bool { return !slices.Contains(ad.Pools, p.Name) }) {
			c.Addresses = nil
			for i, a := range svc.Addresses {
				if slices.Contains(ad.Pools, pools[i].Name) {
					c.Addresses = append(c.Addresses, a)
				}
			}
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, names.ReasonNoAdvertisement
	}
	return out, ""
}

// BGPAdsUsableOnNode returns the advertisements that select the node. The reason is empty if
// the node may announce by them. A leaving or excluded node still may: the BGP engine withdraws its
// routes in order.
func BGPAdsUsableOnNode(coverage []BGPCoverage, n *view.Node) ([]BGPCoverage, names.Reason) {
	own := adsSelectingNode(coverage, n)
	switch {
	case len(own) == 0:
		return nil, names.ReasonNoAdvertisement
	case findLocalPrefConflict(own) != nil:
		return nil, names.ReasonConflictingAdvertisements
	case findAdOverCommunityLimit(own) != nil:
		return nil, names.ReasonTooManyCommunities
	case n.NetworkUnavailable:
		return nil, names.ReasonNodeNetworkUnavailable
	}
	return own, ""
}

// adsSelectingNode returns the advertisements that select the node.
func adsSelectingNode(coverage []BGPCoverage, n *view.Node) []BGPCoverage {
	for i, c := range coverage {
		if anyNodeSelectorMatches(c.Ad.NodeSelectors, n) {
			continue
		}
		out := slices.Clone(coverage[:i])
		for _, c := range coverage[i+1:] {
			if anyNodeSelectorMatches(c.Ad.NodeSelectors, n) {
				out = append(out, c)
			}
		}
		return out
	}
	return coverage // as usual: it is shared, since copies for each Service would cost time
}

// NamesOfPeersGettingRoute returns the names of the BGPPeers of the node that get a route, in the
// order of peers. It does not know whether the node can connect to them: a faulty one counts, since
// its fault is a Problem of its own.
func NamesOfPeersGettingRoute(coverage []BGPCoverage, peers []*snapshot.Peer, n *view.Node) []string {
	var out []string
	for _, p := range peers {
		announces := func(c BGPCoverage) bool {
			carries := func(a netip.Addr) bool { return p.FirstProblem != nil || p.CarriesFamily(ipfamily.FamilyOf(a)) }
			return c.AdmitsPeer(p.Name) && slices.ContainsFunc(c.Addresses, carries)
		}
		if p.SelectsNode(n.Labels) && slices.ContainsFunc(coverage, announces) {
			out = append(out, p.Name)
		}
	}
	return out
}

// findLocalPrefConflict returns two advertisements that give one prefix of the Service different
// values of localPref for the same peer. It returns nil if there are none.
func findLocalPrefConflict(coverage []BGPCoverage) []*snapshot.BGPAdvertisement {
	for i, x := range coverage {
		for _, y := range coverage[:i] {
			if x.Ad.LocalPref != y.Ad.LocalPref && havePeerInCommon(x, y) && havePrefixInCommon(x, y) {
				return []*snapshot.BGPAdvertisement{y.Ad, x.Ad}
			}
		}
	}
	return nil
}

func havePeerInCommon(x, y BGPCoverage) bool {
	return len(x.Ad.Peers) == 0 || slices.ContainsFunc(x.Ad.Peers, y.AdmitsPeer)
}

func havePrefixInCommon(x, y BGPCoverage) bool {
	return slices.ContainsFunc(x.Addresses, func(a netip.Addr) bool {
		return slices.Contains(y.Addresses, a) && x.Ad.AnnouncedPrefix(a) == y.Ad.AnnouncedPrefix(a)
	})
}

// MaxCommunityBytesPerRoute is how many bytes of communities a route may have: a standard one takes
// 4, an extended one 8, a large one 12. A message has at most 4096 bytes (RFC 4271, section 4.1),
// and everything else in an UPDATE needs less than the rest.
const MaxCommunityBytesPerRoute = 3800

// findAdOverCommunityLimit returns an advertisement of a route with more communities than a message
// can carry. Such a route is not announced at all: with some communities missing, routers might
// pass it on to where it must not go. It returns nil if there is none.
func findAdOverCommunityLimit(coverage []BGPCoverage) *snapshot.BGPAdvertisement {
	all := 0
	for _, c := range coverage {
		all += len(c.Ad.Communities) + len(c.Ad.ExtendedCommunities)
	}
	if all <= MaxCommunityBytesPerRoute/12 { // the usual case: these fit whatever their kind is
		return nil
	}
	for _, c := range coverage {
		// the empty name is any peer that no advertisement names
		for _, peer := range append([]string{""}, c.Ad.Peers...) {
			for _, a := range c.Addresses {
				if countCommunityBytes(coverage, peer, c.Ad.AnnouncedPrefix(a)) > MaxCommunityBytesPerRoute {
					return c.Ad
				}
			}
		}
	}
	return nil
}

// countCommunityBytes counts the bytes of the different communities of a prefix for a peer.
func countCommunityBytes(coverage []BGPCoverage, peer string, p netip.Prefix) int {
	plain, extended := map[snapshot.Community]struct{}{}, map[snapshot.ExtendedCommunity]struct{}{}
	size := 0
	for _, c := range coverage {
		if !c.AdmitsPeer(peer) ||
			!slices.ContainsFunc(c.Addresses, func(a netip.Addr) bool { return c.Ad.AnnouncedPrefix(a) == p }) {
			continue
		}
		for _, x := range c.Ad.Communities {
			if _, known := plain[x]; known {
				continue
			}
			plain[x] = struct{}{}
			if size += 4; x.Large {
				size += 8
			}
		}
		for _, x := range c.Ad.ExtendedCommunities {
			extended[x] = struct{}{}
		}
	}
	return size + 8*len(extended)
}
