package bfd

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

// discardCounters count discarded packets by reason.
type discardCounters struct {
	countByReason [len(session.DiscardReasons)]atomic.Uint64
}

// countDiscard counts a packet if it was discarded.
func (c *discardCounters) countDiscard(reason session.DiscardReason) {
	if reason == session.NotDiscarded {
		return
	}
	for i, d := range session.DiscardReasons {
		if d == reason {
			c.countByReason[i].Add(1)
		}
	}
}

// DiscardedPackets returns how many packets were discarded, by reason.
func (e *Engine) DiscardedPackets() map[session.DiscardReason]uint64 {
	out := map[session.DiscardReason]uint64{}
	for i, d := range session.DiscardReasons {
		if n := e.discardCounters.countByReason[i].Load(); n > 0 {
			out[d] = n
		}
	}
	return out
}

// The metrics have the names that existing dashboards for this
// API use. The configured peers bound the labels.
var (
	sessionMetricLabelNames = []string{"peer", "vrf"}

	sessionUpMetric        = prometheus.NewDesc("metallb_bfd_session_up", "1 while the BFD session is Up.", sessionMetricLabelNames, nil)
	controlInputMetric     = prometheus.NewDesc("metallb_bfd_control_packet_input", "Control packets received.", sessionMetricLabelNames, nil)
	controlOutputMetric    = prometheus.NewDesc("metallb_bfd_control_packet_output", "Control packets sent.", sessionMetricLabelNames, nil)
	echoInputMetric        = prometheus.NewDesc("metallb_bfd_echo_packet_input", "Echo packets that returned.", sessionMetricLabelNames, nil)
	echoOutputMetric       = prometheus.NewDesc("metallb_bfd_echo_packet_output", "Echo packets sent.", sessionMetricLabelNames, nil)
	upEventsMetric         = prometheus.NewDesc("metallb_bfd_session_up_events", "How often the BFD session came Up.", sessionMetricLabelNames, nil)
	downEventsMetric       = prometheus.NewDesc("metallb_bfd_session_down_events", "How often the BFD session left the state Up.", sessionMetricLabelNames, nil)
	reportedEventsMetric   = prometheus.NewDesc("metallb_bfd_zebra_notifications", "Changes of state that were reported to the BGP engine.", sessionMetricLabelNames, nil)
	discardedPacketsMetric = prometheus.NewDesc("gantry_bfd_discarded_packets_total", "Packets that were discarded, by the rule of RFC 5880 section 6.8.6 or of the transport.", []string{"reason"}, nil)
)

var _ prometheus.Collector = (*Engine)(nil)

// Describe implements prometheus.Collector.
func (e *Engine) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		sessionUpMetric, controlInputMetric, controlOutputMetric, echoInputMetric, echoOutputMetric, upEventsMetric, downEventsMetric, reportedEventsMetric, discardedPacketsMetric,
	} {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (e *Engine) Collect(c chan<- prometheus.Metric) {
	type labels struct{ peer, vrf string }
	sums := map[labels]*Counters{}
	up := map[labels]float64{}
	for _, s := range e.SessionStatuses() {
		at := labels{s.PeerMetricLabel(), s.VRF}
		n, another := sums[at]
		if !another {
			n, up[at] = &Counters{}, 1
			sums[at] = n
		}
		n.addCounters(s.Counters)
		if s.State != session.Up { // several sessions to one peer are up when all are
			up[at] = 0
		}
	}
	for at, n := range sums {
		c <- prometheus.MustNewConstMetric(sessionUpMetric, prometheus.GaugeValue, up[at], at.peer, at.vrf)
		for d, v := range map[*prometheus.Desc]uint64{
			controlInputMetric: n.ControlReceived, controlOutputMetric: n.ControlSent, echoInputMetric: n.EchoReturned, echoOutputMetric: n.EchoSent,
			upEventsMetric: n.UpEvents, downEventsMetric: n.DownEvents, reportedEventsMetric: n.ReportedEvents,
		} {
			c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), at.peer, at.vrf)
		}
	}
	for i, d := range session.DiscardReasons {
		n := float64(e.discardCounters.countByReason[i].Load())
		c <- prometheus.MustNewConstMetric(discardedPacketsMetric, prometheus.CounterValue, n, string(d))
	}
}

// addCounters adds m to n.
func (n *Counters) addCounters(m Counters) {
	n.ControlReceived += m.ControlReceived
	n.ControlSent += m.ControlSent
	n.EchoReturned += m.EchoReturned
	n.EchoSent += m.EchoSent
	n.UpEvents += m.UpEvents
	n.DownEvents += m.DownEvents
	n.ReportedEvents += m.ReportedEvents
}
