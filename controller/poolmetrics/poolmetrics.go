// Package poolmetrics exports how full the pools are, and counts of other objects in the cache, as
// Prometheus metrics.
package poolmetrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// metricsCollectTimeout bounds the reading of the pools, which are in memory.
const metricsCollectTimeout = 5 * time.Second

// newPoolMetric describes a gauge with a value for each pool.
func newPoolMetric(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("metallb_allocator_"+name, help, []string{"pool"}, nil)
}

// The metrics of pools. They are gauges despite their names, which the metallb.io API fixed.
var (
	addressesTotalMetric     = newPoolMetric("addresses_total", "Addresses of the pool, both families together.")
	addressesTotalIPv4Metric = newPoolMetric("ipv4_addresses_total", "IPv4 addresses of the pool.")
	addressesTotalIPv6Metric = newPoolMetric("ipv6_addresses_total", "IPv6 addresses of the pool, 2^63-1 at most.")
	addressesUsedMetric      = newPoolMetric("addresses_in_use_total", "Addresses of the pool that Services hold, both families together.")
	addressesUsedIPv4Metric  = newPoolMetric("ipv4_addresses_in_use_total", "IPv4 addresses of the pool that Services hold.")
	addressesUsedIPv6Metric  = newPoolMetric("ipv6_addresses_in_use_total", "IPv6 addresses of the pool that Services hold.")
)

var (
	deadSpeakersMetric  = prometheus.NewDesc("gantry_dead_speakers", "Nodes whose speaker is dead or gone, as the other speakers found. Only the leader has it.", nil, nil)
	addressProbesMetric = prometheus.NewDesc("gantry_address_probes", "Addresses that are being probed on the network before a Service gets them. Only the leader has it.", nil, nil)
)

// Options are the settings of a Collector.
type Options struct {
	Reader    client.Reader
	Namespace string
	Log       *slog.Logger
	Registry  prometheus.Registerer
	// ExtraCollectors are exported too.
	ExtraCollectors []prometheus.Collector
}

// Collector exports how full the pools are, as their status says, and the ExtraCollectors. Only
// the leader exports them, so that each pool is counted once. Use NewCollector to create it.
type Collector struct {
	Options

	startContext context.Context // the context of Start, because Collect gets none
}

var _ prometheus.Collector = (*Collector)(nil)

// NewCollector returns a Collector for a manager to start.
func NewCollector(o Options) *Collector { return &Collector{Options: o} }

// Start exports until ctx ends. The manager calls it once this controller is the leader.
func (m *Collector) Start(ctx context.Context) error {
	m.startContext = ctx
	for _, c := range append([]prometheus.Collector{m}, m.ExtraCollectors...) {
		if err := m.Registry.Register(c); err != nil {
			return fmt.Errorf("registering the metrics: %w", err)
		}
		defer m.Registry.Unregister(c)
	}
	<-ctx.Done()
	return nil
}

// Describe is part of prometheus.Collector.
func (m *Collector) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{addressesTotalMetric, addressesTotalIPv4Metric, addressesTotalIPv6Metric, addressesUsedMetric, addressesUsedIPv4Metric, addressesUsedIPv6Metric, deadSpeakersMetric, addressProbesMetric} {
		c <- d
	}
}

// Collect is part of prometheus.Collector.
func (m *Collector) Collect(c chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(m.startContext, metricsCollectTimeout)
	defer cancel()
	m.collectObjectCounts(ctx, c)
	var pools v1beta1.IPAddressPoolList
	if err := m.Reader.List(ctx, &pools, client.InNamespace(m.Namespace)); err != nil {
		m.Log.Error("reading the pools for their metrics", "error", err)
		return
	}
	for i := range pools.Items {
		s, name := pools.Items[i].Status, pools.Items[i].Name
		// As floats, because the sum of the families of a large pool overflows an integer.
		used4, used6 := float64(s.AssignedIPv4), float64(s.AssignedIPv6)
		all4, all6 := used4+float64(s.AvailableIPv4), used6+float64(s.AvailableIPv6)
		for desc, v := range map[*prometheus.Desc]float64{
			addressesTotalMetric: all4 + all6, addressesTotalIPv4Metric: all4, addressesTotalIPv6Metric: all6,
			addressesUsedMetric: used4 + used6, addressesUsedIPv4Metric: used4, addressesUsedIPv6Metric: used6,
		} {
			c <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, name)
		}
	}
}

// collectObjectCounts counts objects in the cache.
func (m *Collector) collectObjectCounts(ctx context.Context, c chan<- prometheus.Metric) {
	var speakers v1alpha1.SpeakerStatusList
	var probes v1alpha1.AddressProbeList
	if err := errors.Join(m.Reader.List(ctx, &speakers, client.InNamespace(m.Namespace)), m.Reader.List(ctx, &probes, client.InNamespace(m.Namespace))); err != nil {
		m.Log.Error("reading the speakers and the probes for their metrics", "error", err)
		return
	}
	dead := 0
	for i := range speakers.Items {
		if speakers.Items[i].Status.WasFoundDead() {
			dead++
		}
	}
	c <- prometheus.MustNewConstMetric(deadSpeakersMetric, prometheus.GaugeValue, float64(dead))
	c <- prometheus.MustNewConstMetric(addressProbesMetric, prometheus.GaugeValue, float64(countProbesOfController(probes.Items)))
}

// countProbesOfController counts the AddressProbes without those of operators, which name a node.
func countProbesOfController(all []v1alpha1.AddressProbe) int {
	n := 0
	for i := range all {
		if all[i].Spec.Node == "" {
			n++
		}
	}
	return n
}
