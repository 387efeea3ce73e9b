package bgp

import "github.com/prometheus/client_golang/prometheus"

// The metrics have the names that dashboards for this API know; peer is the router's address with its port. Their labels
// are bounded by the configured peers.
var (
	peerLabel   = []string{"peer"}
	upMetric    = prometheus.NewDesc("metallb_bgp_session_up", "1 while the session is established.", peerLabel, nil)
	routeMetric = prometheus.NewDesc("metallb_bgp_announced_prefixes_total", "Prefixes that are announced on the session.", peerLabel, nil)
	pendMetric  = prometheus.NewDesc("metallb_bgp_pending_prefixes_total", "Prefixes that should be announced on the session.", peerLabel, nil)
	sentMetrics = []counter{
		{prometheus.NewDesc("metallb_bgp_updates_total", "UPDATEs sent.", peerLabel, nil), func(c Counts) uint64 { return c.Sent.Updates }},
		{prometheus.NewDesc("metallb_bgp_updates_total_received", "UPDATEs received; their routes are dropped.", peerLabel, nil), func(c Counts) uint64 { return c.Received.Updates }},
		{prometheus.NewDesc("metallb_bgp_opens_sent", "OPENs sent.", peerLabel, nil), func(c Counts) uint64 { return c.Sent.Opens }},
		{prometheus.NewDesc("metallb_bgp_opens_received", "OPENs received.", peerLabel, nil), func(c Counts) uint64 { return c.Received.Opens }},
		{prometheus.NewDesc("metallb_bgp_notifications_sent", "NOTIFICATIONs sent.", peerLabel, nil), func(c Counts) uint64 { return c.Sent.Notifications }},
		{prometheus.NewDesc("gantry_bgp_notifications_received_total", "NOTIFICATIONs received.", peerLabel, nil), func(c Counts) uint64 { return c.Received.Notifications }},
		{prometheus.NewDesc("metallb_bgp_keepalives_sent", "KEEPALIVEs sent.", peerLabel, nil), func(c Counts) uint64 { return c.Sent.Keepalives }},
		{prometheus.NewDesc("metallb_bgp_keepalives_received", "KEEPALIVEs received.", peerLabel, nil), func(c Counts) uint64 { return c.Received.Keepalives }},
		{prometheus.NewDesc("gantry_bgp_refreshes_received_total", "Requests of the router to send every route again.", peerLabel, nil), func(c Counts) uint64 { return c.Received.Refreshes }},
		{prometheus.NewDesc("metallb_bgp_total_sent", "Messages sent.", peerLabel, nil), func(c Counts) uint64 { return c.Sent.total() }},
		{prometheus.NewDesc("metallb_bgp_total_received", "Messages received.", peerLabel, nil), func(c Counts) uint64 { return c.Received.total() }},
	}
	upsMetric = prometheus.NewDesc("gantry_bgp_sessions_established_total", "How often the session was established.", peerLabel, nil)
)

// counter is a metric that one field of Counts feeds.
type counter struct {
	desc *prometheus.Desc
	of   func(Counts) uint64
}

func (m Messages) total() uint64 {
	return m.Opens + m.Updates + m.Notifications + m.Keepalives + m.Refreshes
}

var _ prometheus.Collector = (*Engine)(nil)

// Describe is part of prometheus.Collector; register the Engine to export its metrics.
func (e *Engine) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{upMetric, routeMetric, pendMetric, upsMetric} {
		c <- d
	}
	for _, m := range sentMetrics {
		c <- m.desc
	}
}

// Collect is the other part. Several peers at one address and port count as one, which is up when all are.
func (e *Engine) Collect(c chan<- prometheus.Metric) {
	type sums struct {
		up                           float64
		announced, pending, sessions int
		counts                       map[*prometheus.Desc]uint64
	}
	all := map[string]*sums{}
	for _, s := range e.States() {
		at := all[s.Remote.String()]
		if at == nil {
			at = &sums{up: 1, counts: map[*prometheus.Desc]uint64{}}
			all[s.Remote.String()] = at
		}
		if s.Phase != Established {
			at.up = 0
		}
		at.announced += s.Announced
		at.pending += s.Routes
		at.sessions += s.Ups
		for _, m := range sentMetrics {
			at.counts[m.desc] += m.of(s.Counts)
		}
	}
	for peer, s := range all {
		c <- prometheus.MustNewConstMetric(upMetric, prometheus.GaugeValue, s.up, peer)
		c <- prometheus.MustNewConstMetric(routeMetric, prometheus.GaugeValue, float64(s.announced), peer)
		c <- prometheus.MustNewConstMetric(pendMetric, prometheus.GaugeValue, float64(s.pending), peer)
		c <- prometheus.MustNewConstMetric(upsMetric, prometheus.CounterValue, float64(s.sessions), peer)
		for d, n := range s.counts {
			c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), peer)
		}
	}
}
