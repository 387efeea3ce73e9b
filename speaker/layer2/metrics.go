package layer2

import (
	"net/netip"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// heldAddress is a held address. Its counters live as long as the address is held.
type heldAddress struct {
	linkIndexes []int
	counters    *atomicAddressCounters
	// isUnannounced is set while the address is answered for and not announced yet.
	isUnannounced bool
}

// atomicAddressCounters count the frames of one address.
type atomicAddressCounters struct{ requestsReceived, repliesSent, announcementsSent, conflicts, pingsAnswered atomic.Uint64 }

// AddressCounters count the frames of one address since this node began to hold it.
type AddressCounters struct {
	RequestsReceived, RepliesSent, AnnouncementsSent uint64
	// Conflicts are claims of other hosts to the address, at most one per second and host.
	Conflicts uint64
	// PingsAnswered are the answered pings.
	PingsAnswered uint64
}

// CountersByAddress returns the counters of every held address.
func (e *Engine) CountersByAddress() map[netip.Addr]AddressCounters {
	out := map[netip.Addr]AddressCounters{}
	for a, h := range e.responderTable.Load().heldAddressByIP {
		out[a] = AddressCounters{h.counters.requestsReceived.Load(), h.counters.repliesSent.Load(), h.counters.announcementsSent.Load(), h.counters.conflicts.Load(), h.counters.pingsAnswered.Load()}
	}
	return out
}

// DroppedFrameAndReportCount counts what was lost because a buffer was full: received frames, sent
// frames, and reports that were not read in time.
func (e *Engine) DroppedFrameAndReportCount() uint64 {
	n := e.droppedReportAndFrameCount.Load() + e.framesLostByClosedPorts.Load() +
		e.repeatAnnouncementRequests.DroppedCount() + e.defendRequests.DroppedCount() + e.reports.DroppedCount()
	for _, p := range e.responderTable.Load().openPorts {
		n += p.LostFrameCount()
	}
	return n
}

// The names of the first three metrics are those of existing dashboards for this API. The label has
// one value for each held address, up to maxAddressesWithOwnMetrics.
var (
	requestsReceivedMetric        = prometheus.NewDesc("metallb_layer2_requests_received", "ARP requests and Neighbor Solicitations for a held address.", []string{"ip"}, nil)
	repliesSentMetric             = prometheus.NewDesc("metallb_layer2_responses_sent", "ARP replies and Neighbor Advertisements sent in answer to requests.", []string{"ip"}, nil)
	announcementsSentMetric       = prometheus.NewDesc("metallb_layer2_gratuitous_sent", "Announcements of a held address.", []string{"ip"}, nil)
	conflictsMetric               = prometheus.NewDesc("gantry_layer2_conflicts_total", "Claims of other hosts to a held address, at most one per second and host.", []string{"ip"}, nil)
	pingsAnsweredMetric           = prometheus.NewDesc("gantry_layer2_pings_answered_total", "Answered pings of a held address.", []string{"ip"}, nil)
	droppedFramesAndReportsMetric = prometheus.NewDesc("gantry_layer2_dropped_total", "Received frames, sent frames and internal reports that were lost because a buffer was full.", nil, nil)
)

// maxAddressesWithOwnMetrics bounds the values of the label ip. If the node holds more addresses,
// one series has the sums over them, with an empty label. Sums can fall when the node gives an
// address up, as when a counter restarts.
const maxAddressesWithOwnMetrics = 1000

// countersByMetricLabel returns the counters by the value of the label ip.
func countersByMetricLabel(counters map[netip.Addr]AddressCounters) map[string]AddressCounters {
	out := map[string]AddressCounters{}
	for a, n := range counters {
		if len(counters) <= maxAddressesWithOwnMetrics {
			out[a.String()] = n
			continue
		}
		sum := out[""]
		out[""] = AddressCounters{
			RequestsReceived: sum.RequestsReceived + n.RequestsReceived, RepliesSent: sum.RepliesSent + n.RepliesSent, AnnouncementsSent: sum.AnnouncementsSent + n.AnnouncementsSent,
			Conflicts: sum.Conflicts + n.Conflicts, PingsAnswered: sum.PingsAnswered + n.PingsAnswered,
		}
	}
	return out
}

var _ prometheus.Collector = (*Engine)(nil)

// Describe implements prometheus.Collector. Register the Engine to export its metrics.
func (e *Engine) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{requestsReceivedMetric, repliesSentMetric, announcementsSentMetric, conflictsMetric, pingsAnsweredMetric, droppedFramesAndReportsMetric} {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (e *Engine) Collect(c chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	for ip, n := range countersByMetricLabel(e.CountersByAddress()) {
		counter(requestsReceivedMetric, n.RequestsReceived, ip)
		counter(repliesSentMetric, n.RepliesSent, ip)
		counter(announcementsSentMetric, n.AnnouncementsSent, ip)
		counter(conflictsMetric, n.Conflicts, ip)
		counter(pingsAnsweredMetric, n.PingsAnswered, ip)
	}
	counter(droppedFramesAndReportsMetric, e.DroppedFrameAndReportCount())
}
