package allocate

import (
	"hash/maphash"

	"github.com/gantry-lb/gantry/internal/view"
)

func (l *Ledger) recordAt(id int32) *assignmentRecord {
	return &l.records[id/recordChunkSize][id%recordChunkSize]
}

// hashService is the hash with which the record of a Service is found. It has a random seed, so
// that no user can choose colliding names.
func (l *Ledger) hashService(k view.ObjectKey) uint32 {
	return uint32(maphash.String(l.hashSeed, k.Name) + maphash.String(l.hashSeed, k.Namespace)*31)
}

// findRecord returns the record of the Service.
func (l *Ledger) findRecord(k view.ObjectKey) (int32, bool) {
	at, ok := l.recordTable.findEntry(l.hashService(k), func(id uint32) bool { return l.recordAt(int32(id)).service == k })
	if !ok {
		return 0, false
	}
	return int32(l.recordTable.slots[at].number - 1), true
}

// openRecord creates a record for a Service that has none.
func (l *Ledger) openRecord(k view.ObjectKey) int32 {
	var id int32
	if n := len(l.spareRecords); n > 0 {
		id, l.spareRecords = l.spareRecords[n-1], l.spareRecords[:n-1]
	} else {
		if id = int32(l.recordCount); l.recordCount%recordChunkSize == 0 {
			l.records = append(l.records, make([]assignmentRecord, recordChunkSize))
		}
		l.recordCount++
	}
	l.recordAt(id).service = k
	l.recordTable.addEntry(l.hashService(k), uint32(id))
	return id
}

// closeRecord deletes a record that holds nothing any more.
func (l *Ledger) closeRecord(id int32) {
	at, _ := l.recordTable.findEntry(l.hashService(l.recordAt(id).service), func(o uint32) bool { return int32(o) == id })
	l.recordTable.removeEntry(at)
	delete(l.extraAddresses, id)
	*l.recordAt(id) = assignmentRecord{}
	l.spareRecords = append(l.spareRecords, id)
}

// appendAddresses appends what the record holds.
func (l *Ledger) appendAddresses(id int32, room []address) []address {
	r := l.recordAt(id)
	if r.addressCount > 0 {
		room = append(room, r.firstAddress)
	}
	if r.addressCount > 1 {
		room = append(room, r.secondAddress)
	}
	if r.addressCount > 2 {
		room = append(room, l.extraAddresses[id]...)
	}
	return room
}

// storeAddresses sets what the record holds.
func (l *Ledger) storeAddresses(id int32, addresses []address) {
	r := l.recordAt(id)
	r.addressCount = uint32(len(addresses))
	r.firstAddress, r.secondAddress = addresses[0], address{}
	if len(addresses) > 1 {
		r.secondAddress = addresses[1]
	}
	if len(addresses) > 2 {
		l.extraAddresses[id] = append([]address(nil), addresses[2:]...)
	} else {
		delete(l.extraAddresses, id)
	}
}

// forEachAddress calls f for every address of every record.
func (l *Ledger) forEachAddress(f func(id int32, a address)) {
	var room [2]address
	for i := range l.recordCount {
		for _, a := range l.appendAddresses(int32(i), room[:0]) {
			f(int32(i), a)
		}
	}
}

// changeSharing gives the record another sharing, and updates the sharedSlots of its addresses.
func (l *Ledger) changeSharing(id int32, held []address, sh *sharing) {
	r := l.recordAt(id)
	if r.sharing.isEqual(sh) {
		return
	}
	var room [1]int32
	for _, a := range held {
		st := l.index.familyPoolCovering(a)
		if st == nil {
			continue
		}
		if at, ok := st.numbering.positionOf(a); ok {
			st.removeSharer(at, r.sharing, len(l.holderTable.recordsHolding(a, &room)) == 1)
			st.addSharer(at, sh)
		}
	}
	r.sharing = sh
}

// poolIDOf returns the number of a pool's name, so that a record needs no string.
func (l *Ledger) poolIDOf(name string) uint32 {
	id, ok := l.poolIDByName[name]
	if !ok {
		id = uint32(len(l.poolNames))
		l.poolNames = append(l.poolNames, name)
		l.poolIDByName[name] = id
	}
	return id
}
