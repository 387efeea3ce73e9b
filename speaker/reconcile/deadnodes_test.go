package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/status"
)

// newObjectsWrittenBySpeaker returns what a speaker wrote before it died.
func newObjectsWrittenBySpeaker(node string, ready metav1.ConditionStatus, seen time.Time) []client.Object {
	labels := map[string]string{names.LabelServiceStatusNode: node}
	session := &v1alpha1.BGPSession{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "tor." + node, Labels: labels}}
	session.Status = v1alpha1.BGPSessionStatus{Node: node, Peer: "tor", State: "Established", Families: []string{"ipv4-unicast"}, Prefixes: 3, BFD: "Up"}
	for _, kind := range []string{names.ConditionEstablished, names.ConditionRoutesAnnounced, names.ConditionBFDWatchesPath} {
		meta.SetStatusCondition(&session.Status.Conditions, metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: "Fine"})
	}
	return []client.Object{
		&v1alpha1.SpeakerStatus{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: node}, Status: v1alpha1.SpeakerStatusStatus{
			LastSeen: &metav1.Time{Time: seen}, Conditions: []metav1.Condition{{Type: names.ConditionSpeakerReady, Status: ready}},
		}},
		session,
		&v1beta1.ServiceBGPStatus{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "default.web." + node, Labels: labels}},
		&v1beta1.ConfigurationState{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "speaker-" + node}, Status: v1beta1.ConfigurationStateStatus{Result: v1beta1.ConfigurationInvalid, ErrorSummary: "a pool"}},
	}
}

// describeObjectsOfSpeaker says what the reports of a node say now.
func describeObjectsOfSpeaker(t *testing.T, api client.Client, node string) string {
	t.Helper()
	var session v1alpha1.BGPSession
	var state v1beta1.ConfigurationState
	for name, o := range map[string]client.Object{"tor." + node: &session, "speaker-" + node: &state} {
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: names.DefaultNamespace, Name: name}, o); err != nil {
			t.Fatal(err)
		}
	}
	isGone := api.Get(t.Context(), client.ObjectKey{Namespace: names.DefaultNamespace, Name: "default.web." + node}, &v1beta1.ServiceBGPStatus{}) != nil
	var conditions []string
	for _, c := range append(session.Status.Conditions, state.Status.Conditions...) {
		conditions = append(conditions, fmt.Sprint(c.Type, "=", c.Status))
	}
	return fmt.Sprintf("%s %v %d %q %v %s %q, ServiceBGPStatus gone: %t", session.Status.State, session.Status.Families, session.Status.Prefixes, session.Status.BFD, conditions, state.Status.Result, state.Status.ErrorSummary, isGone)
}

// TestOneNodeCorrectsWhatADeadSpeakerWrote checks what is left of a dead speaker, and of one that
// only the gossip does not reach.
func TestOneNodeCorrectsWhatADeadSpeakerWrote(t *testing.T) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_700_000_000, 0)
	api := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.BGPSession{}, &v1beta1.ConfigurationState{}).
		WithObjects(newObjectsWrittenBySpeaker("dead", metav1.ConditionFalse, now)...).WithObjects(newObjectsWrittenBySpeaker("unreachable", metav1.ConditionTrue, now)...).Build()
	before := describeObjectsOfSpeaker(t, api, "unreachable")
	const established, valid = names.ConditionEstablished, names.ConditionSpeakerConfigValid
	for _, withoutBGP := range []bool{true, false} {
		for _, self := range []string{"a", "x"} {
			w := NewStatusWriter(StatusWriterOptions{
				Client: api, UncachedReader: api, Events: events.NewFakeRecorder(8), Log: slog.New(slog.DiscardHandler), Self: self, Namespace: names.DefaultNamespace,
				Now: func() time.Time { return now }, WithoutBGPKinds: withoutBGP,
			})
			w.missingNodes.updateAndListNodesToMarkDead([]string{"a", "dead", "unreachable", "x"}, self, now)
			w.missingNodes.updateAndListNodesToMarkDead([]string{"a", "x"}, self, now)
			w.correctStatusesOfDeadNodes(t.Context())
			w.options.Now = func() time.Time { return now.Add(deadNodeL2StatusRemovalDelay) }
			w.correctStatusesOfDeadNodes(t.Context())
			if isWriter := self == "x"; w.missingNodes.missingNodeByName["dead"].areStatusesCorrected != isWriter {
				t.Errorf("node %s writes about the dead one: %t", self, !isWriter)
			}
		}
		want := fmt.Sprintf(`Unknown [] 0 "" [%s=Unknown %s=Unknown] Unknown "", ServiceBGPStatus gone: true`, established, valid)
		if got := describeObjectsOfSpeaker(t, api, "dead"); (got == want) == withoutBGP {
			t.Errorf("without BGP %t: the reports of the dead speaker say\n%s, want\n%s", withoutBGP, got, want)
		}
	}
	if got := describeObjectsOfSpeaker(t, api, "unreachable"); got != before {
		t.Errorf("the reports of a speaker that runs say\n%s, want\n%s", got, before)
	}
	if shown, _ := status.ShownSessionState("Unknown", "Active", now, now); shown != "Active" {
		t.Errorf("the speaker runs again, and the state is %q", shown)
	}
}

// deadMarkHarness has the SpeakerStatuses of some nodes, and writers of these nodes that share one
// clock.
type deadMarkHarness struct {
	t       *testing.T
	api     client.WithWatch
	now     time.Time
	apiDown bool // the API server refuses each mark
	marks   int  // that arrived
}

func newDeadMarkHarness(t *testing.T, nodes ...string) *deadMarkHarness {
	t.Helper()
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	h := &deadMarkHarness{t: t, now: time.Unix(1_700_000_000, 0)}
	b := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.SpeakerStatus{}, &v1beta1.ConfigurationState{}).WithInterceptorFuncs(interceptor.Funcs{
		SubResourceApply: func(ctx context.Context, c client.Client, name string, o runtime.ApplyConfiguration, opts ...client.SubResourceApplyOption) error {
			if h.apiDown {
				return errors.New("the API server does not answer")
			}
			h.marks++
			return c.SubResource(name).Apply(ctx, o, opts...)
		},
	})
	for _, node := range nodes {
		s := newObjectsWrittenBySpeaker(node, metav1.ConditionTrue, h.now)[0].(*v1alpha1.SpeakerStatus)
		s.Status.Node, s.Status.Held = node, 3
		b = b.WithObjects(s)
	}
	h.api = b.Build()
	return h
}

// startWriter returns the writer of a node that sees these members.
func (h *deadMarkHarness) startWriter(self string, members ...string) *StatusWriter {
	h.t.Helper()
	w := NewStatusWriter(StatusWriterOptions{
		Client: h.api, UncachedReader: h.api, Events: events.NewFakeRecorder(8), Log: slog.New(slog.DiscardHandler), Self: self, Namespace: names.DefaultNamespace,
		Now: func() time.Time { return h.now }, WithoutBGPKinds: true, SkippedLinks: func() []facts.SkippedLink { return nil },
	})
	w.observeMembersAndMarkDead(h.t.Context(), members)
	return w
}

// recheckAfter lets the time pass and the writer look at what changes without an event.
func (h *deadMarkHarness) recheckAfter(w *StatusWriter, d time.Duration) {
	h.t.Helper()
	h.now = h.now.Add(d)
	w.recheckWithoutEvent(h.t.Context(), agent.Status{})
}

// deadNodes returns the nodes whose SpeakerStatus says that the speaker is dead and holds nothing.
func (h *deadMarkHarness) deadNodes() []string {
	h.t.Helper()
	var list v1alpha1.SpeakerStatusList
	if err := h.api.List(h.t.Context(), &list); err != nil {
		h.t.Fatal(err)
	}
	var out []string
	for i := range list.Items {
		if s := &list.Items[i].Status; s.WasFoundDead() && s.Held == 0 {
			out = append(out, list.Items[i].Name)
		}
	}
	return out
}

// expectDeadNodes checks which nodes count as dead.
func (h *deadMarkHarness) expectDeadNodes(when string, want ...string) {
	h.t.Helper()
	if got := h.deadNodes(); !slices.Equal(got, want) {
		h.t.Errorf("%s: the speakers of %q are marked as dead, want %q", when, got, want)
	}
}

// TestFailedDeadMarkIsTriedAgain has an API server that does not answer when a speaker dies.
func TestFailedDeadMarkIsTriedAgain(t *testing.T) {
	h := newDeadMarkHarness(t, "a", "b", "c")
	w := h.startWriter("c", "a", "b", "c")
	h.now, h.apiDown = h.now.Add(30*time.Second), true
	w.observeMembersAndMarkDead(t.Context(), []string{"a", "c"})
	h.recheckAfter(w, statusRecheckWithoutEventInterval-time.Second)
	h.expectDeadNodes("the API server does not answer")
	h.apiDown = false
	h.recheckAfter(w, statusRecheckWithoutEventInterval)
	h.expectDeadNodes("it answers again", "b")
	if len(w.missingNodes.runningUnreachableNames()) > 0 {
		t.Error("the dead speaker counts as one that runs")
	}
	h.recheckAfter(w, statusRecheckWithoutEventInterval)
	if h.marks != 1 {
		t.Errorf("%d writes, want 1", h.marks)
	}
}

// TestFailedDeadMarkOfALivingSpeakerIsDropped has speakers that live although one has lost them:
// one has written since, the others would be marked by a node that was cut off from all.
func TestFailedDeadMarkOfALivingSpeakerIsDropped(t *testing.T) {
	for name, tt := range map[string]struct {
		members []string // that the node still sees
		writes  bool
	}{
		"it wrote since":      {[]string{"a", "c"}, true},
		"the node is cut off": {[]string{"c"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newDeadMarkHarness(t, "a", "b", "c")
			w := h.startWriter("c", "a", "b", "c")
			h.now, h.apiDown = h.now.Add(30*time.Second), true
			w.observeMembersAndMarkDead(t.Context(), tt.members)
			h.now, h.apiDown = h.now.Add(10*time.Second), false
			if tt.writes {
				var s v1alpha1.SpeakerStatus
				if err := h.api.Get(t.Context(), client.ObjectKey{Namespace: names.DefaultNamespace, Name: "b"}, &s); err != nil {
					t.Fatal(err)
				}
				s.Status.LastSeen = &metav1.Time{Time: h.now}
				if err := h.api.Status().Update(t.Context(), &s); err != nil {
					t.Fatal(err)
				}
			}
			h.recheckAfter(w, statusRecheckWithoutEventInterval)
			h.expectDeadNodes("the API server answers again")
		})
	}
}

// TestSpeakerIsMarkedDeadThoughItsWitnessDies lets the speaker die that had to write about another
// dead one, before and after it has written.
func TestSpeakerIsMarkedDeadThoughItsWitnessDies(t *testing.T) {
	for _, hasWitnessWritten := range []bool{false, true} {
		h := newDeadMarkHarness(t, "a", "b", "c", "d")
		w := h.startWriter("d", "a", "b", "c", "d")
		witness := h.startWriter("c", "a", "b", "c", "d")
		h.now = h.now.Add(30 * time.Second)
		w.observeMembersAndMarkDead(t.Context(), []string{"a", "c", "d"})
		if h.expectDeadNodes("c has not written yet"); hasWitnessWritten {
			witness.observeMembersAndMarkDead(t.Context(), []string{"a", "c", "d"})
		}
		h.now = h.now.Add(time.Second)
		w.observeMembersAndMarkDead(t.Context(), []string{"a", "d"})
		h.expectDeadNodes("both are dead", "b", "c")
		if h.marks != 2 {
			t.Errorf("the witness has written: %t; there are %d writes, want one for each dead speaker", hasWitnessWritten, h.marks)
		}
	}
}

// TestSilentSpeakerIsMarkedDeadByANodeThatNeverSawIt has a speaker that started after another one
// died unmarked.
func TestSilentSpeakerIsMarkedDeadByANodeThatNeverSawIt(t *testing.T) {
	h := newDeadMarkHarness(t, "a", "b", "c")
	w := h.startWriter("c", "a", "c")
	w.missingNodes.observeNodes([]string{"b"}, h.now)
	for range 3 {
		h.recheckAfter(w, missingNodeRecheckInterval)
	}
	h.expectDeadNodes("its lastSeen is recent")
	for range 5 {
		h.recheckAfter(w, missingNodeRecheckInterval)
	}
	h.expectDeadNodes("its lastSeen is old", "b")
	if h.marks != 1 {
		t.Errorf("%d writes, want 1", h.marks)
	}
}

// TestLivingSpeakerNoticesThatItWasMarkedDead has a speaker that others have lost, and that has
// lost nobody.
func TestLivingSpeakerNoticesThatItWasMarkedDead(t *testing.T) {
	h := newDeadMarkHarness(t, "a", "b")
	w := h.startWriter("a", "a", "b")
	writeOwnStatus := func() {
		t.Helper()
		if err := w.writeSpeakerStatus(t.Context(), status.BuildSpeakerStatus(w.collectStatusInputs(agent.Status{}))); err != nil {
			t.Fatal(err)
		}
	}
	writeOwnStatus()
	h.recheckAfter(w, statusRecheckWithoutEventInterval)
	if err := w.markDeadSpeaker(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	h.expectDeadNodes("another speaker has written", "a")
	h.recheckAfter(w, minOwnStatusCheckInterval)
	writeOwnStatus()
	h.expectDeadNodes("the speaker has looked")
	if n := ownStatusCheckInterval(300); n != 30*time.Second {
		t.Errorf("each of 300 speakers looks every %s, want 30 s: 10 reads in a second", n)
	}
}

// TestSpeakerThatIsCutOffCorrectsItsStatusSoon lets a speaker lose a member because gossip between
// the two is blocked. The other one writes that this one is dead, at once or somewhat late.
func TestSpeakerThatIsCutOffCorrectsItsStatusSoon(t *testing.T) {
	for _, markedAfter := range []time.Duration{50 * time.Millisecond, 700 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			h := newDeadMarkHarness(t, "a", "b")
			w := h.startWriter("a", "a", "b")
			w.options.Now, w.options.Metrics = time.Now, NewAnnouncedMetrics("a", nil)
			w.options.Cache = &informertest.FakeInformers{Scheme: h.api.Scheme()}
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- w.Run(ctx) }()
			both := []string{"a", "b"}
			w.ObserveStatus(agent.Status{MemberNames: both})
			time.Sleep(time.Second)
			w.ObserveStatus(agent.Status{MemberNames: both, DeclaredDeadMemberNames: []string{"b"}})
			time.Sleep(deadMemberReportDelay + markedAfter)
			h.expectDeadNodes("the speaker has lost a member", "b")
			if err := w.markDeadSpeaker(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(earlyOwnStatusCheckDelay + 10*time.Millisecond)
			h.expectDeadNodes(fmt.Sprintf("a mark after %s", markedAfter), "b")
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}
