package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
)

const (
	// editedServiceCount is how many Services the tenant has. Each edit is of the next one.
	editedServiceCount = 100
	editInterval       = 10 * time.Millisecond
	// maxConcurrentEdits bounds the edits that the API server has not answered.
	maxConcurrentEdits = 8
	editingRounds      = 4 // of each kind, in turns
)

// measureAssignmentBesideEditingTenant measures how long new Services wait for their addresses
// while a tenant edits 100 Services a second, so that each gets another address. The baseline is
// the same without the tenant. A second baseline has the edits on Services of another class: it is
// what the edits cost the API server of this machine, whatever the controller does.
func measureAssignmentBesideEditingTenant(ctx context.Context, dir string) error {
	s, err := startOneNodeLabWithLargePool(ctx, dir)
	if err != nil {
		return err
	}
	defer s.Close()
	for namespace, class := range map[string]string{"tenant": "", "unserved": baselineLoadBalancerClass} {
		if err := createEditedServices(ctx, s, namespace, class); err != nil {
			return err
		}
	}
	var quiet, busy, edited []time.Duration
	for round := range editingRounds {
		q, err := measureSequentialAssignmentLatencies(ctx, s, fmt.Sprint("quiet-", round))
		if err != nil {
			return err
		}
		b, err := measureRoundWithEdits(ctx, s, fmt.Sprint("busy-", round), "tenant")
		if err != nil {
			return err
		}
		e, err := measureRoundWithEdits(ctx, s, fmt.Sprint("edited-", round), "unserved")
		if err != nil {
			return err
		}
		quiet, busy, edited = append(quiet, q...), append(busy, b...), append(edited, e...)
	}
	b := printMinMedianAndMax("a Service's address, while a tenant edits 100 a second", busy)
	q := printMinMedianAndMax("baseline: the same while nobody edits", quiet)
	e := printMinMedianAndMax("baseline: the same while the edited ones are not Gantry's", edited)
	fmt.Printf("  ratio of the medians %.2f; to the edits alone %.2f\n", float64(b)/float64(q), float64(b)/float64(e))
	return nil
}

// createEditedServices creates the Services that are edited, in a namespace of their own.
func createEditedServices(ctx context.Context, s *cluster.Cluster, namespace, class string) error {
	if err := s.API.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
		return err
	}
	var services []*corev1.Service
	for i := range editedServiceCount {
		services = append(services, cluster.NewService(namespace, fmt.Sprintf("s%05d", i), class))
	}
	_, err := s.CreateServices(ctx, apiConnectionCount, services)
	return err
}

// measureRoundWithEdits measures the waits while the Services of a namespace are edited.
func measureRoundWithEdits(ctx context.Context, s *cluster.Cluster, name, namespace string) ([]time.Duration, error) {
	editing, end := context.WithCancel(ctx)
	defer end()
	var tenant errgroup.Group
	tenant.Go(func() error { return editServicesUntilCancelled(editing, s.API, namespace) })
	waits, err := measureSequentialAssignmentLatencies(ctx, s, name)
	end()
	if other := tenant.Wait(); err == nil {
		err = other
	}
	return waits, err
}

// editServicesUntilCancelled requests another address for one Service after the other.
func editServicesUntilCancelled(ctx context.Context, c client.Client, namespace string) error {
	tick := time.NewTicker(editInterval)
	defer tick.Stop()
	var edits errgroup.Group
	edits.SetLimit(maxConcurrentEdits)
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return edits.Wait()
		case <-tick.C:
		}
		i, turn := n%editedServiceCount, n/editedServiceCount
		edits.Go(func() error {
			patch := fmt.Sprintf(`{"metadata": {"annotations": {%q: "10.192.%d.%d"}}}`, names.AnnotationLoadBalancerIPs, 250+turn%2, i)
			err := c.Patch(ctx, cluster.NewService(namespace, fmt.Sprintf("s%05d", i), ""), client.RawPatch("application/merge-patch+json", []byte(patch)))
			if err != nil && ctx.Err() == nil {
				return fmt.Errorf("editing Service %s/s%05d: %w", namespace, i, err)
			}
			return nil
		})
	}
}
