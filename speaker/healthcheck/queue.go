package healthcheck

import (
	"container/heap"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// checkQueue decides when to ask about which Service, and what the answers mean.
type checkQueue struct {
	pollByID map[uint64]*poll
	due      dueQueue
}

// poll is the state of one health check.
type poll struct {
	check         intent.HealthCheck
	firstDueAt    time.Time
	lastAliveAt   time.Time // zero if nothing has answered
	dueAt         time.Time
	retryInterval time.Duration
	lastOutcome   facts.HealthCheckOutcome // zero before the first
	// queueIndex is the position in the due queue; -1 while a request runs and after the last one.
	queueIndex int
}

func newCheckQueue() *checkQueue { return &checkQueue{pollByID: map[uint64]*poll{}} }

// setChecks replaces the health checks. New ones are due at once.
func (q *checkQueue) setChecks(checks []intent.HealthCheck, now time.Time) {
	wanted := make(map[uint64]struct{}, len(checks))
	for _, c := range checks {
		wanted[c.ID] = struct{}{}
		if q.pollByID[c.ID] == nil {
			o := &poll{check: c, dueAt: now, retryInterval: firstRetryInterval}
			q.pollByID[c.ID] = o
			heap.Push(&q.due, o)
		}
	}
	for id, o := range q.pollByID {
		if _, ok := wanted[id]; ok {
			continue
		}
		if o.queueIndex >= 0 {
			heap.Remove(&q.due, o.queueIndex)
		}
		delete(q.pollByID, id)
	}
}

// nextDueDelay returns how long it is until the next health check is due. Without one, it is long.
func (q *checkQueue) nextDueDelay(now time.Time) time.Duration {
	if len(q.due) == 0 {
		return time.Hour
	}
	return q.due[0].dueAt.Sub(now)
}

// takeDue returns a health check that is due.
func (q *checkQueue) takeDue(now time.Time) (intent.HealthCheck, bool) {
	if len(q.due) == 0 || q.due[0].dueAt.After(now) {
		return intent.HealthCheck{}, false
	}
	o := heap.Pop(&q.due).(*poll)
	if o.firstDueAt.IsZero() {
		o.firstDueAt = now
	}
	return o.check, true
}

// recordAnswer returns what the answer changes, if anything. If the outcome is not final, the
// health check is due again.
func (q *checkQueue) recordAnswer(c intent.HealthCheck, a answer, now time.Time) (facts.HealthCheckResult, bool) {
	o := q.pollByID[c.ID]
	if o == nil { // not wanted any more
		return facts.HealthCheckResult{}, false
	}
	outcome := o.judgeAnswer(a, now)
	changed := outcome != 0 && outcome != o.lastOutcome
	if changed {
		o.lastOutcome = outcome
	}
	if !o.isFinal() {
		if now.Sub(o.firstDueAt) > quickRetryDelay {
			o.retryInterval = min(2*o.retryInterval, lastRetryInterval)
		}
		o.dueAt = now.Add(o.retryInterval)
		heap.Push(&q.due, o)
	}
	return facts.HealthCheckResult{ID: c.ID, Namespace: c.Namespace, Name: c.Name, Outcome: outcome}, changed
}

// isFinal says whether the last outcome needs no further request.
func (o *poll) isFinal() bool {
	return o.lastOutcome == facts.EndpointsKnown || o.lastOutcome == facts.ProxySilent
}

// judgeAnswer returns the outcome of an answer; zero if it says nothing yet.
func (o *poll) judgeAnswer(a answer, now time.Time) facts.HealthCheckOutcome {
	switch a {
	case answerKnown:
		return facts.EndpointsKnown
	case answerUnknown:
		o.lastAliveAt = now
		return facts.EndpointsUnknown
	case answerLate:
		o.lastAliveAt = now
		return 0
	}
	since, timeout := o.firstDueAt, silenceTimeout
	if !o.lastAliveAt.IsZero() {
		since, timeout = o.lastAliveAt, restartTimeout
	}
	if now.Sub(since) >= timeout {
		return facts.ProxySilent
	}
	return 0
}

// dueQueue is a heap of polls, ordered by the time at which they are due.
type dueQueue []*poll

// Len is part of heap.Interface, like the methods that follow.
func (l dueQueue) Len() int { return len(l) }

// Less orders by time, then by age.
func (l dueQueue) Less(i, j int) bool {
	if !l[i].dueAt.Equal(l[j].dueAt) {
		return l[i].dueAt.Before(l[j].dueAt)
	}
	return l[i].check.ID < l[j].check.ID
}

// Swap exchanges two polls.
func (l dueQueue) Swap(i, j int) {
	l[i], l[j] = l[j], l[i]
	l[i].queueIndex, l[j].queueIndex = i, j
}

// Push appends a poll.
func (l *dueQueue) Push(x any) {
	o := x.(*poll)
	o.queueIndex = len(*l)
	*l = append(*l, o)
}

// Pop removes the last poll.
func (l *dueQueue) Pop() any {
	last := len(*l) - 1
	o := (*l)[last]
	(*l)[last] = nil
	*l, o.queueIndex = (*l)[:last], -1
	return o
}
