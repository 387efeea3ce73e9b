package allocate

// recordIDsByAddressTable stores which records hold an address. Most addresses have one holder,
// which is in the table itself; several holders are in a list of their own. Slots are probed
// linearly, and at most three quarters are in use. When an entry is removed, the entries behind it
// move up. A Go map would take the same memory and twice the time.
type recordIDsByAddressTable struct {
	// hashSalt is random, so that no user can request addresses that all collide.
	hashSalt      uint64
	addressBySlot []address
	// 0: empty; > 0: a record's number + 1; < 0: -(a list's number + 1)
	encodedHoldersBySlot []int32
	count                int

	recordIDListsOfSharedAddresses [][]int32
	freeHolderListIDs              []int32
}

// homeSlotOfAddress is the slot where the search for the address starts.
func (h *recordIDsByAddressTable) homeSlotOfAddress(a address) int {
	x := (a.highBits ^ h.hashSalt) * 0xff51afd7ed558ccd
	x = (x ^ x>>32 ^ a.lowBits) * 0xc4ceb9fe1a85ec53
	return int(x^x>>32) & (len(h.encodedHoldersBySlot) - 1)
}

// findSlot returns the slot of the address, or the empty one where it belongs.
func (h *recordIDsByAddressTable) findSlot(a address) (at int, ok bool) {
	if len(h.encodedHoldersBySlot) == 0 {
		return 0, false
	}
	for at = h.homeSlotOfAddress(a); h.encodedHoldersBySlot[at] != 0; at = (at + 1) & (len(h.encodedHoldersBySlot) - 1) {
		if h.addressBySlot[at] == a {
			return at, true
		}
	}
	return at, false
}

// recordIDsHoldingAddress returns the records that hold the address. A single one is returned in
// room. The result is valid until the next change.
func (h *recordIDsByAddressTable) recordIDsHoldingAddress(a address, room *[1]int32) []int32 {
	at, ok := h.findSlot(a)
	switch {
	case !ok:
		return nil
	case h.encodedHoldersBySlot[at] < 0:
		return h.recordIDListsOfSharedAddresses[-h.encodedHoldersBySlot[at]-1]
	}
	room[0] = h.encodedHoldersBySlot[at] - 1
	return room[:]
}

// addHolder adds a record as the last holder of an address and returns all holders.
func (h *recordIDsByAddressTable) addHolder(a address, id int32, room *[1]int32) []int32 {
	if 4*(h.count+1) > 3*len(h.encodedHoldersBySlot) {
		h.growSlots()
	}
	at, ok := h.findSlot(a)
	switch {
	case !ok:
		h.addressBySlot[at], h.encodedHoldersBySlot[at] = a, id+1
		h.count++
		room[0] = id
		return room[:]
	case h.encodedHoldersBySlot[at] > 0:
		crowd := h.newHolderList()
		h.recordIDListsOfSharedAddresses[crowd] = append(h.recordIDListsOfSharedAddresses[crowd], h.encodedHoldersBySlot[at]-1)
		h.encodedHoldersBySlot[at] = -crowd - 1
	}
	crowd := &h.recordIDListsOfSharedAddresses[-h.encodedHoldersBySlot[at]-1]
	*crowd = append(*crowd, id)
	return *crowd
}

// newHolderList returns the number of an empty list.
func (h *recordIDsByAddressTable) newHolderList() int32 {
	if n := len(h.freeHolderListIDs); n > 0 {
		i := h.freeHolderListIDs[n-1]
		h.freeHolderListIDs = h.freeHolderListIDs[:n-1]
		return i
	}
	h.recordIDListsOfSharedAddresses = append(h.recordIDListsOfSharedAddresses, nil)
	return int32(len(h.recordIDListsOfSharedAddresses) - 1)
}

// removeHolder removes a record from the holders of an address and returns the others.
func (h *recordIDsByAddressTable) removeHolder(a address, id int32, room *[1]int32) []int32 {
	at, ok := h.findSlot(a)
	switch {
	case !ok:
		return nil
	case h.encodedHoldersBySlot[at] > 0:
		h.removeSlot(at)
		return nil
	}
	i := -h.encodedHoldersBySlot[at] - 1
	rest := h.recordIDListsOfSharedAddresses[i][:0]
	for _, o := range h.recordIDListsOfSharedAddresses[i] {
		if o != id {
			rest = append(rest, o)
		}
	}
	if h.recordIDListsOfSharedAddresses[i] = rest; len(rest) > 1 {
		return rest
	}
	h.encodedHoldersBySlot[at], room[0] = rest[0]+1, rest[0]
	h.recordIDListsOfSharedAddresses[i] = rest[:0]
	h.freeHolderListIDs = append(h.freeHolderListIDs, i)
	return room[:]
}

func (h *recordIDsByAddressTable) growSlots() {
	keys, ids := h.addressBySlot, h.encodedHoldersBySlot
	h.addressBySlot, h.encodedHoldersBySlot = make([]address, max(2*len(ids), 64)), make([]int32, max(2*len(ids), 64))
	for i, w := range ids {
		if w != 0 {
			at, _ := h.findSlot(keys[i])
			h.addressBySlot[at], h.encodedHoldersBySlot[at] = keys[i], w
		}
	}
}

func (h *recordIDsByAddressTable) removeSlot(at int) {
	mask := len(h.encodedHoldersBySlot) - 1
	h.count--
	for next := (at + 1) & mask; h.encodedHoldersBySlot[next] != 0; next = (next + 1) & mask {
		// An entry may move up unless that puts it before its home slot.
		if (next-h.homeSlotOfAddress(h.addressBySlot[next]))&mask >= (next-at)&mask {
			h.addressBySlot[at], h.encodedHoldersBySlot[at], at = h.addressBySlot[next], h.encodedHoldersBySlot[next], next
		}
	}
	h.encodedHoldersBySlot[at] = 0
}
