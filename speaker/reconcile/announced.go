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

// The names of the protocols in events and metrics.
const (
	protocolLayer2 = "layer2"
	protocolBGP    = "bgp"
)

// AnnouncedMetrics is the metric for what the node announces. Register it. The zero
// value announces nothing.
type AnnouncedMetrics struct {
	nodeName        string
	currentServices atomic.Pointer[announcedServices]
}

// announcedServices is what is announced by both protocols. It is immutable.
type announcedServices struct {
	heldByLayer2 []status.HeldService
	bgpVerdicts  plan.SortedList[*plan.BGPVerdict]
}

// NewAnnouncedMetrics returns the metric of a node.
func NewAnnouncedMetrics(node string) *AnnouncedMetrics { return &AnnouncedMetrics{nodeName: node} }

var _ prometheus.Collector = (*AnnouncedMetrics)(nil)

// The name and the labels are those of existing dashboards for this API.
var announcedMetric = prometheus.NewDesc("metallb_speaker_announced", "Addresses of Services that this node announces.",
	[]string{"service", "protocol", "node", "ip"}, nil)

// setAnnouncedServices sets the Services held by layer 2, and those that the Plan announces by BGP.
// A leaving node announces nothing by BGP.
func (a *AnnouncedMetrics) setAnnouncedServices(held []status.HeldService, p plan.Plan) {
	now := &announcedServices{heldByLayer2: held}
	if !p.NodeLeaving {
		now.bgpVerdicts = p.BGPVerdicts
	}
	a.currentServices.Store(now)
}

// Describe implements prometheus.Collector.
func (a *AnnouncedMetrics) Describe(c chan<- *prometheus.Desc) { c <- announcedMetric }

// Collect implements prometheus.Collector.
func (a *AnnouncedMetrics) Collect(c chan<- prometheus.Metric) {
	now := a.currentServices.Load()
	if now == nil {
		return
	}
	emit := func(service view.ObjectKey, protocol string, addresses []netip.Addr) {
		for _, ip := range addresses {
			c <- prometheus.MustNewConstMetric(announcedMetric, prometheus.GaugeValue, 1, service.String(), protocol, a.nodeName, ip.String())
		}
	}
	for _, h := range now.heldByLayer2 {
		emit(h.Service, protocolLayer2, h.Addresses)
	}
	for v := range now.bgpVerdicts.All() {
		if v.Reason == names.ReasonAnnounced {
			emit(v.Service, protocolBGP, v.Addresses)
		}
	}
}
