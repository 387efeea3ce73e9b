package snapshot

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/view"
)

// defaultQuarantineDelay is the CRD's default. It gives a person time to look, and the address is
// not lost for long to a notebook that only visited.
const defaultQuarantineDelay = time.Hour

// parsePoolExtension reads spec.gantry of a pool.
func (b *snapshotBuilder) parsePoolExtension(o ObjectReference, pool, before *Pool, in *v1beta1.PoolExtension) {
	if in == nil {
		return
	}
	pool.AssignmentOrder = AssignmentOrder(in.Order)
	if in.Cooldown != nil {
		pool.CooldownDelay = max(in.Cooldown.Duration, 0)
	}
	if in.Quota != nil {
		pool.Quota = &NamespaceQuota{DefaultLimit: -1, LimitByNamespace: map[string]int{}}
		if in.Quota.PerNamespace != nil {
			pool.Quota.DefaultLimit = int(*in.Quota.PerNamespace)
		}
		for _, n := range in.Quota.Namespaces {
			pool.Quota.LimitByNamespace[n.Namespace] = int(n.Addresses)
		}
	}
	if in.Probe != nil {
		pool.AcquireProbe = &ProbeSettings{QuarantineDelay: defaultQuarantineDelay}
		if in.Probe.Quarantine != nil {
			pool.AcquireProbe.QuarantineDelay = in.Probe.Quarantine.Duration
		}
	}
	b.currentObjectUnservable = false
	for i, text := range in.Exclude {
		r, err := ParseRange(text)
		if err != nil {
			field := fmt.Sprintf("spec.gantry.exclude[%d]", i)
			b.reportProblemAndMarkBroken(o, field, names.ReasonInvalidAddress, "%s: %v; until this is corrected the pool gives no further address", field, err)
			continue
		}
		pool.ExcludedRanges = append(pool.ExcludedRanges, r)
	}
	switch {
	case !b.currentObjectUnservable:
	case before != nil:
		pool.ExcludedRanges = before.ExcludedRanges
	default: // it is unknown which addresses must not be given
		pool.ExcludedRanges = slices.Clone(pool.Ranges)
	}
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
		}
		if r.Spec.Expires != nil {
			parsed.ExpiresAt = r.Spec.Expires.Time
		}
		parsed.Addresses = b.parseReservedAddresses(o, "spec.addresses", r.Spec.Addresses)
		for _, a := range parsed.Addresses {
			if !slices.ContainsFunc(pools, func(p *Pool) bool { return p.CanAssign(a) }) {
				b.reportProblem(o, "spec.addresses", names.ReasonAddressNotInPool, "spec.addresses: no pool can give %s: add it to a pool, or remove it here", a)
			}
		}
		if len(parsed.Addresses) == 0 && len(r.Spec.Addresses) > 0 {
			continue // without readable addresses it would follow its Service, which it must not
		}
		if p := r.Spec.Pool; p != "" && !slices.ContainsFunc(pools, func(x *Pool) bool { return x.Name == p }) {
			b.reportProblem(o, "spec.pool", names.ReasonUnknownPool, "spec.pool: no IPAddressPool %q exists: create it, or correct the name", p)
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
