package allocate

import (
	"slices"
	"sort"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// familyPool is the state of one family of addresses in one Pool: which addresses are free, and
// which ones Services share.
type familyPool struct {
	pool      *snapshot.Pool
	family    view.Family
	numbering numbering
	freeSet   *freeSet
	// addressesInUse counts the different addresses in the Pool's Ranges that Services hold,
	// excluded and avoided ones included.
	addressesInUse int64
	// roundRobinNext is the position where OrderRoundRobin continues.
	roundRobinNext uint64
	// heldByNamespace counts the addresses that each namespace holds; nil without a Quota.
	heldByNamespace    map[string]int
	sharedSlotsByGroup map[sharingGroup]*sharedSlots
}

func newFamilyPool(p *snapshot.Pool, f view.Family) *familyPool {
	s := &familyPool{pool: p, family: f, numbering: newNumbering(p, f), sharedSlotsByGroup: map[sharingGroup]*sharedSlots{}}
	s.freeSet = newFreeSet(s.numbering.positionCount)
	if p.Quota != nil {
		s.heldByNamespace = map[string]int{}
	}
	return s
}

// canServePool says whether the value for one version of a Pool is valid for another: all that it
// depends on is equal.
func (s *familyPool) canServePool(p *snapshot.Pool) bool {
	o := s.pool
	return o == p || slices.Equal(o.Ranges, p.Ranges) && slices.Equal(o.ExcludedRanges, p.ExcludedRanges) &&
		o.AvoidBuggyIPs == p.AvoidBuggyIPs && (o.Quota == nil) == (p.Quota == nil)
}

// hasQuotaFor says whether the namespace may hold n more addresses.
func (s *familyPool) hasQuotaFor(namespace string, n int) bool {
	limit, ok := s.pool.Quota.LimitForNamespace(namespace)
	return !ok || s.heldByNamespace[namespace]+n <= limit
}

// searchStart is the position where the search for a free address starts.
func (s *familyPool) searchStart(k view.ObjectKey) uint64 {
	switch {
	case s.pool.Order == snapshot.OrderRoundRobin:
		return s.roundRobinNext
	case s.pool.Order == snapshot.OrderHash && s.numbering.positionCount > 0:
		return hashServiceName(k) % s.numbering.positionCount
	}
	return 0
}

// nextFree returns the next free position, from the given one to the end and then from the start.
func (s *familyPool) nextFree(from uint64) (uint64, bool) {
	at, ok := s.freeSet.nextFree(from)
	if !ok && from > 0 {
		at, ok = s.freeSet.nextFree(0)
	}
	return at, ok
}

// addSharer records a holder of a position that Services of the same sharingGroup may share.
func (s *familyPool) addSharer(at uint64, sh *sharing) {
	if sh == nil {
		return
	}
	on := s.sharedSlotsByGroup[sh.sharingGroup]
	if on == nil {
		on = &sharedSlots{positionsByPort: map[view.Port][]uint64{}}
		s.sharedSlotsByGroup[sh.sharingGroup] = on
	}
	on.addHolder(at, sh.ports)
}

// removeSharer removes a holder of a position. The position stays shared while it has other
// holders.
func (s *familyPool) removeSharer(at uint64, sh *sharing, isLast bool) {
	if sh == nil || s.sharedSlotsByGroup[sh.sharingGroup] == nil {
		return
	}
	on := s.sharedSlotsByGroup[sh.sharingGroup]
	on.removePorts(at, sh.ports)
	if !isLast {
		return
	}
	if on.positions = removeSorted(on.positions, at); len(on.positions) == 0 {
		delete(s.sharedSlotsByGroup, sh.sharingGroup)
	}
}

// hashServiceName is FNV-1a (64 bits) over the name of a Service, with a final mix so that upper
// and lower bits are equally good. It must be the same in every process and version, because
// Services get their old address back by it.
func hashServiceName(k view.ObjectKey) uint64 {
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

// poolEntry is a Pool with its addresses of both families.
type poolEntry struct {
	pool       *snapshot.Pool
	ipv4, ipv6 *familyPool
	// snapshotOrder is its position in the Snapshot, which decides between equal pools.
	snapshotOrder int
}

func (s *poolEntry) forFamily(f view.Family) *familyPool {
	if f == view.IPv4 {
		return s.ipv4
	}
	return s.ipv6
}

// rangeEntry is a Range with the pool to which it belongs.
type rangeEntry struct {
	first, last address
	entry       *poolEntry
}

// poolIndex are the pools of a Snapshot, indexed so that the cost of a decision does not grow with
// unrelated pools.
type poolIndex struct {
	snapshot     *snapshot.Snapshot
	entryByName  map[string]*poolEntry
	rangeEntries []rangeEntry // by address
	candidates   candidatePools
}

// indexSnapshot returns the index for a Snapshot, and makes it the Ledger's. It reuses the entries
// of pools that give the same addresses as before.
func (l *Ledger) indexSnapshot(snap *snapshot.Snapshot) *poolIndex {
	if l.index != nil && l.index.snapshot == snap {
		return l.index
	}
	m := &poolIndex{snapshot: snap, entryByName: map[string]*poolEntry{}}
	fresh := map[*familyPool]bool{}
	var pools []*snapshot.Pool
	if snap != nil {
		pools = snap.Pools
	}
	for i, p := range pools {
		src := &poolEntry{pool: p, snapshotOrder: i}
		var old *poolEntry
		if l.index != nil {
			old = l.index.entryByName[p.Name]
		}
		if old != nil && old.ipv4.canServePool(p) {
			src.ipv4, src.ipv6 = old.ipv4, old.ipv6
			src.ipv4.pool, src.ipv6.pool = p, p
		} else {
			src.ipv4, src.ipv6 = newFamilyPool(p, view.IPv4), newFamilyPool(p, view.IPv6)
			fresh[src.ipv4], fresh[src.ipv6] = true, true
		}
		m.entryByName[p.Name] = src
		m.candidates.addPool(src)
		for _, r := range p.Ranges {
			m.rangeEntries = append(m.rangeEntries, rangeEntry{addressOf(r.First), addressOf(r.Last), src})
		}
	}
	m.candidates.clearPinned()
	slices.SortFunc(m.rangeEntries, func(x, y rangeEntry) int {
		if x.first.isBelow(y.first) {
			return -1
		}
		return 1
	})
	l.index = m
	if len(fresh) > 0 {
		l.fillFreeSets(fresh)
	}
	l.applyReservations(snap)
	return m
}

// fillFreeSets enters the held and the withheld addresses into new familyPools.
func (l *Ledger) fillFreeSets(fresh map[*familyPool]bool) {
	for a := range l.withheldByAddress {
		if st := l.index.familyPoolCovering(a); fresh[st] {
			if at, ok := st.numbering.positionOf(a); ok {
				st.freeSet.markTaken(at)
			}
		}
	}
	var room [1]int32
	l.forEachAddress(func(id int32, a address) {
		if st := l.index.familyPoolCovering(a); fresh[st] {
			l.countHolder(st, a, id, l.holderTable.recordsHolding(a, &room))
		}
	})
}

// entryCovering returns the pool with the address in its Ranges, nil when there is none.
func (m *poolIndex) entryCovering(a address) *poolEntry {
	i := sort.Search(len(m.rangeEntries), func(i int) bool { return a.isBelow(m.rangeEntries[i].first) }) - 1
	if i < 0 || m.rangeEntries[i].last.isBelow(a) {
		return nil
	}
	return m.rangeEntries[i].entry
}

func (m *poolIndex) familyPoolCovering(a address) *familyPool {
	if m == nil {
		return nil
	}
	if src := m.entryCovering(a); src != nil {
		return src.forFamily(a.family())
	}
	return nil
}

// entryAssigning returns the pool that may give the address, nil when none may.
func (m *poolIndex) entryAssigning(a address) *poolEntry {
	src := m.entryCovering(a)
	if src == nil || !src.pool.CanAssign(a.toNetip()) {
		return nil
	}
	return src
}
