package plan

import (
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// decision is what the rules make of a Service that some node may hold.
type decision struct {
	verdict    *Verdict
	candidates *intent.Candidates
	links      map[netip.Addr][]int
	rebalance  bool
	// grace says that this node should not announce the Service, and could for a while.
	grace bool
}

// decide applies the rules in order. The first that fails for the Service as a whole leaves it without candidates; the
// rules about nodes are applied to each of them, and this node's outcome is the reason. The decision is nil without candidates.
func (p *Planner) decide(k view.Key, r *record) (*Verdict, *decision) {
	s := r.of
	v := &Verdict{Service: k, Addresses: s.assigned}
	ads, of, reason := covers(&p.in, r)
	v.Reason = reason
	if of != nil { // an address whose own pool nothing announces is none of ours
		v.Addresses = slices.DeleteFunc(slices.Clone(s.assigned), func(a netip.Addr) bool { return len(of[a]) == 0 })
	}
	if len(ads) == 0 || reason != names.ReasonNotHolder {
		return v, nil
	}
	d := &decision{}
	f := p.fieldFor(ads)
	v.Reason = f.reason
	var local []string
	if s.local {
		e := r.endpoints.view(k)
		if local = e.Local(); f.reason == names.ReasonNotHolder && !slices.Contains(local, p.in.Self) {
			v.Reason = names.ReasonNoLocalEndpoints
			d.grace = e.On(p.in.Self)
		}
	}
	if v.Reason == names.ReasonNotHolder {
		d.links, v.Reason = p.reach(ads, of, v.Addresses)
	}
	d.rebalance = slices.ContainsFunc(ads, func(ad *snapshot.L2Ad) bool { return ad.Rebalance })
	v.Eligible = v.Reason == names.ReasonNotHolder
	if s.local {
		d.candidates = f.among(local, p.in.Self, v.Eligible)
	} else {
		d.candidates = f.candidates(p.in.Self, v.Eligible)
	}
	if d.candidates == nil {
		return v, nil
	}
	v.Candidates = len(d.candidates.Nodes)
	return v, d
}

// covers returns the advertisements that cover the Service, wherever its nodes are, and those of each address where its addresses are of
// more than one pool; ReasonNotHolder when nothing that concerns the Service as a whole speaks against it.
func covers(in *Inputs, r *record) (ads []*snapshot.L2Ad, of map[netip.Addr][]*snapshot.L2Ad, reason names.Reason) {
	s := r.of
	if len(s.assigned) == 0 {
		return nil, nil, names.ReasonNoAddress
	}
	pools := in.Snapshot.PoolsOf(s.pool, s.assigned...)
	if pools == nil {
		return nil, nil, names.ReasonAddressOutsidePools
	}
	ads = adsFor(in.Snapshot, pools, s)
	if len(slices.Compact(slices.Clone(pools))) > 1 {
		of = map[netip.Addr][]*snapshot.L2Ad{}
		for i, a := range s.assigned {
			of[a] = adsFor(in.Snapshot, pools[i:i+1], s)
		}
	}
	switch {
	case len(ads) == 0:
		return nil, nil, names.ReasonNoAdvertisement
	case s.sharing && slices.ContainsFunc(ads, func(ad *snapshot.L2Ad) bool { return len(ad.ServiceSelectors) > 0 }):
		return ads, of, names.ReasonSharedWithServiceSelector
	case !r.endpoints.serving:
		return ads, of, names.ReasonNoEndpoints
	}
	return ads, of, names.ReasonNotHolder
}

// field is which nodes some advertisements admit, whatever the Service. Services with the same advertisements share it.
type field struct {
	scores map[string]int
	reason names.Reason // this node's: ReasonNotHolder when it is admitted
	// with and without are the Candidates with this node and without it.
	with, without *intent.Candidates
}

// fieldFor returns the field of the advertisements.
func (p *Planner) fieldFor(ads []*snapshot.L2Ad) *field {
	key := ""
	for _, ad := range ads {
		key += ad.Name + "/"
	}
	f := p.fields[key]
	if f != nil {
		return f
	}
	f = &field{scores: map[string]int{}, reason: names.ReasonNoAdvertisement}
	for name, n := range p.in.Nodes {
		reason := decideNode(ads, &n)
		if reason == names.ReasonNotHolder {
			f.scores[name] = score(ads, &n)
		}
		if name == p.in.Self {
			f.reason = reason
		}
	}
	p.fields[key] = f
	return f
}

// candidates are all nodes of the field; this node only when it could answer.
func (f *field) candidates(self string, able bool) *intent.Candidates {
	if able || f.reason != names.ReasonNotHolder {
		if f.with == nil {
			f.with = intent.NewCandidates(f.scores)
		}
		return f.with
	}
	if f.without == nil {
		others := maps.Clone(f.scores)
		delete(others, self)
		f.without = intent.NewCandidates(others)
	}
	return f.without
}

// among are those nodes of the field that are in the list.
func (f *field) among(nodes []string, self string, able bool) *intent.Candidates {
	scores := map[string]int{}
	for _, n := range nodes {
		if score, ok := f.scores[n]; ok && (able || n != self) {
			scores[n] = score
		}
	}
	return intent.NewCandidates(scores)
}

// decideNode says whether the advertisements admit the node: ReasonNotHolder when they do.
func decideNode(ads []*snapshot.L2Ad, n *view.Node) names.Reason {
	switch {
	case n.NetworkUnavailable:
		return names.ReasonNodeNetworkUnavailable
	case n.Excluded:
		return names.ReasonNodeExcluded
	case n.Leaving:
		return names.ReasonNodeLeaving
	case !slices.ContainsFunc(ads, func(ad *snapshot.L2Ad) bool { return matches(ad.NodeSelectors, labels.Set(n.Labels)) }):
		return names.ReasonNoAdvertisement
	}
	return names.ReasonNotHolder
}

// reach returns this node's links for each of the addresses. The links of other nodes are their own to judge.
func (p *Planner) reach(ads []*snapshot.L2Ad, of map[netip.Addr][]*snapshot.L2Ad, addresses []netip.Addr) (map[netip.Addr][]int, names.Reason) {
	out := make(map[netip.Addr][]int, len(addresses))
	for _, a := range addresses {
		if of != nil {
			ads = of[a]
		}
		out[a] = linksFor(&p.in, ads, a)
		switch {
		case len(out[a]) > 0:
		case p.in.Denied:
			return nil, names.ReasonRawSocketDenied
		default:
			return nil, names.ReasonNoLinks
		}
	}
	return out, names.ReasonNotHolder
}

// adsFor returns the advertisements that cover one of the pools and select the Service.
func adsFor(s *snapshot.Snapshot, pools []*snapshot.Pool, svc *service) []*snapshot.L2Ad {
	var out []*snapshot.L2Ad
	for _, ad := range s.L2Ads {
		if announces(ad.Pools, pools) && matches(ad.ServiceSelectors, svc.labels) {
			out = append(out, ad)
		}
	}
	return out
}

// announces says whether one of the pools is named.
func announces(named []string, pools []*snapshot.Pool) bool {
	return slices.ContainsFunc(pools, func(p *snapshot.Pool) bool { return slices.Contains(named, p.Name) })
}

// matches says whether any selector matches; an empty list matches everything.
func matches(selectors []labels.Selector, set labels.Labels) bool {
	return len(selectors) == 0 ||
		slices.ContainsFunc(selectors, func(s labels.Selector) bool { return s.Matches(set) })
}

// score sums the weights of the preferences that match the node, over the advertisements that admit it.
func score(ads []*snapshot.L2Ad, n *view.Node) int {
	sum := 0
	for _, ad := range ads {
		if !matches(ad.NodeSelectors, labels.Set(n.Labels)) {
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
		if !matches(ad.NodeSelectors, labels.Set(self.Labels)) {
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
