package announcedcondition

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// conditionWriterHarness is a ConditionWriter with an API server in memory, a pool, a
// BGPAdvertisement, the BGPPeer tor, two nodes, and the Service web with an endpoint on node1.
type conditionWriterHarness struct {
	t                   *testing.T
	api                 client.Client
	configurationReader *configurationreader.Reader
	writer              *ConditionWriter
	now                 time.Time
	// serviceWrites counts the writes of Services. sentEvents has every event.
	serviceWrites int
	sentEvents    []string
	// areEventsRefused says that the API server takes no events.
	areEventsRefused bool
	// sharedEndpointSlice is that of all Services, instead of one for each. sessionsInMemory are
	// the sessions by index value. Either may be nil. With both, a look at a Service is faster.
	sharedEndpointSlice *discoveryv1.EndpointSlice
	sessionsInMemory    map[string]v1alpha1.BGPSession
	// beforeServiceWrite is called before each write of a Service; it may be nil.
	beforeServiceWrite func()
}

func newConditionWriterHarness(t *testing.T) *conditionWriterHarness {
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	h := &conditionWriterHarness{t: t, now: time.Unix(1_700_000_000, 0)}
	scope := configuration.ConfigurationScope{Namespace: names.DefaultNamespace}
	b := fake.NewClientBuilder().WithScheme(scheme).
		WithStatusSubresource(&corev1.Service{}, &v1alpha1.SpeakerStatus{}, &v1alpha1.BGPSession{}, &v1beta1.ServiceBGPStatus{}, &v1beta1.ServiceL2Status{}).
		WithInterceptorFuncs(interceptor.Funcs{SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			if _, ok := o.(*corev1.Service); ok && h.beforeServiceWrite != nil {
				h.beforeServiceWrite()
			} else if ok {
				h.serviceWrites++
			}
			return c.SubResource(sub).Patch(ctx, o, p, opts...)
		}, List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			switch list := list.(type) {
			case *discoveryv1.EndpointSliceList:
				if h.sharedEndpointSlice != nil {
					list.Items = []discoveryv1.EndpointSlice{*h.sharedEndpointSlice}
					return nil
				}
			case *v1alpha1.BGPSessionList:
				var o client.ListOptions
				o.ApplyOptions(opts)
				if value, isOne := o.FieldSelector.RequiresExactMatch(SessionsByNodeAndPeerIndex); isOne && h.sessionsInMemory != nil {
					list.Items = []v1alpha1.BGPSession{h.sessionsInMemory[value]}
					return nil
				}
			}
			return c.List(ctx, list, opts...)
		}})
	for _, o := range scope.SpeakerReportKinds() {
		b = b.WithIndex(o, ReportsByServiceIndex, func(o client.Object) []string { return []string{serviceOfSpeakerReport(o).String()} }).
			WithIndex(o, ReportsByNodeIndex, func(o client.Object) []string { return []string{o.GetLabels()[names.LabelServiceStatusNode]} })
	}
	b = b.WithIndex(&discoveryv1.EndpointSlice{}, EndpointSlicesByServiceIndex, func(o client.Object) []string { return []string{o.GetLabels()[discoveryv1.LabelServiceName]} }).
		WithIndex(&v1alpha1.BGPSession{}, SessionsByNodeAndPeerIndex, func(o client.Object) []string {
			s, _ := o.(*v1alpha1.BGPSession)
			return []string{sessionIndexValue(s.Status.Node, s.Status.Peer)}
		})
	h.api = b.Build()
	h.configurationReader = configurationreader.NewReader(configurationreader.Options{
		ReadObjects: func(ctx context.Context) (snapshot.ConfigurationObjects, error) {
			return configurationreader.ReadAllObjects(ctx, h.api, scope)
		}, Log: slog.New(slog.DiscardHandler),
	})
	go func() { _ = h.configurationReader.Start(t.Context()) }()
	h.restartController()
	h.createPoolPeerNodesAndService()
	return h
}

// restartController replaces the ConditionWriter, which forgets everything.
func (h *conditionWriterHarness) restartController() {
	h.writer = NewConditionWriter(Options{
		Client: h.api, Scope: configuration.ConfigurationScope{Namespace: names.DefaultNamespace}, ConfigurationReader: h.configurationReader, Now: func() time.Time { return h.now },
		RecordSeriesEvent: func(_ context.Context, s *corev1.Service, kind, reason, text string) bool {
			if !h.areEventsRefused {
				h.sentEvents = append(h.sentEvents, fmt.Sprintf("%s %s %s %s", s.Name, kind, reason, text))
			}
			return !h.areEventsRefused
		},
	})
}

func (h *conditionWriterHarness) createPoolPeerNodesAndService() {
	object := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: name}
	}
	h.createObject(&v1beta1.IPAddressPool{ObjectMeta: object("first"), Spec: v1beta1.IPAddressPoolSpec{Addresses: []string{"192.0.2.0/24"}}})
	h.createObject(&v1beta1.BGPAdvertisement{ObjectMeta: object("first")})
	h.createObject(&v1beta2.BGPPeer{ObjectMeta: object("tor"), Spec: v1beta2.BGPPeerSpec{MyASN: 64512, PeerASN: 64513, PeerAddress: "192.0.2.254"}})
	for _, node := range []string{"node1", "node2"} {
		h.createObject(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}})
		h.createObject(&v1alpha1.SpeakerStatus{ObjectMeta: object(node), Status: v1alpha1.SpeakerStatusStatus{Node: node, LastSeen: &metav1.Time{Time: h.now}, UsableLinks: []string{"eth0"}, Routes: 600}})
	}
	h.createService("web")
	if _, err := h.configurationReader.ReadNow(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
}

// createService creates a Service with an address and an endpoint on node1.
func (h *conditionWriterHarness) createService(name string) {
	o := metav1.ObjectMeta{Namespace: "default", Name: name, CreationTimestamp: metav1.NewTime(h.now)}
	s := &corev1.Service{ObjectMeta: o, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
	h.createObject(s)
	node := "node1"
	o.Labels = map[string]string{discoveryv1.LabelServiceName: name}
	h.createObject(&discoveryv1.EndpointSlice{ObjectMeta: o, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, NodeName: &node}}})
}

func (h *conditionWriterHarness) createObject(o client.Object) {
	h.t.Helper()
	if err := h.api.Create(h.t.Context(), o); err != nil {
		h.t.Fatal(err)
	}
}

// setSessionWithTor writes the state of the session with tor; an empty fault means that it is
// established.
func (h *conditionWriterHarness) setSessionWithTor(node string, fault names.Explanation) {
	h.t.Helper()
	o := &v1alpha1.BGPSession{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "tor." + node}}
	if err := h.api.Get(h.t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
		o.Status.Node, o.Status.Peer = node, "tor"
		h.createObject(o)
	}
	c := metav1.Condition{Type: names.ConditionEstablished, Status: metav1.ConditionTrue, Reason: string(names.ReasonEstablished)}
	o.Status = v1alpha1.BGPSessionStatus{Node: node, Peer: "tor", Families: []string{ipv4Unicast}}
	if fault.IsSet() {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, string(fault.Reason), fault.Text
		o.Status.Families = nil
	}
	o.Status.Conditions = []metav1.Condition{c}
	if err := h.api.Status().Update(h.t.Context(), o); err != nil {
		h.t.Fatal(err)
	}
	if h.sessionsInMemory != nil {
		h.sessionsInMemory[sessionIndexValue(node, "tor")] = *o
	}
}

// reportRoutesOfServiceWeb writes that the routers of the node have the Service web.
func (h *conditionWriterHarness) reportRoutesOfServiceWeb(node string) {
	h.createObject(&v1beta1.ServiceBGPStatus{
		ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "default.web." + node, Labels: map[string]string{
			names.LabelServiceStatusNode: node, names.LabelServiceName: "web", names.LabelServiceNamespace: "default",
		}},
		Status: v1beta1.ServiceBGPStatusStatus{Node: node, ServiceName: "web", ServiceNamespace: "default", Peers: []string{"tor"}},
	})
}

// reconcileAndAdvanceTimeFor looks at the Service again and again, for that long.
func (h *conditionWriterHarness) reconcileAndAdvanceTimeFor(service string, during time.Duration) metav1.Condition {
	h.t.Helper()
	end := h.now.Add(during)
	for {
		r, err := h.writer.Reconcile(h.t.Context(), ctrl.Request{NamespacedName: client.ObjectKey{Namespace: "default", Name: service}})
		if err != nil {
			h.t.Fatal(err)
		}
		if r.RequeueAfter == 0 || h.now.Add(r.RequeueAfter).After(end) {
			break
		}
		h.now = h.now.Add(r.RequeueAfter)
	}
	h.now = end
	var s corev1.Service
	if err := h.api.Get(h.t.Context(), client.ObjectKey{Namespace: "default", Name: service}, &s); err != nil {
		h.t.Fatal(err)
	}
	if c := meta.FindStatusCondition(s.Status.Conditions, names.ConditionAnnounced); c != nil {
		return *c
	}
	return metav1.Condition{}
}

// expectCondition compares a condition.
func (h *conditionWriterHarness) expectCondition(what string, c metav1.Condition, status metav1.ConditionStatus, reason names.Reason, text string) {
	h.t.Helper()
	if c.Status != status || c.Reason != string(reason) || !strings.Contains(c.Message, text) {
		h.t.Errorf("%s: the condition is %s, %s: %q; want %s, %s: %q", what, c.Status, c.Reason, c.Message, status, reason, text)
	}
}

// countEvents counts the events with this text.
func (h *conditionWriterHarness) countEvents(text string) int {
	n := 0
	for _, e := range h.sentEvents {
		if strings.Contains(e, text) {
			n++
		}
	}
	return n
}

var wrongASNumberFault = names.NewExplanation(names.ReasonWrongASNumber, "it expects another AS number")

// TestServiceIsAnnouncedOnlyOverEstablishedSessions checks what the condition says while sessions
// come and go, and how often the Service is written.
func TestServiceIsAnnouncedOnlyOverEstablishedSessions(t *testing.T) {
	h := newConditionWriterHarness(t)
	h.setSessionWithTor("node1", wrongASNumberFault)
	h.setSessionWithTor("node2", wrongASNumberFault)
	c := h.reconcileAndAdvanceTimeFor("web", 3*time.Second)
	h.expectCondition("no session", c, metav1.ConditionFalse, names.ReasonNoSession, "0 of 2 BGP sessions carry the Service: tor on node1: it expects another AS number (WrongASNumber)")
	h.setSessionWithTor("node1", names.Explanation{})
	h.reportRoutesOfServiceWeb("node1")
	writes := h.serviceWrites
	c = h.reconcileAndAdvanceTimeFor("web", time.Second)
	if h.expectCondition("the first session of two", c, metav1.ConditionTrue, names.ReasonAnnounced, "announced by BGP"); strings.Contains(c.Message, "node2") {
		t.Errorf("the first text has the session that may still come: %q", c.Message)
	}
	c = h.reconcileAndAdvanceTimeFor("web", 5*time.Second)
	h.expectCondition("one session of two", c, metav1.ConditionTrue, names.ReasonAnnounced, "on 1 of 2 BGP sessions: not on tor on node2")
	if n := h.serviceWrites - writes; n != 2 {
		t.Errorf("the return of one session of two cost %d writes, want 2", n)
	}
	h.setSessionWithTor("node2", names.Explanation{})
	h.reportRoutesOfServiceWeb("node2")
	before := h.serviceWrites
	h.reconcileAndAdvanceTimeFor("web", time.Millisecond)
	h.setSessionWithTor("node1", names.NewExplanation(names.ReasonConnectionLost, "it is gone"))
	h.setSessionWithTor("node2", names.Explanation{})
	if h.reconcileAndAdvanceTimeFor("web", time.Millisecond); h.serviceWrites > before+1 {
		t.Errorf("%d writes although a session is established all the time", h.serviceWrites-before)
	}
	h.setSessionWithTor("node2", names.NewExplanation(names.ReasonConnectionLost, "it is gone"))
	c = h.reconcileAndAdvanceTimeFor("web", 3*time.Second)
	h.expectCondition("the last session is gone", c, metav1.ConditionFalse, names.ReasonNoSession, "0 of 2 BGP sessions")
	if n := testutil.CollectAndCount(h.writer, "gantry_services_not_announced"); n != 1 {
		t.Errorf("%d reasons are counted, want 1", n)
	}
	if n := h.countEvents("Normal announced"); n != 1 {
		t.Errorf("%d events of the recovery, want 1: %q", n, h.sentEvents)
	}
}

// TestReturningRouterCausesOneWriteOfService lets the sessions come one after the other, as those
// of many nodes do.
func TestReturningRouterCausesOneWriteOfService(t *testing.T) {
	h := newConditionWriterHarness(t)
	h.setSessionWithTor("node1", wrongASNumberFault)
	h.setSessionWithTor("node2", wrongASNumberFault)
	h.reconcileAndAdvanceTimeFor("web", 3*time.Second)
	before := h.serviceWrites
	for _, node := range []string{"node1", "node2"} {
		h.setSessionWithTor(node, names.Explanation{})
		h.reportRoutesOfServiceWeb(node)
		h.reconcileAndAdvanceTimeFor("web", 3*time.Second)
	}
	c := h.reconcileAndAdvanceTimeFor("web", time.Minute)
	h.expectCondition("all sessions", c, metav1.ConditionTrue, names.ReasonAnnounced, "announced by BGP")
	if n := h.serviceWrites - before; n != 1 || strings.Contains(c.Message, "sessions") {
		t.Errorf("the return of the router cost %d writes, want 1; the text is %q", n, c.Message)
	}
}

// TestEstablishedSessionWithoutRouteDoesNotCount checks a session that is established while the
// node's reports do not have the Service.
func TestEstablishedSessionWithoutRouteDoesNotCount(t *testing.T) {
	h := newConditionWriterHarness(t)
	h.setSessionWithTor("node1", names.Explanation{})
	c := h.reconcileAndAdvanceTimeFor("web", 3*time.Second)
	h.expectCondition("a node without any report", c, metav1.ConditionTrue, names.ReasonAnnounced, "announced by BGP")
	h.createService("other")
	h.reportRoutesOfServiceWeb("node1")
	c = h.reconcileAndAdvanceTimeFor("other", 3*time.Second)
	h.expectCondition("a node that reports another Service", c, metav1.ConditionFalse, names.ReasonNoSession, "the router does not have the route yet")
}

// A dual-stack Service may have endpoints of one family only. The condition speaks of each address.
func TestAnAddressWithoutEndpointsOfItsFamilyIsExplained(t *testing.T) {
	h := newConditionWriterHarness(t)
	pool := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "six"}, Spec: v1beta1.IPAddressPoolSpec{Addresses: []string{"2001:db8::/124"}}}
	h.createObject(pool)
	h.createObject(&v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "all"}})
	o := metav1.ObjectMeta{Namespace: "default", Name: "dual", CreationTimestamp: metav1.NewTime(h.now)}
	s := &corev1.Service{ObjectMeta: o, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.5"}, {IP: "2001:db8::5"}}
	h.createObject(s)
	node := "node1"
	o.Labels = map[string]string{discoveryv1.LabelServiceName: "dual"}
	h.createObject(&discoveryv1.EndpointSlice{ObjectMeta: o, AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, NodeName: &node}}})
	h.createObject(&v1beta1.ServiceL2Status{
		ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "l2-dual", Labels: map[string]string{
			names.LabelServiceStatusNode: node, names.LabelServiceName: "dual", names.LabelServiceNamespace: "default",
		}},
		Status: v1beta1.ServiceL2StatusStatus{Node: node, ServiceName: "dual", ServiceNamespace: "default", Gantry: &v1beta1.ServiceL2StatusGantry{Addresses: []string{"192.0.2.5"}}},
	})
	if _, err := h.configurationReader.ReadNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := h.reconcileAndAdvanceTimeFor("dual", time.Minute)
	h.expectCondition("IPv4 endpoints only", c, metav1.ConditionFalse, names.ReasonNoEndpoints, "192.0.2.5: announced by layer 2; 2001:db8::5: no endpoint of the Service has an IPv6 address")
}

// TestWarningOfUnannouncedServiceIsRepeated checks when the Warning about an unannounced Service is
// sent.
func TestWarningOfUnannouncedServiceIsRepeated(t *testing.T) {
	h := newConditionWriterHarness(t)
	h.setSessionWithTor("node1", wrongASNumberFault)
	h.setSessionWithTor("node2", wrongASNumberFault)
	h.reconcileAndAdvanceTimeFor("web", 10*time.Minute)
	if n := h.countEvents("Warning announceFailed NoSession: "); n != 1 {
		t.Fatalf("%d Warnings in the first minutes, want 1: %q", n, h.sentEvents)
	}
	h.reconcileAndAdvanceTimeFor("web", 30*time.Minute)
	if n := h.countEvents("Warning announceFailed NoSession: "); n != 2 {
		t.Errorf("%d Warnings after 40 minutes, want 2", n)
	}
	h.restartController()
	h.reconcileAndAdvanceTimeFor("web", 5*time.Second)
	if n := h.countEvents("Warning announceFailed NoSession: "); n != 3 {
		t.Errorf("%d Warnings after a restart of the controller, want 3", n)
	}
	h.setSessionWithTor("node1", names.NewExplanation(names.ReasonNoAnswer, "it is silent"))
	h.reconcileAndAdvanceTimeFor("web", time.Minute)
	if n := h.countEvents("it is silent"); n != 1 {
		t.Errorf("%d Warnings with the new text, want 1: %q", n, h.sentEvents)
	}
}

// TestForeignHostWarningsAreRepeated checks the Warnings while a foreign host claims an
// address that a node answers for. The speaker sends the first one.
func TestForeignHostWarningsAreRepeated(t *testing.T) {
	h := newConditionWriterHarness(t)
	h.createService("claimed")
	status := &v1beta1.ServiceL2Status{
		ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "l2-claimed", Labels: map[string]string{
			names.LabelServiceStatusNode: "node1", names.LabelServiceName: "claimed", names.LabelServiceNamespace: "default",
		}},
		Status: v1beta1.ServiceL2StatusStatus{Node: "node1", ServiceName: "claimed", ServiceNamespace: "default"},
	}
	setConflicts := func(all ...v1beta1.AddressConflict) {
		status.Status.Gantry = &v1beta1.ServiceL2StatusGantry{Addresses: []string{"192.0.2.1"}, Conflicts: all}
		if err := h.api.Status().Update(t.Context(), status); err != nil {
			t.Fatal(err)
		}
	}
	h.createObject(status)
	setConflicts(v1beta1.AddressConflict{Address: "192.0.2.1", MAC: "02:00:00:00:00:99", Since: metav1.NewTime(h.now)})
	const warning = "Warning announceFailed ForeignClaim: "
	c := h.reconcileAndAdvanceTimeFor("claimed", 10*time.Minute)
	h.expectCondition("a foreign host claims the address", c, metav1.ConditionTrue, names.ReasonForeignClaim, "02:00:00:00:00:99")
	if n := h.countEvents(warning); n != 0 {
		t.Errorf("%d Warnings in the first minutes, want that of the speaker alone: %q", n, h.sentEvents)
	}
	h.reconcileAndAdvanceTimeFor("claimed", 30*time.Minute)
	if n := h.countEvents(warning); n != 1 {
		t.Errorf("%d Warnings after 40 minutes, want 1: %q", n, h.sentEvents)
	}
	h.restartController()
	h.reconcileAndAdvanceTimeFor("claimed", 5*time.Second)
	if n := h.countEvents(warning); n != 2 {
		t.Errorf("%d Warnings after a restart of the controller, want 2: %q", n, h.sentEvents)
	}
	setConflicts()
	h.reconcileAndAdvanceTimeFor("claimed", time.Hour)
	if n := h.countEvents("Normal announced Announced: announced by layer 2; ForeignClaim is over"); n != 1 || h.countEvents(warning) != 2 {
		t.Errorf("%d events say that it is over, want 1, and no further Warning: %q", n, h.sentEvents)
	}
}

// TestWarningEventsOfManyServicesArePaced has Services that were written together with
// their condition, all at the same time. The Pods of most are there soon. The others get a Warning.
func TestWarningEventsOfManyServicesArePaced(t *testing.T) {
	h := newConditionWriterHarness(t)
	look := func(i int) time.Duration {
		r, err := h.writer.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKey{Namespace: "default", Name: fmt.Sprint("crowd", i)}})
		if err != nil {
			t.Fatal(err)
		}
		return r.RequeueAfter
	}
	const n = 30
	for i := range n {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("crowd", i)}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: fmt.Sprintf("192.0.2.%d", 10+i)}}
		c, certain := h.writer.PredictUnannouncedCondition(t.Context(), s, []netip.Addr{netip.MustParseAddr(s.Status.LoadBalancer.Ingress[0].IP)})
		if !certain {
			t.Fatal("the forecast is not certain")
		}
		c.LastTransitionTime = metav1.NewTime(h.now)
		s.Status.Conditions = []metav1.Condition{c}
		h.createObject(s)
		look(i)
	}
	h.now = h.now.Add(missingReportTimeout)
	for i := range n {
		look(i)
	}
	if got := h.countEvents("Normal announceFailed NoEndpoints: "); got != unannouncedEventBurst {
		t.Errorf("%d events at once, want %d", got, unannouncedEventBurst)
	}
	for range 60 {
		h.now = h.now.Add(time.Second)
		for i := range n {
			look(i)
		}
	}
	for i := range n {
		if got := h.countEvents(fmt.Sprintf("crowd%d Warning announceFailed NoEndpoints: ", i)); got != 1 {
			t.Errorf("%d Warnings about Service %d a minute later, want 1", got, i)
		}
	}
}

// TestWarningOfMissingAddressIsRepeated checks the Warning of the other condition.
func TestWarningOfMissingAddressIsRepeated(t *testing.T) {
	h := newConditionWriterHarness(t)
	var s corev1.Service
	if err := h.api.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "web"}, &s); err != nil {
		t.Fatal(err)
	}
	s.Status = corev1.ServiceStatus{Conditions: []metav1.Condition{{Type: names.ConditionAddressAssigned, Status: metav1.ConditionFalse, Reason: string(names.ReasonPoolExhausted), Message: "it is full", LastTransitionTime: metav1.NewTime(h.now)}}}
	if err := h.api.Status().Update(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	if h.reconcileAndAdvanceTimeFor("web", 10*time.Minute); len(h.sentEvents) != 0 {
		t.Errorf("the first Warning is that of the worker, and there is %q", h.sentEvents)
	}
	if h.reconcileAndAdvanceTimeFor("web", 30*time.Minute); h.countEvents("Warning AllocationFailed PoolExhausted: it is full") != 1 {
		t.Errorf("the Warning is not repeated: %q", h.sentEvents)
	}
}

// TestWarningRemindersAreSpacedOverServices checks that many Services share the slots of their
// reminders.
func TestWarningRemindersAreSpacedOverServices(t *testing.T) {
	var pacer writeSlotPacer
	m := newFaultMemory(&pacer)
	now := time.Unix(1_700_000_000, 0)
	var last time.Duration
	for i := range 50 {
		last = m.delayUntilReminder(client.ObjectKey{Name: fmt.Sprint(i)}, now)
	}
	if want := 49 * minOverallReminderInterval; last != want {
		t.Errorf("the reminder of the 50th Service comes after %s, want %s", last, want)
	}
}
