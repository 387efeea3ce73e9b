package allocate

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// DecideReservation says which addresses a reservation should keep;
// Ledger.WithholdReservedAddresses then keeps them. What it chose once, it continues to keep. The
// Reason is ReasonReserved when the addresses are kept. The Reason and the Text belong into the
// reservation's condition.
func DecideReservation(r *snapshot.Reservation, l *Ledger, snap *snapshot.Snapshot) Decision {
	m := l.indexPoolsOfSnapshot(snap)
	held, _ := l.AssignmentOf(r.Service)
	kept := l.addressesKeptByReservation(r.Name)
	switch {
	case r.HasExpired(l.currentTime):
		return Decision{Explanation: names.NewExplanation(names.ReasonExpired, "the reservation has expired: addresses without a holder are free")}
	case len(r.Addresses) > 0:
		if d, clash := l.decisionIfOlderReservationsClash(r); clash {
			return d
		}
		for _, a := range r.Addresses {
			for _, k := range l.HoldersOfAddress(a) {
				if k != r.Service {
					return Decision{Addresses: r.Addresses, Explanation: names.NewExplanation(names.ReasonAddressInUse, "%s is held by Service %s; the reservation takes effect when that Service releases it", a, k)}
				}
			}
		}
		return newDecisionForReservation(r, r.Addresses)
	case r.KeepsAddressesOfDeletedService() && len(held.Addresses) > 0:
		return newDecisionForReservation(r, held.Addresses)
	case len(kept) > 0:
		return newDecisionForReservation(r, kept)
	case r.KeepsAddressesOfDeletedService():
		return Decision{Explanation: names.NewExplanation(names.ReasonNoAddress, "Service %s holds no address yet", r.Service)}
	}
	src := m.poolEntryByName[r.PoolToChooseFrom]
	if src == nil {
		return Decision{Explanation: names.NewExplanation(names.ReasonPoolNotFound, "no IPAddressPool %q exists%s: create it there, or correct the name", r.PoolToChooseFrom, m.namespacePhraseForPools())}
	}
	s := &view.Service{Key: r.Service, RequestedPool: r.PoolToChooseFrom}
	d := decider{service: s, ledger: l, currentPoolIndex: m, needsIPv4: src.ipv4Pool.assignableNumbering.positionCount > 0, needsIPv6: src.ipv6Pool.assignableNumbering.positionCount > 0, wantedPerFamily: 1, stillHoldableAssignmentBefore: held}
	d.keptAddresses = slices.DeleteFunc(slices.Clone(held.Addresses), func(a netip.Addr) bool { return !src.pool.CanAssignAddress(a) })
	for _, f := range [...]ipfamily.Family{ipfamily.IPv4, ipfamily.IPv6} {
		if d.needsFamily(f) && d.countDecidedOfFamily(f) == 0 && !d.pickSharedOrFreeAddressFromPool(src, f) {
			return Decision{Explanation: d.explainShortage()}
		}
	}
	return newDecisionForReservation(r, d.orderKeptAndPickedAddresses())
}

func newDecisionForReservation(r *snapshot.Reservation, addresses []netip.Addr) Decision {
	return Decision{Addresses: addresses, PoolOfFirstAddress: r.PoolToChooseFrom, Explanation: names.NewExplanation(names.ReasonReserved, "%s is kept for Service %s", view.JoinAddresses(addresses), r.Service)}
}

// decisionIfOlderReservationsClash decides about a reservation of which older ones for other
// Services keep an address.
func (l *Ledger) decisionIfOlderReservationsClash(r *snapshot.Reservation) (d Decision, clash bool) {
	for _, a := range r.Addresses {
		older := l.olderReservationOf(a, r)
		switch {
		case older == nil:
			d.Addresses = append(d.Addresses, a)
		case !clash:
			clash = true
			d.Explanation = names.NewExplanation(names.ReasonAddressInUse, "AddressReservation %q, which is older, keeps %s for Service %s: remove the address from one of the two", older.Name, a, older.Service)
		}
	}
	return d, clash
}

// olderReservationOf returns a reservation that keeps the address for another Service and counts
// before r, nil when there is none.
func (l *Ledger) olderReservationOf(a netip.Addr, r *snapshot.Reservation) *snapshot.Reservation {
	for _, w := range l.withheldEntriesByAddress[addressFromNetip(a)] {
		if o := l.reservationByName[w.ReservationOrForeignHost]; w.Reason == names.ReasonAddressReserved && o != nil && o.Service != r.Service && o.IsOlderThan(r) {
			return o
		}
	}
	return nil
}

// WithholdReservedAddresses keeps exactly these addresses for a reservation, except for those that
// an older one keeps for another Service.
func (l *Ledger) WithholdReservedAddresses(r *snapshot.Reservation, addresses []netip.Addr) {
	for _, a := range l.addressesKeptByReservation(r.Name) {
		if !slices.Contains(addresses, a) || l.olderReservationOf(a, r) != nil {
			l.removeWithheldEntriesAndFreeAddress(addressFromNetip(a), func(w WithheldAddress) bool {
				return w.Reason == names.ReasonAddressReserved && w.ReservationOrForeignHost == r.Name
			})
		}
	}
	for _, a := range addresses {
		if l.olderReservationOf(a, r) != nil {
			continue
		}
		l.removeWithheldEntries(addressFromNetip(a), func(w WithheldAddress) bool {
			o := l.reservationByName[w.ReservationOrForeignHost]
			return w.Reason == names.ReasonAddressReserved && o != nil && o.Service != r.Service && r.IsOlderThan(o)
		})
		l.WithholdAddress(WithheldAddress{Address: a, ServiceThatMayHoldIt: r.Service, Reason: names.ReasonAddressReserved, WithheldUntil: r.ExpiresAt, ReservationOrForeignHost: r.Name})
	}
}

// addressesKeptByReservation returns what a reservation keeps, sorted.
func (l *Ledger) addressesKeptByReservation(name string) []netip.Addr {
	var out []netip.Addr
	for a := range l.reservedAddressesByReservation[name] {
		out = append(out, a.toNetip())
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// applyReservations brings the reserved addresses in line with the Snapshot. A reservation keeps
// what it chose or took over from its Service as long as it exists, because its status in the
// Snapshot may be older.
func (l *Ledger) applyReservations(snap *snapshot.Snapshot) {
	l.reservationByName = map[string]*snapshot.Reservation{}
	l.reservationKeepingReleasedByService = map[view.ObjectKey]*snapshot.Reservation{}
	if snap != nil {
		for _, r := range snap.Reservations {
			if !r.HasExpired(l.currentTime) {
				l.reservationByName[r.Name] = r
			}
		}
	}
	for name := range l.reservedAddressesByReservation {
		if l.reservationByName[name] == nil {
			l.WithholdReservedAddresses(&snapshot.Reservation{Name: name}, nil)
		}
	}
	oldestFirst := slices.SortedFunc(maps.Values(l.reservationByName), func(x, y *snapshot.Reservation) int {
		if x.IsOlderThan(y) {
			return -1
		}
		return 1
	})
	for _, r := range oldestFirst {
		if r.KeepsAddressesOfDeletedService() {
			l.reservationKeepingReleasedByService[r.Service] = r
		}
		kept := l.addressesKeptByReservation(r.Name)
		switch {
		case len(r.Addresses) > 0:
			kept = r.Addresses
		case len(kept) == 0:
			kept = r.StatusAddresses
		}
		l.WithholdReservedAddresses(r, kept)
	}
}
