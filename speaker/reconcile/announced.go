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
	all  atomic.Pointer[[]announced]
}

// announced is one address of a Service, by one protocol.
type announced struct {
	service  view.Key
	protocol string
	address  netip.Addr
}

// NewAnnounced returns the metric of a node.
func NewAnnounced(node string) *Announced { return &Announced{node: node} }

var _ prometheus.Collector = (*Announced)(nil)

// The name and the labels are those that dashboards for this API know.
var announcedMetric = prometheus.NewDesc("metallb_speaker_announced", "Addresses of Services that this node announces.",
	[]string{"service", "protocol", "node", "ip"}, nil)

// set takes what is held by layer 2, and from the Plan what is announced to routers: nothing by a node that is leaving.
func (a *Announced) set(held []status.Held, p plan.Plan) {
	var all []announced
	for _, h := range held {
		for _, ip := range h.Addresses {
			all = append(all, announced{h.Service, protocolLayer2, ip})
		}
	}
	for v := range p.BGP.All() {
		if v.Reason != names.ReasonAnnounced || p.Leaving {
			continue
		}
		for _, ip := range v.Addresses {
			all = append(all, announced{v.Service, protocolBGP, ip})
		}
	}
	a.all.Store(&all)
}

// Describe is part of prometheus.Collector.
func (a *Announced) Describe(c chan<- *prometheus.Desc) { c <- announcedMetric }

// Collect is the other part.
func (a *Announced) Collect(c chan<- prometheus.Metric) {
	all := a.all.Load()
	if all == nil {
		return
	}
	for _, x := range *all {
		c <- prometheus.MustNewConstMetric(announcedMetric, prometheus.GaugeValue, 1, x.service.String(), x.protocol, a.node, x.address.String())
	}
}
