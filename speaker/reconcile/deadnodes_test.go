package reconcile

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
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
