package reconcile

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// discardingSeedSetter takes seeds and does nothing.
type discardingSeedSetter struct{}

func (discardingSeedSetter) SetSeeds([]string) {}

func TestExcludeLabelCountsUnlessItIsIgnored(t *testing.T) {
	for _, isIgnored := range []bool{false, true} {
		p := &recordingPlanner{Planner: plan.NewPlanner(plan.Inputs{})}
		f := NewClusterFeed(ClusterFeedOptions{
			Agent: p, UIDByServiceIndex: NewUIDByServiceIndex(), GossipSeedSetter: discardingSeedSetter{}, ConfigurationScope: configuration.ConfigurationScope{IgnoreExcludeLabel: isIgnored},
		})
		f.setNode(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{names.LabelExcludeNode: ""}}})
		if got := p.Inputs().Nodes["a"]; got.IsExcluded == isIgnored {
			t.Errorf("--ignore-exclude-lb is %t, and the node with the label is excluded: %t", isIgnored, got.IsExcluded)
		}
	}
}

func TestSilentKubeletCountsOnlyIfThePolicyIsLeave(t *testing.T) {
	for _, isUnfit := range []bool{false, true} {
		p := &recordingPlanner{Planner: plan.NewPlanner(plan.Inputs{})}
		f := NewClusterFeed(ClusterFeedOptions{
			Agent: p, UIDByServiceIndex: NewUIDByServiceIndex(), GossipSeedSetter: discardingSeedSetter{}, TreatSilentKubeletAsUnfit: isUnfit,
		})
		silent := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}
		f.setNode(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{silent}}})
		if got := p.Inputs().Nodes["a"]; got.IsKubeletSilent != isUnfit {
			t.Errorf("a silent kubelet counts: %t, want %t", got.IsKubeletSilent, isUnfit)
		}
	}
}
