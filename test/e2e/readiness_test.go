package e2e

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// TestUnfitNodesRequestedHolderAndKeyRotation moves one address for reasons that are no death of a
// node, while a client sends 200 requests per second. All nodes have the label that excludes them.
func TestUnfitNodesRequestedHolderAndKeyRotation(t *testing.T) {
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 3})
	kubectl := func(args ...string) {
		t.Helper()
		_, err := s.RunKubectl(ctx, "", args...)
		failOnError(t, err)
	}
	kubectl("-n", names.DefaultNamespace, "set", "env", "deployment/gantry-controller", "GANTRY_IGNORE_EXCLUDE_LB=true")
	kubectl("-n", names.DefaultNamespace, "set", "env", "daemonset/gantry-speaker", "GANTRY_IGNORE_EXCLUDE_LB=true", "GANTRY_KUBE_PROXY_SILENCE_TIMEOUT=5s", "GANTRY_SILENT_KUBELET=Leave")
	kubectl("label", "node", "--all", names.LabelExcludeNode+"=")
	failOnError(t, s.AwaitGantryRollout(ctx))
	failOnError(t, s.ApplyManifests(ctx, cluster.FirstPoolAndL2AdvertisementManifest))
	failOnError(t, s.ApplyManifests(ctx, cluster.UDPEchoServiceManifest("echo", "node3")))
	address, err := s.AwaitFirstAddressOfService(ctx, "default", "echo")
	failOnError(t, err)
	target := address.String() + ":7000"
	holder, err := s.AwaitSingleAnnouncingNode(ctx, "echo", "")
	failOnError(t, err)
	// move waits until the cause has moved the address without loss.
	move := func(t *testing.T, cause func()) {
		t.Helper()
		stream := startUDPStream(ctx, t, s, target)
		cause()
		holder = awaitNewHolder(ctx, t, s, holder)
		failOnError(t, stream.AwaitMoreAnswers(ctx, 200))
		if o := stream.StopAndAwaitLateAnswers(); o.LostCount > 0 {
			t.Errorf("%d of %d requests were lost", o.LostCount, o.SentCount)
		}
	}
	t.Run("the requested node takes the address", func(t *testing.T) {
		requested := map[bool]string{true: "node2", false: "node1"}[holder == "node1"]
		move(t, func() { kubectl("annotate", "service", "echo", names.AnnotationRequestedHolder+"="+requested) })
		if holder != requested {
			t.Errorf("%s holds the address, want %s", holder, requested)
		}
		kubectl("annotate", "service", "echo", names.AnnotationRequestedHolder+"-")
	})
	t.Run("a node whose kube-proxy is silent hands the address over", func(t *testing.T) {
		former := holder
		move(t, func() { failOnError(t, s.SignalProgramOrPod(ctx, former, "kube-proxy", syscall.SIGSTOP)) })
		awaitSpeakerCondition(ctx, t, s, former, names.ConditionNodeFit, names.ReasonServiceProxySilent)
		failOnError(t, s.SignalProgramOrPod(ctx, former, "kube-proxy", syscall.SIGCONT))
		awaitSpeakerCondition(ctx, t, s, former, names.ConditionNodeFit, names.ReasonFit)
	})
	t.Run("a node whose kubelet is silent hands the address over", func(t *testing.T) {
		former := holder
		move(t, func() { failOnError(t, s.SetNodeReadyCondition(ctx, former, corev1.ConditionUnknown, "")) })
		awaitSpeakerCondition(ctx, t, s, former, names.ConditionNodeFit, names.ReasonKubeletSilent)
		failOnError(t, s.SetNodeReadyCondition(ctx, former, corev1.ConditionTrue, ""))
	})
	t.Run("the gossip key is replaced without losing a member", func(t *testing.T) {
		rotateGossipKey(ctx, t, s)
		failOnError(t, s.SendUDPUntilAnswered(ctx, "client", target))
		for _, node := range []string{"node1", "node2", "node3"} {
			awaitSpeakerCondition(ctx, t, s, node, names.ConditionGossipComplete, names.ReasonGossipComplete)
		}
		// A failover needs gossip.
		former := holder
		failOnError(t, s.CutCable(ctx, former))
		holder = awaitNewHolder(ctx, t, s, former)
		failOnError(t, s.PlugCable(ctx, former))
	})
}

// awaitSpeakerCondition waits until a condition of a node's SpeakerStatus has the reason.
func awaitSpeakerCondition(ctx context.Context, t *testing.T, s *cluster.Cluster, node, condition string, reason names.Reason) {
	t.Helper()
	failOnError(t, cluster.AwaitNoError(ctx, fmt.Sprintf("%s of %s to be %s", condition, node, reason), func(ctx context.Context) error {
		var o v1alpha1.SpeakerStatus
		if err := s.API.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: node}, &o); err != nil {
			return err
		}
		if c := meta.FindStatusCondition(o.Status.Conditions, condition); c == nil || c.Reason != string(reason) {
			return fmt.Errorf("it is %+v", c)
		}
		return nil
	}))
}

// rotateGossipKey asks for another gossip key, and waits until the former one does not count any
// more. It does not wait for the clock between the steps.
func rotateGossipKey(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	t.Helper()
	key := client.ObjectKey{Namespace: names.DefaultNamespace, Name: names.GossipSecret}
	var secret corev1.Secret
	failOnError(t, s.API.Get(ctx, key, &secret))
	former := string(secret.Data[names.GossipKeySecretEntry])
	annotate := func(name, value string) {
		t.Helper()
		_, err := s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "annotate", "--overwrite", "secret", names.GossipSecret, name+"="+value)
		failOnError(t, err)
	}
	annotate(names.AnnotationRotateGossipKey, "")
	for _, step := range []struct {
		entry    string // that must exist, or must not
		isThere  bool
		isFormer bool // the first key is the former one
	}{{names.GossipNextKeySecretEntry, true, true}, {names.GossipPreviousKeySecretEntry, true, false}, {names.GossipPreviousKeySecretEntry, false, false}} {
		failOnError(t, cluster.AwaitNoError(ctx, "the next step of the rotation", func(ctx context.Context) error {
			if err := s.API.Get(ctx, key, &secret); err != nil {
				return err
			}
			_, isThere := secret.Data[step.entry]
			if isThere != step.isThere || (string(secret.Data[names.GossipKeySecretEntry]) == former) != step.isFormer {
				return fmt.Errorf("the Secret has %d entries, and %s is there: %t", len(secret.Data), step.entry, isThere)
			}
			return nil
		}))
		annotate(names.AnnotationGossipKeyChangedAt, metav1.Now().Add(-time.Hour).UTC().Format(time.RFC3339))
	}
}
