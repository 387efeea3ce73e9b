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

// burstPool has room for 65,536 Services.
const burstPool = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: burst, namespace: metallb-system}
spec: {addresses: [10.77.0.0/16]}
`

// burstAllowance is what the loss of a leader may add: its lease, and the reading of all Services.
const burstAllowance = 15 * time.Second

// longBursts says whether the test takes its long form: make bursts.
func longBursts() bool { return os.Getenv("GANTRY_BURSTS") == "long" }

// burstTime is what the long form takes beyond another test.
func burstTime() time.Duration {
	if longBursts() {
		return 90 * time.Minute
	}
	return 0
}

// burstLab is a lab with many Services that wait for the first pool. Only the controllers run in it.
type burstLab struct {
	*cluster.Cluster
	t        *testing.T
	services []*corev1.Service
}

// newBurstLab creates the Services while no controller runs.
func newBurstLab(ctx context.Context, t *testing.T, s *cluster.Cluster, n int) *burstLab {
	t.Helper()
	b := &burstLab{Cluster: s, t: t}
	_, err := s.Kubectl(ctx, "", "-n", names.Namespace, "delete", "daemonset", "gantry-speaker")
	must(t, err)
	b.scale(ctx, 0)
	b.services, _ = newServices("burst", n)
	for _, svc := range b.services { // no kube-proxy looks at them
		svc.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "nobody"}
	}
	_, err = s.CreateServices(ctx, 16, b.services)
	must(t, err)
	return b
}

// scale has so many controllers run.
func (b *burstLab) scale(ctx context.Context, n int) {
	b.t.Helper()
	_, err := b.Kubectl(ctx, "", "-n", names.Namespace, "scale", "deployment/gantry-controller", fmt.Sprint("--replicas=", n))
	must(b.t, err)
	b.await(ctx, 2*time.Minute, func() error {
		var pods corev1.PodList
		if err := b.API.List(ctx, &pods, client.InNamespace(names.Namespace), client.MatchingLabels{"app.kubernetes.io/component": "controller"}); err != nil {
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

// await waits until check returns nil. What it waits for takes longer than anything else in these tests.
func (b *burstLab) await(ctx context.Context, timeout time.Duration, check func() error) {
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

// reset takes the pool and all addresses away while no controller runs.
func (b *burstLab) reset(ctx context.Context) {
	b.t.Helper()
	b.scale(ctx, 0)
	_, err := b.Kubectl(ctx, "", "-n", names.Namespace, "delete", "ipaddresspool", "burst", "--ignore-not-found")
	must(b.t, err)
	wiped := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"metadata":{"annotations":{%q:null}},"status":{"loadBalancer":null,"conditions":null}}`, names.AnnotationFromPool))
	var g errgroup.Group
	g.SetLimit(32)
	for _, svc := range b.services {
		g.Go(func() error { return b.API.Status().Patch(ctx, svc.DeepCopy(), wiped) })
	}
	must(b.t, g.Wait())
}

// awaitWaiting waits until every Service says that there is no pool.
func (b *burstLab) awaitWaiting(ctx context.Context) {
	b.t.Helper()
	b.await(ctx, 10*time.Minute, func() error {
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

// begin starts the controllers and applies the pool, and returns what it records of that.
func (b *burstLab) begin(ctx context.Context, wait bool) (*cluster.AddressRecorder, time.Time) {
	b.t.Helper()
	b.scale(ctx, 2)
	awaitLeader(ctx, b.t, b.Cluster, "")
	if wait {
		b.awaitWaiting(ctx)
	}
	c, err := b.RecordAddresses(ctx, "default")
	must(b.t, err)
	must(b.t, b.Apply(ctx, burstPool))
	return c, time.Now()
}

// lose ends the leader, and logs how many pending assignments the AddressLedger showed then.
func (b *burstLab) lose(ctx context.Context, c *cluster.AddressRecorder, sig syscall.Signal) {
	b.t.Helper()
	_, pod := awaitLeader(ctx, b.t, b.Cluster, "")
	must(b.t, b.SignalProgram(ctx, pod.Spec.NodeName, pod.Name, sig))
	var l v1alpha1.AddressLedger
	must(b.t, b.API.Get(ctx, client.ObjectKey{Namespace: names.Namespace, Name: names.AddressLedger}, &l))
	b.t.Logf("%s to %s with %d of %d Services served and %d pending assignments in the AddressLedger", sig, pod.Name, c.CountServed(), len(b.services), len(l.Spec.Pending))
}

// awaitServed waits until so many Services have an address.
func (b *burstLab) awaitServed(ctx context.Context, c *cluster.AddressRecorder, n int, timeout time.Duration) {
	b.t.Helper()
	b.await(ctx, timeout, func() error {
		if served := c.CountServed(); served < n {
			return fmt.Errorf("%d of %d Services have an address", served, len(b.services))
		}
		return nil
	})
}

// TestABurstOutlivesItsLeaders applies the first pool when more Services wait for it than pending assignments may be open, and ends
// the leader, once in good order and once by force.
func TestABurstOutlivesItsLeaders(t *testing.T) {
	if longBursts() {
		t.Skip("the long form is asked for")
	}
	ctx, s := startCluster(t, lab.Options{Nodes: 2})
	b := newBurstLab(ctx, t, s, 4600)
	c, begun := b.begin(ctx, false)
	b.awaitServed(ctx, c, len(b.services)/10, 2*time.Minute)
	b.lose(ctx, c, syscall.SIGTERM)
	b.awaitServed(ctx, c, len(b.services)/2, 2*time.Minute)
	b.lose(ctx, c, syscall.SIGKILL)
	b.awaitServed(ctx, c, len(b.services), 2*time.Minute)
	t.Logf("all are served after %s", time.Since(begun).Round(time.Millisecond))
	for _, f := range c.Violations() {
		t.Error(f)
	}
}

// TestTenBurstsWithALostLeader is the long form: each of ten bursts loses its leader at another moment, by force or in good order, and
// may take as long as one that does not, and burstAllowance.
func TestTenBurstsWithALostLeader(t *testing.T) {
	if !longBursts() {
		t.Skip("make bursts runs it")
	}
	ctx, s := startCluster(t, lab.Options{Nodes: 2})
	b := newBurstLab(ctx, t, s, 10000)
	c, begun := b.begin(ctx, true)
	b.awaitServed(ctx, c, len(b.services), 10*time.Minute)
	undisturbed := time.Since(begun)
	t.Logf("undisturbed: %s", undisturbed.Round(time.Millisecond))
	for i := range 10 {
		b.reset(ctx)
		round, end := context.WithCancel(ctx)
		c, begun := b.begin(round, true)
		time.Sleep(undisturbed * time.Duration(2*i+1) / 20) // the moment is chosen beforehand: it is blind
		b.lose(round, c, []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM}[i%2])
		b.awaitServed(round, c, len(b.services), undisturbed+5*time.Minute)
		took := time.Since(begun)
		t.Logf("round %d: %s", i+1, took.Round(time.Millisecond))
		if took > undisturbed+burstAllowance {
			t.Errorf("round %d took %s, more than %s and %s", i+1, took, undisturbed, burstAllowance)
		}
		for _, f := range c.Violations() {
			t.Error(f)
		}
		end()
	}
}
