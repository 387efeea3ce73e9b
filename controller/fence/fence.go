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
//  3. An Intent is left out only when it is settled: the Service has another resourceVersion than the base, so that the status has
//     arrived and shows, or never can; or the API server has answered the write; or the Service is gone. Until then its
//     addresses count as held by the Service.
//
// The package is pure: it decides what the object is to say and what it means. It reads no clock and knows no API. A Fence
// belongs to one goroutine.
package fence

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/internal/view"
)

// Intent says that a status with these addresses may be on its way to a Service.
type Intent struct {
	Service view.ObjectKey
	// Base is the resourceVersion of the Service on which the status is written.
	Base string
	// Addresses are all that the Service may come to have by a write on the Base.
	Addresses []netip.Addr
}

// Fence is what one controller knows of the object: the Intents that it has to go on showing. The zero value is not usable; call
// New.
type Fence struct {
	open map[view.ObjectKey]Intent
}

// New returns the Fence for an object that shows these Intents. It is called when the object has been read; settled ones are
// then taken out with Review.
func New(intents []Intent) *Fence {
	f := &Fence{open: make(map[view.ObjectKey]Intent, len(intents))}
	f.Wrote(intents)
	return f
}

// Review leaves out what is settled, given the resourceVersion of each Service read after the object, with false for a
// Service that does not exist. What stays may still arrive, and is returned, sorted by Service.
func (f *Fence) Review(version func(view.ObjectKey) (string, bool)) []Intent {
	for k, i := range f.open {
		if now, exists := version(k); !exists || now != i.Base {
			delete(f.open, k)
		}
	}
	return f.Next(nil)
}

// Next returns what the object is to show when the Intents of a batch come on top of those that are not settled, sorted by
// Service. The Fence changes only when Wrote says that it was written.
func (f *Fence) Next(batch []Intent) []Intent {
	all := maps.Clone(f.open)
	for _, i := range batch {
		all[i.Service] = merge(all[i.Service], i)
	}
	out := slices.Collect(maps.Values(all))
	slices.SortFunc(out, func(a, b Intent) int { return a.Service.Compare(b.Service) })
	return out
}

// merge returns what has to be shown of two Intents of one Service, the second of which is newer. On another base the older
// write cannot arrive any more; on the same base either may.
func merge(old, next Intent) Intent {
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

// Wrote records that the object shows the Intents of a batch now.
func (f *Fence) Wrote(batch []Intent) {
	for _, i := range batch {
		f.open[i.Service] = merge(f.open[i.Service], i)
	}
}

// Settle records that no write to the Service on this base is under way any more, or on any base when base is empty: the Service
// is gone.
func (f *Fence) Settle(k view.ObjectKey, base string) {
	if i, ok := f.open[k]; ok && (base == "" || i.Base == base) {
		delete(f.open, k)
	}
}

// Open counts the Intents that are not settled.
func (f *Fence) Open() int { return len(f.open) }
