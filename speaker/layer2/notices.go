package layer2

import (
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// unicastNotice is a notice to one neighbour that this node now answers for an address.
type unicastNotice struct {
	addressOnLink AddressOnLink
	target        facts.LinkNeighbour
	dueAt         time.Time
}

const (
	// secondUnicastNoticeDelay is the delay of the second notice. The second notice helps if the
	// first one is lost. It also helps Linux hosts, which ignore a change within a second after
	// another one.
	secondUnicastNoticeDelay = 1100 * time.Millisecond
	// noticeBatchSize is how many notices are sent each announcementBatchInterval, besides the
	// announcements.
	noticeBatchSize = 50
)

// noticeQueue decides when each unicast notice is sent. It reads no clock and sends nothing. Call
// TakeDue at the time that the last call returned, and after scheduleNotices. The zero value is
// empty.
type noticeQueue struct {
	firstNotices, repeatedNotices []unicastNotice // each sorted by time
	nextBatchAt                   time.Time       // when the next batch may be sent
}

// scheduleNotices schedules two notices to each target: one at once, one after
// secondUnicastNoticeDelay.
func (q *noticeQueue) scheduleNotices(g AddressOnLink, targets []facts.LinkNeighbour, now time.Time) {
	for _, to := range targets {
		n := unicastNotice{addressOnLink: g, target: to, dueAt: now}
		q.firstNotices = append(q.firstNotices, n)
		n.dueAt = now.Add(secondUnicastNoticeDelay)
		q.repeatedNotices = append(q.repeatedNotices, n)
	}
}

// TakeDue returns the notices that are due, at most noticeBatchSize of them each
// announcementBatchInterval, and the time of the next call, which is zero when no notice is left.
func (q *noticeQueue) TakeDue(now time.Time) (due []unicastNotice, next time.Time) {
	if now.Before(q.nextBatchAt) {
		return nil, q.nextBatchAt
	}
	for _, list := range []*[]unicastNotice{&q.firstNotices, &q.repeatedNotices} {
		for len(*list) > 0 && !(*list)[0].dueAt.After(now) && len(due) < noticeBatchSize {
			due = append(due, (*list)[0])
			*list = (*list)[1:]
		}
		if len(*list) == 0 {
			*list = nil // frees the memory
			continue
		}
		if at := (*list)[0].dueAt; next.IsZero() || at.Before(next) {
			next = at
		}
	}
	if len(due) == noticeBatchSize {
		q.nextBatchAt = now.Add(announcementBatchInterval)
		if next.Before(q.nextBatchAt) && !next.IsZero() {
			next = q.nextBatchAt
		}
	}
	return due, next
}
