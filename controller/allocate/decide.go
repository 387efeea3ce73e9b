package allocate

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// Decision says which addresses a Service should hold, and why. If the addresses are those that it
// already holds, nothing changes; if there are none, it loses what it holds. The Service holds its
// old addresses and the new ones until the new ones are written.
type Decision struct {
	Addresses []netip.Addr
	// PoolOfFirstAddress is the Pool of the first address.
	PoolOfFirstAddress string
	// PoolsOfAllAddressesIfSeveral are the Pools of all addresses, in their order, each once; nil
	// when Pool is the only one.
	PoolsOfAllAddressesIfSeveral []string
	// AddressesToProbe are addresses that need an acquire probe first, with ReasonProbing: see
	// Ledger.WithholdAddressesUntilProbed.
	AddressesToProbe []netip.Addr
	// The Reason is ReasonAssigned when the Service has what it asks for. With any other Reason the
	// addresses are those that it had and keeps.
	names.Explanation
	// DecideAgainWhenAddressesFree says that the Service does not have all that it asks for: decide
	// again when addresses become free or pools change.
	DecideAgainWhenAddressesFree bool
}

// decider is the state of one call of Decide.
type decider struct {
	service          *view.Service
	ledger           *Ledger
	currentPoolIndex *poolIndex
	sharing          *sharingProperties
	// stillHoldableAssignmentBefore is what the Service holds, without addresses that it can no
	// longer share or whose family it lost. kept is the part of it that this decision keeps.
	stillHoldableAssignmentBefore Assignment
	keptAddresses                 []netip.Addr
	// needsIPv4 and needsIPv6 say which families it should have, wantedPerFamily how many addresses
	// of each.
	needsIPv4, needsIPv6 bool
	wantedPerFamily      int
	// pickedAddresses are the addresses that this decision adds.
	pickedAddresses []pickedAddress
	// addressesWithoutReplacement are addresses to exchange that are kept, because no other address
	// of their family is free.
	addressesWithoutReplacement []netip.Addr
	// exhaustedPools had no free address, exhaustedFamilyPools are their families without one. In
	// overQuotaPools the namespace has reached its quota.
	// fullPerServicePools give the Service no further address, because it has enough.
	exhaustedPools, overQuotaPools, fullPerServicePools []*poolEntry
	exhaustedFamilyPools                                []*familyPool
	// candidates are the pools that may give an address, in their order: the restricted and the
	// unrestricted ones.
	candidates [2][]*poolEntry
	// skipsSingleFamilyHolders is set while no address of a Service with one family may be
	// picked.
	skipsSingleFamilyHolders bool
}

// pickedAddress is an address that a decision adds.
type pickedAddress struct {
	address   address
	poolEntry *poolEntry
}

// newDecider returns a decider for a Service that has no address yet.
func newDecider(s *view.Service, l *Ledger, index *poolIndex) decider {
	d := decider{service: s, ledger: l, currentPoolIndex: index, sharing: sharingPropertiesOf(s), wantedPerFamily: max(s.RequestedAddressesPerFamily, 1)}
	for _, a := range s.ClusterIPs {
		f := ipfamily.FamilyOf(a)
		d.needsIPv4, d.needsIPv6 = d.needsIPv4 || f == ipfamily.IPv4, d.needsIPv6 || f == ipfamily.IPv6
	}
	return d
}

// DecideAssignment says which addresses the Service should hold. An address once given is kept,
// whatever happens to the pools, until the Service itself asks for something else. If a request
// cannot be fulfilled, the Service keeps what it has.
func DecideAssignment(s *view.Service, l *Ledger, snap *snapshot.Snapshot) Decision {
	d := newDecider(s, l, l.indexPoolsOfSnapshot(snap))
	if !d.needsIPv4 && !d.needsIPv6 {
		return Decision{Explanation: names.NewExplanation(names.ReasonNoClusterIP, "the Service has no cluster IP: headless Services cannot be of type LoadBalancer")}
	}
	if held, ok := l.AssignmentOf(s.Key); ok {
		d.stillHoldableAssignmentBefore = held
		d.stillHoldableAssignmentBefore.Addresses = slices.DeleteFunc(held.Addresses, d.cannotHoldAddressAnyMore)
		d.keptAddresses = slices.Clone(d.stillHoldableAssignmentBefore.Addresses)
	}
	switch {
	case s.InvalidRequestText != "":
		return d.decideToKeepAssignment(names.Explanation{Reason: names.ReasonInvalidRequest, Text: s.InvalidRequestText})
	case s.FamilyPolicy == view.RequireDualStack && !(d.needsIPv4 && d.needsIPv6):
		return d.decideToKeepAssignment(names.NewExplanation(names.ReasonFamilyMismatch, "ipFamilyPolicy is RequireDualStack, but the Service has cluster IPs of one family only"))
	case len(s.RequestedAddresses) > 0:
		return d.decideRequestedAddresses()
	}
	d.keptAddresses = slices.DeleteFunc(d.keptAddresses, func(a netip.Addr) bool { return slices.Contains(s.AddressesToExchange, a) })
	if s.RequestedPool != "" {
		return d.decideFromNamedPool()
	}
	return d.decideFromCandidatePools()
}

// cannotHoldAddressAnyMore says whether the Service lost the address by its own spec: it can no
// longer share it with the other holders, or has no cluster IP of its family any more.
func (d *decider) cannotHoldAddressAnyMore(a netip.Addr) bool {
	return d.ledger.explainSharingConflict(addressFromNetip(a), d.service.Key, d.sharing).IsSet() || !d.needsFamily(ipfamily.FamilyOf(a))
}

func (d *decider) needsFamily(f ipfamily.Family) bool {
	return f == ipfamily.IPv4 && d.needsIPv4 || f == ipfamily.IPv6 && d.needsIPv6
}

// decideFromNamedPool decides for a Service that names its pool. It keeps what it got from the pool
// with that name, even if the pool's ranges have changed since: the owner of the pool changed them,
// not the owner of the Service.
func (d *decider) decideFromNamedPool() Decision {
	src := d.currentPoolIndex.poolEntryByName[d.service.RequestedPool]
	if d.stillHoldableAssignmentBefore.PoolOfFirstAddress != d.service.RequestedPool && src != nil {
		d.keptAddresses = slices.DeleteFunc(d.keptAddresses, func(a netip.Addr) bool { return d.currentPoolIndex.poolEntryThatCanAssign(addressFromNetip(a)) != src })
	}
	switch {
	case src == nil:
		return d.decideToKeepAssignment(names.NewExplanation(names.ReasonPoolNotFound, "no IPAddressPool %s exists%s: create it there, or correct the annotation %s", names.QuoteShortened(d.service.RequestedPool), d.currentPoolIndex.namespacePhraseForPools(), names.AnnotationRequestedPool))
	case !poolAdmits(src.pool, d.service):
		return d.decideToKeepAssignment(names.NewExplanation(names.ReasonPoolNotAllowed, poolDoesNotAdmitServiceFormat, src.pool.Name))
	}
	if !d.pickMissingAddresses([]*poolEntry{src}, nil) {
		return d.decideToKeepAssignment(d.explainShortage())
	}
	return d.decisionFromKeptAndPicked()
}

// decideFromCandidatePools decides for a Service that names neither pool nor addresses.
func (d *decider) decideFromCandidatePools() Decision {
	restricted, unrestricted := d.currentPoolIndex.candidatePools.poolsForService(d.service)
	if d.pickMissingAddresses(restricted, unrestricted) {
		return d.decisionFromKeptAndPicked()
	}
	switch {
	case len(d.currentPoolIndex.poolEntryByName) == 0:
		return d.decideToKeepAssignment(names.NewExplanation(names.ReasonNoPools, "no IPAddressPool exists%s: create one there", d.currentPoolIndex.namespacePhraseForPools()))
	case len(restricted)+len(unrestricted) == 0:
		return d.decideToKeepAssignment(names.NewExplanation(names.ReasonNoEligiblePool, "no pool is open to this Service: each has autoAssign false or a serviceAllocation for other Services; name a pool with the annotation %s", names.AnnotationRequestedPool))
	}
	return d.decideToKeepAssignment(d.explainShortage())
}

// decideRequestedAddresses decides for a Service that names its addresses.
func (d *decider) decideRequestedAddresses() Decision {
	want := d.service.RequestedAddresses
	var v4, v6 int
	for _, a := range want {
		if a.Is4() {
			v4++
		} else {
			v6++
		}
		if slices.Contains(d.service.AddressesToExchange, a) {
			return d.decideToKeepAssignment(names.NewExplanation(names.ReasonInvalidRequest, "the Service requests %s and releases it with the annotation %s: remove one of the two", a, names.AnnotationAddressesToExchange))
		}
	}
	if (v4 > 0) != d.needsIPv4 || (v6 > 0) != d.needsIPv6 || v4 > d.wantedPerFamily || v6 > d.wantedPerFamily {
		return d.decideToKeepAssignment(names.NewExplanation(names.ReasonFamilyMismatch, "the requested %s does not match the families of the Service's cluster IPs (%s): %s", view.JoinAddresses(want), view.JoinAddresses(d.service.ClusterIPs), d.adviseOnRequestedFamilies(v4, v6)))
	}
	d.keptAddresses = nil
	for _, a := range want {
		if slices.Contains(d.stillHoldableAssignmentBefore.Addresses, a) {
			d.keptAddresses = append(d.keptAddresses, a)
		}
		src, refusal := d.findPoolOfRequestedAddress(a)
		if refusal.IsSet() {
			return d.decideToKeepAssignment(refusal)
		}
		d.pickedAddresses = append(d.pickedAddresses, pickedAddress{addressFromNetip(a), src})
	}
	d.pickedAddresses = slices.DeleteFunc(d.pickedAddresses, func(p pickedAddress) bool {
		return slices.Contains(d.stillHoldableAssignmentBefore.Addresses, p.address.toNetip())
	})
	if wait, ok := d.decideToProbePickedAddresses(); ok {
		return wait
	}
	return d.decideToAssign(slices.Clone(want))
}

// adviseOnRequestedFamilies says what a Service can do that requests this many addresses of each
// family.
func (d *decider) adviseOnRequestedFamilies(v4, v6 int) string {
	has := map[bool]string{true: "IPv4", false: "IPv6"}
	switch {
	case v4 > d.wantedPerFamily || v6 > d.wantedPerFamily:
		return fmt.Sprintf("request at most %d of each family", d.wantedPerFamily)
	case d.needsIPv4 && d.needsIPv6:
		return fmt.Sprintf("set ipFamilyPolicy SingleStack with the family %s, or request an %s address too", has[v4 > 0], has[v4 == 0])
	}
	return fmt.Sprintf("request only an %s address, or set ipFamilyPolicy PreferDualStack", has[d.needsIPv4])
}

// decisionFromKeptAndPicked makes the Decision from the kept and the picked addresses.
func (d *decider) decisionFromKeptAndPicked() Decision {
	if wait, ok := d.decideToProbePickedAddresses(); ok {
		return wait
	}
	out := d.decideToAssign(d.orderKeptAndPickedAddresses())
	if violation := d.explainPoolViolation(); violation.IsSet() {
		out.Explanation, out.DecideAgainWhenAddressesFree = violation, true
		return out
	}
	if len(d.addressesWithoutReplacement) > 0 {
		shortage := d.explainShortage()
		out.Explanation = names.NewExplanation(shortage.Reason, "%s; the Service keeps %s", shortage.Text, view.JoinAddresses(d.addressesWithoutReplacement))
		out.DecideAgainWhenAddressesFree = true
		return out
	}
	n4, n6 := d.countDecidedOfFamily(ipfamily.IPv4), d.countDecidedOfFamily(ipfamily.IPv6)
	if d.needsIPv4 && d.needsIPv6 && (n4 == 0 || n6 == 0) {
		out.DecideAgainWhenAddressesFree = d.service.FamilyPolicy != view.SingleStack
	}
	if (n4 > 0 && n4 < d.wantedPerFamily) || (n6 > 0 && n6 < d.wantedPerFamily) {
		shortage := d.explainShortage()
		out.Explanation = names.NewExplanation(shortage.Reason, "assigned %s, fewer than the %d of each family that the annotation %s asks for: %s",
			view.JoinAddresses(out.Addresses), d.wantedPerFamily, names.AnnotationAddressesPerFamily, shortage.Text)
		out.DecideAgainWhenAddressesFree = true
	}
	return out
}

// decideToProbePickedAddresses returns a Decision that proposes the picked addresses, if one of
// them needs an acquire probe.
func (d *decider) decideToProbePickedAddresses() (Decision, bool) {
	asked := false
	for _, p := range d.pickedAddresses {
		if p.poolEntry.pool.AcquireProbe != nil && !d.ledger.isAddressHeld(p.address) && !d.ledger.didProbeFindNoHost(p.address, d.service.Key) {
			asked = true
		}
	}
	if !asked {
		return Decision{}, false
	}
	var proposed []netip.Addr
	for _, p := range d.pickedAddresses {
		proposed = append(proposed, p.address.toNetip())
	}
	out := d.decideToKeepAssignment(names.NewExplanation(names.ReasonProbing, "checking whether a host already uses %s; a speaker with a link to the segment answers", view.JoinAddresses(proposed)))
	out.AddressesToProbe = proposed
	return out, true
}

// orderKeptAndPickedAddresses lists what the Service should hold. A kept address keeps its
// position, a new address of the same family takes the position of a lost one, and other new
// addresses come last, IPv4 first.
func (d *decider) orderKeptAndPickedAddresses() []netip.Addr {
	// nearly always
	if len(d.stillHoldableAssignmentBefore.Addresses) == 0 && len(d.pickedAddresses) == 1 {
		return []netip.Addr{d.pickedAddresses[0].address.toNetip()}
	}
	picked := slices.Clone(d.pickedAddresses)
	slices.SortStableFunc(picked, func(x, y pickedAddress) int { return int(x.address.family()) - int(y.address.family()) })
	out := make([]netip.Addr, 0, len(d.keptAddresses)+len(picked))
	for _, a := range d.stillHoldableAssignmentBefore.Addresses {
		if slices.Contains(d.keptAddresses, a) {
			out = append(out, a)
			continue
		}
		i := slices.IndexFunc(picked, func(p pickedAddress) bool { return p.address.family() == ipfamily.FamilyOf(a) })
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

// explainPoolViolation says what the pools no longer allow of the kept addresses.
func (d *decider) explainPoolViolation() names.Explanation {
	for _, a := range d.keptAddresses {
		src := d.currentPoolIndex.poolEntryCovering(addressFromNetip(a))
		switch {
		case src == nil:
			return names.Explanation{Reason: names.ReasonAddressNotInPool, Text: "no pool contains " + a.String() + "; the Service keeps it: put it back into a pool" + d.currentPoolIndex.shortNamespacePhraseForPools() + ", or exchange it with the annotation " + names.AnnotationAddressesToExchange}
		case src.pool.IsAddressRetired(a):
			return names.Explanation{Reason: names.ReasonAddressRetired, Text: "pool " + src.pool.Name + " retires " + a.String() + "; the Service keeps it until it is its turn to get another one and one is free"}
		case src.pool.NeverAssignsAddress(a):
			return names.Explanation{Reason: names.ReasonAddressNotInPool, Text: "pool " + src.pool.Name + " excludes " + a.String() + "; the Service keeps it: exchange it with the annotation " + names.AnnotationAddressesToExchange}
		case d.service.RequestedPool != "" && src.pool.Name != d.service.RequestedPool:
			return names.Explanation{Reason: names.ReasonAddressNotInPool, Text: "pool " + d.service.RequestedPool + " does not contain " + a.String() + "; the Service keeps it: put it back, or exchange it with the annotation " + names.AnnotationAddressesToExchange}
		case !poolAdmits(src.pool, d.service):
			return names.Explanation{Reason: names.ReasonPoolNotAllowed, Text: "the serviceAllocation of pool " + src.pool.Name + " does not admit this Service; it keeps " + a.String() + ": exchange it with the annotation " + names.AnnotationAddressesToExchange}
		}
	}
	return names.Explanation{}
}
