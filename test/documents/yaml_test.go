package documents

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
)

func newScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, v1beta1.AddToScheme, v1beta2.AddToScheme, corev1.AddToScheme, appsv1.AddToScheme, rbacv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return scheme
}

// checkManifest reads an object strictly, so that a field which does not exist is an error. A part
// of an object has no kind; it has to fit one of Gantry's kinds.
func checkManifest(scheme *runtime.Scheme, text string) error {
	var kind struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if err := yaml.Unmarshal([]byte(text), &kind); err != nil {
		return err
	}
	if kind.Kind != "" {
		object, err := scheme.New(schema.FromAPIVersionAndKind(kind.APIVersion, kind.Kind))
		if err != nil {
			return err
		}
		return yaml.UnmarshalStrict([]byte(text), object)
	}
	var faults []string
	for known := range scheme.AllKnownTypes() {
		if !strings.HasSuffix(known.Group, "metallb.io") && !strings.HasSuffix(known.Group, "gantry.dev") {
			continue
		}
		object, err := scheme.New(known)
		if err != nil {
			return err
		}
		if err := yaml.UnmarshalStrict([]byte(text), object); err != nil {
			faults = append(faults, known.Kind+": "+err.Error())
			continue
		}
		return nil
	}
	slices.Sort(faults)
	return fmt.Errorf("it has no kind, and fits none: %s", strings.Join(faults, "; "))
}

// checkChartValues compares values for the chart with its values.yaml.
func checkChartValues(known, given map[string]any, prefix string) error {
	for name, value := range given {
		knownValue, exists := known[name]
		if !exists {
			return fmt.Errorf("the chart has no value %s%s", prefix, name)
		}
		inner, isMap := value.(map[string]any)
		if knownInner, hasInner := knownValue.(map[string]any); isMap && hasInner && len(knownInner) > 0 {
			if err := checkChartValues(knownInner, inner, prefix+name+"."); err != nil {
				return err
			}
		}
	}
	return nil
}

// isKustomization reports whether a block is a kustomization.yaml.
func isKustomization(values map[string]any) bool {
	_, has := values["resources"]
	return has
}

// TestYAMLBlocksAreValid reads each YAML block of the pages: objects strictly by their kinds,
// values for the chart by its values.yaml.
func TestYAMLBlocksAreValid(t *testing.T) {
	scheme := newScheme(t)
	var chart map[string]any
	if err := yaml.Unmarshal([]byte(readRepositoryFile(t, "charts/gantry/values.yaml")), &chart); err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, p := range readPages(t) {
		for _, b := range p.codeBlocks() {
			if b.language != "yaml" || !p.isForUsers() {
				continue
			}
			for _, document := range strings.Split(b.text, "\n---\n") {
				count++
				var values map[string]any
				err := yaml.UnmarshalStrict([]byte(document), &values)
				_, hasKind := values["kind"]
				_, hasSpec := values["spec"]
				_, hasMetadata := values["metadata"]
				switch {
				case err != nil:
				case values["apiVersion"] == "security.openshift.io/v1": // of OpenShift
				case hasKind, hasSpec, hasMetadata:
					err = checkManifest(scheme, document)
				case isKustomization(values):
					if extra := slices.DeleteFunc(slices.Sorted(maps.Keys(values)), func(k string) bool { return k == "resources" || k == "images" || k == "components" || k == "patches" }); len(extra) > 0 {
						err = fmt.Errorf("this test does not know the fields %v of a kustomization", extra)
					}
				default:
					err = checkChartValues(chart, values, "")
				}
				if err != nil {
					t.Errorf("%s:%d: %v\n%s", b.page, b.line, err, document)
				}
			}
		}
	}
	if count < 15 {
		t.Errorf("the pages have %d YAML documents: this test looks in the wrong place", count)
	}
}
