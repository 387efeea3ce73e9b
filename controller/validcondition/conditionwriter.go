// Package validcondition writes the condition Valid of configuration objects, and the
// ConfigurationState.
package validcondition

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// Options are the settings of a ConditionWriter.
type Options struct {
	Client client.Client
	Log    *slog.Logger
	// Scope is the part of the configuration that is read.
	Scope configuration.ConfigurationScope
	// ConfigurationReader publishes the Problems.
	ConfigurationReader *configurationreader.Reader
}

// ConditionWriter reports what is wrong with configuration objects: a condition on each object, and
// one ConfigurationState for all. Package assign writes the condition of an IPAddressPool together
// with its counters. Use NewConditionWriter to create it.
type ConditionWriter struct{ Options }

// NewConditionWriter returns a ConditionWriter to register with a manager.
func NewConditionWriter(o Options) *ConditionWriter { return &ConditionWriter{o} }

// RegisterController registers the reconciler. Any number of changes causes one check of all
// objects.
func (r *ConditionWriter) RegisterController(mgr ctrl.Manager) error {
	all := ctrl.Request{NamespacedName: client.ObjectKey{Name: "configuration"}}
	whole := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []ctrl.Request { return []ctrl.Request{all} })
	published := r.ConfigurationReader.Subscribe()
	b := ctrl.NewControllerManagedBy(mgr).Named("configuration").
		Watches(&v1beta1.ConfigurationState{}, whole, builder.WithPredicates(newNamePredicate(names.ComponentController))).
		WatchesRawSource(source.Func(func(ctx context.Context, queue workqueue.TypedRateLimitingInterface[ctrl.Request]) error {
			go func() {
				for {
					select {
					case <-ctx.Done():
						return
					case <-published:
						queue.Add(all)
					}
				}
			}()
			return nil
		}))
	for _, k := range r.Scope.WatchedKinds() { // others may write a status that is wrong
		b = b.Watches(k, whole)
	}
	if err := b.Complete(r); err != nil {
		return fmt.Errorf("setting up the configuration's conditions: %w", err)
	}
	return nil
}

// newNamePredicate accepts events about objects with that name.
func newNamePredicate(name string) predicate.Predicate {
	return predicate.NewPredicateFuncs(func(o client.Object) bool { return o.GetName() == name })
}

// Reconcile writes what is wrong. It skips an object that is newer than the configuration that was
// read: the next reading has it. A failed write does not stop the others and is repeated.
func (r *ConditionWriter) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	read, _ := r.ConfigurationReader.LatestConfiguration()
	if read == nil { // the first reading causes its own request
		return ctrl.Result{}, nil
	}
	o, err := r.Scope.ReadObjects(ctx, r.Client)
	if err != nil {
		return ctrl.Result{}, err
	}
	state := configuration.StateWriter{ReportingComponent: names.ComponentController, Namespace: r.Scope.Namespace}
	errs := []error{state.WriteProblemsIntoState(ctx, r.Client, read.Problems)}
	for _, c := range conditionedObjects(&o) {
		if read.IsUpToDateWith(c) {
			errs = append(errs, r.writeValidCondition(ctx, c, read.Problems))
		}
	}
	return ctrl.Result{}, errors.Join(errs...)
}

// conditionedObject is a configuration object with access to its conditions.
type conditionedObject struct {
	client.Object
	kind                    string
	statusConditionsPointer func() *[]metav1.Condition
}

// conditionedObjects returns the objects with conditions that this reconciler writes. They are
// copies, because objects from a cache must not be modified.
func conditionedObjects(o *snapshot.ConfigurationObjects) []conditionedObject {
	var out []conditionedObject
	for i := range o.L2Advertisements {
		x := o.L2Advertisements[i].DeepCopy()
		out = append(out, conditionedObject{x, "L2Advertisement", func() *[]metav1.Condition { return ensureStatusConditions(&x.Status.Gantry) }})
	}
	for i := range o.BGPAdvertisements {
		x := o.BGPAdvertisements[i].DeepCopy()
		out = append(out, conditionedObject{x, "BGPAdvertisement", func() *[]metav1.Condition { return ensureStatusConditions(&x.Status.Gantry) }})
	}
	for i := range o.BFDProfiles {
		x := o.BFDProfiles[i].DeepCopy()
		out = append(out, conditionedObject{x, "BFDProfile", func() *[]metav1.Condition { return ensureStatusConditions(&x.Status.Gantry) }})
	}
	for i := range o.Communities {
		x := o.Communities[i].DeepCopy()
		out = append(out, conditionedObject{x, "Community", func() *[]metav1.Condition { return ensureStatusConditions(&x.Status.Gantry) }})
	}
	for i := range o.BGPPeers {
		x := o.BGPPeers[i].DeepCopy()
		out = append(out, conditionedObject{x, "BGPPeer", func() *[]metav1.Condition {
			if x.Status.Gantry == nil {
				x.Status.Gantry = &v1beta2.ObjectStatus{}
			}
			return &x.Status.Gantry.Conditions
		}})
	}
	return out
}

// ensureStatusConditions returns the conditions. It creates the status if it is missing.
func ensureStatusConditions(s **v1beta1.ObjectStatus) *[]metav1.Condition {
	if *s == nil {
		*s = &v1beta1.ObjectStatus{}
	}
	return &(*s).Conditions
}

func (r *ConditionWriter) writeValidCondition(ctx context.Context, o conditionedObject, problems []snapshot.Problem) error {
	before, ok := o.DeepCopyObject().(client.Object)
	if !ok {
		return fmt.Errorf("copying %s %q: the copy is not an object", o.kind, o.GetName())
	}
	c := configuration.NewValidCondition(snapshot.ObjectReference{Kind: o.kind, Namespace: o.GetNamespace(), Name: o.GetName()}, o.GetGeneration(), problems)
	if !meta.SetStatusCondition(o.statusConditionsPointer(), c) || equality.Semantic.DeepEqual(before, o.Object) {
		return nil
	}
	if err := r.Client.Status().Patch(ctx, o.Object, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("writing the status of %s %q: %w", o.kind, o.GetName(), err)
	}
	if c.Status == metav1.ConditionFalse {
		r.Log.Warn("a configuration object has a problem", "object", o.kind+"/"+o.GetName(), "reason", c.Reason, "cause", c.Message)
	}
	return nil
}
