package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// checkHelmErrorHas checks that the error is there, and has all of the texts.
func checkHelmErrorHas(t *testing.T, values string, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: the chart is rendered, want an error", values)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: the error lacks %q:\n%v", values, w, err)
		}
	}
}

// TestValuesThatCannotWorkAreRefused: Helm says what to do before anything is installed.
func TestValuesThatCannotWorkAreRefused(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	for values, want := range map[string]string{
		`{controller: {serviceAccount: {name: one}}, speaker: {serviceAccount: {name: one}}}`: "the same service account one: set another controller.serviceAccount.name",
		`{controller: {serviceAccount: {name: gantry-speaker}}}`:                              "the same service account gantry-speaker",
		`{prometheus: {enabled: true}, controller: {ports: {metrics: 0}}}`:                    "controller.ports.metrics is 0, so Prometheus cannot scrape the controller",
		`{prometheus: {scrapeAnnotations: true}, speaker: {ports: {metrics: 0}}}`:             "speaker.ports.metrics is 0, so Prometheus cannot scrape the speaker",
		`image: {repository: gantry-lb/gantry}`:                                               "--set image.repository=registry.example/gantry",
	} {
		_, err := RenderHelm(t.Context(), "metallb-system", values)
		checkHelmErrorHas(t, values, err, want)
	}
}

// TestValuesOfEarlierChartAreRefusedWithCure: with --reuse-values, Helm takes all defaults from the
// chart that is installed, as if the new chart had the values.yaml of that chart.
func TestValuesOfEarlierChartAreRefusedWithCure(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	defaults, err := os.ReadFile(filepath.Join(extractEarlierChart(t), "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	chart := filepath.Join(t.TempDir(), "gantry")
	if out, err := exec.CommandContext(t.Context(), "cp", "-RL", filepath.Join(RepositoryRoot(), "charts", "gantry"), chart).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(chart, "values.yaml"), defaults, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, values := range []string{"{}", "{webhook: {enabled: true}, prometheus: {enabled: true}}", "image: {repository: registry.example/gantry}"} {
		_, err := runProgram(t.Context(), values, "helm", "template", "gantry", chart, "--values", "-")
		checkHelmErrorHas(t, values, err, "controller.serviceAccount", "metrics", "--reset-then-reuse-values", "--set image.repository=registry.example/gantry")
	}
}

// TestEveryMissingGroupOfValuesIsNamed removes each group of values, as if the chart that is
// installed had no such group.
func TestEveryMissingGroupOfValuesIsNamed(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	text, err := os.ReadFile(filepath.Join(RepositoryRoot(), "charts", "gantry", "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var defaults map[string]any
	if err := yaml.UnmarshalStrict(text, &defaults); err != nil {
		t.Fatal(err)
	}
	tested := 0
	for name, group := range defaults {
		groups := []string{name}
		m, isGroup := group.(map[string]any)
		if !isGroup || len(m) == 0 {
			continue
		}
		for _, inner := range []string{"serviceAccount", "ports", "kubeProxy", "gossip", "layer2", "continuity", "rbac", "rules"} {
			if m[inner] != nil {
				groups = append(groups, name+"."+inner)
			}
		}
		for _, path := range groups {
			values := strings.ReplaceAll(path, ".", ": {") + ": null" + strings.Repeat("}", strings.Count(path, "."))
			_, err := RenderHelm(t.Context(), "metallb-system", values)
			checkHelmErrorHas(t, values, err, "these values are missing: "+path, "--reset-then-reuse-values")
			tested++
		}
	}
	if tested < 20 {
		t.Errorf("%d groups of values are tested: this test looks in the wrong place", tested)
	}
}
