package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// fakeChangingSession is an established session that reports a change whenever the test says so.
type fakeChangingSession struct {
	changedSignal *latest.Wake

	mu               sync.Mutex // guards all that follows
	establishedCount int
	isDown           bool
	changedAt        time.Time
}

func (s *fakeChangingSession) StatusChanged() <-chan struct{} { return s.changedSignal.C() }

func (s *fakeChangingSession) SessionStatuses() []bgp.PeerSessionStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := bgp.PeerSessionStatus{PeerName: "tor", State: bgp.Established, StateSince: time.Now(), UpOrDownSince: s.changedAt, EstablishedCount: s.establishedCount, AnnounceableFamilies: []message.AFI{message.FamilyIPv4}}
	if s.isDown {
		out.State, out.AnnounceableFamilies = bgp.Idle, nil
	}
	return []bgp.PeerSessionStatus{out}
}

// setDown ends the session or establishes it again.
func (s *fakeChangingSession) setDown(down bool) {
	s.mu.Lock()
	if s.isDown, s.changedAt = down, time.Now(); !down {
		s.establishedCount++
	}
	s.mu.Unlock()
	s.changedSignal.Signal()
}

// newPlanWithBGPVerdicts returns verdicts on n Services that are announced to tor.
func newPlanWithBGPVerdicts(n int) plan.Plan {
	var all []*plan.BGPVerdict
	for i := range n {
		all = append(all, &plan.BGPVerdict{
			Service:   view.ObjectKey{Namespace: "default", Name: fmt.Sprintf("web-%03d", i)},
			Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Peers: []string{"tor"}, Reason: names.ReasonAnnounced,
		})
	}
	return plan.Plan{BGPVerdicts: plan.NewSortedList(all...)}
}

// countServiceBGPStatuses counts the Services that the node reports.
func countServiceBGPStatuses(t *testing.T, api client.Client) int {
	t.Helper()
	var list v1beta1.ServiceBGPStatusList
	if err := api.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	return len(list.Items)
}

// TestFlappingSessionCostsFewWritesOfServices ends and establishes a session again and again, and
// looks at how often the reports about the Services are written.
func TestFlappingSessionCostsFewWritesOfServices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const services = 20
		w, api, sessions := runBGPStatusWriter(t, 0)
		w.ObserveStatus(agent.Status{Plan: newPlanWithBGPVerdicts(services)})
		w.options.Metrics.observeStatus(agent.Status{Plan: newPlanWithBGPVerdicts(services)})
		time.Sleep(time.Second)
		changes, reported := 0, countServiceBGPStatuses(t, api)
		if reported != services {
			t.Fatalf("%d Services are reported, want %d", reported, services)
		}
		look := func() {
			time.Sleep(time.Second)
			if n := countServiceBGPStatuses(t, api); n != reported {
				reported, changes = n, changes+1
			}
		}
		for range 20 {
			sessions.setDown(true)
			if look(); reported != 0 {
				t.Errorf("%d Services are reported while the session is down", reported)
			}
			sessions.setDown(false)
			for range 4 {
				look()
			}
		}
		if changes > 3 { // the session ends, returns and ends
			t.Errorf("the reports changed %d times in 100 s, want at most 3", changes)
		}
		var session v1alpha1.BGPSession
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: names.DefaultNamespace, Name: "tor.node1"}, &session); err != nil {
			t.Fatal(err)
		}
		if c := meta.FindStatusCondition(session.Status.Conditions, names.ConditionEstablished); c == nil || c.Status != metav1.ConditionTrue || c.Reason != string(names.ReasonFlapping) {
			t.Errorf("the session says %+v, want that it is established and flaps", c)
		}
		if n := testutil.CollectAndCount(w.options.Metrics, "metallb_speaker_announced"); n != 0 {
			t.Errorf("the metric has %d addresses while the session does not count, want none", n)
		}
		time.Sleep(time.Minute)
		if n := countServiceBGPStatuses(t, api); n != services {
			t.Errorf("%d Services are reported a minute after the last change, want %d", n, services)
		}
		if err := api.Get(t.Context(), client.ObjectKeyFromObject(&session), &session); err != nil {
			t.Fatal(err)
		}
		if c := meta.FindStatusCondition(session.Status.Conditions, names.ConditionEstablished); c == nil || c.Reason != string(names.ReasonEstablished) {
			t.Errorf("a minute after the last change the session says %+v", c)
		}
		if n := testutil.CollectAndCount(w.options.Metrics, "metallb_speaker_announced"); n != services {
			t.Errorf("the metric has %d addresses a minute after the last change, want %d", n, services)
		}
	})
}

// runBGPStatusWriter runs a writer whose API server needs this long to create an object. It must be
// called in a bubble of synctest.
func runBGPStatusWriter(t *testing.T, creationDelay time.Duration) (*BGPStatusWriter, client.Client, *fakeChangingSession) {
	t.Helper()
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	api := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.BGPSession{}, &v1beta1.ServiceBGPStatus{}).
		WithInterceptorFuncs(interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			time.Sleep(creationDelay)
			return c.Create(ctx, o, opts...)
		}}).Build()
	sessions := &fakeChangingSession{changedSignal: latest.NewWake(), establishedCount: 1}
	w := NewBGPStatusWriter(BGPStatusWriterOptions{
		Client: api, Sessions: sessions, Log: slog.New(slog.DiscardHandler), Now: time.Now, Self: "node1", Namespace: names.DefaultNamespace, ServiceBGPStatusLimit: 500,
		PodOwnerReferences: func(context.Context) []metav1.OwnerReference { return nil }, ServiceReference: func(view.ObjectKey) *corev1.Service { return nil },
		Metrics: NewAnnouncedMetrics("node1", sessions),
	})
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() { _ = w.Run(ctx) }()
	return w, api, sessions
}

// TestBGPStatusIsWrittenWhileSessionsChangeAllTheTime lets changes follow each other faster than
// they are gathered, as those of many sessions do.
func TestBGPStatusIsWrittenWhileSessionsChangeAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, api, sessions := runBGPStatusWriter(t, 0)
		w.ObserveStatus(agent.Status{})
		for range 20 {
			sessions.changedSignal.Signal()
			time.Sleep(sessionChangeCoalesceDelay / 2)
		}
		var list v1alpha1.BGPSessionList
		if err := api.List(t.Context(), &list); err != nil || len(list.Items) != 1 {
			t.Errorf("%d sessions are written after two seconds of changes, want 1 (%v)", len(list.Items), err)
		}
	})
}

// TestManyServiceBGPStatusesAreWrittenAtOnce lets a router return that gets many Services.
func TestManyServiceBGPStatusesAreWrittenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, api, _ := runBGPStatusWriter(t, 50*time.Millisecond)
		const services = 400
		w.ObserveStatus(agent.Status{Plan: newPlanWithBGPVerdicts(services)})
		time.Sleep(2 * time.Second)
		if n := countServiceBGPStatuses(t, api); n != services {
			t.Errorf("%d Services are reported after two seconds, want %d", n, services)
		}
	})
}

// fakeUnchangingSessions are sessions that stay as they are.
type fakeUnchangingSessions []bgp.PeerSessionStatus

func (s fakeUnchangingSessions) StatusChanged() <-chan struct{}           { return nil }
func (s fakeUnchangingSessions) SessionStatuses() []bgp.PeerSessionStatus { return s }

// TestRefusedBGPSessionDoesNotBlockOthers has an API server that refuses the object of one session.
func TestRefusedBGPSessionDoesNotBlockOthers(t *testing.T) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	refused := errors.New("a policy refuses it")
	api := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.BGPSession{}, &v1beta1.ServiceBGPStatus{}).
		WithInterceptorFuncs(interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			if o.GetName() == "refused.node1" {
				return refused
			}
			return c.Create(ctx, o, opts...)
		}}).Build()
	var sessions fakeUnchangingSessions
	for _, peer := range []string{"refused", "tor"} {
		sessions = append(sessions, bgp.PeerSessionStatus{PeerName: peer, State: bgp.Established, EstablishedCount: 1, AnnounceableFamilies: []message.AFI{message.FamilyIPv4}})
	}
	w := NewBGPStatusWriter(BGPStatusWriterOptions{
		Client: api, Sessions: sessions, Log: slog.New(slog.DiscardHandler), Now: time.Now, Self: "node1", Namespace: names.DefaultNamespace, ServiceBGPStatusLimit: 500,
		PodOwnerReferences: func(context.Context) []metav1.OwnerReference { return nil }, ServiceReference: func(view.ObjectKey) *corev1.Service { return nil },
	})
	if _, err := w.writeStatus(t.Context(), newPlanWithBGPVerdicts(3)); !errors.Is(err, refused) {
		t.Errorf("the error is %v, want the one of the refused object, so that the writer tries again", err)
	}
	var list v1alpha1.BGPSessionList
	if err := api.List(t.Context(), &list); err != nil || len(list.Items) != 1 || list.Items[0].Status.Peer != "tor" {
		t.Errorf("the sessions are %+v (%v), want the one with tor", list.Items, err)
	}
	if n := countServiceBGPStatuses(t, api); n != 3 {
		t.Errorf("%d Services are reported, want 3", n)
	}
}
