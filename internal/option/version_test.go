package option

import (
	"runtime"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestBuildInfoMetricHasTheVersions(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(BuildInfoMetric{}); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "gantry_build_info" {
		t.Fatalf("%v, %v", families, err)
	}
	labels := map[string]string{}
	for _, l := range families[0].Metric[0].Label {
		labels[l.GetName()] = l.GetValue()
	}
	if labels["version"] != ModuleVersion() || labels["goversion"] != runtime.Version() {
		t.Errorf("the labels are %v", labels)
	}
}
