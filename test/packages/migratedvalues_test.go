package packages

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/chartvalues"
)

// TestMigratedValuesFilesRender: values files of three shapes, as users of MetalLB's chart have
// them, are refused by the chart as they are. What kubectl gantry migrate makes of them is
// rendered.
func TestMigratedValuesFilesRender(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	for name, wants := range map[string][]string{
		"metallb-0.13-podmonitor.yaml":     {"kind: PodMonitor", "interval: 15s", "release: monitoring", "alert: MetalLBAddressPoolUsage80Percent", "name: GANTRY_GOSSIP_BIND_PORT, value: \"7947\""},
		"metallb-0.15-servicemonitor.yaml": {"kind: ServiceMonitor", "namespace: observability", "GANTRY_LOAD_BALANCER_CLASS", "kind: ValidatingWebhookConfiguration", "team: network", "secretName: controller-tls", "secretName: speaker-tls"},
		"metallb-0.16-subchart.yaml":       {"kind: NetworkPolicy", "port: 6444", "GANTRY_IGNORE_EXCLUDE_LB"},
	} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		checkRefusedWithCommand(t, name, string(text))
		translated, err := chartvalues.TranslateValues(text)
		if err != nil {
			t.Fatal(err)
		}
		if ofSubchart, isSubchart := translated.Values["gantry"].(map[string]any); isSubchart {
			translated.Values = ofSubchart
		}
		file, err := chartvalues.FormatAsValuesFile(translated)
		if err != nil {
			t.Fatal(err)
		}
		rendered, err := RenderHelm(t.Context(), "metallb-system", file)
		if err != nil {
			t.Errorf("%s becomes\n%s\nwhich is refused: %v", name, file, err)
			continue
		}
		for _, want := range wants {
			if !strings.Contains(rendered, want) {
				t.Errorf("%s becomes\n%s\nand what is rendered lacks %q", name, file, want)
			}
		}
	}
}

// checkRefusedWithCommand checks that the chart refuses a values file of MetalLB's chart, and
// names the command that translates it.
func checkRefusedWithCommand(t *testing.T, name, values string) {
	t.Helper()
	_, err := RenderHelm(t.Context(), "metallb-system", values)
	if err == nil || !strings.Contains(err.Error(), "kubectl gantry migrate --values FILE") && !strings.Contains(err.Error(), "'metallb'") {
		t.Errorf("%s as it is gives the error %v, want one that names the command", name, err)
	}
}
