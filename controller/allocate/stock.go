package allocate

import (
	"slices"
	"sort"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// stock is what one Pool has of one family: which of its addresses are free, and who shares the others.
type stock struct {
	pool   *snapshot.Pool
	family view.Family
	layout layout
	space  *space
	// inUse counts the different addresses of the Pool's Ranges that Services hold, excluded and avoided ones included.
	inUse int64
	// cursor is where RoundRobin goes on.
	cursor uint64
	// holdings counts the addresses that each namespace holds; nil without a Quota.
	holdings map[string]int
	shelves  map[circle]*shelf
}

func newStock(p *snapshot.Pool, f view.Family) *stock {
	s := &stock{pool: p, family: f, layout: newLayout(p, f), shelves: map[circle]*shelf{}}
	s.space = newSpace(s.layout.size)
	if p.Quota != nil {
		s.holdings = map[string]int{}
	}
	return s
}

// serves says whether the stock of one version of a Pool may serve another: what it counts by is the same.
func (s *stock) serves(p *snapshot.Pool) bool {
	o := s.pool
	return o == p || slices.Equal(o.Ranges, p.Ranges) && slices.Equal(o.ExcludedRanges, p.ExcludedRanges) &&
		o.AvoidBuggyIPs == p.AvoidBuggyIPs && (o.Quota == nil) == (p.Quota == nil)
}

// within says whether the namespace may hold n more addresses.
func (s *stock) within(namespace string, n int) bool {
	limit, ok := s.pool.Quota.LimitForNamespace(namespace)
	return !ok || s.holdings[namespace]+n <= limit
}

// start is where the search for a free address begins.
func (s *stock) start(k view.ObjectKey) uint64 {
	switch {
	case s.pool.Order == snapshot.OrderRoundRobin:
		return s.cursor
	case s.pool.Order == snapshot.OrderHash && s.layout.size > 0:
		return hash(k) % s.layout.size
	}
	return 0
}

// next returns the next free position in the Pool's order, from the given one on and then from the start.
func (s *stock) next(from uint64) (uint64, bool) {
	at, ok := s.space.next(from)
	if !ok && from > 0 {
		at, ok = s.space.next(0)
	}
	return at, ok
}

// shelve enters a holder of a position under the circle that may share it.
func (s *stock) shelve(at uint64, sh *share) {
	if sh == nil {
		return
	}
	on := s.shelves[sh.circle]
	if on == nil {
		on = &shelf{busy: map[view.Port][]uint64{}}
		s.shelves[sh.circle] = on
	}
	on.add(at, sh.ports)
}

// unshelve takes a holder of a position away. The position stays shared as long as it has other holders.
func (s *stock) unshelve(at uint64, sh *share, alone bool) {
	if sh == nil || s.shelves[sh.circle] == nil {
		return
	}
	on := s.shelves[sh.circle]
	on.leave(at, sh.ports)
	if !alone {
		return
	}
	if on.spots = remove(on.spots, at); len(on.spots) == 0 {
		delete(s.shelves, sh.circle)
	}
}

// hash is FNV-1a (64 bits) over the name of a Service, with a final mix so that its upper and lower bits are alike good: it must be
// the same in every process and version, because addresses are found again by it.
func hash(k view.ObjectKey) uint64 {
	h := uint64(14695981039346656037)
	step := func(c byte) { h = (h ^ uint64(c)) * 1099511628211 }
	for i := range len(k.Namespace) {
		step(k.Namespace[i])
	}
	step('/')
	for i := range len(k.Name) {
		step(k.Name[i])
	}
	h ^= h >> 32
	h *= 0xd6e8feb86659fd93
	return h ^ h>>32
}

// source is a Pool with its two stocks.
type source struct {
	pool   *snapshot.Pool
	v4, v6 *stock
	// seq is its place in the Snapshot, which decides between equals.
	seq int
}

func (s *source) stock(f view.Family) *stock {
	if f == view.IPv4 {
		return s.v4
	}
	return s.v6
}

// cover is a Range with the stock that it belongs to.
type cover struct {
	first, last address
	source      *source
}

// market is a Snapshot's pools, laid out so that what one decision costs does not grow with the pools that it does not concern.
type market struct {
	snap   *snapshot.Snapshot
	byName map[string]*source
	covers []cover // by address
	choice choice
}

// follow lays the Ledger out for a Snapshot. Stocks of pools that give the same addresses as before are kept.
func (l *Ledger) follow(snap *snapshot.Snapshot) *market {
	if l.market != nil && l.market.snap == snap {
		return l.market
	}
	m := &market{snap: snap, byName: map[string]*source{}}
	fresh := map[*stock]bool{}
	var pools []*snapshot.Pool
	if snap != nil {
		pools = snap.Pools
	}
	for i, p := range pools {
		src := &source{pool: p, seq: i}
		var old *source
		if l.market != nil {
			old = l.market.byName[p.Name]
		}
		if old != nil && old.v4.serves(p) {
			src.v4, src.v6 = old.v4, old.v6
			src.v4.pool, src.v6.pool = p, p
		} else {
			src.v4, src.v6 = newStock(p, view.IPv4), newStock(p, view.IPv6)
			fresh[src.v4], fresh[src.v6] = true, true
		}
		m.byName[p.Name] = src
		m.choice.add(src)
		for _, r := range p.Ranges {
			m.covers = append(m.covers, cover{addressOf(r.First), addressOf(r.Last), src})
		}
	}
	m.choice.sort()
	slices.SortFunc(m.covers, func(x, y cover) int {
		if x.first.less(y.first) {
			return -1
		}
		return 1
	})
	l.market = m
	if len(fresh) > 0 {
		l.fill(fresh)
	}
	l.reserve(snap)
	return m
}

// fill enters into fresh stocks what is held and withheld of their addresses.
func (l *Ledger) fill(fresh map[*stock]bool) {
	for a := range l.withheld {
		if st := l.market.stock(a); fresh[st] {
			if at, ok := st.layout.position(a); ok {
				st.space.take(at)
			}
		}
	}
	var room [1]int32
	l.each(func(id int32, a address) {
		if st := l.market.stock(a); fresh[st] {
			l.enter(st, a, id, l.holders.of(a, &room))
		}
	})
}

// named returns the source of that name, nil when there is none.
func (m *market) named(pool string) *source {
	if m == nil {
		return nil
	}
	return m.byName[pool]
}

// covering returns the source in whose Ranges the address lies, nil when there is none.
func (m *market) covering(a address) *source {
	i := sort.Search(len(m.covers), func(i int) bool { return a.less(m.covers[i].first) }) - 1
	if i < 0 || m.covers[i].last.less(a) {
		return nil
	}
	return m.covers[i].source
}

func (m *market) stock(a address) *stock {
	if m == nil {
		return nil
	}
	if src := m.covering(a); src != nil {
		return src.stock(a.family())
	}
	return nil
}

// gives returns the source that may give the address, nil when no Pool may.
func (m *market) gives(a address) *source {
	src := m.covering(a)
	if src == nil || !src.pool.CanAssign(a.netip()) {
		return nil
	}
	return src
}
