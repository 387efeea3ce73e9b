package announcedcondition

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
)

// writeTimes has the time since a fault at which Services are written and events are sent.
type writeTimes struct {
	mu    sync.Mutex // guards all that follows
	begun time.Time
	// writes and events are in order.
	writes, events []time.Duration
}

// recordRequest records a request that takes some time.
func (w *writeTimes) recordRequest(times *[]time.Duration, takes time.Duration) {
	time.Sleep(takes)
	w.mu.Lock()
	defer w.mu.Unlock()
	*times = append(*times, time.Since(w.begun))
}

// TestConditionsOfManyServicesAreWrittenSoon ends the only sessions of many Services, on a slow API
// server. All conditions are written within two seconds, and the events come after them.
func TestConditionsOfManyServicesAreWrittenSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, requestTime = 96, 500 * time.Millisecond // with four at once, it takes 24 s
		h := newConditionWriterHarness(t)
		setSessions := func(fault names.Explanation) {
			h.setSessionWithTor("node1", fault)
			h.setSessionWithTor("node2", fault)
		}
		setSessions(names.Explanation{})
		queue := make(chan ctrl.Request, 2*n)
		for i := range n {
			name := fmt.Sprint("crowd", i)
			h.createService(name)
			h.reconcileAndAdvanceTimeFor(name, 0)
			r := ctrl.Request{NamespacedName: client.ObjectKey{Namespace: "default", Name: name}}
			h.writer.unannouncedFaults.recordFault(r.NamespacedName, h.now.Add(-missingReportTimeout))
			queue <- r
		}
		setSessions(wrongASNumberFault)
		w := &writeTimes{begun: time.Now()}
		h.beforeServiceWrite = func() { w.recordRequest(&w.writes, requestTime) }
		h.writer.RecordSeriesEvent = func(context.Context, *corev1.Service, string, string, string) bool {
			w.recordRequest(&w.events, requestTime)
			return true
		}
		var workers sync.WaitGroup
		for range maxConcurrentReconciles {
			workers.Go(func() {
				for r := range queue {
					result, err := h.writer.Reconcile(t.Context(), r)
					if err != nil {
						t.Error(err)
					}
					if result.RequeueAfter == dueEventDelay {
						queue <- r
					}
				}
			})
		}
		time.Sleep(time.Minute)
		close(queue)
		workers.Wait()
		if len(w.writes) != n || len(w.events) != n {
			t.Fatalf("%d writes and %d events for %d Services", len(w.writes), len(w.events), n)
		}
		if last := w.writes[n-1]; last > 2*time.Second || w.events[0] < last {
			t.Errorf("the last condition is written after %s, want at most 2s; the first event comes after %s, want none before that", last, w.events[0])
		}
	})
}
