package preview

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// FieldChange is a field that an edit changes.
type FieldChange struct {
	// Field is the path of the field: "spec.addresses".
	Field string `json:"field"`
	// Before and After are the values as JSON; empty for none. Those of a Secret are hidden.
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
}

// String is one line.
func (c FieldChange) String() string {
	return fmt.Sprintf("%s: %s -> %s", c.Field, cmp.Or(c.Before, "(none)"), cmp.Or(c.After, "(none)"))
}

// fieldsOfServer are the fields of the metadata that the API server writes, and the annotation in
// which kubectl apply stores the manifest.
var fieldsOfServer = []string{"managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink"}

// listFieldChanges returns the fields that differ, without the status. before is nil for an object
// that does not exist.
func listFieldChanges(before, after *unstructured.Unstructured) []FieldChange {
	var out []FieldChange
	was := map[string]any{}
	if before != nil {
		was = withoutFieldsOfServer(before)
	}
	collectFieldChanges("", was, withoutFieldsOfServer(after), &out)
	if after.GetKind() == "Secret" {
		for i := range out {
			out[i].Before, out[i].After = hideValue(out[i].Before), hideValue(out[i].After)
		}
	}
	return out
}

func hideValue(text string) string {
	if text == "" {
		return ""
	}
	return "(hidden)"
}

// withoutFieldsOfServer returns the content that users write.
func withoutFieldsOfServer(u *unstructured.Unstructured) map[string]any {
	content := u.DeepCopy()
	for _, field := range fieldsOfServer {
		unstructured.RemoveNestedField(content.Object, "metadata", field)
	}
	unstructured.RemoveNestedField(content.Object, "metadata", "annotations", corev1.LastAppliedConfigAnnotation)
	for _, field := range []string{"status", "apiVersion", "kind"} {
		delete(content.Object, field)
	}
	return content.Object
}

// collectFieldChanges compares maps field by field, and everything else as a whole.
func collectFieldChanges(path string, before, after map[string]any, into *[]FieldChange) {
	keys := map[string]bool{}
	for k := range before {
		keys[k] = true
	}
	for k := range after {
		keys[k] = true
	}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		at := k
		if path != "" {
			at = path + "." + k
		}
		was, isMapBefore := before[k].(map[string]any)
		now, isMapAfter := after[k].(map[string]any)
		_, existed := before[k]
		_, exists := after[k]
		switch {
		case (isMapBefore || !existed) && (isMapAfter || !exists):
			collectFieldChanges(at, was, now, into)
		case !reflect.DeepEqual(before[k], after[k]):
			*into = append(*into, FieldChange{at, encodeValue(before[k], existed), encodeValue(after[k], exists)})
		}
	}
}

func encodeValue(value any, exists bool) string {
	if !exists {
		return ""
	}
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Sprint(value)
	}
	return string(text)
}
