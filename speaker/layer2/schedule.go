package layer2

import (
	"container/heap"
	"hash/fnv"
	"net/netip"
	"time"
)

// Announcement is one announcement that is due.
type Announcement struct {
	Address netip.Addr
	Link    int
}

// burstOffsets are the times of a burst after its start: at once and each 1.1 s for 5 s, which is what users of this API know,
// and two early ones. The first changes the caches of whoever hears it; the early ones are for frames that were lost; the
// later ones for switches that open a port late, and for hosts with a Linux before 4.11, which ignore a second change
// within a second (locktime).
var burstOffsets = [...]time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond,
	1100 * time.Millisecond, 2200 * time.Millisecond, 3300 * time.Millisecond, 4400 * time.Millisecond}

const (
	// announcementBatchSize and pace bound the announcements: batch of them each pace, so that many addresses at once do not
	// overrun a switch.
	announcementBatchSize = 50
	batchInterval         = 10 * time.Millisecond
)

// Schedule says when which address is announced on which link. It reads no clock, and costs the logarithm of its size for
// each announcement. The zero value is not usable.
type Schedule struct {
	entryByAnnouncement map[Announcement]*scheduleEntry
	waiting             entryHeap // by time
	due                 entryHeap // by round: what nobody has heard yet comes before what is repeated
	nextBatchAt         time.Time
	// refreshInterval is how often a held address is announced after its burst; 0 is never.
	refreshInterval time.Duration
}

// scheduleEntry is one address on one link. It is in one of the two queues, at index.
type scheduleEntry struct {
	announcement Announcement
	roundsSent   int // how many were sent
	dueAt        time.Time
	heap         *entryHeap
	heapIndex    int
}

// NewSchedule returns an empty Schedule that announces an address anew each refresh after its burst; never for 0.
func NewSchedule(refresh time.Duration) *Schedule {
	return &Schedule{
		refreshInterval:     refresh,
		entryByAnnouncement: map[Announcement]*scheduleEntry{},
		waiting:             entryHeap{isBefore: func(x, y *scheduleEntry) bool { return x.dueAt.Before(y.dueAt) }},
		due: entryHeap{isBefore: func(x, y *scheduleEntry) bool {
			if x.roundsSent != y.roundsSent {
				return x.roundsSent < y.roundsSent
			}
			if c := x.announcement.Address.Compare(y.announcement.Address); c != 0 {
				return c < 0
			}
			return x.announcement.Link < y.announcement.Link
		}},
	}
}

// StartBurst begins a burst, or begins the one under way again.
func (s *Schedule) StartBurst(a netip.Addr, link int, now time.Time) {
	s.Remove(a, link)
	e := &scheduleEntry{announcement: Announcement{a, link}, dueAt: now}
	s.entryByAnnouncement[e.announcement] = e
	s.waiting.insertEntry(e)
}

// Remove forgets the address on the link.
func (s *Schedule) Remove(a netip.Addr, link int) {
	if e := s.entryByAnnouncement[Announcement{a, link}]; e != nil {
		e.heap.removeEntry(e)
		delete(s.entryByAnnouncement, e.announcement)
	}
}

// Len is the number of addresses, counted once on each of their links.
func (s *Schedule) Len() int { return len(s.entryByAnnouncement) }

// Advance returns what is due, at most batch of it, and when to be called again; the zero time when nothing is
// scheduled.
func (s *Schedule) Advance(now time.Time) ([]Announcement, time.Time) {
	if now.Before(s.nextBatchAt) {
		return nil, s.nextBatchAt
	}
	for s.waiting.Len() > 0 && !now.Before(s.waiting.entries[0].dueAt) {
		e := s.waiting.entries[0]
		s.waiting.removeEntry(e)
		s.due.insertEntry(e)
	}
	var out []Announcement
	for s.due.Len() > 0 && len(out) < announcementBatchSize {
		e := s.due.entries[0]
		s.due.removeEntry(e)
		out = append(out, e.announcement)
		after, again := s.nextRoundDelay(e)
		if !again {
			delete(s.entryByAnnouncement, e.announcement)
			continue
		}
		e.dueAt = now.Add(after)
		e.roundsSent++
		s.waiting.insertEntry(e)
	}
	switch {
	case s.due.Len() > 0:
		s.nextBatchAt = now.Add(batchInterval)
		return out, s.nextBatchAt
	case s.waiting.Len() > 0:
		return out, s.waiting.entries[0].dueAt
	}
	return out, time.Time{}
}

// nextRoundDelay is the time from a round to the next one, if there is another. It counts from when the round was sent, so that
// rounds that waited for their turn do not run into each other. The first refresh comes sooner, for each address at
// another time, so that addresses that were taken together are not refreshed together for ever.
func (s *Schedule) nextRoundDelay(e *scheduleEntry) (time.Duration, bool) {
	switch {
	case e.roundsSent+1 < len(burstOffsets):
		return burstOffsets[e.roundsSent+1] - burstOffsets[e.roundsSent], true
	case e.roundsSent+1 == len(burstOffsets):
		return s.refreshInterval - s.refreshInterval/2*time.Duration(pseudoRandomByte(e.announcement))/256, s.refreshInterval > 0
	}
	return s.refreshInterval, true
}

// pseudoRandomByte is a number that looks random, the same for the same address and link.
func pseudoRandomByte(g Announcement) uint8 {
	h := fnv.New32a()
	b := g.Address.As16()
	h.Write(append(b[:], byte(g.Link)))
	return uint8(h.Sum32() >> 8)
}

// entryHeap is a heap of slots.
type entryHeap struct {
	entries  []*scheduleEntry
	isBefore func(x, y *scheduleEntry) bool
}

func (q *entryHeap) insertEntry(e *scheduleEntry) {
	e.heap = q
	heap.Push(q, e)
}

func (q *entryHeap) removeEntry(e *scheduleEntry) { heap.Remove(q, e.heapIndex) }

// Len is part of heap.Interface, as are the following.
func (q *entryHeap) Len() int { return len(q.entries) }

// Less compares two slots.
func (q *entryHeap) Less(i, j int) bool { return q.isBefore(q.entries[i], q.entries[j]) }

// Swap exchanges two slots.
func (q *entryHeap) Swap(i, j int) {
	q.entries[i], q.entries[j] = q.entries[j], q.entries[i]
	q.entries[i].heapIndex, q.entries[j].heapIndex = i, j
}

// Push appends a slot.
func (q *entryHeap) Push(x any) {
	e := x.(*scheduleEntry)
	e.heapIndex = len(q.entries)
	q.entries = append(q.entries, e)
}

// Pop takes the last slot off.
func (q *entryHeap) Pop() any {
	last := len(q.entries) - 1
	e := q.entries[last]
	q.entries[last] = nil
	q.entries = q.entries[:last]
	return e
}
