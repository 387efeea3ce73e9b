package objects

import (
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// ObjectEdit is an object as it is after an edit, or one that the edit deletes.
type ObjectEdit struct {
	Object    client.Object
	IsDeleted bool
}

// WithEdits returns a Reader that answers as if the edits were made. Only kinds that are listed as
// a whole show them. The Reader itself stays as it is.
func (r *Reader) WithEdits(edits []ObjectEdit) *Reader {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := NewReader(r.apiClient, r.labelsFuncByIndex)
	maps.Copy(out.fetchedObjects, r.fetchedObjects)
	maps.Copy(out.indexerFuncByField, r.indexerFuncByField)
	maps.Copy(out.missingRights, r.missingRights)
	maps.Copy(out.absentKinds, r.absentKinds)
	out.edits = slices.Concat(r.edits, edits)
	for key, listed := range r.listedObjectsByCacheKey {
		if !r.assumedEmptyCacheKeys[key] {
			out.listedObjectsByCacheKey[key] = listed
		}
	}
	for _, e := range edits {
		kind, err := r.kindOf(e.Object)
		if err != nil {
			continue // it is no kind that anybody lists
		}
		delete(out.fetchedObjects, fetchedObjectKey{kind.resource, client.ObjectKeyFromObject(e.Object)})
		for _, namespace := range slices.Compact([]string{"", e.Object.GetNamespace()}) {
			key := listedKindCacheKey(kind, namespace)
			if items, isListed := out.listedObjectsByCacheKey[key]; isListed {
				out.listedObjectsByCacheKey[key] = out.withEdit(kind, items, e)
			}
		}
	}
	return out
}

// withEdits returns the listed objects of a kind after the edits.
func (r *Reader) withEdits(kind itemKindAndResource, namespace string, items []client.Object) []client.Object {
	for _, e := range r.edits {
		edited, err := r.kindOf(e.Object)
		if err == nil && edited == kind && (namespace == "" || namespace == e.Object.GetNamespace()) {
			items = r.withEdit(kind, items, e)
		}
	}
	return items
}

// metadataOnlyKinds are the kinds that are listed as metadata.
var metadataOnlyKinds = map[string]bool{"Node": true, "Namespace": true}

// withEdit returns the objects of a kind after an edit.
func (r *Reader) withEdit(kind itemKindAndResource, items []client.Object, e ObjectEdit) []client.Object {
	out := slices.DeleteFunc(slices.Clone(items), func(o client.Object) bool {
		return o.GetName() == e.Object.GetName() && o.GetNamespace() == e.Object.GetNamespace()
	})
	switch {
	case e.IsDeleted:
		return out
	case metadataOnlyKinds[kind.itemKind]:
		return append(out, r.extractMetadata(e.Object))
	}
	return append(out, e.Object)
}

// extractMetadata returns the metadata of an object, as a list of metadata has it.
func (r *Reader) extractMetadata(o client.Object) client.Object {
	out := &metav1.PartialObjectMetadata{}
	out.Name, out.Namespace, out.UID, out.Generation = o.GetName(), o.GetNamespace(), o.GetUID(), o.GetGeneration()
	out.Labels, out.Annotations, out.CreationTimestamp = o.GetLabels(), o.GetAnnotations(), o.GetCreationTimestamp()
	if gvk, err := apiutil.GVKForObject(o, r.apiClient.Scheme()); err == nil {
		out.SetGroupVersionKind(gvk)
	}
	return out
}

// objectsOfAllNamespaces returns the objects of a kind that was listed in all namespaces; those
// with one value of an index, if the selector is one. The caller holds the lock.
func (r *Reader) objectsOfAllNamespaces(kind itemKindAndResource, selector fields.Selector) ([]client.Object, bool) {
	items, isListed := r.listedObjectsByCacheKey[listedKindCacheKey(kind, "")]
	if _, isRefused := r.missingRights[MissingRight{"list", kind.resource, ""}]; !isListed || isRefused {
		return nil, false
	}
	if selector == nil || len(selector.Requirements()) != 1 {
		return items, true
	}
	q := selector.Requirements()[0]
	indexerFunc := r.indexerFuncByField[kind.itemKind+"."+q.Field]
	if indexerFunc == nil {
		return items, true
	}
	if r.objectsByIndexValue == nil {
		r.objectsByIndexValue = map[string]map[string][]client.Object{}
	}
	byValue := r.objectsByIndexValue[kind.itemKind+"."+q.Field]
	if byValue == nil {
		byValue = map[string][]client.Object{}
		for _, o := range items {
			for _, value := range indexerFunc(o) {
				byValue[value] = append(byValue[value], o)
			}
		}
		r.objectsByIndexValue[kind.itemKind+"."+q.Field] = byValue
	}
	return byValue[q.Value], true
}
