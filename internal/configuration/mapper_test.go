package configuration

import (
	"os"
	"path/filepath"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

// TestRESTMapperMatchesTheCRDs compares what the Mapper says with what is installed.
func TestRESTMapperMatchesTheCRDs(t *testing.T) {
	s, err := NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	m := NewOfflineRESTMapper(s)
	files, err := filepath.Glob("../../config/crd/bases/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("there are no CRDs: %v", err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var crd struct {
			Spec struct {
				Group, Scope string
				Names        struct{ Kind, ListKind, Plural string }
				Versions     []struct{ Name string }
			}
		}
		if err := yaml.Unmarshal(text, &crd); err != nil {
			t.Fatal(err)
		}
		for _, v := range crd.Spec.Versions {
			for _, kind := range []string{crd.Spec.Names.Kind, crd.Spec.Names.ListKind} {
				got, err := m.RESTMapping(schema.GroupKind{Group: crd.Spec.Group, Kind: kind}, v.Name)
				if err != nil {
					t.Errorf("%s: %v", f, err)
					continue
				}
				if namespaced := crd.Spec.Scope == "Namespaced"; got.Resource.Resource != crd.Spec.Names.Plural || (got.Scope.Name() == meta.RESTScopeNameNamespace) != namespaced {
					t.Errorf("%s %s is %s (%s), want %s (%s)", v.Name, kind, got.Resource.Resource, got.Scope.Name(), crd.Spec.Names.Plural, crd.Spec.Scope)
				}
			}
		}
	}
	if got, err := m.RESTMapping(schema.GroupKind{Kind: "Node"}, "v1"); err != nil || got.Scope.Name() != meta.RESTScopeNameRoot {
		t.Errorf("a Node is %v (%v), want it in no namespace", got, err)
	}
}
