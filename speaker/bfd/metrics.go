package bfd

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

// counted counts what belongs to no session.
type counted struct {
	discarded [len(session.Discards)]atomic.Uint64
}

// discard counts a packet that was not taken.
func (c *counted) discard(why session.Discard) {
	for i, d := range session.Discards {
		if d == why {
			c.discarded[i].Add(1)
		}
	}
}

// Discarded returns how many packets were not taken, by rule.
func (e *Engine) Discarded() map[session.Discard]uint64 {
	out := map[session.Discard]uint64{}
	for i, d := range session.Discards {
		if n := e.counted.discarded[i].Load(); n > 0 {
			out[d] = n
		}
	}
	return out
}

// The metrics have the names that dashboards for this API know. Their labels are bounded by the configured peers.
var (
	sessionLabels = []string{"peer", "vrf"}

	upMetric         = prometheus.NewDesc("metallb_bfd_session_up", "1 while the BFD session is Up.", sessionLabels, nil)
	inputMetric      = prometheus.NewDesc("metallb_bfd_control_packet_input", "Control packets received.", sessionLabels, nil)
	outputMetric     = prometheus.NewDesc("metallb_bfd_control_packet_output", "Control packets sent.", sessionLabels, nil)
	echoInputMetric  = prometheus.NewDesc("metallb_bfd_echo_packet_input", "Echo packets that came back.", sessionLabels, nil)
	echoOutputMetric = prometheus.NewDesc("metallb_bfd_echo_packet_output", "Echo packets sent.", sessionLabels, nil)
	upsMetric        = prometheus.NewDesc("metallb_bfd_session_up_events", "How often the session came Up.", sessionLabels, nil)
	downsMetric      = prometheus.NewDesc("metallb_bfd_session_down_events", "How often it left the state Up.", sessionLabels, nil)
	toldMetric       = prometheus.NewDesc("metallb_bfd_zebra_notifications", "Changes that were told to the routing engine.", sessionLabels, nil)
	discardedMetric  = prometheus.NewDesc("gantry_bfd_discarded_packets_total", "Packets that were not taken, by the rule of RFC 5880 section 6.8.6 and its like.", []string{"reason"}, nil)
)

var _ prometheus.Collector = (*Engine)(nil)

// Describe is part of prometheus.Collector; register the Engine to export its metrics.
func (e *Engine) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		upMetric, inputMetric, outputMetric, echoInputMetric, echoOutputMetric, upsMetric, downsMetric, toldMetric, discardedMetric,
	} {
		c <- d
	}
}

// Collect is the other part.
func (e *Engine) Collect(c chan<- prometheus.Metric) {
	type labels struct{ peer, vrf string }
	sums := map[labels]*Counters{}
	up := map[labels]float64{}
	for _, s := range e.Status() {
		at := labels{s.Label(), s.VRF}
		n, another := sums[at]
		if !another {
			n, up[at] = &Counters{}, 1
			sums[at] = n
		}
		n.add(s.Counters)
		if s.State != session.Up { // several sessions to one peer are up when all are
			up[at] = 0
		}
	}
	for at, n := range sums {
		c <- prometheus.MustNewConstMetric(upMetric, prometheus.GaugeValue, up[at], at.peer, at.vrf)
		for d, v := range map[*prometheus.Desc]uint64{
			inputMetric: n.ControlIn, outputMetric: n.ControlOut, echoInputMetric: n.EchoIn, echoOutputMetric: n.EchoOut,
			upsMetric: n.Ups, downsMetric: n.Downs, toldMetric: n.Events,
		} {
			c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), at.peer, at.vrf)
		}
	}
	for i, d := range session.Discards {
		n := float64(e.counted.discarded[i].Load())
		c <- prometheus.MustNewConstMetric(discardedMetric, prometheus.CounterValue, n, string(d))
	}
}

// add sums counters.
func (n *Counters) add(m Counters) {
	n.ControlIn += m.ControlIn
	n.ControlOut += m.ControlOut
	n.EchoIn += m.EchoIn
	n.EchoOut += m.EchoOut
	n.Ups += m.Ups
	n.Downs += m.Downs
	n.Events += m.Events
}
