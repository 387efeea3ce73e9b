package allocate

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// DecideReservation says which addresses a reservation should keep; Ledger.KeepReserved then keeps
// them. What it chose once, it continues to keep. The Reason is ReasonReserved when the addresses
// are kept. The Reason and the Text belong into the reservation's condition.
func DecideReservation(r *snapshot.Reservation, l *Ledger, snap *snapshot.Snapshot) Decision {
	m := l.indexSnapshot(snap)
	held, _ := l.AssignmentOf(r.Service)
	kept := l.reservedAddresses(r.Name)
	switch {
	case r.HasExpired(l.currentTime):
		return Decision{Reason: names.ReasonExpired, Text: "the reservation has expired: addresses without a holder are free"}
	case len(r.Addresses) > 0:
		for _, a := range r.Addresses {
			for _, k := range l.HoldersOf(a) {
				if k != r.Service {
					return Decision{Addresses: r.Addresses, Reason: names.ReasonAddressInUse, Text: fmt.Sprintf("%s is held by Service %s; the reservation takes effect when that Service releases it", a, k)}
				}
			}
		}
		return reservedDecision(r, r.Addresses)
	case r.FollowsService() && len(held.Addresses) > 0:
		return reservedDecision(r, held.Addresses)
	case len(kept) > 0:
		return reservedDecision(r, kept)
	case r.FollowsService():
		return Decision{Reason: names.ReasonNoAddress, Text: fmt.Sprintf("Service %s holds no address yet", r.Service)}
	}
	src := m.entryByName[r.Pool]
	if src == nil {
		return Decision{Reason: names.ReasonPoolNotFound, Text: fmt.Sprintf("no IPAddressPool %q exists: create it, or correct the name", r.Pool)}
	}
	s := &view.Service{Key: r.Service, RequestedPool: r.Pool}
	d := decider{service: s, ledger: l, index: m, needsIPv4: src.ipv4.numbering.positionCount > 0, needsIPv6: src.ipv6.numbering.positionCount > 0, countPerFamily: 1, heldBefore: held}
	d.kept = slices.DeleteFunc(slices.Clone(held.Addresses), func(a netip.Addr) bool { return !src.pool.CanAssign(a) })
	for _, f := range [...]view.Family{view.IPv4, view.IPv6} {
		if d.needsFamily(f) && d.countOfFamily(f) == 0 && !d.pickFromPool(src, f) {
			reason, _, text := d.shortageReason()
			return Decision{Reason: reason, Text: text}
		}
	}
	return reservedDecision(r, d.orderAddresses())
}

func reservedDecision(r *snapshot.Reservation, addresses []netip.Addr) Decision {
	return Decision{Addresses: addresses, Pool: r.Pool, Reason: names.ReasonReserved, Text: fmt.Sprintf("%s is kept for Service %s", joinAddresses(addresses), r.Service)}
}

// KeepReserved keeps exactly these addresses for a reservation.
func (l *Ledger) KeepReserved(r *snapshot.Reservation, addresses []netip.Addr) {
	for _, a := range l.reservedAddresses(r.Name) {
		if !slices.Contains(addresses, a) {
			l.releaseEntries(addressOf(a), func(w WithheldAddress) bool { return w.Reason == names.ReasonAddressReserved && w.By == r.Name })
		}
	}
	for _, a := range addresses {
		l.WithholdAddress(WithheldAddress{Address: a, Service: r.Service, Reason: names.ReasonAddressReserved, Until: r.ExpiresAt, By: r.Name})
	}
}

// reservedAddresses returns what a reservation keeps, sorted.
func (l *Ledger) reservedAddresses(name string) []netip.Addr {
	var out []netip.Addr
	for a := range l.reservedByReservation[name] {
		out = append(out, a.toNetip())
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// applyReservations brings the reserved addresses in line with the Snapshot. A reservation keeps
// what it chose or took over from its Service as long as it exists, because its status in the
// Snapshot may be older.
func (l *Ledger) applyReservations(snap *snapshot.Snapshot) {
	there := map[string]bool{}
	l.followingByService = map[view.ObjectKey]*snapshot.Reservation{}
	if snap != nil {
		for _, r := range snap.Reservations {
			if r.HasExpired(l.currentTime) {
				continue
			}
			there[r.Name] = true
			if r.FollowsService() {
				l.followingByService[r.Service] = r
			}
			kept := l.reservedAddresses(r.Name)
			switch {
			case len(r.Addresses) > 0:
				kept = r.Addresses
			case len(kept) == 0:
				kept = r.KeptAddresses
			}
			l.KeepReserved(r, kept)
		}
	}
	for name := range l.reservedByReservation {
		if !there[name] {
			l.KeepReserved(&snapshot.Reservation{Name: name}, nil)
		}
	}
}
