package bundle

import (
	"encoding/json"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/internal/view"
)

// redactMetadata returns the metadata without annotations that are not meant for Gantry.
func redactMetadata(m *metav1.ObjectMeta) metav1.ObjectMeta {
	out := metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion, Generation: m.Generation,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp, Labels: m.Labels, Finalizers: m.Finalizers,
	}
	for key, value := range m.Annotations {
		if view.IsAnnotationMeantForGantry(key) {
			metav1.SetMetaDataAnnotation(&out, key, value)
		}
	}
	for _, r := range m.OwnerReferences {
		out.OwnerReferences = append(out.OwnerReferences, metav1.OwnerReference{APIVersion: r.APIVersion, Kind: r.Kind, Name: r.Name, UID: r.UID})
	}
	for _, f := range m.ManagedFields {
		out.ManagedFields = append(out.ManagedFields, redactManagedFields(f))
	}
	return out
}

// redactManagedFields keeps who wrote when, and which fields of the status. The other fields have
// the names of annotations among them.
func redactManagedFields(f metav1.ManagedFieldsEntry) metav1.ManagedFieldsEntry {
	out := metav1.ManagedFieldsEntry{Manager: f.Manager, Operation: f.Operation, APIVersion: f.APIVersion, Time: f.Time, FieldsType: f.FieldsType, Subresource: f.Subresource}
	if f.FieldsV1 == nil || f.Subresource != "status" {
		return out
	}
	const statusField = "f:status"
	var all map[string]json.RawMessage
	if err := json.Unmarshal(f.FieldsV1.GetRawBytes(), &all); err != nil || all[statusField] == nil {
		return out
	}
	text, err := json.Marshal(map[string]json.RawMessage{statusField: all[statusField]})
	if err == nil {
		out.FieldsV1 = &metav1.FieldsV1{}
		out.FieldsV1.SetRawBytes(text)
	}
	return out
}

// keepLabels returns the labels with these keys.
func keepLabels(all map[string]string, keys ...string) map[string]string {
	out := map[string]string{}
	for key, value := range all {
		if slices.Contains(keys, strings.TrimSpace(key)) {
			out[key] = value
		}
	}
	return out
}
