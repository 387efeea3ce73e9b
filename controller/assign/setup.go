package assign

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

// RegisterWorker starts the worker when mgr becomes the leader, with changes from mgr's cache. The
// cache is filled before that, so that a new leader can begin at once.
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
		// The API server may be unreachable: mgr waits for the cache when it starts.
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

// serviceEventHandler reports changed Services to the worker.
func (r *ServiceWorker) serviceEventHandler() cache.ResourceEventHandler {
	add := func(o any) {
		if s, ok := o.(*corev1.Service); ok {
			r.NotifyServiceChanged(view.ObjectKey{Namespace: s.Namespace, Name: s.Name})
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
				r.NotifyServiceDeleted(s)
			}
		},
	}
}

// probeEventHandler reports changed AddressProbes to the worker.
func (r *ServiceWorker) probeEventHandler() cache.ResourceEventHandler {
	poke := func(any) { r.NotifyProbesChanged() }
	return cache.ResourceEventHandlerFuncs{AddFunc: poke, UpdateFunc: func(_, o any) { poke(o) }, DeleteFunc: poke}
}

// configurationEventHandler reports a changed configuration to the worker, and statuses written by
// others, which may be wrong.
func (r *ServiceWorker) configurationEventHandler() cache.ResourceEventHandler {
	change := func(any) { r.NotifyConfigurationChanged() }
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    change,
		DeleteFunc: change,
		UpdateFunc: func(o, n any) {
			before, ok1 := o.(client.Object)
			after, ok2 := n.(client.Object)
			if ok1 && ok2 && before.GetUID() == after.GetUID() && before.GetGeneration() == after.GetGeneration() && maps.Equal(before.GetLabels(), after.GetLabels()) {
				r.workQueue.markPoolStatusChanged()
				return
			}
			change(n)
		},
	}
}

// NotifyServiceChanged reports that a Service is new or has changed. It may be called from any
// goroutine, like NotifyServiceDeleted and NotifyConfigurationChanged.
func (r *ServiceWorker) NotifyServiceChanged(k view.ObjectKey) { r.workQueue.addChanged(k) }

// NotifyServiceDeleted reports that this Service was deleted.
func (r *ServiceWorker) NotifyServiceDeleted(s *corev1.Service) {
	r.workQueue.addDeleted(view.ObjectKey{Namespace: s.Namespace, Name: s.Name}, s.UID)
}

// NotifyProbesChanged reports that AddressProbes changed.
func (r *ServiceWorker) NotifyProbesChanged() { r.workQueue.markProbesChanged() }

// NotifyConfigurationChanged reports that a configuration object or a namespace changed.
func (r *ServiceWorker) NotifyConfigurationChanged() { r.workQueue.markConfigurationChanged() }
