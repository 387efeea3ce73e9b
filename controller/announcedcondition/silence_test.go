package announcedcondition

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
)

// setSpeakerPodReadiness writes whether the Pod of the speaker on a node is ready.
func (h *conditionWriterHarness) setSpeakerPodReadiness(node string, ready corev1.ConditionStatus) {
	h.t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "gantry-speaker-" + node, Labels: SpeakerPodLabels()}}
	if err := h.api.Get(h.t.Context(), client.ObjectKeyFromObject(p), p); err != nil {
		h.createObject(p)
	}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready, LastTransitionTime: metav1.NewTime(h.now)}}
	if err := h.api.Status().Update(h.t.Context(), p); err != nil {
		h.t.Fatal(err)
	}
}

// TestConditionIsUnknownWithoutSpeakers kills all speakers at once: no living one can say so.
func TestConditionIsUnknownWithoutSpeakers(t *testing.T) {
	h := newConditionWriterHarness(t)
	for _, node := range []string{"node1", "node2"} {
		h.setSpeakerPodReadiness(node, corev1.ConditionTrue)
		h.setSessionWithTor(node, names.Explanation{})
		h.reportRoutesOfServiceWeb(node)
	}
	h.expectCondition("both speakers run", h.reconcileAndAdvanceTimeFor("web", time.Minute), metav1.ConditionTrue, names.ReasonAnnounced, "announced by BGP")
	h.setSpeakerPodReadiness("node1", corev1.ConditionFalse)
	h.expectCondition("one of two speakers runs", h.reconcileAndAdvanceTimeFor("web", time.Minute), metav1.ConditionTrue, names.ReasonAnnounced, "announced by BGP")
	h.setSpeakerPodReadiness("node2", corev1.ConditionFalse)
	h.expectCondition("a container may start again", h.reconcileAndAdvanceTimeFor("web", allSpeakersUnreadyTimeout-time.Second), metav1.ConditionTrue, names.ReasonAnnounced, "announced by BGP")
	const text = "no speaker runs on any node"
	h.expectCondition("no speaker runs", h.reconcileAndAdvanceTimeFor("web", 2*time.Second), metav1.ConditionUnknown, names.ReasonNoSpeaker, text)
	if n := h.countEvents("Warning announceFailed NoSpeaker: " + text); n != 1 {
		t.Errorf("%d Warnings say so, want 1: %q", n, h.sentEvents)
	}
	writes := h.serviceWrites
	h.expectCondition("it lasts", h.reconcileAndAdvanceTimeFor("web", 10*time.Minute), metav1.ConditionUnknown, names.ReasonNoSpeaker, text)
	h.setSpeakerPodReadiness("node2", corev1.ConditionTrue)
	h.expectCondition("a speaker runs again", h.reconcileAndAdvanceTimeFor("web", time.Second), metav1.ConditionTrue, names.ReasonAnnounced, "announced by BGP")
	if n := h.countEvents("Normal announced Announced: announced by BGP"); n != 1 || h.serviceWrites != writes+1 {
		t.Errorf("%d events say that it is over, and %d writes, want one of each: %q", n, h.serviceWrites-writes, h.sentEvents)
	}
}

// TestUnannouncedServiceSaysThatNoSpeakerRuns checks a Service that nobody reports to announce,
// while no speaker runs.
func TestUnannouncedServiceSaysThatNoSpeakerRuns(t *testing.T) {
	h := newConditionWriterHarness(t)
	h.setSpeakerPodReadiness("node1", corev1.ConditionFalse)
	h.expectCondition("no speaker runs", h.reconcileAndAdvanceTimeFor("web", time.Minute), metav1.ConditionFalse, names.ReasonNoSpeaker, "no speaker runs on any node")
}

func TestCompactPodKeepsWhetherItIsReady(t *testing.T) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "speaker", Labels: SpeakerPodLabels(), Annotations: map[string]string{"a": "b"}}, Spec: corev1.PodSpec{NodeName: "node1"}}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodInitialized}, {Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	if _, err := CompactPod(p); err != nil {
		t.Fatal(err)
	}
	if ready, _ := podReadinessAndSince(p); !ready || len(p.Status.Conditions) != 1 || p.Annotations != nil || p.Labels == nil || p.Spec.NodeName != "" {
		t.Errorf("the Pod in the cache is %+v", p)
	}
}
