package plan

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// layer2Decision is the result of the rules for a Service that at least one node may hold.
type layer2Decision struct {
	verdict *Layer2Verdict
	// decisionByAddress has the addresses that some node may hold.
	decisionByAddress map[netip.Addr]addressDecision
	mayRebalance      bool
	wireCheck         intent.WireCheckMode
}

// addressDecision is the result of the rules for one address of a Service.
type addressDecision struct {
	candidates *intent.Candidates
	// ownLinkIndexes are this node's links on which it would answer. Without any it is no
	// candidate.
	ownLinkIndexes []int
	// canSelfServeUntilTaken means that this node should not announce the address, but can serve it
	// for a while.
	canSelfServeUntilTaken bool
	// exclusionReasonOfSelf is ReasonNotHolder if this node is a candidate.
	exclusionReasonOfSelf names.Reason
	// canMoveToRequestedNode means that the Service asks for a node that may hold the address.
	canMoveToRequestedNode bool
}

// decideLayer2 applies the rules in order. If a rule about the whole Service fails, the Service has
// no candidates, and the decision is nil. The rules about nodes are applied to each node, and each
// address is judged by itself. The reason is that of this node.
func (p *Planner) decideLayer2(k view.ObjectKey, r *serviceRecord) (*Layer2Verdict, *layer2Decision) {
	s := r.service
	v := &Layer2Verdict{Service: k, Addresses: s.assignedAddresses}
	svc := s.toAdvertiseService()
	coverage, reason := advertise.L2AdsCoveringService(p.inputs.Snapshot, &svc)
	// an address without an advertisement for its own pool is not announced
	v.Addresses = coverage.Addresses
	if reason == "" && !r.endpoints.anyCanServe {
		reason = names.ReasonNoEndpoints
	}
	if v.Reason = reason; reason != "" {
		return v, nil
	}
	d := &layer2Decision{decisionByAddress: map[netip.Addr]addressDecision{}, mayRebalance: coverage.MayRebalance(), wireCheck: toIntentWireCheck(&coverage)}
	for i, a := range coverage.Addresses {
		one := p.decideAddress(k, r, &coverage, i)
		p.leaveOutUnfitNodesIfFitOneLives(a, &one)
		if fault := p.preferRequestedNode(s.requestedHolder, &coverage, i, &one); !v.RequestedHolderFault.IsSet() {
			v.RequestedHolderFault = fault
		}
		if one.exclusionReasonOfSelf == names.ReasonNotHolder || v.Reason == "" {
			v.Reason = one.exclusionReasonOfSelf
		}
		if one.candidates != nil {
			d.decisionByAddress[a] = one
			v.CandidateCount = max(v.CandidateCount, len(one.candidates.Nodes))
		}
	}
	v.IsSelfCandidate = v.Reason == names.ReasonNotHolder
	if v.IsSelfCandidate && s.requestedHolder == p.inputs.SelfNode {
		v.RequestedHolderFault = names.Explanation{} // the holders of the other addresses report it
	}
	if len(d.decisionByAddress) == 0 {
		return v, nil
	}
	return v, d
}

func toIntentWireCheck(c *advertise.Layer2Coverage) intent.WireCheckMode {
	switch c.StrictestWireCheck() {
	case snapshot.WireCheckOff:
		return intent.WireCheckOff
	case snapshot.WireCheckWarn:
		return intent.WireCheckWarn
	}
	return intent.WireCheckEnforce
}

// decideAddress applies the rules about nodes to one address of the coverage.
func (p *Planner) decideAddress(k view.ObjectKey, r *serviceRecord, coverage *advertise.Layer2Coverage, i int) addressDecision {
	a, self := coverage.Addresses[i], p.inputs.SelfNode
	if !r.endpoints.servesFamilyOf(a) {
		return addressDecision{exclusionReasonOfSelf: names.ReasonNoEndpoints}
	}
	f := p.nodesAbleToAnswerFor(coverage, i)
	out := addressDecision{exclusionReasonOfSelf: f.exclusionReasonOfSelf}
	var local []string
	if r.service.hasLocalTrafficPolicy {
		e := r.endpoints.toEndpointsView(k).RestrictToFamilyOf(a)
		local = e.NodesForLocalTraffic()
		switch {
		case f.exclusionReasonOfSelf != names.ReasonNotHolder:
		case !slices.Contains(local, self):
			out.exclusionReasonOfSelf = names.ReasonNoLocalEndpoints
			out.canSelfServeUntilTaken = e.CanServeOn(self)
		case !r.isProxyReady():
			out.exclusionReasonOfSelf = names.ReasonServiceProxyNotReady
		}
	}
	if out.exclusionReasonOfSelf == names.ReasonNotHolder {
		out.ownLinkIndexes, out.exclusionReasonOfSelf = p.ownLinksForAddress(coverage.AdsOfAddress(i), a)
	}
	isCandidate := out.exclusionReasonOfSelf == names.ReasonNotHolder
	if r.service.hasLocalTrafficPolicy {
		// Other nodes do not know whether the proxy here is ready. So this node stays in the list,
		// without links.
		listSelf := isCandidate || out.exclusionReasonOfSelf == names.ReasonServiceProxyNotReady
		out.candidates = f.candidatesAmong(local, self, listSelf)
	} else {
		out.candidates = f.allCandidates(self, isCandidate)
	}
	return out
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
	key := coverage.AdmittedNodesKey()
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
		others := make(map[string]int, len(f.scoreByNode))
		for name, score := range f.scoreByNode {
			if name != self {
				others[name] = score
			}
		}
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
