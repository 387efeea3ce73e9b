//go:build deathwrites

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// conditionDelayAfterCutLimit is how long the condition of a Service may take to say that the only
// node that announces it is cut off. A busy machine needs longer than the two seconds that an idle
// one needs. conditionDelayAfterLeaderCutLimit is the same if the leading controller is on that
// node: another one leads first.
const (
	conditionDelayAfterCutLimit       = 4 * time.Second
	conditionDelayAfterLeaderCutLimit = 15 * time.Second
)

// localServiceManifest is a Service that only the node with its Pod may announce.
func localServiceManifest(service, node string) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      nodeName: %[2]s
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: dashboard, ports: [{containerPort: 9097}]}]
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: %[1]s}
  ports: [{port: 80, targetPort: 9097}]
---
`, service, node)
}

// TestConditionSaysThatANodeIsCutOff cuts the node of a Service's only Pod off again and again, for
// several durations, with and without loss of the carrier. It logs after what time the
// SpeakerStatus and the condition say so.
func TestConditionSaysThatANodeIsCutOff(t *testing.T) {
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 4})
	failOnError(t, s.ApplyManifests(ctx, cluster.FirstPoolAndL2AdvertisementManifest))
	_, leader := awaitLeader(ctx, t, s, "")
	withoutLeader := chooseNodeWithoutControllerPod(ctx, t, s)
	failOnError(t, s.ApplyManifests(ctx, localServiceManifest("local", withoutLeader)+localServiceManifest("beside-leader", leader.Spec.NodeName)))
	failOnError(t, awaitAnnouncedCondition(ctx, s, "beside-leader", "True", names.ReasonAnnounced))
	for _, c := range []struct {
		name            string
		cut             func(context.Context, string) error
		cutDurations    []time.Duration
		service, node   string
		longestInterval time.Duration
	}{
		{"without carrier", s.CutCable, []time.Duration{3, 5, 3, 12}, "local", withoutLeader, conditionDelayAfterCutLimit},
		{"with carrier", s.CutCableKeepingCarrier, []time.Duration{3, 5, 3, 12}, "local", withoutLeader, conditionDelayAfterCutLimit},
		{"the leader's node", s.CutCableKeepingCarrier, []time.Duration{16}, "beside-leader", leader.Spec.NodeName, conditionDelayAfterLeaderCutLimit},
	} {
		for i, seconds := range c.cutDurations {
			failOnError(t, awaitAnnouncedCondition(ctx, s, c.service, "True", names.ReasonAnnounced))
			time.Sleep(3 * time.Second)
			begun := time.Now()
			failOnError(t, c.cut(ctx, c.node))
			marked, told := measureReportsOfCut(ctx, s, c.service, c.node, begun.Add(seconds*time.Second))
			t.Logf("%s, cut %d of %d s: the SpeakerStatus says so after %.2f s, the condition after %.2f s", c.name, i+1, seconds, marked.Seconds(), told.Seconds())
			if told == 0 || told > c.longestInterval {
				t.Errorf("%s, cut %d: the condition says so after %s (0 is never), want %s at most", c.name, i+1, told, c.longestInterval)
			}
			failOnError(t, s.PlugCable(ctx, c.node))
		}
	}
}

// measureReportsOfCut waits until a time. It returns how long the SpeakerStatus of the node and the
// condition of the Service take to say that the node announces nothing; 0 if they never do.
func measureReportsOfCut(ctx context.Context, s *cluster.Cluster, service, node string, until time.Time) (marked, told time.Duration) {
	const lookInterval = 20 * time.Millisecond
	for begun := time.Now(); time.Now().Before(until) && ctx.Err() == nil; time.Sleep(lookInterval) {
		var speaker v1alpha1.SpeakerStatus
		if err := s.API.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: node}, &speaker); err == nil && marked == 0 && speaker.Status.WasFoundDead() {
			marked = time.Since(begun)
		}
		var svc corev1.Service
		if err := s.API.Get(ctx, types.NamespacedName{Namespace: "default", Name: service}, &svc); err == nil && told == 0 && meta.IsStatusConditionFalse(svc.Status.Conditions, names.ConditionAnnounced) {
			told = time.Since(begun)
		}
	}
	return marked, told
}
