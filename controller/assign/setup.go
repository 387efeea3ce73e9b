package assign

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
	ctrlcache "sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/view"
)

// RegisterWorker starts the worker when mgr becomes the leader, with changes from mgr's cache. The
// cache is filled before that, so that a new leader can begin at once.
func (r *ServiceWorker) RegisterWorker(ctx context.Context, mgr manager.Manager) error {
	feeds := []struct {
		object  client.Object
		handler cache.ResourceEventHandler
	}{
		{&corev1.Service{}, r.workQueue.serviceEventHandler()},
		{&v1beta1.IPAddressPool{}, r.workQueue.poolOrReservationEventHandler()},
		{&v1alpha1.AddressReservation{}, r.workQueue.poolOrReservationEventHandler()},
		{&v1alpha1.AddressProbe{}, r.workQueue.probeEventHandler()},
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
func (b *workQueue) serviceEventHandler() cache.ResourceEventHandler {
	add := func(o any) {
		if s, ok := o.(*corev1.Service); ok {
			b.addChangedServices(view.ObjectKey{Namespace: s.Namespace, Name: s.Name})
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
				b.addDeletedService(view.ObjectKey{Namespace: s.Namespace, Name: s.Name}, s.UID)
			}
		},
	}
}

// probeEventHandler reports changed AddressProbes to the worker.
func (b *workQueue) probeEventHandler() cache.ResourceEventHandler {
	poke := func(any) { b.markProbesChanged() }
	return cache.ResourceEventHandlerFuncs{AddFunc: poke, UpdateFunc: func(_, o any) { poke(o) }, DeleteFunc: poke}
}

// poolOrReservationEventHandler reports updates of pools and reservations to the worker: others
// may have written a status that is wrong. The Reader of the configuration reports all other
// changes.
func (b *workQueue) poolOrReservationEventHandler() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{UpdateFunc: func(_, _ any) { b.markPoolOrReservationChanged() }}
}

// NotifyServiceChanged reports that a Service is new or has changed. It may be called from any
// goroutine, like NotifyServiceDeleted and NotifyProbesChanged.
func (r *ServiceWorker) NotifyServiceChanged(k view.ObjectKey) { r.workQueue.addChangedServices(k) }

// NotifyServiceDeleted reports that this Service was deleted.
func (r *ServiceWorker) NotifyServiceDeleted(s *corev1.Service) {
	r.workQueue.addDeletedService(view.ObjectKey{Namespace: s.Namespace, Name: s.Name}, s.UID)
}

// NotifyProbesChanged reports that AddressProbes changed.
func (r *ServiceWorker) NotifyProbesChanged() { r.workQueue.markProbesChanged() }
