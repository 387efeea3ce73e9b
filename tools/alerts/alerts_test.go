// Package alerts runs the unit tests of the alerts, which are in the format of promtool, by the
// engine of Prometheus itself. It also evaluates alerts and dashboards on metrics of a real cluster.
package alerts

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"sigs.k8s.io/yaml"
)

const alertsDirectory = "../../config/components/prometheus"

// alertRule is a rule of the PrometheusRule object.
type alertRule struct {
	Name        string            `json:"alert"`
	Expression  string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// alertTests is the format of promtool's unit tests, as far as it is used here.
type alertTests struct {
	RuleFiles          []string `json:"rule_files"`
	EvaluationInterval string   `json:"evaluation_interval"`
	Tests              []struct {
		Name        string `json:"name"`
		Interval    string `json:"interval"`
		InputSeries []struct {
			Series string `json:"series"`
			Values string `json:"values"`
		} `json:"input_series"`
		AlertRuleTests []struct {
			EvalTime  string `json:"eval_time"`
			AlertName string `json:"alertname"`
			Expected  []struct {
				Labels map[string]string `json:"exp_labels"`
			} `json:"exp_alerts"`
		} `json:"alert_rule_test"`
	} `json:"tests"`
}

func readYAML(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(alertsDirectory, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

func readRules(t *testing.T) []alertRule {
	t.Helper()
	var object struct {
		Spec struct {
			Groups []struct {
				Rules []alertRule `json:"rules"`
			} `json:"groups"`
		} `json:"spec"`
	}
	readYAML(t, "rules.yaml", &object)
	var out []alertRule
	for _, g := range object.Spec.Groups {
		out = append(out, g.Rules...)
	}
	return out
}

func parseDuration(t *testing.T, text string) time.Duration {
	t.Helper()
	if text == "" {
		return 0
	}
	d, err := model.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(d)
}

// firingAlerts evaluates a rule at every step until the given time, and returns the labels of the
// alerts that fire then: those whose expression held for the rule's time without a pause.
func firingAlerts(t *testing.T, engine *promql.Engine, queryable storage.Queryable, rule alertRule, step, until time.Duration) []string {
	t.Helper()
	heldSince := map[string]time.Duration{}
	for at := time.Duration(0); at <= until; at += step {
		query, err := engine.NewInstantQuery(t.Context(), queryable, nil, rule.Expression, time.Unix(0, 0).Add(at))
		if err != nil {
			t.Fatalf("%s: %v", rule.Name, err)
		}
		vector, err := query.Exec(t.Context()).Vector()
		if err != nil {
			t.Fatalf("%s: %v", rule.Name, err)
		}
		now := map[string]time.Duration{}
		for _, sample := range vector {
			labels := map[string]string{}
			for name, value := range sample.Metric.Map() {
				if name != "__name__" {
					labels[name] = value
				}
			}
			maps.Copy(labels, rule.Labels)
			key := describeLabels(labels)
			now[key] = at
			if since, held := heldSince[key]; held {
				now[key] = since
			}
		}
		heldSince = now
		query.Close()
	}
	var out []string
	for labels, since := range heldSince {
		if until-since >= parseDuration(t, rule.For) {
			out = append(out, labels)
		}
	}
	slices.Sort(out)
	return out
}

func describeLabels(labels map[string]string) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, fmt.Sprintf("%s=%q", name, labels[name]))
	}
	return strings.Join(out, ", ")
}

// TestAlertsFireAsTheirTestsSay runs tests.yaml. Each alert has to fire in one of the tests, and to
// be silent in another one.
func TestAlertsFireAsTheirTestsSay(t *testing.T) {
	rules := readRules(t)
	var file alertTests
	readYAML(t, "tests.yaml", &file)
	step := parseDuration(t, file.EvaluationInterval)
	fires, isSilent := map[string]bool{}, map[string]bool{}
	for _, test := range file.Tests {
		t.Run(test.Name, func(t *testing.T) {
			var series []string
			for _, in := range test.InputSeries {
				series = append(series, in.Series+" "+in.Values)
			}
			stored := newStorage(t, series, parseDuration(t, test.Interval))
			engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 100_000, Timeout: time.Minute})
			for _, want := range test.AlertRuleTests {
				var got, expected []string
				for _, rule := range rules {
					if rule.Name == want.AlertName {
						got = append(got, firingAlerts(t, engine, stored, rule, step, parseDuration(t, want.EvalTime))...)
					}
				}
				for _, e := range want.Expected {
					expected = append(expected, describeLabels(e.Labels))
				}
				slices.Sort(got)
				slices.Sort(expected)
				if !slices.Equal(got, expected) {
					t.Errorf("%s at %s fires with\n%s\nwant\n%s", want.AlertName, want.EvalTime, strings.Join(got, "\n"), strings.Join(expected, "\n"))
				}
				fires[want.AlertName] = fires[want.AlertName] || len(expected) > 0
				isSilent[want.AlertName] = isSilent[want.AlertName] || len(expected) == 0
			}
		})
	}
	for _, rule := range rules {
		if !fires[rule.Name] || !isSilent[rule.Name] {
			t.Errorf("%s: tests.yaml has a test in which it fires: %v, and one in which it is silent: %v", rule.Name, fires[rule.Name], isSilent[rule.Name])
		}
	}
}
