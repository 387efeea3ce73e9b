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
	// Reason is ReasonAddressReserved, ReasonCoolingDown, ReasonQuarantined, ReasonProbing or, for
	// an address that the status of a Service shows without a right to it, ReasonAddressInUse.
	Reason names.Reason
	// ServiceThatMayHoldIt may have the address in spite of this. If the address is in quarantine,
	// it may not: it is then the Service that had requested exactly this address, or none.
	ServiceThatMayHoldIt view.ObjectKey
	// WithheldUntil is when the entry ends; zero means that only an explicit call ends it.
	WithheldUntil time.Time
	// ReservationOrForeignHost is the AddressReservation, or the host that answered for the address
	// on the segment.
	ReservationOrForeignHost string
	// AcquireProbeFoundNoHost says that no host answered an acquire probe for the address.
	AcquireProbeFoundNoHost bool
	// WasRequested says that the Service has requested exactly this address, which is probed.
	WasRequested bool
}

// namespaceThatCausedIt returns the namespace in whose quota the entry counts: a Service of it gave
// the address up, waits for its probe, or requested it while a host used it.
func (w WithheldAddress) namespaceThatCausedIt() (string, bool) {
	isCounted := w.Reason != names.ReasonAddressReserved && w.Reason != names.ReasonAddressInUse
	return w.ServiceThatMayHoldIt.Namespace, isCounted && w.ServiceThatMayHoldIt.Namespace != ""
}

// namespacesThatCaused returns the namespaces in whose quotas an address with these entries counts,
// each once: an address that cools down and is probed is still one address.
func namespacesThatCaused(entries []WithheldAddress) []string {
	var out []string
	for _, w := range entries {
		if namespace, ok := w.namespaceThatCausedIt(); ok && !slices.Contains(out, namespace) {
			out = append(out, namespace)
		}
	}
	return out
}

// isWithheldBecauseOfNamespace says whether the address counts in the quota of the namespace
// although no Service holds it.
func (l *Ledger) isWithheldBecauseOfNamespace(a address, namespace string) bool {
	return slices.Contains(namespacesThatCaused(l.withheldEntriesByAddress[a]), namespace)
}

// hasSameCause says whether two entries have the same cause, so that the newer one replaces the
// older.
func (w WithheldAddress) hasSameCause(o WithheldAddress) bool {
	switch {
	case w.Reason != o.Reason:
		return false
	case w.Reason == names.ReasonAddressReserved:
		return w.ReservationOrForeignHost == o.ReservationOrForeignHost
	case w.Reason == names.ReasonAddressInUse:
		return w.ServiceThatMayHoldIt == o.ServiceThatMayHoldIt
	}
	return true
}

// mustSurviveRestart says whether the entry must be stored for a restart; the others are derived
// again.
func (w WithheldAddress) mustSurviveRestart() bool {
	return w.Reason == names.ReasonCoolingDown || w.Reason == names.ReasonQuarantined
}

// withholdDeadline is when an entry may end. The deadline of an entry that ended earlier is
// ignored.
type withholdDeadline struct {
	expiresAt                time.Time
	address                  address
	reason                   names.Reason
	reservationOrForeignHost string
}

// addWithholdDeadline inserts a deadline after those that end no later. Nearly all go to the end,
// because a pool's cool-downs end in the order in which they begin.
func (l *Ledger) addWithholdDeadline(d withholdDeadline) {
	i := sort.Search(len(l.withholdDeadlines), func(i int) bool { return d.expiresAt.Before(l.withholdDeadlines[i].expiresAt) })
	l.withholdDeadlines = slices.Insert(l.withholdDeadlines, i, d)
}

// AdvanceTime sets the current time and ends what is over. It returns the addresses that became
// free, and when it must be called next; zero when no deadline is open. A time in the past is
// ignored.
func (l *Ledger) AdvanceTime(now time.Time) (freed []netip.Addr, next time.Time) {
	if now.After(l.currentTime) {
		l.currentTime = now
	}
	reservationsEnded := false
	for len(l.withholdDeadlines) > 0 && !l.withholdDeadlines[0].expiresAt.After(l.currentTime) {
		d := l.withholdDeadlines[0]
		l.withholdDeadlines = l.withholdDeadlines[1:]
		over := func(w WithheldAddress) bool {
			return w.Reason == d.reason && w.ReservationOrForeignHost == d.reservationOrForeignHost && !w.WithheldUntil.IsZero() && !w.WithheldUntil.After(l.currentTime)
		}
		reservationsEnded = reservationsEnded || d.reason == names.ReasonAddressReserved
		if l.removeWithheldEntriesAndFreeAddress(d.address, over) {
			freed = append(freed, d.address.toNetip())
		}
	}
	if reservationsEnded && l.currentPoolIndex != nil { // a younger one may begin
		l.applyReservations(l.currentPoolIndex.snapshot)
		freed = slices.DeleteFunc(freed, func(a netip.Addr) bool { return len(l.withheldEntriesByAddress[addressFromNetip(a)]) > 0 })
	}
	if len(l.withholdDeadlines) > 0 {
		next = l.withholdDeadlines[0].expiresAt
	}
	return freed, next
}

// WithheldCheckpointVersion changes whenever WithheldCheckpointEntries does.
func (l *Ledger) WithheldCheckpointVersion() uint64 { return l.withheldCheckpointVersion }

// WithheldCheckpointEntries returns the entries to give to WithholdAddress after a restart, sorted.
// If there are more than limit, those that end soonest are left out.
func (l *Ledger) WithheldCheckpointEntries(limit int) []WithheldAddress {
	all := slices.DeleteFunc(l.AllWithheldAddresses(), func(w WithheldAddress) bool { return !w.mustSurviveRestart() })
	if len(all) <= limit {
		return all
	}
	slices.SortStableFunc(all, func(x, y WithheldAddress) int { return y.WithheldUntil.Compare(x.WithheldUntil) })
	all = all[:limit]
	slices.SortFunc(all, func(x, y WithheldAddress) int {
		return cmp.Or(x.Address.Compare(y.Address), cmp.Compare(x.Reason, y.Reason))
	})
	return all
}

// AllWithheldAddresses returns all entries, sorted.
func (l *Ledger) AllWithheldAddresses() []WithheldAddress {
	var out []WithheldAddress
	for _, w := range l.withheldEntriesByAddress {
		out = append(out, w...)
	}
	slices.SortFunc(out, func(x, y WithheldAddress) int {
		return cmp.Or(x.Address.Compare(y.Address), cmp.Compare(x.Reason, y.Reason), cmp.Compare(x.ReservationOrForeignHost, y.ReservationOrForeignHost))
	})
	return out
}

// WithholdAddress withholds an address from all Services but the one in the entry. The entry
// replaces an older one with the same cause. An entry that is over already is ignored.
func (l *Ledger) WithholdAddress(w WithheldAddress) {
	a := addressFromNetip(w.Address)
	if !w.WithheldUntil.IsZero() && !w.WithheldUntil.After(l.currentTime) {
		return
	}
	if slices.Contains(l.withheldEntriesByAddress[a], w) {
		return
	}
	if l.removeWithheldEntries(a, w.hasSameCause) > 0 {
		l.freedAddressesVersion++
	}
	countedBefore := namespacesThatCaused(l.withheldEntriesByAddress[a])
	l.withheldEntriesByAddress[a] = append(l.withheldEntriesByAddress[a], w)
	if w.Reason == names.ReasonProbing {
		l.probingEntryCount++
	}
	if w.mustSurviveRestart() {
		l.withheldCheckpointVersion++
	}
	if w.Reason == names.ReasonAddressReserved {
		if l.reservedAddressesByReservation[w.ReservationOrForeignHost] == nil {
			l.reservedAddressesByReservation[w.ReservationOrForeignHost] = map[address]struct{}{}
		}
		l.reservedAddressesByReservation[w.ReservationOrForeignHost][a] = struct{}{}
	}
	if w.ServiceThatMayHoldIt != (view.ObjectKey{}) && w.Reason != names.ReasonQuarantined {
		l.withheldAddressesByService[w.ServiceThatMayHoldIt] = append(l.withheldAddressesByService[w.ServiceThatMayHoldIt], a)
	}
	if !w.WithheldUntil.IsZero() {
		l.addWithholdDeadline(withholdDeadline{w.WithheldUntil, a, w.Reason, w.ReservationOrForeignHost})
	}
	if st := l.currentPoolIndex.familyPoolCovering(a); st != nil {
		st.updateWithheldCounts(countedBefore, namespacesThatCaused(l.withheldEntriesByAddress[a]))
		if at, ok := st.assignableNumbering.positionOfAddress(a); ok {
			st.takenPositionTree.markTaken(at)
		}
	}
}

// removeWithheldEntries removes the matching entries of an address and returns how many these were.
// It does not change whether the address is free.
func (l *Ledger) removeWithheldEntries(a address, match func(WithheldAddress) bool) int {
	before, countedBefore := len(l.withheldEntriesByAddress[a]), namespacesThatCaused(l.withheldEntriesByAddress[a])
	rest := l.withheldEntriesByAddress[a][:0]
	for _, w := range l.withheldEntriesByAddress[a] {
		if !match(w) {
			rest = append(rest, w)
			continue
		}
		if w.Reason == names.ReasonProbing {
			l.probingEntryCount--
		}
		if w.mustSurviveRestart() {
			l.withheldCheckpointVersion++
		}
		if w.Reason == names.ReasonAddressReserved {
			if delete(l.reservedAddressesByReservation[w.ReservationOrForeignHost], a); len(l.reservedAddressesByReservation[w.ReservationOrForeignHost]) == 0 {
				delete(l.reservedAddressesByReservation, w.ReservationOrForeignHost)
			}
		}
		if i := slices.Index(l.withheldAddressesByService[w.ServiceThatMayHoldIt], a); i >= 0 && w.Reason != names.ReasonQuarantined {
			l.withheldAddressesByService[w.ServiceThatMayHoldIt] = slices.Delete(l.withheldAddressesByService[w.ServiceThatMayHoldIt], i, i+1)
		}
		if w.Reason != names.ReasonQuarantined && len(l.withheldAddressesByService[w.ServiceThatMayHoldIt]) == 0 {
			delete(l.withheldAddressesByService, w.ServiceThatMayHoldIt)
		}
	}
	if st := l.currentPoolIndex.familyPoolCovering(a); st != nil {
		st.updateWithheldCounts(countedBefore, namespacesThatCaused(rest))
	}
	if l.withheldEntriesByAddress[a] = rest; len(rest) == 0 {
		delete(l.withheldEntriesByAddress, a)
	}
	return before - len(rest)
}

// removeWithheldEntriesAndFreeAddress removes the matching entries of an address, and says whether
// the address became free.
func (l *Ledger) removeWithheldEntriesAndFreeAddress(a address, match func(WithheldAddress) bool) bool {
	if len(l.withheldEntriesByAddress[a]) == 0 {
		return false
	}
	removed := l.removeWithheldEntries(a, match)
	if l.isAddressHeld(a) {
		return false
	}
	if removed > 0 { // another Service may be the next in turn
		l.freedAddressesVersion++
	}
	if len(l.withheldEntriesByAddress[a]) > 0 {
		return false
	}
	if st := l.currentPoolIndex.familyPoolCovering(a); st != nil {
		if at, ok := st.assignableNumbering.positionOfAddress(a); ok {
			st.takenPositionTree.markFree(at)
		}
	}
	return true
}

// WithholdAddressesUntilProbed withholds addresses for a Service until they are probed. They
// replace those proposed to it before.
func (l *Ledger) WithholdAddressesUntilProbed(s *view.Service, addresses []netip.Addr) {
	removeEntriesOfOtherAddresses(l, s.Key, names.ReasonProbing, addresses)
	for _, a := range addresses {
		if !slices.ContainsFunc(l.withheldEntriesByAddress[addressFromNetip(a)], func(w WithheldAddress) bool {
			return w.Reason == names.ReasonProbing && w.ServiceThatMayHoldIt == s.Key
		}) {
			l.WithholdAddress(WithheldAddress{Address: a, ServiceThatMayHoldIt: s.Key, Reason: names.ReasonProbing, WasRequested: slices.Contains(s.RequestedAddresses, a)})
		}
	}
}

// WithholdAddressesUntilStatusWritten withholds addresses that the Service lost to other holders,
// while its status shows them or an earlier write may still bring them: no third Service gets them
// before the status is written. They replace those of an earlier call; without addresses, nothing
// is withheld for this reason any more.
func (l *Ledger) WithholdAddressesUntilStatusWritten(k view.ObjectKey, addresses []netip.Addr) {
	removeEntriesOfOtherAddresses(l, k, names.ReasonAddressInUse, addresses)
	for _, a := range addresses {
		l.WithholdAddress(WithheldAddress{Address: a, ServiceThatMayHoldIt: k, Reason: names.ReasonAddressInUse})
	}
}

// removeEntriesOfOtherAddresses removes the entries that withhold an address for the Service and
// the reason, except for those of the given addresses.
func removeEntriesOfOtherAddresses(l *Ledger, k view.ObjectKey, reason names.Reason, addresses []netip.Addr) {
	for _, a := range slices.Clone(l.withheldAddressesByService[k]) {
		if !slices.Contains(addresses, a.toNetip()) {
			l.removeWithheldEntriesAndFreeAddress(a, func(w WithheldAddress) bool { return w.Reason == reason && w.ServiceThatMayHoldIt == k })
		}
	}
}

// WithheldAddressesAwaitingProbe returns the addresses that need a probe, sorted, with their
// Services.
func (l *Ledger) WithheldAddressesAwaitingProbe() []WithheldAddress {
	return slices.DeleteFunc(l.AllWithheldAddresses(), func(w WithheldAddress) bool { return w.Reason != names.ReasonProbing || w.AcquireProbeFoundNoHost })
}

// HasAddressesWithheldForProbe says whether an address waits for a probe, or for the write that
// follows it.
func (l *Ledger) HasAddressesWithheldForProbe() bool { return l.probingEntryCount > 0 }

// RecordAcquireProbeFoundNoHost records that no host answered for a proposed address: the next
// decision assigns it.
func (l *Ledger) RecordAcquireProbeFoundNoHost(a netip.Addr) {
	for i, w := range l.withheldEntriesByAddress[addressFromNetip(a)] {
		if w.Reason == names.ReasonProbing {
			l.withheldEntriesByAddress[addressFromNetip(a)][i].AcquireProbeFoundNoHost = true
		}
	}
}

// QuarantineAddressAfterProbeAnswer records that a host uses a proposed address. The address goes
// into quarantine, and the next decision chooses another one. If the pool does not probe any more,
// the quarantine lasts an hour. It counts in the quota of the Service that has requested this very
// address: a Service to which the pool proposed it cannot help it.
func (l *Ledger) QuarantineAddressAfterProbeAnswer(a netip.Addr, by string) {
	var requestedBy view.ObjectKey
	for _, w := range l.withheldEntriesByAddress[addressFromNetip(a)] {
		if w.Reason == names.ReasonProbing && w.WasRequested {
			requestedBy = w.ServiceThatMayHoldIt
		}
	}
	l.removeWithheldEntriesAndFreeAddress(addressFromNetip(a), func(w WithheldAddress) bool { return w.Reason == names.ReasonProbing })
	d := time.Hour
	if st := l.currentPoolIndex.familyPoolCovering(addressFromNetip(a)); st != nil && st.pool.AcquireProbe != nil {
		d = st.pool.AcquireProbe.QuarantineDelay
	}
	l.WithholdAddress(WithheldAddress{Address: a, ServiceThatMayHoldIt: requestedBy, Reason: names.ReasonQuarantined, WithheldUntil: l.currentTime.Add(d), ReservationOrForeignHost: by})
}

// removeProbingEntriesOfService removes what is proposed to the Service.
func (l *Ledger) removeProbingEntriesOfService(k view.ObjectKey) {
	if len(l.withheldAddressesByService[k]) > 0 {
		l.WithholdAddressesUntilProbed(&view.Service{Key: k}, nil)
	}
}

// entryWithholdingAddress returns the entry that keeps the address from the Service.
func (l *Ledger) entryWithholdingAddress(a address, k view.ObjectKey) (WithheldAddress, bool) {
	for _, w := range l.withheldEntriesByAddress[a] {
		if w.Reason == names.ReasonQuarantined || w.ServiceThatMayHoldIt != k {
			return w, true
		}
	}
	return WithheldAddress{}, false
}

// didProbeFindNoHost says whether the address was probed for the Service and no host answered.
func (l *Ledger) didProbeFindNoHost(a address, k view.ObjectKey) bool {
	return slices.ContainsFunc(l.withheldEntriesByAddress[a], func(w WithheldAddress) bool {
		return w.Reason == names.ReasonProbing && w.ServiceThatMayHoldIt == k && w.AcquireProbeFoundNoHost
	})
}
