package reconcile

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/status"
)

// Each of the living speakers looks at the objects of a dead one, of one that only the gossip does
// not reach, and of a node that was deleted before they started.
func TestOneNodeRemovesTheObjectsOfDeadNodes(t *testing.T) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_700_000_000, 0)
	speaker := func(node string, ready metav1.ConditionStatus) *v1alpha1.SpeakerStatus {
		return &v1alpha1.SpeakerStatus{
			ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: node},
			Status:     v1alpha1.SpeakerStatusStatus{LastSeen: &metav1.Time{Time: now}, Conditions: []metav1.Condition{{Type: names.ConditionSpeakerReady, Status: ready}}},
		}
	}
	api := fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		speaker("a", metav1.ConditionTrue), speaker("d", metav1.ConditionTrue), speaker("dead", metav1.ConditionFalse), speaker("unreachable", metav1.ConditionTrue),
	).Build()
	var have []status.ExistingServiceL2Status
	for _, node := range []string{"a", "d", "dead", "deleted", "unreachable"} {
		e := status.ExistingServiceL2Status{ExistingObjectName: node + "-object"}
		e.Node, e.Service = node, view.ObjectKey{Namespace: "default", Name: "web"}
		have = append(have, e)
	}
	removedBy := map[string]int{}
	living := []string{"a", "d", "x"}
	for _, self := range living {
		w := NewStatusWriter(StatusWriterOptions{Client: api, UncachedReader: api, Events: events.NewFakeRecorder(8), Log: slog.New(slog.DiscardHandler), Self: self, Namespace: names.DefaultNamespace, Now: func() time.Time { return now }})
		w.missingNodes.updateAndListNodesToMarkDead([]string{"a", "d", "dead", "unreachable", "x"}, self, now)
		w.missingNodes.updateAndListNodesToMarkDead(living, self, now)
		if first := w.serviceL2StatusesToCleanUp(t.Context(), have); len(first) > 0 {
			t.Errorf("%s removes %v at once: a speaker that lives could not object", self, first)
		}
		w.options.Now = func() time.Time { return now.Add(deadNodeL2StatusRemovalDelay) }
		for _, name := range w.serviceL2StatusesToCleanUp(t.Context(), have) {
			removedBy[name]++
		}
	}
	if len(removedBy) != 2 || removedBy["dead-object"] != 1 || removedBy["deleted-object"] != 1 {
		t.Errorf("the objects are removed as often as %v, want those of the dead and the deleted node, once each", removedBy)
	}
}

func TestSilentMemberCountsAsGoneAfterTimeout(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	s := agent.Status{MemberNames: []string{"a", "b", "c"}, DeclaredDeadMemberNames: []string{"b"}}
	m := declaredDeadMembers{}
	// The election waits before it declares a member dead about which it was wrong before. That
	// does not delay the report.
	waited := s
	waited.DeathAgreedSinceByMember = map[string]time.Time{"b": start.Add(-time.Second / 4)}
	if _, check := (declaredDeadMembers{}).livingMembers(waited, start); check != deadMemberReportDelay-time.Second/4 {
		t.Errorf("a member about which the witnesses agree for 250 ms is looked at again in %v", check)
	}
	for _, c := range []struct {
		after  time.Duration
		living []string
		check  time.Duration
	}{
		{0, []string{"a", "b", "c"}, deadMemberReportDelay},
		{time.Second / 2, []string{"a", "b", "c"}, deadMemberReportDelay - time.Second/2},
		{deadMemberReportDelay, []string{"a", "c"}, 0},
	} {
		if living, check := m.livingMembers(s, start.Add(c.after)); !slices.Equal(living, c.living) || check != c.check {
			t.Errorf("after %v %v live, and the next check is in %v; want %v and %v", c.after, living, check, c.living, c.check)
		}
	}
	s.DeclaredDeadMemberNames = nil
	if living, _ := m.livingMembers(s, start.Add(time.Minute)); len(living) != 3 || len(m) > 0 {
		t.Errorf("%v live after the member was heard again", living)
	}
}
