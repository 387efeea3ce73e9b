package migrate

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// memoryAccess is a cluster in memory.
type memoryAccess struct {
	objects []unstructured.Unstructured
	// forbidden has the resources that the user may not list.
	forbidden []string
	// failures are the errors of lists by resource.
	failures map[string]error
	// changes are what was done, such as "patch customresourcedefinitions.apiextensions.k8s.io a".
	changes []string
}

// newMemoryAccess returns a cluster with the objects of manifests.
func newMemoryAccess(t *testing.T, manifests string) *memoryAccess {
	t.Helper()
	a := &memoryAccess{failures: map[string]error{}}
	for _, part := range strings.Split("\n"+manifests, "\n---\n") {
		var o unstructured.Unstructured
		if err := yaml.UnmarshalStrict([]byte(part), &o.Object); err != nil {
			t.Fatalf("%v:\n%s", err, part)
		}
		if len(o.Object) > 0 {
			a.objects = append(a.objects, withIntegers(t, o))
		}
	}
	return a
}

// withIntegers has whole numbers as int64, as the API server's objects do.
func withIntegers(t *testing.T, o unstructured.Unstructured) unstructured.Unstructured {
	t.Helper()
	text, err := json.Marshal(o.Object)
	if err != nil {
		t.Fatal(err)
	}
	var out unstructured.Unstructured
	if err := out.UnmarshalJSON(text); err != nil {
		t.Fatal(err)
	}
	return out
}

// ListObjects implements ClusterAccess.
func (a *memoryAccess) ListObjects(_ context.Context, k ObjectKind, q ListQuery) (out []unstructured.Unstructured, err error) {
	if err := a.failures[k.Resource]; err != nil {
		return nil, err
	}
	if slices.Contains(a.forbidden, k.Resource) {
		return nil, apierrors.NewForbidden(schema.GroupResource{Resource: k.Resource}, "", context.Canceled)
	}
	for _, o := range a.objects {
		if o.GroupVersionKind() == k.GroupVersionKind && (q.Namespace == "" || q.Namespace == o.GetNamespace()) && labels.SelectorFromSet(q.Labels).Matches(labels.Set(o.GetLabels())) {
			out = append(out, o)
		}
	}
	return out, nil
}

func (a *memoryAccess) indexOf(k ObjectKind, key types.NamespacedName) int {
	return slices.IndexFunc(a.objects, func(o unstructured.Unstructured) bool {
		return o.GroupVersionKind() == k.GroupVersionKind && o.GetName() == key.Name && o.GetNamespace() == key.Namespace
	})
}

// PatchObject implements ClusterAccess.
func (a *memoryAccess) PatchObject(_ context.Context, k ObjectKind, key types.NamespacedName, mergePatch []byte) error {
	a.changes = append(a.changes, "patch "+k.String()+" "+key.Name)
	var patch map[string]any
	if err := json.Unmarshal(mergePatch, &patch); err != nil {
		return err
	}
	mergeInto(a.objects[a.indexOf(k, key)].Object, patch)
	return nil
}

// mergeInto applies a JSON merge patch (RFC 7386).
func mergeInto(target, patch map[string]any) {
	for name, value := range patch {
		below, isMap := value.(map[string]any)
		switch was, wasMap := target[name].(map[string]any); {
		case value == nil:
			delete(target, name)
		case isMap && wasMap:
			mergeInto(was, below)
		case isMap:
			target[name] = map[string]any{}
			mergeInto(target[name].(map[string]any), below)
		default:
			target[name] = value
		}
	}
}

// CreateObject implements ClusterAccess.
func (a *memoryAccess) CreateObject(_ context.Context, o *unstructured.Unstructured) error {
	a.changes = append(a.changes, "create "+o.GetKind()+" "+o.GetNamespace()+"/"+o.GetName())
	a.objects = append(a.objects, *o)
	return nil
}

// DeleteObject implements ClusterAccess.
func (a *memoryAccess) DeleteObject(_ context.Context, k ObjectKind, key types.NamespacedName) error {
	a.changes = append(a.changes, "delete "+k.String()+" "+key.Name)
	at := a.indexOf(k, key)
	a.objects = slices.Delete(a.objects, at, at+1)
	return nil
}
