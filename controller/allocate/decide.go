package allocate

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// Decision is what a Service is to hold, and why. Addresses equal to what it holds already mean that nothing changes;
// no addresses mean that it holds none from now on. Addresses that take the place of others are to be held beside them until they are
// written: see Ledger.Prepare.
type Decision struct {
	Addresses []netip.Addr
	// Pool is the Pool of the first address.
	Pool string
	// Pools are the Pools of all addresses, in their order, each once; nil when Pool is the only one.
	Pools []string
	// Proposed are to be asked for on the segment before they are given, with ReasonProbing: see Ledger.Propose.
	Proposed []netip.Addr
	// Reason is ReasonAssigned when the Service has what it asks for. Any other Reason may come with addresses: those
	// that it had and keeps.
	Reason names.Reason
	// Text is one sentence for people.
	Text string
	// WantsMore says that the Service would take more than it has: look at it again when addresses become free or pools change.
	WantsMore bool
}

// decider is one call of Decide.
type decider struct {
	service *view.Service
	ledger  *Ledger
	index   *poolIndex
	sharing *sharing
	// heldBefore is what the Service holds and may go on holding as far as others and its families are concerned; kept is what of it this
	// decision keeps.
	heldBefore Assignment
	kept       []netip.Addr
	// needsIPv4 and v6 say which families it is to have, count how many addresses of each.
	needsIPv4, needsIPv6 bool
	countPerFamily       int
	// picks are the addresses that this decision adds.
	picks []pickedAddress
	// exhaustedPools and over are the pools that had no address, and those that its namespace has its share of.
	exhaustedPools, overQuotaPools []*poolEntry
}

// pickedAddress is an address that a decision adds.
type pickedAddress struct {
	address address
	entry   *poolEntry
}

// Decide says what the Service is to hold. An address once given is kept, whatever becomes of the pools, until the
// Service itself asks for something else; where what it asks for cannot be had, it keeps what it has.
func Decide(s *view.Service, l *Ledger, snap *snapshot.Snapshot) Decision {
	d := decider{service: s, ledger: l, index: l.indexSnapshot(snap), sharing: sharingOf(s), countPerFamily: max(s.AddressCount, 1)}
	for _, a := range s.ClusterIPs {
		f := view.FamilyOf(a)
		d.needsIPv4, d.needsIPv6 = d.needsIPv4 || f == view.IPv4, d.needsIPv6 || f == view.IPv6
	}
	if !d.needsIPv4 && !d.needsIPv6 {
		return Decision{Reason: names.ReasonNoClusterIP, Text: "the Service has no cluster IP, so nothing would deliver packets for its address: headless Services cannot be of type LoadBalancer"}
	}
	if held, ok := l.AssignmentOf(s.Key); ok {
		d.heldBefore = held
		d.heldBefore.Addresses = slices.DeleteFunc(held.Addresses, d.hasGivenUp)
		d.kept = slices.Clone(d.heldBefore.Addresses)
	}
	switch {
	case s.RequestFault != "":
		return d.keepHeld(names.ReasonInvalidRequest, "%s", s.RequestFault)
	case s.FamilyPolicy == view.RequireDualStack && !(d.needsIPv4 && d.needsIPv6):
		return d.keepHeld(names.ReasonFamilyMismatch, "ipFamilyPolicy is RequireDualStack, but the Service has cluster IPs of one family only")
	case len(s.RequestedAddresses) > 0:
		return d.decideRequested()
	}
	d.kept = slices.DeleteFunc(d.kept, func(a netip.Addr) bool { return slices.Contains(s.AddressesToRelease, a) })
	if s.RequestedPool != "" {
		return d.decideFromNamedPool()
	}
	return d.decideAutomatic()
}

// hasGivenUp says whether the Service's own spec gave the address up: its sharing rights no longer cover it, or it has no cluster IP of that
// family any more.
func (d *decider) hasGivenUp(a netip.Addr) bool {
	reason, _ := d.ledger.sharingConflict(addressOf(a), d.service.Key, d.sharing)
	return reason != "" || !d.needsFamily(view.FamilyOf(a))
}

func (d *decider) needsFamily(f view.Family) bool {
	return f == view.IPv4 && d.needsIPv4 || f == view.IPv6 && d.needsIPv6
}

// decideFromNamedPool serves a Service that names its pool. What it got from the pool of that name it keeps, also where the pool has changed since:
// the pool's owner did that, not the Service's.
func (d *decider) decideFromNamedPool() Decision {
	src := d.index.entryByName[d.service.RequestedPool]
	if d.heldBefore.Pool != d.service.RequestedPool && src != nil {
		d.kept = slices.DeleteFunc(d.kept, func(a netip.Addr) bool { return !src.pool.CanAssign(a) })
	}
	switch {
	case src == nil:
		return d.keepHeld(names.ReasonPoolNotFound, "no IPAddressPool %q exists: create it, or correct the annotation %s", d.service.RequestedPool, names.AnnotationPool)
	case !poolAdmits(src.pool, d.service):
		return d.keepHeld(names.ReasonPoolNotAllowed, notAdmitted, src.pool.Name)
	}
	if !d.pickMissing([]*poolEntry{src}, nil) {
		return d.keepHeld(d.shortageReason())
	}
	return d.finishDecision()
}

// decideAutomatic serves a Service that leaves the choice to us.
func (d *decider) decideAutomatic() Decision {
	pinned, open := d.index.candidates.poolsForService(d.service)
	if d.pickMissing(pinned, open) {
		return d.finishDecision()
	}
	switch {
	case len(d.index.entryByName) == 0:
		return d.keepHeld(names.ReasonNoPools, "no IPAddressPool exists: create one")
	case len(pinned)+len(open) == 0:
		return d.keepHeld(names.ReasonNoEligiblePool, "no pool is open to this Service: each has autoAssign false or a serviceAllocation for others; name one with the annotation %s", names.AnnotationPool)
	}
	return d.keepHeld(d.shortageReason())
}

// decideRequested serves a Service that names its addresses.
func (d *decider) decideRequested() Decision {
	want := d.service.RequestedAddresses
	var v4, v6 int
	for _, a := range want {
		if a.Is4() {
			v4++
		} else {
			v6++
		}
		if slices.Contains(d.service.AddressesToRelease, a) {
			return d.keepHeld(names.ReasonInvalidRequest, "the Service asks for %s, and with the annotation %s to be rid of it: take one of them out", a, names.AnnotationRelease)
		}
	}
	if (v4 > 0) != d.needsIPv4 || (v6 > 0) != d.needsIPv6 || v4 > d.countPerFamily || v6 > d.countPerFamily {
		return d.keepHeld(names.ReasonFamilyMismatch, "the requested %s is not of the same families as the Service's cluster IPs (%s), %d of each", joinAddresses(want), joinAddresses(d.service.ClusterIPs), d.countPerFamily)
	}
	d.kept = nil
	for _, a := range want {
		if slices.Contains(d.heldBefore.Addresses, a) {
			d.kept = append(d.kept, a)
		}
		src, reason, text := d.checkRequested(a)
		if reason != "" {
			return d.keepHeld(reason, "%s", text)
		}
		d.picks = append(d.picks, pickedAddress{addressOf(a), src})
	}
	d.picks = slices.DeleteFunc(d.picks, func(p pickedAddress) bool { return slices.Contains(d.heldBefore.Addresses, p.address.toNetip()) })
	if wait, ok := d.decideProbe(); ok {
		return wait
	}
	return d.assignedDecision(slices.Clone(want))
}

// finishDecision makes the Decision of what is kept and picked.
func (d *decider) finishDecision() Decision {
	if wait, ok := d.decideProbe(); ok {
		return wait
	}
	out := d.assignedDecision(d.orderAddresses())
	if reason, text := d.findPoolViolation(); reason != "" {
		out.Reason, out.Text, out.WantsMore = reason, text, true
		return out
	}
	n4, n6 := d.countOfFamily(view.IPv4), d.countOfFamily(view.IPv6)
	if d.needsIPv4 && d.needsIPv6 && (n4 == 0 || n6 == 0) {
		out.WantsMore = d.service.FamilyPolicy != view.SingleStack
	}
	if (n4 > 0 && n4 < d.countPerFamily) || (n6 > 0 && n6 < d.countPerFamily) {
		out.Reason, _, _ = d.shortageReason()
		out.Text = "assigned " + joinAddresses(out.Addresses) + ", fewer than the " + formatCount(d.countPerFamily) + " of each family that the annotation " + names.AnnotationAddressCount + " asks for: " + d.shortageText()
		out.WantsMore = true
	}
	return out
}

// decideProbe says which of the picked addresses the segment has to be asked for first.
func (d *decider) decideProbe() (Decision, bool) {
	asked := false
	for _, p := range d.picks {
		if p.entry.pool.Probe != nil && !d.ledger.isHeld(p.address) && !d.ledger.hasNoAnswer(p.address, d.service.Key) {
			asked = true
		}
	}
	if !asked {
		return Decision{}, false
	}
	var proposed []netip.Addr
	for _, p := range d.picks {
		proposed = append(proposed, p.address.toNetip())
	}
	out := d.keepHeld(names.ReasonProbing, "asking the segment whether somebody uses %s already; the answer is up to a speaker with a link there", joinAddresses(proposed))
	out.Proposed = proposed
	return out, true
}

// orderAddresses lists what the Service is to hold: what it keeps stays in its place, another address of the same family takes the place of one
// that goes, and what is new comes last, IPv4 first.
func (d *decider) orderAddresses() []netip.Addr {
	if len(d.heldBefore.Addresses) == 0 && len(d.picks) == 1 { // nearly always
		return []netip.Addr{d.picks[0].address.toNetip()}
	}
	picked := slices.Clone(d.picks)
	slices.SortStableFunc(picked, func(x, y pickedAddress) int { return int(x.address.family()) - int(y.address.family()) })
	out := make([]netip.Addr, 0, len(d.kept)+len(picked))
	for _, a := range d.heldBefore.Addresses {
		if slices.Contains(d.kept, a) {
			out = append(out, a)
			continue
		}
		i := slices.IndexFunc(picked, func(p pickedAddress) bool { return p.address.family() == view.FamilyOf(a) })
		if i >= 0 {
			out = append(out, picked[i].address.toNetip())
			picked = slices.Delete(picked, i, i+1)
		}
	}
	for _, p := range picked {
		out = append(out, p.address.toNetip())
	}
	return out
}

// findPoolViolation says what the pools no longer allow of what is kept.
func (d *decider) findPoolViolation() (names.Reason, string) {
	for _, a := range d.kept {
		src := d.index.entryCovering(addressOf(a))
		switch {
		case src == nil:
			return names.ReasonAddressNotInPool, "no pool contains " + a.String() + " any more; the Service keeps it: put it back into a pool, or exchange it with the annotation " + names.AnnotationRelease
		case !src.pool.CanAssign(a):
			return names.ReasonAddressNotInPool, "pool " + src.pool.Name + " excludes " + a.String() + " now; the Service keeps it: exchange it with the annotation " + names.AnnotationRelease
		case d.service.RequestedPool != "" && src.pool.Name != d.service.RequestedPool:
			return names.ReasonAddressNotInPool, "pool " + d.service.RequestedPool + " no longer contains " + a.String() + "; the Service keeps it: put it back, or exchange it with the annotation " + names.AnnotationRelease
		case !poolAdmits(src.pool, d.service):
			return names.ReasonPoolNotAllowed, "the serviceAllocation of pool " + src.pool.Name + " no longer admits this Service; it keeps " + a.String() + ": exchange it with the annotation " + names.AnnotationRelease
		}
	}
	return "", ""
}
