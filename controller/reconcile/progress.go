package reconcile

import (
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// How long a worker that has work may get nowhere.
const (
	// readyTimeout is until it counts as not ready. It is longer than one request may take
	// (attemptTimeout), so that one that hangs is no sign.
	readyTimeout = 20 * time.Second
	// aliveTimeout is until the process is worth a restart. It is longer than one reading of all
	// Services may take (loadTimeout). An API server that refuses everything is no reason for a
	// restart: its answers are counted as attempts.
	aliveTimeout = 5 * time.Minute
)

// phase is a kind of work that the worker does.
type phase uint8

const (
	loading phase = iota // reading the addresses in use
	looking              // deciding about Services that changed
	writing              // having the AddressLedger and the Services' status written
	phases
)

// String names the work as the end of "no progress in".
func (p phase) String() string {
	return [...]string{"reading the addresses in use", "deciding about Services", "writing addresses"}[p]
}

// activity is what was seen of one kind of work.
type activity struct {
	// busySince is since when there has been work of the kind without a break; zero while there is none.
	busySince time.Time
	// attempted is when an attempt last ended, progressed is when one last led to something.
	attempted, progressed time.Time
}

// judge says which kind of work has led to nothing for longer than the time-out; nil when none has. A
// judgement of attempts asks whether anything was tried at all.
func judge(all [phases]activity, now time.Time, timeout time.Duration, last func(activity) time.Time) error {
	for p, a := range all {
		if a.busySince.IsZero() {
			continue
		}
		since := a.busySince
		if l := last(a); l.After(since) {
			since = l
		}
		if stuck := now.Sub(since); stuck > timeout {
			return fmt.Errorf("no progress in %s for %s, although there is work: see the log for what the API server answers", phase(p), stuck.Round(time.Second))
		}
	}
	return nil
}

// judgeReadiness says why a worker is not ready: it has work that gets nowhere.
func judgeReadiness(all [phases]activity, now time.Time) error {
	return judge(all, now, readyTimeout, func(a activity) time.Time { return a.progressed })
}

// judgeLiveness says why a worker is worth a restart: it has work and does not even try.
func judgeLiveness(all [phases]activity, now time.Time) error {
	return judge(all, now, aliveTimeout, func(a activity) time.Time { return a.attempted })
}

// workerState is what the worker shows of itself to other goroutines.
type workerState struct {
	mu         sync.Mutex // guards all that follows
	activities [phases]activity
	// open counts the pending assignments that are not settled, bounded how often as many were open as may be.
	open, bounded int
}

// show records what work there is now.
func (s *workerState) show(now time.Time, busy [phases]bool, open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = open
	for p := range busy {
		switch a := &s.activities[p]; {
		case !busy[p]:
			a.busySince = time.Time{}
		case a.busySince.IsZero():
			a.busySince = now
		}
	}
}

// attempt records that an attempt ended, and whether it led to something.
func (s *workerState) attempt(p phase, progress bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, now := &s.activities[p], time.Now()
	a.attempted = now
	if progress {
		a.progressed = now
	}
}

func (s *workerState) countBounded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bounded++
}

func (s *workerState) read() (activities [phases]activity, open, bounded int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.activities, s.open, s.bounded
}

// Ready says why the worker should not count as ready, nil when it should. It may be called from any
// goroutine, as Alive and Collectors may.
func (r *Services) Ready(now time.Time) error {
	all, _, _ := r.state.read()
	return judgeReadiness(all, now)
}

// Alive says why the worker should be started again, nil when it should not.
func (r *Services) Alive(now time.Time) error {
	all, _, _ := r.state.read()
	return judgeLiveness(all, now)
}

// Collectors are the metrics of the worker and of the pending assignments.
func (r *Services) Collectors() []prometheus.Collector {
	return append(r.workCollectors(),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "gantry_controller_open_pending_assignments", Help: "Services whose status may still be written by a write that was announced in the AddressLedger.",
		}, func() float64 { _, open, _ := r.state.read(); return float64(open) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "gantry_controller_pending_assignments_bounded_total", Help: "How often Services had to wait because as many pending assignments were open as the AddressLedger may hold.",
		}, func() float64 { _, _, bounded := r.state.read(); return float64(bounded) }),
	)
}
