// Package fence keeps two controllers from giving one address twice, whatever they do at the same time: change leaders with
// writes in flight, wake after a pause, work on an old cache, or be started twice by mistake.
//
// What a controller is about to write it says first, as an Intent, in an object that all controllers write by compare and
// swap (the AddressLedger). The order makes it safe:
//
//  1. An address that a Service's status does not show yet is written there only after its Intent is in the object. The status is
//     written on the base of the resourceVersion that the Intent names, so that the API server refuses it once anybody else has
//     written the Service.
//  2. A swap succeeds only for who knows the object as it is. So at the time of a swap nobody else has given an address that this
//     controller has not heard of. Who is refused reads everything again: first the object, then all Services from the API
//     server itself, never from a cache.
//  3. An Intent is left out only when it is settled: the Service has a later resourceVersion than the base, so that the status has
//     arrived and shows, or never can; or the API server has answered every write that may bring its addresses, which only the
//     controller that sent them knows; or the status shows its addresses already; or the Service is gone. Until then its
//     addresses count as held by the Service. A controller that did not send the write ends it by a write of its own, which
//     changes the resourceVersion.
//
// The package is pure: it decides what the object is to say and what it means. It reads no clock and knows no API. A Fence
// belongs to one goroutine.
package fence

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/gantry-lb/gantry/internal/view"
)

// Pending says that a status with these addresses may be on its way to a Service.
type Pending struct {
	Service view.ObjectKey
	// Base is the resourceVersion of the Service on which the status is written.
	Base string
	// Addresses are all that the Service may come to have by a write on the Base.
	Addresses []netip.Addr
}

// Fence is what one controller knows of the object: the Intents that it has to go on showing. The zero value is not usable; call
// New.
type Fence struct {
	pendingByService map[view.ObjectKey]Pending
	// inheritedByService are the addresses of an open Intent that was in the object when it was read: a
	// write that this controller knows nothing of may bring them, as long as the base is the same.
	inheritedByService map[view.ObjectKey][]netip.Addr
	// hasUnshown says that something is pending that the object does not show until it is written again.
	hasUnshown bool
}

// NewFence returns the Fence for an object that shows these Intents. It is called when the object has been read; settled ones are
// then taken out with Review.
func NewFence(intents []Pending) *Fence {
	f := &Fence{pendingByService: make(map[view.ObjectKey]Pending, len(intents)), inheritedByService: make(map[view.ObjectKey][]netip.Addr, len(intents))}
	f.RecordWritten(intents)
	for k, i := range f.pendingByService {
		f.inheritedByService[k] = i.Addresses
	}
	return f
}

// RemoveSettled leaves out what is settled, given the resourceVersion of each Service read after the object, with false for a
// Service that does not exist. What stays may still arrive, and is returned, sorted by Service.
func (f *Fence) RemoveSettled(version func(view.ObjectKey) (string, bool)) []Pending {
	for k, i := range f.pendingByService {
		if now, exists := version(k); !exists || isLaterVersion(now, i.Base) {
			f.removePending(k)
		}
	}
	return f.NextPending(nil)
}

// isLaterVersion says whether a Service that has one resourceVersion has left the base behind, so that no
// write on the base can arrive. A reader that is behind may see a version from before the base.
func isLaterVersion(version, base string) bool {
	v, err1 := strconv.ParseUint(version, 10, 64)
	b, err2 := strconv.ParseUint(base, 10, 64)
	if err1 != nil || err2 != nil {
		return version != base
	}
	return v > b
}

// PendingAddresses returns the addresses that a write may still bring to a Service that has this
// resourceVersion; nil when there are none. They must not be given to anybody else.
func (f *Fence) PendingAddresses(k view.ObjectKey, version string) []netip.Addr {
	if i, ok := f.pendingByService[k]; ok && !isLaterVersion(version, i.Base) {
		return i.Addresses
	}
	return nil
}

// CoversPending says whether the object shows a pending assignment on this very base with all of these
// addresses, so that they may be written without another one.
func (f *Fence) CoversPending(i Pending) bool {
	has, ok := f.pendingByService[i.Service]
	return ok && !f.hasUnshown && has.Base == i.Base && !slices.ContainsFunc(i.Addresses, func(a netip.Addr) bool { return !slices.Contains(has.Addresses, a) })
}

// HasPending says whether a pending assignment of the Service is open, on whatever base. Another one of
// the Service takes no more room in the object.
func (f *Fence) HasPending(k view.ObjectKey) bool {
	_, ok := f.pendingByService[k]
	return ok
}

// NextPending returns what the object is to show when the Intents of a batch come on top of those that are not settled, sorted by
// Service. The Fence changes only when Wrote says that it was written.
func (f *Fence) NextPending(batch []Pending) []Pending {
	all := maps.Clone(f.pendingByService)
	for _, i := range batch {
		all[i.Service] = mergePending(all[i.Service], i)
	}
	out := slices.Collect(maps.Values(all))
	slices.SortFunc(out, func(a, b Pending) int { return a.Service.Compare(b.Service) })
	return out
}

// mergePending returns what has to be shown of two Intents of one Service, the second of which is newer. On another base the older
// write cannot arrive any more; on the same base either may.
func mergePending(old, next Pending) Pending {
	if old.Base != next.Base {
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

// AddUnshown adds what was pending before the object was read again. Somebody may have deleted or
// edited the object, and the writes go on all the same. Of two bases the later counts. It is called
// before RemoveSettled.
func (f *Fence) AddUnshown(before *Fence) {
	for k, i := range before.pendingByService {
		has, ok := f.pendingByService[k]
		if ok && isLaterVersion(has.Base, i.Base) {
			continue
		}
		merged := i
		if ok {
			merged = mergePending(has, i)
		}
		f.hasUnshown = f.hasUnshown || !f.CoversPending(merged)
		f.pendingByService[k], f.inheritedByService[k] = merged, merged.Addresses
	}
}

// HasLaterBase says whether the Service has a pending assignment on a later resourceVersion than this.
func (f *Fence) HasLaterBase(k view.ObjectKey, version string) bool {
	i, ok := f.pendingByService[k]
	return ok && isLaterVersion(i.Base, version)
}

// RecordWritten records that the object shows the Intents of a batch now.
func (f *Fence) RecordWritten(batch []Pending) {
	f.hasUnshown = false
	for _, i := range batch {
		if f.pendingByService[i.Service].Base != i.Base {
			delete(f.inheritedByService, i.Service)
		}
		f.pendingByService[i.Service] = mergePending(f.pendingByService[i.Service], i)
	}
}

// ClosePending records that no write to the Service on this base is under way any more, or on any base when base is empty: the Service
// is gone.
func (f *Fence) ClosePending(k view.ObjectKey, base string) {
	if i, ok := f.pendingByService[k]; ok && (base == "" || i.Base == base) {
		f.removePending(k)
	}
}

// RecordRefused records that the API server refused this controller's own write on the base, and that
// the Service has not changed. What another's write may bring stays pending.
func (f *Fence) RecordRefused(k view.ObjectKey, base string) {
	i, ok := f.pendingByService[k]
	if !ok || i.Base != base {
		return
	}
	if i.Addresses = f.inheritedByService[k]; len(i.Addresses) == 0 {
		f.removePending(k)
		return
	}
	f.pendingByService[k] = i
}

// DropSuperseded records that the Service has this resourceVersion: what is pending on an older base
// cannot arrive any more.
func (f *Fence) DropSuperseded(k view.ObjectKey, version string) {
	if i, ok := f.pendingByService[k]; ok && isLaterVersion(version, i.Base) {
		f.removePending(k)
	}
}

func (f *Fence) removePending(k view.ObjectKey) {
	delete(f.pendingByService, k)
	delete(f.inheritedByService, k)
}

// CountPending counts the Intents that are not settled.
func (f *Fence) CountPending() int { return len(f.pendingByService) }
