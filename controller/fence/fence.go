// Package fence keeps two controllers from assigning one address twice, whatever they do at the
// same time: change leaders with writes in flight, resume after a pause, work with an old cache, or
// be started twice by mistake.
//
// Before a controller writes an address into a Service's status, it records a pending assignment in
// an object that all controllers write by compare and swap (the AddressLedger). This order makes it
// safe:
//
// 1. A controller writes a new address into a status only after its pending assignment is in the
// object. It writes the status on the resourceVersion in the assignment (the base), so that the API
// server refuses the write if the Service has changed since. 2. A swap succeeds only if the
// controller knows the current object. So at that moment no other controller has assigned an
// address that this one does not know of. A controller whose swap is refused reads everything
// again: first the object, then all Services from the API server itself, never from a cache. 3. A
// pending assignment is removed only when it is closed. It is closed when the Service has a later
// resourceVersion than the base, so that the status shows the addresses or never can. It is closed
// when the API server has answered every write that may bring its addresses, which only the
// controller that sent them knows. It is closed when the status shows its addresses already, and
// when the Service was deleted. Until then the Service counts as a holder of the addresses. A
// controller that did not send the write closes the assignment by a write of its own, which changes
// the resourceVersion.
//
// One case is open: a user deletes the object, and the controller with writes in flight dies before
// it writes the object again. The next controller creates an empty one and cannot know these
// writes. Until the API server has handled them, it may assign their addresses to other Services.
// It then sees two Services with one address, and one of them gets another address. Only
// administrators can delete the object.
//
// The package is pure: it decides what the object should contain and what that means. It reads no
// clock and knows no API. A Fence belongs to one goroutine.
package fence

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/gantry-lb/gantry/internal/view"
)

// Pending is a pending assignment: the API server may still receive a status with these addresses
// for the Service.
type Pending struct {
	Service view.ObjectKey
	// BaseVersion is the resourceVersion of the Service on which the status is written.
	BaseVersion string
	// Addresses are all addresses that a write on the Base may bring.
	Addresses []netip.Addr
}

// Fence holds the pending assignments that the object must contain, as far as one controller knows.
// The zero value is not usable; call NewFence.
type Fence struct {
	pendingByService map[view.ObjectKey]Pending
	// inheritedAddressesByService are the addresses of open assignments that were in the object
	// when it was read. While the base is the same, a write by another controller may bring them.
	inheritedAddressesByService map[view.ObjectKey][]netip.Addr
	// hasUnshown says that something is pending that the object does not show until it is written
	// again.
	hasUnshown bool
}

// NewFence returns the Fence for an object with these assignments. Call it when the object has been
// read; RemoveSettledPending then removes the closed ones.
func NewFence(intents []Pending) *Fence {
	f := &Fence{pendingByService: make(map[view.ObjectKey]Pending, len(intents)), inheritedAddressesByService: make(map[view.ObjectKey][]netip.Addr, len(intents))}
	f.RecordWrittenBatch(intents)
	for k, i := range f.pendingByService {
		f.inheritedAddressesByService[k] = i.Addresses
	}
	return f
}

// RemoveSettledPending removes closed assignments. version returns the resourceVersion of a
// Service, read after the object, and false for a Service that does not exist. It returns the open
// assignments, sorted by Service.
func (f *Fence) RemoveSettledPending(version func(view.ObjectKey) (string, bool)) []Pending {
	for k, i := range f.pendingByService {
		if now, exists := version(k); !exists || isLaterVersion(now, i.BaseVersion) {
			f.removePending(k)
		}
	}
	return f.PendingAfterBatch(nil)
}

// ParseResourceVersion reads a resourceVersion, which the API server counts up from 1. It returns 0
// when it is not a number.
func ParseResourceVersion(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// isLaterVersion says whether the version is later than the base, so that no write on the base can
// succeed. A cache that is behind may show a version from before the base.
func isLaterVersion(version, base string) bool {
	v, b := ParseResourceVersion(version), ParseResourceVersion(base)
	if v == 0 || b == 0 {
		return version != base
	}
	return v > b
}

// PendingAddresses returns the addresses that a write may still bring to a Service with this
// resourceVersion; nil when there are none. No other Service may get them.
func (f *Fence) PendingAddresses(k view.ObjectKey, version string) []netip.Addr {
	if i, ok := f.pendingByService[k]; ok && !isLaterVersion(version, i.BaseVersion) {
		return i.Addresses
	}
	return nil
}

// CoversPending says whether the object has an assignment on the same base with all of these
// addresses, so that they may be written without another one.
func (f *Fence) CoversPending(i Pending) bool {
	has, ok := f.pendingByService[i.Service]
	return ok && !f.hasUnshown && has.BaseVersion == i.BaseVersion && !slices.ContainsFunc(i.Addresses, func(a netip.Addr) bool { return !slices.Contains(has.Addresses, a) })
}

// HasPending says whether the Service has an open assignment on any base. Another one of the same
// Service takes no more room in the object.
func (f *Fence) HasPending(k view.ObjectKey) bool {
	_, ok := f.pendingByService[k]
	return ok
}

// PendingAfterBatch returns what the object should contain when the assignments of a batch are
// added to the open ones, sorted by Service. The Fence changes only with RecordWrittenBatch.
func (f *Fence) PendingAfterBatch(batch []Pending) []Pending {
	all := maps.Clone(f.pendingByService)
	for _, i := range batch {
		all[i.Service] = mergePending(all[i.Service], i)
	}
	out := slices.Collect(maps.Values(all))
	slices.SortFunc(out, func(a, b Pending) int { return a.Service.Compare(b.Service) })
	return out
}

// mergePending merges an older and a newer assignment of one Service. On another base the older
// write cannot succeed any more; on the same base both may.
func mergePending(old, next Pending) Pending {
	if old.BaseVersion != next.BaseVersion {
		return next
	}
	next.Addresses = slices.Clone(next.Addresses)
	for _, a := range old.Addresses {
		if !slices.Contains(next.Addresses, a) {
			next.Addresses = append(next.Addresses, a)
		}
	}
	return next
}

// AddUnshown adds the assignments that were pending before the object was read again, because a
// user may have deleted or edited the object while the writes continue. Of two bases the later one
// counts. Call it before RemoveSettledPending.
func (f *Fence) AddUnshown(before *Fence) {
	for k, i := range before.pendingByService {
		has, ok := f.pendingByService[k]
		if ok && isLaterVersion(has.BaseVersion, i.BaseVersion) {
			continue
		}
		merged := i
		if ok {
			merged = mergePending(has, i)
		}
		f.hasUnshown = f.hasUnshown || !f.CoversPending(merged)
		f.pendingByService[k], f.inheritedAddressesByService[k] = merged, merged.Addresses
	}
}

// HasLaterBase says whether the Service has a pending assignment on a later resourceVersion than
// this one.
func (f *Fence) HasLaterBase(k view.ObjectKey, version string) bool {
	i, ok := f.pendingByService[k]
	return ok && isLaterVersion(i.BaseVersion, version)
}

// RecordWrittenBatch records that the object now contains the assignments of a batch.
func (f *Fence) RecordWrittenBatch(batch []Pending) {
	f.hasUnshown = false
	for _, i := range batch {
		if f.pendingByService[i.Service].BaseVersion != i.BaseVersion {
			delete(f.inheritedAddressesByService, i.Service)
		}
		f.pendingByService[i.Service] = mergePending(f.pendingByService[i.Service], i)
	}
}

// ClosePending records that no write to the Service on this base is in flight any more. An empty
// base means any base: the Service was deleted.
func (f *Fence) ClosePending(k view.ObjectKey, base string) {
	if i, ok := f.pendingByService[k]; ok && (base == "" || i.BaseVersion == base) {
		f.removePending(k)
	}
}

// RecordRefusedWrite records that the API server refused this controller's own write on the base,
// and that the Service has not changed. Addresses of another controller's write stay pending.
func (f *Fence) RecordRefusedWrite(k view.ObjectKey, base string) {
	i, ok := f.pendingByService[k]
	if !ok || i.BaseVersion != base {
		return
	}
	if i.Addresses = f.inheritedAddressesByService[k]; len(i.Addresses) == 0 {
		f.removePending(k)
		return
	}
	f.pendingByService[k] = i
}

// DropSupersededPending records that the Service has this resourceVersion: a write on an older base
// cannot succeed any more.
func (f *Fence) DropSupersededPending(k view.ObjectKey, version string) {
	if i, ok := f.pendingByService[k]; ok && isLaterVersion(version, i.BaseVersion) {
		f.removePending(k)
	}
}

func (f *Fence) removePending(k view.ObjectKey) {
	delete(f.pendingByService, k)
	delete(f.inheritedAddressesByService, k)
}

// CountPending counts the open assignments.
func (f *Fence) CountPending() int { return len(f.pendingByService) }
