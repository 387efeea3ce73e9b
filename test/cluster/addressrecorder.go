package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// AddressRecorder watches the Services of a namespace. It records when each one got its address,
// and two violations: the same address on two Services, and an address that a Service lost without
// an edit. The Services must not share addresses.
type AddressRecorder struct {
	mu                       sync.Mutex // guards the fields below
	lastSeenByService        map[string]lastSeenServiceState
	serviceByAddress         map[string]string // by address
	doubleOrLostAddressTexts []string
}

// lastSeenServiceState is what a watch last showed of a Service.
type lastSeenServiceState struct {
	address    string
	assignedAt time.Time // when it was first seen with that address
	// of the Service when it got the address; a later revision may lose it
	resourceVersionAtAssignment string
}

// StartAddressRecorder starts an AddressRecorder, which runs until ctx ends.
func (s *Cluster) StartAddressRecorder(ctx context.Context, namespace string) (*AddressRecorder, error) {
	c := &AddressRecorder{lastSeenByService: map[string]lastSeenServiceState{}, serviceByAddress: map[string]string{}}
	w, err := c.listAndWatch(ctx, s, namespace)
	if err != nil {
		return nil, err
	}
	go func() {
		for ctx.Err() == nil {
			if w == nil { // the API server was unreachable
				time.Sleep(pollInterval)
				w, _ = c.listAndWatch(ctx, s, namespace)
				continue
			}
			for e := range w.ResultChan() {
				if o, ok := e.Object.(*corev1.Service); ok {
					c.recordServiceWatchEvent(o, e.Type == watch.Deleted)
				}
			}
			w = nil
		}
	}()
	return c, nil
}

// listAndWatch records the existing Services and watches from there.
func (c *AddressRecorder) listAndWatch(ctx context.Context, s *Cluster, namespace string) (watch.Interface, error) {
	var list corev1.ServiceList
	if err := s.API.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("listing Services: %w", err)
	}
	c.replaceStateByServiceList(list.Items)
	for i := range list.Items {
		c.recordServiceWatchEvent(&list.Items[i], false)
	}
	w, err := s.API.Watch(ctx, &list, client.InNamespace(namespace), &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: list.ResourceVersion}})
	if err != nil {
		return nil, fmt.Errorf("watching Services: %w", err)
	}
	return w, nil
}

// replaceStateByServiceList removes the Services that are gone and updates the addresses of the
// others, which may have changed while no watch was open.
func (c *AddressRecorder) replaceStateByServiceList(there []corev1.Service) {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.serviceByAddress)
	for name := range c.lastSeenByService {
		if !slices.ContainsFunc(there, func(o corev1.Service) bool { return o.Name == name }) {
			delete(c.lastSeenByService, name)
		}
	}
	for i := range there {
		if in := there[i].Status.LoadBalancer.Ingress; len(in) > 0 {
			c.serviceByAddress[in[0].IP] = there[i].Name
		}
	}
}

// recordServiceWatchEvent records an event of the watch.
func (c *AddressRecorder) recordServiceWatchEvent(o *corev1.Service, gone bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.lastSeenByService[o.Name]
	now, edition := old, fmt.Sprint(o.UID, o.Spec.Type) // a Service has no generation
	now.address = ""
	if in := o.Status.LoadBalancer.Ingress; len(in) > 0 && !gone {
		now.address = in[0].IP
	}
	if now.address != old.address {
		if old.address != "" && c.serviceByAddress[old.address] == o.Name {
			delete(c.serviceByAddress, old.address)
		}
		if old.address != "" && !gone && edition == old.resourceVersionAtAssignment {
			c.doubleOrLostAddressTexts = append(c.doubleOrLostAddressTexts, fmt.Sprintf("Service %s had the address %s and now has %q", o.Name, old.address, now.address))
		}
		if other, taken := c.serviceByAddress[now.address]; taken && other != o.Name {
			c.doubleOrLostAddressTexts = append(c.doubleOrLostAddressTexts, fmt.Sprintf("Services %s and %s both have %s", other, o.Name, now.address))
		}
		if now.address != "" {
			c.serviceByAddress[now.address] = o.Name
			now.assignedAt, now.resourceVersionAtAssignment = time.Now(), edition
		}
	}
	if gone {
		delete(c.lastSeenByService, o.Name)
	} else {
		c.lastSeenByService[o.Name] = now
	}
}

// AwaitAssignmentTimes waits until each of the Services has an address, and returns when it got it.
func (c *AddressRecorder) AwaitAssignmentTimes(ctx context.Context, services ...string) ([]time.Time, error) {
	out := make([]time.Time, len(services))
	err := AwaitNoError(ctx, "addresses", func(context.Context) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		for i, n := range services {
			if c.lastSeenByService[n].address == "" {
				return fmt.Errorf("the Service %s has no address", n)
			}
			out[i] = c.lastSeenByService[n].assignedAt
		}
		return nil
	})
	return out, err
}

// CountServicesWithAddress returns the number of Services that have an address.
func (c *AddressRecorder) CountServicesWithAddress() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.serviceByAddress)
}

// DescribeDoubleOrLostAddresses returns all violations so far.
func (c *AddressRecorder) DescribeDoubleOrLostAddresses() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.doubleOrLostAddressTexts)
}
