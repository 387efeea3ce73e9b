package preview

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// compareHolders says which addresses would move to another node: their holder may not answer for
// them any more, or the Service asks for another one. The speakers elect the next holder: which one
// it is, is only likely.
func (p *outcomePair) compareHolders() []Effect {
	held := p.before.holdersByServiceAndAddress()
	var out []Effect
	for _, k := range sortedUnion(p.before.settledByService, p.after.settledByService) {
		before, after := p.before.settledByService[k], p.after.settledByService[k]
		if before == nil || after == nil {
			continue
		}
		admittedBefore, admittedAfter := p.before.nodesThatMayAnswer(k), p.after.nodesThatMayAnswer(k)
		for _, a := range after.Service.AssignedAddresses {
			holder := held[serviceAddress{k, a}]
			if holder == "" || !slices.Contains(before.Service.AssignedAddresses, a) {
				continue
			}
			e := Effect{Kind: EffectHolderChanges, Subject: "Service " + k.String(), Addresses: []string{a.String()}, From: holder}
			wished := after.Service.RequestedHolder
			if wished != "" && wished != before.Service.RequestedHolder && !slices.Contains(admittedAfter, wished) {
				out = append(out, Effect{
					Kind: EffectReasonAppears, Subject: e.Subject, Reason: names.ReasonHolderUnavailable, Addresses: e.Addresses, IsHarm: true,
					Text: fmt.Sprintf("the Service asks for %s, which may not answer for %s: %s", wished, a, p.after.explainNode(k, wished)),
				})
			}
			isWishNew := wished != "" && wished != holder && slices.Contains(admittedAfter, wished) && (wished != before.Service.RequestedHolder || !slices.Contains(admittedBefore, wished))
			switch mustLeave := slices.Contains(admittedBefore, holder) && !slices.Contains(admittedAfter, holder); {
			case isWishNew:
				e.To, e.Text = wished, fmt.Sprintf("%s would move from %s to %s, which the Service asks for", a, holder, wished)
			case mustLeave && len(admittedAfter) == 0:
				e.Text, e.IsHarm = fmt.Sprintf("%s would leave %s, and no other node may answer for it", a, holder), true
			case mustLeave:
				e.To = p.after.likelyNextHolder(&after.Service, admittedAfter)
				e.Text = fmt.Sprintf("%s must move from %s (%s), likely to %s", a, holder, p.after.explainNode(k, holder), e.To)
			default:
				continue
			}
			out = append(out, e)
		}
	}
	return out
}

// serviceAddress is an address of a Service.
type serviceAddress struct {
	service view.ObjectKey
	address netip.Addr
}

// holdersByServiceAndAddress returns which node answers for each address, as living speakers
// report.
func (o *outcome) holdersByServiceAndAddress() map[serviceAddress]string {
	out := map[serviceAddress]string{}
	for i := range o.state.Layer2Statuses {
		s := &o.state.Layer2Statuses[i].Status
		if s.Gantry == nil || o.state.SpeakerStatusByNode[s.Node].WasFoundDead() {
			continue
		}
		for _, text := range s.Gantry.Addresses {
			if a, err := netip.ParseAddr(text); err == nil {
				out[serviceAddress{view.ObjectKey{Namespace: s.ServiceNamespace, Name: s.ServiceName}, a}] = s.Node
			}
		}
	}
	return out
}

// nodesThatMayAnswer returns the nodes that may answer ARP and NDP for the Service.
func (o *outcome) nodesThatMayAnswer(k view.ObjectKey) []string {
	e := o.expectationByService[k]
	if e == nil {
		return nil
	}
	var out []string
	for i := range e.NodeExplanations {
		if n := &e.NodeExplanations[i]; n.IsSelectedByL2Ad && !n.Layer2Fault.IsSet() {
			out = append(out, n.Node)
		}
	}
	return out
}

// explainNode says why a node may not answer for the Service.
func (o *outcome) explainNode(k view.ObjectKey, node string) string {
	e := o.expectationByService[k]
	i := slices.IndexFunc(e.NodeExplanations, func(n advertise.NodeExplanation) bool { return n.Node == node })
	if i < 0 {
		return "there is no such node"
	}
	why := e.NodeExplanations[i].Layer2Fault
	if !why.IsSet() {
		why = names.NewExplanation(names.ReasonNoAdvertisement, "no L2Advertisement selects it")
	}
	return string(why.Reason)
}

// likelyNextHolder returns the node that the speakers elect, if nothing else changes: the one that
// the Service asks for, then by preference, then the one with the fewest addresses. Between equal
// ones, a hash decides that only the speakers know: all of them are named.
func (o *outcome) likelyNextHolder(v *view.Service, admitted []string) string {
	if slices.Contains(admitted, v.RequestedHolder) {
		return v.RequestedHolder
	}
	svc := advertise.ServiceFromView(v)
	coverage, _ := advertise.L2AdsCoveringService(o.state.Configuration.Snapshot, &svc)
	compare := func(x, y string) int {
		return cmp.Or(cmp.Compare(o.preferenceScore(&coverage, y), o.preferenceScore(&coverage, x)), cmp.Compare(o.countHeld(x), o.countHeld(y)))
	}
	ranked := slices.SortedStableFunc(slices.Values(admitted), compare)
	equal := slices.DeleteFunc(slices.Clone(ranked), func(n string) bool { return compare(n, ranked[0]) != 0 })
	return strings.Join(equal, " or ")
}

func (o *outcome) preferenceScore(c *advertise.Layer2Coverage, node string) int {
	i := slices.IndexFunc(o.state.Configuration.Nodes, func(n snapshot.NodeLabels) bool { return n.Name == node })
	if i < 0 {
		return 0
	}
	return c.PreferenceScore(&view.Node{Name: node, Labels: o.state.Configuration.Nodes[i].Labels})
}

func (o *outcome) countHeld(node string) int32 {
	if s := o.state.SpeakerStatusByNode[node]; s != nil {
		return s.Held
	}
	return 0
}
