package bfd

import (
	"time"

	"github.com/gantry-lb/gantry/internal/priorityqueue"
)

// newDeadlineQueue returns an empty queue of sessions by the time of their next tick. So the work
// of the Engine is that of the sessions with something to do, however many there are.
func newDeadlineQueue() *priorityqueue.Queue[*runningSession] {
	return priorityqueue.NewQueue(
		func(x, y *runningSession) bool { return x.queuedDeadline.Before(y.queuedDeadline) },
		func(s *runningSession) *priorityqueue.Position { return &s.queuePosition },
	)
}

// updateDeadline sorts the session in by its next tick. A session without one is left out.
func (s *runningSession) updateDeadline(queue *priorityqueue.Queue[*runningSession]) {
	at := s.machine.NextStepDeadline()
	if at.IsZero() {
		queue.Remove(s)
		return
	}
	if !at.Equal(s.queuedDeadline) || !s.queuePosition.IsQueued() {
		s.queuedDeadline = at
		queue.Insert(s)
	}
}

// isDueAt reports whether the session's tick is due.
func (s *runningSession) isDueAt(now time.Time) bool { return !now.Before(s.queuedDeadline) }
