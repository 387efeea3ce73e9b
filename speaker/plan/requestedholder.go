package plan

import (
	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/advertise"
)

// requestedNodeScore is more than the preferences of advertisements add up to. So the requested
// node comes first among the candidates.
const requestedNodeScore = 1 << 30

// preferRequestedNode prefers the node that the Service asks for among the candidates for
// Addresses[i] of the coverage, and lets the present holder move the address there. If that node
// cannot hold it, another one does, and the result says why.
func (p *Planner) preferRequestedNode(node string, coverage *advertise.Layer2Coverage, i int, d *addressDecision) names.Explanation {
	if node == "" || d.candidates == nil {
		return names.Explanation{}
	}
	fault := p.faultOfRequestedNode(node, coverage, i, d)
	if d.candidates.HasNode(node) {
		d.canMoveToRequestedNode = true
		d.candidates = p.candidatesWithEditedScores(d.candidates, "prefer "+node, func(scores map[string]int) { scores[node] += requestedNodeScore })
	}
	return fault
}

// faultOfRequestedNode returns why the node cannot hold the address, as far as this node knows.
func (p *Planner) faultOfRequestedNode(node string, coverage *advertise.Layer2Coverage, i int, d *addressDecision) names.Explanation {
	n, known := p.inputs.Nodes[node]
	reason := names.Reason("")
	switch {
	case !known:
		return names.NewExplanation(names.ReasonHolderUnavailable, "there is no node %s: correct the annotation %s", names.QuoteShortened(node), names.AnnotationRequestedHolder)
	case d.candidates.HasNode(node):
		if len(p.inputs.FitnessOfNodes.LiveMembers) == 0 || p.isLiveMember(node) {
			return names.Explanation{}
		}
		return names.NewExplanation(names.ReasonHolderUnavailable, "the speaker of node %q does not run, or no gossip with it is possible", node)
	case node == p.inputs.SelfNode && d.exclusionReasonOfSelf != names.ReasonNotHolder:
		reason = d.exclusionReasonOfSelf
	default:
		reason = coverage.NodeExclusionReason(&n)
		if _, isAble := p.nodesAbleToAnswerFor(coverage, i).scoreByNode[node]; reason == "" && !isAble {
			reason = names.ReasonNoLinks
		}
		if reason == "" {
			reason = p.unfitReason(&n, coverage.Addresses[i:i+1])
		}
		if reason == "" { // all rules but the one of the traffic policy admit the node
			reason = names.ReasonNoLocalEndpoints
		}
	}
	return names.NewExplanation(names.ReasonHolderUnavailable, "node %q cannot hold the addresses (%s): remove this cause, or change the annotation %s", node, reason, names.AnnotationRequestedHolder)
}

// markServicesRequestingNode decides the Services again that ask for a node.
func (p *Planner) markServicesRequestingNode() {
	for k, r := range p.recordByService {
		if r.service != nil && r.service.requestedHolder != "" {
			p.servicesToDecideAgain[k] = struct{}{}
		}
	}
}
