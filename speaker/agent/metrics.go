package agent

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gantry-lb/gantry/speaker/elect"
)

// electionMetrics count the events of the election on this node.
type electionMetrics struct {
	electionEventsTotal *prometheus.CounterVec
	takeoverSeconds     prometheus.Histogram
	// missedBeaconCount is what the election counted.
	missedBeaconCount   *atomic.Uint64
	missedBeaconsMetric prometheus.CounterFunc
	// electionLatenessNanoseconds is how late the election ran of late, in nanoseconds.
	electionLatenessNanoseconds *atomic.Int64
	electionLatenessGauge       prometheus.GaugeFunc
}

func newElectionMetrics() electionMetrics {
	missed, delay := &atomic.Uint64{}, &atomic.Int64{}
	return electionMetrics{
		missedBeaconCount:           missed,
		electionLatenessNanoseconds: delay,
		electionLatenessGauge: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "gantry_speaker_election_delay_seconds",
			Help: "How late this speaker ran at worst of late. Above 0.05 the node is busy: the speaker waits longer for others, and deaths are noticed later.",
		}, func() float64 { return time.Duration(delay.Load()).Seconds() }),
		missedBeaconsMetric: prometheus.NewCounterFunc(prometheus.CounterOpts{
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
	a.metrics.missedBeaconsMetric.Describe(c)
	a.metrics.electionLatenessGauge.Describe(c)
}

// Collect is part of prometheus.Collector.
func (a *Agent) Collect(c chan<- prometheus.Metric) {
	a.metrics.electionEventsTotal.Collect(c)
	a.metrics.takeoverSeconds.Collect(c)
	a.metrics.missedBeaconsMetric.Collect(c)
	a.metrics.electionLatenessGauge.Collect(c)
}
