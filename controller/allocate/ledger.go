// Package allocate decides which addresses a Service gets. Decide is pure: it looks at a Service, the Ledger and the
// Snapshot, and changes none of them; Commit and Release are separate, small steps. The package reads no clock, logs
// nothing and knows no API: the owner of a Ledger tells it the time by Advance. A Ledger belongs to one goroutine.
package allocate

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// Assignment is what a Service holds.
type Assignment struct {
	Service   view.ObjectKey
	Addresses []netip.Addr
	// Pool is the Pool of the first address as it was committed, whatever became of it since.
	Pool string
}

// record is an Assignment as the Ledger keeps it: small, because there may be a million.
type record struct {
	key           view.ObjectKey
	first, second address
	share         *share
	pool          uint32 // into Ledger.pools
	n             uint32 // how many addresses; from the third on they are in Ledger.more
}

// chunk is how many records are made at once: a list that doubles would take twice the memory while it grows.
const chunk = 1024

// Ledger says who holds which address, and which addresses wait for somebody or something. The zero value is not usable; call NewLedger.
type Ledger struct {
	now     time.Time
	records [][]record
	made    int
	spare   []int32
	more    map[int32][]address
	pools   []string
	poolIDs map[string]uint32

	// ids finds a record by its Service.
	ids     table
	seed    maphash.Seed
	holders holders
	// withheld are the addresses that wait, by address and by the Service that may have them.
	withheld map[address][]Withheld
	waiting  map[view.ObjectKey][]address
	// reserved are the addresses that each reservation keeps.
	reserved map[string]map[address]struct{}
	// lasting counts the changes of what has to be remembered.
	lasting uint64
	// probing counts the entries with ReasonProbing.
	probing int
	// due is ordered by time.
	due []deadline
	// keeping are the reservations that take over what their Services held.
	keeping map[view.ObjectKey]*snapshot.Reservation

	market *market
}

// NewLedger returns an empty Ledger.
func NewLedger() *Ledger {
	l := &Ledger{
		more: map[int32][]address{}, poolIDs: map[string]uint32{}, seed: maphash.MakeSeed(),
		withheld: map[address][]Withheld{}, waiting: map[view.ObjectKey][]address{}, reserved: map[string]map[address]struct{}{},
	}
	l.holders.salt = maphash.String(l.seed, "salt")
	return l
}

// Held returns what the Service holds.
func (l *Ledger) Held(k view.ObjectKey) (Assignment, bool) {
	id, ok := l.find(k)
	if !ok {
		return Assignment{}, false
	}
	var room [2]address
	r := l.record(id)
	out := Assignment{Service: r.key, Pool: l.pools[r.pool], Addresses: make([]netip.Addr, 0, r.n)}
	for _, a := range l.addresses(id, room[:0]) {
		out.Addresses = append(out.Addresses, a.netip())
	}
	return out, true
}

// Holders returns the Services that hold the address, sorted.
func (l *Ledger) Holders(a netip.Addr) []view.ObjectKey {
	var room [1]int32
	var out []view.ObjectKey
	for _, id := range l.holders.of(addressOf(a), &room) {
		out = append(out, l.record(id).key)
	}
	slices.SortFunc(out, view.ObjectKey.Compare)
	return out
}

// Commit records that the Service holds exactly these addresses now, in the place of what it held before.
func (l *Ledger) Commit(s *view.Service, addresses []netip.Addr, pool string) {
	if len(addresses) == 0 {
		l.Release(s.Key)
		return
	}
	var roomOld, roomNew [2]address
	old, now := roomOld[:0], roomNew[:0]
	for _, a := range addresses {
		now = append(now, addressOf(a))
	}
	id, known := l.find(s.Key)
	sh := shareOf(s)
	if known {
		old = l.addresses(id, old)
		if r := l.record(id); slices.Equal(old, now) && l.pools[r.pool] == pool && r.share.equal(sh) {
			return
		}
	} else {
		id = l.open(s.Key)
	}
	l.reshare(id, old, sh)
	for _, a := range old {
		if !slices.Contains(now, a) {
			l.vacate(id, a)
		}
	}
	r := l.record(id)
	r.pool = l.poolID(pool)
	l.store(id, now)
	for _, a := range now {
		if !slices.Contains(old, a) {
			l.occupy(id, a)
		}
	}
	l.withdraw(s.Key)
}

// Release frees what the Service holds and returns the addresses that nobody holds any more. An address whose Pool has a
// cool-down, or that is reserved, is among them though it is not free yet.
func (l *Ledger) Release(k view.ObjectKey) []netip.Addr {
	l.withdraw(k)
	id, ok := l.find(k)
	if !ok {
		return nil
	}
	var room [2]address
	var freed []netip.Addr
	for _, a := range l.addresses(id, room[:0]) {
		if !l.vacate(id, a) {
			continue
		}
		freed = append(freed, a.netip())
		if r := l.keeping[k]; r != nil && !r.HasExpired(l.now) {
			l.Withhold(Withheld{Address: a.netip(), Service: k, Reason: names.ReasonAddressReserved, Until: r.ExpiresAt, By: r.Name})
		}
	}
	l.shut(id)
	return freed
}

// Services returns every Service that holds something, sorted.
func (l *Ledger) Services() []view.ObjectKey {
	out := make([]view.ObjectKey, 0, l.ids.count)
	for _, c := range l.records {
		for i := range c {
			if c[i].n > 0 {
				out = append(out, c[i].key)
			}
		}
	}
	slices.SortFunc(out, view.ObjectKey.Compare)
	return out
}

// Usable says whether the Service may hold a, as far as others are concerned: nobody else does, or all who do may share it with this Service.
func (l *Ledger) Usable(a netip.Addr, s *view.Service) bool {
	reason, _ := l.clash(addressOf(a), s.Key, shareOf(s))
	return reason == ""
}

// Rivals returns the holders of a that may not share it with the Service, sorted.
func (l *Ledger) Rivals(a netip.Addr, s *view.Service) []view.ObjectKey {
	var room [1]int32
	var out []view.ObjectKey
	sh := shareOf(s)
	for _, id := range l.holders.of(addressOf(a), &room) {
		r := l.record(id)
		if r.key == s.Key {
			continue
		}
		if reason, _ := sh.clash(r.share); reason != "" {
			out = append(out, r.key)
		}
	}
	slices.SortFunc(out, view.ObjectKey.Compare)
	return out
}

// InUse counts the different addresses in use that lie in the pool.
func (l *Ledger) InUse(p *snapshot.Pool) (ipv4, ipv6 int64) {
	if src := l.market.named(p.Name); src != nil && src.v4.serves(p) {
		return src.v4.inUse, src.v6.inUse
	}
	for i, a := range l.holders.keys { // the Ledger has not met this version of the pool
		switch {
		case l.holders.who[i] == 0 || !p.CoversAddress(a.netip()):
		case a.family() == view.IPv4:
			ipv4++
		default:
			ipv6++
		}
	}
	return ipv4, ipv6
}

// Follow lays the Ledger out for a Snapshot, as every decision does too: from then on what is given back is treated as its pools say.
func (l *Ledger) Follow(snap *snapshot.Snapshot) { l.follow(snap) }

// Usage is what the status of a Pool says, by family. Available is what a Service could be given now; more than fits counts as
// math.MaxInt64.
type Usage struct{ AssignedIPv4, AssignedIPv6, AvailableIPv4, AvailableIPv6 int64 }

// Usage counts the addresses of a Pool of the Snapshot.
func (l *Ledger) Usage(p *snapshot.Pool, snap *snapshot.Snapshot) Usage {
	src := l.follow(snap).byName[p.Name]
	if src == nil {
		return Usage{}
	}
	v4, v6 := p.CountAddresses()
	free := func(size int64, s *stock) int64 { return max(size-int64(min(s.space.taken, uint64(size))), 0) }
	return Usage{src.v4.inUse, src.v6.inUse, free(v4, src.v4), free(v6, src.v6)}
}

// held says whether anybody holds the address.
func (l *Ledger) held(a address) bool {
	_, ok := l.holders.find(a)
	return ok
}

// occupy enters the record as a holder of the address.
func (l *Ledger) occupy(id int32, a address) {
	var room [1]int32
	all := l.holders.join(a, id, &room)
	if len(l.withheld) > 0 { // what was withheld for want of a holder has one now
		l.forget(a, func(w Withheld) bool { return w.Reason == names.ReasonCoolingDown || w.Reason == names.ReasonProbing })
	}
	st := l.market.stock(a)
	if st == nil {
		return
	}
	if at, ok := l.enter(st, a, id, all); ok && len(all) == 1 {
		st.cursor = at + 1
	}
}

// enter counts a holder of an address, one of all, in its stock, and returns the position of the address if it has one.
func (l *Ledger) enter(st *stock, a address, id int32, all []int32) (at uint64, ok bool) {
	r := l.record(id)
	if all[0] == id {
		st.inUse++
	}
	if st.holdings != nil && l.firstOf(r.key.Namespace, all) == id {
		st.holdings[r.key.Namespace]++
	}
	if at, ok = st.layout.position(a); ok {
		st.space.take(at)
		st.shelve(at, r.share)
	}
	return at, ok
}

// firstOf returns the first of the records that is of the namespace, -1 when none is.
func (l *Ledger) firstOf(namespace string, ids []int32) int32 {
	for _, id := range ids {
		if l.record(id).key.Namespace == namespace {
			return id
		}
	}
	return -1
}

// vacate takes the record from the holders of the address, and says whether nobody holds it any more.
func (l *Ledger) vacate(id int32, a address) bool {
	var room [1]int32
	rest := l.holders.leave(a, id, &room)
	st := l.market.stock(a)
	if st == nil {
		return len(rest) == 0
	}
	r := l.record(id)
	if ns := r.key.Namespace; st.holdings != nil && l.firstOf(ns, rest) < 0 {
		if st.holdings[ns]--; st.holdings[ns] <= 0 {
			delete(st.holdings, ns)
		}
	}
	at, placed := st.layout.position(a)
	if placed {
		st.unshelve(at, r.share, len(rest) == 0)
	}
	if len(rest) > 0 {
		return false
	}
	st.inUse--
	if st.pool.CooldownDelay > 0 {
		l.Withhold(Withheld{Address: a.netip(), Service: r.key, Reason: names.ReasonCoolingDown, Until: l.now.Add(st.pool.CooldownDelay)})
	}
	if placed && len(l.withheld[a]) == 0 {
		st.space.free(at)
	}
	return true
}
