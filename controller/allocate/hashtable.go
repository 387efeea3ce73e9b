package allocate

// recordIDHashTable finds small numbers by a hash. It stores 32 bits of the hash next to the
// number. The caller decides whether a found number is the right one: the key is already in the
// record, and a Go map would store it twice. Slots are probed linearly, and at most three quarters
// are in use. When an entry is removed, the entries behind it move up.
type recordIDHashTable struct {
	slots []recordIDSlot
	count int
}

// recordIDSlot holds a number plus 1, so that its zero value is empty.
type recordIDSlot struct {
	hash            uint32
	recordIDPlusOne uint32
}

// findEntry returns the index of the first entry with this hash that accept accepts.
func (t *recordIDHashTable) findEntry(hash uint32, accept func(number uint32) bool) (at int, ok bool) {
	if len(t.slots) == 0 {
		return 0, false
	}
	mask := len(t.slots) - 1
	for at = int(hash) & mask; t.slots[at].recordIDPlusOne != 0; at = (at + 1) & mask {
		if t.slots[at].hash == hash && accept(t.slots[at].recordIDPlusOne-1) {
			return at, true
		}
	}
	return at, false
}

// addEntry adds a number that is not in the table.
func (t *recordIDHashTable) addEntry(hash, number uint32) {
	if 4*(t.count+1) > 3*len(t.slots) {
		t.growSlots()
	}
	t.insertSlotWithoutGrowing(recordIDSlot{hash, number + 1})
	t.count++
}

func (t *recordIDHashTable) insertSlotWithoutGrowing(s recordIDSlot) {
	mask := len(t.slots) - 1
	at := int(s.hash) & mask
	for t.slots[at].recordIDPlusOne != 0 {
		at = (at + 1) & mask
	}
	t.slots[at] = s
}

func (t *recordIDHashTable) growSlots() {
	old := t.slots
	t.slots = make([]recordIDSlot, max(2*len(old), 64))
	for _, s := range old {
		if s.recordIDPlusOne != 0 {
			t.insertSlotWithoutGrowing(s)
		}
	}
}

// removeEntry removes the entry at an index that findEntry returned.
func (t *recordIDHashTable) removeEntry(at int) {
	mask := len(t.slots) - 1
	t.count--
	for next := (at + 1) & mask; t.slots[next].recordIDPlusOne != 0; next = (next + 1) & mask {
		// An entry may move up unless that puts it before its home slot.
		if home := int(t.slots[next].hash) & mask; (next-home)&mask >= (next-at)&mask {
			t.slots[at], at = t.slots[next], next
		}
	}
	t.slots[at] = recordIDSlot{}
}
