package assign

import (
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
)

// WorkerMetrics count what the worker does. They may be read from any goroutine. The zero value is
// not usable; call NewWorkerMetrics.
type WorkerMetrics struct {
	unfinishedWorkByState         *prometheus.GaugeVec
	statusWritesByOutcome         *prometheus.CounterVec
	reloadsByCause                *prometheus.CounterVec
	failedReloadsByCause          *prometheus.CounterVec
	waitingServicesByReason       *prometheus.GaugeVec
	firstAssignmentDelayHistogram prometheus.Histogram
	withheldAddressesByReason     *prometheus.GaugeVec
}

// NewWorkerMetrics returns metrics that count from zero.
func NewWorkerMetrics() *WorkerMetrics {
	return &WorkerMetrics{
		unfinishedWorkByState: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gantry_controller_work",
			Help: "Unfinished work, by state: Staged are writes of a Service's status that wait for the AddressLedger, " +
				"Queued are requests that wait for a free place or for another attempt, Running are requests that the API server has not answered, " +
				"AwaitingTurn are Services whose last edit waits, since they were edited several times within a minute.",
		}, []string{"state"}),
		statusWritesByOutcome: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gantry_controller_status_writes_total",
			Help: "Writes of a Service's status, by outcome: Written, Conflict, Gone, Refused or Unknown.",
		}, []string{"outcome"}),
		reloadsByCause: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gantry_controller_reloads_total", Help: "How often all Services were read from the API server, by cause.",
		}, []string{"cause"}),
		failedReloadsByCause: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gantry_controller_failed_reloads_total", Help: "Attempts to read all Services from the API server that failed, by cause.",
		}, []string{"cause"}),
		waitingServicesByReason: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gantry_controller_pending_services", Help: "Services that do not have what they ask for, by reason.",
		}, []string{"reason"}),
		withheldAddressesByReason: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gantry_controller_withheld_addresses", Help: "Addresses that no other Service gets for some time, by reason: CoolingDown or Quarantined. At most 4,096 are counted.",
		}, []string{"reason"}),
		firstAssignmentDelayHistogram: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "gantry_controller_assignment_seconds",
			Help:    "How long a Service waited for its first address. Kubernetes stores the creation time in whole seconds.",
			Buckets: []float64{.025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800},
		}),
	}
}

// collectors returns the metrics.
func (m *WorkerMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.unfinishedWorkByState, m.statusWritesByOutcome, m.reloadsByCause, m.failedReloadsByCause, m.waitingServicesByReason, m.firstAssignmentDelayHistogram, m.withheldAddressesByReason}
}

// updateUnfinishedWorkGauge counts the unfinished work.
func (r *ServiceWorker) updateUnfinishedWorkGauge() {
	for state, n := range map[string]int{
		"Staged": len(r.ledgerWriter.writesAwaitingLedgerEntry) + r.ledgerWriter.writesInSwap, "Queued": r.apiTaskQueue.tasksAwaitingFreeSlot.itemCount + len(r.apiTaskQueue.writesAwaitingRetryTime), "Running": r.apiTaskQueue.tasksInFlightCount,
		"AwaitingTurn": r.editTurns.servicesAwaitingTurn.keys.itemCount,
	} {
		r.Metrics.unfinishedWorkByState.WithLabelValues(state).Set(float64(n))
	}
}

// String is the outcome as in the metric's label.
func (o writeOutcome) String() string {
	switch o {
	case outcomeWritten:
		return "Written"
	case outcomeConflict:
		return "Conflict"
	case outcomeServiceGone:
		return "Gone"
	case outcomeRefused:
		return "Refused"
	}
	return "Unknown"
}

// waitingServices are the Services that do not have all that they ask for, by reason, with
// their metric.
type waitingServices struct {
	reasonByService map[view.ObjectKey]names.Reason
	gaugeByReason   *prometheus.GaugeVec
}

// setReason adds a Service, or changes its reason. A Service that has all it needs, and prefers
// more, has ReasonAssigned and is not counted in the metric.
func (p *waitingServices) setReason(k view.ObjectKey, reason names.Reason) {
	p.removeService(k)
	p.reasonByService[k] = reason
	p.addToReasonGauge(reason, 1)
}

// removeService removes a Service, if it is there.
func (p *waitingServices) removeService(k view.ObjectKey) {
	if reason, there := p.reasonByService[k]; there {
		delete(p.reasonByService, k)
		p.addToReasonGauge(reason, -1)
	}
}

func (p *waitingServices) addToReasonGauge(reason names.Reason, n float64) {
	if reason != names.ReasonAssigned {
		p.gaugeByReason.WithLabelValues(string(reason)).Add(n)
	}
}

// maxNewServiceAge is the age up to which a Service seen for the first time counts as new.
// An older one probably became a LoadBalancer later and has waited since then.
const maxNewServiceAge = 10 * time.Minute

// firstAddressWaitStart is since when a Service seen for the first time has waited for an address;
// zero when it has one. The API stores the creation in whole seconds, so that in the first second
// now is more accurate. The condition of an older Service says since when it has no address.
func firstAddressWaitStart(s *corev1.Service, now time.Time) time.Time {
	created := s.CreationTimestamp.Time
	condition := meta.FindStatusCondition(s.Status.Conditions, names.ConditionAddressAssigned)
	switch age := now.Sub(created); {
	case len(s.Status.LoadBalancer.Ingress) > 0:
		return time.Time{}
	case age > maxNewServiceAge && condition != nil && condition.Status == metav1.ConditionFalse:
		return condition.LastTransitionTime.Time
	case age < time.Second, age > maxNewServiceAge:
		return now
	}
	return created
}

// trackFirstAddressWait measures how long a Service waited when its first address is written, and
// starts again when it has lost its last one.
func (r *serviceRecord) trackFirstAddressWait(written []netip.Addr, now time.Time, firstAssignmentDelay prometheus.Observer) {
	switch {
	case len(written) == 0 && r.waitingSince.IsZero():
		r.waitingSince = now
	case len(written) > 0 && !r.waitingSince.IsZero():
		firstAssignmentDelay.Observe(now.Sub(r.waitingSince).Seconds())
		r.waitingSince = time.Time{}
	}
}
