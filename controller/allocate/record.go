package allocate

import (
	"hash/maphash"

	"github.com/gantry-lb/gantry/internal/view"
)

func (l *Ledger) recordAt(id int32) *assignmentRecord {
	return &l.recordChunks[id/recordsPerChunk][id%recordsPerChunk]
}

// seededHashOfService is the hash with which the record of a Service is found. It has a random
// seed, so that no user can choose colliding names.
func (l *Ledger) seededHashOfService(k view.ObjectKey) uint32 {
	return uint32(maphash.String(l.serviceHashSeed, k.Name) + maphash.String(l.serviceHashSeed, k.Namespace)*31)
}

// findRecordID returns the record of the Service.
func (l *Ledger) findRecordID(k view.ObjectKey) (int32, bool) {
	at, ok := l.recordIDByServiceTable.findEntry(l.seededHashOfService(k), func(id uint32) bool { return l.recordAt(int32(id)).service == k })
	if !ok {
		return 0, false
	}
	return int32(l.recordIDByServiceTable.slots[at].recordIDPlusOne - 1), true
}

// createRecord creates a record for a Service that has none.
func (l *Ledger) createRecord(k view.ObjectKey) int32 {
	var id int32
	if n := len(l.freeRecordIDs); n > 0 {
		id, l.freeRecordIDs = l.freeRecordIDs[n-1], l.freeRecordIDs[:n-1]
	} else {
		if id = int32(l.recordCount); l.recordCount%recordsPerChunk == 0 {
			l.recordChunks = append(l.recordChunks, make([]assignmentRecord, recordsPerChunk))
		}
		l.recordCount++
	}
	l.recordAt(id).service = k
	l.recordIDByServiceTable.addEntry(l.seededHashOfService(k), uint32(id))
	return id
}

// deleteRecord deletes a record that holds nothing any more.
func (l *Ledger) deleteRecord(id int32) {
	at, _ := l.recordIDByServiceTable.findEntry(l.seededHashOfService(l.recordAt(id).service), func(o uint32) bool { return int32(o) == id })
	l.recordIDByServiceTable.removeEntry(at)
	delete(l.addressesBeyondSecondByRecordID, id)
	delete(l.addressesNotWrittenByRecordID, id)
	*l.recordAt(id) = assignmentRecord{}
	l.freeRecordIDs = append(l.freeRecordIDs, id)
}

// appendRecordAddresses appends what the record holds.
func (l *Ledger) appendRecordAddresses(id int32, room []address) []address {
	r := l.recordAt(id)
	if r.addressCount > 0 {
		room = append(room, r.firstAddress)
	}
	if r.addressCount > 1 {
		room = append(room, r.secondAddress)
	}
	if r.addressCount > 2 {
		room = append(room, l.addressesBeyondSecondByRecordID[id]...)
	}
	return room
}

// storeRecordAddresses sets what the record holds.
func (l *Ledger) storeRecordAddresses(id int32, addresses []address) {
	r := l.recordAt(id)
	r.addressCount = uint32(len(addresses))
	r.firstAddress, r.secondAddress = addresses[0], address{}
	if len(addresses) > 1 {
		r.secondAddress = addresses[1]
	}
	if len(addresses) > 2 {
		l.addressesBeyondSecondByRecordID[id] = append([]address(nil), addresses[2:]...)
	} else {
		delete(l.addressesBeyondSecondByRecordID, id)
	}
}

// forEachRecordAddress calls f for every address of every record.
func (l *Ledger) forEachRecordAddress(f func(id int32, a address)) {
	var room [2]address
	for i := range l.recordCount {
		for _, a := range l.appendRecordAddresses(int32(i), room[:0]) {
			f(int32(i), a)
		}
	}
}

// setSharingPropertiesOfRecord gives the record another sharing, and updates the
// sharedPositionsOfGroup of its addresses.
func (l *Ledger) setSharingPropertiesOfRecord(id int32, held []address, sh *sharingProperties) {
	r := l.recordAt(id)
	if r.sharing.isEqual(sh) {
		return
	}
	for _, a := range held {
		st := l.currentPoolIndex.familyPoolCovering(a)
		if st == nil {
			continue
		}
		if at, ok := st.assignableNumbering.positionOfAddress(a); ok {
			st.removeSharer(at, r.sharing)
			st.addSharer(at, sh)
		}
	}
	r.sharing = sh
	if len(held) > 0 {
		l.shareableAddressesVersion++
	}
}

// ensurePoolID returns the number of a pool's name, so that a record needs no string.
func (l *Ledger) ensurePoolID(name string) uint32 {
	id, ok := l.poolIDByName[name]
	if !ok {
		id = uint32(len(l.poolNameByID))
		l.poolNameByID = append(l.poolNameByID, name)
		l.poolIDByName[name] = id
	}
	return id
}
