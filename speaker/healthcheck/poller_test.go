package healthcheck

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// TestPollerReportsEachService runs a Poller with many health checks, whose answers take time.
func TestPollerReportsEachService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		running, most := 0, 0
		var log strings.Builder
		p := NewPoller(time.Now, slog.New(slog.NewTextHandler(&log, nil)))
		p.ask = func(_ context.Context, c intent.HealthCheck) proxyAnswer {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			time.Sleep(30 * time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			running--
			if c.ID%2 == 0 {
				return answerNoProxy
			}
			return answerEndpointsKnown
		}
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() {
			if err := p.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		var checks []intent.HealthCheck
		for id := range uint64(100) {
			checks = append(checks, intent.HealthCheck{ID: id, ServiceNamespace: "default", ServiceName: fmt.Sprintf("web-%d", id), HealthCheckNodePort: 30000})
		}
		p.SetChecks(nil)
		p.SetChecks(checks)
		got := map[uint64]facts.ServiceHealthCheckOutcome{}
		for len(got) < len(checks) {
			select {
			case results := <-p.ChangedResults():
				for _, r := range results {
					got[r.ID] = r.Outcome
				}
			case <-time.After(time.Minute):
				t.Fatalf("only %d of %d health checks have results", len(got), len(checks))
			}
		}
		for id, outcome := range got {
			if want := map[bool]facts.ServiceHealthCheckOutcome{true: facts.ProxySilent, false: facts.ProxyKnowsEndpoints}[id%2 == 0]; outcome != want {
				t.Errorf("the outcome of %d is %d, want %d", id, outcome, want)
			}
		}
		if most > maxRunningRequests {
			t.Errorf("%d requests ran at one time, want %d at most", most, maxRunningRequests)
		}
		select {
		case results := <-p.ChangedResults():
			t.Errorf("results of health checks with a final outcome: %v", results)
		case <-time.After(time.Hour):
		}
		cancel()
		run.Wait()
		if n := strings.Count(log.String(), "no service proxy answers"); n != 1 {
			t.Errorf("%d log lines about a silent proxy, want 1:\n%s", n, log.String())
		}
	})
}
