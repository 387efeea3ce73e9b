package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/stage"
)

// widePool has room for every Service of a test. That none of them has endpoints is said in the write that gives the address.
const widePool = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: wide, namespace: metallb-system}
spec: {addresses: [10.77.0.0/20]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: wide, namespace: metallb-system}
`

// crowd is n Services.
func crowd(name string, n int) (out []*corev1.Service, called []string) {
	for i := range n {
		s := stage.Plain("default", fmt.Sprint(name, "-", i), "")
		out, called = append(out, s), append(called, s.Name)
	}
	return out, called
}

// lease is the controllers' Lease.
func lease(ctx context.Context, s *stage.Stage) (*coordinationv1.Lease, error) {
	var l coordinationv1.Lease
	err := s.API.Get(ctx, client.ObjectKey{Namespace: names.Namespace, Name: names.LeaderLease}, &l)
	return &l, err
}

// leader waits for a controller to lead that is not the one named, and returns how it calls itself, and its Pod.
func leader(ctx context.Context, t *testing.T, s *stage.Stage, not string) (who string, pod *corev1.Pod) {
	t.Helper()
	must(t, stage.Await(ctx, "a leader that is not "+not, func(ctx context.Context) error {
		l, err := lease(ctx, s)
		if err != nil {
			return err
		}
		if l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity == "" || *l.Spec.HolderIdentity == not {
			return fmt.Errorf("the Lease says %+v", l.Spec)
		}
		who = *l.Spec.HolderIdentity
		return nil
	}))
	name, _, _ := strings.Cut(who, "_")
	pod = &corev1.Pod{}
	must(t, s.API.Get(ctx, client.ObjectKey{Namespace: names.Namespace, Name: name}, pod))
	return who, pod
}

// signalled sends the leader a signal, creates a Service at once, and waits for its address and for the next leader.
func signalled(ctx context.Context, t *testing.T, s *stage.Stage, c *stage.Census, sig syscall.Signal, name string) {
	t.Helper()
	who, pod := leader(ctx, t, s, "")
	must(t, s.Signal(ctx, pod.Spec.NodeName, pod.Name, sig))
	begun := time.Now()
	must(t, s.API.Create(ctx, stage.Plain("default", name, "")))
	given, err := c.Await(ctx, name)
	must(t, err)
	next, _ := leader(ctx, t, s, "")
	l, err := lease(ctx, s)
	must(t, err)
	if next == who {
		t.Errorf("%s leads still", who)
	}
	took, term := given[0].Sub(begun), time.Duration(*l.Spec.LeaseDurationSeconds)*time.Second
	t.Logf("%s after %s an address came from %s (the lease is for %s)", took.Round(time.Millisecond), sig, next, term)
	if sig == syscall.SIGTERM && took >= term {
		t.Errorf("a new Service waited %s for its address, as long as the lease of a leader that is told to stop: it did not let go", took)
	}
}

// TestControllersTakeTurns ends, kills and stops the leading controller of two. Whatever happens, no address is given twice and none
// moves.
func TestControllersTakeTurns(t *testing.T) {
	ctx, s := start(t, lab.Options{Nodes: 2})
	must(t, s.Apply(ctx, widePool))
	watching, end := context.WithCancel(ctx)
	defer end()
	c, err := s.Census(watching, "default")
	must(t, err)
	var before map[string]string
	t.Run("a crowd costs one write and one event for each", func(t *testing.T) {
		counted(ctx, t, s, c)
		before = versions(ctx, t, s)
	})
	t.Run("the other goes on when the leader is told to stop", func(t *testing.T) { signalled(ctx, t, s, c, syscall.SIGTERM, "stop") })
	t.Run("the other goes on when the leader is killed", func(t *testing.T) { signalled(ctx, t, s, c, syscall.SIGKILL, "kill") })
	t.Run("a leader that wakes after a pause gives nothing twice", func(t *testing.T) { paused(ctx, t, s, c) })
	t.Run("a slow API server, and one that was away", func(t *testing.T) { slow(ctx, t, s, c) })
	for _, f := range c.Faults() {
		t.Error(f)
	}
	now := versions(ctx, t, s)
	for name, version := range before {
		if now[name] != version {
			t.Errorf("Service %s was written though nothing happened to it", name)
		}
	}
}

// versions are the resourceVersions of the Services that have an address.
func versions(ctx context.Context, t *testing.T, s *stage.Stage) map[string]string {
	t.Helper()
	var list corev1.ServiceList
	must(t, s.API.List(ctx, &list, client.InNamespace("default")))
	out := map[string]string{}
	for _, o := range list.Items {
		if len(o.Status.LoadBalancer.Ingress) > 0 {
			out[o.Name] = o.ResourceVersion
		}
	}
	return out
}

// counted creates Services over 8 connections and counts what the API server was asked to write for them.
func counted(ctx context.Context, t *testing.T, s *stage.Stage, c *stage.Census) {
	const n = 200
	services, called := crowd("counted", n)
	_, err := s.Crowd(ctx, 1, services[:1]) // the pool's first status is none of the crowd's
	must(t, err)
	_, err = c.Await(ctx, called[0])
	must(t, err)
	must(t, stage.Await(ctx, "the event of the first Service", func(ctx context.Context) error { return oneEvent(ctx, s, called[:1]) }))
	begun := time.Now()
	before, err := s.Writes(ctx)
	must(t, err)
	_, err = s.Crowd(ctx, 8, services[1:])
	must(t, err)
	_, err = c.Await(ctx, called...)
	must(t, err)
	must(t, stage.Await(ctx, "an event for each", func(ctx context.Context) error { return oneEvent(ctx, s, called) }))
	now, err := s.Writes(ctx)
	must(t, err)
	w := now.Since(before)
	if w["services/status"] != n-1 {
		t.Errorf("%d status writes for %d Services", w["services/status"], n-1)
	}
	// Five a second and one for 14 Services of the ledger, with a burst of five; one a second of the pool.
	if most := 6*(int(time.Since(begun).Seconds())+1) + n/14 + 5; w["addressledgers"]+w["ipaddresspools/status"] > most {
		t.Errorf("%d writes of the ledger and %d of the pool for %d Services, want at most %d", w["addressledgers"], w["ipaddresspools/status"], n-1, most)
	}
	t.Logf("for %d Services: %v", n-1, w)
}

// ours are the reasons of the controller's events; the API server tells its own of Services, now and then.
var ours = []string{names.EventAllocated, names.EventAllocationFailed, names.EventLoadBalancerFailed, names.EventClearAssignment, names.EventAdditionalAssignFailed}

// oneEvent says whether the controller told exactly one event of each Service.
func oneEvent(ctx context.Context, s *stage.Stage, called []string) error {
	var list corev1.EventList
	if err := s.API.List(ctx, &list, client.InNamespace("default")); err != nil {
		return err
	}
	count := map[string]int{}
	for _, e := range list.Items {
		if slices.Contains(ours, e.Reason) {
			count[e.InvolvedObject.Name] += int(max(e.Count, 1))
		}
	}
	for _, name := range called {
		if count[name] != 1 {
			return fmt.Errorf("Service %s has %d events", name, count[name])
		}
	}
	return nil
}

// paused stops the leader while Services come, so that its writes are under way, waits for the other, and wakes it while more
// come.
func paused(ctx context.Context, t *testing.T, s *stage.Stage, c *stage.Census) {
	services, called := crowd("paused", 300)
	coming := make(chan error, 1)
	go func() {
		_, err := s.Crowd(ctx, 4, services[:100])
		coming <- err
	}()
	_, err := c.Await(ctx, called[10]) // in the middle of it
	must(t, err)
	who, pod := leader(ctx, t, s, "")
	must(t, s.Signal(ctx, pod.Spec.NodeName, pod.Name, syscall.SIGSTOP))
	must(t, <-coming)
	leader(ctx, t, s, who)
	go func() {
		_, err := s.Crowd(ctx, 4, services[100:])
		coming <- err
	}()
	_, err = c.Await(ctx, called[150])
	must(t, err)
	must(t, s.Signal(ctx, pod.Spec.NodeName, pod.Name, syscall.SIGCONT))
	must(t, <-coming)
	_, err = c.Await(ctx, called...)
	must(t, err)
	must(t, stage.Await(ctx, "the end of the old leader", func(ctx context.Context) error {
		var now corev1.Pod
		if err := s.API.Get(ctx, client.ObjectKeyFromObject(pod), &now); err != nil {
			return err
		}
		if now.Status.ContainerStatuses[0].RestartCount == pod.Status.ContainerStatuses[0].RestartCount {
			return fmt.Errorf("%s runs still", who)
		}
		return nil
	}))
}

// slow edits and deletes Services while the writes that give them addresses are under way, and takes the API server away.
func slow(ctx context.Context, t *testing.T, s *stage.Stage, c *stage.Census) {
	services, called := crowd("slow", 30)
	must(t, s.SlowAPI(ctx, 300*time.Millisecond))
	_, err := s.Crowd(ctx, 15, services)
	must(t, err)
	var edits errgroup.Group
	for i, svc := range services {
		switch i % 3 {
		case 0:
			edits.Go(func() error { return s.API.Delete(ctx, svc) })
		case 1:
			edits.Go(func() error {
				return s.API.Patch(ctx, svc, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"type":"ClusterIP"}}`)))
			})
		}
	}
	must(t, edits.Wait())
	must(t, s.StopAPI(ctx))
	must(t, s.SlowAPI(ctx, 0))
	time.Sleep(3 * time.Second) // as long as it is away
	must(t, s.StartAPI(ctx))
	more, late := crowd("late", 5)
	must(t, stage.Await(ctx, "the API server", func(ctx context.Context) error { return client.IgnoreAlreadyExists(s.API.Create(ctx, more[0])) }))
	_, err = s.Crowd(ctx, 4, more[1:])
	must(t, err)
	for i, name := range called {
		if i%3 == 2 {
			late = append(late, name)
		}
	}
	_, err = c.Await(ctx, late...)
	must(t, err)
	must(t, stage.Await(ctx, "Services without an address", func(ctx context.Context) error {
		for i, name := range called {
			if i%3 != 1 {
				continue
			}
			svc, err := s.Service(ctx, "default", name)
			if err != nil {
				return err
			}
			if carries := len(svc.Status.LoadBalancer.Ingress) + len(svc.Status.Conditions) + len(svc.Annotations); carries > 0 {
				return fmt.Errorf("Service %s is no LoadBalancer and carries %v %v", name, svc.Status, svc.Annotations)
			}
		}
		return nil
	}))
	// Nothing is held for what is gone: the pool counts those that exist.
	must(t, stage.Await(ctx, "the pool's count", func(ctx context.Context) error { return counts(ctx, s) }))
}

// counts says whether the pool's status counts exactly the addresses that Services have.
func counts(ctx context.Context, s *stage.Stage) error {
	var list corev1.ServiceList
	if err := s.API.List(ctx, &list); err != nil {
		return err
	}
	have := slices.DeleteFunc(list.Items, func(o corev1.Service) bool { return len(o.Status.LoadBalancer.Ingress) == 0 })
	text, err := s.Kubectl(ctx, "", "-n", names.Namespace, "get", "ipaddresspool", "wide", "-o", "jsonpath={.status.assignedIPv4}")
	if err != nil {
		return err
	}
	if text != fmt.Sprint(len(have)) {
		return fmt.Errorf("the pool counts %s addresses in use, Services have %d", text, len(have))
	}
	return nil
}
