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
	"github.com/gantry-lb/gantry/api/v1alpha1"
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
	return runBounded(t, server, weather, o, maxOpen)
}

// runBounded starts a controller that keeps only so many pending assignments open.
func runBounded(t *testing.T, server *memory.Server, weather func(string) memory.Weather, o Options, bound int) *controller {
	t.Helper()
	c := &controller{client: memory.NewClient(server, weather)}
	o.API, o.Namespace = c.client, names.Namespace
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Tell == nil {
		o.Tell = (&recorder{}).tell
	}
	c.Services = New(o)
	c.journal.bound = bound
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

// kill ends a controller as SIGKILL does: nothing that it has not sent yet is sent, and of what is under way lands says whether it
// arrives.
func (c *controller) kill(lands func() bool) {
	c.client.Kill(lands)
	c.end()
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

// ingress is a Service's status as the controller writes it.
func ingress(texts ...string) []corev1.LoadBalancerIngress {
	var out []corev1.LoadBalancerIngress
	for _, text := range texts {
		out = append(out, corev1.LoadBalancerIngress{IP: text, IPMode: &ipModeVIP})
	}
	return out
}

// pendingAssignment is an entry of the AddressLedger.
func pendingAssignment(name, base string, addresses ...netip.Addr) v1alpha1.PendingAssignment {
	p := v1alpha1.PendingAssignment{Namespace: "default", Name: name, Base: base}
	for _, a := range addresses {
		p.Addresses = append(p.Addresses, a.String())
	}
	return p
}

// show has the AddressLedger show these entries, as another controller does.
func show(t *testing.T, c *memory.Client, pending ...v1alpha1.PendingAssignment) {
	t.Helper()
	l, err := c.Ledger(t.Context(), names.AddressLedger)
	if err != nil {
		t.Fatal(err)
	}
	l = l.DeepCopy()
	l.Spec.Writer, l.Spec.Pending = "another", pending
	if _, err := c.SwapLedger(t.Context(), l); err != nil {
		t.Fatal(err)
	}
}
