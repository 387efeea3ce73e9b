package bgp

import "github.com/prometheus/client_golang/prometheus"

// The metrics have the names that existing dashboards for this API use. peer is
// the router's address and port, bgppeer the name of the BGPPeer. The configured peers bound the
// labels.
var (
	peerMetricLabelNames  = []string{"peer", "bgppeer"}
	sessionUpMetric       = prometheus.NewDesc("metallb_bgp_session_up", "1 while the session is established.", peerMetricLabelNames, nil)
	announcedRoutesMetric = prometheus.NewDesc("metallb_bgp_announced_prefixes_total", "Prefixes that are announced on the session.", peerMetricLabelNames, nil)
	wantedRoutesMetric    = prometheus.NewDesc("metallb_bgp_pending_prefixes_total", "Prefixes that should be announced on the session.", peerMetricLabelNames, nil)
	messageMetrics        = []messageMetric{
		{prometheus.NewDesc("metallb_bgp_updates_total", "UPDATEs sent.", peerMetricLabelNames, nil), func(c MessageCounts) uint64 { return c.Sent.Updates }},
		{prometheus.NewDesc("metallb_bgp_updates_total_received", "UPDATEs received; their routes are dropped.", peerMetricLabelNames, nil), func(c MessageCounts) uint64 { return c.Received.Updates }},
		{prometheus.NewDesc("metallb_bgp_opens_sent", "OPENs sent.", peerMetricLabelNames, nil), func(c MessageCounts) uint64 { return c.Sent.Opens }},
		{prometheus.NewDesc("metallb_bgp_opens_received", "OPENs received.", peerMetricLabelNames, nil), func(c MessageCounts) uint64 { return c.Received.Opens }},
		{prometheus.NewDesc("metallb_bgp_notifications_sent", "NOTIFICATIONs sent.", peerMetricLabelNames, nil), func(c MessageCounts) uint64 { return c.Sent.Notifications }},
		{prometheus.NewDesc("gantry_bgp_notifications_received_total", "NOTIFICATIONs received.", peerMetricLabelNames, nil), func(c MessageCounts) uint64 { return c.Received.Notifications }},
		{prometheus.NewDesc("metallb_bgp_keepalives_sent", "KEEPALIVEs sent.", peerMetricLabelNames, nil), func(c MessageCounts) uint64 { return c.Sent.Keepalives }},
		{prometheus.NewDesc("metallb_bgp_keepalives_received", "KEEPALIVEs received.", peerMetricLabelNames, nil), func(c MessageCounts) uint64 { return c.Received.Keepalives }},
		{prometheus.NewDesc("gantry_bgp_refreshes_received_total", "ROUTE-REFRESHes received: requests of the router to send every route again.", peerMetricLabelNames, nil), func(c MessageCounts) uint64 { return c.Received.RouteRefreshes }},
		{prometheus.NewDesc("metallb_bgp_total_sent", "Messages sent.", peerMetricLabelNames, nil), func(c MessageCounts) uint64 { return c.Sent.totalMessages() }},
		{prometheus.NewDesc("metallb_bgp_total_received", "Messages received.", peerMetricLabelNames, nil), func(c MessageCounts) uint64 { return c.Received.totalMessages() }},
	}
	establishedCountMetric = prometheus.NewDesc("gantry_bgp_sessions_established_total", "How often the session was established.", peerMetricLabelNames, nil)
)

// messageMetric is a metric with its value from the MessageCounts.
type messageMetric struct {
	desc  *prometheus.Desc
	value func(MessageCounts) uint64
}

func (m MessageCountsByType) totalMessages() uint64 {
	return m.Opens + m.Updates + m.Notifications + m.Keepalives + m.RouteRefreshes
}

var _ prometheus.Collector = (*Engine)(nil)

// Describe implements prometheus.Collector.
func (e *Engine) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sessionUpMetric, announcedRoutesMetric, wantedRoutesMetric, establishedCountMetric} {
		c <- d
	}
	for _, m := range messageMetrics {
		c <- m.desc
	}
}

// Collect implements prometheus.Collector. Each BGPPeer has series of its own. If a BGPPeer has
// several sessions with one address and port, they share a series, which is up when all of them
// are.
func (e *Engine) Collect(c chan<- prometheus.Metric) {
	type sums struct {
		up                           float64
		announced, pending, sessions int
		counts                       map[*prometheus.Desc]uint64
	}
	type labels struct{ peer, bgpPeer string }
	all := map[labels]*sums{}
	for _, s := range e.SessionStatuses() {
		key := labels{s.RouterAddress.String(), s.PeerName}
		at := all[key]
		if at == nil {
			at = &sums{up: 1, counts: map[*prometheus.Desc]uint64{}}
			all[key] = at
		}
		if s.State != Established {
			at.up = 0
		}
		at.announced += s.AnnouncedRouteCount
		at.pending += s.WantedRouteCount
		at.sessions += s.EstablishedCount
		for _, m := range messageMetrics {
			at.counts[m.desc] += m.value(s.MessageTotals)
		}
	}
	for of, s := range all {
		c <- prometheus.MustNewConstMetric(sessionUpMetric, prometheus.GaugeValue, s.up, of.peer, of.bgpPeer)
		c <- prometheus.MustNewConstMetric(announcedRoutesMetric, prometheus.GaugeValue, float64(s.announced), of.peer, of.bgpPeer)
		c <- prometheus.MustNewConstMetric(wantedRoutesMetric, prometheus.GaugeValue, float64(s.pending), of.peer, of.bgpPeer)
		c <- prometheus.MustNewConstMetric(establishedCountMetric, prometheus.CounterValue, float64(s.sessions), of.peer, of.bgpPeer)
		for d, n := range s.counts {
			c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), of.peer, of.bgpPeer)
		}
	}
}
