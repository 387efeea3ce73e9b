package layer2

import (
	"container/heap"
	"hash/fnv"
	"net/netip"
	"time"
)

// AddressOnLink identifies an announcement: an address on a link.
type AddressOnLink struct {
	Address   netip.Addr
	LinkIndex int
}

// burstOffsets are the times of a burst after its start. At once and each 1.1 s for 5
// s is what users of this API know; two early ones come on top. The first announcement
// changes the caches of the hosts that hear it. The early ones cover lost frames. The
// later ones cover switches that open a port late, and Linux hosts before 4.11, which
// ignore a second change within a second (locktime).
var burstOffsets = [...]time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond,
	1100 * time.Millisecond, 2200 * time.Millisecond, 3300 * time.Millisecond, 4400 * time.Millisecond}

const (
	// At most announcementBatchSize announcements are sent each announcementBatchInterval, so that
	// many addresses at once do not overrun a switch.
	announcementBatchSize     = 50
	announcementBatchInterval = 10 * time.Millisecond
)

// AnnouncementSchedule decides when each address is announced on each link. It reads no clock. An
// announcement costs the logarithm of the number of entries. The zero value is not usable.
type AnnouncementSchedule struct {
	entryByAnnouncement map[AddressOnLink]*scheduleEntry
	waitingEntries      entryHeap // by time
	dueEntriesByRound   entryHeap // by round: first announcements come before repetitions
	nextBatchAt         time.Time
	// refreshInterval is how often an address is announced after its burst; 0 means never.
	refreshInterval time.Duration
}

// scheduleEntry is one address on one link. It is in one of the two heaps, at heapIndex.
type scheduleEntry struct {
	addressOnLink     AddressOnLink
	announcementsSent int // the announcements sent so far
	dueAt             time.Time
	currentHeap       *entryHeap
	heapIndex         int
}

// NewAnnouncementSchedule returns an empty AnnouncementSchedule. After its burst an address is
// announced each refresh, or never if that is 0.
func NewAnnouncementSchedule(refresh time.Duration) *AnnouncementSchedule {
	return &AnnouncementSchedule{
		refreshInterval:     refresh,
		entryByAnnouncement: map[AddressOnLink]*scheduleEntry{},
		waitingEntries:      entryHeap{isBefore: func(x, y *scheduleEntry) bool { return x.dueAt.Before(y.dueAt) }},
		dueEntriesByRound: entryHeap{isBefore: func(x, y *scheduleEntry) bool {
			if x.announcementsSent != y.announcementsSent {
				return x.announcementsSent < y.announcementsSent
			}
			if c := x.addressOnLink.Address.Compare(y.addressOnLink.Address); c != 0 {
				return c < 0
			}
			return x.addressOnLink.LinkIndex < y.addressOnLink.LinkIndex
		}},
	}
}

// StartBurst starts a burst. A burst under way starts from the beginning.
func (s *AnnouncementSchedule) StartBurst(a netip.Addr, link int, now time.Time) {
	s.RemoveAddressOnLink(a, link)
	e := &scheduleEntry{addressOnLink: AddressOnLink{a, link}, dueAt: now}
	s.entryByAnnouncement[e.addressOnLink] = e
	s.waitingEntries.insertEntry(e)
}

// RemoveAddressOnLink deletes the address on the link.
func (s *AnnouncementSchedule) RemoveAddressOnLink(a netip.Addr, link int) {
	if e := s.entryByAnnouncement[AddressOnLink{a, link}]; e != nil {
		e.currentHeap.removeEntry(e)
		delete(s.entryByAnnouncement, e.addressOnLink)
	}
}

// Len returns the number of entries: an address counts once for each of its links.
func (s *AnnouncementSchedule) Len() int { return len(s.entryByAnnouncement) }

// TakeDueAnnouncements returns the announcements that are due, at most announcementBatchSize of
// them, and the time of the next call. That is the zero time when the AnnouncementSchedule is
// empty.
func (s *AnnouncementSchedule) TakeDueAnnouncements(now time.Time) ([]AddressOnLink, time.Time) {
	if now.Before(s.nextBatchAt) {
		return nil, s.nextBatchAt
	}
	for s.waitingEntries.Len() > 0 && !now.Before(s.waitingEntries.entries[0].dueAt) {
		e := s.waitingEntries.entries[0]
		s.waitingEntries.removeEntry(e)
		s.dueEntriesByRound.insertEntry(e)
	}
	var out []AddressOnLink
	for s.dueEntriesByRound.Len() > 0 && len(out) < announcementBatchSize {
		e := s.dueEntriesByRound.entries[0]
		s.dueEntriesByRound.removeEntry(e)
		out = append(out, e.addressOnLink)
		after, again := s.delayUntilNextAnnouncement(e)
		if !again {
			delete(s.entryByAnnouncement, e.addressOnLink)
			continue
		}
		e.dueAt = now.Add(after)
		e.announcementsSent++
		s.waitingEntries.insertEntry(e)
	}
	switch {
	case s.dueEntriesByRound.Len() > 0:
		s.nextBatchAt = now.Add(announcementBatchInterval)
		return out, s.nextBatchAt
	case s.waitingEntries.Len() > 0:
		return out, s.waitingEntries.entries[0].dueAt
	}
	return out, time.Time{}
}

// delayUntilNextAnnouncement returns the delay from this round to the next, and whether there is a
// next one. The delay counts from when the round was sent, so that delayed rounds do not pile up.
// The first refresh comes sooner, by another amount for each address, so that addresses that were
// taken together are not all refreshed together.
func (s *AnnouncementSchedule) delayUntilNextAnnouncement(e *scheduleEntry) (time.Duration, bool) {
	switch {
	case e.announcementsSent+1 < len(burstOffsets):
		return burstOffsets[e.announcementsSent+1] - burstOffsets[e.announcementsSent], true
	case e.announcementsSent+1 == len(burstOffsets):
		return s.refreshInterval - s.refreshInterval/2*time.Duration(pseudoRandomByte(e.addressOnLink))/256, s.refreshInterval > 0
	}
	return s.refreshInterval, true
}

// pseudoRandomByte returns a number that looks random, and is the same for the same
// address and link.
func pseudoRandomByte(g AddressOnLink) uint8 {
	h := fnv.New32a()
	b := g.Address.As16()
	h.Write(append(b[:], byte(g.LinkIndex)))
	return uint8(h.Sum32() >> 8)
}

// entryHeap is a heap of entries. It implements heap.Interface.
type entryHeap struct {
	entries  []*scheduleEntry
	isBefore func(x, y *scheduleEntry) bool
}

func (q *entryHeap) insertEntry(e *scheduleEntry) {
	e.currentHeap = q
	heap.Push(q, e)
}

func (q *entryHeap) removeEntry(e *scheduleEntry) { heap.Remove(q, e.heapIndex) }

// Len returns the number of entries.
func (q *entryHeap) Len() int { return len(q.entries) }

// Less compares two entries.
func (q *entryHeap) Less(i, j int) bool { return q.isBefore(q.entries[i], q.entries[j]) }

// Swap exchanges two entries.
func (q *entryHeap) Swap(i, j int) {
	q.entries[i], q.entries[j] = q.entries[j], q.entries[i]
	q.entries[i].heapIndex, q.entries[j].heapIndex = i, j
}

// Push appends an entry.
func (q *entryHeap) Push(x any) {
	e := x.(*scheduleEntry)
	e.heapIndex = len(q.entries)
	q.entries = append(q.entries, e)
}

// Pop removes the last entry.
func (q *entryHeap) Pop() any {
	last := len(q.entries) - 1
	e := q.entries[last]
	q.entries[last] = nil
	q.entries = q.entries[:last]
	return e
}
