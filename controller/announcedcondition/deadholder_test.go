package announcedcondition

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// announceByLayer2Only replaces the BGPAdvertisement by an L2Advertisement, and lets node1 hold the
// address of the Service web.
func (h *conditionWriterHarness) announceByLayer2Only(policy corev1.ServiceExternalTrafficPolicy) {
	h.t.Helper()
	object := metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "first"}
	if err := h.api.Delete(h.t.Context(), &v1beta1.BGPAdvertisement{ObjectMeta: object}); err != nil {
		h.t.Fatal(err)
	}
	h.createObject(&v1beta1.L2Advertisement{ObjectMeta: object})
	if _, err := h.configurationReader.ReadNow(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	var s corev1.Service
	if err := h.api.Get(h.t.Context(), client.ObjectKey{Namespace: "default", Name: "web"}, &s); err != nil {
		h.t.Fatal(err)
	}
	s.Spec.ExternalTrafficPolicy = policy
	if err := h.api.Update(h.t.Context(), &s); err != nil {
		h.t.Fatal(err)
	}
	h.createObject(&v1beta1.ServiceL2Status{
		ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "default.web.node1", Labels: map[string]string{
			names.LabelServiceStatusNode: "node1", names.LabelServiceName: "web", names.LabelServiceNamespace: "default",
		}},
		Status: v1beta1.ServiceL2StatusStatus{Node: "node1", ServiceName: "web", ServiceNamespace: "default"},
	})
}

// markSpeakerDead writes what a living speaker writes about the dead one of a node.
func (h *conditionWriterHarness) markSpeakerDead(node string) {
	h.t.Helper()
	var s v1alpha1.SpeakerStatus
	if err := h.api.Get(h.t.Context(), client.ObjectKey{Namespace: names.DefaultNamespace, Name: node}, &s); err != nil {
		h.t.Fatal(err)
	}
	s.Status.Conditions = []metav1.Condition{{Type: names.ConditionSpeakerReady, Status: metav1.ConditionFalse, Reason: string(names.ReasonNoSpeaker), LastTransitionTime: metav1.NewTime(h.now)}}
	if err := h.api.Status().Update(h.t.Context(), &s); err != nil {
		h.t.Fatal(err)
	}
}

// TestDeathOfOnlyHolderIsReportedSoon kills the speaker that announces a Service. If no other node
// can take over, the condition says so soon. Otherwise the other node gets the time that it needs.
func TestDeathOfOnlyHolderIsReportedSoon(t *testing.T) {
	h := newConditionWriterHarness(t)
	h.announceByLayer2Only(corev1.ServiceExternalTrafficPolicyLocal)
	h.expectCondition("the holder lives", h.reconcileAndAdvanceTimeFor("web", time.Minute), metav1.ConditionTrue, names.ReasonAnnounced, "announced by layer 2")
	h.markSpeakerDead("node1")
	h.expectCondition("the only holder is dead", h.reconcileAndAdvanceTimeFor("web", deadSpeakerTimeout), metav1.ConditionFalse, names.ReasonNoSpeaker, "node1: its speaker is gone or silent")

	h = newConditionWriterHarness(t)
	h.announceByLayer2Only(corev1.ServiceExternalTrafficPolicyCluster)
	h.reconcileAndAdvanceTimeFor("web", time.Minute)
	h.markSpeakerDead("node1")
	h.expectCondition("another node may take over", h.reconcileAndAdvanceTimeFor("web", missingReportTimeout-time.Millisecond), metav1.ConditionTrue, names.ReasonAnnounced, "announced by layer 2")
	h.expectCondition("no node took over", h.reconcileAndAdvanceTimeFor("web", time.Second), metav1.ConditionFalse, names.ReasonNoSpeaker, "none reports that it does: there is no Pod of a speaker")
}

// TestSpeakerThatCorrectsItsDeathCausesNoAlarm marks the only speaker that announces a Service as
// dead, although it is only cut off from the gossip. It corrects that soon.
func TestSpeakerThatCorrectsItsDeathCausesNoAlarm(t *testing.T) {
	h := newConditionWriterHarness(t)
	h.announceByLayer2Only(corev1.ServiceExternalTrafficPolicyLocal)
	h.reconcileAndAdvanceTimeFor("web", time.Minute)
	h.serviceWrites, h.sentEvents = 0, nil
	h.markSpeakerDead("node1")
	h.reconcileAndAdvanceTimeFor("web", deadSpeakerTimeout-time.Millisecond)
	h.editSpeakerStatus("node1", func(s *v1alpha1.SpeakerStatusStatus) { s.Conditions = nil })
	c := h.reconcileAndAdvanceTimeFor("web", time.Minute)
	h.expectCondition("the speaker lives", c, metav1.ConditionTrue, names.ReasonAnnounced, "announced by layer 2")
	if h.serviceWrites > 0 || len(h.sentEvents) > 0 {
		t.Errorf("%d writes and the events %q, want none", h.serviceWrites, h.sentEvents)
	}
}

// TestTextsAndRemindersHaveSlotsOfTheirOwn lets thousands of texts about lost sessions, and
// thousands of reminders, wait. The text of a fault comes all the same, and so does that of a
// recovery.
func TestTextsAndRemindersHaveSlotsOfTheirOwn(t *testing.T) {
	h := newConditionWriterHarness(t)
	reserve := func(m *faultMemory) {
		for i := range 5000 {
			m.delayOrRecordTextChange(client.ObjectKey{Name: time.Duration(i).String()}, h.now)
		}
	}
	h.setSessionWithTor("node1", wrongASNumberFault)
	h.setSessionWithTor("node2", wrongASNumberFault)
	h.reconcileAndAdvanceTimeFor("web", time.Minute)
	reserve(h.writer.healthyTextChanges)
	reserve(h.writer.missingAddressFaults)
	h.setSessionWithTor("node1", names.NewExplanation(names.ReasonNoAnswer, "it is silent"))
	c := h.reconcileAndAdvanceTimeFor("web", 2*time.Second)
	h.expectCondition("another cause", c, metav1.ConditionFalse, names.ReasonNoSession, "it is silent")
	if n := h.countEvents("it is silent"); n != 1 {
		t.Errorf("%d events have the other cause, want 1: %q", n, h.sentEvents)
	}

	h = newConditionWriterHarness(t)
	h.setSessionWithTor("node1", names.Explanation{})
	h.setSessionWithTor("node2", names.Explanation{})
	h.reconcileAndAdvanceTimeFor("web", time.Minute)
	reserve(h.writer.faultTextChanges)
	reserve(h.writer.missingAddressFaults)
	h.setSessionWithTor("node2", wrongASNumberFault)
	c = h.reconcileAndAdvanceTimeFor("web", 2*time.Second)
	h.expectCondition("a session of two", c, metav1.ConditionTrue, names.ReasonAnnounced, "on 1 of 2 BGP sessions")
}
