package layer2

import (
	"container/heap"
	"hash/fnv"
	"net/netip"
	"time"
)

// Gratuitous is one announcement that is due.
type Gratuitous struct {
	Address netip.Addr
	Link    int
}

// rounds are the times of a burst after its start: at once and each 1.1 s for 5 s, which is what users of this API know,
// and two early ones. The first changes the caches of whoever hears it; the early ones are for frames that were lost; the
// later ones for switches that open a port late, and for hosts with a Linux before 4.11, which ignore a second change
// within a second (locktime).
var rounds = [...]time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond,
	1100 * time.Millisecond, 2200 * time.Millisecond, 3300 * time.Millisecond, 4400 * time.Millisecond}

const (
	// batch and pace bound the announcements: batch of them each pace, so that many addresses at once do not
	// overrun a switch.
	batch = 50
	pace  = 10 * time.Millisecond
)

// Schedule says when which address is announced on which link. It reads no clock, and costs the logarithm of its size for
// each announcement. The zero value is not usable.
type Schedule struct {
	entries map[Gratuitous]*slot
	waiting queue // by time
	due     queue // by round: what nobody has heard yet comes before what is repeated
	resume  time.Time
	// refresh is how often a held address is announced after its burst; 0 is never.
	refresh time.Duration
}

// slot is one address on one link. It is in one of the two queues, at index.
type slot struct {
	what  Gratuitous
	round int // how many were sent
	next  time.Time
	in    *queue
	index int
}

// NewSchedule returns an empty Schedule that announces an address anew each refresh after its burst; never for 0.
func NewSchedule(refresh time.Duration) *Schedule {
	return &Schedule{
		refresh: refresh,
		entries: map[Gratuitous]*slot{},
		waiting: queue{before: func(x, y *slot) bool { return x.next.Before(y.next) }},
		due: queue{before: func(x, y *slot) bool {
			if x.round != y.round {
				return x.round < y.round
			}
			if c := x.what.Address.Compare(y.what.Address); c != 0 {
				return c < 0
			}
			return x.what.Link < y.what.Link
		}},
	}
}

// Start begins a burst, or begins the one under way again.
func (s *Schedule) Start(a netip.Addr, link int, now time.Time) {
	s.Remove(a, link)
	e := &slot{what: Gratuitous{a, link}, next: now}
	s.entries[e.what] = e
	s.waiting.add(e)
}

// Remove forgets the address on the link.
func (s *Schedule) Remove(a netip.Addr, link int) {
	if e := s.entries[Gratuitous{a, link}]; e != nil {
		e.in.remove(e)
		delete(s.entries, e.what)
	}
}

// Len is the number of addresses, counted once on each of their links.
func (s *Schedule) Len() int { return len(s.entries) }

// Advance returns what is due, at most batch of it, and when to be called again; the zero time when nothing is
// scheduled.
func (s *Schedule) Advance(now time.Time) ([]Gratuitous, time.Time) {
	if now.Before(s.resume) {
		return nil, s.resume
	}
	for s.waiting.Len() > 0 && !now.Before(s.waiting.slots[0].next) {
		e := s.waiting.slots[0]
		s.waiting.remove(e)
		s.due.add(e)
	}
	var out []Gratuitous
	for s.due.Len() > 0 && len(out) < batch {
		e := s.due.slots[0]
		s.due.remove(e)
		out = append(out, e.what)
		after, again := s.gap(e)
		if !again {
			delete(s.entries, e.what)
			continue
		}
		e.next = now.Add(after)
		e.round++
		s.waiting.add(e)
	}
	switch {
	case s.due.Len() > 0:
		s.resume = now.Add(pace)
		return out, s.resume
	case s.waiting.Len() > 0:
		return out, s.waiting.slots[0].next
	}
	return out, time.Time{}
}

// gap is the time from a round to the next one, if there is another. It counts from when the round was sent, so that
// rounds that waited for their turn do not run into each other. The first refresh comes sooner, for each address at
// another time, so that addresses that were taken together are not refreshed together for ever.
func (s *Schedule) gap(e *slot) (time.Duration, bool) {
	switch {
	case e.round+1 < len(rounds):
		return rounds[e.round+1] - rounds[e.round], true
	case e.round+1 == len(rounds):
		return s.refresh - s.refresh/2*time.Duration(spread(e.what))/256, s.refresh > 0
	}
	return s.refresh, true
}

// spread is a number that looks random, the same for the same address and link.
func spread(g Gratuitous) uint8 {
	h := fnv.New32a()
	b := g.Address.As16()
	h.Write(append(b[:], byte(g.Link)))
	return uint8(h.Sum32() >> 8)
}

// queue is a heap of slots.
type queue struct {
	slots  []*slot
	before func(x, y *slot) bool
}

func (q *queue) add(e *slot) {
	e.in = q
	heap.Push(q, e)
}

func (q *queue) remove(e *slot) { heap.Remove(q, e.index) }

// Len is part of heap.Interface, as are the following.
func (q *queue) Len() int { return len(q.slots) }

// Less compares two slots.
func (q *queue) Less(i, j int) bool { return q.before(q.slots[i], q.slots[j]) }

// Swap exchanges two slots.
func (q *queue) Swap(i, j int) {
	q.slots[i], q.slots[j] = q.slots[j], q.slots[i]
	q.slots[i].index, q.slots[j].index = i, j
}

// Push appends a slot.
func (q *queue) Push(x any) {
	e := x.(*slot)
	e.index = len(q.slots)
	q.slots = append(q.slots, e)
}

// Pop takes the last slot off.
func (q *queue) Pop() any {
	last := len(q.slots) - 1
	e := q.slots[last]
	q.slots[last] = nil
	q.slots = q.slots[:last]
	return e
}
