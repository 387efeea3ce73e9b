package manifests

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/test/apiserver"
	"github.com/gantry-lb/gantry/test/packages"
)

// namespacePolicyTester is an API server with the policy for namespaces.
type namespacePolicyTester struct {
	*testing.T
	apiClient client.Client
}

// replacePolicyByManifests replaces the policy by the one in rendered manifests.
func (h *namespacePolicyTester) replacePolicyByManifests(manifests string) {
	h.Helper()
	objects, err := packages.SplitObjects(manifests)
	if err != nil {
		h.Fatal(err)
	}
	found := 0
	for _, o := range objects {
		if o.GetName() != "gantry-configuration-namespace" {
			continue
		}
		found++
		old := o.DeepCopy()
		if err := h.apiClient.Delete(h.Context(), old); client.IgnoreNotFound(err) != nil {
			h.Fatal(err)
		}
		if err := h.apiClient.Create(h.Context(), o); err != nil {
			h.Fatalf("installing the policy's %s: %v", o.GetKind(), err)
		}
	}
	if found != 3 {
		h.Fatalf("the manifests have %d objects of the policy, want 3", found)
	}
}

// createAsDryRunInNamespace creates an object in a namespace as a trial that stores nothing.
func (h *namespacePolicyTester) createAsDryRunInNamespace(o client.Object, namespace string) error {
	o = o.DeepCopyObject().(client.Object)
	o.SetNamespace(namespace)
	return h.apiClient.Create(h.Context(), o, client.DryRunAll)
}

// awaitRefusal waits until objects in the namespace are refused with the words: the API server
// takes a moment to see a policy.
func (h *namespacePolicyTester) awaitRefusal(namespace, words string) {
	h.Helper()
	ctx, cancel := context.WithTimeout(h.Context(), awaitTimeout)
	defer cancel()
	for {
		err := h.createAsDryRunInNamespace(newObjectOfEachNamespacedKind()[0], namespace)
		if err != nil && strings.Contains(err.Error(), words) {
			return
		}
		select {
		case <-ctx.Done():
			h.Fatalf("a pool in namespace %s gets the error %v, want %q", namespace, err, words)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// newObjectOfEachNamespacedKind returns a valid object of each kind that is read from one namespace
// only.
func newObjectOfEachNamespacedKind() []client.Object {
	all := []client.Object{
		&v1beta1.IPAddressPool{Spec: v1beta1.IPAddressPoolSpec{Addresses: []string{"192.0.2.0/24"}}},
		&v1beta1.L2Advertisement{}, &v1beta1.BGPAdvertisement{}, &v1beta1.BFDProfile{},
		&v1beta1.Community{},
		&v1beta2.BGPPeer{Spec: v1beta2.BGPPeerSpec{MyASN: 64512, PeerASN: 64513, PeerAddress: "192.0.2.1"}},
		&v1alpha1.AddressReservation{Spec: v1alpha1.AddressReservationSpec{Service: v1alpha1.ServiceReference{Namespace: "default", Name: "web"}}},
	}
	for _, o := range all {
		o.SetName("x")
	}
	return all
}

// checkAcceptedAndRefusedNamespaces checks in which namespaces objects of each kind are accepted.
func (h *namespacePolicyTester) checkAcceptedAndRefusedNamespaces(accepted, refused []string, words string) {
	h.Helper()
	for _, o := range newObjectOfEachNamespacedKind() {
		for _, namespace := range refused {
			if err := h.createAsDryRunInNamespace(o, namespace); err == nil || !strings.Contains(err.Error(), words) {
				h.Errorf("%T in namespace %s: got the error %v, want %q", o, namespace, err, words)
			}
		}
		for _, namespace := range accepted {
			if err := h.createAsDryRunInNamespace(o, namespace); err != nil {
				h.Errorf("%T in namespace %s: %v", o, namespace, err)
			}
		}
	}
}

// A configuration object in a namespace that Gantry does not read is refused when it is applied,
// however Gantry was installed.
func TestConfigurationInUnreadNamespaceIsRefused(t *testing.T) {
	if m := packages.DescribeUnbuiltHelmOrKustomize(); m != "" {
		t.Skip(m)
	}
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(apiserver.StartUntilTestEnds(t), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	h := &namespacePolicyTester{T: t, apiClient: c}
	for _, namespace := range []string{"elsewhere", "second"} {
		ns := &corev1.Namespace{}
		ns.Name = namespace
		if err := c.Create(t.Context(), ns); err != nil {
			t.Fatal(err)
		}
	}
	render := func(text string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	h.awaitRefusal("default", "resource must be created in metallb-system namespace: Gantry reads no other, and would ignore it in default")
	h.checkAcceptedAndRefusedNamespaces([]string{"metallb-system"}, []string{"default", "elsewhere"}, "must be created in metallb-system namespace")

	h.replacePolicyByManifests(render(packages.RenderKustomizeInNamespace(t.Context(), t.TempDir(), "default", "elsewhere")))
	h.awaitRefusal("metallb-system", "must be created in elsewhere namespace")
	h.checkAcceptedAndRefusedNamespaces([]string{"elsewhere"}, []string{"default", "metallb-system"}, "must be created in elsewhere namespace")

	h.replacePolicyByManifests(render(packages.RenderHelm(t.Context(), "metallb-system", "otherConfigurationNamespaces: [second]")))
	h.awaitRefusal("default", "must be created in metallb-system or second namespace")
	h.checkAcceptedAndRefusedNamespaces([]string{"metallb-system", "second"}, []string{"default", "elsewhere"}, "must be created in metallb-system or second namespace")
}

// An object that was there before the policy can still be labelled and deleted, but not changed.
func TestObjectsOlderThanNamespacePolicyCanBeDeleted(t *testing.T) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(apiserver.StartUntilTestEnds(t), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	h := &namespacePolicyTester{T: t, apiClient: c}
	h.awaitRefusal("default", "must be created in metallb-system namespace")
	// Without its parameter the policy allows everything.
	parameter := &corev1.ConfigMap{}
	parameter.Namespace, parameter.Name = "metallb-system", "gantry-configuration-namespace"
	data := parameter.DeepCopy()
	data.Data = map[string]string{"namespaces": ""}
	if err := c.Delete(t.Context(), parameter); err != nil {
		t.Fatal(err)
	}
	old := newObjectOfEachNamespacedKind()[0].(*v1beta1.IPAddressPool)
	old.Namespace, old.Finalizers = "default", []string{"example.com/keep"}
	for err = c.Create(t.Context(), old.DeepCopy()); apierrors.IsInvalid(err) || apierrors.IsForbidden(err); err = c.Create(t.Context(), old.DeepCopy()) {
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context(), data); err != nil {
		t.Fatal(err)
	}
	h.awaitRefusal("default", "must be created in metallb-system namespace")
	patch := func(text string) error {
		o := &unstructured.Unstructured{}
		o.SetAPIVersion("metallb.io/v1beta1")
		o.SetKind("IPAddressPool")
		o.SetNamespace("default")
		o.SetName("x")
		return c.Patch(t.Context(), o, client.RawPatch("application/merge-patch+json", []byte(text)))
	}
	if err := patch(`{"metadata":{"labels":{"a":"b"}}}`); err != nil {
		t.Errorf("labelling it: %v", err)
	}
	if err := patch(`{"spec":{"addresses":["198.51.100.0/24"]}}`); err == nil || !strings.Contains(err.Error(), "must be created in metallb-system") {
		t.Errorf("changing it: %v", err)
	}
	if err := c.Delete(t.Context(), old); err != nil {
		t.Errorf("deleting it: %v", err)
	}
	if err := patch(`{"metadata":{"finalizers":null}}`); err != nil {
		t.Errorf("removing its finalizer: %v", err)
	}
}
