package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
)

// What the tenant does, and beside how many Services.
const (
	otherServiceCountDuringToggles = 20_000
	toggleInterval                 = 100 * time.Millisecond
	roundsWithAndWithoutToggles    = 4  // without and with the tenant in turns
	measuredServicesPerRound       = 25 // Services whose wait is measured, each round
)

// measureAssignmentDuringPortToggles measures how long a new Service waits for its address among
// 20,000 others on a lab of one node, while a tenant breaks and mends the right of two Services to
// share an address ten times a second. The baseline is the same without the tenant. It counts how
// often the API server was asked for all Services meanwhile.
func measureAssignmentDuringPortToggles(ctx context.Context, dir string) error {
	s, err := startOneNodeLabWithLargePool(ctx, dir)
	if err != nil {
		return err
	}
	defer s.Close()
	beside, err := otherServiceCountFromEnvironment()
	if err != nil {
		return err
	}
	if _, err := createServicesAndMeasureAssignment(ctx, s, "beside", "", beside); err != nil {
		return err
	}
	for i, name := range []string{"sharer-a", "sharer-b"} {
		o := cluster.NewService("default", name, "")
		o.Annotations = map[string]string{names.AnnotationSharingKey: "k", names.AnnotationLoadBalancerIPs: "10.192.255.1"}
		o.Spec.Ports[0].Port = int32(80 + i)
		if err := s.API.Create(ctx, o); err != nil {
			return err
		}
		if _, err := s.AwaitFirstAddressOfService(ctx, "default", name); err != nil {
			return err
		}
	}
	var calm, busy []time.Duration
	edits, lists := 0, 0
	for round := range roundsWithAndWithoutToggles {
		c, err := measureSequentialAssignmentLatencies(ctx, s, fmt.Sprint("calm-", round))
		if err != nil {
			return err
		}
		b, err := measureRoundWithPortToggles(ctx, s, fmt.Sprint("busy-", round))
		if err != nil {
			return err
		}
		calm, busy = append(calm, c...), append(busy, b.assignmentLatencies...)
		edits, lists = edits+b.portEditCount, lists+b.serviceListRequestCount
	}
	b := printMinMedianAndMax(fmt.Sprintf("a Service's address beside %d, while a port is toggled", beside), busy)
	c := printMinMedianAndMax("baseline: the same while nobody toggles", calm)
	fmt.Printf("  ratio of the medians %.2f; %d edits, and all Services read %d times\n", float64(b)/float64(c), edits, lists)
	return nil
}

// toggleRoundResult is what was measured while a port was toggled.
type toggleRoundResult struct {
	assignmentLatencies                    []time.Duration
	portEditCount, serviceListRequestCount int
}

// measureRoundWithPortToggles measures the waits while a tenant toggles a port.
func measureRoundWithPortToggles(ctx context.Context, s *cluster.Cluster, name string) (toggleRoundResult, error) {
	var out toggleRoundResult
	before, err := s.CountAPIRequestsOfVerbs(ctx, "LIST")
	if err != nil {
		return out, err
	}
	toggling, end := context.WithCancel(ctx)
	defer end()
	var tenant errgroup.Group
	tenant.Go(func() (err error) {
		out.portEditCount, err = togglePortUntilCancelled(toggling, s.API, "sharer-b")
		return err
	})
	waits, err := measureSequentialAssignmentLatencies(ctx, s, name)
	end()
	if other := tenant.Wait(); err == nil {
		err = other
	}
	if err != nil {
		return out, err
	}
	after, err := s.CountAPIRequestsOfVerbs(ctx, "LIST")
	out.assignmentLatencies, out.serviceListRequestCount = waits, after.SubtractEarlierCounts(before)["services"]
	return out, err
}

// otherServiceCountFromEnvironment is how many Services there are beside. The variable BESIDE makes
// it fewer, for a machine that is slow to create them.
func otherServiceCountFromEnvironment() (int, error) {
	text := os.Getenv("BESIDE")
	if text == "" {
		return otherServiceCountDuringToggles, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("BESIDE says how many Services there are beside, like 20000: %q", text)
	}
	return n, nil
}

// measureSequentialAssignmentLatencies creates Services one after the other, and measures how long
// each waits for its address.
func measureSequentialAssignmentLatencies(ctx context.Context, s *cluster.Cluster, name string) ([]time.Duration, error) {
	var out []time.Duration
	for i := range measuredServicesPerRound {
		d, err := measureAssignmentOfOneService(ctx, s, fmt.Sprint(name, "-", i), false)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
		time.Sleep(2 * toggleInterval)
	}
	return out, nil
}

// togglePortUntilCancelled sets the port of a Service to 80 and to 81 in turns until ctx ends, and
// returns how often.
func togglePortUntilCancelled(ctx context.Context, c client.Client, name string) (int, error) {
	tick := time.NewTicker(toggleInterval)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return n, nil
		case <-tick.C:
		}
		o := &corev1.Service{}
		o.Namespace, o.Name = "default", name
		patch := fmt.Sprintf(`[{"op": "replace", "path": "/spec/ports/0/port", "value": %d}]`, 80+n%2)
		if err := c.Patch(ctx, o, client.RawPatch("application/json-patch+json", []byte(patch))); err != nil && ctx.Err() == nil {
			return n, fmt.Errorf("toggling the port of Service %s: %w", name, err)
		}
	}
}
