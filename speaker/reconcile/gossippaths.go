package reconcile

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/members"
	"github.com/gantry-lb/gantry/speaker/status"
)

// pathFaults returns what the checks of the gossip's paths found.
func (w *StatusWriter) pathFaults() []members.PathFault {
	if w.options.GossipPathFaults == nil {
		return nil
	}
	return w.options.GossipPathFaults()
}

// unreachableNodes returns the nodes whose speakers run and with which gossip is blocked, sorted:
// those that the gossip or the election has lost, and members to which a path is blocked.
// protocolByNode has those of them with which only UDP or only TCP is blocked.
func (w *StatusWriter) unreachableNodes() (nodes []string, protocolByNode map[string]string) {
	nodes = w.missing.unreachable()
	protocolByNode = map[string]string{}
	for _, f := range w.pathFaults() {
		// The election loses a member whose datagrams do not arrive, while the gossip still has it.
		isMissing := slices.Contains(nodes, f.NodeName)
		if !isMissing && !slices.Contains(w.missing.members, f.NodeName) {
			continue
		}
		if !isMissing {
			nodes = append(nodes, f.NodeName)
		}
		switch {
		case f.UDP && !f.TCP:
			protocolByNode[f.NodeName] = "UDP"
		case f.TCP && !f.UDP:
			protocolByNode[f.NodeName] = "TCP"
		}
	}
	slices.Sort(nodes)
	return nodes, protocolByNode
}

// reportGossip sends an event about this Node when gossip with other nodes is blocked, when these
// are other nodes than before, and when that is over.
func (w *StatusWriter) reportGossip(ctx context.Context) {
	nodes, protocolByNode := w.unreachableNodes()
	text := ""
	if len(nodes) > 0 {
		text = status.GossipBlockedText(nodes, protocolByNode)
	}
	if text == w.lastReportedGossipFault {
		return
	}
	node := &corev1.Node{}
	if err := w.options.Client.Get(ctx, client.ObjectKey{Name: w.options.Self}, node); err != nil {
		return
	}
	w.lastReportedGossipFault = text
	if text == "" {
		w.options.Log.Info("gossip with every speaker that runs works again")
		w.options.Events.Eventf(node, nil, corev1.EventTypeNormal, names.EventGossipBlocked, "GossipComplete", "gossip with every speaker that runs works again")
		return
	}
	w.options.Log.Warn(text, "reason", names.ReasonGossipBlocked)
	w.options.Events.Eventf(node, nil, corev1.EventTypeWarning, names.EventGossipBlocked, gossipEventAction(nodes, protocolByNode), "%s", text)
}

// gossipEventAction returns the action of the event about blocked gossip. It differs with what is
// blocked, since the API shows only the first of similar events.
func gossipEventAction(nodes []string, protocolByNode map[string]string) string {
	const maxActionLetters = 128 // of the API
	action := "GossipBlocked"
	for _, n := range nodes {
		action += " " + n + protocolByNode[n]
	}
	return action[:min(len(action), maxActionLetters)]
}
