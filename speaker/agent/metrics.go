package agent

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gantry-lb/gantry/speaker/elect"
)

// metrics count what the election did on this node.
type metrics struct {
	moves    *prometheus.CounterVec
	takeover prometheus.Histogram
}

func newMetrics() metrics {
	return metrics{
		moves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gantry_speaker_moves_total",
			Help: "Addresses that this node took or gave up, by reason.",
		}, []string{"event", "reason"}),
		takeover: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "gantry_speaker_takeover_seconds",
			Help:    "Time from the last sign of life of a dead holder until this node claimed its address.",
			Buckets: []float64{.1, .2, .25, .3, .35, .4, .5, .6, .8, 1, 2, 5, 10},
		}),
	}
}

func (m metrics) count(n elect.Note) {
	if n.Reason == "" {
		return
	}
	m.moves.WithLabelValues(n.Kind, string(n.Reason)).Inc()
	if n.Delay > 0 {
		m.takeover.Observe(n.Delay.Seconds())
	}
}

// Describe is part of prometheus.Collector.
func (a *Agent) Describe(c chan<- *prometheus.Desc) {
	a.metrics.moves.Describe(c)
	a.metrics.takeover.Describe(c)
}

// Collect is part of prometheus.Collector.
func (a *Agent) Collect(c chan<- prometheus.Metric) {
	a.metrics.moves.Collect(c)
	a.metrics.takeover.Collect(c)
}
