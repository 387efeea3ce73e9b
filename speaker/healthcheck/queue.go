package healthcheck

import (
	"time"

	"github.com/gantry-lb/gantry/internal/priorityqueue"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// checkQueue decides when to ask about which Service, and what the answers mean.
type checkQueue struct {
	checkStateByID map[uint64]*checkState
	// checksByDueTime has the polls by the time at which they are due, then by age.
	checksByDueTime *priorityqueue.Queue[*checkState]
}

// checkState is the state of one health check.
type checkState struct {
	check             intent.HealthCheck
	firstDueAt        time.Time
	lastProxyAnswerAt time.Time // zero if nothing has answered
	dueAt             time.Time
	retryInterval     time.Duration
	lastOutcome       facts.ServiceHealthCheckOutcome // zero before the first
	// queuePosition is the place in the queue of due polls. A poll is in none while a request runs,
	// and after the last one.
	queuePosition priorityqueue.Position
}

func newCheckQueue() *checkQueue {
	return &checkQueue{checkStateByID: map[uint64]*checkState{}, checksByDueTime: priorityqueue.NewQueue(func(x, y *checkState) bool {
		if !x.dueAt.Equal(y.dueAt) {
			return x.dueAt.Before(y.dueAt)
		}
		return x.check.ID < y.check.ID
	}, func(o *checkState) *priorityqueue.Position { return &o.queuePosition })}
}

// setChecks replaces the health checks. New ones are due at once.
func (q *checkQueue) setChecks(checks []intent.HealthCheck, now time.Time) {
	wanted := make(map[uint64]struct{}, len(checks))
	for _, c := range checks {
		wanted[c.ID] = struct{}{}
		if q.checkStateByID[c.ID] == nil {
			o := &checkState{check: c, dueAt: now, retryInterval: firstRetryInterval}
			q.checkStateByID[c.ID] = o
			q.checksByDueTime.Insert(o)
		}
	}
	for id, o := range q.checkStateByID {
		if _, ok := wanted[id]; ok {
			continue
		}
		q.checksByDueTime.Remove(o)
		delete(q.checkStateByID, id)
	}
}

// nextDueDelay returns how long it is until the next health check is due. Without one, it is long.
func (q *checkQueue) nextDueDelay(now time.Time) time.Duration {
	first, ok := q.checksByDueTime.First()
	if !ok {
		return time.Hour
	}
	return first.dueAt.Sub(now)
}

// takeDueCheck returns a health check that is due.
func (q *checkQueue) takeDueCheck(now time.Time) (intent.HealthCheck, bool) {
	o, ok := q.checksByDueTime.First()
	if !ok || o.dueAt.After(now) {
		return intent.HealthCheck{}, false
	}
	q.checksByDueTime.Remove(o)
	if o.firstDueAt.IsZero() {
		o.firstDueAt = now
	}
	return o.check, true
}

// recordAnswer returns what the answer changes, if anything. If the outcome is not final, the
// health check is due again.
func (q *checkQueue) recordAnswer(c intent.HealthCheck, a proxyAnswer, now time.Time) (facts.ServiceHealthCheckResult, bool) {
	o := q.checkStateByID[c.ID]
	if o == nil { // not wanted any more
		return facts.ServiceHealthCheckResult{}, false
	}
	outcome := o.judgeAnswer(a, now)
	changed := outcome != 0 && outcome != o.lastOutcome
	if changed {
		o.lastOutcome = outcome
	}
	if !o.isFinal() {
		if now.Sub(o.firstDueAt) > quickRetriesTimeout {
			o.retryInterval = min(2*o.retryInterval, maxRetryInterval)
		}
		o.dueAt = now.Add(o.retryInterval)
		q.checksByDueTime.Insert(o)
	}
	return facts.ServiceHealthCheckResult{ID: c.ID, Namespace: c.ServiceNamespace, Name: c.ServiceName, Outcome: outcome}, changed
}

// isFinal says whether the last outcome needs no further request.
func (o *checkState) isFinal() bool {
	return o.lastOutcome == facts.ProxyKnowsEndpoints || o.lastOutcome == facts.ProxySilent
}

// judgeAnswer returns the outcome of an answer; zero if it says nothing yet.
func (o *checkState) judgeAnswer(a proxyAnswer, now time.Time) facts.ServiceHealthCheckOutcome {
	switch a {
	case answerEndpointsKnown:
		return facts.ProxyKnowsEndpoints
	case answerNoEndpoints:
		o.lastProxyAnswerAt = now
		return facts.ProxyLacksEndpoints
	case answerTimedOut:
		o.lastProxyAnswerAt = now
		return 0
	}
	since, timeout := o.firstDueAt, neverAnsweredPortTimeout
	if !o.lastProxyAnswerAt.IsZero() {
		since, timeout = o.lastProxyAnswerAt, onceAnsweredPortTimeout
	}
	if now.Sub(since) >= timeout {
		return facts.ProxySilent
	}
	return 0
}
