package allocate

// holders says which records hold an address. Most addresses have one holder, which stands in the table itself; those that more
// Services share stand in crowds. The table probes its places one after the other and is at most three quarters full; a removed
// entry is closed by moving up what follows. A map of the language would take the same memory and twice the time.
type holders struct {
	// salt is random, so that nobody can ask for addresses that all fall into one place.
	salt  uint64
	keys  []address
	who   []int32 // 0 is an empty place, a record's number plus 1, or below zero a crowd's number minus 1, negated
	count int

	crowds [][]int32
	spare  []int32
}

// home is the place where the search for the address starts.
func (h *holders) home(a address) int {
	x := (a.hi ^ h.salt) * 0xff51afd7ed558ccd
	x = (x ^ x>>32 ^ a.lo) * 0xc4ceb9fe1a85ec53
	return int(x^x>>32) & (len(h.who) - 1)
}

// find returns the place of the address, or the empty one where it would stand.
func (h *holders) find(a address) (at int, ok bool) {
	if len(h.who) == 0 {
		return 0, false
	}
	for at = h.home(a); h.who[at] != 0; at = (at + 1) & (len(h.who) - 1) {
		if h.keys[at] == a {
			return at, true
		}
	}
	return at, false
}

// of returns the records that hold the address; one alone is put into the room. The result is good until the next change.
func (h *holders) of(a address, room *[1]int32) []int32 {
	at, ok := h.find(a)
	switch {
	case !ok:
		return nil
	case h.who[at] < 0:
		return h.crowds[-h.who[at]-1]
	}
	room[0] = h.who[at] - 1
	return room[:]
}

// join enters a record as the last holder of an address and returns all of them.
func (h *holders) join(a address, id int32, room *[1]int32) []int32 {
	if 4*(h.count+1) > 3*len(h.who) {
		h.grow()
	}
	at, ok := h.find(a)
	switch {
	case !ok:
		h.keys[at], h.who[at] = a, id+1
		h.count++
		room[0] = id
		return room[:]
	case h.who[at] > 0:
		crowd := h.crowd()
		h.crowds[crowd] = append(h.crowds[crowd], h.who[at]-1)
		h.who[at] = -crowd - 1
	}
	crowd := &h.crowds[-h.who[at]-1]
	*crowd = append(*crowd, id)
	return *crowd
}

// crowd returns the number of an empty crowd.
func (h *holders) crowd() int32 {
	if n := len(h.spare); n > 0 {
		i := h.spare[n-1]
		h.spare = h.spare[:n-1]
		return i
	}
	h.crowds = append(h.crowds, nil)
	return int32(len(h.crowds) - 1)
}

// leave takes a record from the holders of an address and returns the others.
func (h *holders) leave(a address, id int32, room *[1]int32) []int32 {
	at, ok := h.find(a)
	switch {
	case !ok:
		return nil
	case h.who[at] > 0:
		h.remove(at)
		return nil
	}
	i := -h.who[at] - 1
	rest := h.crowds[i][:0]
	for _, o := range h.crowds[i] {
		if o != id {
			rest = append(rest, o)
		}
	}
	if h.crowds[i] = rest; len(rest) > 1 {
		return rest
	}
	h.who[at], room[0] = rest[0]+1, rest[0]
	h.crowds[i] = rest[:0]
	h.spare = append(h.spare, i)
	return room[:]
}

func (h *holders) grow() {
	keys, who := h.keys, h.who
	h.keys, h.who = make([]address, max(2*len(who), 64)), make([]int32, max(2*len(who), 64))
	for i, w := range who {
		if w != 0 {
			at, _ := h.find(keys[i])
			h.keys[at], h.who[at] = keys[i], w
		}
	}
}

func (h *holders) remove(at int) {
	mask := len(h.who) - 1
	h.count--
	for next := (at + 1) & mask; h.who[next] != 0; next = (next + 1) & mask {
		// An entry may move up unless that puts it before its home.
		if (next-h.home(h.keys[next]))&mask >= (next-at)&mask {
			h.keys[at], h.who[at], at = h.keys[next], h.who[next], next
		}
	}
	h.who[at] = 0
}
