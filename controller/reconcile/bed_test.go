package reconcile

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/reconcile/memory"
	"github.com/gantry-lb/gantry/internal/view"
)

// recorder keeps the events that were told.
type recorder struct {
	mu     sync.Mutex // guards all that follows
	events map[string][]string
}

// tell keeps an event.
func (r *recorder) tell(s *corev1.Service, kind, reason, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.events == nil {
		r.events = map[string][]string{}
	}
	r.events[s.Name] = append(r.events[s.Name], kind+" "+reason+" "+text)
}

func (r *recorder) of(name string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.events[name]
}

// controller is a worker with its way to the API server. It may be stopped, and another one started in its place.
type controller struct {
	*Services
	client *memory.Client
	stop   context.CancelFunc
	wg     sync.WaitGroup
}

// run starts a controller. Inside of a bubble it has to be ended before the bubble does.
func run(t *testing.T, server *memory.Server, weather func(string) memory.Weather, o Options) *controller {
	t.Helper()
	c := &controller{client: memory.NewClient(server, weather)}
	o.API, o.Log, o.Namespace = c.client, slog.New(slog.DiscardHandler), names.Namespace
	if o.Tell == nil {
		o.Tell = (&recorder{}).tell
	}
	c.Services = New(o)
	var ctx context.Context
	ctx, c.stop = context.WithCancel(context.Background())
	c.wg.Go(func() { _ = c.Run(ctx) })
	c.wg.Go(func() { c.client.Watch(ctx, c.Services) })
	return c
}

// end stops a controller and waits for it.
func (c *controller) end() {
	c.client.Resume()
	c.stop()
	c.wg.Wait()
}

func pool(addresses ...string) v1beta1.IPAddressPoolSpec {
	return v1beta1.IPAddressPoolSpec{Addresses: addresses}
}

// balanced is a Service of type LoadBalancer.
func balanced(name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIPs: []string{"10.96.0.1"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

func key(name string) view.ObjectKey { return view.ObjectKey{Namespace: "default", Name: name} }

func addressesOf(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

// address is the first in the Service's status; not valid when it has none.
func address(s *corev1.Service) netip.Addr {
	if s == nil || len(s.Status.LoadBalancer.Ingress) == 0 {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s.Status.LoadBalancer.Ingress[0].IP)
}

// reason is that of the condition gantry.dev/AddressAssigned.
func reason(s *corev1.Service) names.Reason {
	if c := meta.FindStatusCondition(s.Status.Conditions, names.ConditionAddressAssigned); c != nil {
		return names.Reason(c.Reason)
	}
	return ""
}

// want checks the address of a Service; an empty one stands for none.
func want(t *testing.T, s *memory.Server, name, addr string, why names.Reason) {
	t.Helper()
	o := s.Service(key(name))
	if o == nil {
		t.Fatalf("there is no Service %s", name)
	}
	got := ""
	if a := address(o); a.IsValid() {
		got = a.String()
	}
	if got != addr || reason(o) != why {
		t.Errorf("Service %s has the address %q for the reason %q, want %q for %q: %v", name, got, reason(o), addr, why, o.Status.Conditions)
	}
}

// bubble runs f where time passes only while everybody waits.
func bubble(t *testing.T, f func(*testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}
