package reconcile

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gantry-lb/gantry/speaker/status"
)

// protocolLayer2 is layer 2's name in events and metrics.
const protocolLayer2 = "layer2"

// Announced is the metric that says what the node announces. Register it; its zero value announces nothing.
type Announced struct {
	node   string
	layer2 atomic.Pointer[[]status.Held]
}

// NewAnnounced returns the metric of a node.
func NewAnnounced(node string) *Announced { return &Announced{node: node} }

var _ prometheus.Collector = (*Announced)(nil)

// The name and the labels are those that dashboards for this API know.
var announcedMetric = prometheus.NewDesc("metallb_speaker_announced", "Addresses of Services that this node announces.",
	[]string{"service", "protocol", "node", "ip"}, nil)

func (a *Announced) setLayer2(all []status.Held) { a.layer2.Store(&all) }

// Describe is part of prometheus.Collector.
func (a *Announced) Describe(c chan<- *prometheus.Desc) { c <- announcedMetric }

// Collect is the other part.
func (a *Announced) Collect(c chan<- prometheus.Metric) {
	all := a.layer2.Load()
	if all == nil {
		return
	}
	for _, s := range *all {
		for _, ip := range s.Addresses {
			c <- prometheus.MustNewConstMetric(announcedMetric, prometheus.GaugeValue, 1, s.Service.String(), protocolLayer2, a.node, ip.String())
		}
	}
}
