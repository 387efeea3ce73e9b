package continuity

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// steeringMetrics are the counters of an Engine.
type steeringMetrics struct {
	steeredPortCount, forwardedAddressCount  *atomic.Int64
	failedWriteCount, deletedConnectionCount *atomic.Uint64
}

func newSteeringMetrics() steeringMetrics {
	return steeringMetrics{&atomic.Int64{}, &atomic.Int64{}, &atomic.Uint64{}, &atomic.Uint64{}}
}

var (
	steeredPortsMetric       = prometheus.NewDesc("gantry_steering_ports", "Ports at addresses of Services whose new connections this node steers around dead nodes.", nil, nil)
	forwardedMetric          = prometheus.NewDesc("gantry_forwarding_addresses", "Addresses that this node holds, and whose former holders still live, so that it forwards packets of connections that it does not know.", nil, nil)
	steeringAvailableMetric  = prometheus.NewDesc("gantry_steering_available", "1 if the kernel accepts the rules that steer or forward connections and kube-proxy is there, 0 if not.", nil, nil)
	failedWritesMetric       = prometheus.NewDesc("gantry_steering_failed_writes_total", "Packet rules that the kernel refused.", nil, nil)
	deletedConnectionsMetric = prometheus.NewDesc("gantry_steering_deleted_connections_total", "Tracked connections to endpoints on dead nodes that were deleted, so that their clients choose anew.", nil, nil)
)

var _ prometheus.Collector = (*Engine)(nil)

// Describe implements prometheus.Collector. Register the Engine to export its metrics.
func (e *Engine) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{steeredPortsMetric, forwardedMetric, steeringAvailableMetric, failedWritesMetric, deletedConnectionsMetric} {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (e *Engine) Collect(c chan<- prometheus.Metric) {
	available := 1.0
	if e.SteeringFault().IsSet() || e.ForwardingFault().IsSet() {
		available = 0
	}
	c <- prometheus.MustNewConstMetric(steeringAvailableMetric, prometheus.GaugeValue, available)
	c <- prometheus.MustNewConstMetric(steeredPortsMetric, prometheus.GaugeValue, float64(e.metrics.steeredPortCount.Load()))
	c <- prometheus.MustNewConstMetric(forwardedMetric, prometheus.GaugeValue, float64(e.metrics.forwardedAddressCount.Load()))
	c <- prometheus.MustNewConstMetric(failedWritesMetric, prometheus.CounterValue, float64(e.metrics.failedWriteCount.Load()))
	c <- prometheus.MustNewConstMetric(deletedConnectionsMetric, prometheus.CounterValue, float64(e.metrics.deletedConnectionCount.Load()))
}
