package preview

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/jsonmergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
)

// Action is what an edit does to an object.
type Action string

// The actions.
const (
	ActionCreated    Action = "created"
	ActionConfigured Action = "configured"
	ActionUnchanged  Action = "unchanged"
	ActionDeleted    Action = "deleted"
	// ActionIgnored is about an object that has no part in what Gantry decides. The API server is
	// not asked about it.
	ActionIgnored Action = "ignored"
)

// EditedObject is one object of an edit.
type EditedObject struct {
	// Object is the kind, the namespace and the name: "IPAddressPool metallb-system/office".
	Object string `json:"object"`
	Action Action `json:"action"`
	// Refusal is why the API server would refuse the edit of the object; empty if it accepts it.
	Refusal string `json:"refusal,omitempty"`
	// IsRightMissing says that only a right of the user is missing. The answer then assumes that
	// somebody else makes the edit.
	IsRightMissing bool `json:"isRightMissing,omitempty"`
	// Note is what else there is to know.
	Note string `json:"note,omitempty"`
	// Changes are the fields that the edit changes, for --diff.
	Changes []FieldChange `json:"changes,omitempty"`

	// before and after are nil if the object does not exist before or after the edit, or has no
	// part in what Gantry decides.
	before, after client.Object
}

// DryRunner asks the API server what an edit would do, with the rights of the user. It changes
// nothing. The API server checks each object alone: it does not see the others of the edit.
type DryRunner struct {
	API client.Client
	// GantryNamespace has the objects of Gantry, UserNamespace is that of objects without one.
	GantryNamespace, UserNamespace string
}

// fieldOwner is the one that kubectl apply has.
const fieldOwner = client.FieldOwner("kubectl-client-side-apply")

// DryRunApply says what kubectl apply would do with the object.
func (d *DryRunner) DryRunApply(ctx context.Context, manifest *unstructured.Unstructured) (EditedObject, error) {
	u, out := d.prepareObject(manifest)
	if out.Action == ActionIgnored {
		return out, nil
	}
	current := &unstructured.Unstructured{}
	current.SetGroupVersionKind(u.GroupVersionKind())
	err := d.API.Get(ctx, client.ObjectKeyFromObject(u), current)
	switch {
	case apierrors.IsNotFound(err):
		return d.dryRunCreate(ctx, u, out)
	case apierrors.IsForbidden(err):
		out.Action, out.Refusal = ActionIgnored, err.Error()
		return out, nil
	case err != nil:
		return out, fmt.Errorf("reading %s: %w", out.Object, err)
	}
	patch, merged, err := d.mergeAsKubectlApply(current, u)
	if err != nil {
		return out, fmt.Errorf("comparing %s with the cluster: %w", out.Object, err)
	}
	return d.dryRunPatch(ctx, current, merged, patch, out)
}

// DryRunEdit says what the change of an object that exists would do.
func (d *DryRunner) DryRunEdit(ctx context.Context, current client.Object, change func(client.Object)) (EditedObject, error) {
	changed, ok := current.DeepCopyObject().(client.Object)
	if !ok {
		return EditedObject{}, fmt.Errorf("%T is no object with metadata", current)
	}
	change(changed)
	data, err := client.MergeFrom(current).Data(changed)
	if err != nil {
		return EditedObject{}, fmt.Errorf("encoding the change: %w", err)
	}
	var changes map[string]any
	if err := json.Unmarshal(data, &changes); err != nil {
		return EditedObject{}, fmt.Errorf("encoding the change: %w", err)
	}
	kinds, _, err := d.API.Scheme().ObjectKinds(current)
	if err != nil {
		return EditedObject{}, err
	}
	before := &unstructured.Unstructured{}
	before.SetGroupVersionKind(kinds[0])
	if err := d.API.Get(ctx, client.ObjectKeyFromObject(current), before); err != nil {
		return EditedObject{}, fmt.Errorf("reading %s: %w", current.GetName(), err)
	}
	merged := &unstructured.Unstructured{Object: mergeJSON(before.DeepCopy().Object, changes)}
	return d.dryRunPatch(ctx, before, merged, client.RawPatch(types.MergePatchType, data), EditedObject{Object: nameObject(before)})
}

// prepareObject returns the object as it would be sent. The action is ActionIgnored if the object
// has no part in what Gantry decides.
func (d *DryRunner) prepareObject(manifest *unstructured.Unstructured) (*unstructured.Unstructured, EditedObject) {
	u := manifest.DeepCopy()
	if gvk := u.GroupVersionKind(); gvk.Group == v1beta1.GroupVersion.Group && gvk.Kind == "BGPPeer" {
		u.SetGroupVersionKind(v1beta2.GroupVersion.WithKind(gvk.Kind)) // the schema is the same
	}
	out := EditedObject{Action: ActionIgnored}
	mapping, err := d.API.RESTMapper().RESTMapping(u.GroupVersionKind().GroupKind(), u.GroupVersionKind().Version)
	isNamespaced := err == nil && mapping.Scope.Name() == meta.RESTScopeNameNamespace
	if isNamespaced && u.GetNamespace() == "" {
		u.SetNamespace(d.UserNamespace)
	}
	out.Object = nameObject(u)
	switch {
	case err != nil || !isKindThatGantryReads(u.GroupVersionKind()):
		out.Note = "Gantry decides nothing by it"
	case u.GetName() == "":
		out.Refusal = "it has no name"
	case isNamespaced && u.GetNamespace() != d.GantryNamespace && u.GroupVersionKind().Group != corev1.GroupName:
		out.Note = "Gantry reads only namespace " + d.GantryNamespace
	default:
		out.Action = ActionUnchanged
	}
	return u, out
}

// isKindThatGantryReads reports whether Gantry decides by objects of the kind, and users write
// them.
func isKindThatGantryReads(gvk schema.GroupVersionKind) bool {
	switch gvk.Group {
	case corev1.GroupName:
		return slices.Contains([]string{"Service", "Node", "Namespace", "Secret"}, gvk.Kind)
	case v1beta1.GroupVersion.Group:
		return slices.Contains([]string{"IPAddressPool", "L2Advertisement", "BGPAdvertisement", "BGPPeer", "BFDProfile", "Community"}, gvk.Kind)
	case v1alpha1.GroupVersion.Group:
		return gvk.Kind == "AddressReservation"
	}
	return false
}

func (d *DryRunner) dryRunCreate(ctx context.Context, u *unstructured.Unstructured, out EditedObject) (EditedObject, error) {
	out.Action = ActionCreated
	created := u.DeepCopy()
	err := d.API.Create(ctx, created, client.DryRunAll, fieldOwner)
	if apierrors.IsNotFound(err) && u.GetNamespace() != "" {
		out.Note = fmt.Sprintf("the API server cannot check it before namespace %s exists", u.GetNamespace())
		created, err = u.DeepCopy(), nil
	}
	if isKept, err := out.recordRefusal(err); !isKept || err != nil {
		return out, err
	}
	after, err := d.toTyped(created)
	if err != nil {
		out.Refusal = err.Error()
		return out, nil
	}
	out.after, out.Changes = after, listFieldChanges(nil, created)
	return out, nil
}

func (d *DryRunner) dryRunPatch(ctx context.Context, current, merged *unstructured.Unstructured, patch client.Patch, out EditedObject) (EditedObject, error) {
	out.Action = ActionConfigured
	answer := merged.DeepCopy()
	err := d.API.Patch(ctx, answer, patch, client.DryRunAll, fieldOwner)
	if err != nil {
		answer = merged
	}
	if isKept, err := out.recordRefusal(err); !isKept || err != nil {
		return out, err
	}
	if out.before, err = d.toTyped(current); err == nil {
		out.after, err = d.toTyped(answer)
	}
	if err != nil {
		out.Refusal, out.before, out.after = err.Error(), nil, nil
		return out, nil
	}
	if out.Changes = listFieldChanges(current, answer); len(out.Changes) == 0 {
		out.Action = ActionUnchanged
	}
	return out, nil
}

// DryRunDelete says what kubectl delete would do with the object.
func (d *DryRunner) DryRunDelete(ctx context.Context, manifest *unstructured.Unstructured) (EditedObject, error) {
	u, out := d.prepareObject(manifest)
	if out.Action == ActionIgnored {
		return out, nil
	}
	current := &unstructured.Unstructured{}
	current.SetGroupVersionKind(u.GroupVersionKind())
	err := d.API.Get(ctx, client.ObjectKeyFromObject(u), current)
	if apierrors.IsNotFound(err) {
		out.Note = "it does not exist"
		return out, nil
	}
	if err == nil {
		out.Action = ActionDeleted
		err = d.API.Delete(ctx, current.DeepCopy(), client.DryRunAll)
	}
	if isKept, err := out.recordRefusal(err); !isKept || err != nil {
		return out, err
	}
	if out.before, err = d.toTyped(current); err != nil {
		out.Refusal = err.Error()
	}
	return out, nil
}

// recordRefusal records the answer of the API server. isKept is false if the edit would not be
// made. Other errors than refusals are returned.
func (o *EditedObject) recordRefusal(err error) (isKept bool, other error) {
	switch {
	case err == nil:
		return true, nil
	case apierrors.ReasonForError(err) == metav1.StatusReasonUnknown || objects.IsAPIServerUnreachable(err) || apierrors.IsUnauthorized(err):
		return false, fmt.Errorf("asking the API server about %s: %w", o.Object, err)
	}
	o.Refusal = strings.Join(strings.Fields(err.Error()), " ")
	o.IsRightMissing = apierrors.IsForbidden(err) && strings.Contains(o.Refusal, "cannot ") && strings.Contains(o.Refusal, " resource ")
	return o.IsRightMissing, nil
}

// mergeAsKubectlApply returns the patch that kubectl apply sends, and the object after it.
func (d *DryRunner) mergeAsKubectlApply(current, manifest *unstructured.Unstructured) (client.Patch, *unstructured.Unstructured, error) {
	last := []byte(current.GetAnnotations()[corev1.LastAppliedConfigAnnotation])
	modified, err := encodeWithLastApplied(manifest)
	if err != nil {
		return nil, nil, err
	}
	was, err := current.MarshalJSON()
	if err != nil {
		return nil, nil, err
	}
	merged := &unstructured.Unstructured{}
	typed, errTyped := d.API.Scheme().New(manifest.GroupVersionKind())
	if manifest.GroupVersionKind().Group == corev1.GroupName && errTyped == nil {
		byStruct, err := strategicpatch.NewPatchMetaFromStruct(typed)
		if err != nil {
			return nil, nil, err
		}
		data, err := strategicpatch.CreateThreeWayMergePatch(last, modified, was, byStruct, true)
		if err != nil {
			return nil, nil, err
		}
		text, err := strategicpatch.StrategicMergePatch(was, data, typed)
		if err != nil {
			return nil, nil, err
		}
		return client.RawPatch(types.StrategicMergePatchType, data), merged, merged.UnmarshalJSON(text)
	}
	data, err := jsonmergepatch.CreateThreeWayJSONMergePatch(last, modified, was)
	if err != nil {
		return nil, nil, err
	}
	var changes map[string]any
	if err := json.Unmarshal(data, &changes); err != nil {
		return nil, nil, err
	}
	merged.Object = mergeJSON(current.DeepCopy().Object, changes)
	return client.RawPatch(types.MergePatchType, data), merged, nil
}

// encodeWithLastApplied encodes the object with the annotation in which kubectl apply stores it.
func encodeWithLastApplied(manifest *unstructured.Unstructured) ([]byte, error) {
	plain := manifest.DeepCopy()
	annotations := plain.GetAnnotations()
	delete(annotations, corev1.LastAppliedConfigAnnotation)
	plain.SetAnnotations(annotations)
	text, err := plain.MarshalJSON()
	if err != nil {
		return nil, err
	}
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[corev1.LastAppliedConfigAnnotation] = string(text)
	plain.SetAnnotations(annotations)
	return plain.MarshalJSON()
}

// mergeJSON applies a merge patch (RFC 7396): null deletes a field, and a list replaces a list.
func mergeJSON(into, changes map[string]any) map[string]any {
	for key, value := range changes {
		changed, isMap := value.(map[string]any)
		switch {
		case value == nil:
			delete(into, key)
		case isMap:
			inner, _ := into[key].(map[string]any)
			if inner == nil {
				inner = map[string]any{}
			}
			into[key] = mergeJSON(inner, changed)
		default:
			into[key] = value
		}
	}
	return into
}

func (d *DryRunner) toTyped(u *unstructured.Unstructured) (client.Object, error) {
	o, err := d.API.Scheme().New(u.GroupVersionKind())
	if err != nil {
		return nil, err
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, o); err != nil {
		return nil, fmt.Errorf("decoding %s: %w", nameObject(u), err)
	}
	typed, ok := o.(client.Object)
	if !ok {
		return nil, fmt.Errorf("%T is no object with metadata", o)
	}
	return typed, nil
}

// nameObject names the kind, the namespace and the name of an object.
func nameObject(u *unstructured.Unstructured) string {
	if u.GetNamespace() == "" {
		return u.GetKind() + " " + u.GetName()
	}
	return u.GetKind() + " " + u.GetNamespace() + "/" + u.GetName()
}
