package allocate

import (
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// pickMissing picks the addresses that the Service lacks, and says whether it then has all that it
// needs. Addresses that are withheld for the Service come first. Then the pools are tried in the
// given order: a pool with both families comes before all pools with one; if none has both, each
// family comes from the first pool that has it.
func (d *decider) pickMissing(pinned, open []*poolEntry) bool {
	d.trimToCount()
	named := d.service.RequestedPool != ""
	for _, f := range [...]view.Family{view.IPv4, view.IPv6} {
		for d.needsFamily(f) && d.countOfFamily(f) < d.countPerFamily && d.pickWithheldForService(f, named) {
		}
	}
	if !d.pickRequiredFamilies(pinned, open) {
		return false
	}
	for _, f := range [...]view.Family{view.IPv4, view.IPv6} {
		for d.countOfFamily(f) > 0 && d.countOfFamily(f) < d.countPerFamily && d.pickFamily(f, pinned, open) {
		}
	}
	return true
}

// trimToCount drops kept addresses beyond the number that the Service asks for, the last first.
func (d *decider) trimToCount() {
	if len(d.kept) <= d.countPerFamily {
		return
	}
	n := map[view.Family]int{}
	kept := d.kept[:0]
	for _, a := range d.kept {
		f := view.FamilyOf(a)
		if n[f]++; n[f] <= d.countPerFamily {
			kept = append(kept, a)
		}
	}
	d.kept = kept
}

// pickRequiredFamilies picks an address of each family of which the Service has none.
func (d *decider) pickRequiredFamilies(pinned, open []*poolEntry) bool {
	lacks4, lacks6 := d.needsIPv4 && d.countOfFamily(view.IPv4) == 0, d.needsIPv6 && d.countOfFamily(view.IPv6) == 0
	first, second := view.IPv4, view.IPv6
	if d.service.PrimaryFamily == view.IPv6 {
		first, second = second, first
	}
	switch {
	case !lacks4 && !lacks6:
		return true
	case !lacks4:
		return d.pickFamily(view.IPv6, pinned, open) || d.canLackOneFamily()
	case !lacks6:
		return d.pickFamily(view.IPv4, pinned, open) || d.canLackOneFamily()
	// It has two cluster IPs, but only the first family counts.
	case d.service.FamilyPolicy == view.SingleStack:
		return d.pickFamily(first, pinned, open) || d.pickFamily(second, pinned, open)
	}
	if d.pickBothFamilies(pinned) || d.pickBothFamilies(open) {
		return true
	}
	d.exhaustedPools = nil
	one := d.pickFamily(first, pinned, open)
	other := d.pickFamily(second, pinned, open)
	if d.service.FamilyPolicy == view.RequireDualStack {
		return one && other
	}
	return one || other
}

// canLackOneFamily says whether one of its two families is enough for the Service.
func (d *decider) canLackOneFamily() bool {
	return d.needsIPv4 && d.needsIPv6 && d.service.FamilyPolicy != view.RequireDualStack
}

// pickBothFamilies picks an address of each family from the first pool that has both.
func (d *decider) pickBothFamilies(from []*poolEntry) bool {
	for _, src := range from {
		n := len(d.picks)
		if d.pickFromPool(src, view.IPv4) && d.pickFromPool(src, view.IPv6) {
			return true
		}
		d.picks = d.picks[:n]
	}
	return false
}

// pickFamily picks an address of the family: if possible from a pool that the Service already has
// an address of, otherwise from the first pool that has one.
func (d *decider) pickFamily(f view.Family, pinned, open []*poolEntry) bool {
	if f == view.IPv4 && !d.needsIPv4 || f == view.IPv6 && !d.needsIPv6 {
		return false
	}
	own := func(src *poolEntry) bool {
		return slices.ContainsFunc(d.picks, func(p pickedAddress) bool { return p.entry == src }) ||
			slices.ContainsFunc(d.kept, src.pool.CanAssign)
	}
	if len(d.picks)+len(d.kept) > 0 {
		for _, from := range [...][]*poolEntry{pinned, open} {
			for _, src := range from {
				if own(src) && d.pickFromPool(src, f) {
					return true
				}
			}
		}
	}
	for _, from := range [...][]*poolEntry{pinned, open} {
		for _, src := range from {
			if d.pickFromPool(src, f) {
				return true
			}
		}
	}
	return false
}

// countOfFamily counts the kept and the picked addresses of the family.
func (d *decider) countOfFamily(f view.Family) int {
	n := 0
	for _, a := range d.kept {
		if view.FamilyOf(a) == f {
			n++
		}
	}
	for _, p := range d.picks {
		if p.address.family() == f {
			n++
		}
	}
	return n
}

// pickWithheldForService picks an address of the family that is withheld for this Service.
func (d *decider) pickWithheldForService(f view.Family, named bool) bool {
	for _, a := range d.ledger.withheldByService[d.service.Key] {
		if a.family() != f || d.isUnpickable(a) {
			continue
		}
		src := d.index.entryAssigning(a)
		if src == nil || !poolAdmits(src.pool, d.service) || named && src.pool.Name != d.service.RequestedPool {
			continue
		}
		reason, _ := d.ledger.sharingConflict(a, d.service.Key, d.sharing)
		if _, blocked := d.ledger.blockingEntry(a, d.service.Key); blocked || reason != "" {
			continue
		}
		if !d.isWithinQuota(src.forFamily(f), a) {
			d.overQuotaPools = append(d.overQuotaPools, src)
			continue
		}
		d.picks = append(d.picks, pickedAddress{a, src})
		return true
	}
	return false
}

// isUnpickable says whether the address may not be picked: it is picked or kept already, or the
// Service releases it.
func (d *decider) isUnpickable(a address) bool {
	if slices.ContainsFunc(d.picks, func(p pickedAddress) bool { return p.address == a }) {
		return true
	}
	if len(d.kept)+len(d.service.AddressesToRelease) == 0 {
		return false
	}
	n := a.toNetip()
	return slices.Contains(d.kept, n) || slices.Contains(d.service.AddressesToRelease, n)
}

// isWithinQuota says whether the namespace may have the address. The zero address stands for one
// that no Service of the namespace holds.
func (d *decider) isWithinQuota(st *familyPool, a address) bool {
	if st.heldByNamespace == nil {
		return true
	}
	ns := d.service.Key.Namespace
	var room [1]int32
	if a != (address{}) && d.ledger.firstInNamespace(ns, d.ledger.holderTable.recordsHolding(a, &room)) >= 0 {
		return true
	}
	n := 1
	for _, p := range d.picks {
		if p.entry.forFamily(p.address.family()) == st {
			n++
		}
	}
	return st.hasQuotaFor(ns, n)
}

// pickFromPool picks an address of the family from the pool: one that the Service may share, or a
// free one, as the pool's order says.
func (d *decider) pickFromPool(src *poolEntry, f view.Family) bool {
	st := src.forFamily(f)
	free, ok := d.nextPickablePosition(st)
	if d.sharing != nil {
		if on := st.sharedSlotsByGroup[d.sharing.sharingGroup]; on != nil {
			at, shared := on.lowestWithoutPorts(d.sharing.ports)
			if a := st.addressOrZero(at, shared); shared && !d.isUnpickable(a) && d.isWithinQuota(st, a) && (!ok || at < free || st.pool.Order != snapshot.OrderLowest && st.pool.Order != "") {
				d.picks = append(d.picks, pickedAddress{a, src})
				return true
			}
		}
	}
	switch {
	case !ok:
		d.exhaustedPools = append(d.exhaustedPools, src)
		return false
	case !d.isWithinQuota(st, address{}):
		d.overQuotaPools = append(d.overQuotaPools, src)
		return false
	}
	d.picks = append(d.picks, pickedAddress{st.numbering.addressAt(free), src})
	return true
}

// nextPickablePosition returns the next free position that is pickable. Few addresses are
// unpickable, so that as many steps are enough.
func (d *decider) nextPickablePosition(st *familyPool) (uint64, bool) {
	from := st.searchStart(d.service.Key)
	at, ok := st.nextFree(from)
	for range len(d.picks) + len(d.service.AddressesToRelease) {
		if !ok || !d.isUnpickable(st.numbering.addressAt(at)) {
			break
		}
		at, ok = st.nextFree(at + 1)
	}
	return at, ok && !d.isUnpickable(st.numbering.addressAt(at))
}

// addressOrZero returns the address at a position, or the zero address.
func (s *familyPool) addressOrZero(addressOrZero uint64, there bool) address {
	if !there {
		return address{}
	}
	return s.numbering.addressAt(addressOrZero)
}

// shortageReason says why pickMissing did not find all addresses.
func (d *decider) shortageReason() (names.Reason, string, string) {
	if len(d.overQuotaPools) > 0 {
		return names.ReasonQuotaExceeded, "%s", d.shortageText()
	}
	return names.ReasonPoolExhausted, "%s", d.shortageText()
}

func (d *decider) shortageText() string {
	if len(d.overQuotaPools) > 0 {
		return "namespace " + d.service.Key.Namespace + " has reached its quota in the pools open to this Service (" + joinPoolNames(d.overQuotaPools) + "): raise the quota or release addresses"
	}
	return "no free address of the needed family in the pools open to this Service (" + joinPoolNames(d.exhaustedPools) + "): add addresses or release some"
}
