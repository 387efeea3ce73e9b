package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// customResourceDefinition is what this program reads of a CRD.
type customResourceDefinition struct {
	Spec struct {
		Group string `json:"group"`
		Names struct {
			Kind string `json:"kind"`
		} `json:"names"`
		Versions []struct {
			Name    string `json:"name"`
			Storage bool   `json:"storage"`
			Schema  struct {
				Root fieldSchema `json:"openAPIV3Schema"`
			} `json:"schema"`
		} `json:"versions"`
	} `json:"spec"`
}

// fieldSchema is the schema of a field.
type fieldSchema struct {
	Type                 string                 `json:"type"`
	Format               string                 `json:"format"`
	Description          string                 `json:"description"`
	Default              json.RawMessage        `json:"default"`
	Enum                 []any                  `json:"enum"`
	Minimum              *float64               `json:"minimum"`
	Maximum              *float64               `json:"maximum"`
	MaxItems             *int64                 `json:"maxItems"`
	Required             []string               `json:"required"`
	Properties           map[string]fieldSchema `json:"properties"`
	Items                *fieldSchema           `json:"items"`
	AdditionalProperties *fieldSchema           `json:"additionalProperties"`
	IsIntegerOrString    bool                   `json:"x-kubernetes-int-or-string"`
}

// writeFieldsPage returns the page of the fields of all kinds, in the version that is stored.
func writeFieldsPage(root string) (string, error) {
	paths, err := filepath.Glob(filepath.Join(root, "config", "crd", "bases", "*.yaml"))
	if err != nil {
		return "", err
	}
	var crds []customResourceDefinition
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		var crd customResourceDefinition
		if err := yaml.Unmarshal(text, &crd); err != nil {
			return "", err
		}
		crds = append(crds, crd)
	}
	slices.SortFunc(crds, func(a, b customResourceDefinition) int {
		return strings.Compare(a.Spec.Names.Kind, b.Spec.Names.Kind)
	})
	var out strings.Builder
	out.WriteString("# Fields\n" + generatedNote("the types in api/") + `
These are the fields of all objects of Gantry. ` + "`kubectl explain KIND.spec`" + ` shows the same on a cluster. A field with a
star is required. ` + "`[]`" + ` stands for each entry of a list, ` + "`{}`" + ` for each entry of a map.
`)
	for _, crd := range crds {
		writeKind(&out, crd)
	}
	return out.String(), nil
}

func writeKind(out *strings.Builder, crd customResourceDefinition) {
	for _, v := range crd.Spec.Versions {
		if !v.Storage {
			continue
		}
		schema := v.Schema.Root
		fmt.Fprintf(out, "\n## %s\n`%s/%s`. %s\n\n| field | type | default, values | what it is |\n|---|---|---|---|\n",
			crd.Spec.Names.Kind, crd.Spec.Group, v.Name, strings.Join(strings.Fields(schema.Description), " "))
		for _, part := range []string{"spec", "status"} {
			if property, ok := schema.Properties[part]; ok {
				writeFields(out, part, property)
			}
		}
	}
}

// writeFields writes a row for each field below a path.
func writeFields(out *strings.Builder, path string, schema fieldSchema) {
	for _, name := range slices.Sorted(maps.Keys(schema.Properties)) {
		property := schema.Properties[name]
		at := path + "." + name
		star := ""
		if slices.Contains(schema.Required, name) {
			star = " *"
		}
		fmt.Fprintf(out, "| `%s`%s | %s | %s | %s |\n", at, star, describeType(property), describeValues(property), tableCell(property.Description))
		if isWellKnown(property) {
			continue
		}
		switch {
		case property.Items != nil:
			if !isWellKnown(*property.Items) {
				writeFields(out, at+"[]", *property.Items)
			}
		case property.AdditionalProperties != nil:
			writeFields(out, at+"{}", *property.AdditionalProperties)
		default:
			writeFields(out, at, property)
		}
	}
}

// isWellKnown reports whether the fields below are those of Kubernetes, which everybody knows:
// a selector by labels, or a condition.
func isWellKnown(schema fieldSchema) bool {
	_, hasExpressions := schema.Properties["matchExpressions"]
	_, hasTransition := schema.Properties["lastTransitionTime"]
	return hasExpressions || hasTransition
}

func describeType(schema fieldSchema) string {
	switch {
	case schema.IsIntegerOrString:
		return "integer or string"
	case schema.Items != nil:
		return "list of " + describeType(*schema.Items)
	case schema.AdditionalProperties != nil:
		return "map of " + describeType(*schema.AdditionalProperties)
	case isWellKnown(schema):
		if _, isSelector := schema.Properties["matchExpressions"]; isSelector {
			return "label selector"
		}
		return "condition"
	case schema.Format == "date-time":
		return "time"
	}
	return schema.Type
}

// describeValues returns the default and the allowed values.
func describeValues(schema fieldSchema) string {
	var out []string
	if schema.Default != nil {
		out = append(out, "`"+string(schema.Default)+"`")
	}
	if len(schema.Enum) > 0 {
		var values []string
		for _, v := range schema.Enum {
			values = append(values, fmt.Sprintf("`%v`", v))
		}
		out = append(out, "one of "+strings.Join(values, ", "))
	}
	switch {
	case schema.Minimum != nil && schema.Maximum != nil:
		out = append(out, fmt.Sprintf("%v to %v", int64(*schema.Minimum), int64(*schema.Maximum)))
	case schema.Minimum != nil:
		out = append(out, fmt.Sprintf("%v or more", int64(*schema.Minimum)))
	case schema.Maximum != nil:
		out = append(out, fmt.Sprintf("%v or less", int64(*schema.Maximum)))
	}
	if schema.MaxItems != nil {
		out = append(out, fmt.Sprintf("at most %d entries", *schema.MaxItems))
	}
	return tableCell(strings.Join(out, "; "))
}
