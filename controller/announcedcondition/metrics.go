package announcedcondition

import "github.com/prometheus/client_golang/prometheus"

var (
	notAnnouncedMetric = prometheus.NewDesc("gantry_services_not_announced", "Services of which an address is not announced, by the reason in their condition. Only the leader has them.", []string{"reason"}, nil)
	noAddressMetric    = prometheus.NewDesc("gantry_services_without_address", "Services that get no address, by the reason in their condition. Only the leader has them.", []string{"reason"}, nil)
)

var _ prometheus.Collector = (*ConditionWriter)(nil)

// Describe is part of prometheus.Collector.
func (r *ConditionWriter) Describe(c chan<- *prometheus.Desc) {
	c <- notAnnouncedMetric
	c <- noAddressMetric
}

// Collect is part of prometheus.Collector.
func (r *ConditionWriter) Collect(c chan<- prometheus.Metric) {
	for d, m := range map[*prometheus.Desc]*faultMemory{notAnnouncedMetric: r.unannouncedFaults, noAddressMetric: r.missingAddressFaults} {
		for reason, n := range m.countByReason() {
			c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), reason)
		}
	}
}
