package snapshot

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/internal/view"
)

// Reservation is a parsed AddressReservation: it keeps addresses for one Service, whether that
// exists or not.
type Reservation struct {
	Name    string
	Service view.ObjectKey
	// Addresses are the addresses that the object names. Without Addresses and Pool the reservation
	// follows its Service: it keeps what a deleted Service held.
	Addresses []netip.Addr
	// PoolToChooseFrom is the pool from which an address of each family is chosen, before the
	// Service exists.
	PoolToChooseFrom string
	// StatusAddresses are the addresses in the reservation's status, chosen or taken over earlier.
	StatusAddresses []netip.Addr
	// CreatedAt is when the object was created. Of two reservations of one address the older one
	// counts.
	CreatedAt time.Time
	// ExpiresAt is when the reservation ends; zero means never.
	ExpiresAt time.Time
}

// IsOlderThan says whether r counts before o. Of two that were created in one second, the first by
// name counts.
func (r *Reservation) IsOlderThan(o *Reservation) bool {
	return cmp.Or(r.CreatedAt.Compare(o.CreatedAt), cmp.Compare(r.Name, o.Name)) < 0
}

// HasExpired says whether the reservation has ended.
func (r *Reservation) HasExpired(now time.Time) bool {
	return !r.ExpiresAt.IsZero() && !r.ExpiresAt.After(now)
}

// KeepsAddressesOfDeletedService says whether the reservation takes over what its Service held.
func (r *Reservation) KeepsAddressesOfDeletedService() bool {
	return len(r.Addresses) == 0 && r.PoolToChooseFrom == ""
}

// ReservedAddresses returns the addresses that are kept for the Service.
func (r *Reservation) ReservedAddresses() []netip.Addr {
	if len(r.Addresses) > 0 {
		return r.Addresses
	}
	return r.StatusAddresses
}

// parseReservations parses the AddressReservations. It reports only faults that the object itself
// shows; package allocate reports what cannot be reserved.
func (b *snapshotBuilder) parseReservations(in []v1alpha1.AddressReservation, pools []*Pool) []*Reservation {
	var out []*Reservation
	for i := range in {
		r := &in[i]
		o := ObjectReference{Kind: "AddressReservation", Namespace: r.Namespace, Name: r.Name}
		parsed := &Reservation{
			Name: r.Name, Service: view.ObjectKey{Namespace: r.Spec.Service.Namespace, Name: r.Spec.Service.Name}, PoolToChooseFrom: r.Spec.Pool,
			CreatedAt: r.CreationTimestamp.Time,
		}
		if r.Spec.Expires != nil {
			parsed.ExpiresAt = r.Spec.Expires.Time
		}
		parsed.Addresses = b.parseReservedAddresses(o, "spec.addresses", r.Spec.Addresses)
		for _, a := range parsed.Addresses {
			if !slices.ContainsFunc(pools, func(p *Pool) bool { return p.CanAssignAddress(a) }) {
				b.reportProblem(o, "spec.addresses", names.ReasonAddressNotInPool, "spec.addresses: no pool can give %s: add it to a pool, or remove it here", a)
			}
		}
		if len(parsed.Addresses) == 0 && len(r.Spec.Addresses) > 0 {
			continue // without readable addresses it would follow its Service, which it must not
		}
		if p := r.Spec.Pool; p != "" && !slices.ContainsFunc(pools, func(x *Pool) bool { return x.Name == p }) {
			b.reportProblem(o, "spec.pool", names.ReasonUnknownPool, "spec.pool: no IPAddressPool %q exists in namespace %q: create it, or correct the name", p, o.Namespace)
		}
		for _, text := range r.Status.Addresses {
			if a, err := netip.ParseAddr(text); err == nil {
				parsed.StatusAddresses = append(parsed.StatusAddresses, a.Unmap())
			}
		}
		out = append(out, parsed)
	}
	slices.SortFunc(out, func(x, y *Reservation) int { return cmp.Compare(x.Name, y.Name) })
	return out
}

// parseReservedAddresses parses the addresses of a reservation.
func (b *snapshotBuilder) parseReservedAddresses(o ObjectReference, field string, texts []string) []netip.Addr {
	var out []netip.Addr
	for i, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			b.reportProblem(o, field, names.ReasonInvalidAddress, "%s[%d]: %q is no address: write one such as 192.0.2.10 or 2001:db8::10", field, i, text)
			continue
		}
		out = append(out, a.Unmap())
	}
	return out
}
