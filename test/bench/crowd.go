package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/stage"
)

// What the controller is asked.
const (
	connections = 8
	ownClass    = "example.com/bench" // nobody serves it but this program
)

// sizes are how many Services come at once.
var sizes = []int{2000, 8000}

// roomyPool holds a crowd. It has no advertisement: what is measured is the controller.
const roomyPool = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: roomy, namespace: metallb-system}
spec: {addresses: [10.192.0.0/16]}
`

// crowds measures the controller on a lab of one node: crowds of Services, changes of leaders, and a restart with 8,000.
func crowds(ctx context.Context, dir string) error {
	s, err := stage.Start(ctx, lab.Options{Nodes: 1, Dir: dir})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Install(ctx); err != nil {
		return err
	}
	if err := s.Apply(ctx, roomyPool); err != nil {
		return err
	}
	if err := turns(ctx, s); err != nil {
		return err
	}
	for _, n := range sizes {
		b, err := baseline(ctx, s, n)
		if err != nil {
			return err
		}
		g, err := crowd(ctx, s, fmt.Sprint("crowd-", n), "", n)
		if err != nil {
			return err
		}
		fmt.Printf("%-64s %s\n", fmt.Sprintf("%d Services over %d connections: creation to address", n, connections), g)
		fmt.Printf("%-64s %s\n", "baseline: a status written by who watches, 32 at a time", b)
		fmt.Printf("  processor time for each Service: %s\n  and in the baseline: %s\n", g.cpu, b.cpu)
		fmt.Printf("  writes for each Service: %.3f of its status, %.3f events, %.3f others (AddressLedger %d, pools %d)\n",
			g.each("services/status"), g.each("events"), g.each("addressledgers")+g.each("ipaddresspools/status"),
			g.writes["addressledgers"], g.writes["ipaddresspools/status"])
	}
	return restart(ctx, s, 8000)
}

// gathering is what became of a crowd.
type gathering struct {
	n              int
	p50, p99, most time.Duration // from when a Service was asked for until a watch showed its address
	creation       time.Duration // from the first creation to the last
	last           time.Duration // from the last creation to the last address
	writes         stage.Writes
	cpu            string
}

// String is the line of the figures.
func (g gathering) String() string {
	ms := func(d time.Duration) int64 { return d.Milliseconds() }
	return fmt.Sprintf("median %4d  99%% %4d  max %4d ms; last address %4d ms after the last creation (%d a second)",
		ms(g.p50), ms(g.p99), ms(g.most), ms(g.last), int(float64(g.n)/g.creation.Seconds()))
}

func (g gathering) each(what string) float64 { return float64(g.writes[what]) / float64(g.n) }

// crowd creates n Services of a class in a namespace of their own, and waits until each has an address and its event.
func crowd(ctx context.Context, s *stage.Stage, namespace, class string, n int) (gathering, error) {
	g := gathering{n: n}
	if err := s.API.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); client.IgnoreAlreadyExists(err) != nil {
		return g, err
	}
	watching, end := context.WithCancel(ctx)
	defer end()
	c, err := s.Census(watching, namespace)
	if err != nil {
		return g, err
	}
	var services []*corev1.Service
	var called []string
	for i := range n {
		name := fmt.Sprintf("s%05d", i)
		services, called = append(services, stage.Plain(namespace, name, class)), append(called, name)
	}
	before, err := s.Writes(ctx)
	if err != nil {
		return g, err
	}
	usedBefore := used(s.PID())
	created, err := s.Crowd(ctx, connections, services)
	if err != nil {
		return g, err
	}
	given, err := c.Await(ctx, called...)
	if err != nil {
		return g, err
	}
	if f := c.Faults(); len(f) > 0 {
		return g, fmt.Errorf("addresses of %s: %v", namespace, f)
	}
	time.Sleep(5 * time.Second) // the last events and the pool's status follow within a second; what else is said of a Service, after three
	now, err := s.Writes(ctx)
	if err != nil {
		return g, err
	}
	g.writes, g.cpu = now.Since(before), used(s.PID()).since(usedBefore, n)
	g.times(created, given)
	return g, nil
}

func (g *gathering) times(created []stage.Created, given []time.Time) {
	waits := make([]time.Duration, len(given))
	first, done, last := created[0].Asked, created[0].Done, given[0]
	for i := range given {
		waits[i] = given[i].Sub(created[i].Asked)
		first, done, last = earlier(first, created[i].Asked), later(done, created[i].Done), later(last, given[i])
	}
	slices.Sort(waits)
	g.p50, g.p99, g.most = waits[len(waits)/2], waits[len(waits)*99/100], waits[len(waits)-1]
	g.creation, g.last = done.Sub(first), max(0, last.Sub(done))
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// baseline has this program write the status of whatever its watch shows, as fast as it can: what the API server and the machine
// need for the same crowd when nobody decides anything. The Services are deleted again.
func baseline(ctx context.Context, s *stage.Stage, n int) (gathering, error) {
	const namespace = "baseline"
	writing, end := context.WithCancel(ctx)
	defer end()
	w, err := s.API.Watch(writing, &corev1.ServiceList{}, client.InNamespace(namespace))
	if err != nil {
		return gathering{}, fmt.Errorf("watching Services: %w", err)
	}
	defer w.Stop()
	var writers errgroup.Group
	writers.SetLimit(32)
	go func() {
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
				return s.API.Status().Patch(writing, o, client.MergeFrom(before))
			})
		}
	}()
	g, err := crowd(ctx, s, namespace, ownClass, n)
	if err != nil {
		return g, err
	}
	return g, clear(ctx, s, namespace)
}

// clear deletes the Services of a namespace, and waits until they are gone.
func clear(ctx context.Context, s *stage.Stage, namespace string) error {
	for {
		err := s.API.DeleteAllOf(ctx, &corev1.Service{}, client.InNamespace(namespace))
		if err != nil && !apierrors.IsTimeout(err) { // thousands take longer than one request may
			return fmt.Errorf("deleting the Services of %s: %w", namespace, err)
		}
		var left corev1.ServiceList
		if err := s.API.List(ctx, &left, client.InNamespace(namespace), client.Limit(1)); err != nil || len(left.Items) == 0 {
			return err
		}
	}
}
