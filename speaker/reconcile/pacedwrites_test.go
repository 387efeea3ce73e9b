package reconcile

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-lb/gantry/speaker/agent"
)

// While the election runs late, statuses are written one after the other.
func TestABusyNodeWritesOneStatusAtATime(t *testing.T) {
	for name, c := range map[string]struct {
		isBusy        bool
		newerStatuses int
		wantAtOnce    int64
		wantWrites    int64
	}{
		"a node with time": {false, 0, concurrentWritesLimit, 3 * concurrentWritesLimit},
		"a busy node":      {true, 0, concurrentWritesLimitWhenBusy, 3 * concurrentWritesLimit},
		"a newer status replaces what is not yet": {false, 1, concurrentWritesLimit, concurrentWritesLimit},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := NewStatusWriter(StatusWriterOptions{IsElectionLate: func() bool { return c.isBusy }})
				for range c.newerStatuses {
					w.latestStatus.Put(agent.Status{})
				}
				var running, atOnce, count atomic.Int64
				var writes []func() error
				for range 3 * concurrentWritesLimit {
					writes = append(writes, func() error {
						if n := running.Add(1); n > atOnce.Load() {
							atOnce.Store(n)
						}
						time.Sleep(time.Millisecond)
						running.Add(-1)
						count.Add(1)
						return nil
					})
				}
				if err := w.performWrites(writes); err != nil {
					t.Error(err)
				}
				if atOnce.Load() != c.wantAtOnce || count.Load() != c.wantWrites {
					t.Errorf("%d writes, %d at once, want %d and %d", count.Load(), atOnce.Load(), c.wantWrites, c.wantAtOnce)
				}
			})
		})
	}
}
