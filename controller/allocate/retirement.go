package allocate

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// FilterRetiredAddresses returns those of the addresses that their pool retires.
func (l *Ledger) FilterRetiredAddresses(addresses []netip.Addr, snap *snapshot.Snapshot) []netip.Addr {
	index := l.indexPoolsOfSnapshot(snap)
	var out []netip.Addr
	for _, a := range addresses {
		if src := index.poolEntryCovering(addressFromNetip(a)); src != nil && src.pool.IsAddressRetired(a) {
			out = append(out, a)
		}
	}
	return out
}

// ServicesHoldingRetiredAddresses returns the Services that hold a retired address of the pool,
// sorted.
func (l *Ledger) ServicesHoldingRetiredAddresses(p *snapshot.Pool, snap *snapshot.Snapshot) []view.ObjectKey {
	index := l.indexPoolsOfSnapshot(snap)
	var out []view.ObjectKey
	l.forEachRecordAddress(func(id int32, a address) {
		if src := index.poolEntryCovering(a); src != nil && src.pool == p && p.IsAddressRetired(a.toNetip()) {
			out = append(out, l.recordAt(id).service)
		}
	})
	slices.SortFunc(out, view.ObjectKey.Compare)
	return slices.Compact(out)
}

// DecideAssignmentWithoutRetired decides like DecideAssignment for a Service whose turn it is to
// give up its retired addresses. moved is false when it cannot have as many others; then it keeps
// what it has.
func DecideAssignmentWithoutRetired(s *view.Service, l *Ledger, snap *snapshot.Snapshot) (d Decision, moved bool) {
	held, _ := l.AssignmentOf(s.Key)
	retired := l.FilterRetiredAddresses(held.Addresses, snap)
	if len(retired) == 0 || len(s.RequestedAddresses) > 0 {
		return DecideAssignment(s, l, snap), false
	}
	exchanging := *s
	exchanging.AddressesToExchange = slices.Concat(s.AddressesToExchange, retired)
	d = DecideAssignment(&exchanging, l, snap)
	if len(d.AddressesToProbe) > 0 {
		return d, true
	}
	isRetired := func(a netip.Addr) bool { return slices.Contains(retired, a) }
	if len(d.Addresses) < len(held.Addresses) || slices.ContainsFunc(d.Addresses, isRetired) {
		return DecideAssignment(s, l, snap), false
	}
	return d, true
}

// FreeWithheldAddressesNamedByPool ends the cool-down and the quarantine of those addresses of a
// pool that its annotation names. It returns the addresses that became free.
func (l *Ledger) FreeWithheldAddressesNamedByPool(p *snapshot.Pool) []netip.Addr {
	var freed []netip.Addr
	for _, w := range l.AllWithheldAddresses() {
		isNamed := slices.ContainsFunc(p.WithheldAddressesToFree, func(r snapshot.Range) bool { return r.Contains(w.Address) })
		if w.mustSurviveRestart() && isNamed && p.CoversAddress(w.Address) &&
			l.removeWithheldEntriesAndFreeAddress(addressFromNetip(w.Address), WithheldAddress.mustSurviveRestart) {
			freed = append(freed, w.Address)
		}
	}
	return freed
}
