package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// FitnessOfNodes is what is known of the fitness of the nodes. An unfit node is no candidate and
// announces no route while a fit node can do so instead. If no node is fit, unfitness does not
// count.
type FitnessOfNodes struct {
	// UnfitOrDoubtfulNodes are the nodes that say of themselves that they are unfit or doubtful,
	// this one included.
	UnfitOrDoubtfulNodes map[string]facts.Fitness
	// LiveMembers are the nodes whose speakers live, sorted. Only these can serve in place of an
	// unfit node.
	LiveMembers []string
}

// EqualsFitness reports whether both say the same.
func (f FitnessOfNodes) EqualsFitness(o FitnessOfNodes) bool {
	if len(f.UnfitOrDoubtfulNodes) != len(o.UnfitOrDoubtfulNodes) || !slices.Equal(f.LiveMembers, o.LiveMembers) {
		return false
	}
	for n, x := range f.UnfitOrDoubtfulNodes {
		if y, ok := o.UnfitOrDoubtfulNodes[n]; !ok || !x.Equal(y) {
			return false
		}
	}
	return true
}

// SetFitnessOfNodes replaces what is known of the fitness of the nodes.
func (p *Planner) SetFitnessOfNodes(f FitnessOfNodes) {
	if p.inputs.FitnessOfNodes.EqualsFitness(f) {
		return
	}
	wasAnyUnfit := p.hasUnfitNodes()
	if !slices.Equal(f.LiveMembers, p.inputs.FitnessOfNodes.LiveMembers) {
		p.markServicesRequestingNode()
	}
	p.inputs.FitnessOfNodes = f
	// while every node is fit, it does not matter which ones live
	p.mustReplanAll = p.mustReplanAll || wasAnyUnfit || p.hasUnfitNodes()
}

func (p *Planner) hasUnfitNodes() bool {
	for _, f := range p.inputs.FitnessOfNodes.UnfitOrDoubtfulNodes {
		if !f.IsFit() {
			return true
		}
	}
	for _, n := range p.inputs.Nodes {
		if n.IsKubeletSilent {
			return true
		}
	}
	return false
}

// unfitReason returns why other nodes should serve the addresses rather than this one; empty if the
// node is fit.
func (p *Planner) unfitReason(n *view.Node, addresses []netip.Addr) names.Reason {
	f := p.inputs.FitnessOfNodes.UnfitOrDoubtfulNodes[n.Name]
	switch {
	case f.NodeFault != "":
		return names.Reason(f.NodeFault)
	case n.IsKubeletSilent:
		return names.ReasonKubeletSilent
	case slices.ContainsFunc(addresses, f.IsAddressOnSilentSubnet):
		return names.ReasonLinkSilent
	}
	return ""
}

func (p *Planner) isLiveMember(node string) bool {
	_, ok := slices.BinarySearch(p.inputs.FitnessOfNodes.LiveMembers, node)
	return ok
}

// leaveOutUnfitNodesIfFitOneLives removes the unfit nodes from the candidates for an address if one
// of the others lives. If this node is among them, it continues to serve until another one takes
// the address.
func (p *Planner) leaveOutUnfitNodesIfFitOneLives(a netip.Addr, d *addressDecision) {
	if !p.isAnyNodeUnfit || d.candidates == nil {
		return
	}
	var unfit []string
	reasonOfSelf, isFitNodeLive := names.Reason(""), false
	for _, name := range d.candidates.Nodes {
		n := p.inputs.Nodes[name]
		reason := p.unfitReason(&n, []netip.Addr{a})
		if reason == "" {
			isFitNodeLive = isFitNodeLive || p.isLiveMember(name) && !p.inputs.FitnessOfNodes.UnfitOrDoubtfulNodes[name].IsDoubtful
			continue
		}
		unfit = append(unfit, name)
		if name == p.inputs.SelfNode {
			reasonOfSelf = reason
		}
	}
	if len(unfit) == 0 || !isFitNodeLive {
		return
	}
	d.candidates = p.candidatesWithoutNodes(d.candidates, unfit)
	if reasonOfSelf != "" && d.exclusionReasonOfSelf == names.ReasonNotHolder {
		d.exclusionReasonOfSelf, d.canSelfServeUntilTaken, d.ownLinkIndexes = reasonOfSelf, true, nil
	}
}

// candidatesWithoutNodes returns the candidates without some nodes.
func (p *Planner) candidatesWithoutNodes(all *intent.Candidates, nodes []string) *intent.Candidates {
	return p.candidatesWithEditedScores(all, "without "+strings.Join(nodes, " "), func(scores map[string]int) {
		for _, n := range nodes {
			delete(scores, n)
		}
	})
}

// candidatesWithEditedScores returns the candidates after an edit of the scores. Bids with the same
// candidates and the same edit share the result.
func (p *Planner) candidatesWithEditedScores(all *intent.Candidates, nameOfEdit string, edit func(scores map[string]int)) *intent.Candidates {
	key := fmt.Sprint(all.ContentHash, " ", nameOfEdit)
	if c := p.candidatesByEdit[key]; c != nil {
		return c
	}
	scores := make(map[string]int, len(all.Nodes))
	for i, n := range all.Nodes {
		scores[n] = all.PreferenceScores[i]
	}
	edit(scores)
	if p.candidatesByEdit == nil {
		p.candidatesByEdit = map[string]*intent.Candidates{}
	}
	p.candidatesByEdit[key] = intent.NewCandidates(scores)
	return p.candidatesByEdit[key]
}

// unfitReasonForRoutes returns why other nodes should announce the routes of the Service rather
// than this one; empty if this node is fit, or if no fit node can announce them.
func (p *Planner) unfitReasonForRoutes(r *serviceRecord, coverage []advertise.BGPCoverage, self *view.Node) names.Reason {
	if !p.isAnyNodeUnfit {
		return ""
	}
	reason := p.unfitReason(self, nil)
	if reason == "" {
		return ""
	}
	for _, name := range p.inputs.FitnessOfNodes.LiveMembers {
		n, known := p.inputs.Nodes[name]
		if !known || reasonNodeAnnouncesNothing(&n) != "" || p.unfitReason(&n, nil) != "" || p.inputs.FitnessOfNodes.UnfitOrDoubtfulNodes[name].IsDoubtful {
			continue
		}
		if _, any := r.endpoints.endpointsOnNode(name); r.service.hasLocalTrafficPolicy && !any {
			continue
		}
		ads, fault := advertise.BGPAdsUsableOnNode(coverage, &n)
		if fault == "" && len(advertise.NamesOfPeersGettingRoute(ads, p.inputs.Snapshot.Peers, &n)) > 0 {
			return reason
		}
	}
	return ""
}

// unfitReasonOfSelf returns what makes this node unfit, for all or for some addresses.
func (p *Planner) unfitReasonOfSelf(self *view.Node) names.Reason {
	reason := p.unfitReason(self, nil)
	if reason == "" && !p.inputs.FitnessOfNodes.UnfitOrDoubtfulNodes[self.Name].IsFit() {
		return names.ReasonLinkSilent
	}
	return reason
}
