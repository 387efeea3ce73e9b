package policy

import (
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// libraryMetrics are metrics in alerts that a library exports, with their labels.
var libraryMetrics = map[string][]string{"leader_election_master_status": {"name"}}

// prometheusTargetLabels are the labels that Prometheus adds to each metric of a Pod.
var prometheusTargetLabels = []string{"namespace", "pod"}

// promQLWords are the words of an expression that are neither a metric nor a label.
var promQLWords = map[string]bool{"and": true, "or": true, "unless": true, "by": true, "without": true, "on": true, "sum": true, "max": true, "min": true, "increase": true, "rate": true, "absent": true, "time": true}

// TestAlertsUseExistingMetrics compares the expressions and texts of the alerts with the metrics
// and labels in the code. An alert for a metric that does not exist never fires.
func TestAlertsUseExistingMetrics(t *testing.T) {
	metrics := labelsByDeclaredMetric(t)
	for name, labels := range libraryMetrics {
		metrics[name] = labels
	}
	alerts := readAlerts(t)
	for _, a := range alerts {
		if a.For == "" || a.Labels["severity"] == "" || !strings.Contains(a.Annotations["runbook_url"], "/docs/troubleshooting.md#") {
			t.Errorf("alert %s: give it a time for which it has to hold, a severity, and a runbook_url into docs/troubleshooting.md", a.Name)
		}
		known := map[string]bool{}
		for _, l := range prometheusTargetLabels {
			known[l] = true
		}
		for l := range a.Labels {
			known[l] = true
		}
		words := regexp.MustCompile(`"[^"]*"|\[[^\]]*\]`).ReplaceAllString(a.Expression, "")
		var others []string
		for _, w := range regexp.MustCompile(`[A-Za-z_][A-Za-z0-9_]*`).FindAllString(words, -1) {
			labels, isMetric := metrics[w]
			switch {
			case isMetric:
				for _, l := range labels {
					known[l] = true
				}
			case !promQLWords[w]:
				others = append(others, w)
			}
		}
		for _, w := range others {
			if !known[w] {
				t.Errorf("alert %s: %s in %q is neither a metric of the programs nor a label of one", a.Name, w, a.Expression)
			}
		}
		for _, m := range regexp.MustCompile(`\$labels\.([a-z_]+)`).FindAllStringSubmatch(a.Annotations["summary"]+a.Annotations["description"], -1) {
			if !known[m[1]] {
				t.Errorf("alert %s: its text has the label %s, which %q does not have", a.Name, m[1], a.Expression)
			}
		}
	}
}

// prometheusAlertRule is a rule of Prometheus.
type prometheusAlertRule struct {
	Name        string            `json:"alert"`
	Expression  string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

func readAlerts(t *testing.T) []prometheusAlertRule {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repositoryRoot, "config", "components", "prometheus", "rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Spec struct {
			Groups []struct {
				Rules []prometheusAlertRule `json:"rules"`
			} `json:"groups"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal(text, &rules); err != nil {
		t.Fatal(err)
	}
	var out []prometheusAlertRule
	for _, g := range rules.Spec.Groups {
		out = append(out, g.Rules...)
	}
	if len(out) == 0 {
		t.Fatal("there is no alert: this test looks in the wrong place")
	}
	return out
}

// labelsByDeclaredMetric returns the names of the metrics in the code, each with its possible
// labels: the words of its declaration, and those of the lists of labels in its package.
func labelsByDeclaredMetric(t *testing.T) map[string][]string {
	t.Helper()
	isName := regexp.MustCompile(`^(metallb|gantry)_[a-z0-9_]+$`)
	isWord := regexp.MustCompile(`^[a-z0-9_]+$`)
	out, wordsByDirectory, namesByDirectory := map[string][]string{}, map[string][]string{}, map[string][]string{}
	for _, f := range nonTestSourceFiles(t) {
		if !slices.Contains(f.importPaths(), "github.com/prometheus/client_golang/prometheus") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			switch text, _ := strconv.Unquote(lit.Value); {
			case isName.MatchString(text):
				namesByDirectory[f.dir] = append(namesByDirectory[f.dir], text)
			case isWord.MatchString(text):
				wordsByDirectory[f.dir] = append(wordsByDirectory[f.dir], text)
			}
			return true
		})
	}
	for dir, names := range namesByDirectory {
		for _, name := range names {
			out[name] = wordsByDirectory[dir]
			if strings.HasSuffix(name, "_") { // the beginning of several names
				for _, w := range wordsByDirectory[dir] {
					out[name+w] = wordsByDirectory[dir]
				}
			}
		}
	}
	return out
}

// TestAlertsAreInTheTroubleshootingPage compares the table of alerts with the alerts: their names,
// their severities, and the sections to which they lead.
func TestAlertsAreInTheTroubleshootingPage(t *testing.T) {
	page := readRepositoryFile(t, "docs", "troubleshooting.md")
	rows := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z]\\w+)` \\| (\\w+) \\| \\[.*\\]\\((#[a-z0-9-]+)\\) \\|$").FindAllStringSubmatch(page, -1) {
		rows[m[1]+" "+m[2]+" "+m[3]] = true
	}
	named := map[string]bool{}
	for _, a := range readAlerts(t) {
		_, section, _ := strings.Cut(a.Annotations["runbook_url"], "#")
		row := a.Name + " " + a.Labels["severity"] + " #" + section
		named[row] = true
		if !rows[row] {
			t.Errorf("the table of alerts in docs/troubleshooting.md lacks %s", row)
		}
	}
	for row := range rows {
		if !named[row] {
			t.Errorf("docs/troubleshooting.md has a row for %s, and no alert is so", row)
		}
	}
}

// TestDocumentedMetricsExist finds metrics in the pages that no program exports.
func TestDocumentedMetricsExist(t *testing.T) {
	metrics := labelsByDeclaredMetric(t)
	pages, err := filepath.Glob(filepath.Join(repositoryRoot, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, page := range append(pages, filepath.Join(repositoryRoot, "README.md")) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("`((?:metallb|gantry)_[a-z0-9_]+)(\\*?)[`{]").FindAllStringSubmatch(string(text), -1) {
			count++
			if _, exists := metrics[m[1]]; !exists && m[2] == "" && !strings.HasSuffix(m[1], "_") {
				t.Errorf("%s names the metric %s, which no program exports", page, m[1])
			}
		}
	}
	if count < 60 {
		t.Errorf("the pages name %d metrics: this test looks in the wrong place", count)
	}
}

// TestAlertTestsUseExistingSeries compares the series in the tests of the alerts with the metrics
// and labels in the code: a test with other series than the programs export says nothing.
func TestAlertTestsUseExistingSeries(t *testing.T) {
	metrics := labelsByDeclaredMetric(t)
	for name, labels := range libraryMetrics {
		metrics[name] = labels
	}
	series := regexp.MustCompile(`series: '([a-z0-9_]+)\{([^}]*)\}'`).FindAllStringSubmatch(readRepositoryFile(t, "config", "components", "prometheus", "tests.yaml"), -1)
	if len(series) < 20 {
		t.Fatalf("the tests have %d series: this test looks in the wrong place", len(series))
	}
	for _, s := range series {
		labels, exists := metrics[s[1]]
		if !exists {
			t.Errorf("no program exports %s", s[1])
		}
		for _, l := range regexp.MustCompile(`([a-z]+)="`).FindAllStringSubmatch(s[2], -1) {
			if !slices.Contains(labels, l[1]) && !slices.Contains(prometheusTargetLabels, l[1]) {
				t.Errorf("%s has no label %s", s[1], l[1])
			}
		}
	}
}
