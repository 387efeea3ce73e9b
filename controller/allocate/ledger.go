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
	// PoolOfFirstAddress is the Pool of the first address when it was committed, even if that has
	// changed since.
	PoolOfFirstAddress string
}

// assignmentRecord is an Assignment as stored in the Ledger: small, because there may be a million.
type assignmentRecord struct {
	service                     view.ObjectKey
	firstAddress, secondAddress address
	sharing                     *sharingProperties
	poolID                      uint32 // index into Ledger.poolNameByID
	// addressCount is how many addresses it has; from the third on they are in
	// Ledger.addressesBeyondSecondByRecordID.
	addressCount uint32
}

// recordsPerChunk is how many records are allocated at once. A doubling list would need twice the
// memory while it grows.
const recordsPerChunk = 1024

// Ledger stores which Service holds which address, and which addresses are withheld. The zero value
// is not usable; call NewLedger.
type Ledger struct {
	currentTime                     time.Time
	recordChunks                    [][]assignmentRecord
	recordCount                     int
	freeRecordIDs                   []int32
	addressesBeyondSecondByRecordID map[int32][]address
	poolNameByID                    []string
	poolIDByName                    map[string]uint32

	// recordIDByServiceTable finds a record by its Service.
	recordIDByServiceTable recordIDHashTable
	serviceHashSeed        maphash.Seed
	holderTable            recordIDsByAddressTable
	// withheldEntriesByAddress and withheldAddressesByService are the withheld addresses, by
	// address and by the Service that may have them.
	withheldEntriesByAddress   map[address][]WithheldAddress
	withheldAddressesByService map[view.ObjectKey][]address
	// reservedAddressesByReservation are the addresses that each reservation keeps.
	reservedAddressesByReservation map[string]map[address]struct{}
	// withheldCheckpointVersion counts the changes of the entries that must survive a restart.
	withheldCheckpointVersion uint64
	// probingEntryCount counts the entries with ReasonProbing.
	probingEntryCount int
	// withholdDeadlines are ordered by time.
	withholdDeadlines []withholdDeadline
	// addressesNotWrittenByRecordID are those that no status of the Service can show yet.
	addressesNotWrittenByRecordID map[int32][]address
	// freedAddressesVersion changes when a waiting Service may get an address: an address became
	// free, or a namespace holds fewer addresses than before, so that its quota allows one more.
	// shareableAddressesVersion changes when a waiting Service with a sharing key may get one.
	freedAddressesVersion, shareableAddressesVersion uint64
	// reservationByName are the reservations of the Snapshot.
	reservationByName map[string]*snapshot.Reservation
	// reservationKeepingReleasedByService are the reservations that take over what their Service
	// held.
	reservationKeepingReleasedByService map[view.ObjectKey]*snapshot.Reservation

	currentPoolIndex *poolIndex
	// tellsNamesOfAllNamespaces: see TellNamesOfAllNamespaces.
	tellsNamesOfAllNamespaces bool
}

// NewLedger returns an empty Ledger.
func NewLedger() *Ledger {
	l := &Ledger{
		addressesBeyondSecondByRecordID: map[int32][]address{}, addressesNotWrittenByRecordID: map[int32][]address{}, poolIDByName: map[string]uint32{}, serviceHashSeed: maphash.MakeSeed(),
		withheldEntriesByAddress: map[address][]WithheldAddress{}, withheldAddressesByService: map[view.ObjectKey][]address{}, reservedAddressesByReservation: map[string]map[address]struct{}{},
	}
	l.holderTable.hashSalt = maphash.String(l.serviceHashSeed, "salt")
	return l
}

// AssignmentOf returns what the Service holds.
func (l *Ledger) AssignmentOf(k view.ObjectKey) (Assignment, bool) {
	id, ok := l.findRecordID(k)
	if !ok {
		return Assignment{}, false
	}
	var room [2]address
	r := l.recordAt(id)
	out := Assignment{Service: r.service, PoolOfFirstAddress: l.poolNameByID[r.poolID], Addresses: make([]netip.Addr, 0, r.addressCount)}
	for _, a := range l.appendRecordAddresses(id, room[:0]) {
		out.Addresses = append(out.Addresses, a.toNetip())
	}
	return out, true
}

// HoldersOfAddress returns the Services that hold the address, sorted.
func (l *Ledger) HoldersOfAddress(a netip.Addr) []view.ObjectKey {
	var room [1]int32
	var out []view.ObjectKey
	for _, id := range l.holderTable.recordIDsHoldingAddress(addressFromNetip(a), &room) {
		out = append(out, l.recordAt(id).service)
	}
	slices.SortFunc(out, view.ObjectKey.Compare)
	return out
}

// FreedAddressesVersion changes when something may have become free for a waiting Service: an
// address, or a part of its namespace's quota.
func (l *Ledger) FreedAddressesVersion() uint64 { return l.freedAddressesVersion }

// ShareableAddressesVersion changes when a Service with a sharing key may find an address that it
// could not share before.
func (l *Ledger) ShareableAddressesVersion() uint64 { return l.shareableAddressesVersion }

// CommitOldAndNewAddresses records that the Service holds what it held and what d gives it, until
// the new addresses are written (make before break).
func (l *Ledger) CommitOldAndNewAddresses(s *view.Service, d Decision) {
	held, _ := l.AssignmentOf(s.Key)
	l.commitUnwrittenAssignment(s, UnionAddresses(held.Addresses, d.Addresses), d.PoolOfFirstAddress)
}

// UnionAddresses returns the addresses of both, each once, those of a first.
func UnionAddresses(a, b []netip.Addr) []netip.Addr {
	out := slices.Clone(a)
	for _, x := range b {
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}

// commitUnwrittenAssignment records that the Service holds exactly these addresses, although the
// new ones are not in its status yet. If they are released before they were written, nobody used
// them, and they do not cool down.
func (l *Ledger) commitUnwrittenAssignment(s *view.Service, addresses []netip.Addr, pool string) {
	var before []address
	if id, known := l.findRecordID(s.Key); known {
		before = l.appendRecordAddresses(id, nil)
		for _, a := range l.addressesNotWrittenByRecordID[id] {
			before = slices.DeleteFunc(before, func(b address) bool { return a == b })
		}
	}
	l.CommitAssignment(s, addresses, pool)
	id, _ := l.findRecordID(s.Key)
	for _, a := range addresses {
		if n := addressFromNetip(a); !slices.Contains(before, n) {
			l.addressesNotWrittenByRecordID[id] = append(l.addressesNotWrittenByRecordID[id], n)
		}
	}
}

// AssumeAddressesWritten records that the status of the Service may show all that it holds.
func (l *Ledger) AssumeAddressesWritten(k view.ObjectKey) {
	if id, known := l.findRecordID(k); known {
		delete(l.addressesNotWrittenByRecordID, id)
	}
}

// CommitAssignment records that the Service now holds exactly these addresses, as its status says.
func (l *Ledger) CommitAssignment(s *view.Service, addresses []netip.Addr, pool string) {
	if len(addresses) == 0 {
		l.ReleaseService(s.Key)
		return
	}
	var roomOld, roomNew [2]address
	old, now := roomOld[:0], roomNew[:0]
	for _, a := range addresses {
		now = append(now, addressFromNetip(a))
	}
	id, known := l.findRecordID(s.Key)
	sh := sharingPropertiesOf(s)
	if known {
		old = l.appendRecordAddresses(id, old)
		if slices.Equal(old, now) {
			delete(l.addressesNotWrittenByRecordID, id)
		}
		if r := l.recordAt(id); slices.Equal(old, now) && l.poolNameByID[r.poolID] == pool && r.sharing.isEqual(sh) {
			return
		}
	} else {
		id = l.createRecord(s.Key)
	}
	l.setSharingPropertiesOfRecord(id, old, sh)
	for _, a := range old {
		if !slices.Contains(now, a) {
			l.removeRecordAsHolder(id, a)
		}
	}
	delete(l.addressesNotWrittenByRecordID, id)
	r := l.recordAt(id)
	r.poolID = l.ensurePoolID(pool)
	l.storeRecordAddresses(id, now)
	for _, a := range now {
		if !slices.Contains(old, a) {
			l.addRecordAsHolder(id, a)
		}
	}
	l.removeProbingEntriesOfService(s.Key)
}

// ReleaseService removes what the Service holds and returns the addresses without a holder. Some of
// these may not be free yet: they cool down, are reserved, or are withheld for another reason.
func (l *Ledger) ReleaseService(k view.ObjectKey) []netip.Addr {
	l.removeProbingEntriesOfService(k)
	id, ok := l.findRecordID(k)
	if !ok {
		return nil
	}
	var room [2]address
	var freed []netip.Addr
	for _, a := range l.appendRecordAddresses(id, room[:0]) {
		if !l.removeRecordAsHolder(id, a) {
			continue
		}
		freed = append(freed, a.toNetip())
		if r := l.reservationKeepingReleasedByService[k]; r != nil && !r.HasExpired(l.currentTime) {
			l.WithholdAddress(WithheldAddress{Address: a.toNetip(), ServiceThatMayHoldIt: k, Reason: names.ReasonAddressReserved, WithheldUntil: r.ExpiresAt, ReservationOrForeignHost: r.Name})
		}
	}
	l.deleteRecord(id)
	return freed
}

// ServicesHoldingAddresses returns every Service that holds an address, sorted.
func (l *Ledger) ServicesHoldingAddresses() []view.ObjectKey {
	out := make([]view.ObjectKey, 0, l.recordIDByServiceTable.count)
	for _, c := range l.recordChunks {
		for i := range c {
			if c[i].addressCount > 0 {
				out = append(out, c[i].service)
			}
		}
	}
	slices.SortFunc(out, view.ObjectKey.Compare)
	return out
}

// CanShareWithHolders says whether the Service may hold a as far as other Services are concerned:
// no other Service holds it, or all holders can share it with this one.
func (l *Ledger) CanShareWithHolders(a netip.Addr, s *view.Service) bool {
	return !l.explainSharingConflict(addressFromNetip(a), s.Key, sharingPropertiesOf(s)).IsSet()
}

// ConflictingHolders returns the holders of a that may not share it with the Service, sorted.
func (l *Ledger) ConflictingHolders(a netip.Addr, s *view.Service) []view.ObjectKey {
	var room [1]int32
	var out []view.ObjectKey
	sh := sharingPropertiesOf(s)
	for _, id := range l.holderTable.recordIDsHoldingAddress(addressFromNetip(a), &room) {
		r := l.recordAt(id)
		if r.service == s.Key {
			continue
		}
		if sh.explainConflictWith(r.sharing).IsSet() {
			out = append(out, r.service)
		}
	}
	slices.SortFunc(out, view.ObjectKey.Compare)
	return out
}

// UseSnapshot makes the Ledger use the pools of a Snapshot, as every decision does: released
// addresses are then treated as its pools say.
func (l *Ledger) UseSnapshot(snap *snapshot.Snapshot) { l.indexPoolsOfSnapshot(snap) }

// PoolUsage is what the status of a Pool says, by family. Available addresses could be assigned
// now. A count above math.MaxInt64 is math.MaxInt64.
type PoolUsage struct{ AssignedIPv4, AssignedIPv6, AvailableIPv4, AvailableIPv6 int64 }

// UsageOfPool counts the addresses of a Pool of the Snapshot.
func (l *Ledger) UsageOfPool(p *snapshot.Pool, snap *snapshot.Snapshot) PoolUsage {
	src := l.indexPoolsOfSnapshot(snap).poolEntryByName[p.Name]
	if src == nil {
		return PoolUsage{}
	}
	v4, v6 := p.CountAssignableAddresses()
	free := func(size int64, s *familyPool) int64 {
		return max(size-int64(min(s.takenPositionTree.takenCount, uint64(size))), 0)
	}
	return PoolUsage{src.ipv4Pool.heldAddressCount, src.ipv6Pool.heldAddressCount, free(v4, src.ipv4Pool), free(v6, src.ipv6Pool)}
}

// isAddressHeld says whether any Service holds the address.
func (l *Ledger) isAddressHeld(a address) bool {
	_, ok := l.holderTable.findSlot(a)
	return ok
}

// addRecordAsHolder records a holder of the address.
func (l *Ledger) addRecordAsHolder(id int32, a address) {
	var room [1]int32
	all := l.holderTable.addHolder(a, id, &room)
	if len(l.withheldEntriesByAddress) > 0 { // the address has a holder now
		l.removeWithheldEntries(a, func(w WithheldAddress) bool {
			return w.Reason == names.ReasonCoolingDown || w.Reason == names.ReasonProbing
		})
	}
	st := l.currentPoolIndex.familyPoolCovering(a)
	if st == nil {
		return
	}
	if at, ok := l.recordHolderInFamilyPool(st, a, id, all); ok && len(all) == 1 {
		st.nextRoundRobinPosition = at + 1
	}
}

// recordHolderInFamilyPool counts one of all holders of an address in its familyPool, and
// returns the position of the address if it has one.
func (l *Ledger) recordHolderInFamilyPool(st *familyPool, a address, id int32, all []int32) (at uint64, ok bool) {
	r := l.recordAt(id)
	if all[0] == id {
		st.heldAddressCount++
	}
	if st.heldCountByNamespace != nil && l.firstHolderInNamespace(r.service.Namespace, all) == id {
		st.heldCountByNamespace[r.service.Namespace]++
	}
	if at, ok = st.assignableNumbering.positionOfAddress(a); ok {
		st.takenPositionTree.markTaken(at)
		st.addSharer(at, r.sharing)
	}
	return at, ok
}

// firstHolderInNamespace returns the first of the records whose Service is in the namespace, or -1.
func (l *Ledger) firstHolderInNamespace(namespace string, ids []int32) int32 {
	for _, id := range ids {
		if l.recordAt(id).service.Namespace == namespace {
			return id
		}
	}
	return -1
}

// removeRecordAsHolder removes a holder of the address, and says whether it was the last.
func (l *Ledger) removeRecordAsHolder(id int32, a address) bool {
	var room [1]int32
	rest := l.holderTable.removeHolder(a, id, &room)
	if len(rest) == 0 {
		l.freedAddressesVersion++
	} else {
		l.shareableAddressesVersion++
	}
	st := l.currentPoolIndex.familyPoolCovering(a)
	if st == nil {
		return len(rest) == 0
	}
	r := l.recordAt(id)
	if ns := r.service.Namespace; st.heldCountByNamespace != nil && l.firstHolderInNamespace(ns, rest) < 0 {
		l.freedAddressesVersion++
		if st.heldCountByNamespace[ns]--; st.heldCountByNamespace[ns] <= 0 {
			delete(st.heldCountByNamespace, ns)
		}
	}
	at, placed := st.assignableNumbering.positionOfAddress(a)
	if placed {
		st.removeSharer(at, r.sharing)
	}
	if len(rest) > 0 {
		return false
	}
	st.heldAddressCount--
	if st.pool.CooldownDelay > 0 && !slices.Contains(l.addressesNotWrittenByRecordID[id], a) {
		l.WithholdAddress(WithheldAddress{Address: a.toNetip(), ServiceThatMayHoldIt: r.service, Reason: names.ReasonCoolingDown, WithheldUntil: l.currentTime.Add(st.pool.CooldownDelay)})
	}
	if placed && len(l.withheldEntriesByAddress[a]) == 0 {
		st.takenPositionTree.markFree(at)
	}
	return true
}
