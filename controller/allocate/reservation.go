package allocate

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// DecideReservation says which addresses a reservation keeps; Ledger.Keep then keeps them. What it has chosen once it goes on keeping. Reason is
// ReasonReserved when all is well, and every other one with its sentence belongs into the reservation's condition.
func DecideReservation(r *snapshot.Reservation, l *Ledger, snap *snapshot.Snapshot) Decision {
	m := l.follow(snap)
	held, _ := l.Held(r.Service)
	kept := l.keptBy(r.Name)
	switch {
	case r.HasExpired(l.now):
		return Decision{Reason: names.ReasonExpired, Text: "the reservation has expired: what nobody held is free"}
	case len(r.Addresses) > 0:
		for _, a := range r.Addresses {
			for _, k := range l.Holders(a) {
				if k != r.Service {
					return Decision{Addresses: r.Addresses, Reason: names.ReasonAddressInUse, Text: fmt.Sprintf("%s is held by Service %s, and is kept once that one gives it back", a, k)}
				}
			}
		}
		return reserved(r, r.Addresses)
	case r.FollowsService() && len(held.Addresses) > 0:
		return reserved(r, held.Addresses)
	case len(kept) > 0:
		return reserved(r, kept)
	case r.FollowsService():
		return Decision{Reason: names.ReasonNoAddress, Text: fmt.Sprintf("Service %s holds no address yet that could be kept", r.Service)}
	}
	src := m.byName[r.Pool]
	if src == nil {
		return Decision{Reason: names.ReasonPoolNotFound, Text: fmt.Sprintf("no IPAddressPool %q exists: create it, or correct the name", r.Pool)}
	}
	s := &view.Service{Key: r.Service, RequestedPool: r.Pool}
	d := decider{s: s, l: l, m: m, v4: src.v4.layout.size > 0, v6: src.v6.layout.size > 0, count: 1, held: held}
	d.kept = slices.DeleteFunc(slices.Clone(held.Addresses), func(a netip.Addr) bool { return !src.pool.CanAssign(a) })
	for _, f := range [...]view.Family{view.IPv4, view.IPv6} {
		if d.wants(f) && d.have(f) == 0 && !d.choose(src, f) {
			reason, _, text := d.short()
			return Decision{Reason: reason, Text: text}
		}
	}
	return reserved(r, d.arrange())
}

func reserved(r *snapshot.Reservation, addresses []netip.Addr) Decision {
	return Decision{Addresses: addresses, Pool: r.Pool, Reason: names.ReasonReserved, Text: fmt.Sprintf("%s is kept for Service %s", join(addresses), r.Service)}
}

// Keep keeps exactly these addresses for a reservation.
func (l *Ledger) Keep(r *snapshot.Reservation, addresses []netip.Addr) {
	for _, a := range l.keptBy(r.Name) {
		if !slices.Contains(addresses, a) {
			l.drop(addressOf(a), func(w Withheld) bool { return w.Reason == names.ReasonAddressReserved && w.By == r.Name })
		}
	}
	for _, a := range addresses {
		l.Withhold(Withheld{Address: a, Service: r.Service, Reason: names.ReasonAddressReserved, Until: r.ExpiresAt, By: r.Name})
	}
}

// keptBy returns what a reservation keeps, sorted.
func (l *Ledger) keptBy(name string) []netip.Addr {
	var out []netip.Addr
	for a := range l.reserved[name] {
		out = append(out, a.netip())
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// reserve brings the reserved addresses in line with the Snapshot. What a reservation has chosen, or taken over from its Service, it keeps as long as
// it exists: its status, which the Snapshot knows it by, may lag behind.
func (l *Ledger) reserve(snap *snapshot.Snapshot) {
	there := map[string]bool{}
	l.keeping = map[view.ObjectKey]*snapshot.Reservation{}
	if snap != nil {
		for _, r := range snap.Reservations {
			if r.HasExpired(l.now) {
				continue
			}
			there[r.Name] = true
			if r.FollowsService() {
				l.keeping[r.Service] = r
			}
			kept := l.keptBy(r.Name)
			switch {
			case len(r.Addresses) > 0:
				kept = r.Addresses
			case len(kept) == 0:
				kept = r.KeptAddresses
			}
			l.Keep(r, kept)
		}
	}
	for name := range l.reserved {
		if !there[name] {
			l.Keep(&snapshot.Reservation{Name: name}, nil)
		}
	}
}
