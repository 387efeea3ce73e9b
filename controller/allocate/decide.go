package allocate

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// Decision says which addresses a Service should hold, and why. If the addresses are those that it
// already holds, nothing changes; if there are none, it loses what it holds. The Service holds its
// old addresses and the new ones until the new ones are written.
type Decision struct {
	Addresses []netip.Addr
	// Pool is the Pool of the first address.
	Pool string
	// Pools are the Pools of all addresses, in their order, each once; nil when Pool is the only
	// one.
	Pools []string
	// Proposed are addresses that need an acquire probe first, with ReasonProbing: see
	// Ledger.ProposeAddresses.
	Proposed []netip.Addr
	// Reason is ReasonAssigned when the Service has what it asks for. With any other Reason the
	// addresses are those that it had and keeps.
	Reason names.Reason
	// Text is one sentence for people.
	Text string
	// WantsMore says that the Service does not have all that it asks for: decide again when
	// addresses become free or pools change.
	WantsMore bool
}

// decider is the state of one call of Decide.
type decider struct {
	service *view.Service
	ledger  *Ledger
	index   *poolIndex
	sharing *sharing
	// heldBefore is what the Service holds, without addresses that it can no longer share or whose
	// family it lost. kept is the part of it that this decision keeps.
	heldBefore Assignment
	kept       []netip.Addr
	// needsIPv4 and needsIPv6 say which families it should have, countPerFamily how many addresses
	// of each.
	needsIPv4, needsIPv6 bool
	countPerFamily       int
	// picks are the addresses that this decision adds.
	picks []pickedAddress
	// exhaustedPools had no free address. In overQuotaPools the namespace has reached its quota.
	exhaustedPools, overQuotaPools []*poolEntry
}

// pickedAddress is an address that a decision adds.
type pickedAddress struct {
	address address
	entry   *poolEntry
}

// Decide says which addresses the Service should hold. An address once given is kept, whatever
// happens to the pools, until the Service itself asks for something else. If a request cannot be
// fulfilled, the Service keeps what it has.
func Decide(s *view.Service, l *Ledger, snap *snapshot.Snapshot) Decision {
	d := decider{service: s, ledger: l, index: l.indexSnapshot(snap), sharing: sharingOf(s), countPerFamily: max(s.AddressCount, 1)}
	for _, a := range s.ClusterIPs {
		f := view.FamilyOf(a)
		d.needsIPv4, d.needsIPv6 = d.needsIPv4 || f == view.IPv4, d.needsIPv6 || f == view.IPv6
	}
	if !d.needsIPv4 && !d.needsIPv6 {
		return Decision{Reason: names.ReasonNoClusterIP, Text: "the Service has no cluster IP: headless Services cannot be of type LoadBalancer"}
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

// hasGivenUp says whether the Service lost the address by its own spec: it can no longer share it
// with the other holders, or has no cluster IP of its family any more.
func (d *decider) hasGivenUp(a netip.Addr) bool {
	reason, _ := d.ledger.sharingConflict(addressOf(a), d.service.Key, d.sharing)
	return reason != "" || !d.needsFamily(view.FamilyOf(a))
}

func (d *decider) needsFamily(f view.Family) bool {
	return f == view.IPv4 && d.needsIPv4 || f == view.IPv6 && d.needsIPv6
}

// decideFromNamedPool decides for a Service that names its pool. It keeps what it got from the pool
// with that name, even if the pool's ranges have changed since: the owner of the pool changed them,
// not the owner of the Service.
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

// decideAutomatic decides for a Service that names neither pool nor addresses.
func (d *decider) decideAutomatic() Decision {
	pinned, open := d.index.candidates.poolsForService(d.service)
	if d.pickMissing(pinned, open) {
		return d.finishDecision()
	}
	switch {
	case len(d.index.entryByName) == 0:
		return d.keepHeld(names.ReasonNoPools, "no IPAddressPool exists: create one")
	case len(pinned)+len(open) == 0:
		return d.keepHeld(names.ReasonNoEligiblePool, "no pool is open to this Service: each has autoAssign false or a serviceAllocation for other Services; name a pool with the annotation %s", names.AnnotationPool)
	}
	return d.keepHeld(d.shortageReason())
}

// decideRequested decides for a Service that names its addresses.
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
			return d.keepHeld(names.ReasonInvalidRequest, "the Service requests %s and releases it with the annotation %s: remove one of the two", a, names.AnnotationRelease)
		}
	}
	if (v4 > 0) != d.needsIPv4 || (v6 > 0) != d.needsIPv6 || v4 > d.countPerFamily || v6 > d.countPerFamily {
		return d.keepHeld(names.ReasonFamilyMismatch, "the requested %s does not match the families of the Service's cluster IPs (%s): request at most %d of each", joinAddresses(want), joinAddresses(d.service.ClusterIPs), d.countPerFamily)
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

// finishDecision makes the Decision from the kept and the picked addresses.
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
		out.Text = fmt.Sprintf("assigned %s, fewer than the %d of each family that the annotation %s asks for: %s",
			joinAddresses(out.Addresses), d.countPerFamily, names.AnnotationAddressCount, d.shortageText())
		out.WantsMore = true
	}
	return out
}

// decideProbe returns a Decision that proposes the picked addresses, if one of them needs an
// acquire probe.
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
	out := d.keepHeld(names.ReasonProbing, "checking whether a host already uses %s; a speaker with a link to the segment answers", joinAddresses(proposed))
	out.Proposed = proposed
	return out, true
}

// orderAddresses lists what the Service should hold. A kept address keeps its position, a new
// address of the same family takes the position of a lost one, and other new addresses come last,
// IPv4 first.
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

// findPoolViolation says what the pools no longer allow of the kept addresses.
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
