package healthcheck

import (
	"time"

	"github.com/gantry-lb/gantry/internal/priorityqueue"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// checkQueue decides when to ask about which Service, and what the answers mean.
type checkQueue struct {
	pollByID map[uint64]*checkState
	// due has the polls by the time at which they are due, then by age.
	due *priorityqueue.Queue[*checkState]
}

// checkState is the state of one health check.
type checkState struct {
	check             intent.HealthCheck
	firstDueAt        time.Time
	lastProxyAnswerAt time.Time // zero if nothing has answered
	dueAt             time.Time
	retryInterval     time.Duration
	lastOutcome       facts.HealthCheckOutcome // zero before the first
	// position is the place in the queue of due polls. A poll is in none while a request runs, and
	// after the last one.
	position priorityqueue.Position
}

func newCheckQueue() *checkQueue {
	return &checkQueue{pollByID: map[uint64]*checkState{}, due: priorityqueue.NewQueue(func(x, y *checkState) bool {
		if !x.dueAt.Equal(y.dueAt) {
			return x.dueAt.Before(y.dueAt)
		}
		return x.check.ID < y.check.ID
	}, func(o *checkState) *priorityqueue.Position { return &o.position })}
}

// setChecks replaces the health checks. New ones are due at once.
func (q *checkQueue) setChecks(checks []intent.HealthCheck, now time.Time) {
	wanted := make(map[uint64]struct{}, len(checks))
	for _, c := range checks {
		wanted[c.ID] = struct{}{}
		if q.pollByID[c.ID] == nil {
			o := &checkState{check: c, dueAt: now, retryInterval: firstRetryInterval}
			q.pollByID[c.ID] = o
			q.due.Insert(o)
		}
	}
	for id, o := range q.pollByID {
		if _, ok := wanted[id]; ok {
			continue
		}
		q.due.Remove(o)
		delete(q.pollByID, id)
	}
}

// nextDueDelay returns how long it is until the next health check is due. Without one, it is long.
func (q *checkQueue) nextDueDelay(now time.Time) time.Duration {
	first, ok := q.due.First()
	if !ok {
		return time.Hour
	}
	return first.dueAt.Sub(now)
}

// takeDue returns a health check that is due.
func (q *checkQueue) takeDue(now time.Time) (intent.HealthCheck, bool) {
	o, ok := q.due.First()
	if !ok || o.dueAt.After(now) {
		return intent.HealthCheck{}, false
	}
	q.due.Remove(o)
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
		if now.Sub(o.firstDueAt) > quickRetriesTimeout {
			o.retryInterval = min(2*o.retryInterval, lastRetryInterval)
		}
		o.dueAt = now.Add(o.retryInterval)
		q.due.Insert(o)
	}
	return facts.HealthCheckResult{ID: c.ID, Namespace: c.Namespace, Name: c.Name, Outcome: outcome}, changed
}

// isFinal says whether the last outcome needs no further request.
func (o *checkState) isFinal() bool {
	return o.lastOutcome == facts.EndpointsKnown || o.lastOutcome == facts.ProxySilent
}

// judgeAnswer returns the outcome of an answer; zero if it says nothing yet.
func (o *checkState) judgeAnswer(a answer, now time.Time) facts.HealthCheckOutcome {
	switch a {
	case answerKnown:
		return facts.EndpointsKnown
	case answerUnknown:
		o.lastProxyAnswerAt = now
		return facts.EndpointsUnknown
	case answerLate:
		o.lastProxyAnswerAt = now
		return 0
	}
	since, timeout := o.firstDueAt, proxySilenceTimeout
	if !o.lastProxyAnswerAt.IsZero() {
		since, timeout = o.lastProxyAnswerAt, restartedProxySilenceTimeout
	}
	if now.Sub(since) >= timeout {
		return facts.ProxySilent
	}
	return 0
}
