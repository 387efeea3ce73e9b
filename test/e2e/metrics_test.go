package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// documentedMetric is a row of docs/reference-metrics.md.
type documentedMetric struct {
	kind   string
	labels []string
}

func readDocumentedMetrics(t *testing.T) map[string]documentedMetric {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(lab.RepositoryRoot(), "docs", "reference-metrics.md"))
	failOnError(t, err)
	out := map[string]documentedMetric{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\| ([a-z]+) \\| ([^|]*) \\|").FindAllStringSubmatch(string(text), -1) {
		var labels []string
		for _, l := range regexp.MustCompile("`([a-z]+)`").FindAllStringSubmatch(m[3], -1) {
			labels = append(labels, l[1])
		}
		slices.Sort(labels)
		out[m[1]] = documentedMetric{m[2], labels}
	}
	if len(out) < 50 {
		t.Fatalf("docs/reference-metrics.md has %d metrics: this test looks in the wrong place", len(out))
	}
	return out
}

// checkScrape compares the metrics of a program with their documentation: type and labels. It
// returns the names of those that were seen.
func checkScrape(t *testing.T, program, scrape string, documented map[string]documentedMetric) []string {
	t.Helper()
	var seen []string
	for _, m := range regexp.MustCompile(`(?m)^# TYPE ((?:metallb|gantry)_[a-z0-9_]+) ([a-z]+)$`).FindAllStringSubmatch(scrape, -1) {
		row, exists := documented[m[1]]
		if !exists || row.kind != m[2] {
			t.Errorf("the %s exports %s as a %s, and docs/reference-metrics.md says %q", program, m[1], m[2], row.kind)
			continue
		}
		seen = append(seen, m[1])
		series := regexp.MustCompile(`(?m)^` + m[1] + `(?:\{(.*)\})? `).FindStringSubmatch(scrape)
		if series == nil { // a histogram has series with other names
			continue
		}
		var labels []string
		for _, l := range regexp.MustCompile(`([a-z]+)="`).FindAllStringSubmatch(series[1], -1) {
			labels = append(labels, l[1])
		}
		slices.Sort(labels)
		if !slices.Equal(labels, row.labels) {
			t.Errorf("the %s exports %s with the labels %v, and docs/reference-metrics.md has %v", program, m[1], labels, row.labels)
		}
	}
	return seen
}

// TestScrapesMatchReference compares what both programs export with docs/reference-metrics.md, from
// which the queries of alerts and dashboards take their names.
func TestScrapesMatchReference(t *testing.T) {
	t.Parallel()
	ctx, s := startBGPTestCluster(t)
	documented := readDocumentedMetrics(t)
	config, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig())
	failOnError(t, err)
	speaker, err := s.FetchSpeakerMetricsUntilSuccess(ctx, "node1")
	failOnError(t, err)
	seen := checkScrape(t, "speaker", speaker, documented)
	failOnError(t, cluster.AwaitNoError(ctx, "the metrics of the leading controller", func(ctx context.Context) error {
		pods, err := s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "get", "pods", "-l", "app.kubernetes.io/component=controller", "-o", "jsonpath={.items[*].status.podIP}")
		if err != nil {
			return err
		}
		for _, ip := range strings.Fields(pods) {
			text, err := s.FetchMetrics(ctx, "client", ip+":7472", config.BearerToken)
			if err == nil && strings.Contains(text, "\nmetallb_allocator_addresses_total{") {
				seen = append(seen, checkScrape(t, "controller", text, documented)...)
				return nil
			}
		}
		return fmt.Errorf("no controller exports the metrics of pools: %q", pods)
	}))
	for _, name := range []string{"metallb_bgp_session_up", "metallb_speaker_announced", "gantry_build_info", "gantry_speaker_held_addresses", "gantry_dead_speakers", "gantry_controller_assignment_seconds", "gantry_gossip_key_changed_timestamp_seconds"} {
		if !slices.Contains(seen, name) {
			t.Errorf("neither program exports %s", name)
		}
	}
	if len(seen) < 40 {
		t.Errorf("the programs export %d metrics: %v", len(seen), seen)
	}
}
