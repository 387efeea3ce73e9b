package chartvalues

import (
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// translateText translates a values file that must be readable.
func translateText(t *testing.T, text string) *Translation {
	t.Helper()
	out, err := TranslateValues([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// formatNewValues writes the new values in one line for each, sorted.
func formatNewValues(t *testing.T, text string) string {
	t.Helper()
	out, err := yaml.Marshal(translateText(t, text).Values)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestValuesGetTheirNamesHere has values of MetalLB's charts, and what they become.
func TestValuesGetTheirNamesHere(t *testing.T) {
	for _, c := range []struct{ from, to string }{
		{`{loadBalancerClass: example.com/lb, imagePullSecrets: [{name: registry}]}`, `{loadBalancerClass: example.com/lb, imagePullSecrets: [{name: registry}]}`},
		{`{speaker: {memberlist: {mlBindPort: 7947, mlBindAddrOverride: 192.0.2.1}}}`, `{speaker: {gossip: {port: 7947, address: 192.0.2.1}}}`},
		{`{controller: {securityContext: {runAsUser: 1000}}}`, `{controller: {podSecurityContext: {runAsUser: 1000}}}`},
		{`{speaker: {labels: {team: net}, podAnnotations: {a: b}}}`, `{speaker: {labels: {team: net}, podLabels: {team: net}, podAnnotations: {a: b}}}`},
		{`{controller: {livenessProbe: {enabled: false, periodSeconds: 30}}}`, `{controller: {livenessProbe: null}}`},
		{`{controller: {livenessProbe: {port: 18080, timeoutSeconds: 5}}}`, `{controller: {ports: {health: 18080}, livenessProbe: {timeoutSeconds: 5}}}`},
		{`{speaker: {tolerations: [{key: a, operator: Exists}]}}`, `{speaker: {tolerations: [{key: node-role.kubernetes.io/master, effect: NoSchedule, operator: Exists}, {key: node-role.kubernetes.io/control-plane, effect: NoSchedule, operator: Exists}, {key: a, operator: Exists}]}}`},
		{`{speaker: {tolerateMaster: false}}`, `{speaker: {tolerations: []}}`},
		{`{speaker: {excludeInterfaces: {enabled: false}}}`, `{speaker: {excludedInterfaces: ["^$"]}}`},
		{`{controller: {webhookMode: enabled}, crds: {validationFailurePolicy: Ignore}}`, `{webhook: {enabled: true, failurePolicy: Ignore}}`},
		{`{controller: {serviceAccount: {create: false, name: mine}}, speaker: {serviceAccount: {name: other}}}`, `{controller: {serviceAccount: {create: false, name: mine}}}`},
		{`{prometheus: {metricsPort: 9999}}`, `{controller: {ports: {metrics: 9999}}, speaker: {ports: {metrics: 9999}}}`},
		{`{prometheus: {metricsPort: 7999, secureMetricsPort: 9999}}`, `{controller: {ports: {metrics: 9999}}, speaker: {ports: {metrics: 9999}}}`},
		{`{prometheus: {serviceAccount: p, namespace: n, serviceMonitor: {enabled: true, interval: 30s, speaker: {additionalLabels: {a: b}}, controller: {additionalLabels: {c: d}}}}}`,
			`{prometheus: {enabled: true, interval: 30s, labels: {a: b, c: d}, rbac: {create: true, serviceAccountName: p, serviceAccountNamespace: n}, rules: {enabled: false}}}`},
		{`{prometheus: {podMonitor: {enabled: true}}}`, `{prometheus: {enabled: true, podMonitors: true, rules: {enabled: false}}, metrics: {protocol: http}}`},
		{`{prometheus: {prometheusRule: {enabled: true, staleConfig: {enabled: false}, addressPoolUsage: {excludePools: test-.*, thresholds: [{percent: 80, labels: {severity: info}}]}}}}`,
			`{prometheus: {enabled: true, rules: {enabled: true, excludePools: [test-.*], alerts: {MetalLBStaleConfig: {enabled: false}, MetalLBAddressPoolUsage75Percent: {threshold: 80, severity: info}, MetalLBAddressPoolUsage85Percent: {enabled: false}, MetalLBAddressPoolUsage95Percent: {enabled: false}}}}}`},
		{`{networkpolicies: {enabled: true, apiPort: 6444}}`, `{networkPolicies: {enabled: true, apiServerPorts: [443, 6444]}}`},
		{`{fullnameOverride: metallb, speaker: {frr: {enabled: true, image: {tag: 9.1.0}}}}`, `{}`},
		{`{global: {a: b}, metallb: {speaker: {logLevel: debug}}}`, `{gantry: {speaker: {logLevel: debug}}}`},
	} {
		var want any
		if err := yaml.UnmarshalStrict([]byte(c.to), &want); err != nil {
			t.Fatal(err)
		}
		wantText, err := yaml.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if got := formatNewValues(t, c.from); got != string(wantText) {
			t.Errorf("%s becomes\n%swant\n%s", c.from, got, wantText)
		}
	}
}

// valuesWithoutCounterpart are values of MetalLB's charts that no value here means.
const valuesWithoutCounterpart = `
nameOverride: lb
configInline: {address-pools: [a]}
tls: {minVersion: VersionTLS12, cipherSuites: A, curvePreferences: "29", controllerMetricsTLSSecret: a, speakerMetricsTLSSecret: b}
controller: {webhookMode: onlywebhook, tlsCipherSuites: A}
speaker: {enabled: false, memberlist: {enabled: false}, wanConfig: true}
frrk8s: {external: true, namespace: frr}
networkpolicies: {defaultDeny: true}
prometheus:
  controllerMetricsTLSSecret: a
  speakerMetricsTLSSecret: b
  podMonitor: {additionalMonitors: [a]}
  serviceMonitor: {controller: {tlsConfig: {ca: {}}}, speaker: {tlsConfig: {ca: {}}}}
  prometheusRule: {additionalMonitors: [a], staleConfig: {labels: {team: net}}, addressPoolUsage: {thresholds: [{percent: 75}, {percent: 85}, {percent: 95}, {percent: 99}]}}
speeker: {enabled: true}
`

// TestValuesWithoutCounterpartAreNamed: each is named, with a text that says what to do.
func TestValuesWithoutCounterpartAreNamed(t *testing.T) {
	want := []string{
		"configInline", "controller.tlsCipherSuites", "controller.webhookMode", "frrk8s.external", "frrk8s.namespace", "nameOverride", "networkpolicies.defaultDeny",
		"prometheus.podMonitor.additionalMonitors", "prometheus.prometheusRule.additionalMonitors",
		"prometheus.prometheusRule.addressPoolUsage.thresholds[3]", "prometheus.prometheusRule.staleConfig.labels.team",
		"prometheus.serviceMonitor.controller.tlsConfig", "prometheus.serviceMonitor.speaker.tlsConfig",
		"speaker.enabled", "speaker.memberlist.enabled", "speaker.wanConfig", "speeker",
		"tls.cipherSuites", "tls.curvePreferences", "tls.minVersion",
	}
	translation := translateText(t, valuesWithoutCounterpart)
	var got []string
	for _, v := range translation.ValuesWithOutcome(OutcomeNone) {
		got = append(got, v.Path)
		if v.Text == "" {
			t.Errorf("nothing is said about %s", v.Path)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the values without counterpart are\n%q, want\n%q", got, want)
	}
	text, err := FormatAsValuesFile(translation)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range want {
		if !strings.Contains(text, "#   "+path+": ") {
			t.Errorf("the file does not name %s:\n%s", path, text)
		}
	}
}

// TestEveryEntryOfTableHasOneOutcome: what becomes of a value is one thing.
func TestEveryEntryOfTableHasOneOutcome(t *testing.T) {
	table, err := readTable()
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for path, e := range table {
		outcomes := 0
		for _, isSet := range []bool{e.None != "", e.NotNeeded != "", len(e.To) > 0 || e.IsAccepted && e.NotNeeded == ""} {
			if isSet {
				outcomes++
			}
		}
		if outcomes != 1 {
			t.Errorf("%s has %d of to, notNeeded and none", path, outcomes)
		}
		if e.ConverterName != "" && converters[e.ConverterName] == nil {
			t.Errorf("%s: there is no converter %q", path, e.ConverterName)
		}
		used[e.ConverterName] = true
	}
	for name := range converters {
		if !used[name] {
			t.Errorf("no value needs the converter %q", name)
		}
	}
	if len(table) < 150 {
		t.Errorf("the table has %d values: this test looks in the wrong place", len(table))
	}
}

// TestDefaultsOfMetalLBAreNotTranslated: many values files are a copy of the defaults. They would
// replace what is better here.
func TestDefaultsOfMetalLBAreNotTranslated(t *testing.T) {
	table, err := readTable()
	if err != nil {
		t.Fatal(err)
	}
	for path, e := range table {
		for _, d := range e.Defaults {
			text := formatValue(d)
			file := map[string]any{}
			setter := &translator{values: file}
			setter.setValue(path, d)
			raw, err := yaml.Marshal(file)
			if err != nil {
				t.Fatal(err)
			}
			if out := translateText(t, string(raw)); len(out.Translated) > 0 {
				t.Errorf("%s: %s, a default, becomes %v", path, text, out.Values)
			}
		}
	}
}
