package configuration

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gantry-lb/gantry/internal/snapshot"
)

// Alerts that were written for MetalLB use these metrics, so they have MetalLB's names and
// meanings.
var (
	configurationLoadedMetric = prometheus.NewDesc("metallb_k8s_client_config_loaded_bool", "1 once the configuration was read.", nil, nil)
	readingsMetric            = prometheus.NewDesc("metallb_k8s_client_updates_total", "How often a new configuration was read.", nil, nil)
	faultyReadingsMetric      = prometheus.NewDesc("metallb_k8s_client_update_errors_total", "How often a new configuration was read in which some object is faulty.", nil, nil)
	configurationStaleMetric  = prometheus.NewDesc("metallb_k8s_client_config_stale_bool", "1 while some object is served in its last good state, or not at all, because it is faulty.", nil, nil)
)

// LoadMetrics export whether a component has read the configuration and whether all of it is sound.
// The zero value has read none.
type LoadMetrics struct {
	isLoaded, hasFaultyObject atomic.Bool
	// readingCount counts what was read, faultyReadingCount what had a faulty object.
	readingCount, faultyReadingCount atomic.Uint64
}

var _ prometheus.Collector = (*LoadMetrics)(nil)

// RecordProblemsOfLoadedConfiguration sets the Problems of the configuration that was read last.
func (g *LoadMetrics) RecordProblemsOfLoadedConfiguration(problems []snapshot.Problem) {
	isFaulty := len(TextsOfProblemsThatPreventServing(problems)) > 0
	g.hasFaultyObject.Store(isFaulty)
	g.readingCount.Add(1)
	if isFaulty {
		g.faultyReadingCount.Add(1)
	}
	g.isLoaded.Store(true)
}

// Describe is part of prometheus.Collector.
func (g *LoadMetrics) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{configurationLoadedMetric, configurationStaleMetric, readingsMetric, faultyReadingsMetric} {
		c <- d
	}
}

// Collect is part of prometheus.Collector.
func (g *LoadMetrics) Collect(c chan<- prometheus.Metric) {
	for desc, set := range map[*prometheus.Desc]bool{configurationLoadedMetric: g.isLoaded.Load(), configurationStaleMetric: g.hasFaultyObject.Load()} {
		value := 0.0
		if set {
			value = 1
		}
		c <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value)
	}
	c <- prometheus.MustNewConstMetric(readingsMetric, prometheus.CounterValue, float64(g.readingCount.Load()))
	c <- prometheus.MustNewConstMetric(faultyReadingsMetric, prometheus.CounterValue, float64(g.faultyReadingCount.Load()))
}
