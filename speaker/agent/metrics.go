package agent

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gantry-lb/gantry/speaker/elect"
)

// electionMetrics count the events of the election on this node.
type electionMetrics struct {
	electionEventsTotal *prometheus.CounterVec
	takeoverSeconds     prometheus.Histogram
	// missedBeaconCount is what the election counted.
	missedBeaconCount *atomic.Uint64
	missedBeaconTotal prometheus.CounterFunc
}

func newElectionMetrics() electionMetrics {
	missed := &atomic.Uint64{}
	return electionMetrics{
		missedBeaconCount: missed,
		missedBeaconTotal: prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "gantry_speaker_missed_beacons_total",
			Help: "Beacons (signs of life) of watched speakers that did not arrive. A speaker sends 20 a second to each of its two watchers.",
		}, func() float64 { return float64(missed.Load()) }),
		electionEventsTotal: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gantry_speaker_moves_total",
			Help: "Addresses that this node took or gave up, by reason.",
		}, []string{"event", "reason"}),
		takeoverSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "gantry_speaker_takeover_seconds",
			Help:    "Time from the last sign of life of a dead holder until this node claimed its address.",
			Buckets: []float64{.1, .2, .25, .3, .35, .4, .5, .6, .8, 1, 2, 5, 10},
		}),
	}
}

func (m electionMetrics) countEvent(n elect.Event) {
	if n.Reason == "" {
		return
	}
	m.electionEventsTotal.WithLabelValues(n.Kind, string(n.Reason)).Inc()
	if n.TakeoverDelay > 0 {
		m.takeoverSeconds.Observe(n.TakeoverDelay.Seconds())
	}
}

// Describe is part of prometheus.Collector.
func (a *Agent) Describe(c chan<- *prometheus.Desc) {
	a.metrics.electionEventsTotal.Describe(c)
	a.metrics.takeoverSeconds.Describe(c)
	a.metrics.missedBeaconTotal.Describe(c)
}

// Collect is part of prometheus.Collector.
func (a *Agent) Collect(c chan<- prometheus.Metric) {
	a.metrics.electionEventsTotal.Collect(c)
	a.metrics.takeoverSeconds.Collect(c)
	a.metrics.missedBeaconTotal.Collect(c)
}
