package cluster

import (
	"context"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
)

const (
	// serviceLBWriter is the name that the API server records for K3s.
	serviceLBWriter = "k3s"
	// serviceLBFinalizer is that of the service controller for clouds, of which ServiceLB is one.
	serviceLBFinalizer = "service.kubernetes.io/load-balancer-cleanup"
	// serviceLBReadInterval is how often the stand-in reads the Services.
	serviceLBReadInterval = 100 * time.Millisecond
)

// ServiceLBStandIn writes Services as ServiceLB of K3s does: it serves all Services of type
// LoadBalancer without a class, leaves the others alone, and repairs what somebody else writes. It
// gives a Service the addresses of the nodes, at which kube-proxy accepts connections then.
type ServiceLBStandIn struct {
	stop context.CancelFunc
	done chan struct{}

	mu              sync.Mutex // guards writesByService
	writesByService map[string]int
}

// StartServiceLBStandIn starts it. Stop ends it.
func (s *Cluster) StartServiceLBStandIn(ctx context.Context) *ServiceLBStandIn {
	ctx, stop := context.WithCancel(ctx)
	b := &ServiceLBStandIn{stop: stop, done: make(chan struct{}), writesByService: map[string]int{}}
	go func() {
		defer close(b.done)
		for ctx.Err() == nil {
			// What fails is tried again, as a controller does.
			_ = b.writeServices(ctx, s.API)
			select {
			case <-ctx.Done():
			case <-time.After(serviceLBReadInterval):
			}
		}
	}()
	return b
}

// Stop ends the stand-in.
func (b *ServiceLBStandIn) Stop() {
	b.stop()
	<-b.done
}

// CountWritesOfService returns how often it wrote the addresses of a Service.
func (b *ServiceLBStandIn) CountWritesOfService(name string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.writesByService[name]
}

// writeServices gives each Service of its own the addresses of the nodes.
func (b *ServiceLBStandIn) writeServices(ctx context.Context, api client.Client) error {
	var nodes corev1.NodeList
	if err := api.List(ctx, &nodes); err != nil {
		return err
	}
	var want []corev1.LoadBalancerIngress
	for i := range nodes.Items {
		for _, a := range nodes.Items[i].Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				want = append(want, corev1.LoadBalancerIngress{IP: a.Address})
			}
		}
	}
	var services corev1.ServiceList
	if err := api.List(ctx, &services); err != nil {
		return err
	}
	for i := range services.Items {
		o := &services.Items[i]
		if o.Spec.Type != corev1.ServiceTypeLoadBalancer || o.Spec.LoadBalancerClass != nil {
			continue
		}
		if o.DeletionTimestamp != nil {
			if before := o.DeepCopy(); controllerutil.RemoveFinalizer(o, serviceLBFinalizer) {
				if err := api.Patch(ctx, o, client.MergeFrom(before), client.FieldOwner(serviceLBWriter)); err != nil {
					return err
				}
			}
			continue
		}
		if before := o.DeepCopy(); controllerutil.AddFinalizer(o, serviceLBFinalizer) {
			if err := api.Patch(ctx, o, client.MergeFrom(before), client.FieldOwner(serviceLBWriter)); err != nil {
				return err
			}
		}
		isEqual := slices.EqualFunc(o.Status.LoadBalancer.Ingress, want, func(a, b corev1.LoadBalancerIngress) bool { return a.IP == b.IP })
		if isEqual {
			continue
		}
		before := o.DeepCopy()
		o.Status.LoadBalancer.Ingress = want
		if err := api.Status().Patch(ctx, o, client.MergeFrom(before), client.FieldOwner(serviceLBWriter)); err != nil {
			return err
		}
		b.mu.Lock()
		b.writesByService[o.Name]++
		b.mu.Unlock()
	}
	return nil
}
