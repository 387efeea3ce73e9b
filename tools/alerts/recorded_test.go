package alerts

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
)

// firingByRecording are the alerts that fire during each fault, of which testdata has the metrics.
// Other alerts are silent.
var firingByRecording = map[string][]string{
	"healthy":      nil,
	"no-endpoints": {"GantryServiceNotAnnounced"},
	"full-pool":    {"GantryServiceWithoutAddress", "MetalLBAddressPoolExhausted", "MetalLBAddressPoolUsage75Percent", "MetalLBAddressPoolUsage85Percent", "MetalLBAddressPoolUsage95Percent"},
	// The only address of a pool is the one that the host has.
	"foreign-host":    {"GantryForeignClaim", "GantryServiceNotAnnounced", "MetalLBAddressPoolExhausted", "MetalLBAddressPoolUsage75Percent", "MetalLBAddressPoolUsage85Percent", "MetalLBAddressPoolUsage95Percent"},
	"blocked-gossip":  {"GantryGossipBlocked"},
	"no-speaker":      {"GantrySpeakerDead"},
	"bfd-on-one-side": {"GantryBFDSessionDown"},
	"dead-router":     {"GantryServiceNotAnnounced", "MetalLBBGPSessionDown"},
	"faulty-object":   {"MetalLBStaleConfig"},
	"no-progress":     {"GantryControllerNoProgress"},
	"no-rights":       {"MetalLBConfigNotLoaded"},
	"no-controller":   {"GantryNoLeadingController"},
}

// The recorded series have the values of a healthy cluster until faultStart, and then those of the
// fault.
const (
	scrapeInterval = time.Minute
	faultStart     = 10 * time.Minute
	recordingEnd   = 25 * time.Minute
)

// recording is a scrape of all programs. The key of values is a series with its labels.
type recording struct {
	at     time.Time
	values map[string]float64
}

func readRecording(t *testing.T, name string) recording {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".prom"))
	if err != nil {
		t.Fatal(err)
	}
	r := recording{values: map[string]float64{}}
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		if strings.HasPrefix(line, "#") {
			seconds, err := strconv.ParseInt(regexp.MustCompile(`\d+`).FindString(line), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			r.at = time.Unix(seconds, 0)
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		if r.values[line[:i]], err = strconv.ParseFloat(line[i+1:], 64); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// newRecordedStorage returns series that start with the values of one recording and go on with
// those of another. A timestamp in a value is relative to the time of its recording, which is later
// by the given age.
func newRecordedStorage(t *testing.T, before, during recording, age time.Duration) storage.Queryable {
	t.Helper()
	keys := map[string]bool{}
	for _, r := range []recording{before, during} {
		for key := range r.values {
			keys[key] = true
		}
	}
	var series []string
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		text := key
		for _, phase := range []struct {
			of    recording
			count time.Duration
		}{{before, faultStart / scrapeInterval}, {during, (recordingEnd - faultStart) / scrapeInterval}} {
			value, exists := phase.of.values[key]
			if !exists {
				text += fmt.Sprintf(" _x%d", phase.count)
				continue
			}
			if strings.Contains(key, "_timestamp_seconds{") {
				value -= float64(phase.of.at.Unix()) + age.Seconds()
			}
			text += fmt.Sprintf(" %s+0x%d", strconv.FormatFloat(value, 'f', -1, 64), phase.count-1)
		}
		series = append(series, text)
	}
	return newStorage(t, series, scrapeInterval)
}

func firingAlertNames(t *testing.T, stored storage.Queryable, until time.Duration) []string {
	t.Helper()
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1_000_000, Timeout: time.Minute})
	firing := map[string]bool{}
	for _, rule := range readRules(t) {
		if len(firingAlerts(t, engine, stored, rule, scrapeInterval, until)) > 0 {
			firing[rule.Name] = true
		}
	}
	return slices.Sorted(maps.Keys(firing))
}

// TestAlertsFireOnRecordedFaults evaluates all alerts on the metrics of a real cluster, before and
// during each fault.
func TestAlertsFireOnRecordedFaults(t *testing.T) {
	healthy := readRecording(t, "healthy")
	fired := map[string]bool{
		"GantryWebhookCertificateExpires": true, "GantryGossipKeyOld": true, // TestAlertsFireOnAge
		"GantryControllerReadsAllServices": true, // no fault of a cluster makes the controller do that
	}
	for name, want := range firingByRecording {
		t.Run(name, func(t *testing.T) {
			stored := newRecordedStorage(t, healthy, readRecording(t, name), 0)
			if got := firingAlertNames(t, stored, faultStart-scrapeInterval); len(got) > 0 {
				t.Errorf("before the fault these alerts fire: %v", got)
			}
			if got := firingAlertNames(t, stored, recordingEnd-scrapeInterval); !slices.Equal(got, want) {
				t.Errorf("during the fault these alerts fire: %v, want %v", got, want)
			}
			for _, alert := range want {
				fired[alert] = true
			}
		})
	}
	for _, rule := range readRules(t) {
		if !fired[rule.Name] {
			t.Errorf("%s fires during no recorded fault", rule.Name)
		}
	}
}

// TestAlertsFireOnAge reads the metrics of the healthy cluster as if its webhook's certificate and
// its gossip key had not been replaced for more than a year.
func TestAlertsFireOnAge(t *testing.T) {
	healthy := readRecording(t, "healthy")
	stored := newRecordedStorage(t, healthy, healthy, 366*24*time.Hour)
	want := []string{"GantryGossipKeyOld", "GantryWebhookCertificateExpires"}
	if got := firingAlertNames(t, stored, recordingEnd-scrapeInterval); !slices.Equal(got, want) {
		t.Errorf("these alerts fire: %v, want %v", got, want)
	}
}

// emptyPanelQueries are queries of the dashboards that have no result in the recordings, and why.
var emptyPanelQueries = map[string]string{
	`sum by (reason) (gantry_controller_withheld_addresses{namespace="$namespace"})`: "no address was released or quarantined",
}

// TestDashboardQueriesFindRecordedMetrics evaluates each query of the dashboards on the recorded
// metrics. A query without a result leaves its panel empty.
func TestDashboardQueriesFindRecordedMetrics(t *testing.T) {
	healthy := readRecording(t, "healthy")
	pods := map[string]bool{}
	var stored []storage.Queryable
	for name := range firingByRecording {
		during := readRecording(t, name)
		stored = append(stored, newRecordedStorage(t, healthy, during, 0))
		for key := range during.values {
			if m := regexp.MustCompile(`pod="([^"]+)"`).FindStringSubmatch(key); m != nil {
				pods[m[1]] = true
			}
		}
	}
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1_000_000, Timeout: time.Minute})
	hasResult := func(expression string) bool {
		for pod := range pods {
			expanded := strings.NewReplacer("$namespace", "metallb-system", "$pod", pod).Replace(expression)
			for _, s := range stored {
				query, err := engine.NewInstantQuery(t.Context(), s, nil, expanded, time.Unix(0, 0).Add(recordingEnd-scrapeInterval))
				if err != nil {
					t.Fatalf("%s: %v", expanded, err)
				}
				vector, err := query.Exec(t.Context()).Vector()
				query.Close()
				if err != nil {
					t.Fatalf("%s: %v", expanded, err)
				}
				if len(vector) > 0 {
					return true
				}
			}
			if expanded == expression { // names no Pod
				return false
			}
		}
		return false
	}
	for _, expression := range readPanelQueries(t) {
		why := emptyPanelQueries[expression]
		switch has := hasResult(expression); {
		case !has && why == "":
			t.Errorf("%s has no result", expression)
		case has && why != "":
			t.Errorf("%s has a result, and emptyPanelQueries says: %s", expression, why)
		}
	}
}

func readPanelQueries(t *testing.T) []string {
	t.Helper()
	queries := map[string]bool{}
	for path, text := range readDashboards(t) {
		var board struct {
			Panels []struct {
				Targets []struct {
					Expression string `json:"expr"`
				} `json:"targets"`
			} `json:"panels"`
		}
		if err := json.Unmarshal(text, &board); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, p := range board.Panels {
			for _, target := range p.Targets {
				queries[target.Expression] = true
			}
		}
	}
	if len(queries) < 40 {
		t.Fatalf("the dashboards have %d queries: this test looks in the wrong place", len(queries))
	}
	return slices.Sorted(maps.Keys(queries))
}

// readDashboards returns the text of each dashboard by its path.
func readDashboards(t *testing.T) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(alertsDirectory, "dashboards", "*.json"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d dashboards: %v", len(paths), err)
	}
	out := map[string][]byte{}
	for _, path := range paths {
		if out[path], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	return out
}
