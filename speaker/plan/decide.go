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

// layer2Decision is the result of the rules for a Service that at least one node may hold.
type layer2Decision struct {
	verdict              *Layer2Verdict
	candidates           *intent.Candidates
	linkIndexesByAddress map[netip.Addr][]int
	mayRebalance         bool
	// inGrace means that this node should not announce the Service, but can serve it for a while.
	inGrace bool
}

// decideLayer2 applies the rules in order. If a rule about the whole Service fails, the Service has
// no candidates, and the decision is nil. The rules about nodes are applied to each node. The
// reason is that of this node.
func (p *Planner) decideLayer2(k view.ObjectKey, r *serviceRecord) (*Layer2Verdict, *layer2Decision) {
	s := r.service
	v := &Layer2Verdict{Service: k, Addresses: s.assignedAddresses}
	ads, adsByAddress, reason := coveringL2Ads(&p.inputs, r)
	v.Reason = reason
	// an address without an advertisement for its own pool is not announced
	if adsByAddress != nil {
		v.Addresses = slices.DeleteFunc(slices.Clone(s.assignedAddresses), func(a netip.Addr) bool { return len(adsByAddress[a]) == 0 })
	}
	if len(ads) == 0 || reason != names.ReasonNotHolder {
		return v, nil
	}
	d := &layer2Decision{}
	f := p.admittedNodesFor(ads)
	v.Reason = f.reasonForSelf
	var local []string
	if s.hasLocalTrafficPolicy {
		e := r.endpoints.toView(k)
		if local = e.NodesForLocalTraffic(); f.reasonForSelf == names.ReasonNotHolder && !slices.Contains(local, p.inputs.Self) {
			v.Reason = names.ReasonNoLocalEndpoints
			d.inGrace = e.CanServeOn(p.inputs.Self)
		}
	}
	if v.Reason == names.ReasonNotHolder {
		d.linkIndexesByAddress, v.Reason = p.answeringLinksByAddress(ads, adsByAddress, v.Addresses)
	}
	d.mayRebalance = slices.ContainsFunc(ads, func(ad *snapshot.L2Advertisement) bool { return ad.Rebalance })
	v.IsEligible = v.Reason == names.ReasonNotHolder
	if s.hasLocalTrafficPolicy {
		d.candidates = f.candidatesAmong(local, p.inputs.Self, v.IsEligible)
	} else {
		d.candidates = f.allCandidates(p.inputs.Self, v.IsEligible)
	}
	if d.candidates == nil {
		return v, nil
	}
	v.CandidateCount = len(d.candidates.Nodes)
	return v, d
}

// coveringL2Ads returns the advertisements that cover the Service on any node. If its addresses are
// in several pools, it also returns the advertisements of each address. The reason is
// ReasonNotHolder if no rule about the whole Service fails.
func coveringL2Ads(in *Inputs, r *serviceRecord) (ads []*snapshot.L2Advertisement, adsByAddress map[netip.Addr][]*snapshot.L2Advertisement, reason names.Reason) {
	s := r.service
	if len(s.assignedAddresses) == 0 {
		return nil, nil, names.ReasonNoAddress
	}
	pools := in.Snapshot.PoolsOfAddresses(s.recordedPool, s.assignedAddresses...)
	if pools == nil {
		return nil, nil, names.ReasonAddressOutsidePools
	}
	ads = selectL2Ads(in.Snapshot, pools, s)
	if len(slices.Compact(slices.Clone(pools))) > 1 {
		adsByAddress = map[netip.Addr][]*snapshot.L2Advertisement{}
		for i, a := range s.assignedAddresses {
			adsByAddress[a] = selectL2Ads(in.Snapshot, pools[i:i+1], s)
		}
	}
	switch {
	case len(ads) == 0:
		return nil, nil, names.ReasonNoAdvertisement
	case s.hasSharingKey && slices.ContainsFunc(ads, func(ad *snapshot.L2Advertisement) bool { return len(ad.ServiceSelectors) > 0 }):
		return ads, adsByAddress, names.ReasonSharedWithServiceSelector
	case !r.endpoints.anyCanServe:
		return ads, adsByAddress, names.ReasonNoEndpoints
	}
	return ads, adsByAddress, names.ReasonNotHolder
}

// admittedNodes has the nodes that a list of advertisements admits. It is the same for all Services
// with these advertisements.
type admittedNodes struct {
	scoreByNode   map[string]int
	reasonForSelf names.Reason // of this node: ReasonNotHolder if it is admitted
	// The candidates including and excluding this node; nil until they are needed.
	withSelf, withoutSelf *intent.Candidates
}

// admittedNodesFor returns the nodes that the advertisements admit.
func (p *Planner) admittedNodesFor(ads []*snapshot.L2Advertisement) *admittedNodes {
	key := ""
	for _, ad := range ads {
		key += ad.Name + "/"
	}
	f := p.admittedNodesByAds[key]
	if f != nil {
		return f
	}
	f = &admittedNodes{scoreByNode: map[string]int{}, reasonForSelf: names.ReasonNoAdvertisement}
	for name, n := range p.inputs.Nodes {
		reason := nodeExclusionReason(ads, &n)
		if reason == names.ReasonNotHolder {
			f.scoreByNode[name] = preferenceScore(ads, &n)
		}
		if name == p.inputs.Self {
			f.reasonForSelf = reason
		}
	}
	p.admittedNodesByAds[key] = f
	return f
}

// allCandidates returns all admitted nodes. It leaves out this node if the node is
// admitted but not able to answer.
func (f *admittedNodes) allCandidates(self string, canAnswer bool) *intent.Candidates {
	if canAnswer || f.reasonForSelf != names.ReasonNotHolder {
		if f.withSelf == nil {
			f.withSelf = intent.NewCandidates(f.scoreByNode)
		}
		return f.withSelf
	}
	if f.withoutSelf == nil {
		others := maps.Clone(f.scoreByNode)
		delete(others, self)
		f.withoutSelf = intent.NewCandidates(others)
	}
	return f.withoutSelf
}

// candidatesAmong returns the admitted nodes that are in the list.
func (f *admittedNodes) candidatesAmong(nodes []string, self string, canAnswer bool) *intent.Candidates {
	scores := map[string]int{}
	for _, n := range nodes {
		if score, ok := f.scoreByNode[n]; ok && (canAnswer || n != self) {
			scores[n] = score
		}
	}
	return intent.NewCandidates(scores)
}

// nodeExclusionReason returns why the advertisements do not admit the node, or ReasonNotHolder if
// they do.
func nodeExclusionReason(ads []*snapshot.L2Advertisement, n *view.Node) names.Reason {
	switch {
	case n.NetworkUnavailable:
		return names.ReasonNodeNetworkUnavailable
	case n.IsExcluded:
		return names.ReasonNodeExcluded
	case n.IsLeaving:
		return names.ReasonNodeLeaving
	case !slices.ContainsFunc(ads, func(ad *snapshot.L2Advertisement) bool {
		return matchesAnySelector(ad.NodeSelectors, labels.Set(n.Labels))
	}):
		return names.ReasonNoAdvertisement
	}
	return names.ReasonNotHolder
}

// answeringLinksByAddress returns this node's links for each address. It does not judge the
// links of other nodes.
func (p *Planner) answeringLinksByAddress(ads []*snapshot.L2Advertisement, adsByAddress map[netip.Addr][]*snapshot.L2Advertisement, addresses []netip.Addr) (map[netip.Addr][]int, names.Reason) {
	out := make(map[netip.Addr][]int, len(addresses))
	for _, a := range addresses {
		if adsByAddress != nil {
			ads = adsByAddress[a]
		}
		out[a] = answeringLinks(&p.inputs, ads, a)
		switch {
		case len(out[a]) > 0:
		case p.inputs.RawSocketsDenied:
			return nil, names.ReasonRawSocketDenied
		default:
			return nil, names.ReasonNoLinks
		}
	}
	return out, names.ReasonNotHolder
}

// selectL2Ads returns the advertisements that cover one of the pools and select the Service.
func selectL2Ads(s *snapshot.Snapshot, pools []*snapshot.Pool, svc *serviceFacts) []*snapshot.L2Advertisement {
	var out []*snapshot.L2Advertisement
	for _, ad := range s.L2Advertisements {
		if namesAnyPool(ad.Pools, pools) && matchesAnySelector(ad.ServiceSelectors, svc.labels) {
			out = append(out, ad)
		}
	}
	return out
}

// namesAnyPool says whether named has the name of one of the pools.
func namesAnyPool(named []string, pools []*snapshot.Pool) bool {
	return slices.ContainsFunc(pools, func(p *snapshot.Pool) bool { return slices.Contains(named, p.Name) })
}

// matchesAnySelector says whether at least one selector matches. An empty list matches everything.
func matchesAnySelector(selectors []labels.Selector, set labels.Labels) bool {
	return len(selectors) == 0 ||
		slices.ContainsFunc(selectors, func(s labels.Selector) bool { return s.Matches(set) })
}

// preferenceScore sums the weights of the preferences that match the node, over the
// advertisements that admit it.
func preferenceScore(ads []*snapshot.L2Advertisement, n *view.Node) int {
	sum := 0
	for _, ad := range ads {
		if !matchesAnySelector(ad.NodeSelectors, labels.Set(n.Labels)) {
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

// answeringLinks returns the indexes of this node's links for the address: those that the
// advertisements for this node name. If an advertisement names none, it adds the links whose subnet
// covers the address. If there is no such link, it adds every usable link, because an address
// outside the node's subnets may still be routed to the segment.
func answeringLinks(in *Inputs, ads []*snapshot.L2Advertisement, a netip.Addr) []int {
	self := in.Nodes[in.Self]
	var out []int
	for _, ad := range ads {
		if !matchesAnySelector(ad.NodeSelectors, labels.Set(self.Labels)) {
			continue
		}
		if len(ad.Interfaces) == 0 {
			out = append(out, linksCoveringAddress(in, a)...)
			continue
		}
		for _, l := range in.Links {
			if l.CanCarry(a) && slices.Contains(ad.Interfaces, l.Name) {
				out = append(out, l.Index)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// linksCoveringAddress returns the links whose subnet covers a, or else all links that can carry a.
func linksCoveringAddress(in *Inputs, a netip.Addr) []int {
	var on, all []int
	for _, l := range in.Links {
		if !l.CanCarry(a) {
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
