package assign

import (
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gantry-lb/gantry/internal/view"
)

// How long a worker with work may make no progress.
const (
	// noProgressReadinessTimeout is when it counts as not ready. It is longer than one request may
	// take (requestTimeout), so that a single hanging request does not count.
	noProgressReadinessTimeout = 20 * time.Second
	// noAttemptLivenessTimeout is when the process should be restarted. It is longer than one
	// reading of all Services may take (loadLedgerTimeout). An API server that refuses every
	// request is no reason for a restart: each of its answers counts as an attempt.
	noAttemptLivenessTimeout = 5 * time.Minute
)

// workPhase is a kind of work of the worker.
type workPhase uint8

const (
	phaseLoading  workPhase = iota // reading the addresses in use
	phaseDeciding                  // deciding about Services that changed
	phaseWriting                   // writing the AddressLedger and the status of Services
	phaseCount
)

// String names the work as the end of "no progress in".
func (p workPhase) String() string {
	return [...]string{"reading the addresses in use", "deciding about Services", "writing addresses"}[p]
}

// phaseActivity records the progress of one kind of work.
type phaseActivity struct {
	// busySince is since when there has been work without a break; zero while there is none.
	busySince time.Time
	// lastAttemptEnd is when an attempt last ended, lastSuccessEnd when one last succeeded.
	lastAttemptEnd, lastSuccessEnd time.Time
}

// longestStall returns the kind of work that has had no success for the longest time, and for how
// long; 0 when there is none. last returns the time that counts as success.
func longestStall(all [phaseCount]phaseActivity, now time.Time, last func(phaseActivity) time.Time) (stalled workPhase, longest time.Duration) {
	for p, a := range all {
		if a.busySince.IsZero() {
			continue
		}
		since := a.busySince
		if l := last(a); l.After(since) {
			since = l
		}
		if d := now.Sub(since); d > longest {
			stalled, longest = workPhase(p), d
		}
	}
	return stalled, longest
}

func getLastSuccessEnd(a phaseActivity) time.Time { return a.lastSuccessEnd }

func getLastAttemptEnd(a phaseActivity) time.Time { return a.lastAttemptEnd }

// errorForStall returns an error for a stall that is longer than the timeout.
func errorForStall(p workPhase, stall, timeout time.Duration) error {
	if stall <= timeout {
		return nil
	}
	return fmt.Errorf("no progress in %s for %s, although there is work: see the log for the API server's answers", p, stall.Round(time.Second))
}

// checkReadiness says why a worker is not ready: it has work and makes no progress.
func checkReadiness(all [phaseCount]phaseActivity, now time.Time) error {
	p, stall := longestStall(all, now, getLastSuccessEnd)
	return errorForStall(p, stall, noProgressReadinessTimeout)
}

// checkLiveness says why a worker should be restarted: it has work and makes no attempt.
func checkLiveness(all [phaseCount]phaseActivity, now time.Time) error {
	p, stall := longestStall(all, now, getLastAttemptEnd)
	return errorForStall(p, stall, noAttemptLivenessTimeout)
}

// observableWorkerState is what other goroutines may read of the worker.
type observableWorkerState struct {
	mu              sync.Mutex // guards all that follows
	activityByPhase [phaseCount]phaseActivity
	// pendingCount counts the open pending assignments. ledgerFullCount counts how often the
	// AddressLedger was full.
	pendingCount, ledgerFullCount int
}

// setBusyPhasesAndPendingCount records which work there is now.
func (s *observableWorkerState) setBusyPhasesAndPendingCount(now time.Time, busy [phaseCount]bool, open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pendingCount = open
	for p := range busy {
		switch a := &s.activityByPhase[p]; {
		case !busy[p]:
			a.busySince = time.Time{}
		case a.busySince.IsZero():
			a.busySince = now
		}
	}
}

// servicesWithRefusedStatus are the Services for which the API server refused the last status
// write.
type servicesWithRefusedStatus map[view.ObjectKey]struct{}

// setIsRefused records whether the API server refused the last status write of a Service.
func (s servicesWithRefusedStatus) setIsRefused(k view.ObjectKey, refused bool) {
	if delete(s, k); refused {
		s[k] = struct{}{}
	}
}

// indicateControllerFault says whether there are so many of them that the refusals probably concern
// the controller, for example because its RBAC rules do not allow the write. Then neither a further
// refusal nor an entry in the AddressLedger, after which the status is refused, is progress.
func (s servicesWithRefusedStatus) indicateControllerFault() bool {
	return len(s) > maxRefusedEntriesBeforeSlowdown
}

// hasWritesBesidesRefusedServices says whether there are writes that do not concern single Services
// only. If the API server refuses one Service or answers its write with an error, it serves the
// others; the reason is in the log and in the Service's condition. More than
// maxRefusedEntriesBeforeSlowdown of them concern the controller.
func (r *ServiceWorker) hasWritesBesidesRefusedServices() bool {
	j, answered := &r.ledgerWriter, 0
	for _, w := range r.apiTaskQueue.writesAwaitingRetryTime {
		if !w.lastAnswerWasInternalError {
			return true
		}
		answered++
	}
	return r.apiTaskQueue.countUnfinishedTasks() > 0 || r.servicesWithRefusedStatus.indicateControllerFault() || answered > maxRefusedEntriesBeforeSlowdown || !j.allStagedWritesWereRefused() ||
		len(j.writesAwaitingLedgerEntry) > 0 && j.refusalsInARow > maxRefusedEntriesBeforeSlowdown
}

// recordAttempt records that an attempt ended, and whether it succeeded.
func (s *observableWorkerState) recordAttempt(now time.Time, p workPhase, progress bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &s.activityByPhase[p]
	a.lastAttemptEnd = now
	if progress {
		a.lastSuccessEnd = now
	}
}

func (s *observableWorkerState) incrementLedgerFullCount() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ledgerFullCount++
}

func (s *observableWorkerState) readState() (activities [phaseCount]phaseActivity, open, bounded int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.activityByPhase, s.pendingCount, s.ledgerFullCount
}

// CheckReady says why the worker is not ready, nil when it is. It may be called from any goroutine,
// like CheckAlive and Collectors.
func (r *ServiceWorker) CheckReady(now time.Time) error {
	all, _, _ := r.workerState.readState()
	return checkReadiness(all, now)
}

// CheckAlive says why the worker should be restarted, nil when it should not.
func (r *ServiceWorker) CheckAlive(now time.Time) error {
	all, _, _ := r.workerState.readState()
	return checkLiveness(all, now)
}

// Collectors returns the metrics of the worker and of the pending assignments.
func (r *ServiceWorker) Collectors() []prometheus.Collector {
	return append(r.Metrics.collectors(),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "gantry_controller_no_progress_seconds", Help: "For how long there has been work without progress. Work that waits only because the API server refuses single Services does not count.",
		}, func() float64 {
			all, _, _ := r.workerState.readState()
			_, stall := longestStall(all, r.Now(), getLastSuccessEnd)
			return stall.Seconds()
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "gantry_controller_unseen_services", Help: "Services that the controller must still decide about.",
		}, func() float64 { return float64(r.workQueue.countQueuedServices()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "gantry_controller_open_pending_assignments", Help: "Services with a pending assignment in the AddressLedger: a write of their status may still arrive.",
		}, func() float64 { _, open, _ := r.workerState.readState(); return float64(open) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "gantry_controller_pending_assignments_bounded_total", Help: "How often Services had to wait because the AddressLedger was full of open pending assignments.",
		}, func() float64 { _, _, bounded := r.workerState.readState(); return float64(bounded) }),
	)
}
