package layer2

import (
	"net/netip"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// holding is a held address. Its counters live as long as the address is held.
type holding struct {
	links    []int
	counters *atomicCounters
}

// atomicCounters count the frames of one address.
type atomicCounters struct{ requests, answers, gratuitous, conflicts, pings atomic.Uint64 }

// Counters count the frames of one address since this node began to hold it.
type Counters struct {
	Requests, Answers, Gratuitous uint64
	// Conflicts are claims of other hosts to the address, at most one per second and host.
	Conflicts uint64
	// Pings are the answered pings.
	Pings uint64
}

// Counters returns the counters of every held address.
func (e *Engine) Counters() map[netip.Addr]Counters {
	out := map[netip.Addr]Counters{}
	for a, h := range e.responderTable.Load().holdingByAddress {
		out[a] = Counters{h.counters.requests.Load(), h.counters.answers.Load(), h.counters.gratuitous.Load(), h.counters.conflicts.Load(), h.counters.pings.Load()}
	}
	return out
}

// DroppedCount counts what was lost because a buffer was full: received frames, sent frames, and
// reports that were not read in time.
func (e *Engine) DroppedCount() uint64 {
	n := e.droppedEventCount.Load() + e.framesLostByClosedPorts.Load() +
		e.announceRequests.Dropped() + e.defendRequests.Dropped() + e.reports.Dropped()
	for _, p := range e.responderTable.Load().openPorts {
		n += p.LostFrameCount()
	}
	return n
}

// The names of the first three metrics are those of existing dashboards for this API. The label has
// one value for each held address.
var (
	requestsMetric   = prometheus.NewDesc("metallb_layer2_requests_received", "ARP requests and Neighbor Solicitations for a held address.", []string{"ip"}, nil)
	answersMetric    = prometheus.NewDesc("metallb_layer2_responses_sent", "ARP replies and Neighbor Advertisements sent in answer to requests.", []string{"ip"}, nil)
	gratuitousMetric = prometheus.NewDesc("metallb_layer2_gratuitous_sent", "Announcements of a held address.", []string{"ip"}, nil)
	conflictsMetric  = prometheus.NewDesc("gantry_layer2_conflicts_total", "Claims of other hosts to a held address, at most one per second and host.", []string{"ip"}, nil)
	pingsMetric      = prometheus.NewDesc("gantry_layer2_pings_answered_total", "Answered pings of a held address.", []string{"ip"}, nil)
	droppedMetric    = prometheus.NewDesc("gantry_layer2_dropped_total", "Received frames, sent frames and internal reports that were lost because a buffer was full.", nil, nil)
)

var _ prometheus.Collector = (*Engine)(nil)

// Describe implements prometheus.Collector. Register the Engine to export its metrics.
func (e *Engine) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{requestsMetric, answersMetric, gratuitousMetric, conflictsMetric, pingsMetric, droppedMetric} {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (e *Engine) Collect(c chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	for a, n := range e.Counters() {
		counter(requestsMetric, n.Requests, a.String())
		counter(answersMetric, n.Answers, a.String())
		counter(gratuitousMetric, n.Gratuitous, a.String())
		counter(conflictsMetric, n.Conflicts, a.String())
		counter(pingsMetric, n.Pings, a.String())
	}
	counter(droppedMetric, e.DroppedCount())
}
