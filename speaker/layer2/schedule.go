package layer2

import (
	"hash/fnv"
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/internal/priorityqueue"
)

// AddressOnLink identifies an announcement: an address on a link.
type AddressOnLink struct {
	Address   netip.Addr
	LinkIndex int
}

// announcementBurstOffsets are the times of a burst after its start. At once and each 1.1 s for 5
// s is what users of this API know; two early ones come on top. The first announcement
// changes the caches of the hosts that hear it. The early ones cover lost frames. The
// later ones cover switches that open a port late, and Linux hosts before 4.11, which
// ignore a second change within a second (locktime).
var announcementBurstOffsets = [...]time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond,
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
	entryByAddressOnLink    map[AddressOnLink]*scheduleEntry
	waitingEntriesByDueTime *scheduleEntryQueue // by time
	// by round: first announcements come before repetitions
	dueEntriesByRound *scheduleEntryQueue
	nextBatchAt       time.Time
	// refreshInterval is how often an address is announced after its burst; 0 means never.
	refreshInterval time.Duration
}

// scheduleEntry is one address on one link. It is in one of the two queues.
type scheduleEntry struct {
	addressOnLink     AddressOnLink
	announcementsSent int // the announcements sent so far
	dueAt             time.Time
	currentQueue      *scheduleEntryQueue
	queuePosition     priorityqueue.Position
}

// insertIntoQueue puts the entry, which is in no queue, into one.
func (e *scheduleEntry) insertIntoQueue(q *scheduleEntryQueue) {
	e.currentQueue = q
	q.Insert(e)
}

type scheduleEntryQueue = priorityqueue.Queue[*scheduleEntry]

func newScheduleEntryQueue(isBefore func(x, y *scheduleEntry) bool) *scheduleEntryQueue {
	return priorityqueue.NewQueue(isBefore, func(e *scheduleEntry) *priorityqueue.Position { return &e.queuePosition })
}

// NewAnnouncementSchedule returns an empty AnnouncementSchedule. After its burst an address is
// announced each refresh, or never if that is 0.
func NewAnnouncementSchedule(refresh time.Duration) *AnnouncementSchedule {
	return &AnnouncementSchedule{
		refreshInterval:         refresh,
		entryByAddressOnLink:    map[AddressOnLink]*scheduleEntry{},
		waitingEntriesByDueTime: newScheduleEntryQueue(func(x, y *scheduleEntry) bool { return x.dueAt.Before(y.dueAt) }),
		dueEntriesByRound: newScheduleEntryQueue(func(x, y *scheduleEntry) bool {
			if x.announcementsSent != y.announcementsSent {
				return x.announcementsSent < y.announcementsSent
			}
			if c := x.addressOnLink.Address.Compare(y.addressOnLink.Address); c != 0 {
				return c < 0
			}
			return x.addressOnLink.LinkIndex < y.addressOnLink.LinkIndex
		}),
	}
}

// StartBurst starts a burst. A burst under way starts from the beginning.
func (s *AnnouncementSchedule) StartBurst(a netip.Addr, link int, now time.Time) {
	s.RemoveAddressOnLink(a, link)
	e := &scheduleEntry{addressOnLink: AddressOnLink{a, link}, dueAt: now}
	s.entryByAddressOnLink[e.addressOnLink] = e
	e.insertIntoQueue(s.waitingEntriesByDueTime)
}

// RemoveAddressOnLink deletes the address on the link.
func (s *AnnouncementSchedule) RemoveAddressOnLink(a netip.Addr, link int) {
	if e := s.entryByAddressOnLink[AddressOnLink{a, link}]; e != nil {
		e.currentQueue.Remove(e)
		delete(s.entryByAddressOnLink, e.addressOnLink)
	}
}

// Len returns the number of entries: an address counts once for each of its links.
func (s *AnnouncementSchedule) Len() int { return len(s.entryByAddressOnLink) }

// TakeDueAnnouncements returns the announcements that are due, at most announcementBatchSize of
// them, and the time of the next call. That is the zero time when the AnnouncementSchedule is
// empty.
func (s *AnnouncementSchedule) TakeDueAnnouncements(now time.Time) ([]AddressOnLink, time.Time) {
	if now.Before(s.nextBatchAt) {
		return nil, s.nextBatchAt
	}
	for e, ok := s.waitingEntriesByDueTime.First(); ok && !now.Before(e.dueAt); e, ok = s.waitingEntriesByDueTime.First() {
		s.waitingEntriesByDueTime.Remove(e)
		e.insertIntoQueue(s.dueEntriesByRound)
	}
	var out []AddressOnLink
	for e, ok := s.dueEntriesByRound.First(); ok && len(out) < announcementBatchSize; e, ok = s.dueEntriesByRound.First() {
		s.dueEntriesByRound.Remove(e)
		out = append(out, e.addressOnLink)
		after, again := s.delayUntilEntryIsRepeated(e)
		if !again {
			delete(s.entryByAddressOnLink, e.addressOnLink)
			continue
		}
		e.dueAt = now.Add(after)
		e.announcementsSent++
		e.insertIntoQueue(s.waitingEntriesByDueTime)
	}
	if s.dueEntriesByRound.Len() > 0 {
		s.nextBatchAt = now.Add(announcementBatchInterval)
		return out, s.nextBatchAt
	}
	if e, ok := s.waitingEntriesByDueTime.First(); ok {
		return out, e.dueAt
	}
	return out, time.Time{}
}

// delayUntilEntryIsRepeated returns the delay from this round to the next, and whether there is a
// next one. The delay counts from when the round was sent, so that delayed rounds do not pile up.
// The first refresh comes sooner, by another amount for each address, so that addresses that were
// taken together are not all refreshed together.
func (s *AnnouncementSchedule) delayUntilEntryIsRepeated(e *scheduleEntry) (time.Duration, bool) {
	switch {
	case e.announcementsSent+1 < len(announcementBurstOffsets):
		return announcementBurstOffsets[e.announcementsSent+1] - announcementBurstOffsets[e.announcementsSent], true
	case e.announcementsSent+1 == len(announcementBurstOffsets):
		return s.refreshInterval - s.refreshInterval/2*time.Duration(refreshJitterByte(e.addressOnLink))/256, s.refreshInterval > 0
	}
	return s.refreshInterval, true
}

// refreshJitterByte returns a number that looks random, and is the same for the same
// address and link.
func refreshJitterByte(g AddressOnLink) uint8 {
	h := fnv.New32a()
	b := g.Address.As16()
	h.Write(append(b[:], byte(g.LinkIndex)))
	return uint8(h.Sum32() >> 8)
}
