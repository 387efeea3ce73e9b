package bundle

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
)

// Client answers from a Bundle as the API server answered its maker: also that a right is missing,
// or that a kind is unknown.
type Client struct {
	bundle *Bundle
	scheme *runtime.Scheme
	mapper meta.RESTMapper
}

// NewClient returns a Client.
func NewClient(b *Bundle, scheme *runtime.Scheme, mapper meta.RESTMapper) *Client {
	return &Client{b, scheme, mapper}
}

// Scheme returns the kinds that the Client knows.
func (c *Client) Scheme() *runtime.Scheme { return c.scheme }

// RESTMapper returns the resources of the kinds.
func (c *Client) RESTMapper() meta.RESTMapper { return c.mapper }

// errNoSelectorField says that a list is selected by a field that a Bundle does not know.
var errNoSelectorField = errors.New("a bundle does not select by this field")

// findObjects returns the objects of the resource in the namespace, or why there are none.
func (c *Client) findObjects(o runtime.Object, namespace, name string) ([]client.Object, error) {
	resource, err := resourceOf(o, c.scheme, c.mapper)
	if err != nil {
		return nil, err
	}
	word, group, _ := strings.Cut(resource, ".")
	named := schema.GroupResource{Group: group, Resource: word}
	switch r := c.bundle.readingOf(resource); {
	case r == nil:
		return nil, fmt.Errorf("the bundle has no %s", resource)
	case r.IsAbsent:
		return nil, &meta.NoResourceMatchError{PartialResource: named.WithVersion("")}
	case r.Failure != "":
		return nil, errors.New(r.Failure)
	case !r.includes(namespace):
		return nil, apierrors.NewForbidden(named, name, errors.New("the maker of the bundle had no right to read it"))
	case resource == secretsResource:
		return c.substituteSecrets(), nil
	}
	var out []client.Object
	for _, stored := range c.bundle.objectsByResource[resource] {
		if namespace == "" || stored.GetNamespace() == namespace {
			out = append(out, stored)
		}
	}
	if name == "" {
		return out, nil
	}
	at := slices.IndexFunc(out, func(stored client.Object) bool { return stored.GetName() == name })
	if at < 0 {
		return nil, apierrors.NewNotFound(named, name)
	}
	return out[at : at+1], nil
}

// Get implements client.Reader.
func (c *Client) Get(_ context.Context, key client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	found, err := c.findObjects(into, key.Namespace, key.Name)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(found, func(o client.Object) bool { return o.GetName() == key.Name })
	if at < 0 {
		return apierrors.NewNotFound(schema.GroupResource{Resource: secretsResource}, key.Name)
	}
	copied := reflect.ValueOf(found[at].DeepCopyObject())
	if target := reflect.ValueOf(into); target.Type() == copied.Type() {
		target.Elem().Set(copied.Elem())
		return nil
	}
	return fmt.Errorf("the bundle has a %T, not a %T", found[at], into)
}

// List implements client.Reader.
func (c *Client) List(_ context.Context, into client.ObjectList, opts ...client.ListOption) error {
	var o client.ListOptions
	o.ApplyOptions(opts)
	found, err := c.findObjects(into, o.Namespace, "")
	if err != nil {
		return err
	}
	var items []runtime.Object
	for _, stored := range found {
		isSelected, err := matchesSelectors(stored, o.LabelSelector, o.FieldSelector)
		if err != nil {
			return err
		}
		if !isSelected {
			continue
		}
		if onlyMetadata, ok := into.(*metav1.PartialObjectMetadataList); ok {
			items = append(items, metadataOf(stored, onlyMetadata.GroupVersionKind()))
			continue
		}
		items = append(items, stored.DeepCopyObject())
	}
	if o.Limit > 0 && int64(len(items)) > o.Limit {
		items = items[:o.Limit]
	}
	return meta.SetList(into, items)
}

// metadataOf returns the metadata of an object.
func metadataOf(o client.Object, list schema.GroupVersionKind) *metav1.PartialObjectMetadata {
	out := &metav1.PartialObjectMetadata{}
	out.SetGroupVersionKind(list.GroupVersion().WithKind(strings.TrimSuffix(list.Kind, "List")))
	if all, ok := o.(metav1.ObjectMetaAccessor); ok {
		if m, ok := all.GetObjectMeta().(*metav1.ObjectMeta); ok {
			m.DeepCopyInto(&out.ObjectMeta)
		}
	}
	return out
}

// matchesSelectors reports whether a list with these selectors has the object.
func matchesSelectors(o client.Object, byLabel labels.Selector, byField fields.Selector) (bool, error) {
	if byLabel != nil && !byLabel.Matches(labels.Set(o.GetLabels())) {
		return false, nil
	}
	if byField == nil {
		return true, nil
	}
	for _, q := range byField.Requirements() {
		var value string
		switch typed, isEvent := o.(*corev1.Event); {
		case q.Field == "metadata.name":
			value = o.GetName()
		case q.Field == "reason" && isEvent:
			value = typed.Reason
		case q.Field == "type":
			secret, ok := o.(*corev1.Secret)
			if !ok {
				return false, fmt.Errorf("%w: %s", errNoSelectorField, q.Field)
			}
			value = string(secret.Type)
		default:
			return false, fmt.Errorf("%w: %s", errNoSelectorField, q.Field)
		}
		if value != q.Value {
			return false, nil
		}
	}
	return true, nil
}

// substituteSecrets returns Secrets that have the faults of the real ones, and other passwords.
func (c *Client) substituteSecrets() []client.Object {
	var out []client.Object
	for _, p := range c.bundle.Manifest.PasswordSecrets {
		s := &corev1.Secret{Type: corev1.SecretType(p.Type)}
		s.Namespace, s.Name = c.bundle.Manifest.GantryNamespace, p.Name
		if p.Substitute != nil {
			s.Data = map[string][]byte{corev1.BasicAuthPasswordKey: []byte(*p.Substitute)}
		}
		out = append(out, s)
	}
	return out
}

// Create answers the question for a right of one of Gantry's programs. It creates nothing.
func (c *Client) Create(_ context.Context, o client.Object, _ ...client.CreateOption) error {
	question, ok := o.(*authorizationv1.SubjectAccessReview)
	if !ok {
		return fmt.Errorf("a bundle is only read: it cannot create a %T", o)
	}
	if c.bundle.Manifest.CannotReviewRights {
		return apierrors.NewForbidden(schema.GroupResource{Group: authorizationv1.GroupName, Resource: "subjectaccessreviews"}, "", errors.New("the maker of the bundle had no right to ask"))
	}
	question.Status.Allowed = !slices.ContainsFunc(c.bundle.Manifest.DeniedRights, func(d AccountRight) bool {
		return reflect.DeepEqual(objects.NewAccessReview(d.Account, d.Right).Spec, question.Spec)
	})
	return nil
}
