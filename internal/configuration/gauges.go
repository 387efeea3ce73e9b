package configuration

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gantry-lb/gantry/internal/snapshot"
)

// Names and meanings of the metrics are those that the alerts of the metallb.io API know.
var (
	loadedMetric = prometheus.NewDesc("metallb_k8s_client_config_loaded_bool", "1 once the configuration was read.", nil, nil)
	staleMetric  = prometheus.NewDesc("metallb_k8s_client_config_stale_bool", "1 while some object is served in its last good state, or not at all, because it is faulty.", nil, nil)
)

// Gauges export what a component makes of the configuration. The zero value has read none.
type Gauges struct {
	loaded, stale atomic.Bool
}

var _ prometheus.Collector = (*Gauges)(nil)

// Set takes the Problems of the configuration that was read last.
func (g *Gauges) Set(problems []snapshot.Problem) {
	g.stale.Store(len(Errors(problems)) > 0)
	g.loaded.Store(true)
}

// Describe is part of prometheus.Collector.
func (g *Gauges) Describe(c chan<- *prometheus.Desc) {
	c <- loadedMetric
	c <- staleMetric
}

// Collect is part of prometheus.Collector.
func (g *Gauges) Collect(c chan<- prometheus.Metric) {
	for desc, set := range map[*prometheus.Desc]bool{loadedMetric: g.loaded.Load(), staleMetric: g.stale.Load()} {
		value := 0.0
		if set {
			value = 1
		}
		c <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value)
	}
}
