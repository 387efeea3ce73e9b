package option

import (
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
)

// ModuleVersion returns the version of the module. It includes the revision if the build had a
// repository.
func ModuleVersion() string {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	return b.Main.Version
}

var buildInfoMetric = prometheus.NewDesc("gantry_build_info", "1, with the version of the program and of Go as labels.", []string{"version", "goversion"}, nil)

// BuildInfoMetric exports which version of the program runs. Register it.
type BuildInfoMetric struct{}

var _ prometheus.Collector = BuildInfoMetric{}

// Describe is part of prometheus.Collector.
func (BuildInfoMetric) Describe(c chan<- *prometheus.Desc) { c <- buildInfoMetric }

// Collect is part of prometheus.Collector.
func (BuildInfoMetric) Collect(c chan<- prometheus.Metric) {
	c <- prometheus.MustNewConstMetric(buildInfoMetric, prometheus.GaugeValue, 1, ModuleVersion(), runtime.Version())
}
