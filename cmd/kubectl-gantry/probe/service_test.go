package probe

import (
	"context"
	"net/netip"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/explain"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/internal/configuration"
)

// TestDeadNodeIsNoHolder has reports of two nodes about one address. One of the nodes is dead.
func TestDeadNodeIsNoHolder(t *testing.T) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	for _, dead := range []string{"node1", "node3"} {
		builder := fake.NewClientBuilder().WithScheme(scheme).WithRESTMapper(configuration.NewOfflineRESTMapper(scheme, objects.PluginOnlyAPIGroups...))
		for _, node := range []string{dead, "node2"} {
			speaker := &v1alpha1.SpeakerStatus{ObjectMeta: metav1.ObjectMeta{Name: node, Namespace: names.DefaultNamespace}, Status: v1alpha1.SpeakerStatusStatus{Node: node}}
			if node == dead {
				speaker.Status.Conditions = []metav1.Condition{{Type: names.ConditionSpeakerReady, Status: metav1.ConditionFalse}}
			}
			report := &v1beta1.ServiceL2Status{ObjectMeta: metav1.ObjectMeta{Name: "web." + node, Namespace: names.DefaultNamespace}}
			report.Status = v1beta1.ServiceL2StatusStatus{Node: node, Gantry: &v1beta1.ServiceL2StatusGantry{Addresses: []string{"192.0.2.1"}}}
			builder.WithObjects(speaker, report)
		}
		read := &target{holderByAddress: map[netip.Addr]string{}, macByNode: map[string]string{}, nodeByMAC: map[string]string{}, speakerFaultByNode: map[string]string{}}
		if err := read.readHolders(t.Context(), objects.NewReader(builder.Build(), explain.LabelsFuncByIndex), names.DefaultNamespace); err != nil {
			t.Fatal(err)
		}
		if got := read.holderByAddress[netip.MustParseAddr("192.0.2.1")]; got != "node2" {
			t.Errorf("while %s is dead, the holder is %q, want node2", dead, got)
		}
	}
}

// TestSilentSpeakerIsAskedOnce: a Service has two addresses, and the user waits for one timeout. A
// speaker that answers is asked for each address, also if others are of an older version.
func TestSilentSpeakerIsAskedOnce(t *testing.T) {
	for outcome, wantQuestions := range map[NodeOutcome]int{NodeOutcomeNoSpeaker: 1, NodeOutcomeSilent: 2, NodeOutcomeOldSpeaker: 2} {
		questions := 0
		q := Questions{FromNode: "node2", AskNode: func(context.Context, string, client.ObjectKey, netip.Addr) (NodeAnswer, error) {
			questions++
			return NodeAnswer{Outcome: outcome, Detail: "as the speaker says"}, nil
		}}
		read := &target{speakerFaultByNode: map[string]string{"node2": ""}}
		for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
			got, err := read.observeFromNode(t.Context(), q, client.ObjectKey{Namespace: "shop", Name: "web"}, netip.MustParseAddr(a))
			if err != nil || got.Outcome != outcome || got.Detail != "as the speaker says" {
				t.Errorf("%s: the answer about %s is %+v, %v", outcome, a, got, err)
			}
		}
		if questions != wantQuestions {
			t.Errorf("%s: the speaker is asked %d times, want %d", outcome, questions, wantQuestions)
		}
	}
}
