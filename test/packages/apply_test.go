package packages

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

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

// createPodAsDryRun asks the API server whether it accepts a Pod of a workload: the controller's in
// a namespace that enforces the Pod security level restricted, and the speaker's in one that
// enforces privileged. Objects that are no workloads have no Pod.
func (b *packageInstaller) createPodAsDryRun(o *unstructured.Unstructured) error {
	namespace, isWorkload := map[string]string{"Deployment": "restricted", "DaemonSet": "metallb-system"}[o.GetKind()]
	if !isWorkload {
		return nil
	}
	spec, _, err := unstructured.NestedMap(o.Object, "spec", "template", "spec")
	if err != nil {
		return err
	}
	// What these name is not in the cluster.
	for _, field := range []string{"serviceAccountName", "serviceAccount", "priorityClassName", "runtimeClassName"} {
		delete(spec, field)
	}
	pod := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Pod", "spec": spec}}
	pod.SetName("pod")
	pod.SetNamespace(namespace)
	return b.createAsDryRun(pod)
}

// enforcePodSecurity creates what createPodAsDryRun needs.
func (b *packageInstaller) enforcePodSecurity() {
	b.Helper()
	b.runKubectl("", "create", "namespace", "restricted")
	for namespace, level := range map[string]string{"restricted": "restricted", "metallb-system": "privileged"} {
		b.runKubectl("", "label", "namespace", namespace, "pod-security.kubernetes.io/enforce="+level)
		b.runKubectl("", "-n", namespace, "create", "serviceaccount", "default")
	}
}

// TestAPIServerAcceptsManifestsOfEveryValue asks a real API server about the objects that each
// value of the chart makes, and about their Pods. The level restricted forbids only controllers
// with containers or volumes that a user adds without a security context.
func TestAPIServerAcceptsManifestsOfEveryValue(t *testing.T) {
	b := newPackageInstaller(t)
	b.installForeignCRDs()
	b.enforcePodSecurity()
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
			err = b.createPodAsDryRun(o)
			if isForbidden := apierrors.IsForbidden(err); err != nil && !(isForbidden && strings.Contains(values, "image: example")) {
				t.Errorf("%s: a Pod of %s %s: %v", values, o.GetKind(), o.GetName(), err)
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
speaker: {ports: {metrics: 9473, health: 9474, routes: 9475}, gossip: {port: 7947}}
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
