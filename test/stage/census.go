package stage

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

// Census watches the Services of a namespace, as everybody who watches sees them: when each had its address, and whether ever two
// had the same, or one lost its own though nobody had edited it. It is for Services that share nothing.
type Census struct {
	mu     sync.Mutex // guards all that follows
	seen   map[string]seen
	holder map[string]string // by address
	faults []string
}

// seen is one Service.
type seen struct {
	address string
	given   time.Time // when it was first seen with that address
	edition string    // of the Service when that was given: another one may lose it
}

// Census begins a census, which lasts until ctx ends.
func (s *Stage) Census(ctx context.Context, namespace string) (*Census, error) {
	c := &Census{seen: map[string]seen{}, holder: map[string]string{}}
	w, err := c.begin(ctx, s, namespace)
	if err != nil {
		return nil, err
	}
	go func() {
		for ctx.Err() == nil {
			if w == nil { // the API server was away
				time.Sleep(interval)
				w, _ = c.begin(ctx, s, namespace)
				continue
			}
			for e := range w.ResultChan() {
				if o, ok := e.Object.(*corev1.Service); ok {
					c.take(o, e.Type == watch.Deleted)
				}
			}
			w = nil
		}
	}()
	return c, nil
}

// begin takes in what there is, and watches from there.
func (c *Census) begin(ctx context.Context, s *Stage, namespace string) (watch.Interface, error) {
	var list corev1.ServiceList
	if err := s.API.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("listing Services: %w", err)
	}
	c.forget(list.Items)
	for i := range list.Items {
		c.take(&list.Items[i], false)
	}
	w, err := s.API.Watch(ctx, &list, client.InNamespace(namespace), &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: list.ResourceVersion}})
	if err != nil {
		return nil, fmt.Errorf("watching Services: %w", err)
	}
	return w, nil
}

// forget takes out what is not there any more, and what addresses the others had: in the meantime they may have been exchanged.
func (c *Census) forget(there []corev1.Service) {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.holder)
	for name := range c.seen {
		if !slices.ContainsFunc(there, func(o corev1.Service) bool { return o.Name == name }) {
			delete(c.seen, name)
		}
	}
	for i := range there {
		if in := there[i].Status.LoadBalancer.Ingress; len(in) > 0 {
			c.holder[in[0].IP] = there[i].Name
		}
	}
}

// take enters what a watch shows of a Service.
func (c *Census) take(o *corev1.Service, gone bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.seen[o.Name]
	now, edition := old, fmt.Sprint(o.UID, o.Spec.Type) // Services count no generations
	now.address = ""
	if in := o.Status.LoadBalancer.Ingress; len(in) > 0 && !gone {
		now.address = in[0].IP
	}
	if now.address != old.address {
		if old.address != "" && c.holder[old.address] == o.Name {
			delete(c.holder, old.address)
		}
		if old.address != "" && !gone && edition == old.edition {
			c.faults = append(c.faults, fmt.Sprintf("Service %s had %s and has %q now", o.Name, old.address, now.address))
		}
		if other, taken := c.holder[now.address]; taken && other != o.Name {
			c.faults = append(c.faults, fmt.Sprintf("Services %s and %s both have %s", other, o.Name, now.address))
		}
		if now.address != "" {
			c.holder[now.address] = o.Name
			now.given, now.edition = time.Now(), edition
		}
	}
	if gone {
		delete(c.seen, o.Name)
	} else {
		c.seen[o.Name] = now
	}
}

// Await waits until every Service that is named has an address, and returns when each had it.
func (c *Census) Await(ctx context.Context, services ...string) ([]time.Time, error) {
	out := make([]time.Time, len(services))
	err := Await(ctx, "addresses", func(context.Context) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		for i, n := range services {
			if c.seen[n].address == "" {
				return fmt.Errorf("Service %s has none", n)
			}
			out[i] = c.seen[n].given
		}
		return nil
	})
	return out, err
}

// Faults are all that should not have happened.
func (c *Census) Faults() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.faults)
}
