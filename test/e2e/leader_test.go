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
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// poolWithRoomForAllServicesManifest has room for every Service of a test. None of them has
// endpoints, which the write that assigns the address reports too.
const poolWithRoomForAllServicesManifest = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: wide, namespace: metallb-system}
spec: {addresses: [10.77.0.0/20]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: wide, namespace: metallb-system}
`

// newServices returns n Services and their names.
func newServices(name string, n int) (out []*corev1.Service, serviceNames []string) {
	for i := range n {
		s := cluster.NewService("default", fmt.Sprint(name, "-", i), "")
		out, serviceNames = append(out, s), append(serviceNames, s.Name)
	}
	return out, serviceNames
}

// readLeaderLease reads the Lease of the controllers.
func readLeaderLease(ctx context.Context, s *cluster.Cluster) (*coordinationv1.Lease, error) {
	var l coordinationv1.Lease
	err := s.API.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: names.LeaderLease}, &l)
	return &l, err
}

// awaitLeader waits until a controller other than not leads, and returns its identity and its Pod.
func awaitLeader(ctx context.Context, t *testing.T, s *cluster.Cluster, not string) (identity string, pod *corev1.Pod) {
	t.Helper()
	failOnError(t, cluster.AwaitNoError(ctx, "a leader that is not "+not, func(ctx context.Context) error {
		l, err := readLeaderLease(ctx, s)
		if err != nil {
			return err
		}
		if l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity == "" || *l.Spec.HolderIdentity == not {
			return fmt.Errorf("the Lease is %+v", l.Spec)
		}
		identity = *l.Spec.HolderIdentity
		name, _, _ := strings.Cut(identity, "_")
		pod = &corev1.Pod{}
		// the Lease names a killed leader until it expires, also after its Pod is deleted
		return s.API.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: name}, pod)
	}))
	return identity, pod
}

// testAssignmentAfterSignalToLeader sends the leader a signal, creates a Service immediately, and
// waits for its address and the next leader.
func testAssignmentAfterSignalToLeader(ctx context.Context, t *testing.T, s *cluster.Cluster, c *cluster.AddressRecorder, sig syscall.Signal, name string) {
	t.Helper()
	identity, pod := awaitLeader(ctx, t, s, "")
	failOnError(t, s.SignalProgramOrPod(ctx, pod.Spec.NodeName, pod.Name, sig))
	begun := time.Now()
	failOnError(t, s.API.Create(ctx, cluster.NewService("default", name, "")))
	given, err := c.AwaitAssignmentTimes(ctx, name)
	failOnError(t, err)
	// A busy machine may let the leader assign the address before it notices the signal.
	next, _ := awaitLeader(ctx, t, s, identity)
	l, err := readLeaderLease(ctx, s)
	failOnError(t, err)
	took, term := given[0].Sub(begun), time.Duration(*l.Spec.LeaseDurationSeconds)*time.Second
	t.Logf("%s after %s %s assigned an address (the lease lasts %s)", took.Round(time.Millisecond), sig, next, term)
	if sig == syscall.SIGTERM && took >= term {
		t.Errorf("a new Service waited %s for its address, which is at least the lease: the stopping leader did not release it", took)
	}
}

// TestLeaderChangesKeepAddresses terminates, kills and pauses the leader of two controllers. No
// address may be assigned twice, and none may move.
func TestLeaderChangesKeepAddresses(t *testing.T) {
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 2})
	failOnError(t, s.ApplyManifests(ctx, poolWithRoomForAllServicesManifest))
	watching, end := context.WithCancel(ctx)
	defer end()
	c, err := s.StartAddressRecorder(watching, "default")
	failOnError(t, err)
	var before map[string]string
	t.Run("many Services cost one write and one event each", func(t *testing.T) {
		testAPIWritesPerService(ctx, t, s, c)
		before = readResourceVersionsOfServices(ctx, t, s)
	})
	t.Run("the other controller continues when the leader stops", func(t *testing.T) { testAssignmentAfterSignalToLeader(ctx, t, s, c, syscall.SIGTERM, "stop") })
	t.Run("the other controller continues when the leader is killed", func(t *testing.T) { testAssignmentAfterSignalToLeader(ctx, t, s, c, syscall.SIGKILL, "kill") })
	t.Run("a paused leader assigns nothing twice when it resumes", func(t *testing.T) { testResumedLeaderAssignsNoAddressTwice(ctx, t, s, c) })
	t.Run("a slow and a stopped API server", func(t *testing.T) { testEditsDuringSlowWritesLeaveNoAddress(ctx, t, s, c) })
	for _, f := range c.DescribeDoubleOrLostAddresses() {
		t.Error(f)
	}
	now := readResourceVersionsOfServices(ctx, t, s)
	for name, version := range before {
		if now[name] != version {
			t.Errorf("Service %s was written although nothing had changed", name)
		}
	}
}

// readResourceVersionsOfServices returns the resourceVersions of the Services that have an address.
func readResourceVersionsOfServices(ctx context.Context, t *testing.T, s *cluster.Cluster) map[string]string {
	t.Helper()
	var list corev1.ServiceList
	failOnError(t, s.API.List(ctx, &list, client.InNamespace("default")))
	out := map[string]string{}
	for _, o := range list.Items {
		if len(o.Status.LoadBalancer.Ingress) > 0 {
			out[o.Name] = o.ResourceVersion
		}
	}
	return out
}

// testAPIWritesPerService creates Services over 8 connections and counts the writes to the API
// server for them.
func testAPIWritesPerService(ctx context.Context, t *testing.T, s *cluster.Cluster, c *cluster.AddressRecorder) {
	const n = 200
	services, serviceNames := newServices("counted", n)
	_, err := s.CreateServices(ctx, 1, services[:1]) // the first status of the pool does not count
	failOnError(t, err)
	_, err = c.AwaitAssignmentTimes(ctx, serviceNames[0])
	failOnError(t, err)
	failOnError(t, cluster.AwaitNoError(ctx, "the event of the first Service", func(ctx context.Context) error { return checkOneControllerEventPerService(ctx, s, serviceNames[:1]) }))
	// Its advertisement may have been unknown when it got its address. The write that corrects that
	// does not count.
	failOnError(t, awaitAnnouncedCondition(ctx, s, serviceNames[0], "False", names.ReasonNoEndpoints))
	// Each request takes as long as in a real cluster, so that Services gather during a write,
	// however busy this machine is.
	failOnError(t, s.DelayAPIRequests(ctx, 50*time.Millisecond))
	defer func() { failOnError(t, s.DelayAPIRequests(ctx, 0)) }()
	begun := time.Now()
	before, err := s.CountAPIWrites(ctx)
	failOnError(t, err)
	_, err = s.CreateServices(ctx, 8, services[1:])
	failOnError(t, err)
	_, err = c.AwaitAssignmentTimes(ctx, serviceNames...)
	failOnError(t, err)
	failOnError(t, cluster.AwaitNoError(ctx, "one event for each Service", func(ctx context.Context) error { return checkOneControllerEventPerService(ctx, s, serviceNames) }))
	now, err := s.CountAPIWrites(ctx)
	failOnError(t, err)
	w := now.SubtractEarlierCounts(before)
	if w["services/status"] != n-1 {
		t.Errorf("%d status writes for %d Services", w["services/status"], n-1)
	}
	// A batch is what gathered during the last write of the AddressLedger and the status writes of
	// its batch: about eight Services when eight are created at once. A few more writes remove
	// closed entries. The pool: one write per second.
	seconds := int(time.Since(begun).Seconds()) + 1
	if most := n/2 + seconds/5 + 1; w["addressledgers"] > most {
		t.Errorf("%d writes of the ledger for %d Services, want at most %d", w["addressledgers"], n-1, most)
	}
	if most := seconds + 5; w["ipaddresspools/status"] > most {
		t.Errorf("%d writes of the pool for %d Services, want at most %d", w["ipaddresspools/status"], n-1, most)
	}
	t.Logf("for %d Services: %v", n-1, w)
}

// controllerEventReasons are the reasons of the controller's events. The API server sometimes
// writes events of its own for Services.
var controllerEventReasons = []string{names.EventAllocated, names.EventAllocationFailed, names.EventLoadBalancerFailed, names.EventClearAssignment, names.EventAdditionalAssignFailed}

// checkOneControllerEventPerService returns an error unless the controller has written exactly one
// event for each Service.
func checkOneControllerEventPerService(ctx context.Context, s *cluster.Cluster, serviceNames []string) error {
	var list corev1.EventList
	if err := s.API.List(ctx, &list, client.InNamespace("default")); err != nil {
		return err
	}
	count := map[string]int{}
	for _, e := range list.Items {
		if slices.Contains(controllerEventReasons, e.Reason) {
			count[e.InvolvedObject.Name] += int(max(e.Count, 1))
		}
	}
	for _, name := range serviceNames {
		if count[name] != 1 {
			return fmt.Errorf("Service %s has %d events", name, count[name])
		}
	}
	return nil
}

// testResumedLeaderAssignsNoAddressTwice pauses the leader while Services are created, so that some
// of its writes are under way. It waits for the other leader, and resumes the first one while more
// Services are created.
func testResumedLeaderAssignsNoAddressTwice(ctx context.Context, t *testing.T, s *cluster.Cluster, c *cluster.AddressRecorder) {
	services, serviceNames := newServices("paused", 300)
	coming := make(chan error, 1)
	go func() {
		_, err := s.CreateServices(ctx, 4, services[:100])
		coming <- err
	}()
	_, err := c.AwaitAssignmentTimes(ctx, serviceNames[10]) // while the Services are being created
	failOnError(t, err)
	identity, pod := awaitLeader(ctx, t, s, "")
	failOnError(t, s.SignalProgramOrPod(ctx, pod.Spec.NodeName, pod.Name, syscall.SIGSTOP))
	failOnError(t, <-coming)
	awaitLeader(ctx, t, s, identity)
	go func() {
		_, err := s.CreateServices(ctx, 4, services[100:])
		coming <- err
	}()
	_, err = c.AwaitAssignmentTimes(ctx, serviceNames[150])
	failOnError(t, err)
	failOnError(t, s.SignalProgramOrPod(ctx, pod.Spec.NodeName, pod.Name, syscall.SIGCONT))
	failOnError(t, <-coming)
	_, err = c.AwaitAssignmentTimes(ctx, serviceNames...)
	failOnError(t, err)
	failOnError(t, cluster.AwaitNoError(ctx, "the end of the old leader", func(ctx context.Context) error {
		var now corev1.Pod
		if err := s.API.Get(ctx, client.ObjectKeyFromObject(pod), &now); err != nil {
			return err
		}
		if now.Status.ContainerStatuses[0].RestartCount == pod.Status.ContainerStatuses[0].RestartCount {
			return fmt.Errorf("%s is still running", identity)
		}
		return nil
	}))
}

// testEditsDuringSlowWritesLeaveNoAddress edits and deletes Services while the writes of their
// addresses are under way, and then stops the API server for some seconds.
func testEditsDuringSlowWritesLeaveNoAddress(ctx context.Context, t *testing.T, s *cluster.Cluster, c *cluster.AddressRecorder) {
	services, serviceNames := newServices("slow", 30)
	failOnError(t, s.DelayAPIRequests(ctx, 300*time.Millisecond))
	_, err := s.CreateServices(ctx, 15, services)
	failOnError(t, err)
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
	failOnError(t, edits.Wait())
	failOnError(t, s.BlockAPIServer(ctx))
	failOnError(t, s.DelayAPIRequests(ctx, 0))
	time.Sleep(3 * time.Second) // how long it is stopped
	failOnError(t, s.UnblockAPIServer(ctx))
	more, late := newServices("late", 5)
	failOnError(t, cluster.AwaitNoError(ctx, "the API server", func(ctx context.Context) error { return client.IgnoreAlreadyExists(s.API.Create(ctx, more[0])) }))
	_, err = s.CreateServices(ctx, 4, more[1:])
	failOnError(t, err)
	for i, name := range serviceNames {
		if i%3 == 2 {
			late = append(late, name)
		}
	}
	_, err = c.AwaitAssignmentTimes(ctx, late...)
	failOnError(t, err)
	failOnError(t, cluster.AwaitNoError(ctx, "Services without an address", func(ctx context.Context) error {
		for i, name := range serviceNames {
			if i%3 != 1 {
				continue
			}
			svc, err := s.GetService(ctx, "default", name)
			if err != nil {
				return err
			}
			if carries := len(svc.Status.LoadBalancer.Ingress) + len(svc.Status.Conditions) + len(svc.Annotations); carries > 0 {
				return fmt.Errorf("Service %s is not a LoadBalancer but has %v %v", name, svc.Status, svc.Annotations)
			}
		}
		return nil
	}))
	// No address is reserved for a deleted Service: the pool counts only those that exist.
	failOnError(t, cluster.AwaitNoError(ctx, "the pool's count", func(ctx context.Context) error { return checkAssignedIPv4CountOfPool(ctx, s) }))
}

// checkAssignedIPv4CountOfPool returns an error unless the pool's status counts exactly the
// addresses of existing Services.
func checkAssignedIPv4CountOfPool(ctx context.Context, s *cluster.Cluster) error {
	var list corev1.ServiceList
	if err := s.API.List(ctx, &list); err != nil {
		return err
	}
	have := slices.DeleteFunc(list.Items, func(o corev1.Service) bool { return len(o.Status.LoadBalancer.Ingress) == 0 })
	text, err := s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "get", "ipaddresspool", "wide", "-o", "jsonpath={.status.assignedIPv4}")
	if err != nil {
		return err
	}
	if text != fmt.Sprint(len(have)) {
		return fmt.Errorf("the pool counts %s addresses in use, Services have %d", text, len(have))
	}
	return nil
}
