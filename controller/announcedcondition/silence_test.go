package announcedcondition

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
)

// setSpeakerPod writes whether the Pod of the speaker on a node is ready.
func (h *writerHarness) setSpeakerPod(node string, ready corev1.ConditionStatus) {
	h.t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: names.Namespace, Name: "gantry-speaker-" + node, Labels: SpeakerPodLabels()}}
	if err := h.api.Get(h.t.Context(), client.ObjectKeyFromObject(p), p); err != nil {
		h.create(p)
	}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready, LastTransitionTime: metav1.NewTime(h.now)}}
	if err := h.api.Status().Update(h.t.Context(), p); err != nil {
		h.t.Fatal(err)
	}
}

// TestConditionIsUnknownWithoutSpeakers kills all speakers at once: no living one can say so.
func TestConditionIsUnknownWithoutSpeakers(t *testing.T) {
	h := newWriterHarness(t)
	for _, node := range []string{"node1", "node2"} {
		h.setSpeakerPod(node, corev1.ConditionTrue)
		h.setSession(node, names.Explanation{})
		h.reportRoutes(node)
	}
	h.expect("both speakers run", h.reconcile("web", time.Minute), metav1.ConditionTrue, names.ReasonAnnounced, "announced by BGP")
	h.setSpeakerPod("node1", corev1.ConditionFalse)
	h.expect("one of two speakers runs", h.reconcile("web", time.Minute), metav1.ConditionTrue, names.ReasonAnnounced, "announced by BGP")
	h.setSpeakerPod("node2", corev1.ConditionFalse)
	h.expect("a container may start again", h.reconcile("web", silentSpeakersTimeout-time.Second), metav1.ConditionTrue, names.ReasonAnnounced, "announced by BGP")
	const text = "no speaker runs on any node"
	h.expect("no speaker runs", h.reconcile("web", 2*time.Second), metav1.ConditionUnknown, names.ReasonNoSpeaker, text)
	if n := h.countEvents("Warning announceFailed NoSpeaker: " + text); n != 1 {
		t.Errorf("%d Warnings say so, want 1: %q", n, h.sentEvents)
	}
	writes := h.serviceWrites
	h.expect("it lasts", h.reconcile("web", 10*time.Minute), metav1.ConditionUnknown, names.ReasonNoSpeaker, text)
	h.setSpeakerPod("node2", corev1.ConditionTrue)
	h.expect("a speaker runs again", h.reconcile("web", time.Second), metav1.ConditionTrue, names.ReasonAnnounced, "announced by BGP")
	if n := h.countEvents("Normal announced Announced: announced by BGP"); n != 1 || h.serviceWrites != writes+1 {
		t.Errorf("%d events say that it is over, and %d writes, want one of each: %q", n, h.serviceWrites-writes, h.sentEvents)
	}
}

// TestUnannouncedServiceSaysThatNoSpeakerRuns checks a Service that nobody reports to announce,
// while no speaker runs.
func TestUnannouncedServiceSaysThatNoSpeakerRuns(t *testing.T) {
	h := newWriterHarness(t)
	h.setSpeakerPod("node1", corev1.ConditionFalse)
	h.expect("no speaker runs", h.reconcile("web", time.Minute), metav1.ConditionFalse, names.ReasonNoSpeaker, "no speaker runs on any node")
}

func TestCompactPodKeepsWhetherItIsReady(t *testing.T) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "speaker", Labels: SpeakerPodLabels(), Annotations: map[string]string{"a": "b"}}, Spec: corev1.PodSpec{NodeName: "node1"}}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodInitialized}, {Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	if _, err := CompactPod(p); err != nil {
		t.Fatal(err)
	}
	if ready, _ := readinessOf(p); !ready || len(p.Status.Conditions) != 1 || p.Annotations != nil || p.Labels == nil || p.Spec.NodeName != "" {
		t.Errorf("the Pod in the cache is %+v", p)
	}
}
