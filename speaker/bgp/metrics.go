package bgp

import "github.com/prometheus/client_golang/prometheus"

// The metrics have the names that dashboards for this API know; peer is the router's address with its port. Their labels
// are bounded by the configured peers.
var (
	peerLabels      = []string{"peer"}
	upMetric        = prometheus.NewDesc("metallb_bgp_session_up", "1 while the session is established.", peerLabels, nil)
	announcedMetric = prometheus.NewDesc("metallb_bgp_announced_prefixes_total", "Prefixes that are announced on the session.", peerLabels, nil)
	pendingMetric   = prometheus.NewDesc("metallb_bgp_pending_prefixes_total", "Prefixes that should be announced on the session.", peerLabels, nil)
	countMetrics    = []countMetric{
		{prometheus.NewDesc("metallb_bgp_updates_total", "UPDATEs sent.", peerLabels, nil), func(c MessageCounts) uint64 { return c.Sent.Updates }},
		{prometheus.NewDesc("metallb_bgp_updates_total_received", "UPDATEs received; their routes are dropped.", peerLabels, nil), func(c MessageCounts) uint64 { return c.Received.Updates }},
		{prometheus.NewDesc("metallb_bgp_opens_sent", "OPENs sent.", peerLabels, nil), func(c MessageCounts) uint64 { return c.Sent.Opens }},
		{prometheus.NewDesc("metallb_bgp_opens_received", "OPENs received.", peerLabels, nil), func(c MessageCounts) uint64 { return c.Received.Opens }},
		{prometheus.NewDesc("metallb_bgp_notifications_sent", "NOTIFICATIONs sent.", peerLabels, nil), func(c MessageCounts) uint64 { return c.Sent.Notifications }},
		{prometheus.NewDesc("gantry_bgp_notifications_received_total", "NOTIFICATIONs received.", peerLabels, nil), func(c MessageCounts) uint64 { return c.Received.Notifications }},
		{prometheus.NewDesc("metallb_bgp_keepalives_sent", "KEEPALIVEs sent.", peerLabels, nil), func(c MessageCounts) uint64 { return c.Sent.Keepalives }},
		{prometheus.NewDesc("metallb_bgp_keepalives_received", "KEEPALIVEs received.", peerLabels, nil), func(c MessageCounts) uint64 { return c.Received.Keepalives }},
		{prometheus.NewDesc("gantry_bgp_refreshes_received_total", "Requests of the router to send every route again.", peerLabels, nil), func(c MessageCounts) uint64 { return c.Received.RouteRefreshes }},
		{prometheus.NewDesc("metallb_bgp_total_sent", "Messages sent.", peerLabels, nil), func(c MessageCounts) uint64 { return c.Sent.totalMessages() }},
		{prometheus.NewDesc("metallb_bgp_total_received", "Messages received.", peerLabels, nil), func(c MessageCounts) uint64 { return c.Received.totalMessages() }},
	}
	establishedMetric = prometheus.NewDesc("gantry_bgp_sessions_established_total", "How often the session was established.", peerLabels, nil)
)

// countMetric is a metric that one field of Counts feeds.
type countMetric struct {
	desc  *prometheus.Desc
	value func(MessageCounts) uint64
}

func (m CountsByType) totalMessages() uint64 {
	return m.Opens + m.Updates + m.Notifications + m.Keepalives + m.RouteRefreshes
}

var _ prometheus.Collector = (*Engine)(nil)

// Describe is part of prometheus.Collector; register the Engine to export its metrics.
func (e *Engine) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{upMetric, announcedMetric, pendingMetric, establishedMetric} {
		c <- d
	}
	for _, m := range countMetrics {
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
	for _, s := range e.Status() {
		at := all[s.Remote.String()]
		if at == nil {
			at = &sums{up: 1, counts: map[*prometheus.Desc]uint64{}}
			all[s.Remote.String()] = at
		}
		if s.State != Established {
			at.up = 0
		}
		at.announced += s.AnnouncedRoutes
		at.pending += s.WantedRoutes
		at.sessions += s.EstablishedCount
		for _, m := range countMetrics {
			at.counts[m.desc] += m.value(s.Messages)
		}
	}
	for peer, s := range all {
		c <- prometheus.MustNewConstMetric(upMetric, prometheus.GaugeValue, s.up, peer)
		c <- prometheus.MustNewConstMetric(announcedMetric, prometheus.GaugeValue, float64(s.announced), peer)
		c <- prometheus.MustNewConstMetric(pendingMetric, prometheus.GaugeValue, float64(s.pending), peer)
		c <- prometheus.MustNewConstMetric(establishedMetric, prometheus.CounterValue, float64(s.sessions), peer)
		for d, n := range s.counts {
			c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), peer)
		}
	}
}
