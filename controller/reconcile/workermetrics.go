package reconcile

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
)

// WorkerMetrics count what the worker does. They may be read from any goroutine. The zero value is not
// usable; call NewWorkerMetrics.
type WorkerMetrics struct {
	work         *prometheus.GaugeVec
	statusWrites *prometheus.CounterVec
	reloads      *prometheus.CounterVec
	pending      *prometheus.GaugeVec
	assignment   prometheus.Histogram
}

// NewWorkerMetrics returns metrics that count from zero.
func NewWorkerMetrics() *WorkerMetrics {
	return &WorkerMetrics{
		work: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gantry_controller_work",
			Help: "Work that is not done, by state: Staged are writes of a Service's status that wait for the AddressLedger, " +
				"Queued are requests that wait for a free place, Running are requests that the API server has not answered.",
		}, []string{"state"}),
		statusWrites: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gantry_controller_status_writes_total",
			Help: "Writes of a Service's status, by outcome: Written, Conflict, Gone, Refused or Unknown.",
		}, []string{"outcome"}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gantry_controller_reloads_total", Help: "How often all Services were read from the API server, by cause.",
		}, []string{"cause"}),
		pending: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gantry_controller_pending_services", Help: "Services that do not have what they ask for, by reason.",
		}, []string{"reason"}),
		assignment: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "gantry_controller_assignment_seconds",
			Help:    "How long a Service waited for its first address. Kubernetes notes the creation in whole seconds.",
			Buckets: []float64{.025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800},
		}),
	}
}

// workCollectors are the metrics of the worker's work.
func (r *Services) workCollectors() []prometheus.Collector {
	m := r.Metrics
	unseen := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "gantry_controller_unseen_services", Help: "Services that the controller has to look at, and has not yet.",
	}, func() float64 { return float64(r.inbox.length()) })
	return []prometheus.Collector{m.work, m.statusWrites, m.reloads, m.pending, m.assignment, unseen}
}

// countWork counts the work that is not done.
func (r *Services) countWork() {
	for state, n := range map[string]int{
		"Staged": len(r.journal.staged) + r.journal.inSwap, "Queued": len(r.ready), "Running": r.inFlight,
	} {
		r.Metrics.work.WithLabelValues(state).Set(float64(n))
	}
}

// String is the outcome as the metric names it.
func (o outcome) String() string {
	switch o {
	case landed:
		return "Written"
	case refused:
		return "Conflict"
	case gone:
		return "Gone"
	case rejected:
		return "Refused"
	}
	return "Unknown"
}

// pendingServices are the Services that do not have what they ask for, by reason, and their metric.
type pendingServices struct {
	reasons map[view.ObjectKey]names.Reason
	gauge   *prometheus.GaugeVec
}

// put enters a Service, or changes its reason. One that has all that it must have, and would take more, is
// entered with ReasonAssigned, and not counted.
func (p *pendingServices) put(k view.ObjectKey, reason names.Reason) {
	p.remove(k)
	p.reasons[k] = reason
	p.count(reason, 1)
}

// remove takes a Service out, if it is there.
func (p *pendingServices) remove(k view.ObjectKey) {
	if reason, there := p.reasons[k]; there {
		delete(p.reasons, k)
		p.count(reason, -1)
	}
}

func (p *pendingServices) count(reason names.Reason, n float64) {
	if reason != names.ReasonAssigned {
		p.gauge.WithLabelValues(string(reason)).Add(n)
	}
}

// recentCreation is how long after its creation a Service may be seen first and still be taken for new:
// one that becomes a LoadBalancer later has waited since then, not since its creation.
const recentCreation = 10 * time.Minute

// waitingSince is since when a Service that is seen first now waits for an address; zero when it has one.
// The API notes the creation in whole seconds, so that within the first the moment now says more.
func waitingSince(s *corev1.Service, now time.Time) time.Time {
	created := s.CreationTimestamp.Time
	switch age := now.Sub(created); {
	case len(s.Status.LoadBalancer.Ingress) > 0:
		return time.Time{}
	case age < time.Second, age > recentCreation:
		return now
	}
	return created
}

// measureWait counts how long a Service waited whose first address is written, and begins anew when it has
// lost its last.
func (r *Services) measureWait(w *write, rec *record) {
	switch {
	case len(w.decision.Addresses) == 0 && rec.waiting.IsZero():
		rec.waiting = time.Now()
	case len(w.decision.Addresses) > 0 && !rec.waiting.IsZero():
		r.Metrics.assignment.Observe(time.Since(rec.waiting).Seconds())
		rec.waiting = time.Time{}
	}
}
