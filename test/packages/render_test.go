package packages

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func skipWithoutHelmAndKustomize(t *testing.T) {
	t.Helper()
	if m := DescribeUnbuiltHelmOrKustomize(); m != "" {
		t.Skip(m)
	}
}

// indexObjectsByName returns the objects by API version, kind, namespace and name.
func indexObjectsByName(t *testing.T, manifests string) map[string]map[string]any {
	t.Helper()
	objects, err := SplitObjects(manifests)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]map[string]any{}
	for _, o := range objects {
		key := strings.Join([]string{o.GetAPIVersion(), o.GetKind(), o.GetNamespace(), o.GetName()}, " ")
		if out[key] != nil {
			t.Errorf("%s is rendered twice", key)
		}
		sortContainerEnvironmentAndPorts(o)
		out[key] = o.Object
	}
	return out
}

// sortContainerEnvironmentAndPorts sorts environment variables and ports by name: kustomize inserts
// at the front, and the order has no meaning.
func sortContainerEnvironmentAndPorts(o *unstructured.Unstructured) {
	containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
	for _, c := range containers {
		for _, field := range []string{"env", "ports"} {
			if list, ok := c.(map[string]any)[field].([]any); ok {
				slices.SortFunc(list, func(a, b any) int {
					return cmp.Compare(a.(map[string]any)["name"].(string), b.(map[string]any)["name"].(string))
				})
			}
		}
	}
	if len(containers) > 0 {
		_ = unstructured.SetNestedSlice(o.Object, containers, "spec", "template", "spec", "containers")
	}
}

// TestPodProbeTimeoutsAreAtLeastFiveSeconds: the kubelet gives up a probe after one second by
// default. On a node that is busy it would restart a program that only waits for a processor.
func TestPodProbeTimeoutsAreAtLeastFiveSeconds(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	text, err := RenderKustomize(t.Context(), "default")
	if err != nil {
		t.Fatal(err)
	}
	objects, err := SplitObjects(text)
	if err != nil {
		t.Fatal(err)
	}
	probes := 0
	for _, o := range objects {
		containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
		for _, c := range containers {
			for _, kind := range []string{"livenessProbe", "readinessProbe"} {
				probes++
				if n, _, _ := unstructured.NestedFloat64(c.(map[string]any), kind, "timeoutSeconds"); n < 5 {
					t.Errorf("the %s of %s %s gives up after %v s, want at least 5", kind, o.GetKind(), o.GetName(), max(n, 1))
				}
			}
		}
	}
	if probes != 4 {
		t.Errorf("the manifests have %d probes, want two of each program", probes)
	}
}

func TestHelmChartRendersSameAsKustomize(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	for overlay, values := range EquivalentHelmValuesByKustomizeOverlay {
		t.Run(overlay, func(t *testing.T) {
			text, err := RenderKustomize(t.Context(), overlay)
			if err != nil {
				t.Fatal(err)
			}
			expectHelmRendersSame(t, text, values)
		})
	}
}

// expectHelmRendersSame fails the test unless the chart with these values has the same objects as
// the manifests that kustomize rendered.
func expectHelmRendersSame(t *testing.T, kustomized, values string) {
	t.Helper()
	want := indexObjectsByName(t, kustomized)
	// Helm stores its release in the namespace, so the namespace has to exist before and is not in
	// the chart.
	delete(want, "v1 Namespace  metallb-system")
	text, err := RenderHelm(t.Context(), "metallb-system", values)
	if err != nil {
		t.Fatal(err)
	}
	got := indexObjectsByName(t, text)
	for _, o := range got {
		// only Helm uses it
		unstructured.RemoveNestedField(o, "metadata", "annotations", "helm.sh/resource-policy")
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("kustomize (-) and Helm (+) differ:\n%s", diff)
	}
}

// What a component of config adds or takes away by choice, a value of the chart does too.
func TestHelmValuesDoTheSameAsComponents(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	for component, values := range map[string]string{
		"plain-metrics": "{metrics: {protocol: http}, prometheus: {enabled: true}}", "network-policies": "{networkPolicies: {enabled: true}, prometheus: {enabled: true}}",
	} {
		t.Run(component, func(t *testing.T) {
			text, err := RenderKustomizeWithComponent(t.Context(), t.TempDir(), "prometheus", component)
			if err != nil {
				t.Fatal(err)
			}
			expectHelmRendersSame(t, text, values)
		})
	}
}

// The default filter of system calls of the container runtime applies to both programs. They cannot
// gain privileges, nor write their root file system.
func TestProgramsRunWithTheDefaultSeccompProfile(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	text, err := RenderKustomize(t.Context(), "default")
	if err != nil {
		t.Fatal(err)
	}
	objects := indexObjectsByName(t, text)
	for _, name := range []string{"apps/v1 Deployment metallb-system gantry-controller", "apps/v1 DaemonSet metallb-system gantry-speaker"} {
		if got, _, _ := unstructured.NestedString(objects[name], "spec", "template", "spec", "securityContext", "seccompProfile", "type"); got != "RuntimeDefault" {
			t.Errorf("%s has the seccomp profile %q, want RuntimeDefault", name, got)
		}
		containers, _, _ := unstructured.NestedSlice(objects[name], "spec", "template", "spec", "containers")
		for _, c := range containers {
			limits, _, _ := unstructured.NestedMap(c.(map[string]any), "securityContext")
			if limits["allowPrivilegeEscalation"] != false || limits["readOnlyRootFilesystem"] != true {
				t.Errorf("%s may gain privileges or write its root file system: %v", name, limits)
			}
		}
	}
}

// The NetworkPolicy is about the Pods of the controller, in both directions, and names the ports.
func TestNetworkPolicyLimitsTheController(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	text, err := RenderKustomizeWithComponent(t.Context(), t.TempDir(), "default", "network-policies")
	if err != nil {
		t.Fatal(err)
	}
	objects := indexObjectsByName(t, text)
	policy := objects["networking.k8s.io/v1 NetworkPolicy metallb-system gantry-controller"]
	selected, _, _ := unstructured.NestedStringMap(policy, "spec", "podSelector", "matchLabels")
	labels, _, _ := unstructured.NestedStringMap(objects["apps/v1 Deployment metallb-system gantry-controller"], "spec", "template", "metadata", "labels")
	for key, value := range selected {
		if labels[key] != value {
			t.Errorf("the NetworkPolicy selects the label %s=%s, which the controller lacks", key, value)
		}
	}
	if selected["app.kubernetes.io/component"] != "controller" {
		t.Errorf("the NetworkPolicy selects %v, want the controller alone", selected)
	}
	if types, _, _ := unstructured.NestedStringSlice(policy, "spec", "policyTypes"); !slices.Equal(types, []string{"Ingress", "Egress"}) {
		t.Errorf("the NetworkPolicy limits %v, want both directions", types)
	}
	for direction, want := range map[string][]string{"ingress": {"7472", "8081", "9443"}, "egress": {"443", "6443"}} {
		var ports []string
		rules, _, _ := unstructured.NestedSlice(policy, "spec", direction)
		for _, r := range rules {
			all, _, _ := unstructured.NestedSlice(r.(map[string]any), "ports")
			if len(all) == 0 {
				t.Errorf("a rule for %s admits every port", direction)
			}
			for _, p := range all {
				ports = append(ports, fmt.Sprint(p.(map[string]any)["port"]))
			}
		}
		if !slices.Equal(ports, want) {
			t.Errorf("%s admits the ports %v, want %v", direction, ports, want)
		}
	}
}

func TestHelmChartRendersIntoReleaseNamespace(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	text, err := RenderHelm(t.Context(), "elsewhere", "{webhook: {enabled: true}, prometheus: {enabled: true}}")
	if err != nil {
		t.Fatal(err)
	}
	if i := strings.Index(text, "metallb-system"); i >= 0 {
		t.Errorf("the chart's objects still contain metallb-system: …%s…", text[max(0, i-200):i+20])
	}
}

// The namespace that is read is a parameter of the policy, which kustomize must change too.
func TestKustomizeNamespaceReachesPolicyParameter(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	text, err := RenderKustomizeInNamespace(t.Context(), t.TempDir(), "default", "elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	objects := indexObjectsByName(t, text)
	if objects["v1 ConfigMap elsewhere gantry-configuration-namespace"] == nil {
		t.Error("the policy's ConfigMap is not in the overlay's namespace")
	}
	binding := objects["admissionregistration.k8s.io/v1 ValidatingAdmissionPolicyBinding  gantry-configuration-namespace"]
	if got, _, _ := unstructured.NestedString(binding, "spec", "paramRef", "namespace"); got != "elsewhere" {
		t.Errorf("the policy allows namespace %q, want elsewhere", got)
	}
	binding = objects["admissionregistration.k8s.io/v1 ValidatingAdmissionPolicyBinding  gantry-controller-objects"]
	if got, _, _ := unstructured.NestedString(binding, "spec", "matchResources", "namespaceSelector", "matchLabels", "kubernetes.io/metadata.name"); got != "elsewhere" {
		t.Errorf("the policy about the controller holds in namespace %q, want elsewhere", got)
	}
}

// Without these policies, the token of one node could write what other nodes report, and that of
// the controller could make tokens of other accounts.
func TestEveryPackageLimitsWhatTheProgramsWrite(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	check := func(how, text string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		objects := indexObjectsByName(t, text)
		for _, name := range []string{"gantry-controller-objects", "gantry-speaker-objects", "gantry-speaker-events"} {
			policy := objects["admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy  "+name]
			if rule, _, _ := unstructured.NestedString(policy, "spec", "failurePolicy"); rule != "Fail" {
				t.Errorf("%s: the policy %s fails with %q, want Fail", how, name, rule)
			}
			binding := objects["admissionregistration.k8s.io/v1 ValidatingAdmissionPolicyBinding  "+name]
			if actions, _, _ := unstructured.NestedStringSlice(binding, "spec", "validationActions"); !slices.Equal(actions, []string{"Deny"}) {
				t.Errorf("%s: the actions of the policy %s are %v, want Deny", how, name, actions)
			}
		}
	}
	for overlay, values := range EquivalentHelmValuesByKustomizeOverlay {
		text, err := RenderKustomize(t.Context(), overlay)
		check("config/"+overlay, text, err)
		text, err = RenderHelm(t.Context(), "elsewhere", values)
		check("the chart with "+values, text, err)
	}
	text, err := RenderHelm(t.Context(), "elsewhere", "rbac: {create: false}")
	check("the chart without RBAC", text, err)
}

func TestEveryHelmValueChangesManifests(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	tested := slices.Concat(slices.Collect(maps.Keys(valuesWithRenderedText)), slices.Collect(maps.Keys(valuesThatRemoveText)))
	for values, want := range map[string]string{
		`image: {repository: registry.example/gantry, tag: v9}`:         `image: "registry.example/gantry:v9"`,
		`image: {digest: "sha256:` + strings.Repeat("ab", 32) + `"}`:    `image: "registry.invalid/gantry@sha256:abab`,
		`image: {pullPolicy: Never}`:                                    `imagePullPolicy: Never`,
		`imagePullSecrets: [{name: registry}]`:                          "imagePullSecrets:\n      - name: registry",
		`loadBalancerClass: example.com/gantry`:                         `{name: GANTRY_LOAD_BALANCER_CLASS, value: "example.com/gantry"}`,
		`logLevel: debug`:                                               `{name: GANTRY_LOG_LEVEL, value: debug}`,
		`controller: {replicas: 3}`:                                     `replicas: 3`,
		`controller: {priorityClassName: high}`:                         `priorityClassName: high`,
		`controller: {resources: {limits: {memory: 1Gi}}}`:              `memory: 1Gi`,
		`controller: {nodeSelector: {role: infra}}`:                     `role: infra`,
		`controller: {tolerations: [{key: infra, operator: Exists}]}`:   `key: infra`,
		`controller: {affinity: {nodeAffinity: {}}}`:                    `nodeAffinity: {}`,
		`controller: {podAnnotations: {a.example/b: c}}`:                `a.example/b: c`,
		`controller: {podLabels: {team: net}}`:                          `team: net`,
		`speaker: {priorityClassName: high}`:                            `priorityClassName: high`,
		`speaker: {resources: {limits: {memory: 1Gi}}}`:                 `memory: 1Gi`,
		`speaker: {nodeSelector: {role: edge}}`:                         `role: edge`,
		`speaker: {tolerations: [{key: edge, operator: Exists}]}`:       `key: edge`,
		`speaker: {podAnnotations: {a.example/b: c}}`:                   `a.example/b: c`,
		`speaker: {podLabels: {team: net}}`:                             `team: net`,
		`speaker: {gossip: {port: 7947}}`:                               `{name: GANTRY_GOSSIP_BIND_PORT, value: "7947"}`,
		`speaker: {layer2: {refreshInterval: 2m}}`:                      `{name: GANTRY_LAYER2_REFRESH_INTERVAL, value: "2m"}`,
		`speaker: {ignoreExcludeLB: true}`:                              `{name: GANTRY_IGNORE_EXCLUDE_LB, value: "true"}`,
		`speaker: {kubeProxy: {healthAddress: ""}}`:                     `{name: GANTRY_KUBE_PROXY_HEALTH_ADDRESS, value: ""}`,
		`speaker: {kubeProxy: {silenceTimeout: 1m}}`:                    `{name: GANTRY_KUBE_PROXY_SILENCE_TIMEOUT, value: "1m"}`,
		`speaker: {silentKubelet: Leave}`:                               `{name: GANTRY_SILENT_KUBELET, value: Leave}`,
		`controller: {gossipKeyRotationInterval: 720h}`:                 `{name: GANTRY_GOSSIP_KEY_ROTATION_INTERVAL, value: "720h"}`,
		`speaker: {layer2: {answerPing: true}}`:                         `{name: GANTRY_LAYER2_ANSWER_PING, value: "true"}`,
		`speaker: {continuity: {aroundDeadNodes: true}}`:                `{name: GANTRY_AROUND_DEAD_NODES, value: "true"}`,
		`speaker: {continuity: {keepConnections: true}}`:                `{name: GANTRY_KEEP_CONNECTIONS, value: "true"}`,
		`metrics: {protocol: http}`:                                     `{name: GANTRY_METRICS_PROTOCOL, value: http}`,
		`networkPolicies: {enabled: true}`:                              `kind: NetworkPolicy`,
		`prometheus: {enabled: true, rbac: {serviceAccountName: prom}}`: "name: prom\n  namespace: monitoring",
		`speaker: {ports: {routes: 0}}`:                                 `{name: GANTRY_ROUTES_BIND_ADDRESS, value: "0"}`,
		`bgp: {passwordSecrets: [tor-password]}`:                        "  resourceNames:\n  - tor-password\n  resources:\n  - secrets\n  verbs:\n  - get\n",
		`otherConfigurationNamespaces: [second, third]`:                 `namespaces: second,third`,
		`webhook: {enabled: true, failurePolicy: Ignore}`:               `failurePolicy: Ignore`,
		`prometheus: {enabled: true, interval: 17s}`:                    `interval: 17s`,
		`prometheus: {enabled: true, labels: {release: prom}}`:          `release: prom`,
	} {
		text, err := RenderHelm(t.Context(), "metallb-system", values)
		if err != nil {
			t.Errorf("%s: %v", values, err)
		} else if !strings.Contains(text, want) {
			t.Errorf("%s: the rendered objects lack %q", values, want)
		}
		tested = append(tested, values)
	}
	for values, gone := range map[string]string{
		`crds: {enabled: false}`:                                            "kind: CustomResourceDefinition",
		`crds: {keep: false}`:                                               "helm.sh/resource-policy",
		`rbac: {create: false}`:                                             "kind: Role",
		`{rbac: {create: false}, webhook: {enabled: true}}`:                 "kind: ClusterRole",
		`prometheus: {enabled: true, rules: {enabled: false}}`:              "kind: PrometheusRule",
		`{metrics: {protocol: http}, prometheus: {enabled: true}}`:          "gantry-metrics-reader",
		`controller: {affinity: {nodeAffinity: {}}}`:                        "podAntiAffinity",
		`{controller: {resources: null}, speaker: {resources: null}}`:       "memory: 64Mi",
		`{controller: {nodeSelector: null}, speaker: {nodeSelector: null}}`: "kubernetes.io/os: linux",
	} {
		text, err := RenderHelm(t.Context(), "metallb-system", values)
		if err != nil {
			t.Errorf("%s: %v", values, err)
		} else if strings.Contains(text, gone) {
			t.Errorf("%s: the rendered objects still have %q", values, gone)
		}
		tested = append(tested, values)
	}
	checkEveryDocumentedValueIsSet(t, tested)
}

func TestInvalidHelmValuesAreRefused(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	for values, want := range map[string][]string{
		`quotas: {enabled: true}`:                      {"quotas", "not allowed"},
		`speaker: {bird: {enabled: true}}`:             {"/speaker", "bird", "not allowed"},
		`logLevel: verbose`:                            {"/logLevel", "'debug'"},
		`controller: {replicas: two}`:                  {"/controller/replicas", "want integer"},
		`controller: {replicas: -1}`:                   {"/controller/replicas", "minimum"},
		`speaker: {gossip: {port: 70000}}`:             {"/speaker/gossip/port", "65,535"},
		`speaker: {layer2: {refreshInterval: 120}}`:    {"/speaker/layer2/refreshInterval", "want string"},
		`bgp: {passwordSecrets: tor-password}`:         {"/bgp/passwordSecrets", "want array"},
		`webhook: {failurePolicy: fail}`:               {"/webhook/failurePolicy", "'Fail'"},
		`otherConfigurationNamespaces: second`:         {"/otherConfigurationNamespaces", "want array"},
		`webhook: {enabled: "yes"}`:                    {"/webhook/enabled", "want boolean"},
		`speaker: {tolerations: [{operator: exists}]}`: {"/speaker/tolerations/0/operator", "'Exists'"},
		`image: registry.example/gantry:v1`:            {"/image", "want object"},
		`image: {digest: abc}`:                         {"/image/digest", "sha256"},
		`networkPolicies: {apiServerPorts: []}`:        {"/networkPolicies/apiServerPorts", "minItems"},
		`metrics: {protocol: tls}`:                     {"/metrics/protocol", "'https'"},
		`prometheus: {interval: often}`:                {"/prometheus/interval", "pattern"},
		`speaker: {resources: {request: {cpu: 1}}}`:    {"/speaker/resources", "request", "not allowed"},
		`speaker: {nodeSelector: {zone: 1}}`:           {"/speaker/nodeSelector/zone", "want string"},
	} {
		_, err := RenderHelm(t.Context(), "metallb-system", values)
		if err == nil {
			t.Errorf("%s: the chart is rendered, want an error", values)
			continue
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: the error lacks %q:\n%v", values, w, err)
			}
		}
	}
}

// TestEveryCRDIsInstalled finds generated CRDs that the kustomization does not list.
func TestEveryCRDIsInstalled(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(RepositoryRoot(), "config", "crd", "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(RepositoryRoot(), "config", "crd", "bases", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("config/crd/bases has no CRD: %v", err)
	}
	for _, f := range files {
		if name := filepath.Base(f); !strings.Contains(string(text), "- bases/"+name+"\n") {
			t.Errorf("config/crd/kustomization.yaml lacks bases/%s: the CRD would not be installed", name)
		}
	}
}

// refusingKinds are the kinds of objects by which the API server refuses other objects.
var refusingKinds = []string{"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"}

// TestUninstallingAnyOverlayLeavesNothingThatRefuses compares each overlay with each one that a
// user may name when uninstalling. Only the webhook's configuration can be left. It belongs to the
// Namespace, which every overlay has (TestInstallAndUninstallByEveryPackage).
func TestUninstallingAnyOverlayLeavesNothingThatRefuses(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	objectsByOverlay := map[string]map[string]map[string]any{}
	for overlay := range EquivalentHelmValuesByKustomizeOverlay {
		text, err := RenderKustomize(t.Context(), overlay)
		if err != nil {
			t.Fatal(err)
		}
		objectsByOverlay[overlay] = indexObjectsByName(t, text)
	}
	found := 0
	for installed, objects := range objectsByOverlay {
		for removed, others := range objectsByOverlay {
			if others["v1 Namespace  metallb-system"] == nil {
				t.Errorf("config/%s has no Namespace, so an uninstallation leaves the webhook", removed)
			}
			for name, o := range objects {
				if !slices.Contains(refusingKinds, o["kind"].(string)) {
					continue
				}
				found++
				if isLeft := others[name] == nil; isLeft && (installed != "webhook" || o["kind"] != "ValidatingWebhookConfiguration") {
					t.Errorf("config/%s installs %s, and an uninstallation of config/%s leaves it", installed, name, removed)
				}
			}
		}
	}
	if found == 0 {
		t.Error("no overlay has an object that refuses others: this test looks in the wrong place")
	}
}

// TestWebhookAsksOnlyWhatItMayRefuse: without a controller that answers, objects can be deleted,
// and so can their namespace. Finalizers and labels can change.
func TestWebhookAsksOnlyWhatItMayRefuse(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	text, err := RenderHelm(t.Context(), "metallb-system", "webhook: {enabled: true, failurePolicy: Fail}")
	if err != nil {
		t.Fatal(err)
	}
	configuration := indexObjectsByName(t, text)["admissionregistration.k8s.io/v1 ValidatingWebhookConfiguration  gantry-webhook"]
	webhooks, _, _ := unstructured.NestedSlice(configuration, "webhooks")
	if len(webhooks) != 7 {
		t.Errorf("the configuration has %d webhooks, want one for each of six kinds and one for deletions", len(webhooks))
	}
	for _, w := range webhooks {
		webhook := w.(map[string]any)
		rules, _, _ := unstructured.NestedSlice(webhook, "rules")
		for _, r := range rules {
			operations, _, _ := unstructured.NestedStringSlice(r.(map[string]any), "operations")
			if slices.Contains(operations, "DELETE") && webhook["failurePolicy"] != "Ignore" {
				t.Errorf("%s is in the way of deletions while no controller answers", webhook["name"])
			}
			if conditions, _, _ := unstructured.NestedSlice(webhook, "matchConditions"); slices.Contains(operations, "UPDATE") && len(conditions) == 0 {
				t.Errorf("%s is asked about updates that leave the spec as it is", webhook["name"])
			}
		}
	}
}
