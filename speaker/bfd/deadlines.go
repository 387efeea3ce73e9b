package bfd

import (
	"container/heap"
	"time"
)

// sessionDeadlines has the sessions by the time of their next tick, the earliest first. So the work
// of the Engine is that of the sessions with something to do, however many there are. Only the
// Engine's goroutine uses it.
type sessionDeadlines struct{ queue deadlineQueue }

// updateDeadline sorts a session in by its next tick. A session without one is left out.
func (d *sessionDeadlines) updateDeadline(s *runningSession) {
	at := s.machine.NextTickDeadline()
	switch queued := s.queueIndex >= 0; {
	case at.IsZero() && queued:
		heap.Remove(&d.queue, s.queueIndex)
	case at.IsZero():
	case queued && at.Equal(s.queuedDeadline):
	case queued:
		s.queuedDeadline = at
		heap.Fix(&d.queue, s.queueIndex)
	default:
		s.queuedDeadline = at
		heap.Push(&d.queue, s)
	}
}

// removeSession leaves a session out.
func (d *sessionDeadlines) removeSession(s *runningSession) {
	if s.queueIndex >= 0 {
		heap.Remove(&d.queue, s.queueIndex)
	}
}

// earliestSession returns the session with the earliest deadline, or nil.
func (d *sessionDeadlines) earliestSession() *runningSession {
	if len(d.queue) == 0 {
		return nil
	}
	return d.queue[0]
}

// isDueAt reports whether the session's tick is due.
func (s *runningSession) isDueAt(now time.Time) bool { return !now.Before(s.queuedDeadline) }

// deadlineQueue implements heap.Interface.
type deadlineQueue []*runningSession

func (q deadlineQueue) Len() int           { return len(q) }
func (q deadlineQueue) Less(i, j int) bool { return q[i].queuedDeadline.Before(q[j].queuedDeadline) }

func (q deadlineQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].queueIndex, q[j].queueIndex = i, j
}

// Push implements heap.Interface.
func (q *deadlineQueue) Push(x any) {
	s := x.(*runningSession)
	s.queueIndex = len(*q)
	*q = append(*q, s)
}

// Pop implements heap.Interface.
func (q *deadlineQueue) Pop() any {
	last := len(*q) - 1
	s := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	s.queueIndex = -1
	return s
}
