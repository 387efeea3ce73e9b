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

// Announced is the metric that says what the node announces. Register it; its zero value announces nothing.
type Announced struct {
	node string
	now  atomic.Pointer[announcing]
}

// announcing is what is announced by either protocol. It is immutable.
type announcing struct {
	held     []status.Held
	verdicts plan.List[*plan.BGPVerdict]
}

// NewAnnounced returns the metric of a node.
func NewAnnounced(node string) *Announced { return &Announced{node: node} }

var _ prometheus.Collector = (*Announced)(nil)

// The name and the labels are those that dashboards for this API know.
var announcedMetric = prometheus.NewDesc("metallb_speaker_announced", "Addresses of Services that this node announces.",
	[]string{"service", "protocol", "node", "ip"}, nil)

// set takes what is held by layer 2, and from the Plan what is announced to routers: nothing by a node that is leaving.
func (a *Announced) set(held []status.Held, p plan.Plan) {
	now := &announcing{held: held}
	if !p.Leaving {
		now.verdicts = p.BGP
	}
	a.now.Store(now)
}

// Describe is part of prometheus.Collector.
func (a *Announced) Describe(c chan<- *prometheus.Desc) { c <- announcedMetric }

// Collect is the other part.
func (a *Announced) Collect(c chan<- prometheus.Metric) {
	now := a.now.Load()
	if now == nil {
		return
	}
	tell := func(service view.Key, protocol string, addresses []netip.Addr) {
		for _, ip := range addresses {
			c <- prometheus.MustNewConstMetric(announcedMetric, prometheus.GaugeValue, 1, service.String(), protocol, a.node, ip.String())
		}
	}
	for _, h := range now.held {
		tell(h.Service, protocolLayer2, h.Addresses)
	}
	for v := range now.verdicts.All() {
		if v.Reason == names.ReasonAnnounced {
			tell(v.Service, protocolBGP, v.Addresses)
		}
	}
}
