package packages

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// valuesWithRenderedText are values of the chart, each with a part of what the chart renders with
// them.
var valuesWithRenderedText = map[string]string{
	`fullnameOverride: second`:                                                                                      "name: second-controller",
	`{fullnameOverride: second, webhook: {enabled: true}}`:                                                          `{name: GANTRY_WEBHOOK_CONFIG, value: second-webhook}`,
	`commonLabels: {team: network}`:                                                                                 "team: network\n  name: gantry-controller",
	`controller: {logLevel: warn}`:                                                                                  `{name: GANTRY_LOG_LEVEL, value: warn}`,
	`controller: {strategy: {type: Recreate}}`:                                                                      "type: Recreate",
	`controller: {serviceAccount: {create: false, name: own}}`:                                                      "serviceAccountName: own",
	`{rbac: {create: false}, speaker: {serviceAccount: {create: true}}}`:                                            "kind: ServiceAccount\nmetadata:\n  name: gantry-speaker",
	`networkPolicies: {enabled: true, apiServerPorts: [16443]}`:                                                     "egress:\n  - ports:\n    - port: 16443\n      protocol: TCP\n  ingress",
	`controller: {serviceAccount: {annotations: {role: net}}}`:                                                      "kind: ServiceAccount\nmetadata:\n  annotations:\n    role: net",
	`controller: {ports: {metrics: 9472}}`:                                                                          `{name: GANTRY_METRICS_BIND_ADDRESS, value: ":9472"}`,
	`controller: {ports: {metrics: 0}}`:                                                                             `{name: GANTRY_METRICS_BIND_ADDRESS, value: "0"}`,
	`controller: {ports: {health: 9081}}`:                                                                           `{name: health, containerPort: 9081}`,
	`{controller: {ports: {webhook: 9444}}, webhook: {enabled: true}}`:                                              `{name: GANTRY_WEBHOOK_PORT, value: "9444"}`,
	`controller: {livenessProbe: {periodSeconds: 33}}`:                                                              `"periodSeconds":33`,
	`controller: {readinessProbe: {failureThreshold: 34}}`:                                                          `"failureThreshold":34`,
	`controller: {startupProbe: {failureThreshold: 35}}`:                                                            `"failureThreshold":35`,
	`controller: {podSecurityContext: {fsGroup: 1234}}`:                                                             "fsGroup: 1234",
	`controller: {securityContext: {procMount: Default}}`:                                                           "procMount: Default",
	`controller: {runtimeClassName: kata}`:                                                                          "runtimeClassName: kata",
	`controller: {topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway}]}`: `"topologyKey":"zone"`,
	`controller: {podDisruptionBudget: {maxUnavailable: 1}}`:                                                        "kind: PodDisruptionBudget",
	`controller: {annotations: {a.example/b: deployment}}`:                                                          "a.example/b: deployment",
	`controller: {labels: {team: deployment}}`:                                                                      "team: deployment",
	`controller: {extraArgs: [--leader-elect=true]}`:                                                                "args:\n        - --leader-elect=true",
	`controller: {extraEnv: [{name: A, value: one}]}`:                                                               "- name: A\n          value: one",
	`controller: {extraVolumes: [{name: v, emptyDir: {}}], extraVolumeMounts: [{name: v, mountPath: /v}]}`:          "mountPath: /v",
	`controller: {extraContainers: [{name: beside, image: example}]}`:                                               "name: beside",
	`controller: {extraInitContainers: [{name: before, image: example}]}`:                                           "initContainers:\n      - image: example\n        name: before",
	`speaker: {logLevel: warn}`:                                                                                     `{name: GANTRY_LOG_LEVEL, value: warn}`,
	`speaker: {updateStrategy: {type: OnDelete, rollingUpdate: null}}`:                                              "updateStrategy:\n    type: OnDelete",
	`speaker: {serviceAccount: {create: false, name: own}}`:                                                         "serviceAccountName: own",
	`speaker: {serviceAccount: {name: other}}`:                                                                      "system:serviceaccount:[^:]+:other$",
	`speaker: {serviceAccount: {annotations: {role: net}}}`:                                                         "kind: ServiceAccount\nmetadata:\n  annotations:\n    role: net",
	`speaker: {ports: {metrics: 9473, health: 9474}}`:                                                               `{name: GANTRY_HEALTH_PROBE_BIND_ADDRESS, value: "127.0.0.1:9474"}`,
	`speaker: {livenessProbe: {periodSeconds: 33}}`:                                                                 `"periodSeconds":33`,
	`speaker: {readinessProbe: {failureThreshold: 34}}`:                                                             `"failureThreshold":34`,
	`speaker: {startupProbe: {failureThreshold: 35}}`:                                                               `"failureThreshold":35`,
	`speaker: {podSecurityContext: {runAsNonRoot: false}}`:                                                          "runAsNonRoot: false",
	`speaker: {securityContext: {capabilities: {add: [NET_ADMIN]}}}`:                                                "add:\n            - NET_ADMIN",
	`speaker: {runtimeClassName: kata}`:                                                                             "runtimeClassName: kata",
	`speaker: {affinity: {nodeAffinity: {}}}`:                                                                       "affinity:\n        nodeAffinity: {}",
	`speaker: {annotations: {a.example/b: daemonset}}`:                                                              "a.example/b: daemonset",
	`speaker: {labels: {team: daemonset}}`:                                                                          "team: daemonset",
	`speaker: {extraArgs: [--service-bgp-status=on]}`:                                                               "args:\n        - --service-bgp-status=on",
	`speaker: {extraEnv: [{name: A, value: one}]}`:                                                                  "- name: A\n          value: one",
	`speaker: {extraVolumes: [{name: v, emptyDir: {}}], extraVolumeMounts: [{name: v, mountPath: /v}]}`:             "mountPath: /v",
	`speaker: {extraContainers: [{name: beside, image: example}]}`:                                                  "name: beside",
	`speaker: {extraInitContainers: [{name: before, image: example}]}`:                                              "initContainers:\n      - image: example\n        name: before",
	`speaker: {excludedInterfaces: ["^lo$", "^veth.*"]}`:                                                            "excludel2.yaml: |\n    announcedInterfacesToExclude: [\"^lo$\",\"^veth.*\"]",
	`speaker: {gossip: {address: $(HOST_IP)}, extraEnv: [{name: HOST_IP, value: 192.0.2.1}]}`:                       "value: 192.0.2.1\n        - {name: GANTRY_GOSSIP_BIND_ADDRESS, value: \"$(HOST_IP)\"}",
	`speaker: {gossip: {secretName: own}}`:                                                                          `{name: gossip-key, secret: {secretName: own}}`,
	`podSecurity: {createNamespace: true}`:                                                                          "pod-security.kubernetes.io/enforce: privileged",
	`webhook: {enabled: true, timeoutSeconds: 7}`:                                                                   "timeoutSeconds: 7",
	`webhook: {enabled: true, certificate: Secret}`:                                                                 `{name: GANTRY_WEBHOOK_CERTIFICATE, value: Secret}`,
	`webhook: {enabled: true, issuerRef: {name: internal, kind: ClusterIssuer}}`:                                    "dnsNames: [gantry-webhook.metallb-system.svc]",
	`prometheus: {enabled: true, tokenSecret: t, podMonitors: true}`:                                                "kind: PodMonitor",
	`prometheus: {enabled: true, dashboards: {labels: {board: "yes"}}}`:                                             `board: "yes"`,
	`controller: {metricsCertificateSecret: own}`:                                                                   "volumes:\n      - name: metrics-certificate\n        secret:\n          optional: true\n          secretName: own",
	`speaker: {metricsCertificateSecret: own}`:                                                                      "{name: metrics-certificate, secret: {secretName: own, optional: true}}",
	`prometheus: {enabled: true, tlsConfig: {serverName: gantry.example}}`:                                          "tlsConfig:\n      serverName: gantry.example",
	`prometheus: {scrapeAnnotations: true}`:                                                                         `prometheus.io/port: "7473"`,
	`prometheus: {enabled: true, scrapeTimeout: 16s}`:                                                               "scrapeTimeout: 16s",
	`prometheus: {enabled: true, annotations: {a.example/b: monitor}}`:                                              "a.example/b: monitor",
	`prometheus: {enabled: true, jobLabel: app.kubernetes.io/name}`:                                                 "jobLabel: app.kubernetes.io/name",
	`prometheus: {enabled: true, relabelings: [{action: keep}]}`:                                                    "relabelings:\n    - action: keep",
	`prometheus: {enabled: true, metricRelabelings: [{action: drop}]}`:                                              "metricRelabelings:\n    - action: drop",
	`prometheus: {rbac: {create: true, serviceAccountName: prom, serviceAccountNamespace: watch}}`:                  "{kind: ServiceAccount, name: prom, namespace: watch}",
	`{prometheus: {enabled: true}, speaker: {ports: {metrics: 9473}}}`:                                              "port: 9473\n    targetPort: metrics",
	`prometheus: {enabled: true, rules: {alerts: {MetalLBAddressPoolUsage75Percent: {threshold: 80}}}}`:             "alert: MetalLBAddressPoolUsage80Percent",
	`prometheus: {enabled: true, rules: {alerts: {GantryServiceNotAnnounced: {severity: info, for: 31m}}}}`:         "for: 31m\n      labels:\n        severity: info",
	`prometheus: {enabled: true, rules: {excludePools: [test-.*, lab]}}`:                                            `metallb_allocator_ipv4_addresses_total{pool!~"test-.*|lab"}`,
	`prometheus: {enabled: true, rules: {labels: {team: network}}}`:                                                 "team: network",
	`prometheus: {enabled: true, rules: {extra: [{alert: Own, expr: vector(1)}]}}`:                                  "alert: Own",
}

// valuesThatRemoveText are values of the chart, each with what the chart does not render then.
var valuesThatRemoveText = map[string]string{
	`{controller: {livenessProbe: null, readinessProbe: null, startupProbe: null}, speaker: {livenessProbe: null, readinessProbe: null, startupProbe: null}}`: "httpGet",
	`{controller: {podSecurityContext: {runAsUser: null, runAsGroup: null, fsGroup: null}}}`:                                                                  "65534",
	`{controller: {serviceAccount: {create: false}}, speaker: {serviceAccount: {create: false}}, rbac: {create: false}}`:                                      "kind: ServiceAccount",
	`rbac: {create: false}`: "kind: ServiceAccount",
	`{fullnameOverride: second, webhook: {enabled: true}, crds: {enabled: false}}`:                                            "name: gantry-webhook\n",
	`prometheus: {enabled: true, tokenSecret: t, podMonitors: true, rules: {alerts: {GantryForeignClaim: {enabled: false}}}}`: "GantryForeignClaim",
	`prometheus: {enabled: true, dashboards: {enabled: false}}`:                                                               "grafana_dashboard",
	`prometheus: {enabled: true, tokenSecret: t, podMonitors: true}`:                                                          "kind: ServiceMonitor",
	`bgp: {enabled: false}`:       ", NET_BIND_SERVICE",
	`podSecurity: {check: false}`: "kind: Namespace",
	// Who has a Secret of his own needs no rights for the one that Gantry creates.
	`speaker: {gossip: {secretName: own}}`:                                "- gantry-gossip\n  resources:\n  - secrets\n  verbs:\n  - get\n  - watch\n",
	`webhook: {enabled: true, certificate: Secret}`:                       "- gantry-webhook-certificate\n  resources:\n  - secrets\n  verbs:\n  - get\n  - list\n  - watch\n  - update\n",
	`webhook: {enabled: true, issuerRef: {name: internal, kind: Issuer}}`: "- gantry-webhook-certificate\n  resources:\n  - secrets\n  verbs:\n  - get\n  - list\n  - watch\n  - update\n",
}

func TestHelmValuesOfPodsAndMonitorsChangeManifests(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	for values, want := range valuesWithRenderedText {
		if text := renderChart(t, values); !strings.Contains(text, want) {
			t.Errorf("%s: the rendered objects lack %q", values, want)
		}
	}
	for values, gone := range valuesThatRemoveText {
		if text := renderChart(t, values); strings.Contains(text, gone) {
			t.Errorf("%s: the rendered objects still have %q", values, gone)
		}
	}
}

func TestHelmLintFindsNothing(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	args := append([]string{"lint", "--strict", filepath.Join(RepositoryRoot(), "charts", "gantry")}, HelmImageArguments()...)
	out, err := runProgram(t.Context(), "", "helm", args...)
	if err != nil || !strings.Contains(out, "0 chart(s) failed") {
		t.Errorf("helm lint: %v\n%s", err, out)
	}
}

func renderChart(t *testing.T, values string) string {
	t.Helper()
	text, err := RenderHelm(t.Context(), "metallb-system", values)
	if err != nil {
		t.Errorf("%s: %v", values, err)
	}
	return text
}

// checkEveryDocumentedValueIsSet checks that the values of the tests set every value of the chart.
func checkEveryDocumentedValueIsSet(t *testing.T, tested []string) {
	t.Helper()
	set := map[string]bool{}
	var walk func(prefix string, value any)
	walk = func(prefix string, value any) {
		set[prefix] = true
		m, _ := value.(map[string]any)
		for name, v := range m {
			walk(strings.TrimPrefix(prefix+"."+name, "."), v)
		}
	}
	for _, values := range tested {
		var m map[string]any
		if err := yaml.UnmarshalStrict([]byte(values), &m); err != nil {
			t.Errorf("%s: %v", values, err)
		}
		walk("", m)
	}
	doc, err := os.ReadFile(filepath.Join(RepositoryRoot(), "docs", "chart-values.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Za-z0-9.]+)` \\| `").FindAllStringSubmatch(string(doc), -1) {
		if !set[m[1]] {
			t.Errorf("no test sets the value %s of the chart", m[1])
		}
	}
}

// TestValuesOfMetalLBAreRefusedWithOurName: who brings a values file of MetalLB's chart is told
// what to write instead, for all values at once.
func TestValuesOfMetalLBAreRefusedWithOurName(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	_, err := RenderHelm(t.Context(), "metallb-system", `
controller: {webhookMode: enabled, image: {repository: quay.io/metallb/controller, tag: null}, livenessProbe: {enabled: true}}
speaker: {memberlist: {enabled: true, mlBindPort: 7946}, frr: {enabled: false}, excludeInterfaces: {enabled: false}, logLevel: info}
prometheus: {serviceMonitor: {enabled: true}}
frr-k8s: {prometheus: {}}
nameOverride: ""
`)
	if err == nil {
		t.Fatal("the chart is rendered with values of MetalLB's chart")
	}
	for _, want := range []string{
		`controller.webhookMode: use "webhook.enabled"`, `controller.image: use "image.repository"`, `speaker.memberlist.mlBindPort: use "speaker.gossip.port"`,
		`speaker.excludeInterfaces: use "speaker.excludedInterfaces"`, `prometheus.serviceMonitor: use "prometheus.enabled"`, `frr-k8s: not needed`,
		`controller.livenessProbe.enabled: not needed`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
	for _, other := range []string{"nameOverride", "speaker.logLevel", "startupProbe"} {
		if strings.Contains(err.Error(), other) {
			t.Errorf("the error is also about %s:\n%v", other, err)
		}
	}
}

func TestAlertsThatDoNotExistAreRefused(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	for alerts, want := range map[string]string{
		`{Misspelt: {enabled: false}}`:         "there is no alert Misspelt, but MetalLBStaleConfig",
		`{MetalLBStaleConfig: {threshold: 2}}`: "MetalLBStaleConfig has no threshold",
		`{MetalLBStaleConfig: {level: info}}`:  "'level' not allowed",
	} {
		_, err := RenderHelm(t.Context(), "metallb-system", "prometheus: {enabled: true, rules: {alerts: "+alerts+"}}")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s gives the error %v, want %q", alerts, err, want)
		}
	}
}
