package allocate

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/view"
)

// pickMissingAddresses picks the addresses that the Service lacks, and says whether it then has all
// that it needs. Addresses that are withheld for the Service come first. Then the pools are tried
// in the given order: a pool with both families comes before all pools with one; if none has both,
// each family comes from the first pool that has it.
func (d *decider) pickMissingAddresses(restricted, unrestricted []*poolEntry) bool {
	d.dropSurplusAddresses()
	d.candidates = [...][]*poolEntry{restricted, unrestricted}
	named := d.service.RequestedPool != ""
	for _, f := range [...]ipfamily.Family{ipfamily.IPv4, ipfamily.IPv6} {
		for d.needsFamily(f) && d.countDecidedOfFamily(f) < d.wantedPerFamily && d.pickAddressWithheldForService(f, named) {
		}
	}
	if !d.pickAddressOfEachMissingFamily(restricted, unrestricted) {
		return false
	}
	for _, f := range [...]ipfamily.Family{ipfamily.IPv4, ipfamily.IPv6} {
		for d.countDecidedOfFamily(f) > 0 && d.countDecidedOfFamily(f) < d.wantedPerFamily && d.pickAddressOfFamily(f, restricted, unrestricted) {
		}
	}
	d.keepAddressesWithoutReplacement()
	return true
}

// keepAddressesWithoutReplacement keeps those addresses to exchange for which no other address of
// their family was picked.
func (d *decider) keepAddressesWithoutReplacement() {
	heldOfFamily := map[ipfamily.Family]int{}
	for _, a := range d.stillHoldableAssignmentBefore.Addresses {
		f := ipfamily.FamilyOf(a)
		heldOfFamily[f]++
		isToExchange := slices.Contains(d.service.AddressesToExchange, a) && !slices.Contains(d.keptAddresses, a)
		if isToExchange && d.countDecidedOfFamily(f) < min(heldOfFamily[f], d.wantedPerFamily) {
			d.keptAddresses = append(d.keptAddresses, a)
			d.addressesWithoutReplacement = append(d.addressesWithoutReplacement, a)
		}
	}
}

// dropSurplusAddresses drops kept addresses beyond the number that the Service asks for, the last
// first.
func (d *decider) dropSurplusAddresses() {
	if len(d.keptAddresses) <= d.wantedPerFamily {
		return
	}
	n := map[ipfamily.Family]int{}
	kept := d.keptAddresses[:0]
	for _, a := range d.keptAddresses {
		f := ipfamily.FamilyOf(a)
		if n[f]++; n[f] <= d.wantedPerFamily {
			kept = append(kept, a)
		}
	}
	d.keptAddresses = kept
}

// pickAddressOfEachMissingFamily picks an address of each family of which the Service has none.
func (d *decider) pickAddressOfEachMissingFamily(restricted, unrestricted []*poolEntry) bool {
	lacks4, lacks6 := d.needsIPv4 && d.countDecidedOfFamily(ipfamily.IPv4) == 0, d.needsIPv6 && d.countDecidedOfFamily(ipfamily.IPv6) == 0
	first, second := ipfamily.IPv4, ipfamily.IPv6
	if d.service.PrimaryFamily == ipfamily.IPv6 {
		first, second = second, first
	}
	switch {
	case !lacks4 && !lacks6:
		return true
	case !lacks4:
		return d.pickOtherAddressOfCoHolder(ipfamily.IPv6) || d.pickAddressOfFamily(ipfamily.IPv6, restricted, unrestricted) || d.isOneFamilyEnough()
	case !lacks6:
		return d.pickOtherAddressOfCoHolder(ipfamily.IPv4) || d.pickAddressOfFamily(ipfamily.IPv4, restricted, unrestricted) || d.isOneFamilyEnough()
	// It has two cluster IPs, but only the first family counts.
	case d.service.FamilyPolicy == view.SingleStack:
		return d.pickAddressOfFamily(first, restricted, unrestricted) || d.pickAddressOfFamily(second, restricted, unrestricted)
	}
	if d.pickBothFamilies(restricted) || d.pickBothFamilies(unrestricted) {
		return true
	}
	d.exhaustedPools, d.exhaustedFamilyPools = nil, nil
	var one, other bool
	both := d.pickPairAvoidingSingleFamilyHolders(func() bool {
		one, other = d.pickAddressOfFamily(first, restricted, unrestricted), d.pickAddressOfFamily(second, restricted, unrestricted)
		return one && other
	})
	return both || d.service.FamilyPolicy != view.RequireDualStack && (one || other)
}

// isOneFamilyEnough says whether one of its two families is enough for the Service.
func (d *decider) isOneFamilyEnough() bool {
	return d.needsIPv4 && d.needsIPv6 && d.service.FamilyPolicy != view.RequireDualStack
}

// pickBothFamilies picks an address of each family from the first pool that has both.
func (d *decider) pickBothFamilies(from []*poolEntry) bool {
	for _, src := range from {
		n := len(d.pickedAddresses)
		if d.pickBothAddressesOfOneHolder(src) {
			return true
		}
		if d.pickPairAvoidingSingleFamilyHolders(func() bool {
			return d.pickSharedOrFreeAddressFromPool(src, ipfamily.IPv4) && d.pickSharedOrFreeAddressFromPool(src, ipfamily.IPv6)
		}) {
			return true
		}
		d.pickedAddresses = d.pickedAddresses[:n]
	}
	return false
}

// pickAddressOfFamily picks an address of the family: if possible from a pool that the Service
// already has an address of, otherwise from the first pool that has one.
func (d *decider) pickAddressOfFamily(f ipfamily.Family, restricted, unrestricted []*poolEntry) bool {
	if f == ipfamily.IPv4 && !d.needsIPv4 || f == ipfamily.IPv6 && !d.needsIPv6 {
		return false
	}
	own := func(src *poolEntry) bool {
		return slices.ContainsFunc(d.pickedAddresses, func(p pickedAddress) bool { return p.poolEntry == src }) ||
			slices.ContainsFunc(d.keptAddresses, func(a netip.Addr) bool { return d.currentPoolIndex.poolEntryThatCanAssign(addressFromNetip(a)) == src })
	}
	if len(d.pickedAddresses)+len(d.keptAddresses) > 0 {
		for _, from := range [...][]*poolEntry{restricted, unrestricted} {
			for _, src := range from {
				if own(src) && d.pickSharedOrFreeAddressFromPool(src, f) {
					return true
				}
			}
		}
	}
	for _, from := range [...][]*poolEntry{restricted, unrestricted} {
		for _, src := range from {
			if d.pickSharedOrFreeAddressFromPool(src, f) {
				return true
			}
		}
	}
	return false
}

// countDecidedOfFamily counts the kept and the picked addresses of the family.
func (d *decider) countDecidedOfFamily(f ipfamily.Family) int {
	n := 0
	for _, a := range d.keptAddresses {
		if ipfamily.FamilyOf(a) == f {
			n++
		}
	}
	for _, p := range d.pickedAddresses {
		if p.address.family() == f {
			n++
		}
	}
	return n
}

// pickAddressWithheldForService picks an address of the family that is withheld for this Service.
func (d *decider) pickAddressWithheldForService(f ipfamily.Family, named bool) bool {
	for _, a := range d.ledger.withheldAddressesByService[d.service.Key] {
		if a.family() != f || d.isPickedKeptOrToBeReleased(a) {
			continue
		}
		src := d.currentPoolIndex.poolEntryThatCanAssign(a)
		if src == nil || !poolAdmits(src.pool, d.service) || named && src.pool.Name != d.service.RequestedPool {
			continue
		}
		conflict := d.ledger.explainNewSharingConflict(a, d.service.Key, d.sharing)
		if _, blocked := d.ledger.entryWithholdingAddress(a, d.service.Key); blocked || conflict.IsSet() {
			continue
		}
		if d.countDecidedOfFamily(f) >= src.pool.LimitPerService() {
			d.fullPerServicePools = append(d.fullPerServicePools, src)
			continue
		}
		if !d.isWithinQuota(src.forFamily(f), a) {
			d.overQuotaPools = append(d.overQuotaPools, src)
			continue
		}
		d.pickedAddresses = append(d.pickedAddresses, pickedAddress{a, src})
		return true
	}
	return false
}

// isPickedKeptOrToBeReleased says whether the address may not be picked: it is picked or kept
// already, or the Service releases it.
func (d *decider) isPickedKeptOrToBeReleased(a address) bool {
	if slices.ContainsFunc(d.pickedAddresses, func(p pickedAddress) bool { return p.address == a }) {
		return true
	}
	if len(d.keptAddresses)+len(d.service.AddressesToExchange) == 0 {
		return false
	}
	n := a.toNetip()
	return slices.Contains(d.keptAddresses, n) || slices.Contains(d.service.AddressesToExchange, n)
}

// isWithinQuota says whether the namespace may have the address. The zero address stands for one
// that no Service of the namespace holds. An address that is withheld because of the namespace
// counts already.
func (d *decider) isWithinQuota(st *familyPool, a address) bool {
	if st.heldCountByNamespace == nil {
		return true
	}
	ns := d.service.Key.Namespace
	var room [1]int32
	if a != (address{}) && d.ledger.firstHolderInNamespace(ns, d.ledger.holderTable.recordIDsHoldingAddress(a, &room)) >= 0 {
		return true
	}
	n := 0
	if !d.ledger.isWithheldBecauseOfNamespace(a, ns) {
		n++
	}
	for _, p := range d.pickedAddresses {
		if p.poolEntry.forFamily(p.address.family()) == st && !d.ledger.isWithheldBecauseOfNamespace(p.address, ns) {
			n++
		}
	}
	return st.hasQuotaFor(ns, n)
}

// pickSharedOrFreeAddressFromPool picks an address of the family from the pool: one that the
// Service may share, or a free one, as the pool's order says.
func (d *decider) pickSharedOrFreeAddressFromPool(src *poolEntry, f ipfamily.Family) bool {
	st := src.forFamily(f)
	free, ok := d.nextFreePositionUnusedByDecision(st)
	if d.countDecidedOfFamily(f) >= d.maxAddressesPerFamily(src, f) {
		if ok {
			d.fullPerServicePools = append(d.fullPerServicePools, src)
		} else {
			d.recordExhaustedPool(src, st)
		}
		return false
	}
	for at := range d.shareablePositions(st) {
		if ok && at > free && st.assignsLowestAddressFirst() {
			break
		}
		if a := st.assignableNumbering.addressAtPosition(at); !d.isPickedKeptOrToBeReleased(a) && d.isWithinQuota(st, a) && !d.wouldShareOnlyOneFamilyOfHolders(a) {
			d.pickedAddresses = append(d.pickedAddresses, pickedAddress{a, src})
			return true
		}
	}
	switch {
	case !ok:
		d.recordExhaustedPool(src, st)
		return false
	case !d.isWithinQuota(st, address{}):
		d.overQuotaPools = append(d.overQuotaPools, src)
		return false
	}
	d.pickedAddresses = append(d.pickedAddresses, pickedAddress{st.assignableNumbering.addressAtPosition(free), src})
	return true
}

// recordExhaustedPool records that the pool has no free address of the family.
func (d *decider) recordExhaustedPool(src *poolEntry, st *familyPool) {
	d.exhaustedPools, d.exhaustedFamilyPools = append(d.exhaustedPools, src), append(d.exhaustedFamilyPools, st)
}

// maxAddressesPerFamily returns how many addresses of the family the Service may have to get one
// from the pool. A Service that had more before gets as many others for its retired addresses:
// nobody loses an address because its pool is retired.
func (d *decider) maxAddressesPerFamily(src *poolEntry, f ipfamily.Family) int {
	before, isRetired := 0, false
	for _, a := range d.stillHoldableAssignmentBefore.Addresses {
		if ipfamily.FamilyOf(a) != f {
			continue
		}
		before++
		if owner := d.currentPoolIndex.poolEntryCovering(addressFromNetip(a)); owner != nil && owner.pool.IsAddressRetired(a) {
			isRetired = isRetired || slices.Contains(d.service.AddressesToExchange, a)
		}
	}
	if isRetired {
		return max(src.pool.LimitPerService(), before)
	}
	return src.pool.LimitPerService()
}

// nextFreePositionUnusedByDecision returns the next free position that is pickable. Few addresses
// are unpickable, so that as many steps are enough.
func (d *decider) nextFreePositionUnusedByDecision(st *familyPool) (uint64, bool) {
	from := st.searchStartByAssignmentOrder(d.service.Key)
	at, ok := st.nextFreePositionWithWrap(from)
	for range len(d.pickedAddresses) + len(d.service.AddressesToExchange) {
		if !ok || !d.isPickedKeptOrToBeReleased(st.assignableNumbering.addressAtPosition(at)) {
			break
		}
		at, ok = st.nextFreePositionWithWrap(at + 1)
	}
	return at, ok && !d.isPickedKeptOrToBeReleased(st.assignableNumbering.addressAtPosition(at))
}
