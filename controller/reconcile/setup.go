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

// RegisterWorker has the worker run while mgr leads, with news from mgr's cache. The cache fills while the controller stands by, so that it
// can begin at once when it leads.
func (r *ServiceWorker) RegisterWorker(ctx context.Context, mgr manager.Manager) error {
	feeds := []struct {
		object  client.Object
		handler cache.ResourceEventHandler
	}{
		{&corev1.Service{}, r.serviceEventHandler()},
		{&v1beta1.IPAddressPool{}, r.configurationEventHandler()},
		{&v1alpha1.AddressReservation{}, r.configurationEventHandler()},
		{&v1alpha1.AddressProbe{}, r.probeEventHandler()},
		{configuration.NewMetadataObject("Namespace"), r.configurationEventHandler()},
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

// serviceEventHandler tells the worker which Services changed.
func (r *ServiceWorker) serviceEventHandler() cache.ResourceEventHandler {
	add := func(o any) {
		if s, ok := o.(*corev1.Service); ok {
			r.ServiceChanged(view.ObjectKey{Namespace: s.Namespace, Name: s.Name})
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
				r.ServiceDeleted(s)
			}
		},
	}
}

// probeEventHandler tells the worker that a speaker may have said something about an address.
func (r *ServiceWorker) probeEventHandler() cache.ResourceEventHandler {
	poke := func(any) { r.ProbesChanged() }
	return cache.ResourceEventHandlerFuncs{AddFunc: poke, UpdateFunc: func(_, o any) { poke(o) }, DeleteFunc: poke}
}

// configurationEventHandler tells the worker that the configuration changed, or that somebody wrote a status that may not be right.
func (r *ServiceWorker) configurationEventHandler() cache.ResourceEventHandler {
	change := func(any) { r.ConfigurationChanged() }
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    change,
		DeleteFunc: change,
		UpdateFunc: func(o, n any) {
			before, ok1 := o.(client.Object)
			after, ok2 := n.(client.Object)
			if ok1 && ok2 && before.GetUID() == after.GetUID() && before.GetGeneration() == after.GetGeneration() && maps.Equal(before.GetLabels(), after.GetLabels()) {
				r.queue.markPoolStatusChanged()
				return
			}
			change(n)
		},
	}
}

// ServiceChanged tells the worker that a Service is new or has changed. It may be called from any goroutine, as Deleted and Reconfigured
// may.
func (r *ServiceWorker) ServiceChanged(k view.ObjectKey) { r.queue.addChanged(k) }

// ServiceDeleted tells the worker that this very Service is gone.
func (r *ServiceWorker) ServiceDeleted(s *corev1.Service) {
	r.queue.addDeleted(view.ObjectKey{Namespace: s.Namespace, Name: s.Name}, s.UID)
}

// ProbesChanged tells the worker that AddressProbes changed.
func (r *ServiceWorker) ProbesChanged() { r.queue.markProbesChanged() }

// ConfigurationChanged tells the worker that a configuration object or a namespace changed.
func (r *ServiceWorker) ConfigurationChanged() { r.queue.markConfigurationChanged() }
