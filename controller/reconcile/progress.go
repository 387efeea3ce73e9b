package reconcile

import (
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// How long a worker that has work may get nowhere.
const (
	// readinessTimeout is until it counts as not ready. It is longer than one request may take
	// (attemptTimeout), so that one that hangs is no sign.
	readinessTimeout = 20 * time.Second
	// livenessTimeout is until the process is worth a restart. It is longer than one reading of all
	// Services may take (loadTimeout). An API server that refuses everything is no reason for a
	// restart: its answers are counted as attempts.
	livenessTimeout = 5 * time.Minute
)

// workPhase is a kind of work that the worker does.
type workPhase uint8

const (
	phaseLoading  workPhase = iota // reading the addresses in use
	phaseDeciding                  // deciding about Services that changed
	phaseWriting                   // having the AddressLedger and the Services' status written
	phaseCount
)

// String names the work as the end of "no progress in".
func (p workPhase) String() string {
	return [...]string{"reading the addresses in use", "deciding about Services", "writing addresses"}[p]
}

// phaseActivity is what was seen of one kind of work.
type phaseActivity struct {
	// busySince is since when there has been work of the kind without a break; zero while there is none.
	busySince time.Time
	// lastAttempt is when an attempt last ended, progressed is when one last led to something.
	lastAttempt, lastProgress time.Time
}

// findStuckPhase says which kind of work has led to nothing for longer than the time-out; nil when none has. A
// judgement of attempts asks whether anything was tried at all.
func findStuckPhase(all [phaseCount]phaseActivity, now time.Time, timeout time.Duration, last func(phaseActivity) time.Time) error {
	for p, a := range all {
		if a.busySince.IsZero() {
			continue
		}
		since := a.busySince
		if l := last(a); l.After(since) {
			since = l
		}
		if stuck := now.Sub(since); stuck > timeout {
			return fmt.Errorf("no progress in %s for %s, although there is work: see the log for what the API server answers", workPhase(p), stuck.Round(time.Second))
		}
	}
	return nil
}

// checkReadiness says why a worker is not ready: it has work that gets nowhere.
func checkReadiness(all [phaseCount]phaseActivity, now time.Time) error {
	return findStuckPhase(all, now, readinessTimeout, func(a phaseActivity) time.Time { return a.lastProgress })
}

// checkLiveness says why a worker is worth a restart: it has work and does not even try.
func checkLiveness(all [phaseCount]phaseActivity, now time.Time) error {
	return findStuckPhase(all, now, livenessTimeout, func(a phaseActivity) time.Time { return a.lastAttempt })
}

// workerState is what the worker shows of itself to other goroutines.
type workerState struct {
	mu         sync.Mutex // guards all that follows
	activities [phaseCount]phaseActivity
	// pendingCount counts the pending assignments that are not settled, bounded how often as many were open as may be.
	pendingCount, fullCount int
}

// setWork records what work there is now.
func (s *workerState) setWork(now time.Time, busy [phaseCount]bool, open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pendingCount = open
	for p := range busy {
		switch a := &s.activities[p]; {
		case !busy[p]:
			a.busySince = time.Time{}
		case a.busySince.IsZero():
			a.busySince = now
		}
	}
}

// recordAttempt records that an attempt ended, and whether it led to something.
func (s *workerState) recordAttempt(p workPhase, progress bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, now := &s.activities[p], time.Now()
	a.lastAttempt = now
	if progress {
		a.lastProgress = now
	}
}

func (s *workerState) countLedgerFull() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fullCount++
}

func (s *workerState) readState() (activities [phaseCount]phaseActivity, open, bounded int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.activities, s.pendingCount, s.fullCount
}

// CheckReady says why the worker should not count as ready, nil when it should. It may be called from any
// goroutine, as Alive and Collectors may.
func (r *ServiceWorker) CheckReady(now time.Time) error {
	all, _, _ := r.workerState.readState()
	return checkReadiness(all, now)
}

// CheckAlive says why the worker should be started again, nil when it should not.
func (r *ServiceWorker) CheckAlive(now time.Time) error {
	all, _, _ := r.workerState.readState()
	return checkLiveness(all, now)
}

// Collectors are the metrics of the worker and of the pending assignments.
func (r *ServiceWorker) Collectors() []prometheus.Collector {
	return append(r.workerCollectors(),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "gantry_controller_open_pending_assignments", Help: "Services whose status may still be written by a write that was announced in the AddressLedger.",
		}, func() float64 { _, open, _ := r.workerState.readState(); return float64(open) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "gantry_controller_pending_assignments_bounded_total", Help: "How often Services had to wait because as many pending assignments were open as the AddressLedger may hold.",
		}, func() float64 { _, _, bounded := r.workerState.readState(); return float64(bounded) }),
	)
}
