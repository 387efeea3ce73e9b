// Package pendingwrites keeps two controllers from assigning one address twice, whatever they do at
// the same time: change leaders with writes in flight, resume after a pause, work with an old
// cache, or be started twice by mistake.
//
// Before a controller writes an address into a Service's status, it records a pending assignment in
// an object that all controllers write by compare and swap (the AddressLedger). This order makes it
// safe:
//
// 1. A controller writes a new address into a status only after it has itself written the object
// with the pending assignment. An assignment of another controller is not enough: that one may
// remove it. It writes the status on the resourceVersion in the assignment (the base), so that the
// API server refuses the write if the Service has changed since.
//
// 2. A swap succeeds only if the controller knows the current object. So at that moment no other
// controller has assigned an address that this one does not know of. A controller whose swap is
// refused reads everything again: first the object, then all Services from the API server itself,
// never from a cache.
//
// 3. A pending assignment is removed only when it is closed. It is closed when the Service has a
// later resourceVersion than the base, so that the status shows the addresses or never can. It is
// closed when the API server has answered every write that may bring its addresses, which only the
// controller that sent them knows. It is closed when the status shows its addresses already, and
// when the Service was deleted. Until then the Service counts as a holder of the addresses. A
// controller that did not send the write closes the assignment by a write of its own, which changes
// the resourceVersion.
//
// The object can be incomplete: a user deleted it, or the API server refuses it with the entry of a
// write in flight, which is then left out. It says so itself, and a new object counts as
// incomplete. A controller that reads an incomplete object first changes the resourceVersion of
// every Service, so that no write that is not listed can succeed.
//
// One assumption: a write that the API server has refused does not arrive a second time.
//
// The package is pure: it decides what the object should contain and what that means. It reads no
// clock and knows no API. A Set belongs to one goroutine.
package pendingwrites

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/gantry-lb/gantry/internal/view"
)

// PendingStatusWrite is a pending assignment: the API server may still receive a status with these
// addresses for the Service.
type PendingStatusWrite struct {
	Service view.ObjectKey
	// BaseResourceVersion is the resourceVersion of the Service on which the status is written.
	BaseResourceVersion string
	// Addresses are all addresses that a write on the Base may bring.
	Addresses []netip.Addr
}

// Set holds the pending assignments that the object must contain, as far as one controller knows.
// The zero value is not usable; call NewSet.
type Set struct {
	pendingByService map[view.ObjectKey]PendingStatusWrite
	// pendingAddressesOfOthersByService are the addresses of open assignments that were in the
	// object when it was read. While the base is the same, a write by another controller may bring
	// them.
	pendingAddressesOfOthersByService map[view.ObjectKey][]netip.Addr
	// mustWriteAddressLedgerFirst says that no write may rely on the object before this controller
	// has written it: something is pending that it does not show, or another controller wrote it
	// and may remove an assignment when its own write is refused.
	mustWriteAddressLedgerFirst bool
	// servicesNotInAddressLedger have an open assignment that the object leaves out, because the
	// API server refuses the object with it.
	servicesNotInAddressLedger map[view.ObjectKey]struct{}
}

// NewSet returns the Set for an object with these assignments. Call it when the object has been
// read; RemoveClosedPending then removes the closed ones.
func NewSet(intents []PendingStatusWrite) *Set {
	f := &Set{
		pendingByService:                  make(map[view.ObjectKey]PendingStatusWrite, len(intents)),
		pendingAddressesOfOthersByService: make(map[view.ObjectKey][]netip.Addr, len(intents)),
		servicesNotInAddressLedger:        map[view.ObjectKey]struct{}{},
	}
	f.RecordBatchInAddressLedger(intents)
	f.mustWriteAddressLedgerFirst = true
	for k, i := range f.pendingByService {
		f.pendingAddressesOfOthersByService[k] = i.Addresses
	}
	return f
}

// RemoveClosedPending removes closed assignments. version returns the resourceVersion of a
// Service, read after the object, and false for a Service that does not exist. It returns the open
// assignments, sorted by Service.
func (f *Set) RemoveClosedPending(version func(view.ObjectKey) (string, bool)) []PendingStatusWrite {
	for k, i := range f.pendingByService {
		if now, exists := version(k); !exists || isLaterVersion(now, i.BaseResourceVersion) {
			f.removePending(k)
		}
	}
	return f.ListOpenPending()
}

// ListOpenPending returns the open assignments, sorted by Service.
func (f *Set) ListOpenPending() []PendingStatusWrite { return sortPendingByService(f.pendingByService) }

func sortPendingByService(all map[view.ObjectKey]PendingStatusWrite) []PendingStatusWrite {
	out := slices.Collect(maps.Values(all))
	slices.SortFunc(out, func(a, b PendingStatusWrite) int { return a.Service.Compare(b.Service) })
	return out
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

// PendingAddressesOfService returns the addresses that a write may still bring to a Service with
// this resourceVersion; nil when there are none. No other Service may get them.
func (f *Set) PendingAddressesOfService(k view.ObjectKey, version string) []netip.Addr {
	if i, ok := f.pendingByService[k]; ok && !isLaterVersion(version, i.BaseResourceVersion) {
		return i.Addresses
	}
	return nil
}

// AddressLedgerContainsPending says whether the object has an assignment on the same base with all
// of these addresses, so that they may be written without another one. This controller must have
// written the object: then another one can remove nothing before it has read the object again.
func (f *Set) AddressLedgerContainsPending(i PendingStatusWrite) bool {
	has, ok := f.pendingByService[i.Service]
	if _, omitted := f.servicesNotInAddressLedger[i.Service]; omitted {
		return false
	}
	return ok && !f.mustWriteAddressLedgerFirst && has.BaseResourceVersion == i.BaseResourceVersion && !slices.ContainsFunc(i.Addresses, func(a netip.Addr) bool { return !slices.Contains(has.Addresses, a) })
}

// AddressLedgerContainsService says whether the object has an open assignment of the Service, on
// any base. Another one of the same Service takes no more room in the object.
func (f *Set) AddressLedgerContainsService(k view.ObjectKey) bool {
	_, ok := f.pendingByService[k]
	_, omitted := f.servicesNotInAddressLedger[k]
	return ok && !omitted
}

// ListPendingMergedWithBatch returns what the object should contain when the assignments of a batch
// are added to the open ones, sorted by Service, without those that it leaves out. The Set changes
// only with RecordBatchInAddressLedger.
func (f *Set) ListPendingMergedWithBatch(batch []PendingStatusWrite) []PendingStatusWrite {
	all := maps.Clone(f.pendingByService)
	for k := range f.servicesNotInAddressLedger {
		delete(all, k)
	}
	f.mergeBatchInto(all, batch)
	return sortPendingByService(all)
}

// ListPendingOfBatchOnly returns the assignments of a batch, merged with the open ones of the same
// Services. An object with nothing else is incomplete.
func (f *Set) ListPendingOfBatchOnly(batch []PendingStatusWrite) []PendingStatusWrite {
	all := make(map[view.ObjectKey]PendingStatusWrite, len(batch))
	f.mergeBatchInto(all, batch)
	return sortPendingByService(all)
}

func (f *Set) mergeBatchInto(all map[view.ObjectKey]PendingStatusWrite, batch []PendingStatusWrite) {
	for _, i := range batch {
		all[i.Service] = mergePendingOfSameService(f.pendingByService[i.Service], i)
	}
}

// OmitFromAddressLedger records that the object leaves out the open assignment of the Service, and
// says whether it did not before.
func (f *Set) OmitFromAddressLedger(k view.ObjectKey) bool {
	_, open := f.pendingByService[k]
	_, omitted := f.servicesNotInAddressLedger[k]
	if !open || omitted {
		return false
	}
	f.servicesNotInAddressLedger[k] = struct{}{}
	return true
}

// OmitAllFromAddressLedgerExcept records that the object leaves out all open assignments of other
// Services than those of the batch. They are left out until they are closed.
func (f *Set) OmitAllFromAddressLedgerExcept(batch []PendingStatusWrite) {
	for k := range f.pendingByService {
		if !slices.ContainsFunc(batch, func(i PendingStatusWrite) bool { return i.Service == k }) {
			f.servicesNotInAddressLedger[k] = struct{}{}
		}
	}
}

// CountOmittedFromAddressLedger counts the open assignments that the object leaves out. It is
// incomplete while there is one.
func (f *Set) CountOmittedFromAddressLedger() int { return len(f.servicesNotInAddressLedger) }

// mergePendingOfSameService merges an older and a newer assignment of one Service. On another base
// the older write cannot succeed any more; on the same base both may.
func mergePendingOfSameService(old, next PendingStatusWrite) PendingStatusWrite {
	if old.BaseResourceVersion != next.BaseResourceVersion {
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

// AddPendingOfEarlierSet adds the assignments that were pending before the object was read
// again, because a user may have deleted or edited the object while the writes continue. Of two
// bases the later one counts. Call it before RemoveClosedPending.
func (f *Set) AddPendingOfEarlierSet(before *Set) {
	for k, i := range before.pendingByService {
		has, ok := f.pendingByService[k]
		if ok && isLaterVersion(has.BaseResourceVersion, i.BaseResourceVersion) {
			continue
		}
		merged := i
		if ok {
			merged = mergePendingOfSameService(has, i)
		} else if _, omitted := before.servicesNotInAddressLedger[k]; omitted {
			f.pendingByService[k], f.pendingAddressesOfOthersByService[k] = merged, merged.Addresses
			f.servicesNotInAddressLedger[k] = struct{}{}
			continue
		}
		f.pendingByService[k], f.pendingAddressesOfOthersByService[k] = merged, merged.Addresses
	}
}

// HasPendingOnLaterResourceVersion says whether the Service has a pending assignment on a later
// resourceVersion than this one.
func (f *Set) HasPendingOnLaterResourceVersion(k view.ObjectKey, version string) bool {
	i, ok := f.pendingByService[k]
	return ok && isLaterVersion(i.BaseResourceVersion, version)
}

// RecordBatchInAddressLedger records that the object now contains the assignments of a batch.
func (f *Set) RecordBatchInAddressLedger(batch []PendingStatusWrite) {
	f.mustWriteAddressLedgerFirst = false
	for _, i := range batch {
		if f.pendingByService[i.Service].BaseResourceVersion != i.BaseResourceVersion {
			delete(f.pendingAddressesOfOthersByService, i.Service)
		}
		f.pendingByService[i.Service] = mergePendingOfSameService(f.pendingByService[i.Service], i)
		delete(f.servicesNotInAddressLedger, i.Service)
	}
}

// ClosePendingWithBase records that no write to the Service on this base is in flight any more. An
// empty base means any base: the Service was deleted.
func (f *Set) ClosePendingWithBase(k view.ObjectKey, base string) {
	if i, ok := f.pendingByService[k]; ok && (base == "" || i.BaseResourceVersion == base) {
		f.removePending(k)
	}
}

// ClosePendingOfRefusedStatusWrite records that the API server refused this controller's own write
// on the base, and that the Service has not changed. Addresses of another controller's write stay
// pending.
func (f *Set) ClosePendingOfRefusedStatusWrite(k view.ObjectKey, base string) {
	i, ok := f.pendingByService[k]
	if !ok || i.BaseResourceVersion != base {
		return
	}
	if i.Addresses = f.pendingAddressesOfOthersByService[k]; len(i.Addresses) == 0 {
		f.removePending(k)
		return
	}
	f.pendingByService[k] = i
}

// ClosePendingWithOlderBase records that the Service has this resourceVersion: a write on an older
// base cannot succeed any more.
func (f *Set) ClosePendingWithOlderBase(k view.ObjectKey, version string) {
	if i, ok := f.pendingByService[k]; ok && isLaterVersion(version, i.BaseResourceVersion) {
		f.removePending(k)
	}
}

func (f *Set) removePending(k view.ObjectKey) {
	delete(f.pendingByService, k)
	delete(f.pendingAddressesOfOthersByService, k)
	delete(f.servicesNotInAddressLedger, k)
}

// CountPending counts the open assignments.
func (f *Set) CountPending() int { return len(f.pendingByService) }
