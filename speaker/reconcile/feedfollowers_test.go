package reconcile

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/plan"
	"github.com/gantry-lb/gantry/test/apiserver"
)

// recordingPlanner applies the changes that a ClusterFeed posts, like an agent.
type recordingPlanner struct {
	*plan.Planner
	postCount int
}

func (p *recordingPlanner) PostChanges(_ context.Context, changes ...agent.PlannerInputChange) {
	p.postCount++
	agent.ApplyChangesToPlanner(p.Planner, changes...)
}

// newFeedWithFollowers returns the mirrors of a ClusterFeed that has seen nothing.
func newFeedWithFollowers(t *testing.T, in plan.Inputs) (*recordingPlanner, *objectFollower[*view.Service], *objectFollower[*view.EndpointSlice], *ClusterFeed) {
	p := &recordingPlanner{Planner: plan.NewPlanner(in)}
	f := NewClusterFeed(ClusterFeedOptions{Agent: p, UIDByServiceIndex: NewUIDByServiceIndex()})
	return p, f.newServiceFollower(t.Context()), f.newEndpointSliceFollower(t.Context()), f
}

// exampleService returns a Service as the API server sends it, with many fields that a
// speaker does not use.
func exampleService(name string, a netip.Addr) *corev1.Service {
	policy := corev1.IPFamilyPolicySingleStack
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name, UID: types.UID(name + "-7c5f7e34-0d6b-4f0e-9b8d-2f4d6f1f7b1a"), ResourceVersion: "123456",
			Labels: map[string]string{"app": name, "team": "red"}, Annotations: map[string]string{"example.com/note": fmt.Sprintf("%01000d", 7)},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}, Selector: map[string]string{"app": name},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, IPFamilyPolicy: &policy,
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, NodePort: 30080}},
		},
	}
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: a.String()}}
	return s
}

// exampleEndpointSlice returns an EndpointSlice of a Service with a ready endpoint on each of the
// nodes.
func exampleEndpointSlice(name, service string, nodes ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, n := range nodes {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{"10.244.0.9"}, NodeName: &n})
	}
	return s
}

// passToFollower passes objects to a mirror, like a reflector.
func passToFollower(t *testing.T, give func(any) error, objects ...any) {
	t.Helper()
	for _, o := range objects {
		if err := give(o); err != nil {
			t.Fatal(err)
		}
	}
}

func TestServiceFollowerUpdatesPlanner(t *testing.T) {
	p, services, _, f := newFeedWithFollowers(t, plan.Inputs{})
	a := netip.MustParseAddr("192.0.2.1")
	has := func(want ...string) {
		t.Helper()
		var got []string
		for k := range p.Inputs().Services {
			got = append(got, k.Name)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("the planner knows %v, want %v", got, want)
		}
		for _, n := range want {
			if s := f.options.UIDByServiceIndex.ServiceReference(view.ObjectKey{Namespace: "default", Name: n}); s == nil || s.UID != exampleService(n, a).UID {
				t.Errorf("the reference of %s is %+v", n, s)
			}
		}
	}
	if services.hasSynced() {
		t.Error("the mirror has synced before anything was read")
	}
	plain := exampleService("plain", a)
	plain.Spec.Type = corev1.ServiceTypeClusterIP
	passToFollower(t, func(o any) error { return services.Replace(o.([]any), "1") }, []any{exampleService("one", a), exampleService("two", a), plain})
	has("one", "two")
	if !services.hasSynced() {
		t.Error("the mirror has not synced")
	}
	posts := p.postCount
	passToFollower(t, services.Update, plain)
	passToFollower(t, services.Delete, plain)
	if p.postCount != posts {
		t.Error("a Service of another type causes changes")
	}
	passToFollower(t, services.Add, exampleService("three", a))
	one := exampleService("one", a)
	one.Spec.Type = corev1.ServiceTypeClusterIP
	passToFollower(t, services.Update, one)
	has("three", "two")
	passToFollower(t, services.Delete, exampleService("two", a))
	has("three")
	// A Service that was deleted without an event is missing when all are replaced.
	reduced, err := services.Transformer()(exampleService("four", a))
	if err != nil {
		t.Fatal(err)
	}
	passToFollower(t, func(o any) error { return services.Replace(o.([]any), "9") }, []any{reduced, exampleService("five", a)})
	has("five", "four")
	if f.options.UIDByServiceIndex.ServiceReference(view.ObjectKey{Namespace: "default", Name: "three"}) != nil {
		t.Error("a deleted Service still has a reference")
	}
	if _, err := services.Transformer()(&corev1.Pod{}); err == nil {
		t.Error("a Pod is accepted as a Service")
	}
}

func TestEndpointsOfSeveralSlicesAreJoined(t *testing.T) {
	p, _, endpoints, _ := newFeedWithFollowers(t, plan.Inputs{})
	on := func(service string, want ...string) {
		t.Helper()
		if got := p.Inputs().Endpoints[view.ObjectKey{Namespace: "default", Name: service}].ServingNodes; !slices.Equal(got, want) {
			t.Errorf("%s has endpoints on %v, want %v", service, got, want)
		}
	}
	passToFollower(t, func(o any) error { return endpoints.Replace(o.([]any), "1") }, []any{exampleEndpointSlice("web-2", "web", "b"), exampleEndpointSlice("web-1", "web", "a"), exampleEndpointSlice("dns-1", "dns", "c")})
	on("web", "a", "b")
	passToFollower(t, endpoints.Add, exampleEndpointSlice("web-3", "web", "c"))
	on("web", "a", "b", "c")
	passToFollower(t, endpoints.Update, exampleEndpointSlice("web-1", "web", "d"))
	on("web", "b", "c", "d")
	// now belongs to another Service
	passToFollower(t, endpoints.Update, exampleEndpointSlice("web-3", "dns", "c", "d"))
	on("web", "b", "d")
	on("dns", "c", "d")
	passToFollower(t, endpoints.Update, exampleEndpointSlice("web-2", ""))
	on("web", "d")
	passToFollower(t, endpoints.Delete, exampleEndpointSlice("web-1", "web"))
	on("web")
	// a slice that was never seen before
	passToFollower(t, endpoints.Update, exampleEndpointSlice("web-9", "web", "a"))
	on("web", "a")
	passToFollower(t, func(o any) error { return endpoints.Replace(o.([]any), "9") }, []any{exampleEndpointSlice("dns-1", "dns", "e")})
	on("web")
	on("dns", "e")
}

// TestFollowerWithRealAPIServer runs a mirror with a real API server, from before the mirror
// starts until its objects are deleted.
func TestFollowerWithRealAPIServer(t *testing.T) {
	config := apiserver.StartUntilTestEnds(t)
	source, err := client.NewWithWatch(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	create := func(name string) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
		s.Spec.Type, s.Spec.Ports = corev1.ServiceTypeLoadBalancer, []corev1.ServicePort{{Port: 80}}
		if err := source.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	one := create("one")
	calls := make(chan string, 16)
	m := &objectFollower[string]{
		reduceObject: func(o any) (string, bool) {
			s, ok := o.(*corev1.Service)
			if !ok {
				return "", false
			}
			return s.Name + " " + string(s.Spec.ExternalTrafficPolicy), true
		},
		onAdd:    func(v string) { calls <- "added " + v },
		onUpdate: func(v string) { calls <- "changed " + v },
		onDelete: func(v string) { calls <- "removed " + v },
		onReplace: func(all []string) {
			slices.Sort(all)
			calls <- fmt.Sprint("all: ", all)
		},
		syncedSignal: make(chan struct{}),
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.followObjects(ctx, source, &corev1.Service{}, func() client.ObjectList { return &corev1.ServiceList{} })
	}()
	t.Cleanup(func() { cancel(); <-ended })
	next := func(want string) {
		t.Helper()
		select {
		case got := <-calls:
			if got != want {
				t.Fatalf("it passes on %q, want %q", got, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("it does not pass on %q", want)
		}
	}
	next("all: [kubernetes  one Cluster]")
	if !toolscache.WaitForCacheSync(ctx.Done(), m.hasSynced) {
		t.Error("it does not sync")
	}
	create("two")
	next("added two Cluster")
	one.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	if err := source.Update(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	next("changed one Local")
	if err := source.Delete(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	next("removed one Local")
}

// bytesPerServiceLimit bounds the memory of one Service that is announced to two routers, without
// the tables of their sessions.
const bytesPerServiceLimit = 2000

// TestAServiceTakesLittleMemory measures the memory of 10,000 Services in the
// ClusterFeed and the Planner.
func TestAServiceTakesLittleMemory(t *testing.T) {
	const many = 10000
	first := netip.MustParseAddr("10.200.0.0")
	in := plan.Inputs{SelfNode: "node1", Nodes: map[string]view.Node{"node1": {Name: "node1"}}, Snapshot: &snapshot.Snapshot{
		Pools:             []*snapshot.Pool{{Name: "p", Ranges: []snapshot.Range{{First: first, Last: netip.MustParseAddr("10.200.255.255")}}}},
		BGPAdvertisements: []*snapshot.BGPAdvertisement{{Name: "ad", Pools: []string{"p"}, PrefixLengthIPv4: 32, PrefixLengthIPv6: 128}},
		Peers:             []*snapshot.Peer{{Name: "tor1", Address: first}, {Name: "tor2", Address: first}},
	}}
	p, services, endpoints, f := newFeedWithFollowers(t, in)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	a := first
	for i := range many {
		a = a.Next()
		name := fmt.Sprintf("service-%05d", i)
		passToFollower(t, services.Add, exampleService(name, a))
		passToFollower(t, endpoints.Add, exampleEndpointSlice(name+"-x7k2p", name, "node1"))
	}
	p.Update()
	each := (heap() - before) / many
	if got := len(p.Plan().Routes); got != many || len(f.options.UIDByServiceIndex.uidByService) != many {
		t.Fatalf("%d routes and %d Services are there", got, len(f.options.UIDByServiceIndex.uidByService))
	}
	t.Logf("%d bytes for each Service", each)
	if each > bytesPerServiceLimit {
		t.Errorf("a Service takes %d bytes, more than %d", each, bytesPerServiceLimit)
	}
	runtime.KeepAlive(maps.Keys(f.endpointSlicesByService))
	runtime.KeepAlive(p)
}
