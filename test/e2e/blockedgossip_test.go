package e2e

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
)

// testBlockedGossipIsReported blocks the gossip between the two nodes in several ways. The
// SpeakerStatus of both nodes has to name the other node and what is blocked, and so have an event
// about each Node and the metrics. At the end nothing of it is left.
func (h *faultTestCluster) testBlockedGossipIsReported(ctx context.Context, t *testing.T) {
	unblock := func(ctx context.Context) {
		for _, n := range []string{"node1", "node2"} {
			failOnError(t, h.UnblockPorts(ctx, n))
		}
	}
	t.Cleanup(func() { unblock(context.WithoutCancel(ctx)) })
	missed := h.readSpeakerMetric(ctx, t, "node2", "gantry_speaker_missed_beacons_total")
	block := func(protocols ...string) func(context.Context) error {
		return func(ctx context.Context) error {
			return h.BlockGossipOneWay(ctx, []string{"node1"}, []string{"node2"}, protocols...)
		}
	}
	for _, tc := range []struct {
		name  string
		block func(context.Context) error
		text  string // follows the name of the other node
	}{
		{"UDP from node1 to node2", block("udp"), " (UDP),"},
		{"TCP from node1 to node2", block("tcp"), " (TCP),"},
		{"all in both directions", func(ctx context.Context) error {
			return h.BlockGossipBetweenNodeGroups(ctx, []string{"node1"}, []string{"node2"})
		}, ","},
	} {
		t.Run(tc.name, func(t *testing.T) {
			unblock(ctx)
			failOnError(t, tc.block(ctx))
			for node, other := range map[string]string{"node1": "node2", "node2": "node1"} {
				o := &objectCondition{"speakerstatuses", node, names.ConditionGossipComplete}
				failOnError(t, h.awaitObjectFault(ctx, o, names.ReasonGossipBlocked, "the speakers of "+other))
				// A busy node may lose the other member for a while. Which protocol is blocked
				// is known once that member is back.
				failOnError(t, h.awaitObjectFault(ctx, o, names.ReasonGossipBlocked, "the speakers of "+other+tc.text))
				failOnError(t, h.awaitGossipBlockedEvent(ctx, node, "Warning", "the speakers of "+other+tc.text))
			}
			failOnError(t, h.awaitExplanation(ctx, "web", kubectlGantryExitNotWell, "is announced, but", "gossip is blocked with the speakers of node", tc.text, "["+string(names.ReasonGossipBlocked)+"]"))
			h.recordSeenReason(string(names.ReasonGossipBlocked))
		})
	}
	failOnError(t, cluster.AwaitNoError(ctx, "the metrics of the blocked gossip", func(ctx context.Context) error {
		for _, node := range []string{"node1", "node2"} {
			if n := h.readSpeakerMetric(ctx, t, node, "gantry_speaker_unreachable_nodes"); n != 1 {
				return fmt.Errorf("the speaker of %s counts %v unreachable nodes, want 1", node, n)
			}
		}
		if now := h.readSpeakerMetric(ctx, t, "node2", "gantry_speaker_missed_beacons_total"); now <= missed {
			return fmt.Errorf("node2 missed %v beacons of node1 before the block and %v after it", missed, now)
		}
		return nil
	}))
	unblock(ctx)
	for _, node := range []string{"node1", "node2"} {
		failOnError(t, h.awaitObjectRepaired(ctx, &objectCondition{"speakerstatuses", node, names.ConditionGossipComplete}))
		failOnError(t, h.awaitGossipBlockedEvent(ctx, node, "Normal", "works again"))
	}
	for _, s := range []string{"web", "routed"} {
		failOnError(t, h.awaitAnnounced(ctx, s))
	}
}

// differentGossipKeysManifest has a gossip key of its own for each node.
const differentGossipKeysManifest = `apiVersion: v1
kind: ConfigMap
metadata: {name: gossip-keys, namespace: metallb-system}
data: {node1: the key of node1 with 16 bytes or more, node2: the key of node2 with 16 bytes or more}
---
`

// testDifferentGossipKeysAreExplained gives each speaker a key of its own. An explanation of a
// Service has to name the nodes and the Secret.
func (h *faultTestCluster) testDifferentGossipKeysAreExplained(ctx context.Context, t *testing.T) {
	failOnError(t, h.ApplyManifests(ctx, differentGossipKeysManifest))
	failOnError(t, h.kubectlFunc("-n", names.DefaultNamespace, "patch", "daemonset", "gantry-speaker", "-p", `{"spec":{"template":{"spec":{"volumes":[{"name":"keys","configMap":{"name":"gossip-keys"}}],`+
		`"containers":[{"name":"speaker","volumeMounts":[{"name":"keys","mountPath":"/run/keys"}],"args":["--gossip-key-file=/run/keys/$(GANTRY_NODE_NAME)"]}]}}}}`)(ctx))
	failOnError(t, h.AwaitGantryRollout(ctx))
	failOnError(t, h.awaitExplanation(ctx, "web", kubectlGantryExitNotWell, "the speakers of node1, node2 have different gossip keys", `let all use the entry "key" of Secret metallb-system/gantry-gossip`, "from the file /run/keys/", "["+string(names.ReasonGossipKeyDiffers)+"]"))
	for node, other := range map[string]string{"node1": "node2", "node2": "node1"} {
		o := &objectCondition{"speakerstatuses", node, names.ConditionGossipComplete}
		failOnError(t, h.awaitObjectFault(ctx, o, names.ReasonGossipKeyDiffers, "the speakers of "+other+" have another gossip key"))
		failOnError(t, h.awaitGossipBlockedEvent(ctx, node, "Warning", "the speakers of "+other+" have another gossip key"))
	}
	h.recordSeenReason(string(names.ReasonGossipKeyDiffers))
	failOnError(t, h.kubectlFunc("-n", names.DefaultNamespace, "rollout", "undo", "daemonset/gantry-speaker")(ctx))
	failOnError(t, h.AwaitGantryRollout(ctx))
	for _, node := range []string{"node1", "node2"} {
		failOnError(t, h.awaitObjectRepaired(ctx, &objectCondition{"speakerstatuses", node, names.ConditionGossipComplete}))
	}
	failOnError(t, h.awaitAnnounced(ctx, "web"))
	h.expectHealthyExplanation(ctx, t, "web")
}

// awaitGossipBlockedEvent waits for an event about the gossip of a Node.
func (h *faultTestCluster) awaitGossipBlockedEvent(ctx context.Context, node, kind, text string) error {
	return cluster.AwaitNoError(ctx, "the event about "+node, func(ctx context.Context) error {
		out, err := h.RunKubectl(ctx, "", "get", "events", "--all-namespaces", "--field-selector", "involvedObject.kind=Node,involvedObject.name="+node+",type="+kind+",reason="+names.EventGossipBlocked)
		if err == nil && !strings.Contains(out, text) {
			err = fmt.Errorf("%q is not in these:\n%s", text, out)
		}
		return err
	})
}

// readSpeakerMetric reads the value of a metric without labels from the speaker of a node.
func (h *faultTestCluster) readSpeakerMetric(ctx context.Context, t *testing.T, node, name string) float64 {
	t.Helper()
	text, err := h.FetchSpeakerMetricsUntilSuccess(ctx, node)
	failOnError(t, err)
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("the speaker of %s has no metric %s", node, name)
	}
	v, err := strconv.ParseFloat(m[1], 64)
	failOnError(t, err)
	return v
}
