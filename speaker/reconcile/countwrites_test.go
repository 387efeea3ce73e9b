package reconcile

import (
	"context"
	"log/slog"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
)

// countedWritesHarness is an API server in memory that counts the writes of statuses.
type countedWritesHarness struct {
	t      *testing.T
	api    client.Client
	now    time.Time
	writes int
}

func newCountedWritesHarness(t *testing.T) *countedWritesHarness {
	t.Helper()
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	h := &countedWritesHarness{t: t, now: time.Unix(1_700_000_000, 0)}
	h.api = fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.SpeakerStatus{}, &v1alpha1.BGPSession{}).WithInterceptorFuncs(interceptor.Funcs{
		SubResourceApply: func(ctx context.Context, c client.Client, name string, o runtime.ApplyConfiguration, opts ...client.SubResourceApplyOption) error {
			h.writes++
			return c.SubResource(name).Apply(ctx, o, opts...)
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, name string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			h.writes++
			return c.SubResource(name).Patch(ctx, o, p, opts...)
		},
	}).Build()
	return h
}

// expectWritesAtMost fails if there were more writes, and counts from 0 again.
func (h *countedWritesHarness) expectWritesAtMost(what string, limit int) {
	h.t.Helper()
	if h.writes == 0 || h.writes > limit {
		h.t.Errorf("%s costs %d writes, want 1 to %d", what, h.writes, limit)
	}
	h.writes = 0
}

// TestCrowdOfServicesCausesFewWritesOfSpeakerStatus creates 5,000 Services within 100 s, so that
// the counts in a SpeakerStatus change 50 times a second.
func TestCrowdOfServicesCausesFewWritesOfSpeakerStatus(t *testing.T) {
	h := newCountedWritesHarness(t)
	w := NewStatusWriter(StatusWriterOptions{
		Client: h.api, UncachedReader: h.api, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return h.now }, Self: "node1", Namespace: names.DefaultNamespace,
	})
	var s v1alpha1.SpeakerStatusStatus
	s.Node = "node1"
	write := func() {
		t.Helper()
		if err := w.writeSpeakerStatus(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	expectWritten := func(what string) {
		t.Helper()
		var o v1alpha1.SpeakerStatus
		if err := h.api.Get(t.Context(), client.ObjectKey{Namespace: names.DefaultNamespace, Name: "node1"}, &o); err != nil {
			t.Fatal(err)
		}
		if o.Status.Held != s.Held || o.Status.Routes != s.Routes || len(o.Status.Conditions) != len(s.Conditions) {
			t.Errorf("%s: written are %d held addresses, %d routes and %d conditions, want %d, %d and %d",
				what, o.Status.Held, o.Status.Routes, len(o.Status.Conditions), s.Held, s.Routes, len(s.Conditions))
		}
	}
	write()
	s.Held, s.Routes = 1, 1
	h.now = h.now.Add(20 * time.Millisecond)
	write()
	expectWritten("the first address, without delay")
	for range 5000 {
		h.now = h.now.Add(20 * time.Millisecond)
		s.Held, s.Routes = s.Held+1, s.Routes+1
		write()
	}
	h.now = h.now.Add(minCountChangeInterval)
	write()
	expectWritten("the crowd, some seconds later")
	h.expectWritesAtMost("a crowd of 5,000 Services", int(120*time.Second/minCountChangeInterval))

	s.Held++
	s.Conditions = []metav1.Condition{{Type: names.ConditionLayer2Usable, Status: metav1.ConditionFalse, Reason: string(names.ReasonNoLinks)}}
	write()
	expectWritten("another condition, without delay")
	s.Held, s.Routes = 0, 0
	write()
	expectWritten("nothing is announced any more, without delay")
}

// TestCrowdOfServicesCausesFewWritesOfBGPSessions is about the number of routes of a session.
func TestCrowdOfServicesCausesFewWritesOfBGPSessions(t *testing.T) {
	h := newCountedWritesHarness(t)
	w := NewBGPStatusWriter(BGPStatusWriterOptions{
		Client: h.api, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return h.now }, Self: "node1", Namespace: names.DefaultNamespace,
		PodOwnerReferences: func(context.Context) []metav1.OwnerReference { return nil },
	})
	s := bgp.PeerSessionStatus{PeerName: "tor", State: bgp.Established, StateSince: h.now, UpOrDownSince: h.now, AnnounceableFamilies: []message.AFI{message.FamilyIPv4}}
	h.now = h.now.Add(time.Minute)
	write := func() time.Duration {
		t.Helper()
		lookAgain, err := w.writeBGPSessions(t.Context(), []bgp.PeerSessionStatus{s}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return lookAgain
	}
	expectRoutes := func(what string) {
		t.Helper()
		var list v1alpha1.BGPSessionList
		if err := h.api.List(t.Context(), &list); err != nil || len(list.Items) != 1 {
			t.Fatalf("there are the sessions %+v: %v", list.Items, err)
		}
		if got := list.Items[0].Status; int(got.Prefixes) != s.AnnouncedRouteCount || got.State != string(s.State) {
			t.Errorf("%s: written are %d routes and the state %s, want %d and %s", what, got.Prefixes, got.State, s.AnnouncedRouteCount, s.State)
		}
	}
	write()
	s.AnnouncedRouteCount = 1
	write()
	expectRoutes("the first route, without delay")
	var lookAgain time.Duration
	for range 510 { // a change is looked at after 200 ms
		h.now = h.now.Add(sessionChangeCoalesceDelay)
		s.AnnouncedRouteCount += 10
		lookAgain = write()
	}
	if lookAgain <= 0 || lookAgain > minCountChangeInterval {
		t.Errorf("the number of routes is looked at again after %v", lookAgain)
	}
	h.now = h.now.Add(lookAgain)
	write()
	expectRoutes("the crowd, some seconds later")
	h.expectWritesAtMost("a crowd of 5,000 Services", int(120*time.Second/minCountChangeInterval))
	s.AnnouncedRouteCount = 0
	write()
	expectRoutes("no route, without delay")
}
