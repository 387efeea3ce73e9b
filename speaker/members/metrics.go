package members

import "github.com/prometheus/client_golang/prometheus"

// droppedMessagesMetric counts what was lost because a queue was full. The label has four values.
var droppedMessagesMetric = prometheus.NewDesc("gantry_gossip_dropped_total",
	"Messages and states that were lost because a queue was full: messages to others (sent), claims for all others (claims), messages of others (received), and full states of others (states).",
	[]string{"queue"}, nil)

var _ prometheus.Collector = (*Members)(nil)

// Describe is part of prometheus.Collector.
func (m *Members) Describe(c chan<- *prometheus.Desc) { c <- droppedMessagesMetric }

// Collect is part of prometheus.Collector.
func (m *Members) Collect(c chan<- prometheus.Metric) {
	for queue, n := range map[string]uint64{
		"sent": m.outgoingUrgentMessages.DroppedCount(), "claims": m.outgoingNormalMessages.DroppedCount() + m.outgoingBulkMessages.DroppedCount(), "states": m.receivedFullStates.DroppedCount(),
		"received": m.urgentReceivedMessages.DroppedCount() + m.bulkReceivedMessages.DroppedCount(),
	} {
		c <- prometheus.MustNewConstMetric(droppedMessagesMetric, prometheus.CounterValue, float64(n), queue)
	}
}
