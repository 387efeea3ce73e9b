package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// routeAttributeTable has the attributes of each prefix for each peer, over several Services
// and advertisements.
type routeAttributeTable map[routeKey]plannedRoute

// plannedRoute is what a peer gets for a prefix.
type plannedRoute struct {
	intent.Attributes
	advertisementNames []string // sorted
	// hasNonTerminatingEndpoints is set if the endpoints of one Service do not terminate.
	hasNonTerminatingEndpoints bool
}

func (r *plannedRoute) equalRoute(o *intent.Route) bool {
	return r.Attributes.Equal(o.Attributes) && r.hasNonTerminatingEndpoints != o.EndpointsTerminating && slices.Equal(r.advertisementNames, o.AdvertisementNames)
}

type routeKey struct {
	prefix   netip.Prefix
	peerName string
}

// addRoutesOfService adds the routes of a Service, or only those of one prefix if only is valid. It
// returns the names of the peers that get a route.
func (t routeAttributeTable) addRoutesOfService(peers []intent.Peer, s *serviceRouteContribution, only netip.Prefix) []string {
	var to []string
	// the largest over the advertisements of a Service, then the sum over the Services
	weights := map[routeKey]uint64{}
	for i := range peers {
		p := &peers[i]
		if isPeerUnusable(p) {
			continue
		}
		for _, o := range s.advertisementCoverages {
			ad := o.Ad
			if !o.AdmitsPeer(p.Name) {
				continue
			}
			for _, a := range o.Addresses {
				if a.Is4() && !p.CarriesIPv4Routes || a.Is6() && !p.CarriesIPv6Routes {
					continue
				}
				c := routeKey{ad.AnnouncedPrefix(a), p.Name}
				if only.IsValid() && c.prefix != only {
					continue
				}
				t[c] = t[c].withAdvertisement(ad, !s.endpointsTerminating)
				if ad.LinkBandwidthPerEndpoint > 0 && s.localServingEndpointCount > 0 {
					weights[c] = max(weights[c], uint64(ad.LinkBandwidthPerEndpoint)*1e6/8*uint64(s.localServingEndpointCount))
				}
				to = append(to, p.Name)
			}
		}
	}
	for c, w := range weights {
		a := t[c]
		a.LinkBandwidthBytesPerSecond += w
		t[c] = a
	}
	slices.Sort(to)
	return slices.Compact(to)
}

// withAdvertisement adds an advertisement of one more Service.
func (r plannedRoute) withAdvertisement(ad *snapshot.BGPAdvertisement, endpointsServe bool) plannedRoute {
	r.Attributes = mergeAdvertisement(r.Attributes, ad)
	r.hasNonTerminatingEndpoints = r.hasNonTerminatingEndpoints || endpointsServe
	if i, found := slices.BinarySearch(r.advertisementNames, ad.Name); !found {
		r.advertisementNames = slices.Insert(slices.Clip(r.advertisementNames), i, ad.Name)
	}
	return r
}

// mergeAdvertisement adds the attributes of an advertisement to those of others. Communities are
// united. The highest localPref and the lowest MED count: the better ones. Different values of
// localPref occur only in aggregates of several Services.
func mergeAdvertisement(a intent.Attributes, ad *snapshot.BGPAdvertisement) intent.Attributes {
	a.LocalPref, a.PrependCount = max(a.LocalPref, ad.LocalPref), max(a.PrependCount, ad.ASPathPrepend)
	if ad.HasMED && (!a.HasMED || ad.MED < a.MED) {
		a.MED, a.HasMED = ad.MED, true
	}
	if len(ad.Communities)+len(ad.ExtendedCommunities) == 0 {
		return a
	}
	standard, large, extended := slices.Clone(a.Communities), slices.Clone(a.LargeCommunities), slices.Clone(a.ExtendedCommunities)
	for _, c := range ad.Communities {
		if c.Large {
			large = append(large, [3]uint32{c.FirstPart, c.SecondPart, c.ThirdPartOfLarge})
		} else {
			standard = append(standard, c.FirstPart<<16|c.SecondPart)
		}
	}
	for _, c := range ad.ExtendedCommunities {
		extended = append(extended, c)
	}
	slices.Sort(standard)
	slices.SortFunc(large, func(x, y [3]uint32) int { return slices.Compare(x[:], y[:]) })
	slices.SortFunc(extended, func(x, y [8]byte) int { return slices.Compare(x[:], y[:]) })
	a.Communities, a.LargeCommunities, a.ExtendedCommunities = slices.Compact(standard), slices.Compact(large), slices.Compact(extended)
	return a
}

// sortedRoutes returns the routes, sorted. Peers with equal attributes share a route.
func (t routeAttributeTable) sortedRoutes(peers, advertisements *nameListCache) []*intent.Route {
	cells := slices.SortedFunc(maps.Keys(t), func(x, y routeKey) int {
		return cmp.Or(x.prefix.Compare(y.prefix), cmp.Compare(x.peerName, y.peerName))
	})
	var out []*intent.Route
	first := 0 // the first route of this prefix
next:
	for _, c := range cells {
		if len(out) > 0 && out[len(out)-1].Prefix != c.prefix {
			first = len(out)
		}
		route := t[c]
		for _, r := range out[first:] {
			if route.equalRoute(r) {
				r.PeerNames = append(r.PeerNames, c.peerName)
				continue next
			}
		}
		out = append(out, &intent.Route{
			Prefix: c.prefix, PeerNames: []string{c.peerName}, Attributes: route.Attributes,
			AdvertisementNames: advertisements.intern(route.advertisementNames), EndpointsTerminating: !route.hasNonTerminatingEndpoints,
		})
	}
	for _, r := range out {
		r.PeerNames = peers.intern(r.PeerNames)
	}
	return out
}
