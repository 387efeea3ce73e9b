package healthcheck

import (
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

var testStart = time.Unix(1e9, 0)

// answerUntil repeats one health check, with the answers of the function, from one second to
// another. It returns the number of requests, and the outcomes that the queue reports.
func answerUntil(q *checkQueue, from, until time.Duration, answerAt func(time.Duration) answer) (requests int, outcomes []facts.HealthCheckOutcome) {
	for at := from; at < until; at += time.Millisecond {
		c, ok := q.takeDue(testStart.Add(at))
		if !ok {
			continue
		}
		requests++
		if r, changed := q.recordAnswer(c, answerAt(at), testStart.Add(at)); changed {
			outcomes = append(outcomes, r.Outcome)
		}
	}
	return requests, outcomes
}

func newQueueWithOneCheck() *checkQueue {
	q := newCheckQueue()
	q.setChecks([]intent.HealthCheck{{ID: 1, Namespace: "default", Name: "web", Port: 30000}}, testStart)
	return q
}

func TestOutcomes(t *testing.T) {
	const known, unknown, silent = facts.EndpointsKnown, facts.EndpointsUnknown, facts.ProxySilent
	always := func(a answer) func(time.Duration) answer { return func(time.Duration) answer { return a } }
	firstThen := func(first answer, change time.Duration, then answer) func(time.Duration) answer {
		return func(at time.Duration) answer {
			if at < change {
				return first
			}
			return then
		}
	}
	for name, tt := range map[string]struct {
		answerAt func(time.Duration) answer
		duration time.Duration
		want     []facts.HealthCheckOutcome
	}{
		"known at once":                                 {always(answerKnown), time.Minute, []facts.HealthCheckOutcome{known}},
		"known later":                                   {firstThen(answerUnknown, 5*time.Second, answerKnown), time.Minute, []facts.HealthCheckOutcome{unknown, known}},
		"never known":                                   {always(answerUnknown), time.Hour, []facts.HealthCheckOutcome{unknown}},
		"a closed port":                                 {always(answerNone), time.Minute, []facts.HealthCheckOutcome{silent}},
		"a port that opens in time":                     {firstThen(answerNone, time.Second, answerKnown), time.Minute, []facts.HealthCheckOutcome{known}},
		"a proxy that needs long for an answer":         {firstThen(answerLate, 20*time.Second, answerKnown), time.Minute, []facts.HealthCheckOutcome{known}},
		"a proxy that restarts":                         {firstThen(answerUnknown, time.Second, answerNone), 20 * time.Second, []facts.HealthCheckOutcome{unknown}},
		"a proxy that is replaced by one of other kind": {firstThen(answerUnknown, time.Second, answerNone), time.Minute, []facts.HealthCheckOutcome{unknown, silent}},
	} {
		t.Run(name, func(t *testing.T) {
			_, got := answerUntil(newQueueWithOneCheck(), 0, tt.duration, tt.answerAt)
			if len(got) != len(tt.want) {
				t.Fatalf("the outcomes are %v, want %v", got, tt.want)
			}
			for i := range got {
				if got[i] != tt.want[i] {
					t.Errorf("the outcomes are %v, want %v", got, tt.want)
				}
			}
		})
	}
}

// TestChecksBecomeRareWithoutEndpoints counts the requests about a Service that the proxy never
// learns of.
func TestChecksBecomeRareWithoutEndpoints(t *testing.T) {
	q := newQueueWithOneCheck()
	unknown := func(time.Duration) answer { return answerUnknown }
	first, _ := answerUntil(q, 0, time.Second, unknown)
	if first < 15 {
		t.Errorf("%d requests in the first second, want enough for a quick move", first)
	}
	answerUntil(q, time.Second, time.Minute, unknown)
	if later, _ := answerUntil(q, time.Minute, 2*time.Minute, unknown); later < 30 || later > 61 {
		t.Errorf("%d requests in the second minute, want about one per second", later)
	}
	q.setChecks(nil, testStart.Add(2*time.Minute))
	if after, _ := answerUntil(q, 2*time.Minute, 3*time.Minute, unknown); after > 0 {
		t.Errorf("%d requests for a health check that nothing needs", after)
	}
}

// TestAnAnswerForAnEarlierCheckIsIgnored: the Service's health check is replaced while a request
// runs.
func TestAnAnswerForAnEarlierCheckIsIgnored(t *testing.T) {
	q := newQueueWithOneCheck()
	c, _ := q.takeDue(testStart)
	now := testStart.Add(time.Millisecond)
	next := c
	next.ID++
	q.setChecks([]intent.HealthCheck{next}, now)
	if r, changed := q.recordAnswer(c, answerKnown, now); changed {
		t.Errorf("the answer for an earlier health check gives %v", r)
	}
	if got, ok := q.takeDue(now); !ok || got != next {
		t.Errorf("next is %v, want %v", got, next)
	}
}
