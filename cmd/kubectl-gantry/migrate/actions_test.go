package migrate

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// applyAll does all actions.
func applyAll(t *testing.T, a *memoryAccess, helmReleaseOfGantry string) {
	t.Helper()
	for _, action := range findIn(t, a, helmReleaseOfGantry).ListActions() {
		if !strings.HasPrefix(action.Change, "kubectl ") {
			t.Errorf("%s shows %q", action.Text, action.Change)
		}
		if err := action.Apply(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
}

// stopMetalLBController is what kubectl scale does.
func stopMetalLBController(manifests string) string {
	return strings.Replace(strings.Replace(manifests, "replicas: 1", "replicas: 0", 1), "endpoints: [{addresses: [10.244.0.9], conditions: {ready: true}}]", "endpoints: []", 1)
}

// TestActionsWhileMetalLBRuns take its webhooks from nobody.
func TestActionsWhileMetalLBRuns(t *testing.T) {
	a := newMemoryAccess(t, byHelm())
	applyAll(t, a, "")
	want := []string{
		"patch customresourcedefinitions.apiextensions.k8s.io ipaddresspools.metallb.io", "patch customresourcedefinitions.apiextensions.k8s.io bgppeers.metallb.io",
		"create ConfigMap metallb-system/gantry-excludel2",
	}
	if !slices.Equal(a.changes, want) {
		t.Errorf("the changes are\n%q, want\n%q", a.changes, want)
	}
	crd := a.objects[a.indexOf(crdKind, types.NamespacedName{Name: "ipaddresspools.metallb.io"})]
	if o := ownershipOf(&crd); o.helmRelease.Name != "" || !o.isKept || crd.GetLabels()[managedByLabel] != "" {
		t.Errorf("the CRD still has %v %v", crd.GetAnnotations(), crd.GetLabels())
	}
}

// TestActionsWhileControllerRestarts leave its webhooks alone: it has a Pod again soon.
func TestActionsWhileControllerRestarts(t *testing.T) {
	for name, manifests := range map[string]string{"Helm": byHelm(), "manifests": byManifests()} {
		a := newMemoryAccess(t, strings.Replace(manifests, "conditions: {ready: true}", "conditions: {ready: false}", 1))
		applyAll(t, a, "")
		if at := slices.IndexFunc(a.changes, func(c string) bool { return strings.HasPrefix(c, "delete ") }); at >= 0 {
			t.Errorf("%s: %s", name, a.changes[at])
		}
	}
}

// TestActionsWhenControllerIsStopped remove what nobody answers for, once.
func TestActionsWhenControllerIsStopped(t *testing.T) {
	for name, manifests := range map[string]string{"Helm": byHelm(), "manifests": byManifests()} {
		a := newMemoryAccess(t, stopMetalLBController(manifests))
		applyAll(t, a, "")
		crd := a.objects[a.indexOf(crdKind, types.NamespacedName{Name: "bgppeers.metallb.io"})]
		if strategy, _, _ := unstructured.NestedString(crd.Object, "spec", "conversion", "strategy"); strategy != "None" {
			t.Errorf("%s: the conversion is %q", name, strategy)
		}
		if !slices.Contains(a.changes, "delete validatingwebhookconfigurations.admissionregistration.k8s.io metallb-webhook-configuration") || len(findIn(t, a, "").Webhooks) > 0 {
			t.Errorf("%s: the webhook is left after %q", name, a.changes)
		}
		for _, c := range a.changes {
			if strings.HasPrefix(c, "delete ") && !strings.Contains(c, "webhookconfigurations") {
				t.Errorf("%s: %s", name, c)
			}
		}
		a.changes = nil
		applyAll(t, a, "")
		if len(a.changes) > 0 {
			t.Errorf("%s: a second run does %q", name, a.changes)
		}
	}
}

// TestCRDsAreGivenToReleaseOfGantry, so that every version of Helm can install it.
func TestCRDsAreGivenToReleaseOfGantry(t *testing.T) {
	for _, manifests := range []string{byHelm(), byManifests()} {
		a := newMemoryAccess(t, stopMetalLBController(manifests))
		applyAll(t, a, "gantry")
		crd := a.objects[a.indexOf(crdKind, types.NamespacedName{Name: "ipaddresspools.metallb.io"})]
		if o := ownershipOf(&crd); o.helmRelease.String() != "metallb-system/gantry" || crd.GetLabels()[managedByLabel] != managedByHelm {
			t.Errorf("the CRD has %v %v", crd.GetAnnotations(), crd.GetLabels())
		}
		a.changes = nil
		applyAll(t, a, "gantry")
		if len(a.changes) > 0 {
			t.Errorf("a second run does %q", a.changes)
		}
	}
}

// TestObjectsOfReleaseAreTakenOut: a chart of the user may contain pools.
func TestObjectsOfReleaseAreTakenOut(t *testing.T) {
	manifests := strings.Replace(byHelm(), "metadata: {name: lan, namespace: metallb-system}\nspec: {addresses", "metadata: {name: lan, namespace: metallb-system, annotations: {meta.helm.sh/release-name: metallb, meta.helm.sh/release-namespace: metallb-system}}\nspec: {addresses", 1)
	a := newMemoryAccess(t, manifests)
	applyAll(t, a, "")
	if !slices.Contains(a.changes, "patch ipaddresspools.metallb.io lan") {
		t.Errorf("the changes are %q", a.changes)
	}
}
