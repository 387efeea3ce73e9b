package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/test/cluster"
)

const (
	// servicesPerLatencyRound is how many Services are created one after the other at each rate.
	// Each rate is measured latencyRoundsPerRate times, by turns with the baseline.
	servicesPerLatencyRound = 30
	latencyRoundsPerRate    = 3
	// maxMedianRatioToBaseline is the highest ratio of the medians: an assignment is two writes one
	// after the other, of the AddressLedger and of the status, and the baseline is one.
	maxMedianRatioToBaseline = 1.5
)

// measuredCreationRatesPerSecond are in Services per second.
var measuredCreationRatesPerSecond = []int{1, 10, 40, 100}

// measureAssignmentAtCreationRates measures the time from the creation of a Service to its address
// on a lab of one node, for Services that come one after the other. The baseline is a program that
// does nothing but write a status on each.
func measureAssignmentAtCreationRates(ctx context.Context, dir string) error {
	s, err := startOneNodeLabWithLargePool(ctx, dir)
	if err != nil {
		return err
	}
	defer s.Close()
	// The first Services warm up all programs.
	if _, err := measureLatenciesAtCreationRate(ctx, s, "latency-first", "", 10, servicesPerLatencyRound); err != nil {
		return err
	}
	var tooSlow error
	for _, rate := range measuredCreationRatesPerSecond {
		var given, baseline []time.Duration
		for round := range latencyRoundsPerRate {
			b, err := measureStatusWriteAtCreationRate(ctx, s, fmt.Sprintf("baseline-%d-%d", rate, round), rate)
			if err != nil {
				return err
			}
			g, err := measureLatenciesAtCreationRate(ctx, s, fmt.Sprintf("latency-%d-%d", rate, round), "", rate, servicesPerLatencyRound)
			if err != nil {
				return err
			}
			given, baseline = append(given, g...), append(baseline, b...)
		}
		a := printMinMedianAndMax(fmt.Sprintf("a Service's address, from its creation, %d a second", rate), given)
		b := printMinMedianAndMax("baseline: a program that does nothing but write a status", baseline)
		ratio := float64(a) / float64(b)
		fmt.Printf("  ratio of the medians %.2f, at most %.1f\n", ratio, maxMedianRatioToBaseline)
		if ratio > maxMedianRatioToBaseline {
			tooSlow = errors.Join(tooSlow, fmt.Errorf("with %d Services a second the median is %.2f times the baseline's, more than %.1f", rate, ratio, maxMedianRatioToBaseline))
		}
	}
	return tooSlow
}

// measureStatusWriteAtCreationRate measures the same without Gantry.
func measureStatusWriteAtCreationRate(ctx context.Context, s *cluster.Cluster, namespace string, rate int) ([]time.Duration, error) {
	writing, end := context.WithCancel(ctx)
	defer end()
	if err := startBaselineStatusWriter(writing, s, namespace); err != nil {
		return nil, err
	}
	return measureLatenciesAtCreationRate(ctx, s, namespace, baselineLoadBalancerClass, rate, servicesPerLatencyRound)
}

// measureLatenciesAtCreationRate creates n Services of a class, one after the other, and returns
// the time from each creation until a watch shows its address. It deletes the Services at the end.
func measureLatenciesAtCreationRate(ctx context.Context, s *cluster.Cluster, namespace, class string, perSecond, n int) ([]time.Duration, error) {
	if err := s.API.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); client.IgnoreAlreadyExists(err) != nil {
		return nil, err
	}
	watching, end := context.WithCancel(ctx)
	defer end()
	recorder, err := s.StartAddressRecorder(watching, namespace)
	if err != nil {
		return nil, err
	}
	next := time.NewTicker(time.Second / time.Duration(perSecond))
	defer next.Stop()
	var serviceNames []string
	creationTimes := make([]time.Time, n)
	failures := make(chan error, n)
	for i := range n {
		<-next.C
		o := cluster.NewService(namespace, fmt.Sprintf("s%05d", i), class)
		serviceNames, creationTimes[i] = append(serviceNames, o.Name), time.Now()
		go func() { failures <- s.API.Create(ctx, o) }() // a slow answer delays no other Service
	}
	for range n {
		if err := <-failures; err != nil {
			return nil, fmt.Errorf("creating a Service: %w", err)
		}
	}
	given, err := recorder.AwaitAssignmentTimes(ctx, serviceNames...)
	if err != nil {
		return nil, err
	}
	out := make([]time.Duration, n)
	for i := range out {
		out[i] = given[i].Sub(creationTimes[i])
	}
	slices.Sort(out)
	return out, deleteServices(ctx, s, namespace)
}
