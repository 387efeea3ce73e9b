package sessioncount

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/internal/configuration"
)

// TestPeerShowsHowManySessionsAreEstablished checks the count, and that the conditions of the
// BGPPeer stay.
func TestPeerShowsHowManySessionsAreEstablished(t *testing.T) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	session := func(peer, node string, established metav1.ConditionStatus) *v1alpha1.BGPSession {
		return &v1alpha1.BGPSession{
			ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: peer + "." + node},
			Status:     v1alpha1.BGPSessionStatus{Peer: peer, Node: node, Conditions: []metav1.Condition{{Type: names.ConditionEstablished, Status: established}}},
		}
	}
	peer := &v1beta2.BGPPeer{
		ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "tor"},
		Status:     v1beta2.BGPPeerStatus{Gantry: &v1beta2.ObjectStatus{Conditions: []metav1.Condition{{Type: names.ConditionValid, Status: metav1.ConditionTrue}}}},
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(peer).
		WithObjects(peer, session("tor", "node1", metav1.ConditionTrue), session("tor", "node2", metav1.ConditionFalse), session("other", "node1", metav1.ConditionTrue),
			session("tor", "dead", metav1.ConditionTrue), &v1alpha1.SpeakerStatus{
				ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "dead"},
				Status:     v1alpha1.SpeakerStatusStatus{Conditions: []metav1.Condition{{Type: names.ConditionSpeakerReady, Status: metav1.ConditionFalse}}},
			}).Build()
	key := client.ObjectKeyFromObject(peer)
	if _, err := NewSessionCounter(c, configuration.ConfigurationScope{Namespace: names.DefaultNamespace}).Reconcile(t.Context(), ctrl.Request{NamespacedName: key}); err != nil {
		t.Fatal(err)
	}
	if err := c.Get(t.Context(), key, peer); err != nil {
		t.Fatal(err)
	}
	if s := peer.Status.Gantry; s.Sessions != "1/3" || len(s.Conditions) != 1 {
		t.Errorf("the status is %+v, want 1/3 sessions and the condition that it had", s)
	}
}
