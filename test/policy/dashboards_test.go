package policy

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// dashboardPanel is what these tests read of a panel of Grafana.
type dashboardPanel struct {
	ID      int                      `json:"id"`
	Type    string                   `json:"type"`
	Title   string                   `json:"title"`
	GridPos struct{ X, Y, W, H int } `json:"gridPos"`
	Targets []struct {
		Expression string `json:"expr"`
	} `json:"targets"`
}

// processMetrics are metrics on dashboards that the Go library of Prometheus exports.
var processMetrics = map[string][]string{"process_resident_memory_bytes": nil, "process_cpu_seconds_total": nil}

// TestDashboardsUseExistingMetrics compares the queries of the dashboards with the metrics and
// labels in the code. A panel for a metric that does not exist stays empty.
func TestDashboardsUseExistingMetrics(t *testing.T) {
	metrics := labelsByDeclaredMetric(t)
	for _, others := range []map[string][]string{libraryMetrics, processMetrics} {
		for name, labels := range others {
			metrics[name] = labels
		}
	}
	paths, err := filepath.Glob(filepath.Join(repositoryRoot, "config", "components", "prometheus", "dashboards", "*.json"))
	if err != nil || len(paths) != 2 {
		t.Fatalf("%d dashboards, %v", len(paths), err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var board struct {
			UID    string           `json:"uid"`
			Panels []dashboardPanel `json:"panels"`
		}
		if err := json.Unmarshal(text, &board); err != nil || board.UID == "" || len(board.Panels) < 10 {
			t.Fatalf("%s: %v, %d panels", path, err, len(board.Panels))
		}
		for i, p := range board.Panels {
			if p.Type != "row" && len(p.Targets) == 0 {
				t.Errorf("%s: the panel %q has no query", path, p.Title)
			}
			if p.GridPos.X+p.GridPos.W > 24 {
				t.Errorf("%s: the panel %q is wider than the page", path, p.Title)
			}
			for _, other := range board.Panels[:i] {
				if p.ID == other.ID || overlapOnPage(p, other) {
					t.Errorf("%s: the panels %q and %q have one ID or one place", path, p.Title, other.Title)
				}
			}
			for _, target := range p.Targets {
				checkDashboardQuery(t, metrics, p.Title, target.Expression)
			}
		}
	}
}

func overlapOnPage(p, other dashboardPanel) bool {
	a, b := p.GridPos, other.GridPos
	return a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H
}

// checkDashboardQuery checks that the words of a query are metrics, labels of these metrics, or
// words of PromQL.
func checkDashboardQuery(t *testing.T, metrics map[string][]string, panel, query string) {
	t.Helper()
	known := map[string]bool{"le": true, "histogram_quantile": true, "count": true, "vector": true}
	for _, l := range prometheusTargetLabels {
		known[l] = true
	}
	words := regexp.MustCompile(`[A-Za-z_][A-Za-z0-9_]*`).FindAllString(regexp.MustCompile(`"[^"]*"|\[[^\]]*\]`).ReplaceAllString(query, ""), -1)
	count := 0
	for _, w := range words {
		if labels, isMetric := metrics[strings.TrimSuffix(w, "_bucket")]; isMetric {
			count++
			known[w] = true
			for _, l := range labels {
				known[l] = true
			}
		}
	}
	if count == 0 {
		t.Errorf("the panel %q has a query without a metric of the programs: %s", panel, query)
	}
	for _, w := range words {
		if !known[w] && !promQLWords[w] {
			t.Errorf("the panel %q: %s in %q is neither a metric of the programs nor a label of one", panel, w, query)
		}
	}
}
