package reconcile

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/speaker/plan"
)

// recordingSeedSetter are the addresses at which other speakers are looked for.
type recordingSeedSetter struct{ addresses []string }

func (r *recordingSeedSetter) SetSeeds(addresses []string) { r.addresses = addresses }

// TestGossipSeedsAreTheOtherSpeakers checks where a speaker looks for others: at their Pods, or at
// the other nodes while there is no Pod.
func TestGossipSeedsAreTheOtherSpeakers(t *testing.T) {
	seeds := &recordingSeedSetter{}
	f := NewClusterFeed(ClusterFeedOptions{
		Agent: &recordingPlanner{Planner: plan.NewPlanner(plan.Inputs{})}, UIDByServiceIndex: NewUIDByServiceIndex(), GossipSeedSetter: seeds, Self: "node1",
	})
	node := func(name, address string) *corev1.Node {
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}},
		}
	}
	pod := func(name, node string, addresses ...string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{NodeName: node}}
		for _, a := range addresses {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a})
		}
		return p
	}
	expect := func(what string, want ...string) {
		t.Helper()
		if !slices.Equal(seeds.addresses, want) {
			t.Errorf("%s: the seeds are %q, want %q", what, seeds.addresses, want)
		}
	}
	ctx := t.Context()
	f.setNode(ctx, node("node1", "192.0.2.1"))
	f.setNode(ctx, node("node2", "192.0.2.2"))
	f.setNode(ctx, node("node3", "192.0.2.3"))
	expect("no Pods", "192.0.2.2", "192.0.2.3")
	f.storeSpeakerPodAddresses(ctx, pod("speaker-a", "node1", "10.0.0.1"))
	expect("the own Pod alone", "192.0.2.2", "192.0.2.3")
	f.storeSpeakerPodAddresses(ctx, pod("speaker-c", "node3", "10.0.0.3", "fd00::3"))
	f.storeSpeakerPodAddresses(ctx, pod("speaker-b", "node2", "10.0.0.2"))
	expect("three Pods", "10.0.0.2", "10.0.0.3", "fd00::3")
	f.removeSpeakerPodAddresses(ctx, pod("speaker-c", "node3"))
	expect("two Pods", "10.0.0.2")
	f.removeSpeakerPodAddresses(ctx, pod("speaker-b", "node2"))
	f.removeNode(ctx, node("node3", ""))
	expect("a node less", "192.0.2.2")
	f.storeSpeakerPodAddresses(ctx, node("node2", "192.0.2.2")) // of another kind: it is left alone
	f.removeSpeakerPodAddresses(ctx, node("node2", "192.0.2.2"))
	f.removeNode(ctx, pod("speaker-a", "node1"))
	expect("objects of other kinds", "192.0.2.2")
}
