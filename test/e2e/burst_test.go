package e2e

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// poolOf65536AddressesManifest has 65,536 addresses.
const poolOf65536AddressesManifest = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: burst, namespace: metallb-system}
spec: {addresses: [10.77.0.0/16]}
`

// extraTimeoutForLeaderLoss is how much longer a burst may take when its leader is lost: the lease
// has to expire, and the next leader reads all Services.
const extraTimeoutForLeaderLoss = 15 * time.Second

// isLongBurstRun reports whether the long form of the tests runs, as in make bursts.
func isLongBurstRun() bool { return os.Getenv("GANTRY_BURSTS") == "long" }

// extraTimeoutForLongBurstRun returns how much longer the long form may take than other tests.
func extraTimeoutForLongBurstRun() time.Duration {
	if isLongBurstRun() {
		return 90 * time.Minute
	}
	return 0
}

// burstTestCluster is a cluster with many Services that wait for the first pool. It runs no
// speakers.
type burstTestCluster struct {
	*cluster.Cluster
	t        *testing.T
	services []*corev1.Service
	// noPoolsConditionWritesDelay is how long the controller took to write the conditions before a
	// burst.
	noPoolsConditionWritesDelay time.Duration
}

// newBurstTestCluster creates the Services while no controller is running.
func newBurstTestCluster(ctx context.Context, t *testing.T, s *cluster.Cluster, n int) *burstTestCluster {
	t.Helper()
	b := &burstTestCluster{Cluster: s, t: t}
	_, err := s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "delete", "daemonset", "gantry-speaker")
	failOnError(t, err)
	b.scaleControllers(ctx, 0)
	b.services, _ = newServices("burst", n)
	for _, svc := range b.services { // kube-proxy ignores them
		svc.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "nobody"}
	}
	_, err = s.CreateServices(ctx, 16, b.services)
	failOnError(t, err)
	return b
}

// scaleControllers sets the number of controllers to n, and waits until all of them are ready.
func (b *burstTestCluster) scaleControllers(ctx context.Context, n int) {
	b.t.Helper()
	_, err := b.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "scale", "deployment/gantry-controller", fmt.Sprint("--replicas=", n))
	failOnError(b.t, err)
	b.awaitNoError(ctx, 6*time.Minute, func() error {
		var pods corev1.PodList
		if err := b.API.List(ctx, &pods, client.InNamespace(names.DefaultNamespace), client.MatchingLabels{"app.kubernetes.io/component": "controller"}); err != nil {
			return err
		}
		ready := 0
		for i := range pods.Items {
			for _, c := range pods.Items[i].Status.Conditions {
				if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
					ready++
				}
			}
		}
		if len(pods.Items) != n || ready != n {
			return fmt.Errorf("there are %d controllers, of which %d are ready, want %d", len(pods.Items), ready, n)
		}
		return nil
	})
}

// awaitNoError waits until check returns nil, for longer than the other tests wait.
func (b *burstTestCluster) awaitNoError(ctx context.Context, timeout time.Duration, check func() error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for err := check(); err != nil; err = check() {
		select {
		case <-ctx.Done():
			b.t.Fatalf("after %s: %v", timeout, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// stopControllersAndRemoveAddresses stops the controllers, and removes the pool and all addresses.
func (b *burstTestCluster) stopControllersAndRemoveAddresses(ctx context.Context) {
	b.t.Helper()
	b.scaleControllers(ctx, 0)
	_, err := b.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "delete", "ipaddresspool", "burst", "--ignore-not-found")
	failOnError(b.t, err)
	emptyStatus := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"metadata":{"annotations":{%q:null}},"status":{"loadBalancer":null,"conditions":null}}`, names.AnnotationAllocatedFromPool))
	var g errgroup.Group
	g.SetLimit(32)
	for _, svc := range b.services {
		g.Go(func() error { return b.API.Status().Patch(ctx, svc.DeepCopy(), emptyStatus) })
	}
	failOnError(b.t, g.Wait())
}

// awaitNoPoolsConditions waits until the condition of every Service says that there is no pool.
func (b *burstTestCluster) awaitNoPoolsConditions(ctx context.Context) {
	b.t.Helper()
	b.awaitNoError(ctx, 10*time.Minute, func() error {
		time.Sleep(2 * time.Second) // a list of all is work for the API server
		var list corev1.ServiceList
		if err := b.API.List(ctx, &list, client.InNamespace("default")); err != nil {
			return err
		}
		waiting := 0
		for i := range list.Items {
			if c := meta.FindStatusCondition(list.Items[i].Status.Conditions, names.ConditionAddressAssigned); c != nil && c.Reason == string(names.ReasonNoPools) {
				waiting++
			}
		}
		if waiting < len(b.services) {
			return fmt.Errorf("%d of %d Services say that there is no pool", waiting, len(b.services))
		}
		return nil
	})
}

// startControllersAndApplyPool starts the controllers and applies the pool. It returns the recorder
// of the addresses and the start of the burst.
func (b *burstTestCluster) startControllersAndApplyPool(ctx context.Context, wait bool) (*cluster.AddressRecorder, time.Time) {
	b.t.Helper()
	b.scaleControllers(ctx, 2)
	awaitLeader(ctx, b.t, b.Cluster, "")
	begun := time.Now()
	if wait {
		b.awaitNoPoolsConditions(ctx)
	}
	b.noPoolsConditionWritesDelay = time.Since(begun)
	c, err := b.StartAddressRecorder(ctx, "default")
	failOnError(b.t, err)
	failOnError(b.t, b.ApplyManifests(ctx, poolOf65536AddressesManifest))
	return c, time.Now()
}

// signalLeader sends a signal to the leader, and logs the number of pending assignments in the
// AddressLedger.
func (b *burstTestCluster) signalLeader(ctx context.Context, c *cluster.AddressRecorder, sig syscall.Signal) {
	b.t.Helper()
	_, pod := awaitLeader(ctx, b.t, b.Cluster, "")
	failOnError(b.t, b.SignalProgramOrPod(ctx, pod.Spec.NodeName, pod.Name, sig))
	var l v1alpha1.AddressLedger
	failOnError(b.t, b.API.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: names.PendingAssignmentsLedger}, &l))
	b.t.Logf("%s to %s with %d of %d Services served and %d pending assignments in the AddressLedger", sig, pod.Name, c.CountServicesWithAddress(), len(b.services), len(l.Spec.Pending))
}

// awaitServicesWithAddress waits until n Services have an address.
func (b *burstTestCluster) awaitServicesWithAddress(ctx context.Context, c *cluster.AddressRecorder, n int, timeout time.Duration) {
	b.t.Helper()
	b.awaitNoError(ctx, timeout, func() error {
		if served := c.CountServicesWithAddress(); served < n {
			return fmt.Errorf("%d of %d Services have an address", served, len(b.services))
		}
		return nil
	})
}

// TestBurstSurvivesLeaderLoss applies the first pool while more Services wait for it than the
// number of pending assignments allowed at once. Meanwhile it ends the leader twice, by SIGTERM and
// by SIGKILL. The long form, of make bursts, is ten bursts.
func TestBurstSurvivesLeaderLoss(t *testing.T) {
	if isLongBurstRun() {
		testTenBursts(t)
		return
	}
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 2})
	b := newBurstTestCluster(ctx, t, s, 4600)
	c, begun := b.startControllersAndApplyPool(ctx, false)
	b.awaitServicesWithAddress(ctx, c, len(b.services)/10, 6*time.Minute)
	b.signalLeader(ctx, c, syscall.SIGTERM)
	b.awaitServicesWithAddress(ctx, c, len(b.services)/2, 6*time.Minute)
	b.signalLeader(ctx, c, syscall.SIGKILL)
	b.awaitServicesWithAddress(ctx, c, len(b.services), 6*time.Minute)
	t.Logf("all Services have an address after %s", time.Since(begun).Round(time.Millisecond))
	for _, f := range c.DescribeDoubleOrLostAddresses() {
		t.Error(f)
	}
}

// testTenBursts creates ten bursts, each of which loses its leader at another moment, by SIGKILL or
// SIGTERM. It may take extraTimeoutForLeaderLoss longer than a burst that keeps its leader. Before
// each burst the controller writes 10,000 conditions that say that there is no pool. The time of
// that shows how fast the machine is at the moment; the limit follows it.
func testTenBursts(t *testing.T) {
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 2})
	b := newBurstTestCluster(ctx, t, s, 10000)
	c, begun := b.startControllersAndApplyPool(ctx, true)
	b.awaitServicesWithAddress(ctx, c, len(b.services), 10*time.Minute)
	undisturbed, baseline := time.Since(begun), b.noPoolsConditionWritesDelay
	t.Logf("without a loss: %s, after %s for the conditions", undisturbed.Round(time.Millisecond), baseline.Round(time.Millisecond))
	for i := range 10 {
		b.stopControllersAndRemoveAddresses(ctx)
		round, end := context.WithCancel(ctx)
		c, begun := b.startControllersAndApplyPool(round, true)
		// the moment does not depend on the state of the burst
		time.Sleep(undisturbed * time.Duration(2*i+1) / 20)
		b.signalLeader(round, c, []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM}[i%2])
		b.awaitServicesWithAddress(round, c, len(b.services), undisturbed+5*time.Minute)
		took := time.Since(begun)
		slowdown := max(1, b.noPoolsConditionWritesDelay.Seconds()/baseline.Seconds())
		t.Logf("round %d: %s, on a machine %.2f times as slow", i+1, took.Round(time.Millisecond), slowdown)
		if limit := time.Duration(slowdown * float64(undisturbed+extraTimeoutForLeaderLoss)); took > limit {
			t.Errorf("round %d took %s, more than %s: %s plus %s, on a machine %.2f times as slow", i+1, took, limit, undisturbed, extraTimeoutForLeaderLoss, slowdown)
		}
		for _, f := range c.DescribeDoubleOrLostAddresses() {
			t.Error(f)
		}
		end()
	}
}
