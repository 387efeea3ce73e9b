package healthcheck

import (
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

var testStartTime = time.Unix(1e9, 0)

// simulateCheckBetween repeats one health check, with the answers of the function, from one second
// to another. It returns the number of requests, and the outcomes that the queue reports.
func simulateCheckBetween(q *checkQueue, from, until time.Duration, answerAt func(time.Duration) proxyAnswer) (requests int, outcomes []facts.ServiceHealthCheckOutcome) {
	for at := from; at < until; at += time.Millisecond {
		c, ok := q.takeDueCheck(testStartTime.Add(at))
		if !ok {
			continue
		}
		requests++
		if r, changed := q.recordAnswer(c, answerAt(at), testStartTime.Add(at)); changed {
			outcomes = append(outcomes, r.Outcome)
		}
	}
	return requests, outcomes
}

func newQueueWithOneCheck() *checkQueue {
	q := newCheckQueue()
	q.setChecks([]intent.HealthCheck{{ID: 1, ServiceNamespace: "default", ServiceName: "web", HealthCheckNodePort: 30000}}, testStartTime)
	return q
}

func TestAnswersLeadToOutcomes(t *testing.T) {
	const known, unknown, silent = facts.ProxyKnowsEndpoints, facts.ProxyLacksEndpoints, facts.ProxySilent
	always := func(a proxyAnswer) func(time.Duration) proxyAnswer {
		return func(time.Duration) proxyAnswer { return a }
	}
	firstThen := func(first proxyAnswer, change time.Duration, then proxyAnswer) func(time.Duration) proxyAnswer {
		return func(at time.Duration) proxyAnswer {
			if at < change {
				return first
			}
			return then
		}
	}
	for name, tt := range map[string]struct {
		answerAt func(time.Duration) proxyAnswer
		duration time.Duration
		want     []facts.ServiceHealthCheckOutcome
	}{
		"known at once":                                 {always(answerEndpointsKnown), time.Minute, []facts.ServiceHealthCheckOutcome{known}},
		"known later":                                   {firstThen(answerNoEndpoints, 5*time.Second, answerEndpointsKnown), time.Minute, []facts.ServiceHealthCheckOutcome{unknown, known}},
		"never known":                                   {always(answerNoEndpoints), time.Hour, []facts.ServiceHealthCheckOutcome{unknown}},
		"a closed port":                                 {always(answerNoProxy), time.Minute, []facts.ServiceHealthCheckOutcome{silent}},
		"a port that opens in time":                     {firstThen(answerNoProxy, time.Second, answerEndpointsKnown), time.Minute, []facts.ServiceHealthCheckOutcome{known}},
		"a proxy that needs long for an answer":         {firstThen(answerTimedOut, 20*time.Second, answerEndpointsKnown), time.Minute, []facts.ServiceHealthCheckOutcome{known}},
		"a proxy that restarts":                         {firstThen(answerNoEndpoints, time.Second, answerNoProxy), 20 * time.Second, []facts.ServiceHealthCheckOutcome{unknown}},
		"a proxy that is replaced by one of other kind": {firstThen(answerNoEndpoints, time.Second, answerNoProxy), time.Minute, []facts.ServiceHealthCheckOutcome{unknown, silent}},
	} {
		t.Run(name, func(t *testing.T) {
			_, got := simulateCheckBetween(newQueueWithOneCheck(), 0, tt.duration, tt.answerAt)
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

// TestHealthChecksOfUnknownServiceBecomeRare counts the requests about a Service that the proxy
// never learns of.
func TestHealthChecksOfUnknownServiceBecomeRare(t *testing.T) {
	q := newQueueWithOneCheck()
	unknown := func(time.Duration) proxyAnswer { return answerNoEndpoints }
	first, _ := simulateCheckBetween(q, 0, time.Second, unknown)
	if first < 15 {
		t.Errorf("%d requests in the first second, want enough for a quick move", first)
	}
	simulateCheckBetween(q, time.Second, time.Minute, unknown)
	if later, _ := simulateCheckBetween(q, time.Minute, 2*time.Minute, unknown); later < 30 || later > 61 {
		t.Errorf("%d requests in the second minute, want about one per second", later)
	}
	q.setChecks(nil, testStartTime.Add(2*time.Minute))
	if after, _ := simulateCheckBetween(q, 2*time.Minute, 3*time.Minute, unknown); after > 0 {
		t.Errorf("%d requests for a health check that nothing needs", after)
	}
}

// TestAnAnswerForAnEarlierCheckIsIgnored: the Service's health check is replaced while a request
// runs.
func TestAnAnswerForAnEarlierCheckIsIgnored(t *testing.T) {
	q := newQueueWithOneCheck()
	c, _ := q.takeDueCheck(testStartTime)
	now := testStartTime.Add(time.Millisecond)
	next := c
	next.ID++
	q.setChecks([]intent.HealthCheck{next}, now)
	if r, changed := q.recordAnswer(c, answerEndpointsKnown, now); changed {
		t.Errorf("the answer for an earlier health check gives %v", r)
	}
	if got, ok := q.takeDueCheck(now); !ok || got != next {
		t.Errorf("next is %v, want %v", got, next)
	}
}
