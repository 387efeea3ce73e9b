// Package objects reads what kubectl gantry needs from the API server, with the rights of the user.
// What has been listed once is served from memory, so that the decisions of the controller read it
// like their own cache. It decides nothing, and writes nothing.
package objects

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// MissingRight is a verb on a resource that the user may not use.
type MissingRight struct {
	Verb, Resource, Namespace string
}

// String names the verb and the resource.
func (m MissingRight) String() string {
	if m.Namespace == "" {
		return m.Verb + " " + m.Resource
	}
	return m.Verb + " " + m.Resource + " in namespace " + m.Namespace
}

// LabelsFuncByIndex translates the value of an index into labels, which the API server knows.
type LabelsFuncByIndex map[string]func(value string) map[string]string

// APIClient is what a Reader needs of a client of the API server, or of what stands for it.
type APIClient interface {
	client.Reader
	Create(ctx context.Context, o client.Object, opts ...client.CreateOption) error
	Scheme() *runtime.Scheme
	RESTMapper() meta.RESTMapper
}

// Reader reads from the API server, and from what was listed before. Any goroutine may call its
// methods. Use NewReader to create it.
type Reader struct {
	apiClient         APIClient
	labelsFuncByIndex LabelsFuncByIndex

	mu sync.Mutex // guards all that follows
	// listedObjectsByCacheKey has each kind that was listed as a whole, by its listedKindCacheKey.
	listedObjectsByCacheKey map[string][]client.Object
	// objectsByIndexValue has the objects of kinds that were listed in all namespaces, by kind and
	// index, and by the value of the index.
	objectsByIndexValue map[string]map[string][]client.Object
	// fetchedObjects has what GetFromServer read, and its errors.
	fetchedObjects     map[fetchedObjectKey]fetchedObject
	indexerFuncByField map[string]client.IndexerFunc
	missingRights      map[MissingRight]struct{}
	absentKinds        map[string]bool
	// assumedEmptyCacheKeys are kinds that AssumeNoObjectsOfKind named.
	assumedEmptyCacheKeys map[string]bool
	// edits count for each kind that is listed.
	edits []ObjectEdit
}

// NewReader returns a Reader that has nothing listed.
func NewReader(api APIClient, labelsByIndex LabelsFuncByIndex) *Reader {
	return &Reader{
		apiClient: api, labelsFuncByIndex: labelsByIndex, listedObjectsByCacheKey: map[string][]client.Object{}, fetchedObjects: map[fetchedObjectKey]fetchedObject{}, indexerFuncByField: map[string]client.IndexerFunc{},
		missingRights: map[MissingRight]struct{}{}, absentKinds: map[string]bool{}, assumedEmptyCacheKeys: map[string]bool{},
	}
}

// IndexField implements client.FieldIndexer.
func (r *Reader) IndexField(_ context.Context, o client.Object, field string, values client.IndexerFunc) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.indexerFuncByField[reflect.TypeOf(o).Elem().Name()+"."+field] = values
	return nil
}

// MissingRights returns the rights that the user lacked so far, sorted.
func (r *Reader) MissingRights() []MissingRight {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Keys(r.missingRights), func(x, y MissingRight) int { return strings.Compare(x.String(), y.String()) })
}

// LacksRightToRead reports whether the user was refused to list or get objects of the resource.
func (r *Reader) LacksRightToRead(resource string) bool {
	return slices.ContainsFunc(r.MissingRights(), func(m MissingRight) bool { return m.Resource == resource })
}

// LacksRightToListIn reports whether the user was refused to list the resource in the namespace, or
// in all of them if it is empty.
func (r *Reader) LacksRightToListIn(resource, namespace string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, isMissing := r.missingRights[MissingRight{"list", resource, namespace}]
	return isMissing
}

// IsKindAbsent reports whether the API server does not know the kind of the list.
func (r *Reader) IsKindAbsent(list client.ObjectList) bool {
	kind, err := r.kindOf(list)
	r.mu.Lock()
	defer r.mu.Unlock()
	return err == nil && r.absentKinds[kind.itemKind]
}

// itemKindAndResource names the kind of a list.
type itemKindAndResource struct{ itemKind, resource string }

func (r *Reader) kindOf(o runtime.Object) (itemKindAndResource, error) {
	gvk, err := apiutil.GVKForObject(o, r.apiClient.Scheme())
	if err != nil {
		return itemKindAndResource{}, err
	}
	gvk.Kind = strings.TrimSuffix(gvk.Kind, "List")
	mapping, err := r.apiClient.RESTMapper().RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return itemKindAndResource{}, err
	}
	resource := mapping.Resource.Resource
	if mapping.Resource.Group != "" {
		resource += "." + mapping.Resource.Group
	}
	return itemKindAndResource{gvk.Kind, resource}, nil
}

// ListRequest asks for all objects of a kind in a namespace, or in all of them.
type ListRequest struct {
	List      client.ObjectList
	Namespace string
	// Fields limits the list; nil for all. If they are an index, the list answers only for the same
	// value of this index.
	Fields fields.Selector
	// Labels limits the list; nil for all. The list answers only for the same selector.
	Labels labels.Selector
}

// ListAndCacheKinds lists the kinds at the same time, and keeps them. A missing right or an absent
// kind is no error: the kind then has no objects.
func (r *Reader) ListAndCacheKinds(ctx context.Context, requests ...ListRequest) error {
	errs := make([]error, len(requests))
	var all sync.WaitGroup
	for i, q := range requests {
		all.Go(func() { errs[i] = r.listAndCacheObjects(ctx, q) })
	}
	all.Wait()
	return chooseErrorToShow(errs)
}

// chooseErrorToShow returns the error to show. Many requests fail for the same cause.
func chooseErrorToShow(errs []error) error {
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return errors.Join(errs...)
}

func (r *Reader) listAndCacheObjects(ctx context.Context, q ListRequest) error {
	kind, err := r.kindOf(q.List)
	if err != nil {
		return err
	}
	key := listedKindCacheKey(kind, q.Namespace)
	byField, byLabel := r.replaceIndexFieldByLabels(q.Fields, q.Labels)
	switch {
	case q.Labels != nil:
		key += labelCacheKeySuffix(q.Labels)
	case byLabel != nil:
		key += "?" + q.Fields.String()
	}
	r.mu.Lock()
	_, known := r.listedObjectsByCacheKey[key]
	r.mu.Unlock()
	if known {
		return nil
	}
	err = r.apiClient.List(ctx, q.List, &client.ListOptions{Namespace: q.Namespace, FieldSelector: byField, LabelSelector: byLabel})
	if err = r.recordMissingRightOrKind(err, kind, "list", q.Namespace); err != nil {
		return err
	}
	items, err := extractObjects(q.List)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listedObjectsByCacheKey[key] = r.withEdits(kind, q.Namespace, items)
	return nil
}

// AssumeNoObjectsOfKind answers for the kind from now on that there are no objects, without asking.
func (r *Reader) AssumeNoObjectsOfKind(list client.ObjectList, namespace string) {
	kind, err := r.kindOf(list)
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listedObjectsByCacheKey[listedKindCacheKey(kind, namespace)] = nil
	r.assumedEmptyCacheKeys[listedKindCacheKey(kind, namespace)] = true
}

func listedKindCacheKey(kind itemKindAndResource, namespace string) string {
	return kind.resource + "/" + namespace
}

func labelCacheKeySuffix(s labels.Selector) string { return "?labels: " + s.String() }

// recordMissingRightOrKind records a missing right or an absent kind, and returns other errors.
func (r *Reader) recordMissingRightOrKind(err error, kind itemKindAndResource, verb, namespace string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		return nil
	case apierrors.IsForbidden(err):
		r.missingRights[MissingRight{verb, kind.resource, namespace}] = struct{}{}
		return nil
	case meta.IsNoMatchError(err) || apierrors.IsNotFound(err):
		r.absentKinds[kind.itemKind] = true
		return nil
	}
	return fmt.Errorf("reading the %s: %w", kind.resource, err)
}

func extractObjects(list client.ObjectList) ([]client.Object, error) {
	raw, err := meta.ExtractList(list)
	if err != nil {
		return nil, err
	}
	out := make([]client.Object, 0, len(raw))
	for _, o := range raw {
		object, ok := o.(client.Object)
		if !ok {
			return nil, fmt.Errorf("%T is no object with metadata", o)
		}
		out = append(out, object)
	}
	return out, nil
}

// Get implements client.Reader. An object whose kind was listed comes from memory.
func (r *Reader) Get(ctx context.Context, key client.ObjectKey, into client.Object, opts ...client.GetOption) error {
	kind, err := r.kindOf(into)
	if err != nil {
		return err
	}
	r.mu.Lock()
	items, known := r.listedObjectsByCacheKey[listedKindCacheKey(kind, key.Namespace)]
	r.mu.Unlock()
	if known {
		for _, o := range items {
			if client.ObjectKeyFromObject(o) == key {
				reflect.ValueOf(into).Elem().Set(reflect.ValueOf(o).Elem())
				return nil
			}
		}
		return apierrors.NewNotFound(r.groupResource(kind), key.Name)
	}
	return r.getFromServer(ctx, kind, key, into, opts...)
}

// fetchedObjectKey names an object that was read alone.
type fetchedObjectKey struct {
	resource string
	key      client.ObjectKey
}

// fetchedObject is an object that was read alone, or why that failed.
type fetchedObject struct {
	object client.Object
	err    error
}

// GetFromServer reads one object although its kind may have been listed in part. It asks the API
// server once for each object.
func (r *Reader) GetFromServer(ctx context.Context, key client.ObjectKey, into client.Object) error {
	kind, err := r.kindOf(into)
	if err != nil {
		return err
	}
	fetched := fetchedObjectKey{kind.resource, key}
	r.mu.Lock()
	known, isKnown := r.fetchedObjects[fetched]
	r.mu.Unlock()
	if isKnown {
		if known.err == nil {
			reflect.ValueOf(into).Elem().Set(reflect.ValueOf(known.object).Elem())
		}
		return known.err
	}
	err = r.getFromServer(ctx, kind, key, into)
	copied, _ := into.DeepCopyObject().(client.Object)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fetchedObjects[fetched] = fetchedObject{copied, err}
	return err
}

func (r *Reader) getFromServer(ctx context.Context, kind itemKindAndResource, key client.ObjectKey, into client.Object, opts ...client.GetOption) error {
	err := r.apiClient.Get(ctx, key, into, opts...)
	if apierrors.IsForbidden(err) {
		_ = r.recordMissingRightOrKind(err, kind, "get", key.Namespace)
	}
	return err
}

// List implements client.Reader. A kind that was listed comes from memory. Another one comes from
// the API server, selected by labels: it knows no indexes.
func (r *Reader) List(ctx context.Context, into client.ObjectList, opts ...client.ListOption) error {
	var o client.ListOptions
	o.ApplyOptions(opts)
	kind, err := r.kindOf(into)
	if err != nil {
		return err
	}
	r.mu.Lock()
	items, known := r.listedObjectsByCacheKey[listedKindCacheKey(kind, o.Namespace)]
	if !known && o.Namespace != "" {
		items, known = r.objectsOfAllNamespaces(kind, o.FieldSelector)
	}
	if !known && o.FieldSelector != nil {
		if items, known = r.listedObjectsByCacheKey[listedKindCacheKey(kind, o.Namespace)+"?"+o.FieldSelector.String()]; known {
			o.FieldSelector = nil
		}
	}
	if !known && o.FieldSelector == nil && o.LabelSelector != nil {
		items, known = r.listedObjectsByCacheKey[listedKindCacheKey(kind, o.Namespace)+labelCacheKeySuffix(o.LabelSelector)]
	}
	r.mu.Unlock()
	if !known {
		o.FieldSelector, o.LabelSelector = r.replaceIndexFieldByLabels(o.FieldSelector, o.LabelSelector)
		err = r.apiClient.List(ctx, into, &o)
		return r.recordMissingRightOrKind(err, kind, "list", o.Namespace)
	}
	return r.copySelectedItems(kind, items, &o, into)
}

// ListFromServer lists all objects of a kind although it may have been listed as metadata.
func (r *Reader) ListFromServer(ctx context.Context, into client.ObjectList) error {
	kind, err := r.kindOf(into)
	if err != nil {
		return err
	}
	return r.recordMissingRightOrKind(r.apiClient.List(ctx, into), kind, "list", "")
}

// copySelectedItems copies those of the items that the options select.
func (r *Reader) copySelectedItems(kind itemKindAndResource, items []client.Object, o *client.ListOptions, into client.ObjectList) error {
	var out []runtime.Object
	for _, item := range items {
		if o.Namespace != "" && item.GetNamespace() != o.Namespace {
			continue
		}
		if o.LabelSelector != nil && !o.LabelSelector.Matches(labels.Set(item.GetLabels())) {
			continue
		}
		if o.FieldSelector != nil && !r.matchesIndex(kind, item, o.FieldSelector.Requirements()) {
			continue
		}
		out = append(out, item)
		if o.Limit > 0 && int64(len(out)) == o.Limit {
			break
		}
	}
	return meta.SetList(into, out)
}

func (r *Reader) matchesIndex(kind itemKindAndResource, o client.Object, requirements fields.Requirements) bool {
	for _, q := range requirements {
		r.mu.Lock()
		values := r.indexerFuncByField[kind.itemKind+"."+q.Field]
		r.mu.Unlock()
		if values == nil || !slices.Contains(values(o), q.Value) {
			return false
		}
	}
	return true
}

// replaceIndexFieldByLabels replaces the value of an index by labels. Other fields go to the API
// server.
func (r *Reader) replaceIndexFieldByLabels(field fields.Selector, byLabel labels.Selector) (fields.Selector, labels.Selector) {
	if field == nil || field.Empty() {
		return field, byLabel
	}
	for _, q := range field.Requirements() {
		if translate := r.labelsFuncByIndex[q.Field]; translate != nil {
			return nil, labels.SelectorFromSet(translate(q.Value))
		}
	}
	return field, byLabel
}

func (r *Reader) groupResource(kind itemKindAndResource) (out schema.GroupResource) {
	out.Resource, out.Group, _ = strings.Cut(kind.resource, ".")
	return out
}

// IsAPIServerUnreachable reports whether an error says that no API server answers.
func IsAPIServerUnreachable(err error) bool {
	var network net.Error
	var address *url.Error
	return errors.As(err, &network) || errors.As(err, &address) || errors.Is(err, context.DeadlineExceeded) || apierrors.IsServiceUnavailable(err)
}
