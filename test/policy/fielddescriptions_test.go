package policy

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// fieldSchema is the part of an OpenAPI schema that kubectl explain shows.
type fieldSchema struct {
	Description string                 `json:"description"`
	Default     any                    `json:"default"`
	Properties  map[string]fieldSchema `json:"properties"`
	Items       *fieldSchema           `json:"items"`
	Required    []string               `json:"required"`
}

// hasNestedFields reports whether the field has fields of its own, each with an example.
func (s *fieldSchema) hasNestedFields() bool {
	return len(s.Properties) > 0 || s.Items != nil && len(s.Items.Properties) > 0
}

// crdFile is the part of a CustomResourceDefinition that has the fields.
type crdFile struct {
	Spec struct {
		Names struct {
			Kind string `json:"kind"`
		} `json:"names"`
		Versions []struct {
			Name   string `json:"name"`
			Schema struct {
				OpenAPIV3Schema fieldSchema `json:"openAPIV3Schema"`
			} `json:"schema"`
		} `json:"versions"`
	} `json:"spec"`
}

// TestAPIFieldDescriptionsHaveDefaultAndExample checks the description of each field of the API, as
// kubectl explain shows it: a field that a user sets has its default, and each field without fields
// of its own has an example.
func TestAPIFieldDescriptionsHaveDefaultAndExample(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(repositoryRoot, "config", "crd", "bases", "*.yaml"))
	if err != nil || len(files) < 10 {
		t.Fatalf("config/crd/bases has %d CRDs (%v): this test looks in the wrong place", len(files), err)
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var crd crdFile
		if err := yaml.Unmarshal(text, &crd); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, v := range crd.Spec.Versions {
			for _, section := range []string{"spec", "status"} {
				s := v.Schema.OpenAPIV3Schema.Properties[section]
				checkFieldDescriptions(t, crd.Spec.Names.Kind+"/"+v.Name+" "+section, &s, section == "spec")
			}
		}
	}
}

// checkFieldDescriptions checks the fields of an object. Label selectors and conditions are types
// of Kubernetes, which describes them itself.
func checkFieldDescriptions(t *testing.T, path string, s *fieldSchema, isSetByUser bool) {
	t.Helper()
	if s.Items != nil {
		s = s.Items
	}
	if _, isSelector := s.Properties["matchExpressions"]; isSelector {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		if name == "conditions" {
			continue
		}
		field, where := s.Properties[name], path+"."+name
		isOptional := isSetByUser && !slices.Contains(s.Required, name)
		for _, fault := range faultsOfFieldDescription(&field, isOptional) {
			t.Errorf("%s: its description %q %s", where, field.Description, fault)
		}
		checkFieldDescriptions(t, where, &field, isSetByUser)
	}
}

// faultsOfFieldDescription returns what the description of a field lacks.
func faultsOfFieldDescription(s *fieldSchema, isOptional bool) (out []string) {
	text := strings.Join(strings.Fields(s.Description), " ")
	if isOptional && !strings.Contains(text, "Default: ") {
		out = append(out, `has no "Default: ..."`)
	}
	if !s.hasNestedFields() && !strings.Contains(text, "Example: ") {
		out = append(out, `has no "Example: ..."`)
	}
	if s.Default == nil {
		return out
	}
	want := regexp.MustCompile(`Default: ` + regexp.QuoteMeta(fmt.Sprint(s.Default)) + `\b`)
	if !want.MatchString(text) {
		out = append(out, fmt.Sprintf("has another default than the schema, %v", s.Default))
	}
	return out
}
