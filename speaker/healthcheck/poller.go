// Package healthcheck asks the service proxy of this node how many endpoints of a Service it knows
// here. For each Service of type LoadBalancer with externalTrafficPolicy Local, kube-proxy opens
// the port in spec.healthCheckNodePort. It answers HTTP requests there, and updates the number
// after it has written its rules. Some other proxies do the same.
//
// A Poller asks only about the Services that it is given, until it knows enough about each. So its
// cost depends on what changes and not on the number of Services.
package healthcheck

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// maxRunningRequests bounds the health checks that run at one time.
const maxRunningRequests = 8

// Poller repeats health checks and reports what changed. Run owns its state.
type Poller struct {
	log            *slog.Logger
	now            func() time.Time
	ask            func(ctx context.Context, c intent.HealthCheck) proxyAnswer
	latestChecks   *latest.Value[[]intent.HealthCheck]
	changedResults chan []facts.ServiceHealthCheckResult
}

// NewPoller returns a Poller that asks nothing before Run.
func NewPoller(now func() time.Time, log *slog.Logger) *Poller {
	client := newHTTPClient()
	return &Poller{
		log: log, now: now, latestChecks: latest.NewValue[[]intent.HealthCheck](), changedResults: make(chan []facts.ServiceHealthCheckResult),
		ask: func(ctx context.Context, c intent.HealthCheck) proxyAnswer {
			return askProxyAboutAllFamilies(ctx, client, c)
		},
	}
}

// SetChecks replaces the health checks. It returns at once.
func (p *Poller) SetChecks(checks []intent.HealthCheck) { p.latestChecks.Put(checks) }

// ChangedResults delivers what changed.
func (p *Poller) ChangedResults() <-chan []facts.ServiceHealthCheckResult { return p.changedResults }

// finishedRequest is a health check with its answer.
type finishedRequest struct {
	check  intent.HealthCheck
	answer proxyAnswer
}

// Run asks until ctx ends.
func (p *Poller) Run(ctx context.Context) error {
	var requests sync.WaitGroup
	defer requests.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	finished := make(chan finishedRequest, maxRunningRequests)
	queue, running, nextStartAt := newCheckQueue(), 0, p.now()
	var unread []facts.ServiceHealthCheckResult
	wasSilenceLogged := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := p.now()
		if running < maxRunningRequests && !now.Before(nextStartAt) {
			if c, ok := queue.takeDueCheck(now); ok {
				running++
				nextStartAt = now.Add(minCheckStartInterval)
				requests.Go(func() { finished <- finishedRequest{c, p.ask(ctx, c)} })
			}
		}
		if running < maxRunningRequests { // otherwise the end of a request wakes the loop
			timer.Reset(max(queue.nextDueDelay(now), nextStartAt.Sub(now)))
		}
		var out chan []facts.ServiceHealthCheckResult // nil without results
		if len(unread) > 0 {
			out = p.changedResults
		}
		select {
		case <-ctx.Done():
			return nil
		case checks := <-p.latestChecks.C():
			queue.setChecks(checks, p.now())
		case f := <-finished:
			running--
			r, changed := queue.recordAnswer(f.check, f.answer, p.now())
			if !changed {
				continue
			}
			unread = append(unread, r)
			if r.Outcome == facts.ProxySilent && !wasSilenceLogged {
				wasSilenceLogged = true
				p.log.Info("no service proxy answers on the health check port of a Service: addresses with"+
					" externalTrafficPolicy Local move after a fixed delay",
					"service", r.Namespace+"/"+r.Name, "port", f.check.HealthCheckNodePort, "duration", neverAnsweredPortTimeout)
			}
		case out <- unread:
			unread = nil
		case <-timer.C:
		}
	}
}
