package reconcile

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
	ctrlcache "sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/view"
)

// Setup has the worker run while mgr leads, with news from mgr's cache. The cache fills while the controller stands by, so that it
// can begin at once when it leads.
func (r *Services) Setup(ctx context.Context, mgr manager.Manager) error {
	feeds := []struct {
		object  client.Object
		handler cache.ResourceEventHandler
	}{
		{&corev1.Service{}, r.serviceEvents()},
		{&v1beta1.IPAddressPool{}, r.configEvents()},
		{&v1alpha1.AddressReservation{}, r.configEvents()},
		{&v1alpha1.AddressProbe{}, r.probeEvents()},
		{configuration.NewMetadataObject("Namespace"), r.configEvents()},
	}
	for _, f := range feeds {
		// The API server may be away: mgr waits for the cache when it starts.
		informer, err := mgr.GetCache().GetInformer(ctx, f.object, ctrlcache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watching %T: %w", f.object, err)
		}
		if _, err := informer.AddEventHandler(f.handler); err != nil {
			return fmt.Errorf("watching %T: %w", f.object, err)
		}
	}
	if err := mgr.Add(manager.RunnableFunc(r.Run)); err != nil {
		return fmt.Errorf("setting up the worker: %w", err)
	}
	return nil
}

// serviceEvents tells the worker which Services changed.
func (r *Services) serviceEvents() cache.ResourceEventHandler {
	add := func(o any) {
		if s, ok := o.(*corev1.Service); ok {
			r.Changed(view.ObjectKey{Namespace: s.Namespace, Name: s.Name})
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    add,
		UpdateFunc: func(_, o any) { add(o) },
		DeleteFunc: func(o any) {
			if unknown, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = unknown.Obj
			}
			if s, ok := o.(*corev1.Service); ok {
				r.Deleted(s)
			}
		},
	}
}

// probeEvents tells the worker that a speaker may have said something about an address.
func (r *Services) probeEvents() cache.ResourceEventHandler {
	poke := func(any) { r.Answered() }
	return cache.ResourceEventHandlerFuncs{AddFunc: poke, UpdateFunc: func(_, o any) { poke(o) }, DeleteFunc: poke}
}

// configEvents tells the worker that the configuration changed, or that somebody wrote a status that may not be right.
func (r *Services) configEvents() cache.ResourceEventHandler {
	change := func(any) { r.Reconfigured() }
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    change,
		DeleteFunc: change,
		UpdateFunc: func(o, n any) {
			before, ok1 := o.(client.Object)
			after, ok2 := n.(client.Object)
			if ok1 && ok2 && before.GetUID() == after.GetUID() && before.GetGeneration() == after.GetGeneration() && maps.Equal(before.GetLabels(), after.GetLabels()) {
				r.inbox.recount()
				return
			}
			change(n)
		},
	}
}

// Changed tells the worker that a Service is new or has changed. It may be called from any goroutine, as Deleted and Reconfigured
// may.
func (r *Services) Changed(k view.ObjectKey) { r.inbox.add(k) }

// Deleted tells the worker that this very Service is gone.
func (r *Services) Deleted(s *corev1.Service) {
	r.inbox.deleted(view.ObjectKey{Namespace: s.Namespace, Name: s.Name}, s.UID)
}

// Answered tells the worker that AddressProbes changed.
func (r *Services) Answered() { r.inbox.answered() }

// Reconfigured tells the worker that a configuration object or a namespace changed.
func (r *Services) Reconfigured() { r.inbox.reconfigured() }
