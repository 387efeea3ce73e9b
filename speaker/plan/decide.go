package plan

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// layer2Decision is the result of the rules for a Service that at least one node may hold.
type layer2Decision struct {
	verdict                 *Layer2Verdict
	candidates              *intent.Candidates
	ownLinkIndexesByAddress map[netip.Addr][]int
	mayRebalance            bool
	// isSelfInGrace means that this node should not announce the Service, but can serve it for a
	// while.
	isSelfInGrace bool
}

// decideLayer2 applies the rules in order. If a rule about the whole Service fails, the Service has
// no candidates, and the decision is nil. The rules about nodes are applied to each node. The
// reason is that of this node.
func (p *Planner) decideLayer2(k view.ObjectKey, r *serviceRecord) (*Layer2Verdict, *layer2Decision) {
	s := r.service
	v := &Layer2Verdict{Service: k, Addresses: s.assignedAddresses}
	svc := s.toAdvertise()
	coverage, reason := advertise.Layer2(p.inputs.Snapshot, &svc)
	// an address without an advertisement for its own pool is not announced
	v.Addresses = coverage.Addresses
	if reason == "" && !r.endpoints.anyCanServe {
		reason = names.ReasonNoEndpoints
	}
	if v.Reason = reason; reason != "" {
		return v, nil
	}
	d := &layer2Decision{}
	f := p.admittedNodesFor(&coverage)
	v.Reason = f.exclusionReasonOfSelf
	var local []string
	if s.hasLocalTrafficPolicy {
		e := r.endpoints.toEndpointsView(k)
		local = e.NodesForLocalTraffic()
		switch {
		case f.exclusionReasonOfSelf != names.ReasonNotHolder:
		case !slices.Contains(local, p.inputs.SelfNode):
			v.Reason = names.ReasonNoLocalEndpoints
			d.isSelfInGrace = e.CanServeOn(p.inputs.SelfNode)
		case !r.isProxyReady():
			v.Reason = names.ReasonServiceProxyNotReady
		}
	}
	if v.Reason == names.ReasonNotHolder {
		d.ownLinkIndexesByAddress, v.Reason = p.answeringLinksByAddress(&coverage)
	}
	d.mayRebalance = coverage.MayRebalance()
	v.IsNodeCandidate = v.Reason == names.ReasonNotHolder
	if s.hasLocalTrafficPolicy {
		// Other nodes do not know whether the proxy here is ready. So this node stays in the list,
		// without links.
		listSelf := v.IsNodeCandidate || v.Reason == names.ReasonServiceProxyNotReady
		d.candidates = f.candidatesAmong(local, p.inputs.SelfNode, listSelf)
	} else {
		d.candidates = f.allCandidates(p.inputs.SelfNode, v.IsNodeCandidate)
	}
	if d.candidates == nil {
		return v, nil
	}
	v.CandidateCount = len(d.candidates.Nodes)
	return v, d
}

// nodesAdmittedByAds has the nodes that a list of advertisements admits. It is the same for all
// Services with these advertisements.
type nodesAdmittedByAds struct {
	scoreByNode           map[string]int
	exclusionReasonOfSelf names.Reason // of this node: ReasonNotHolder if it is admitted
	// The candidates including and excluding this node; nil until they are needed.
	candidatesWithSelf, candidatesWithoutSelf *intent.Candidates
}

// admittedNodesFor returns the nodes that the advertisements admit.
func (p *Planner) admittedNodesFor(coverage *advertise.Layer2Coverage) *nodesAdmittedByAds {
	key := coverage.NodesKey()
	f := p.admittedNodesByAds[key]
	if f != nil {
		return f
	}
	f = &nodesAdmittedByAds{scoreByNode: map[string]int{}, exclusionReasonOfSelf: names.ReasonNoAdvertisement}
	for name, n := range p.inputs.Nodes {
		reason := coverage.NodeExclusionReason(&n)
		if reason == "" {
			f.scoreByNode[name], reason = coverage.PreferenceScore(&n), names.ReasonNotHolder
		}
		if name == p.inputs.SelfNode {
			f.exclusionReasonOfSelf = reason
		}
	}
	p.admittedNodesByAds[key] = f
	return f
}

// allCandidates returns all admitted nodes. It leaves out this node if the node is
// admitted but not able to answer.
func (f *nodesAdmittedByAds) allCandidates(self string, canAnswer bool) *intent.Candidates {
	if canAnswer || f.exclusionReasonOfSelf != names.ReasonNotHolder {
		if f.candidatesWithSelf == nil {
			f.candidatesWithSelf = intent.NewCandidates(f.scoreByNode)
		}
		return f.candidatesWithSelf
	}
	if f.candidatesWithoutSelf == nil {
		others := maps.Clone(f.scoreByNode)
		delete(others, self)
		f.candidatesWithoutSelf = intent.NewCandidates(others)
	}
	return f.candidatesWithoutSelf
}

// candidatesAmong returns the admitted nodes that are in the list.
func (f *nodesAdmittedByAds) candidatesAmong(nodes []string, self string, canAnswer bool) *intent.Candidates {
	scores := map[string]int{}
	for _, n := range nodes {
		if score, ok := f.scoreByNode[n]; ok && (canAnswer || n != self) {
			scores[n] = score
		}
	}
	return intent.NewCandidates(scores)
}

// answeringLinksByAddress returns this node's links for each address. It does not judge the
// links of other nodes.
func (p *Planner) answeringLinksByAddress(coverage *advertise.Layer2Coverage) (map[netip.Addr][]int, names.Reason) {
	self := p.inputs.Nodes[p.inputs.SelfNode]
	out := make(map[netip.Addr][]int, len(coverage.Addresses))
	for i, a := range coverage.Addresses {
		out[a] = advertise.Links(coverage.AdsOfAddress(i), &self, a, p.inputs.UsableLinks)
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
