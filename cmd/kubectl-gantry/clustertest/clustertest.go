// Package clustertest has an API server in memory with the objects of manifests, for tests of
// kubectl gantry.
package clustertest

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/internal/configuration"
)

// NewAPIBuilder returns the builder of an API server with the objects of manifests. It answers the
// field selectors that kubectl gantry uses.
func NewAPIBuilder(t *testing.T, manifests string) *fake.ClientBuilder {
	t.Helper()
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	return fake.NewClientBuilder().WithScheme(scheme).WithObjects(DecodeManifests(t, manifests)...).
		WithRESTMapper(configuration.NewOfflineRESTMapper(scheme, objects.PluginOnlyAPIGroups...)).
		WithReturnManagedFields().
		WithIndex(&corev1.Secret{}, "type", func(o client.Object) []string { return []string{string(o.(*corev1.Secret).Type)} }).
		WithIndex(&corev1.Event{}, "reason", func(o client.Object) []string { return []string{o.(*corev1.Event).Reason} }).
		WithIndex(&corev1.Service{}, "metadata.name", func(o client.Object) []string { return []string{o.GetName()} })
}

// DecodeManifests returns the objects of manifests, which a line with --- separates.
func DecodeManifests(t *testing.T, manifests string) []client.Object {
	t.Helper()
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	var out []client.Object
	for _, part := range strings.Split(manifests, "\n---\n") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		o, _, err := decoder.Decode([]byte(part), nil, nil)
		if err != nil {
			t.Fatalf("%v:\n%s", err, part)
		}
		out = append(out, o.(client.Object))
	}
	return out
}
