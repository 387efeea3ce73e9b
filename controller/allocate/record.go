package allocate

import (
	"hash/maphash"

	"github.com/gantry-lb/gantry/internal/view"
)

func (l *Ledger) record(id int32) *record { return &l.records[id/chunk][id%chunk] }

// sum is the hash by which the record of a Service is found. It is the Ledger's own, so that nobody can choose names that collide.
func (l *Ledger) sum(k view.ObjectKey) uint32 {
	return uint32(maphash.String(l.seed, k.Name) + maphash.String(l.seed, k.Namespace)*31)
}

// find returns the record of the Service.
func (l *Ledger) find(k view.ObjectKey) (int32, bool) {
	at, ok := l.ids.get(l.sum(k), func(id uint32) bool { return l.record(int32(id)).key == k })
	if !ok {
		return 0, false
	}
	return int32(l.ids.slots[at].number - 1), true
}

// open makes a record for a Service that has none.
func (l *Ledger) open(k view.ObjectKey) int32 {
	var id int32
	if n := len(l.spare); n > 0 {
		id, l.spare = l.spare[n-1], l.spare[:n-1]
	} else {
		if id = int32(l.made); l.made%chunk == 0 {
			l.records = append(l.records, make([]record, chunk))
		}
		l.made++
	}
	l.record(id).key = k
	l.ids.add(l.sum(k), uint32(id))
	return id
}

// shut forgets a record that holds nothing any more.
func (l *Ledger) shut(id int32) {
	at, _ := l.ids.get(l.sum(l.record(id).key), func(o uint32) bool { return int32(o) == id })
	l.ids.remove(at)
	delete(l.more, id)
	*l.record(id) = record{}
	l.spare = append(l.spare, id)
}

// addresses appends what the record holds to the room.
func (l *Ledger) addresses(id int32, room []address) []address {
	r := l.record(id)
	if r.n > 0 {
		room = append(room, r.first)
	}
	if r.n > 1 {
		room = append(room, r.second)
	}
	if r.n > 2 {
		room = append(room, l.more[id]...)
	}
	return room
}

// store writes what the record holds.
func (l *Ledger) store(id int32, addresses []address) {
	r := l.record(id)
	r.n = uint32(len(addresses))
	r.first, r.second = addresses[0], address{}
	if len(addresses) > 1 {
		r.second = addresses[1]
	}
	if len(addresses) > 2 {
		l.more[id] = append([]address(nil), addresses[2:]...)
	} else {
		delete(l.more, id)
	}
}

// each calls f for every address of every record.
func (l *Ledger) each(f func(id int32, a address)) {
	var room [2]address
	for i := range l.made {
		for _, a := range l.addresses(int32(i), room[:0]) {
			f(int32(i), a)
		}
	}
}

// reshare gives the record another share, and moves what it holds between the shelves.
func (l *Ledger) reshare(id int32, held []address, sh *share) {
	r := l.record(id)
	if r.share.equal(sh) {
		return
	}
	var room [1]int32
	for _, a := range held {
		st := l.market.stock(a)
		if st == nil {
			continue
		}
		if at, ok := st.layout.position(a); ok {
			st.unshelve(at, r.share, len(l.holders.of(a, &room)) == 1)
			st.shelve(at, sh)
		}
	}
	r.share = sh
}

// poolID numbers the names of pools, so that a record has no string of its own.
func (l *Ledger) poolID(name string) uint32 {
	id, ok := l.poolIDs[name]
	if !ok {
		id = uint32(len(l.pools))
		l.pools = append(l.pools, name)
		l.poolIDs[name] = id
	}
	return id
}
