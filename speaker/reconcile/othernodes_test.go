package reconcile

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/internal/configuration"
)

// TestExactlyOneNodeMarksDeadSpeaker lets each speaker of a cluster vanish, as all others see it:
// exactly one of them writes about it.
func TestExactlyOneNodeMarksDeadSpeaker(t *testing.T) {
	all := []string{"a", "b", "c", "d"}
	for _, dead := range all {
		var writers []string
		for _, self := range all {
			if self == dead {
				continue
			}
			var m missingNodes
			m.updateAndListNodesToMarkDead(all, self, time.Time{})
			living := slices.DeleteFunc(slices.Clone(all), func(n string) bool { return n == dead })
			if toMarkDead := m.updateAndListNodesToMarkDead(living, self, time.Time{}); len(toMarkDead) > 0 {
				writers = append(writers, self)
			}
			if again := m.updateAndListNodesToMarkDead(living, self, time.Time{}); len(again) > 0 {
				t.Errorf("%s writes about %v again", self, again)
			}
		}
		if len(writers) != 1 {
			t.Errorf("%v write about the speaker of %s, want exactly one", writers, dead)
		}
	}
}

// TestUnreachableSpeakerIsNotTakenForDead checks which missing speakers count as unreachable: those
// that say that they run.
func TestUnreachableSpeakerIsNotTakenForDead(t *testing.T) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_700_000_000, 0)
	speaker := func(node string, ready metav1.ConditionStatus, seen time.Time) *v1alpha1.SpeakerStatus {
		return &v1alpha1.SpeakerStatus{
			ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: node},
			Status:     v1alpha1.SpeakerStatusStatus{LastSeen: &metav1.Time{Time: seen}, Conditions: []metav1.Condition{{Type: names.ConditionSpeakerReady, Status: ready}}},
		}
	}
	api := fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "self"}},
		speaker("blocked", metav1.ConditionTrue, now), speaker("dead", metav1.ConditionFalse, now), speaker("silent", metav1.ConditionTrue, now.Add(-time.Hour)),
	).Build()
	recorder := events.NewFakeRecorder(8)
	w := NewStatusWriter(StatusWriterOptions{Client: api, UncachedReader: api, Events: recorder, Log: slog.New(slog.DiscardHandler), Self: "self", Namespace: names.DefaultNamespace, Now: func() time.Time { return now }})
	w.missingNodes.updateAndListNodesToMarkDead([]string{"blocked", "dead", "gone", "self", "silent"}, "self", now)
	w.missingNodes.updateAndListNodesToMarkDead([]string{"self"}, "self", now)
	if w.checkMissingNodes(t.Context()) {
		t.Error("speakers that have just vanished count as unreachable")
	}
	now = now.Add(vanishedSpeakerCheckDelay)
	w.options.Now = func() time.Time { return now }
	if !w.checkMissingNodes(t.Context()) || !slices.Equal(w.missingNodes.runningUnreachableNames(), []string{"blocked"}) {
		t.Errorf("%v are unreachable, want only the one that says that it runs", w.missingNodes.runningUnreachableNames())
	}
	if got := fmt.Sprint(len(recorder.Events)); got != "1" {
		t.Errorf("%s events about the node, want 1", got)
	}
	w.missingNodes.updateAndListNodesToMarkDead([]string{"blocked", "self"}, "self", now)
	if len(w.missingNodes.runningUnreachableNames()) > 0 {
		t.Errorf("%v are unreachable although they are members again", w.missingNodes.runningUnreachableNames())
	}
	var o client.Object = speaker("late", metav1.ConditionTrue, now)
	if err := api.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	w.missingNodes.observeNodes([]string{"late"}, now)
	now = now.Add(vanishedSpeakerCheckDelay)
	if w.checkMissingNodes(t.Context()); !slices.Equal(w.missingNodes.runningUnreachableNames(), []string{"late"}) {
		t.Errorf("%v are unreachable, want the one that was never a member", w.missingNodes.runningUnreachableNames())
	}
}
