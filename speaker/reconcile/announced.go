package reconcile

import (
	"net/netip"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/plan"
	"github.com/gantry-lb/gantry/speaker/status"
)

// The protocols' names in events and metrics.
const (
	protocolLayer2 = "layer2"
	protocolBGP    = "bgp"
)

// AnnouncedMetrics is the metric that says what the node announces. Register it; its zero value announces nothing.
type AnnouncedMetrics struct {
	node    string
	current atomic.Pointer[announcedServices]
}

// announcedServices is what is announced by either protocol. It is immutable.
type announcedServices struct {
	held        []status.HeldService
	bgpVerdicts plan.SortedList[*plan.BGPVerdict]
}

// NewAnnouncedMetrics returns the metric of a node.
func NewAnnouncedMetrics(node string) *AnnouncedMetrics { return &AnnouncedMetrics{node: node} }

var _ prometheus.Collector = (*AnnouncedMetrics)(nil)

// The name and the labels are those that dashboards for this API know.
var announcedMetric = prometheus.NewDesc("metallb_speaker_announced", "Addresses of Services that this node announces.",
	[]string{"service", "protocol", "node", "ip"}, nil)

// setAnnounced takes what is held by layer 2, and from the Plan what is announced to routers: nothing by a node that is leaving.
func (a *AnnouncedMetrics) setAnnounced(held []status.HeldService, p plan.Plan) {
	now := &announcedServices{held: held}
	if !p.Leaving {
		now.bgpVerdicts = p.BGP
	}
	a.current.Store(now)
}

// Describe is part of prometheus.Collector.
func (a *AnnouncedMetrics) Describe(c chan<- *prometheus.Desc) { c <- announcedMetric }

// Collect is the other part.
func (a *AnnouncedMetrics) Collect(c chan<- prometheus.Metric) {
	now := a.current.Load()
	if now == nil {
		return
	}
	tell := func(service view.ObjectKey, protocol string, addresses []netip.Addr) {
		for _, ip := range addresses {
			c <- prometheus.MustNewConstMetric(announcedMetric, prometheus.GaugeValue, 1, service.String(), protocol, a.node, ip.String())
		}
	}
	for _, h := range now.held {
		tell(h.Service, protocolLayer2, h.Addresses)
	}
	for v := range now.bgpVerdicts.All() {
		if v.Reason == names.ReasonAnnounced {
			tell(v.Service, protocolBGP, v.Addresses)
		}
	}
}
