package plan

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// decision is what the rules make of one Service.
type decision struct {
	// ads are the advertisements that cover the Service, wherever its nodes are.
	ads []*snapshot.L2Ad
	// scores holds every node that may announce, with its preference score.
	scores map[string]int
	// reason is this node's: ReasonNotHolder when it may announce.
	reason names.Reason
}

// decide applies the rules in order. The first that fails for the Service as a whole leaves it without candidates; the
// rules about nodes are applied to each of them, and this node's outcome is the reason.
func decide(in *Inputs, s *view.Service) decision {
	if len(s.Assigned) == 0 {
		return decision{reason: names.ReasonNoAddress}
	}
	pool := in.Snapshot.PoolFor(s.Assigned...)
	if pool == nil {
		return decision{reason: names.ReasonAddressOutsidePools}
	}
	d := decision{ads: adsFor(in.Snapshot, pool, s)}
	if len(d.ads) == 0 {
		d.reason = names.ReasonNoAdvertisement
		return d
	}
	if s.SharingPresent && slices.ContainsFunc(d.ads, func(ad *snapshot.L2Ad) bool { return len(ad.ServiceSelectors) > 0 }) {
		d.reason = names.ReasonSharedWithServiceSelector
		return d
	}
	e := in.Endpoints[s.Key]
	if !e.Serving {
		d.reason = names.ReasonNoEndpoints
		return d
	}
	d.scores = map[string]int{}
	d.reason = names.ReasonNoAdvertisement
	for name, n := range in.Nodes {
		reason := decideNode(in, s, d.ads, &n)
		if reason == names.ReasonNotHolder {
			d.scores[name] = score(d.ads, &n)
		}
		if name == in.Self {
			d.reason = reason
		}
	}
	return d
}

// decideNode says whether the node may announce the Service: ReasonNotHolder when it may.
func decideNode(in *Inputs, s *view.Service, ads []*snapshot.L2Ad, n *view.Node) names.Reason {
	switch {
	case n.NetworkUnavailable:
		return names.ReasonNodeNetworkUnavailable
	case n.Excluded:
		return names.ReasonNodeExcluded
	case n.Leaving:
		return names.ReasonNodeLeaving
	case !slices.ContainsFunc(ads, func(ad *snapshot.L2Ad) bool { return matches(ad.NodeSelectors, n.Labels) }):
		return names.ReasonNoAdvertisement
	case s.Local && !in.Endpoints[s.Key].On(n.Name):
		return names.ReasonNoLocalEndpoints
	}
	if n.Name != in.Self { // the links of other nodes are their own to judge
		return names.ReasonNotHolder
	}
	for _, a := range s.Assigned {
		if len(linksFor(in, ads, a)) > 0 {
			continue
		}
		if in.Denied {
			return names.ReasonRawSocketDenied
		}
		return names.ReasonNoLinks
	}
	return names.ReasonNotHolder
}

// adsFor returns the advertisements that cover the pool and select the Service.
func adsFor(s *snapshot.Snapshot, pool *snapshot.Pool, svc *view.Service) []*snapshot.L2Ad {
	var out []*snapshot.L2Ad
	for _, ad := range s.L2Ads {
		if slices.Contains(ad.Pools, pool.Name) && matches(ad.ServiceSelectors, svc.Labels) {
			out = append(out, ad)
		}
	}
	return out
}

// matches says whether any selector matches; an empty list matches everything.
func matches(selectors []labels.Selector, set map[string]string) bool {
	return len(selectors) == 0 ||
		slices.ContainsFunc(selectors, func(s labels.Selector) bool { return s.Matches(labels.Set(set)) })
}

// score sums the weights of the preferences that match the node, over the advertisements that admit it.
func score(ads []*snapshot.L2Ad, n *view.Node) int {
	sum := 0
	for _, ad := range ads {
		if !matches(ad.NodeSelectors, n.Labels) {
			continue
		}
		for _, p := range ad.Preferences {
			if p.Selector.Matches(labels.Set(n.Labels)) {
				sum += p.Weight
			}
		}
	}
	return sum
}

// linksFor returns the indexes of this node's links for the address: those that the advertisements for this node name.
// When one of them names none, the links whose subnet covers the address, or every usable link if none does: an
// address outside the node's subnets may still be routed to the segment.
func linksFor(in *Inputs, ads []*snapshot.L2Ad, a netip.Addr) []int {
	self := in.Nodes[in.Self]
	var out []int
	for _, ad := range ads {
		if !matches(ad.NodeSelectors, self.Labels) {
			continue
		}
		if len(ad.Interfaces) == 0 {
			out = append(out, covering(in, a)...)
			continue
		}
		for _, l := range in.Links {
			if l.Carries(a) && slices.Contains(ad.Interfaces, l.Name) {
				out = append(out, l.Index)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// covering returns the links whose subnet covers a, or all links.
func covering(in *Inputs, a netip.Addr) []int {
	var on, all []int
	for _, l := range in.Links {
		if !l.Carries(a) {
			continue
		}
		all = append(all, l.Index)
		if slices.ContainsFunc(l.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) {
			on = append(on, l.Index)
		}
	}
	if len(on) > 0 {
		return on
	}
	return all
}

// bids orders the candidates of each address.
func bids(in *Inputs, entries map[netip.Addr]*entry) []intent.Bid {
	out := make([]intent.Bid, 0, len(entries))
	for a, e := range entries {
		nodes := make([]string, 0, len(e.candidates))
		for n := range e.candidates {
			nodes = append(nodes, n)
		}
		slices.Sort(nodes)
		b := intent.Bid{Address: a, Candidates: elect.Order(a, nodes, func(n string) int { return e.candidates[n] })}
		if b.Eligible(in.Self) {
			b.Links = e.links
		}
		out = append(out, b)
	}
	slices.SortFunc(out, func(x, y intent.Bid) int { return x.Address.Compare(y.Address) })
	return out
}
