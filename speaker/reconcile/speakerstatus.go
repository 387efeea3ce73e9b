package reconcile

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
)

// writeSpeakerStatus writes the node's SpeakerStatus if it changed.
func (w *StatusWriter) writeSpeakerStatus(ctx context.Context, s v1alpha1.SpeakerStatusStatus) error {
	if !w.isSpeakerStatusWriteDue(&s) {
		return nil
	}
	if err := w.readEarlierMoves(ctx); err != nil {
		return err
	}
	s.Moves = w.moves.ListNewestFirst()
	var before []metav1.Condition
	if w.writtenSpeakerStatus != nil {
		before = w.writtenSpeakerStatus.Conditions
	}
	// without conditions of what is switched off by now
	conditions := slices.DeleteFunc(slices.Clone(before), func(c metav1.Condition) bool {
		return meta.FindStatusCondition(s.Conditions, c.Type) == nil
	})
	for _, c := range s.Conditions { // keeps the time of the last transition
		meta.SetStatusCondition(&conditions, c)
	}
	now := metav1.NewTime(w.options.Now().Truncate(time.Second).UTC())
	s.Conditions, s.LastSeen = conditions, &now
	o := &v1alpha1.SpeakerStatus{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "SpeakerStatus"},
		ObjectMeta: metav1.ObjectMeta{Namespace: w.options.Namespace, Name: w.options.Self},
		Status:     s,
	}
	var node corev1.Node
	if err := w.options.Client.Get(ctx, client.ObjectKey{Name: w.options.Self}, &node); err == nil {
		// The Node is the owner, since the speaker's Pod is replaced too often.
		o.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}}
	}
	if err := w.applySpeakerStatus(ctx, o); err != nil {
		return err
	}
	w.writtenSpeakerStatus, w.speakerStatusWrittenAt = &s, w.options.Now()
	return nil
}

// applySpeakerStatus writes only the status if the object exists.
func (w *StatusWriter) applySpeakerStatus(ctx context.Context, o *v1alpha1.SpeakerStatus) error {
	if w.writtenSpeakerStatus != nil {
		if err := applyStatus(ctx, w.options.Client, o, names.SpeakerEventSource); !apierrors.IsNotFound(err) {
			return err
		}
	}
	return applyObjectAndStatus(ctx, w.options.Client, o)
}

// readEarlierMoves reads once what an earlier speaker of this node wrote about moves.
func (w *StatusWriter) readEarlierMoves(ctx context.Context) error {
	if w.hasEarlierMoves {
		return nil
	}
	var s v1alpha1.SpeakerStatus
	err := w.options.UncachedReader.Get(ctx, client.ObjectKey{Namespace: w.options.Namespace, Name: w.options.Self}, &s)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("reading the moves in SpeakerStatus %q: %w", w.options.Self, err)
	}
	w.moves.AddEarlierMoves(s.Status.Moves)
	w.hasEarlierMoves = true
	return nil
}

// minCountChangeInterval is the time between two writes of one object in which only a count
// changes. While thousands of Services are created, the counts change many times a second on every
// node.
const minCountChangeInterval = 5 * time.Second

// isSpeakerStatusWriteDue reports whether the status has to be written now. Times and moves cost no
// write of their own, and counts wait for minCountChangeInterval. A count that becomes 0, or is 0
// no more, does not wait: the controller follows it.
func (w *StatusWriter) isSpeakerStatusWriteDue(s *v1alpha1.SpeakerStatusStatus) bool {
	age := w.options.Now().Sub(w.speakerStatusWrittenAt)
	if w.writtenSpeakerStatus == nil || age >= lastSeenInterval {
		return true
	}
	before, after := w.writtenSpeakerStatus.DeepCopy(), s.DeepCopy()
	before.LastSeen, after.LastSeen, before.Moves, after.Moves = nil, nil, nil, nil
	for i := range before.Conditions {
		before.Conditions[i].LastTransitionTime = metav1.Time{}
	}
	if haveOnlyCountsChanged(before, after) && age < minCountChangeInterval {
		return false
	}
	return !equality.Semantic.DeepEqual(before, after)
}

// haveOnlyCountsChanged reports whether the statuses differ in counts alone, if at all, and no
// count becomes 0 or is 0 no more.
func haveOnlyCountsChanged(before, after *v1alpha1.SpeakerStatusStatus) bool {
	x, y := *before, *after
	x.Held, x.Routes, y.Held, y.Routes = min(x.Held, 1), min(x.Routes, 1), min(y.Held, 1), min(y.Routes, 1)
	return equality.Semantic.DeepEqual(x, y)
}

// applyObjectAndStatus writes an object and its status by server-side apply.
func applyObjectAndStatus(ctx context.Context, c client.Client, o client.Object) error {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return fmt.Errorf("encoding %T %q: %w", o, o.GetName(), err)
	}
	u := &unstructured.Unstructured{Object: content}
	unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(u.Object, "status")
	owner := client.FieldOwner(names.SpeakerEventSource)
	if err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), owner, client.ForceOwnership); err != nil {
		return fmt.Errorf("writing %s %q: %w", o.GetObjectKind().GroupVersionKind().Kind, o.GetName(), err)
	}
	return applyStatus(ctx, c, o, names.SpeakerEventSource)
}

// applyStatus writes the status of an object by server-side apply, as the owner of its fields.
func applyStatus(ctx context.Context, c client.Client, o client.Object, owner client.FieldOwner) error {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return fmt.Errorf("encoding %T %q: %w", o, o.GetName(), err)
	}
	whole := &unstructured.Unstructured{Object: content}
	unstructured.RemoveNestedField(whole.Object, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(whole.Object, "metadata", "labels")
	unstructured.RemoveNestedField(whole.Object, "metadata", "ownerReferences")
	if err := c.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(whole), owner, client.ForceOwnership); err != nil {
		return fmt.Errorf("writing the status of %s %q: %w", o.GetObjectKind().GroupVersionKind().Kind, o.GetName(), err)
	}
	return nil
}
