package assign

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/view"
)

// eventRecorder stores events.
type eventRecorder struct {
	mu              sync.Mutex // guards all that follows
	eventsByService map[string][]string
}

// recordEvent stores an event.
func (r *eventRecorder) recordEvent(s *corev1.Service, kind, reason, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.eventsByService == nil {
		r.eventsByService = map[string][]string{}
	}
	r.eventsByService[s.Name] = append(r.eventsByService[s.Name], kind+" "+reason+" "+text)
}

func (r *eventRecorder) eventsOf(name string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.eventsByService[name]
}

// runningController is a worker with its Client. It may be stopped, and another one started
// instead.
type runningController struct {
	*ServiceWorker
	client *apitest.Client
	stop   context.CancelFunc
	wg     sync.WaitGroup
}

// startController starts a controller. In a test with fake time it must be stopped before the test
// ends.
func startController(t *testing.T, server *apitest.Server, weather func(string) apitest.Delivery, o ServiceWorkerOptions) *runningController {
	t.Helper()
	return startTestControllerWithMaxPending(t, server, weather, o, maxPendingAssignments)
}

// startTestControllerWithMaxPending starts a controller that keeps at most this many pending
// assignments open.
func startTestControllerWithMaxPending(t *testing.T, server *apitest.Server, weather func(string) apitest.Delivery, o ServiceWorkerOptions, bound int) *runningController {
	t.Helper()
	c := &runningController{client: apitest.NewClient(server, weather)}
	o.API, o.Namespace, o.Now = c.client, names.DefaultNamespace, time.Now
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.RecordEvent == nil {
		o.RecordEvent = (&eventRecorder{}).recordEvent
	}
	o.ConfigurationReader = configurationreader.NewReader(configurationreader.Options{ReadObjects: c.client.ReadCachedPoolsAndReservations, Log: o.Log})
	c.ServiceWorker = NewServiceWorker(o)
	c.ledgerWriter.maxPendingServices = bound
	var ctx context.Context
	ctx, c.stop = context.WithCancel(context.Background())
	c.wg.Go(func() { _ = c.ConfigurationReader.Start(ctx) })
	c.wg.Go(func() { _ = c.Run(ctx) })
	c.wg.Go(func() { c.client.RunCacheUpdates(ctx, c.ServiceWorker) })
	return c
}

// stopAndWait stops a controller and waits for it.
func (c *runningController) stopAndWait() {
	c.client.ResumeProcess()
	c.stop()
	c.wg.Wait()
}

// killAndWait ends a controller as SIGKILL does: it sends nothing more, and lands says for each
// sent request whether it arrives.
func (c *runningController) killAndWait(lands func() bool) {
	c.client.KillProcess(lands)
	c.stopAndWait()
}

// deliverRequestsIn delays every request, and no change in the watch.
func deliverRequestsIn(d time.Duration) func(what string) apitest.Delivery {
	return func(what string) apitest.Delivery {
		if what == "watch" {
			return apitest.Delivery{}
		}
		return apitest.Delivery{RequestDelay: d / 2, AnswerDelay: d / 2}
	}
}

// poolSpec returns a pool that gives a Service as many addresses as it asks for.
func poolSpec(addresses ...string) v1beta1.IPAddressPoolSpec {
	return v1beta1.IPAddressPoolSpec{Addresses: addresses, Gantry: &v1beta1.PoolExtension{MaxPerService: 16}}
}

// newLoadBalancer returns a Service of type LoadBalancer.
func newLoadBalancer(name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIPs: []string{"10.96.0.1"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

func serviceKey(name string) view.ObjectKey { return view.ObjectKey{Namespace: "default", Name: name} }

func parseAddresses(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

// firstAddress returns the first address in the Service's status; invalid when there is none.
func firstAddress(s *corev1.Service) netip.Addr {
	if s == nil || len(s.Status.LoadBalancer.Ingress) == 0 {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s.Status.LoadBalancer.Ingress[0].IP)
}

// addressAssignedConditionReason returns the reason of the condition gantry.dev/AddressAssigned.
func addressAssignedConditionReason(s *corev1.Service) names.Reason {
	if c := meta.FindStatusCondition(s.Status.Conditions, names.ConditionAddressAssigned); c != nil {
		return names.Reason(c.Reason)
	}
	return ""
}

// wantAddressAndReason checks the address of a Service; empty means none.
func wantAddressAndReason(t *testing.T, s *apitest.Server, name, addr string, why names.Reason) {
	t.Helper()
	o := s.ServiceByKey(serviceKey(name))
	if o == nil {
		t.Fatalf("there is no Service %s", name)
	}
	got := ""
	if a := firstAddress(o); a.IsValid() {
		got = a.String()
	}
	if got != addr || addressAssignedConditionReason(o) != why {
		t.Errorf("Service %s has the address %q for the reason %q, want %q for %q: %v", name, got, addressAssignedConditionReason(o), addr, why, o.Status.Conditions)
	}
}

// runWithFakeTime runs f with fake time, which advances only while all goroutines wait.
func runWithFakeTime(t *testing.T, f func(*testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		defer time.Sleep(time.Minute) // until all sent requests have arrived
		f(t)
	})
}

// ingressEntriesOfAddresses returns a Service's ingress entries as the controller writes them.
func ingressEntriesOfAddresses(texts ...string) []corev1.LoadBalancerIngress {
	var out []corev1.LoadBalancerIngress
	for _, text := range texts {
		out = append(out, corev1.LoadBalancerIngress{IP: text, IPMode: &ingressIPModeVIP})
	}
	return out
}

// newPendingAssignment returns an entry of the AddressLedger.
func newPendingAssignment(name, base string, addresses ...netip.Addr) v1alpha1.PendingAssignment {
	p := v1alpha1.PendingAssignment{Namespace: "default", Name: name, Base: base}
	for _, a := range addresses {
		p.Addresses = append(p.Addresses, a.String())
	}
	return p
}

// writePendingAsOtherController writes these entries into the AddressLedger, as another controller
// does.
func writePendingAsOtherController(t *testing.T, c *apitest.Client, pending ...v1alpha1.PendingAssignment) {
	t.Helper()
	l, err := c.ReadOrCreateLedger(t.Context(), names.PendingAssignmentsLedger)
	if err != nil {
		t.Fatal(err)
	}
	l = l.DeepCopy()
	l.Spec = v1alpha1.AddressLedgerSpec{Writer: "another", Pending: pending}
	if _, err := c.CompareAndSwapLedger(t.Context(), l); err != nil {
		t.Fatal(err)
	}
}
