package allocate

import (
	"hash/fnv"
	"slices"
	"sort"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// familyPool is the state of one family of addresses in one Pool: which addresses are free, and
// which ones Services share.
type familyPool struct {
	pool                *snapshot.Pool
	family              ipfamily.Family
	assignableNumbering addressNumbering
	takenPositionTree   *takenPositionTree
	// heldAddressCount counts the different addresses in the Pool's Ranges that Services hold,
	// excluded and avoided ones included.
	heldAddressCount int64
	// nextRoundRobinPosition is the position where OrderRoundRobin continues.
	nextRoundRobinPosition uint64
	// heldCountByNamespace counts the addresses that each namespace holds, withheldCountByNamespace
	// those that are withheld because of it; nil without a Quota.
	heldCountByNamespace, withheldCountByNamespace map[string]int

	sharedPositionsByRequirement map[requirementsToShare]*sharedPositionsOfGroup
	// podSelectorsBySharingKey lists the selectors with which a key is in that map, sorted.
	podSelectorsBySharingKey map[string][]string
}

func newFamilyPool(p *snapshot.Pool, f ipfamily.Family) *familyPool {
	s := &familyPool{pool: p, family: f, assignableNumbering: newAddressNumbering(p, f), sharedPositionsByRequirement: map[requirementsToShare]*sharedPositionsOfGroup{}, podSelectorsBySharingKey: map[string][]string{}}
	s.takenPositionTree = newTakenPositionTree(s.assignableNumbering.positionCount)
	if p.Quota != nil {
		s.heldCountByNamespace, s.withheldCountByNamespace = map[string]int{}, map[string]int{}
	}
	return s
}

// canReuseForPool says whether the value for one version of a Pool is valid for another: all that
// it depends on is equal.
func (s *familyPool) canReuseForPool(p *snapshot.Pool) bool {
	o := s.pool
	return o == p || slices.Equal(o.Ranges, p.Ranges) && slices.Equal(o.ExcludedRanges, p.ExcludedRanges) &&
		o.AvoidBuggyIPs == p.AvoidBuggyIPs && isWholePoolRetired(o) == isWholePoolRetired(p) && (o.Quota == nil) == (p.Quota == nil)
}

func isWholePoolRetired(p *snapshot.Pool) bool {
	return p.Retirement != nil && p.Retirement.WholePool
}

// hasQuotaFor says whether the namespace may hold n more addresses.
func (s *familyPool) hasQuotaFor(namespace string, n int) bool {
	limit, ok := s.pool.Quota.LimitForNamespace(namespace)
	return !ok || s.heldCountByNamespace[namespace]+s.withheldCountByNamespace[namespace]+n <= limit
}

// updateWithheldCounts counts an address for the namespaces because of which it is withheld now,
// and no longer for those because of which it was withheld before.
func (s *familyPool) updateWithheldCounts(before, now []string) {
	if s.withheldCountByNamespace == nil {
		return
	}
	for _, namespace := range before {
		if s.withheldCountByNamespace[namespace]--; s.withheldCountByNamespace[namespace] == 0 {
			delete(s.withheldCountByNamespace, namespace)
		}
	}
	for _, namespace := range now {
		s.withheldCountByNamespace[namespace]++
	}
}

// assignsLowestAddressFirst says whether the lowest address is given next, whether it is free or
// shared. Otherwise a shared one comes before all free ones.
func (s *familyPool) assignsLowestAddressFirst() bool {
	return s.pool.AssignmentOrder == snapshot.OrderLowest || s.pool.AssignmentOrder == ""
}

// continueRoundRobinOf continues after the address that the pool gave last before an edit. If the
// pool does not have it any more, it starts over.
func (s *familyPool) continueRoundRobinOf(old *familyPool) {
	if n := old.nextRoundRobinPosition; n > 0 && n <= old.assignableNumbering.positionCount {
		if at, ok := s.assignableNumbering.positionOfAddress(old.assignableNumbering.addressAtPosition(n - 1)); ok {
			s.nextRoundRobinPosition = at + 1
		}
	}
}

// searchStartByAssignmentOrder is the position where the search for a free address starts.
func (s *familyPool) searchStartByAssignmentOrder(k view.ObjectKey) uint64 {
	switch {
	case s.pool.AssignmentOrder == snapshot.OrderRoundRobin:
		return s.nextRoundRobinPosition
	case s.pool.AssignmentOrder == snapshot.OrderHash && s.assignableNumbering.positionCount > 0:
		return stableHashOfServiceName(k) % s.assignableNumbering.positionCount
	}
	return 0
}

// nextFreePositionWithWrap returns the next free position, from the given one to the end and then
// from the start.
func (s *familyPool) nextFreePositionWithWrap(from uint64) (uint64, bool) {
	at, ok := s.takenPositionTree.nextFreePosition(from)
	if !ok && from > 0 {
		at, ok = s.takenPositionTree.nextFreePosition(0)
	}
	return at, ok
}

// addSharer records a holder of a position that Services of the same requirementsToShare may share.
func (s *familyPool) addSharer(at uint64, sh *sharingProperties) {
	if sh == nil {
		return
	}
	on := s.sharedPositionsByRequirement[sh.requirementsToShare]
	if on == nil {
		on = newSharedPositionsOfGroup()
		s.sharedPositionsByRequirement[sh.requirementsToShare] = on
		s.podSelectorsBySharingKey[sh.sharingKey] = insertSorted(s.podSelectorsBySharingKey[sh.sharingKey], sh.podSelector)
	}
	on.addHolder(at, sh.ports)
}

// removeSharer is the reverse of addSharer.
func (s *familyPool) removeSharer(at uint64, sh *sharingProperties) {
	if sh == nil || s.sharedPositionsByRequirement[sh.requirementsToShare] == nil {
		return
	}
	on := s.sharedPositionsByRequirement[sh.requirementsToShare]
	if on.removeHolder(at, sh.ports); len(on.positions) > 0 {
		return
	}
	delete(s.sharedPositionsByRequirement, sh.requirementsToShare)
	rest := removeSorted(s.podSelectorsBySharingKey[sh.sharingKey], sh.podSelector)
	if s.podSelectorsBySharingKey[sh.sharingKey] = rest; len(rest) == 0 {
		delete(s.podSelectorsBySharingKey, sh.sharingKey)
	}
}

// stableHashOfServiceName is FNV-1a (64 bits) over the name of a Service, with a final mix so that
// upper and lower bits are equally good. It must be the same in every process and version, because
// Services get their old address back by it.
func stableHashOfServiceName(k view.ObjectKey) uint64 {
	f := fnv.New64a()
	f.Write([]byte(k.String()))
	h := f.Sum64()
	h ^= h >> 32
	h *= 0xd6e8feb86659fd93
	return h ^ h>>32
}

// poolEntry is a Pool with its addresses of both families.
type poolEntry struct {
	pool               *snapshot.Pool
	ipv4Pool, ipv6Pool *familyPool
	// orderInSnapshot is its position in the Snapshot, which decides between equal pools.
	orderInSnapshot int
}

func (s *poolEntry) forFamily(f ipfamily.Family) *familyPool {
	if f == ipfamily.IPv4 {
		return s.ipv4Pool
	}
	return s.ipv6Pool
}

// rangeEntry is a Range with the pool to which it belongs.
type rangeEntry struct {
	first, last address
	poolEntry   *poolEntry
}

// poolIndex are the pools of a Snapshot, indexed so that the cost of a decision does not grow with
// unrelated pools.
type poolIndex struct {
	snapshot        *snapshot.Snapshot
	poolEntryByName map[string]*poolEntry
	// The ranges of each family are sorted by address. IPv4 addresses are numbers inside ::/0, so
	// that the families must not be in one list.
	ipv4RangeEntries, ipv6RangeEntries []rangeEntry
	candidatePools                     candidatePools
}

// indexPoolsOfSnapshot returns the index for a Snapshot, and makes it the Ledger's. It reuses the
// entries of pools that give the same addresses as before.
func (l *Ledger) indexPoolsOfSnapshot(snap *snapshot.Snapshot) *poolIndex {
	if l.currentPoolIndex != nil && l.currentPoolIndex.snapshot == snap {
		return l.currentPoolIndex
	}
	m := &poolIndex{snapshot: snap, poolEntryByName: map[string]*poolEntry{}}
	fresh := map[*familyPool]bool{}
	var pools []*snapshot.Pool
	if snap != nil {
		pools = snap.Pools
	}
	for i, p := range pools {
		src := &poolEntry{pool: p, orderInSnapshot: i}
		var old *poolEntry
		if l.currentPoolIndex != nil {
			old = l.currentPoolIndex.poolEntryByName[p.Name]
		}
		if old != nil && old.ipv4Pool.canReuseForPool(p) {
			src.ipv4Pool, src.ipv6Pool = old.ipv4Pool, old.ipv6Pool
			src.ipv4Pool.pool, src.ipv6Pool.pool = p, p
		} else {
			src.ipv4Pool, src.ipv6Pool = newFamilyPool(p, ipfamily.IPv4), newFamilyPool(p, ipfamily.IPv6)
			fresh[src.ipv4Pool], fresh[src.ipv6Pool] = true, true
			if old != nil {
				src.ipv4Pool.continueRoundRobinOf(old.ipv4Pool)
				src.ipv6Pool.continueRoundRobinOf(old.ipv6Pool)
			}
		}
		m.poolEntryByName[p.Name] = src
		m.candidatePools.addPool(src)
		for _, r := range p.Ranges {
			to := m.rangeEntriesOfFamily(ipfamily.FamilyOf(r.First))
			*to = append(*to, rangeEntry{addressFromNetip(r.First), addressFromNetip(r.Last), src})
		}
	}
	m.candidatePools.resetCachedAllocationPools()
	for _, all := range [...][]rangeEntry{m.ipv4RangeEntries, m.ipv6RangeEntries} {
		slices.SortFunc(all, func(x, y rangeEntry) int {
			if x.first.isBelow(y.first) {
				return -1
			}
			return 1
		})
	}
	l.currentPoolIndex = m
	if len(fresh) > 0 {
		l.markHeldAndWithheldTaken(fresh)
	}
	l.applyReservations(snap)
	return m
}

// namespacePhraseForPools names the namespace whose pools are read, as a part of a sentence.
func (m *poolIndex) namespacePhraseForPools() string {
	if m.snapshot == nil || m.snapshot.Namespace == "" {
		return ""
	}
	return " in namespace " + m.snapshot.Namespace + ", the only one that Gantry reads"
}

// shortNamespacePhraseForPools is the same, shorter.
func (m *poolIndex) shortNamespacePhraseForPools() string {
	if m.snapshot == nil || m.snapshot.Namespace == "" {
		return ""
	}
	return " of namespace " + m.snapshot.Namespace
}

// markHeldAndWithheldTaken enters the held and the withheld addresses into new familyPools.
func (l *Ledger) markHeldAndWithheldTaken(fresh map[*familyPool]bool) {
	for a, entries := range l.withheldEntriesByAddress {
		if st := l.currentPoolIndex.familyPoolCovering(a); fresh[st] {
			st.updateWithheldCounts(nil, namespacesThatCaused(entries))
			if at, ok := st.assignableNumbering.positionOfAddress(a); ok {
				st.takenPositionTree.markTaken(at)
			}
		}
	}
	var room [1]int32
	l.forEachRecordAddress(func(id int32, a address) {
		if st := l.currentPoolIndex.familyPoolCovering(a); fresh[st] {
			l.recordHolderInFamilyPool(st, a, id, l.holderTable.recordIDsHoldingAddress(a, &room))
		}
	})
}

// poolEntryCovering returns the pool with the address in its Ranges, nil when there is none.
func (m *poolIndex) poolEntryCovering(a address) *poolEntry {
	all := *m.rangeEntriesOfFamily(a.family())
	i := sort.Search(len(all), func(i int) bool { return a.isBelow(all[i].first) }) - 1
	if i < 0 || all[i].last.isBelow(a) {
		return nil
	}
	return all[i].poolEntry
}

func (m *poolIndex) rangeEntriesOfFamily(f ipfamily.Family) *[]rangeEntry {
	if f == ipfamily.IPv4 {
		return &m.ipv4RangeEntries
	}
	return &m.ipv6RangeEntries
}

func (m *poolIndex) familyPoolCovering(a address) *familyPool {
	if m == nil {
		return nil
	}
	if src := m.poolEntryCovering(a); src != nil {
		return src.forFamily(a.family())
	}
	return nil
}

// poolEntryThatCanAssign returns the pool that may give the address, nil when none may.
func (m *poolIndex) poolEntryThatCanAssign(a address) *poolEntry {
	src := m.poolEntryCovering(a)
	if src == nil || src.pool.NeverAssignsAddress(a.toNetip()) {
		return nil
	}
	return src
}
