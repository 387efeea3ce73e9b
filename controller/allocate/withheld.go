package allocate

import (
	"cmp"
	"net/netip"
	"slices"
	"sort"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
)

// WithheldAddress is an address that is not free although no Service holds it, or that will not be
// free once no Service does.
type WithheldAddress struct {
	Address netip.Addr
	// Reason is ReasonAddressReserved, ReasonCoolingDown, ReasonQuarantined or ReasonProbing.
	Reason names.Reason
	// Service may have the address in spite of this, unless it is in quarantine.
	Service view.ObjectKey
	// Until is when the entry ends; zero means that only an explicit call ends it.
	Until time.Time
	// By is the AddressReservation, or the host that answered for the address on the segment.
	By string
	// NoAnswer says that no host answered an acquire probe for the address.
	NoAnswer bool
}

// isSameEntry says whether two entries have the same cause, so that the newer one replaces the
// older.
func (w WithheldAddress) isSameEntry(o WithheldAddress) bool {
	return w.Reason == o.Reason && (w.Reason != names.ReasonAddressReserved || w.By == o.By)
}

// outlivesRestart says whether the entry must be stored for a restart; the others are derived
// again.
func (w WithheldAddress) outlivesRestart() bool {
	return w.Reason == names.ReasonCoolingDown || w.Reason == names.ReasonQuarantined
}

// deadline is when an entry may end. The deadline of an entry that ended earlier is ignored.
type deadline struct {
	at      time.Time
	address address
	reason  names.Reason
	by      string
}

// addDeadline inserts a deadline after those that end no later. Nearly all go to the end, because a
// pool's cool-downs end in the order in which they begin.
func (l *Ledger) addDeadline(d deadline) {
	i := sort.Search(len(l.deadlines), func(i int) bool { return d.at.Before(l.deadlines[i].at) })
	l.deadlines = slices.Insert(l.deadlines, i, d)
}

// AdvanceTime sets the current time and ends what is over. It returns the addresses that became
// free, and when it must be called next; zero when no deadline is open. A time in the past is
// ignored.
func (l *Ledger) AdvanceTime(now time.Time) (freed []netip.Addr, next time.Time) {
	if now.After(l.currentTime) {
		l.currentTime = now
	}
	for len(l.deadlines) > 0 && !l.deadlines[0].at.After(l.currentTime) {
		d := l.deadlines[0]
		l.deadlines = l.deadlines[1:]
		over := func(w WithheldAddress) bool {
			return w.Reason == d.reason && w.By == d.by && !w.Until.IsZero() && !w.Until.After(l.currentTime)
		}
		if l.releaseEntries(d.address, over) {
			freed = append(freed, d.address.toNetip())
		}
	}
	if len(l.deadlines) > 0 {
		next = l.deadlines[0].at
	}
	return freed, next
}

// CheckpointVersion changes whenever CheckpointEntries does.
func (l *Ledger) CheckpointVersion() uint64 { return l.checkpointVersion }

// CheckpointEntries returns the entries to give to WithholdAddress after a restart, sorted. If
// there are more than limit, those that end soonest are left out.
func (l *Ledger) CheckpointEntries(limit int) []WithheldAddress {
	all := slices.DeleteFunc(l.AllWithheld(), func(w WithheldAddress) bool { return !w.outlivesRestart() })
	if len(all) <= limit {
		return all
	}
	slices.SortStableFunc(all, func(x, y WithheldAddress) int { return y.Until.Compare(x.Until) })
	all = all[:limit]
	slices.SortFunc(all, func(x, y WithheldAddress) int {
		return cmp.Or(x.Address.Compare(y.Address), cmp.Compare(x.Reason, y.Reason))
	})
	return all
}

// AllWithheld returns all entries, sorted.
func (l *Ledger) AllWithheld() []WithheldAddress {
	var out []WithheldAddress
	for _, w := range l.withheldByAddress {
		out = append(out, w...)
	}
	slices.SortFunc(out, func(x, y WithheldAddress) int {
		return cmp.Or(x.Address.Compare(y.Address), cmp.Compare(x.Reason, y.Reason), cmp.Compare(x.By, y.By))
	})
	return out
}

// WithholdAddress withholds an address from all Services but the one in the entry. The entry
// replaces an older one with the same cause. An entry that is over already is ignored.
func (l *Ledger) WithholdAddress(w WithheldAddress) {
	a := addressOf(w.Address)
	if !w.Until.IsZero() && !w.Until.After(l.currentTime) {
		return
	}
	if slices.Contains(l.withheldByAddress[a], w) {
		return
	}
	l.removeEntries(a, w.isSameEntry)
	l.withheldByAddress[a] = append(l.withheldByAddress[a], w)
	if w.Reason == names.ReasonProbing {
		l.probingCount++
	}
	if w.outlivesRestart() {
		l.checkpointVersion++
	}
	if w.Reason == names.ReasonAddressReserved {
		if l.reservedByReservation[w.By] == nil {
			l.reservedByReservation[w.By] = map[address]struct{}{}
		}
		l.reservedByReservation[w.By][a] = struct{}{}
	}
	if w.Service != (view.ObjectKey{}) && w.Reason != names.ReasonQuarantined {
		l.withheldByService[w.Service] = append(l.withheldByService[w.Service], a)
	}
	if !w.Until.IsZero() {
		l.addDeadline(deadline{w.Until, a, w.Reason, w.By})
	}
	if st := l.index.familyPoolCovering(a); st != nil {
		if at, ok := st.numbering.positionOf(a); ok {
			st.freeSet.markTaken(at)
		}
	}
}

// removeEntries removes the matching entries of an address. It does not change whether the address
// is free.
func (l *Ledger) removeEntries(a address, match func(WithheldAddress) bool) {
	rest := l.withheldByAddress[a][:0]
	for _, w := range l.withheldByAddress[a] {
		if !match(w) {
			rest = append(rest, w)
			continue
		}
		if w.Reason == names.ReasonProbing {
			l.probingCount--
		}
		if w.outlivesRestart() {
			l.checkpointVersion++
		}
		if w.Reason == names.ReasonAddressReserved {
			if delete(l.reservedByReservation[w.By], a); len(l.reservedByReservation[w.By]) == 0 {
				delete(l.reservedByReservation, w.By)
			}
		}
		if i := slices.Index(l.withheldByService[w.Service], a); i >= 0 {
			l.withheldByService[w.Service] = slices.Delete(l.withheldByService[w.Service], i, i+1)
		}
		if w.Reason != names.ReasonQuarantined && len(l.withheldByService[w.Service]) == 0 {
			delete(l.withheldByService, w.Service)
		}
	}
	if l.withheldByAddress[a] = rest; len(rest) == 0 {
		delete(l.withheldByAddress, a)
	}
}

// releaseEntries removes the matching entries of an address, and says whether the address became
// free.
func (l *Ledger) releaseEntries(a address, match func(WithheldAddress) bool) bool {
	if len(l.withheldByAddress[a]) == 0 {
		return false
	}
	l.removeEntries(a, match)
	if len(l.withheldByAddress[a]) > 0 || l.isHeld(a) {
		return false
	}
	if st := l.index.familyPoolCovering(a); st != nil {
		if at, ok := st.numbering.positionOf(a); ok {
			st.freeSet.markFree(at)
		}
	}
	return true
}

// ProposeAddresses withholds addresses for a Service until they are probed. They replace those
// proposed to it before.
func (l *Ledger) ProposeAddresses(k view.ObjectKey, addresses []netip.Addr) {
	for _, a := range slices.Clone(l.withheldByService[k]) {
		if !slices.Contains(addresses, a.toNetip()) {
			l.releaseEntries(a, func(w WithheldAddress) bool { return w.Reason == names.ReasonProbing && w.Service == k })
		}
	}
	for _, a := range addresses {
		if !slices.ContainsFunc(l.withheldByAddress[addressOf(a)], func(w WithheldAddress) bool { return w.Reason == names.ReasonProbing && w.Service == k }) {
			l.WithholdAddress(WithheldAddress{Address: a, Service: k, Reason: names.ReasonProbing})
		}
	}
}

// ProposedAddresses returns the addresses that need a probe, sorted, with their Services.
func (l *Ledger) ProposedAddresses() []WithheldAddress {
	return slices.DeleteFunc(l.AllWithheld(), func(w WithheldAddress) bool { return w.Reason != names.ReasonProbing || w.NoAnswer })
}

// IsProbing says whether an address waits for a probe, or for the write that follows it.
func (l *Ledger) IsProbing() bool { return l.probingCount > 0 }

// RecordNoAnswer records that no host answered for a proposed address: the next decision assigns
// it.
func (l *Ledger) RecordNoAnswer(a netip.Addr) {
	for i, w := range l.withheldByAddress[addressOf(a)] {
		if w.Reason == names.ReasonProbing {
			l.withheldByAddress[addressOf(a)][i].NoAnswer = true
		}
	}
}

// RecordAnswer records that a host uses a proposed address. The address goes into quarantine, and
// the next decision chooses another one. If the pool does not probe any more, the quarantine lasts
// an hour.
func (l *Ledger) RecordAnswer(a netip.Addr, by string) {
	l.releaseEntries(addressOf(a), func(w WithheldAddress) bool { return w.Reason == names.ReasonProbing })
	d := time.Hour
	if st := l.index.familyPoolCovering(addressOf(a)); st != nil && st.pool.Probe != nil {
		d = st.pool.Probe.QuarantineDelay
	}
	l.WithholdAddress(WithheldAddress{Address: a, Reason: names.ReasonQuarantined, Until: l.currentTime.Add(d), By: by})
}

// withdrawProposal removes what is proposed to the Service.
func (l *Ledger) withdrawProposal(k view.ObjectKey) {
	if len(l.withheldByService[k]) > 0 {
		l.ProposeAddresses(k, nil)
	}
}

// blockingEntry returns the entry that keeps the address from the Service.
func (l *Ledger) blockingEntry(a address, k view.ObjectKey) (WithheldAddress, bool) {
	for _, w := range l.withheldByAddress[a] {
		if w.Reason == names.ReasonQuarantined || w.Service != k {
			return w, true
		}
	}
	return WithheldAddress{}, false
}

// hasNoAnswer says whether the address was probed for the Service and no host answered.
func (l *Ledger) hasNoAnswer(a address, k view.ObjectKey) bool {
	return slices.ContainsFunc(l.withheldByAddress[a], func(w WithheldAddress) bool { return w.Reason == names.ReasonProbing && w.Service == k && w.NoAnswer })
}
