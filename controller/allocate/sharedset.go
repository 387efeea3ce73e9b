package allocate

import (
	"iter"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/view"
)

// A Service of two families shares whole sets: both addresses of one holder, or none. Otherwise a
// client that knows one of its names would reach two groups of Services, one by IPv4 and the other
// by IPv6.

// shareablePositions returns the positions of held addresses that the Service may share, in
// ascending order. The index knows only the holders with the same requirementsToShare, so that each
// holder is asked too.
func (d *decider) shareablePositions(st *familyPool) iter.Seq[uint64] {
	if d.sharing == nil {
		return func(func(uint64) bool) {}
	}
	all := st.sharedPositionsByRequirement[d.sharing.requirementsToShare].positionsWithFreePorts(d.sharing.ports)
	return func(yield func(uint64) bool) {
		for at := range all {
			if !d.ledger.explainNewSharingConflict(st.assignableNumbering.addressAtPosition(at), d.service.Key, d.sharing).IsSet() && !yield(at) {
				return
			}
		}
	}
}

// pickBothAddressesOfOneHolder picks both addresses of one holder, the IPv4 address from this pool.
// In a pool that gives the lowest address first, a lower free one is better.
func (d *decider) pickBothAddressesOfOneHolder(src *poolEntry) bool {
	if d.sharing == nil {
		return false
	}
	st := src.ipv4Pool
	free, ok := d.nextFreePositionUnusedByDecision(st)
	for at := range d.shareablePositions(st) {
		if ok && at > free && st.assignsLowestAddressFirst() {
			return false
		}
		a := st.assignableNumbering.addressAtPosition(at)
		if d.isPickedKeptOrToBeReleased(a) || !d.isWithinQuota(st, a) {
			continue
		}
		if d.pickAddressOfCoHolders(a, ipfamily.IPv6) {
			d.pickedAddresses = append(d.pickedAddresses, pickedAddress{a, src})
			return true
		}
	}
	return false
}

// pickOtherAddressOfCoHolder picks an address of the family that another Service holds together
// with one that this Service has already.
func (d *decider) pickOtherAddressOfCoHolder(f ipfamily.Family) bool {
	if d.sharing == nil {
		return false
	}
	return slices.ContainsFunc(d.decidedAddresses(), func(a address) bool { return d.pickAddressOfCoHolders(a, f) })
}

// pickAddressOfCoHolders picks an address of the family that a holder of a has.
func (d *decider) pickAddressOfCoHolders(a address, f ipfamily.Family) bool {
	for _, b := range d.addressesOfCoHolders(a, f) {
		src := d.currentPoolIndex.poolEntryThatCanAssign(b)
		switch {
		case src == nil || !slices.Contains(d.candidates[0], src) && !slices.Contains(d.candidates[1], src):
		case d.isPickedKeptOrToBeReleased(b) || !d.isWithinQuota(src.forFamily(f), b):
		case !d.ledger.explainNewSharingConflict(b, d.service.Key, d.sharing).IsSet():
			d.pickedAddresses = append(d.pickedAddresses, pickedAddress{b, src})
			return true
		}
	}
	return false
}

// addressesOfCoHolders returns the addresses of a family that the other holders of a have, in the
// order of the holders' names.
func (d *decider) addressesOfCoHolders(a address, f ipfamily.Family) []address {
	var out []address
	for _, id := range d.otherHolders(a) {
		var room [2]address
		for _, b := range d.ledger.appendRecordAddresses(id, room[:0]) {
			if b.family() == f {
				out = append(out, b)
			}
		}
	}
	return out
}

// otherHolders returns the records of the other Services that hold a, in the order of their names.
func (d *decider) otherHolders(a address) []int32 {
	var room [1]int32
	out := slices.Clone(d.ledger.holderTable.recordIDsHoldingAddress(a, &room))
	out = slices.DeleteFunc(out, func(id int32) bool { return d.ledger.recordAt(id).service == d.service.Key })
	slices.SortFunc(out, func(x, y int32) int { return d.ledger.recordAt(x).service.Compare(d.ledger.recordAt(y).service) })
	return out
}

// pickPairAvoidingSingleFamilyHolders lets pick choose an address of each family. For a Service
// with a sharing key it first tries without the addresses of Services that have one family only:
// two addresses that nobody has are better than one that is shared and one that is not.
func (d *decider) pickPairAvoidingSingleFamilyHolders(pick func() bool) bool {
	if d.sharing == nil {
		return pick()
	}
	picked, exhausted, families, overQuota := len(d.pickedAddresses), len(d.exhaustedPools), len(d.exhaustedFamilyPools), len(d.overQuotaPools)
	d.skipsSingleFamilyHolders = true
	done := pick()
	d.skipsSingleFamilyHolders = false
	if done {
		return true
	}
	d.pickedAddresses, d.exhaustedPools = d.pickedAddresses[:picked], d.exhaustedPools[:exhausted]
	d.exhaustedFamilyPools, d.overQuotaPools = d.exhaustedFamilyPools[:families], d.overQuotaPools[:overQuota]
	return pick()
}

// wouldShareOnlyOneFamilyOfHolders says whether each holder of a also has an address of the other
// family, which this Service needs too and does not get.
func (d *decider) wouldShareOnlyOneFamilyOfHolders(a address) bool {
	other := otherFamily(a.family())
	if !d.needsFamily(other) || d.service.FamilyPolicy == view.SingleStack {
		return false
	}
	has := d.decidedAddresses()
	isWhole := func(id int32) bool {
		var room [2]address
		all := slices.DeleteFunc(d.ledger.appendRecordAddresses(id, room[:0]), func(b address) bool { return b.family() != other })
		return len(all) == 0 && !d.skipsSingleFamilyHolders || slices.ContainsFunc(all, func(b address) bool { return slices.Contains(has, b) })
	}
	holders := d.otherHolders(a)
	return len(holders) > 0 && !slices.ContainsFunc(holders, isWhole)
}

func otherFamily(f ipfamily.Family) ipfamily.Family {
	if f == ipfamily.IPv4 {
		return ipfamily.IPv6
	}
	return ipfamily.IPv4
}

// decidedAddresses returns the kept and the picked addresses.
func (d *decider) decidedAddresses() []address {
	var out []address
	for _, a := range d.keptAddresses {
		out = append(out, addressFromNetip(a))
	}
	for _, p := range d.pickedAddresses {
		out = append(out, p.address)
	}
	return out
}

// maxPoolAddressesForHolderScan bounds the pools whose holders are all looked at. A larger pool
// where each holder has another key is exhausted, and not a pool for one group of Services.
const maxPoolAddressesForHolderScan = 16

// explainSharingObstacle says what keeps a Service with a sharing key from sharing an address of
// the exhausted pools. It returns zero when they have no address that it could share but for one
// difference.
func (d *decider) explainSharingObstacle() names.Explanation {
	if d.sharing == nil {
		return names.Explanation{}
	}
	for _, st := range d.exhaustedFamilyPools {
		for _, a := range st.almostShareableAddresses(d.sharing) {
			for _, b := range append([]address{a}, d.addressesOfCoHolders(a, otherFamily(st.family))...) {
				c := d.ledger.explainNewSharingConflict(b, d.service.Key, d.sharing)
				if st.pool.SharesOnlyWithinNamespace && c.Reason == names.ReasonAddressInUse {
					continue // whether another namespace has the same key is not told
				}
				if c.IsSet() {
					return names.NewExplanation(c.Reason, "no address is free in the pools open to this Service (%s), and %s %s: add addresses, or %s",
						joinPoolNames(d.exhaustedPools), b.toNetip(), c.Text, c.advice)
				}
			}
		}
	}
	return names.Explanation{}
}

// almostShareableAddresses returns the addresses that a Service could nearly share, the nearest
// first: the lowest ones that are held with its key. If there are none, a small pool where every
// address is shared with other keys counts.
func (s *familyPool) almostShareableAddresses(sh *sharingProperties) []address {
	var out []address
	addLowest := func(r requirementsToShare) {
		if on := s.sharedPositionsByRequirement[r]; on != nil {
			out = append(out, s.assignableNumbering.addressAtPosition(on.positions[0]))
		}
	}
	addLowest(sh.requirementsToShare)
	for _, selector := range s.podSelectorsBySharingKey[sh.sharingKey] {
		if selector != sh.podSelector {
			addLowest(requirementsToShare{sh.sharingKey, selector})
		}
	}
	if n := s.assignableNumbering.positionCount; n > 0 && n <= maxPoolAddressesForHolderScan && len(out) == 0 && s.countSharedPositions() == n {
		out = append(out, s.assignableNumbering.addressAtPosition(0))
	}
	return out
}

// countSharedPositions counts the addresses that Services with a sharing key hold.
func (s *familyPool) countSharedPositions() uint64 {
	n := uint64(0)
	for _, on := range s.sharedPositionsByRequirement {
		n += uint64(len(on.positions))
	}
	return n
}
