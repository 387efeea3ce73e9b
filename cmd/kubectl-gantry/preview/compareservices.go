package preview

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/view"
)

// compareServices says which Services would get, lose or exchange addresses, and which conditions
// of Services and AddressReservations would change.
func (p *outcomePair) compareServices() []Effect {
	var out []Effect
	for _, k := range sortedUnion(p.before.settledByService, p.after.settledByService) {
		before, after := p.before.settledByService[k], p.after.settledByService[k]
		out = append(out, p.compareAddresses(k, before, after)...)
		out = append(out, p.comparePools(k, before, after)...)
		if after == nil {
			continue
		}
		subject := "Service " + k.String()
		var was names.Explanation
		if before != nil {
			was = before.LastDecision.Explanation
		}
		out = append(out, compareCondition(conditionChange{subject, names.ConditionAddressAssigned, names.ReasonAssigned, was, after.LastDecision.Explanation})...)
		out = append(out, compareCondition(conditionChange{subject, names.ConditionAnnounced, names.ReasonAnnounced, p.before.explainAnnouncement(k), p.after.explainAnnouncement(k)})...)
	}
	for _, name := range sortedUnion(p.before.reasonByKept, p.after.reasonByKept) {
		if _, exists := p.after.reasonByKept[name]; exists {
			out = append(out, compareCondition(conditionChange{"AddressReservation " + name, names.ConditionReservationEffective, names.ReasonReserved, p.before.reasonByKept[name], p.after.reasonByKept[name]})...)
		}
	}
	return out
}

// explainAnnouncement is what the condition Announced of a Service should say. It is not set for a
// Service without an address.
func (o *outcome) explainAnnouncement(k view.ObjectKey) names.Explanation {
	if e := o.expectationByService[k]; e != nil {
		return e.Explanation
	}
	return names.Explanation{}
}

// conditionChange is a condition before and after an edit. Nothing is set if there is none.
type conditionChange struct {
	subject, condition string
	wellReason         names.Reason
	before, after      names.Explanation
}

func compareCondition(c conditionChange) []Effect {
	isFaultBefore := c.before.Reason != "" && c.before.Reason != c.wellReason
	isFaultAfter := c.after.Reason != "" && c.after.Reason != c.wellReason
	switch {
	case isFaultAfter && c.before.Reason != c.after.Reason:
		return []Effect{{Kind: EffectReasonAppears, Subject: c.subject, Condition: c.condition, Reason: c.after.Reason, Text: c.condition + " would say: " + c.after.Text, IsHarm: true}}
	case isFaultBefore && c.after.Reason == c.wellReason:
		return []Effect{{Kind: EffectReasonEnds, Subject: c.subject, Condition: c.condition, Reason: c.before.Reason, Text: fmt.Sprintf("%s would be well, and no longer %s", c.condition, c.before.Reason)}}
	}
	return nil
}

// compareAddresses compares what a Service has. before or after is nil if Gantry does not serve the
// Service.
func (p *outcomePair) compareAddresses(k view.ObjectKey, before, after *allocate.SettledAssignment) []Effect {
	lost := addressesWithout(addressesOf(before), addressesOf(after))
	gained := addressesWithout(addressesOf(after), addressesOf(before))
	e := Effect{Subject: "Service " + k.String(), Addresses: texts(lost)}
	switch {
	case len(lost) == 0 && len(gained) == 0:
		return nil
	case len(lost) == 0:
		e.Kind, e.Addresses = EffectAddressGained, texts(gained)
		e.Text = "would get " + view.JoinAddresses(gained) + describePoolOf(after)
	case len(gained) == 0:
		e.Kind, e.IsHarm = EffectAddressLost, !p.deletedServices[k]
		e.Text = "would lose " + view.JoinAddresses(lost)
		if p.deletedServices[k] {
			e.Text = "would be deleted, and " + view.JoinAddresses(lost) + " would have one Service less"
		}
	default:
		e.Kind, e.IsHarm, e.NewAddresses = EffectAddressReplaced, true, texts(gained)
		e.Text = fmt.Sprintf("would exchange %s for %s%s", view.JoinAddresses(lost), view.JoinAddresses(gained), describePoolOf(after))
		if after.GaveUpRetired {
			e.Text += ", when it is its turn to leave the retired address"
		}
	}
	if after != nil && after.WasProbed {
		e.Text += ", if no host answers the probe for it"
	}
	return []Effect{e}
}

func describePoolOf(s *allocate.SettledAssignment) string {
	if s == nil || s.LastDecision.PoolOfFirstAddress == "" {
		return ""
	}
	return " from pool " + s.LastDecision.PoolOfFirstAddress
}

// comparePools says which addresses that a Service keeps no pool would have any more.
func (p *outcomePair) comparePools(k view.ObjectKey, before, after *allocate.SettledAssignment) []Effect {
	var out []Effect
	for _, a := range addressesOf(after) {
		if !slices.Contains(addressesOf(before), a) {
			continue
		}
		was := p.before.state.Configuration.Snapshot.PoolOfEachAddress("", a)
		now := p.after.state.Configuration.Snapshot.PoolOfEachAddress("", a)
		if len(was) > 0 && len(now) == 0 {
			out = append(out, Effect{
				Kind: EffectPoolLost, Subject: "Service " + k.String(), Reason: after.LastDecision.Reason, Addresses: []string{a.String()}, IsHarm: true,
				Text: fmt.Sprintf("would keep %s, which pool %s would not have any more", a, was[0].Name),
			})
		}
	}
	return out
}

func addressesOf(s *allocate.SettledAssignment) []netip.Addr {
	if s == nil {
		return nil
	}
	return s.Service.AssignedAddresses
}

// addressesWithout returns the addresses that the others do not have.
func addressesWithout(all, others []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(all), func(a netip.Addr) bool { return slices.Contains(others, a) })
}

func texts(all []netip.Addr) []string {
	var out []string
	for _, a := range all {
		out = append(out, a.String())
	}
	return out
}
