package reconcile

import (
	"net/netip"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
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
	nodeName string
	// bgpSessions has the sessions: only what an established one carries is announced. It is nil
	// without BGP.
	bgpSessions  SessionSource
	latestStatus atomic.Pointer[agent.Status]
	// heldBackSessions are established and do not count yet, by peer: see BGPStatusWriter.
	heldBackSessions atomic.Pointer[map[string]names.Explanation]
	// memberCount is the number of living speakers, unreachableCount that of speakers that run and
	// cannot be reached, conflictCount that of claims of foreign hosts.
	memberCount, unreachableCount, conflictCount atomic.Int64
}

// NewAnnouncedMetrics returns the metric of a node with these BGP sessions.
func NewAnnouncedMetrics(node string, sessions SessionSource) *AnnouncedMetrics {
	return &AnnouncedMetrics{nodeName: node, bgpSessions: sessions}
}

var _ prometheus.Collector = (*AnnouncedMetrics)(nil)

// The name and the labels are those of existing dashboards for this API.
var announcedMetric = prometheus.NewDesc("metallb_speaker_announced",
	"1 for each address of a Service that this node announces. Beyond 1,000 of them: one series for each protocol with their number, and without service and ip.",
	[]string{"service", "protocol", "node", "ip"}, nil)

var (
	membersMetric          = prometheus.NewDesc("gantry_speaker_members", "Speakers that take part in the gossip, as this one sees it, itself included.", nil, nil)
	unreachableNodesMetric = prometheus.NewDesc("gantry_speaker_unreachable_nodes", "Nodes whose speakers run, and with which this one cannot exchange gossip.", nil, nil)
	heldAddressesMetric    = prometheus.NewDesc("gantry_speaker_held_addresses", "Addresses that this node holds: for which it answers ARP and NDP.", nil, nil)
	conflictsMetric        = prometheus.NewDesc("gantry_speaker_foreign_claims", "Claims of foreign hosts to addresses that this node holds or wants to take.", nil, nil)
)

// observeStatus takes the agent's Status. The metric does not wait until the API server has
// accepted what follows from it.
func (a *AnnouncedMetrics) observeStatus(s agent.Status) { a.latestStatus.Store(&s) }

// observeHeldBackSessions takes the established sessions that do not count yet, so that the metric
// says the same as the condition of a Service. It changes nothing if a is nil.
func (a *AnnouncedMetrics) observeHeldBackSessions(heldBack map[string]names.Explanation) {
	if a != nil {
		a.heldBackSessions.Store(&heldBack)
	}
}

// Describe implements prometheus.Collector.
func (a *AnnouncedMetrics) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{announcedMetric, heldAddressesMetric, membersMetric, unreachableNodesMetric, conflictsMetric} {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (a *AnnouncedMetrics) Collect(c chan<- prometheus.Metric) {
	now := a.latestStatus.Load()
	if now == nil {
		return
	}
	for d, n := range map[*prometheus.Desc]*atomic.Int64{membersMetric: &a.memberCount, unreachableNodesMetric: &a.unreachableCount, conflictsMetric: &a.conflictCount} {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n.Load()))
	}
	c <- prometheus.MustNewConstMetric(heldAddressesMetric, prometheus.GaugeValue, float64(len(now.HeldBindings)))
	a.collectAnnounced(c, now)
}

// maxAnnouncedSeries bounds the series of announcedMetric. With more addresses, one series for each
// protocol says how many there are.
const maxAnnouncedSeries = 1000

// announcedSeries are the labels of a series of announcedMetric, without the node.
type announcedSeries struct{ service, protocol, ip string }

// collectAnnounced sends a series for each announced address of a Service.
func (a *AnnouncedMetrics) collectAnnounced(c chan<- prometheus.Metric, now *agent.Status) {
	var all []announcedSeries
	emit := func(service view.ObjectKey, protocol string, addresses []netip.Addr) {
		for _, ip := range addresses {
			all = append(all, announcedSeries{service.String(), protocol, ip.String()})
		}
	}
	in := status.StatusInputs{Self: a.nodeName, Plan: now.Plan, HeldBindings: now.HeldBindings, HeldAddressConflicts: &status.Conflicts{}}
	for _, h := range status.BuildHeldServices(in) {
		emit(h.Service, protocolLayer2, h.Addresses)
	}
	if a.bgpSessions != nil && !now.Plan.NodeLeaving { // a leaving node withdraws its routes
		a.forEachRoutedService(now, emit)
	}
	for s, n := range countBySeries(all) {
		c <- prometheus.MustNewConstMetric(announcedMetric, prometheus.GaugeValue, float64(n), s.service, s.protocol, a.nodeName, s.ip)
	}
}

// countBySeries returns the value of each series: 1 for each address, or for each protocol the
// number of addresses if there are too many.
func countBySeries(all []announcedSeries) map[announcedSeries]int {
	out := map[announcedSeries]int{}
	for _, s := range all {
		if len(all) > maxAnnouncedSeries {
			out[announcedSeries{protocol: s.protocol}]++
		} else {
			out[s] = 1
		}
	}
	return out
}

// forEachRoutedService calls emit with each Service of which established sessions carry addresses.
func (a *AnnouncedMetrics) forEachRoutedService(now *agent.Status, emit func(service view.ObjectKey, protocol string, addresses []netip.Addr)) {
	carriedByPeer := carriedRoutesOfEstablishedSessions(a.bgpSessions.SessionStatuses())
	if heldBack := a.heldBackSessions.Load(); heldBack != nil {
		for peer := range *heldBack {
			delete(carriedByPeer, peer)
		}
	}
	for v := range now.Plan.BGPVerdicts.All() {
		if v.Reason == names.ReasonAnnounced {
			emit(v.Service, protocolBGP, status.AddressesWithRoute(v, carriedByPeer))
		}
	}
}
