// Package allocate decides which addresses a Service gets. Decide is pure: it reads a Service, the
// Ledger and the Snapshot, and changes none of them. CommitAssignment and ReleaseService are
// separate, small steps. The package reads no clock, writes no log and knows no API: the owner of a
// Ledger sets its time with AdvanceTime. A Ledger belongs to one goroutine.
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
	// Pool is the Pool of the first address when it was committed, even if that has changed since.
	Pool string
}

// assignmentRecord is an Assignment as stored in the Ledger: small, because there may be a million.
type assignmentRecord struct {
	service                     view.ObjectKey
	firstAddress, secondAddress address
	sharing                     *sharing
	poolID                      uint32 // index into Ledger.poolNames
	// addressCount is how many addresses it has; from the third on they are in
	// Ledger.extraAddresses.
	addressCount uint32
}

// recordChunkSize is how many records are allocated at once. A doubling list would need twice the
// memory while it grows.
const recordChunkSize = 1024

// Ledger stores which Service holds which address, and which addresses are withheld. The zero value
// is not usable; call NewLedger.
type Ledger struct {
	currentTime    time.Time
	records        [][]assignmentRecord
	recordCount    int
	spareRecords   []int32
	extraAddresses map[int32][]address
	poolNames      []string
	poolIDByName   map[string]uint32

	// recordTable finds a record by its Service.
	recordTable hashTable
	hashSeed    maphash.Seed
	holderTable holderTable
	// withheldByAddress and withheldByService are the withheld addresses, by address and by the
	// Service that may have them.
	withheldByAddress map[address][]WithheldAddress
	withheldByService map[view.ObjectKey][]address
	// reservedByReservation are the addresses that each reservation keeps.
	reservedByReservation map[string]map[address]struct{}
	// checkpointVersion counts the changes of the entries that must survive a restart.
	checkpointVersion uint64
	// probingCount counts the entries with ReasonProbing.
	probingCount int
	// deadlines are ordered by time.
	deadlines []deadline
	// followingByService are the reservations that take over what their Service held.
	followingByService map[view.ObjectKey]*snapshot.Reservation

	index *poolIndex
}

// NewLedger returns an empty Ledger.
func NewLedger() *Ledger {
	l := &Ledger{
		extraAddresses: map[int32][]address{}, poolIDByName: map[string]uint32{}, hashSeed: maphash.MakeSeed(),
		withheldByAddress: map[address][]WithheldAddress{}, withheldByService: map[view.ObjectKey][]address{}, reservedByReservation: map[string]map[address]struct{}{},
	}
	l.holderTable.salt = maphash.String(l.hashSeed, "salt")
	return l
}

// AssignmentOf returns what the Service holds.
func (l *Ledger) AssignmentOf(k view.ObjectKey) (Assignment, bool) {
	id, ok := l.findRecord(k)
	if !ok {
		return Assignment{}, false
	}
	var room [2]address
	r := l.recordAt(id)
	out := Assignment{Service: r.service, Pool: l.poolNames[r.poolID], Addresses: make([]netip.Addr, 0, r.addressCount)}
	for _, a := range l.appendAddresses(id, room[:0]) {
		out.Addresses = append(out.Addresses, a.toNetip())
	}
	return out, true
}

// HoldersOf returns the Services that hold the address, sorted.
func (l *Ledger) HoldersOf(a netip.Addr) []view.ObjectKey {
	var room [1]int32
	var out []view.ObjectKey
	for _, id := range l.holderTable.recordsHolding(addressOf(a), &room) {
		out = append(out, l.recordAt(id).service)
	}
	slices.SortFunc(out, view.ObjectKey.Compare)
	return out
}

// CommitAssignment records that the Service now holds exactly these addresses.
func (l *Ledger) CommitAssignment(s *view.Service, addresses []netip.Addr, pool string) {
	if len(addresses) == 0 {
		l.ReleaseService(s.Key)
		return
	}
	var roomOld, roomNew [2]address
	old, now := roomOld[:0], roomNew[:0]
	for _, a := range addresses {
		now = append(now, addressOf(a))
	}
	id, known := l.findRecord(s.Key)
	sh := sharingOf(s)
	if known {
		old = l.appendAddresses(id, old)
		if r := l.recordAt(id); slices.Equal(old, now) && l.poolNames[r.poolID] == pool && r.sharing.isEqual(sh) {
			return
		}
	} else {
		id = l.openRecord(s.Key)
	}
	l.changeSharing(id, old, sh)
	for _, a := range old {
		if !slices.Contains(now, a) {
			l.removeHolder(id, a)
		}
	}
	r := l.recordAt(id)
	r.poolID = l.poolIDOf(pool)
	l.storeAddresses(id, now)
	for _, a := range now {
		if !slices.Contains(old, a) {
			l.addHolder(id, a)
		}
	}
	l.withdrawProposal(s.Key)
}

// ReleaseService removes what the Service holds and returns the addresses without a holder. Some of
// these may not be free yet: they cool down or are reserved.
func (l *Ledger) ReleaseService(k view.ObjectKey) []netip.Addr {
	l.withdrawProposal(k)
	id, ok := l.findRecord(k)
	if !ok {
		return nil
	}
	var room [2]address
	var freed []netip.Addr
	for _, a := range l.appendAddresses(id, room[:0]) {
		if !l.removeHolder(id, a) {
			continue
		}
		freed = append(freed, a.toNetip())
		if r := l.followingByService[k]; r != nil && !r.HasExpired(l.currentTime) {
			l.WithholdAddress(WithheldAddress{Address: a.toNetip(), Service: k, Reason: names.ReasonAddressReserved, Until: r.ExpiresAt, By: r.Name})
		}
	}
	l.closeRecord(id)
	return freed
}

// HoldingServices returns every Service that holds an address, sorted.
func (l *Ledger) HoldingServices() []view.ObjectKey {
	out := make([]view.ObjectKey, 0, l.recordTable.count)
	for _, c := range l.records {
		for i := range c {
			if c[i].addressCount > 0 {
				out = append(out, c[i].service)
			}
		}
	}
	slices.SortFunc(out, view.ObjectKey.Compare)
	return out
}

// CanHold says whether the Service may hold a as far as other Services are concerned: no other
// Service holds it, or all holders can share it with this one.
func (l *Ledger) CanHold(a netip.Addr, s *view.Service) bool {
	reason, _ := l.sharingConflict(addressOf(a), s.Key, sharingOf(s))
	return reason == ""
}

// ConflictingHolders returns the holders of a that may not share it with the Service, sorted.
func (l *Ledger) ConflictingHolders(a netip.Addr, s *view.Service) []view.ObjectKey {
	var room [1]int32
	var out []view.ObjectKey
	sh := sharingOf(s)
	for _, id := range l.holderTable.recordsHolding(addressOf(a), &room) {
		r := l.recordAt(id)
		if r.service == s.Key {
			continue
		}
		if reason, _ := sh.conflictWith(r.sharing); reason != "" {
			out = append(out, r.service)
		}
	}
	slices.SortFunc(out, view.ObjectKey.Compare)
	return out
}

// UseSnapshot makes the Ledger use the pools of a Snapshot, as every decision does: released
// addresses are then treated as its pools say.
func (l *Ledger) UseSnapshot(snap *snapshot.Snapshot) { l.indexSnapshot(snap) }

// PoolUsage is what the status of a Pool says, by family. Available addresses could be assigned
// now. A count above math.MaxInt64 is math.MaxInt64.
type PoolUsage struct{ AssignedIPv4, AssignedIPv6, AvailableIPv4, AvailableIPv6 int64 }

// UsageOf counts the addresses of a Pool of the Snapshot.
func (l *Ledger) UsageOf(p *snapshot.Pool, snap *snapshot.Snapshot) PoolUsage {
	src := l.indexSnapshot(snap).entryByName[p.Name]
	if src == nil {
		return PoolUsage{}
	}
	v4, v6 := p.CountAddresses()
	free := func(size int64, s *familyPool) int64 {
		return max(size-int64(min(s.freeSet.takenCount, uint64(size))), 0)
	}
	return PoolUsage{src.ipv4.addressesInUse, src.ipv6.addressesInUse, free(v4, src.ipv4), free(v6, src.ipv6)}
}

// isHeld says whether any Service holds the address.
func (l *Ledger) isHeld(a address) bool {
	_, ok := l.holderTable.findSlot(a)
	return ok
}

// addHolder records a holder of the address.
func (l *Ledger) addHolder(id int32, a address) {
	var room [1]int32
	all := l.holderTable.addHolder(a, id, &room)
	if len(l.withheldByAddress) > 0 { // the address has a holder now
		l.removeEntries(a, func(w WithheldAddress) bool {
			return w.Reason == names.ReasonCoolingDown || w.Reason == names.ReasonProbing
		})
	}
	st := l.index.familyPoolCovering(a)
	if st == nil {
		return
	}
	if at, ok := l.countHolder(st, a, id, all); ok && len(all) == 1 {
		st.roundRobinNext = at + 1
	}
}

// countHolder counts one of all holders of an address in its familyPool, and returns the position
// of the address if it has one.
func (l *Ledger) countHolder(st *familyPool, a address, id int32, all []int32) (at uint64, ok bool) {
	r := l.recordAt(id)
	if all[0] == id {
		st.addressesInUse++
	}
	if st.heldByNamespace != nil && l.firstInNamespace(r.service.Namespace, all) == id {
		st.heldByNamespace[r.service.Namespace]++
	}
	if at, ok = st.numbering.positionOf(a); ok {
		st.freeSet.markTaken(at)
		st.addSharer(at, r.sharing)
	}
	return at, ok
}

// firstInNamespace returns the first of the records whose Service is in the namespace, or -1.
func (l *Ledger) firstInNamespace(namespace string, ids []int32) int32 {
	for _, id := range ids {
		if l.recordAt(id).service.Namespace == namespace {
			return id
		}
	}
	return -1
}

// removeHolder removes a holder of the address, and says whether it was the last.
func (l *Ledger) removeHolder(id int32, a address) bool {
	var room [1]int32
	rest := l.holderTable.removeHolder(a, id, &room)
	st := l.index.familyPoolCovering(a)
	if st == nil {
		return len(rest) == 0
	}
	r := l.recordAt(id)
	if ns := r.service.Namespace; st.heldByNamespace != nil && l.firstInNamespace(ns, rest) < 0 {
		if st.heldByNamespace[ns]--; st.heldByNamespace[ns] <= 0 {
			delete(st.heldByNamespace, ns)
		}
	}
	at, placed := st.numbering.positionOf(a)
	if placed {
		st.removeSharer(at, r.sharing, len(rest) == 0)
	}
	if len(rest) > 0 {
		return false
	}
	st.addressesInUse--
	if st.pool.CooldownDelay > 0 {
		l.WithholdAddress(WithheldAddress{Address: a.toNetip(), Service: r.service, Reason: names.ReasonCoolingDown, Until: l.currentTime.Add(st.pool.CooldownDelay)})
	}
	if placed && len(l.withheldByAddress[a]) == 0 {
		st.freeSet.markFree(at)
	}
	return true
}
