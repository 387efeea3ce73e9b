// Package allocate decides which addresses a Service gets. Decide is pure: it looks at a Service, the Ledger and the
// Snapshot, and changes none of them; Commit and Release are separate, small steps. The package reads no clock, logs
// nothing and knows no API. A Ledger belongs to one goroutine.
package allocate

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// Assignment is what a Service holds, with what decides whether others may share it.
type Assignment struct {
	Service   view.Key
	Addresses []netip.Addr
	Pool      string
	share     share
}

// share is what two Services on one address are compared by.
type share struct {
	key      string
	ports    []view.Port
	local    bool
	selector string
}

func shareOf(s *view.Service) share {
	return share{key: s.SharingKey, ports: s.Ports, local: s.Local, selector: s.Selector}
}

// compatible says whether two Services may hold one address: both name the same sharing key, no port is used twice, and
// traffic for the address can be handled alike: both policies Cluster, or both Local with the same Pods behind them.
func (a share) compatible(b share) bool {
	if a.key == "" || a.key != b.key {
		return false
	}
	if a.local != b.local || (a.local && a.selector != b.selector) {
		return false
	}
	return !slices.ContainsFunc(a.ports, func(p view.Port) bool { return slices.Contains(b.ports, p) })
}

// Ledger says who holds which address. The zero value is not usable; call NewLedger.
type Ledger struct {
	services  map[view.Key]Assignment
	addresses map[netip.Addr][]view.Key
	// byKey holds the addresses in use under a sharing key.
	byKey map[string]map[netip.Addr]struct{}
	// next remembers for each Range the lowest address that may be free: everything below it is in use.
	next map[cursor]netip.Addr
}

// cursor names a walk through a Range.
type cursor struct {
	snapshot.Range
	avoidBuggy bool
}

// NewLedger returns an empty Ledger.
func NewLedger() *Ledger {
	return &Ledger{
		services:  map[view.Key]Assignment{},
		addresses: map[netip.Addr][]view.Key{},
		byKey:     map[string]map[netip.Addr]struct{}{},
		next:      map[cursor]netip.Addr{},
	}
}

// Held returns what the Service holds.
func (l *Ledger) Held(k view.Key) (Assignment, bool) {
	a, ok := l.services[k]
	return a, ok
}

// Holders returns the Services that hold the address, sorted.
func (l *Ledger) Holders(a netip.Addr) []view.Key { return l.addresses[a] }

// Commit records that the Service holds exactly these addresses now, in the place of what it held before.
func (l *Ledger) Commit(s *view.Service, addresses []netip.Addr, pool string) {
	l.Release(s.Key)
	if len(addresses) == 0 {
		return
	}
	l.services[s.Key] = Assignment{Service: s.Key, Addresses: slices.Clone(addresses), Pool: pool, share: shareOf(s)}
	for _, a := range addresses {
		l.addresses[a] = append(l.addresses[a], s.Key)
		slices.SortFunc(l.addresses[a], view.Key.Compare)
		if s.SharingKey != "" {
			if l.byKey[s.SharingKey] == nil {
				l.byKey[s.SharingKey] = map[netip.Addr]struct{}{}
			}
			l.byKey[s.SharingKey][a] = struct{}{}
		}
	}
}

// Release frees what the Service holds and returns the addresses that nobody holds any more.
func (l *Ledger) Release(k view.Key) []netip.Addr {
	held, ok := l.services[k]
	if !ok {
		return nil
	}
	delete(l.services, k)
	var freed []netip.Addr
	for _, a := range held.Addresses {
		l.addresses[a] = slices.DeleteFunc(l.addresses[a], func(o view.Key) bool { return o == k })
		if len(l.addresses[a]) > 0 {
			continue
		}
		delete(l.addresses, a)
		delete(l.byKey[held.share.key], a)
		freed = append(freed, a)
		for c, at := range l.next {
			if c.Contains(a) && a.Less(at) {
				l.next[c] = a
			}
		}
	}
	if len(l.byKey[held.share.key]) == 0 {
		delete(l.byKey, held.share.key)
	}
	return freed
}

// Services returns every Service that holds something, sorted.
func (l *Ledger) Services() []view.Key {
	return slices.SortedFunc(maps.Keys(l.services), view.Key.Compare)
}

// Usable says whether the Service may hold a: nobody else does, or all who do may share it with this Service.
func (l *Ledger) Usable(a netip.Addr, s *view.Service) bool {
	ok, _ := l.usable(a, s)
	return ok
}

// InUse counts the different addresses in use that lie in the pool.
func (l *Ledger) InUse(p *snapshot.Pool) (ipv4, ipv6 int64) {
	for a := range l.addresses {
		switch {
		case !p.Contains(a):
		case a.Is4():
			ipv4++
		default:
			ipv6++
		}
	}
	return ipv4, ipv6
}

// usable says whether the Service may hold a: nobody else does, or all others may share it with this Service. The
// second result names one who may not.
func (l *Ledger) usable(a netip.Addr, s *view.Service) (bool, view.Key) {
	mine := shareOf(s)
	for _, k := range l.addresses[a] {
		if k != s.Key && !mine.compatible(l.services[k].share) {
			return false, k
		}
	}
	return true, view.Key{}
}

// first returns the lowest address of the family in the pool that the Service may use, in the order of the pool's
// entries.
func (l *Ledger) first(p *snapshot.Pool, f view.Family, s *view.Service) (netip.Addr, bool) {
	for _, r := range p.Ranges {
		if view.FamilyOf(r.First) != f {
			continue
		}
		a, ok := l.free(cursor{r, p.AvoidBuggy})
		if b, shared := l.shared(p, r, s); shared && (!ok || b.Less(a)) {
			a, ok = b, true
		}
		if ok {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// free returns the lowest address of the Range that nobody holds.
func (l *Ledger) free(c cursor) (netip.Addr, bool) {
	a, ok := l.next[c]
	if !ok {
		a = c.First
	}
	for a.IsValid() && a.Compare(c.Last) <= 0 {
		if len(l.addresses[a]) == 0 && !(c.avoidBuggy && snapshot.Buggy(a)) {
			l.next[c] = a
			return a, true
		}
		if a == c.Last {
			break
		}
		a = a.Next()
	}
	l.next[c] = a
	return netip.Addr{}, false
}

// shared returns the lowest address of the Range that holders of the Service's sharing key would share with it.
func (l *Ledger) shared(p *snapshot.Pool, r snapshot.Range, s *view.Service) (netip.Addr, bool) {
	var best netip.Addr
	if s.SharingKey == "" {
		return best, false
	}
	for a := range l.byKey[s.SharingKey] {
		if !r.Contains(a) || !p.Contains(a) || (best.IsValid() && !a.Less(best)) {
			continue
		}
		if ok, _ := l.usable(a, s); ok {
			best = a
		}
	}
	return best, best.IsValid()
}
