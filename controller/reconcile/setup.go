package reconcile

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
)

// countersInterval bounds how often the counters in the pools' status are written.
const countersInterval = time.Second

// Setup registers the worker and everything it watches. Everything in it runs on the leader only.
func (r *Services) Setup(mgr ctrl.Manager) error {
	r.wake = make(chan event.GenericEvent)
	toConfig := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []ctrl.Request {
		return []ctrl.Request{{NamespacedName: configRequest}}
	})
	err := ctrl.NewControllerManagedBy(mgr).
		Named("services").
		For(&corev1.Service{}).
		Watches(&v1beta1.IPAddressPool{}, toConfig).
		WatchesMetadata(configuration.Metadata("Namespace"), toConfig, builder.WithPredicates(labelChanges())).
		WatchesRawSource(source.Channel(r.wake, &handler.EnqueueRequestForObject{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: 1}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("setting up the Service worker: %w", err)
	}
	if err := mgr.Add(manager.RunnableFunc(r.tick)); err != nil {
		return fmt.Errorf("setting up the pools' counters: %w", err)
	}
	if err := mgr.Add(manager.RunnableFunc(r.makeGossipKey)); err != nil {
		return fmt.Errorf("setting up the gossip key: %w", err)
	}
	return nil
}

// Loaded says whether the Ledger holds every address in use.
func (r *Services) Loaded() bool { return r.loaded.Load() }

// labelChanges passes the events that may change which namespaces a selector matches.
func labelChanges() predicate.Predicate {
	return predicate.LabelChangedPredicate{}
}

// tick asks for the pools' status to be written when it is stale, at most once an interval.
func (r *Services) tick(ctx context.Context) error {
	t := time.NewTicker(countersInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if !r.countersStale.Swap(false) {
			continue
		}
		o := &corev1.Service{}
		o.Name = statusRequest.Name
		select {
		case r.wake <- event.GenericEvent{Object: o}:
		case <-ctx.Done():
			return nil
		}
	}
}

// makeGossipKey creates the Secret with the speakers' gossip key unless it is there. It is never overwritten: speakers
// with different keys do not hear each other.
func (r *Services) makeGossipKey(ctx context.Context) error {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return fmt.Errorf("making a gossip key: %w", err)
	}
	s := &corev1.Secret{Data: map[string][]byte{names.GossipSecretKey: key}, Type: corev1.SecretTypeOpaque}
	s.Namespace, s.Name = r.Namespace, names.GossipSecret
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		err := r.Client.Create(ctx, s.DeepCopy())
		if err == nil {
			r.Log.Info("gossip key made", "secret", r.Namespace+"/"+names.GossipSecret)
			return nil
		}
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		r.Log.Error("making the gossip key; speakers wait for it", "secret", r.Namespace+"/"+names.GossipSecret, "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}
