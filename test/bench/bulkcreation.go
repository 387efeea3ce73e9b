package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// The load on the controller.
const (
	apiConnectionCount        = 8
	baselineLoadBalancerClass = "example.com/bench" // only this program serves the class
)

// The limits of many Services at once.
const (
	maxBulkP99RatioToBaseline        = 1.6
	maxLedgerAndPoolWritesPerService = 0.3
)

// serviceCountsCreatedAtOnce are the numbers of Services that are created at once.
var serviceCountsCreatedAtOnce = []int{2000, 8000}

// poolOf65536AddressesManifest has room for all Services. It has no advertisement, because only the
// controller is measured.
const poolOf65536AddressesManifest = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: roomy, namespace: metallb-system}
spec: {addresses: [10.192.0.0/16]}
`

// startOneNodeLabWithLargePool starts a lab of one node with Gantry and the pool for all Services.
// The caller closes it.
func startOneNodeLabWithLargePool(ctx context.Context, dir string) (*cluster.Cluster, error) {
	s, err := startLabWithGantry(ctx, lab.Options{Nodes: 1, Dir: dir})
	if err != nil {
		return nil, err
	}
	if err := s.ApplyManifests(ctx, poolOf65536AddressesManifest); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// measureBulkCreation measures the controller on a lab of one node: many Services at once, changes
// of the leader, and a restart with 8,000 Services.
func measureBulkCreation(ctx context.Context, dir string) error {
	s, err := startOneNodeLabWithLargePool(ctx, dir)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := measureAssignmentAtLeaderChanges(ctx, s); err != nil {
		return err
	}
	var tooMuch error
	for _, n := range serviceCountsCreatedAtOnce {
		b, err := measureBulkStatusWriteBaseline(ctx, s, n)
		if err != nil {
			return err
		}
		g, err := createServicesAndMeasureAssignment(ctx, s, fmt.Sprint("crowd-", n), "", n)
		if err != nil {
			return err
		}
		fmt.Printf("%-64s %s\n", fmt.Sprintf("%d Services over %d connections: creation to address", n, apiConnectionCount), g)
		fmt.Printf("%-64s %s\n", "baseline: this program watches and writes the status, 32 at a time", b)
		fmt.Printf("  processor time for each Service: %s\n  and in the baseline: %s\n", g.cpuTimePerServiceText, b.cpuTimePerServiceText)
		fmt.Printf("  writes for each Service: %.3f of its status, %.3f events, %.3f others (AddressLedger %d, pools %d)\n",
			g.writesPerServiceOfResource("services/status"), g.writesPerServiceOfResource("events"), g.ledgerAndPoolWritesPerService(),
			g.writeCounts["addressledgers"], g.writeCounts["ipaddresspools/status"])
		fmt.Printf("  ratio of the 99th percentiles %.2f, at most %.1f; %.3f writes for each Service besides status and event, at most %.1f\n",
			g.p99RatioTo(b), maxBulkP99RatioToBaseline, g.ledgerAndPoolWritesPerService(), maxLedgerAndPoolWritesPerService)
		if g.p99RatioTo(b) > maxBulkP99RatioToBaseline || g.ledgerAndPoolWritesPerService() > maxLedgerAndPoolWritesPerService {
			tooMuch = errors.Join(tooMuch, fmt.Errorf("%d Services at once: the 99th percentile is %.2f times the baseline's (at most %.1f), and there are %.3f other writes for each (at most %.1f)",
				n, g.p99RatioTo(b), maxBulkP99RatioToBaseline, g.ledgerAndPoolWritesPerService(), maxLedgerAndPoolWritesPerService))
		}
	}
	return errors.Join(tooMuch, measureControllerRestart(ctx, s, 8000))
}

// bulkCreationResult is the result for a number of Services that were created at once.
type bulkCreationResult struct {
	serviceCount int
	// from the request for a Service until a watch shows its address
	medianLatency, p99Latency, longestLatency time.Duration
	timeToCreateAllServices                   time.Duration // from the first creation to the last
	// from the last creation to the last address
	timeFromLastCreationToLastAddress time.Duration
	writeCounts                       cluster.RequestCountsByResource
	cpuTimePerServiceText             string
}

// String returns the figures in one line.
func (g bulkCreationResult) String() string {
	ms := func(d time.Duration) int64 { return d.Milliseconds() }
	return fmt.Sprintf("median %4d  99%% %4d  max %4d ms; last address %4d ms after the last creation (%d per second)",
		ms(g.medianLatency), ms(g.p99Latency), ms(g.longestLatency), ms(g.timeFromLastCreationToLastAddress), int(float64(g.serviceCount)/g.timeToCreateAllServices.Seconds()))
}

func (g bulkCreationResult) writesPerServiceOfResource(what string) float64 {
	return float64(g.writeCounts[what]) / float64(g.serviceCount)
}

// ledgerAndPoolWritesPerService counts the writes that are neither of a Service's status nor
// events.
func (g bulkCreationResult) ledgerAndPoolWritesPerService() float64 {
	return g.writesPerServiceOfResource("addressledgers") + g.writesPerServiceOfResource("ipaddresspools/status")
}

// p99RatioTo is the ratio of the 99th percentiles of the latency.
func (g bulkCreationResult) p99RatioTo(baseline bulkCreationResult) float64 {
	return float64(g.p99Latency) / float64(baseline.p99Latency)
}

// createServicesAndMeasureAssignment creates n Services of a class in a namespace of their own, and
// waits until each has an address and its event.
func createServicesAndMeasureAssignment(ctx context.Context, s *cluster.Cluster, namespace, class string, n int) (bulkCreationResult, error) {
	g := bulkCreationResult{serviceCount: n}
	if err := s.API.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); client.IgnoreAlreadyExists(err) != nil {
		return g, err
	}
	watching, end := context.WithCancel(ctx)
	defer end()
	c, err := s.StartAddressRecorder(watching, namespace)
	if err != nil {
		return g, err
	}
	var services []*corev1.Service
	var serviceNames []string
	for i := range n {
		name := fmt.Sprintf("s%05d", i)
		services, serviceNames = append(services, cluster.NewService(namespace, name, class)), append(serviceNames, name)
	}
	before, err := s.CountAPIWrites(ctx)
	if err != nil {
		return g, err
	}
	usedBefore := readCPUTimeByProgram(s.SupervisorPID())
	created, err := s.CreateServices(ctx, apiConnectionCount, services)
	if err != nil {
		return g, err
	}
	given, err := c.AwaitAssignmentTimes(ctx, serviceNames...)
	if err != nil {
		return g, err
	}
	if f := c.DescribeDoubleOrLostAddresses(); len(f) > 0 {
		return g, fmt.Errorf("addresses of %s: %v", namespace, f)
	}
	// the last events and the status of the pool follow within one second, other conditions of a
	// Service after three
	time.Sleep(5 * time.Second)
	now, err := s.CountAPIWrites(ctx)
	if err != nil {
		return g, err
	}
	g.writeCounts, g.cpuTimePerServiceText = now.SubtractEarlierCounts(before), readCPUTimeByProgram(s.SupervisorPID()).describePerServiceSince(usedBefore, n)
	g.computeLatenciesAndTotals(created, given)
	return g, nil
}

func (g *bulkCreationResult) computeLatenciesAndTotals(created []cluster.ServiceCreationTimes, given []time.Time) {
	waits := make([]time.Duration, len(given))
	first, done, last := created[0].RequestSentAt, created[0].AnswerReceivedAt, given[0]
	for i := range given {
		waits[i] = given[i].Sub(created[i].RequestSentAt)
		first, done, last = earlierTime(first, created[i].RequestSentAt), laterTime(done, created[i].AnswerReceivedAt), laterTime(last, given[i])
	}
	slices.Sort(waits)
	g.medianLatency, g.p99Latency, g.longestLatency = waits[len(waits)/2], waits[len(waits)*99/100], waits[len(waits)-1]
	g.timeToCreateAllServices, g.timeFromLastCreationToLastAddress = done.Sub(first), max(0, last.Sub(done))
}

func earlierTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func laterTime(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// measureBulkStatusWriteBaseline measures the same Services without Gantry: this program writes the
// status of each Service that its watch shows, as fast as it can. That is what the API server and
// the machine need. It deletes the Services at the end.
func measureBulkStatusWriteBaseline(ctx context.Context, s *cluster.Cluster, n int) (bulkCreationResult, error) {
	const namespace = "baseline"
	writing, end := context.WithCancel(ctx)
	defer end()
	if err := startBaselineStatusWriter(writing, s, namespace); err != nil {
		return bulkCreationResult{}, err
	}
	g, err := createServicesAndMeasureAssignment(ctx, s, namespace, baselineLoadBalancerClass, n)
	if err != nil {
		return g, err
	}
	return g, deleteServices(ctx, s, namespace)
}

// startBaselineStatusWriter writes the status of each Service of a namespace as soon as its watch
// shows the Service, 32 at a time, until ctx ends.
func startBaselineStatusWriter(ctx context.Context, s *cluster.Cluster, namespace string) error {
	w, err := s.API.Watch(ctx, &corev1.ServiceList{}, client.InNamespace(namespace))
	if err != nil {
		return fmt.Errorf("watching Services: %w", err)
	}
	var writers errgroup.Group
	writers.SetLimit(32)
	go func() {
		defer w.Stop()
		i := 0
		for e := range w.ResultChan() {
			o, ok := e.Object.(*corev1.Service)
			if !ok || e.Type != "ADDED" {
				continue
			}
			i++
			address := fmt.Sprintf("10.193.%d.%d", i/256, i%256)
			writers.Go(func() error {
				before := o.DeepCopy()
				o.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: address}}
				return s.API.Status().Patch(ctx, o, client.MergeFrom(before))
			})
		}
	}()
	return nil
}

// deleteServices deletes the Services of a namespace, and waits until they are gone.
func deleteServices(ctx context.Context, s *cluster.Cluster, namespace string) error {
	for {
		err := s.API.DeleteAllOf(ctx, &corev1.Service{}, client.InNamespace(namespace))
		// thousands take longer than the timeout of one request
		if err != nil && !apierrors.IsTimeout(err) {
			return fmt.Errorf("deleting the Services of %s: %w", namespace, err)
		}
		var left corev1.ServiceList
		if err := s.API.List(ctx, &left, client.InNamespace(namespace), client.Limit(1)); err != nil || len(left.Items) == 0 {
			return err
		}
	}
}
