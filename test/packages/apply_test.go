package packages

import (
	"bytes"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// foreignCRDsManifest replaces the CRDs of the Prometheus operator and of cert-manager. The API
// server accepts any object of these kinds.
func foreignCRDsManifest() string {
	var out strings.Builder
	for kind, group := range map[string]string{
		"ServiceMonitor": "monitoring.coreos.com", "PodMonitor": "monitoring.coreos.com", "PrometheusRule": "monitoring.coreos.com", "Certificate": "cert-manager.io",
	} {
		name := strings.ToLower(kind)
		fmt.Fprintf(&out, `---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[2]ss.%[3]s}
spec:
  group: %[3]s
  scope: Namespaced
  names: {kind: %[1]s, plural: %[2]ss, singular: %[2]s, listKind: %[1]sList}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`, kind, name, group)
	}
	return out.String()
}

// installForeignCRDs makes the API server accept objects of the Prometheus operator and of
// cert-manager.
func (b *packageInstaller) installForeignCRDs() {
	b.Helper()
	b.runKubectl(foreignCRDsManifest(), "apply", "-f", "-")
	b.runKubectl("", "wait", "customresourcedefinitions", "--all", "--for=condition=Established", "--timeout=2m")
}

// createAsDryRun asks the API server whether it accepts an object, and stores nothing. Warnings are
// errors: they name misspelt fields.
func (b *packageInstaller) createAsDryRun(o *unstructured.Unstructured) error {
	err := b.apiClient.Create(b.Context(), o, client.DryRunAll, client.FieldValidation("Strict"))
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// TestAPIServerAcceptsManifestsOfEveryValue asks a real API server about the objects that each
// value of the chart makes.
func TestAPIServerAcceptsManifestsOfEveryValue(t *testing.T) {
	b := newPackageInstaller(t)
	b.installForeignCRDs()
	sets := slices.Concat(slices.Collect(maps.Keys(valuesWithRenderedText)), slices.Collect(maps.Keys(valuesThatRemoveText)))
	accepted := map[string]bool{}
	for _, values := range sets {
		text, err := RenderHelm(t.Context(), "metallb-system", values, "--set", "crds.enabled=false")
		if err != nil {
			t.Errorf("%s: %v", values, err)
			continue
		}
		objects, err := SplitObjects(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			text, err := o.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			if accepted[string(text)] {
				continue
			}
			if err := b.createAsDryRun(o); err != nil {
				t.Errorf("%s: %s %s: %v", values, o.GetKind(), o.GetName(), err)
			}
			accepted[string(text)] = true
		}
	}
	if len(accepted) < len(sets) {
		t.Errorf("%d sets of values have %d different objects", len(sets), len(accepted))
	}
}

// TestControllerIsAllowedInRestrictedNamespace: only the speakers need what Pod security forbids.
func TestControllerIsAllowedInRestrictedNamespace(t *testing.T) {
	b := newPackageInstaller(t)
	b.runKubectl("", "label", "namespace", "metallb-system", "pod-security.kubernetes.io/warn=restricted")
	// On OpenShift, the platform chooses the IDs.
	for _, values := range []string{"{}", "controller: {podSecurityContext: {runAsUser: null, runAsGroup: null, fsGroup: null}}"} {
		text, err := RenderHelm(t.Context(), "metallb-system", values, "--show-only", "templates/controller.yaml")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.kubectl.Run(t.Context(), text, "create", "--dry-run=server", "--warnings-as-errors", "-f", "-"); err != nil {
			t.Errorf("%s: %v", values, err)
		}
	}
	text, err := RenderHelm(t.Context(), "metallb-system", "{}", "--show-only", "templates/speaker.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.kubectl.Run(t.Context(), text, "create", "--dry-run=server", "--warnings-as-errors", "-f", "-"); err == nil || !strings.Contains(err.Error(), "hostNetwork") {
		t.Errorf("the speakers in a restricted namespace give %v, want a warning: this test sees no warnings", err)
	}
}

// TestHelmRefusesNamespaceThatForbidsSpeakers: otherwise no speaker would run, and nothing would
// say so.
func TestHelmRefusesNamespaceThatForbidsSpeakers(t *testing.T) {
	b := newPackageInstaller(t)
	b.runKubectl("", "label", "namespace", "metallb-system", "pod-security.kubernetes.io/enforce=baseline")
	out, err := b.tryHelm("{}", "install", "gantry", "--take-ownership")
	if err == nil || !strings.Contains(out, "kubectl label namespace metallb-system pod-security.kubernetes.io/enforce=privileged --overwrite") {
		t.Errorf("an installation that no speaker can follow gives %v\n%s", err, out)
	}
	b.runHelm("podSecurity: {check: false}", "install", "gantry", "--take-ownership")
	b.runKubectl("", "label", "namespace", "metallb-system", "pod-security.kubernetes.io/enforce=privileged", "--overwrite")
	b.runHelm("{}", "upgrade", "gantry")
}

// TestTwoReleasesInOneCluster: each has objects of its own, and a namespace of its own for the
// configuration. The first release is installed, upgraded, rolled back and uninstalled beside the
// second one.
func TestTwoReleasesInOneCluster(t *testing.T) {
	b := newPackageInstaller(t)
	b.runHelm("otherConfigurationNamespaces: [second]", "install", "gantry", "--take-ownership")
	b.runHelm(`
fullnameOverride: second
loadBalancerClass: example.com/second
crds: {enabled: false}
otherConfigurationNamespaces: [metallb-system]
webhook: {enabled: true}
speaker: {ports: {metrics: 9473, health: 9474}, gossip: {port: 7947}}
`, "install", "another-name", "--namespace", "second", "--create-namespace")
	b.runHelm("{otherConfigurationNamespaces: [second], webhook: {enabled: true}}", "upgrade", "gantry")
	b.runKubectl("", "get", "validatingwebhookconfigurations", "gantry-webhook", "second-webhook")
	b.runHelm("", "rollback", "gantry")
	if _, err := b.kubectl.Run(t.Context(), "", "get", "validatingwebhookconfigurations", "gantry-webhook"); err == nil {
		t.Error("the webhook is left after the rollback")
	}
	b.runHelm("", "uninstall", "gantry")
	b.runKubectl("", "-n", "second", "get", "deployment/second-controller", "daemonset/second-speaker", "configmap/second-configuration-namespace")
	b.runKubectl("", "get", "clusterrole/second-controller", "clusterrolebinding/second-speaker", "validatingadmissionpolicybinding/second-configuration-namespace", "customresourcedefinition/ipaddresspools.metallb.io")
	// Without the first release, any name fits.
	b.runHelm("{}", "install", "third-name", "--take-ownership")
}

// earlierChartCommit is the commit of the first chart that was released.
const earlierChartCommit = "4ed98b1"

// extractEarlierChart writes an earlier chart into a directory, or skips the test if the repository
// is a clone without its history.
func extractEarlierChart(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	archive := exec.CommandContext(t.Context(), "git", "-C", RepositoryRoot(), "archive", earlierChartCommit, "charts", "config")
	text, err := archive.Output()
	if err != nil {
		t.Skipf("the repository lacks the commit %s: fetch its history", earlierChartCommit)
	}
	extract := exec.CommandContext(t.Context(), "tar", "-x", "-C", dir)
	extract.Stdin = bytes.NewReader(text)
	if out, err := extract.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return filepath.Join(dir, "charts", "gantry")
}

// TestUpgradeFromEarlierChart upgrades a release with values of the earlier chart, and rolls it
// back. What users applied stays, also when the release is uninstalled and installed again under
// another name.
func TestUpgradeFromEarlierChart(t *testing.T) {
	earlier := extractEarlierChart(t)
	b := newPackageInstaller(t)
	b.installForeignCRDs()
	const values = `
imagePullSecrets: [{name: registry}]
loadBalancerClass: example.com/gantry
controller: {replicas: 1, podLabels: {team: net}, affinity: {nodeAffinity: {}}}
speaker: {gossip: {port: 7947}, layer2: {refreshInterval: 2m}, tolerations: []}
webhook: {enabled: true, failurePolicy: Ignore}
prometheus: {enabled: true, interval: 30s, labels: {release: prometheus}}
`
	b.chart = earlier
	b.runHelm(values, "install", "gantry", "--take-ownership", "--force-conflicts")
	b.chart = ""
	b.runKubectl(userObjectsManifest, "apply", "-f", "-")
	b.runHelm(values, "upgrade", "gantry")
	b.runHelm("", "rollback", "gantry")
	b.runHelm(values, "upgrade", "gantry")
	b.runHelm("", "uninstall", "gantry")
	b.runKubectl(userObjectsManifest, "get", "-f", "-")
	b.runHelm(values, "install", "renamed", "--take-ownership")
	b.runKubectl(userObjectsManifest, "get", "-f", "-")
}

// userObjectsManifest has an object of each kind that users write. Its texts are not in the form
// that a program would write them.
const userObjectsManifest = `---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: pool, namespace: metallb-system}
spec: {addresses: [192.0.2.10 - 192.0.2.20, "2001:DB8:0::/120"]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: l2, namespace: metallb-system}
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: bgp, namespace: metallb-system}
spec: {communities: ["64512:100"]}
---
apiVersion: metallb.io/v1beta1
kind: BFDProfile
metadata: {name: fast, namespace: metallb-system}
---
apiVersion: metallb.io/v1beta1
kind: Community
metadata: {name: communities, namespace: metallb-system}
spec: {communities: [{name: vpn, value: "64512:1"}]}
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: router, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 64513, peerAddress: "2001:DB8:0::1", holdTime: 90s, keepaliveTime: 0h0m30s, bfdProfile: fast}
---
apiVersion: metallb.io/v1beta1
kind: BGPPeer
metadata: {name: old, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 64513, peerAddress: 192.0.2.1}
---
apiVersion: gantry.dev/v1alpha1
kind: AddressReservation
metadata: {name: later, namespace: metallb-system}
spec: {service: {namespace: default, name: web}, addresses: [192.0.2.11]}
`

// TestApplyingTwiceChangesNothing: a tool that compares what is applied with what is stored, such
// as Argo CD or Flux, would otherwise write for ever.
func TestApplyingTwiceChangesNothing(t *testing.T) {
	if _, err := exec.LookPath("diff"); err != nil {
		t.Skip("kubectl diff runs the program diff, which is missing")
	}
	b := newPackageInstaller(t)
	b.installForeignCRDs()
	// Nothing runs here that could answer for the webhook.
	const values = "{webhook: {enabled: true, failurePolicy: Ignore}, prometheus: {enabled: true}}"
	byHelm, err := RenderHelm(t.Context(), "metallb-system", values)
	if err != nil {
		t.Fatal(err)
	}
	byKustomize, err := RenderKustomize(t.Context(), "prometheus")
	if err != nil {
		t.Fatal(err)
	}
	serverSide := []string{"--server-side", "--force-conflicts"}
	for _, way := range []struct {
		name, manifests string
		flags           []string
	}{
		{"kustomize, client-side", byKustomize, nil}, {"kustomize, server-side", byKustomize, serverSide},
		{"Helm, client-side", byHelm, nil}, {"Helm, server-side", byHelm, serverSide},
	} {
		manifests := way.manifests + userObjectsManifest
		apply := func() string {
			b.runKubectl(manifests, slices.Concat([]string{"apply", "-f", "-"}, way.flags)...)
			return b.resourceVersions(manifests)
		}
		before := apply()
		if out, err := b.kubectl.Run(t.Context(), manifests, slices.Concat([]string{"diff", "-f", "-"}, way.flags)...); err != nil {
			t.Errorf("%s: a second application would change\n%s%v", way.name, out, err)
		}
		if diff := gocmp.Diff(before, apply()); diff != "" {
			t.Errorf("%s: a second application has changed objects:\n%s", way.name, diff)
		}
	}
	b.runHelm(values, "install", "gantry", "--take-ownership", "--force-conflicts")
	before := b.resourceVersions(byHelm)
	b.runHelm(values, "upgrade", "gantry")
	if diff := gocmp.Diff(before, b.resourceVersions(byHelm)); diff != "" {
		t.Errorf("an upgrade to the same values has changed objects:\n%s", diff)
	}
}

// resourceVersions returns a line for each object of the manifests, with its version.
func (b *packageInstaller) resourceVersions(manifests string) string {
	b.Helper()
	return b.runKubectl(manifests, "get", "-f", "-", "-o", `jsonpath={range .items[*]}{.kind}{" "}{.metadata.name}{" "}{.metadata.resourceVersion}{"\n"}{end}`)
}

// TestProgramsMayNotWriteWhatUsersApply: what a program adds to the spec of an object is a
// difference to what the user applied. The API server lets the programs write the status alone.
func TestProgramsMayNotWriteWhatUsersApply(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	text, err := RenderHelm(t.Context(), "metallb-system", "webhook: {enabled: true}")
	if err != nil {
		t.Fatal(err)
	}
	objects, err := SplitObjects(text)
	if err != nil {
		t.Fatal(err)
	}
	ofUsers := []string{"services", "ipaddresspools", "l2advertisements", "bgpadvertisements", "bgppeers", "bfdprofiles", "communities", "addressreservations"}
	found := map[string]bool{}
	for _, o := range objects {
		rules, _, _ := unstructured.NestedSlice(o.Object, "rules")
		for _, r := range rules {
			resources, _, _ := unstructured.NestedStringSlice(r.(map[string]any), "resources")
			verbs, _, _ := unstructured.NestedStringSlice(r.(map[string]any), "verbs")
			for _, resource := range resources {
				if !slices.Contains(ofUsers, resource) {
					continue
				}
				found[resource] = true
				for _, verb := range verbs {
					if !slices.Contains([]string{"get", "list", "watch"}, verb) {
						t.Errorf("%s %s may %s %s", o.GetKind(), o.GetName(), verb, resource)
					}
				}
			}
		}
	}
	if len(found) != len(ofUsers) {
		t.Errorf("the roles are about %v, want %v: this test looks in the wrong place", found, ofUsers)
	}
}
