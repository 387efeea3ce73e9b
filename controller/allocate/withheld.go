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

// WithheldAddress is an address that is not free though nobody holds it, or that will not be once nobody does.
type WithheldAddress struct {
	Address netip.Addr
	// Reason is ReasonAddressReserved, ReasonCoolingDown, ReasonQuarantined or ReasonProbing.
	Reason names.Reason
	// Service may have the address all the same; nobody may when it is quarantined.
	Service view.ObjectKey
	// Until is when the address is no longer withheld; zero is until somebody says so.
	Until time.Time
	// By is the AddressReservation, or who answered for the address on the segment.
	By string
	// NoAnswer says of an address that is being probed that nobody answered for it.
	NoAnswer bool
}

// isSameEntry says whether two entries are about the same thing, so that the newer takes the older's place.
func (w WithheldAddress) isSameEntry(o WithheldAddress) bool {
	return w.Reason == o.Reason && (w.Reason != names.ReasonAddressReserved || w.By == o.By)
}

// outlivesRestart says whether the entry has to be remembered across a restart: the others are found again.
func (w WithheldAddress) outlivesRestart() bool {
	return w.Reason == names.ReasonCoolingDown || w.Reason == names.ReasonQuarantined
}

// deadline is when an entry may end. Entries that ended otherwise leave theirs behind, and it is passed over.
type deadline struct {
	at      time.Time
	address address
	reason  names.Reason
	by      string
}

// addDeadline files a deadline behind those that end no later. Nearly all go to the end, because a pool's cool-downs end in the order in which they
// begin.
func (l *Ledger) addDeadline(d deadline) {
	i := sort.Search(len(l.deadlines), func(i int) bool { return d.at.Before(l.deadlines[i].at) })
	l.deadlines = slices.Insert(l.deadlines, i, d)
}

// AdvanceTime tells the Ledger what time it is and ends what is over. It returns the addresses that became free, and when it has to be
// called again at the latest; zero when nothing waits for the time. Time that goes backwards is ignored.
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

// CheckpointVersion counts the changes of what has to be remembered across a restart, so that it is asked for only when there is news.
func (l *Ledger) CheckpointVersion() uint64 { return l.checkpointVersion }

// CheckpointEntries returns what has to be given to Withhold after a restart, sorted. Of more than limit those are left out that end soonest.
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

// AllWithheld returns all that is withheld, sorted.
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

// WithholdAddress keeps an address from everybody but the Service that is named, in the place of an older entry about the same thing. One that is over
// already is ignored.
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

// removeEntries takes the entries that match from an address, and leaves it as free as it was.
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

// releaseEntries takes the entries that match from an address, and says whether it became free.
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

// ProposeAddresses holds addresses for a Service until the segment has been asked for them, in the place of those proposed to it before.
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

// PrepareAddresses holds addresses for a Service that it is about to be given, so that it keeps what it has until they are written: make before
// break. Commit or Release ends it; until then every decision for the Service prefers them.
func (l *Ledger) PrepareAddresses(k view.ObjectKey, addresses []netip.Addr) {
	held, _ := l.AssignmentOf(k)
	added := slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return slices.Contains(held.Addresses, a) })
	l.ProposeAddresses(k, added)
	for _, a := range added {
		l.RecordNoAnswer(a)
	}
}

// ProposedAddresses returns the addresses that wait for an answer from the segment, sorted, with the Services that they are for.
func (l *Ledger) ProposedAddresses() []WithheldAddress {
	return slices.DeleteFunc(l.AllWithheld(), func(w WithheldAddress) bool { return w.Reason != names.ReasonProbing || w.NoAnswer })
}

// IsProbing says whether any address waits for an answer from the segment, or for the write that follows it.
func (l *Ledger) IsProbing() bool { return l.probingCount > 0 }

// RecordNoAnswer records that nobody answered for a proposed address: the next decision gives it to the Service that it was proposed to.
func (l *Ledger) RecordNoAnswer(a netip.Addr) {
	for i, w := range l.withheldByAddress[addressOf(a)] {
		if w.Reason == names.ReasonProbing {
			l.withheldByAddress[addressOf(a)][i].NoAnswer = true
		}
	}
}

// RecordAnswer records that somebody else uses a proposed address: it is quarantined, and the next decision gives another. A pool that no longer
// probes quarantines for an hour.
func (l *Ledger) RecordAnswer(a netip.Addr, by string) {
	l.releaseEntries(addressOf(a), func(w WithheldAddress) bool { return w.Reason == names.ReasonProbing })
	d := time.Hour
	if st := l.index.familyPoolCovering(addressOf(a)); st != nil && st.pool.Probe != nil {
		d = st.pool.Probe.QuarantineDelay
	}
	l.WithholdAddress(WithheldAddress{Address: a, Reason: names.ReasonQuarantined, Until: l.currentTime.Add(d), By: by})
}

// withdrawProposal drops what is proposed to the Service.
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

// hasNoAnswer says whether the segment was asked for the address on behalf of the Service, and nobody answered.
func (l *Ledger) hasNoAnswer(a address, k view.ObjectKey) bool {
	return slices.ContainsFunc(l.withheldByAddress[a], func(w WithheldAddress) bool { return w.Reason == names.ReasonProbing && w.Service == k && w.NoAnswer })
}
