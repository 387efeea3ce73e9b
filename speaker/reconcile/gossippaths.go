package reconcile

import (
	"context"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/members"
	"github.com/gantry-lb/gantry/speaker/status"
)

// gossipPathFaults returns what the checks of the gossip's paths found.
func (w *StatusWriter) gossipPathFaults() []members.PathFault {
	if w.options.GossipPathFaults == nil {
		return nil
	}
	return w.options.GossipPathFaults()
}

// collectGossipFaults returns the nodes whose speakers run and with which gossip fails: those that
// the gossip or the election has lost, and members to which a path is blocked.
func (w *StatusWriter) collectGossipFaults() status.GossipFaults {
	nodes, protocolByNode := w.missingNodes.runningUnreachableNames(), map[string]string{}
	for _, f := range w.gossipPathFaults() {
		// The election loses a member whose datagrams do not arrive, while the gossip still has it.
		isMissing := slices.Contains(nodes, f.NodeName)
		if !isMissing && !slices.Contains(w.missingNodes.lastObservedMembers, f.NodeName) {
			continue
		}
		if !isMissing {
			nodes = append(nodes, f.NodeName)
		}
		switch {
		case f.UDPBlocked && !f.TCPBlocked:
			protocolByNode[f.NodeName] = "UDP"
		case f.TCPBlocked && !f.UDPBlocked:
			protocolByNode[f.NodeName] = "TCP"
		}
	}
	slices.Sort(nodes)
	return status.GossipFaults{
		UnreachableNodes: nodes, BlockedProtocolByNode: protocolByNode, NodesWithOtherGossipKey: w.missingNodes.namesWithOtherGossipKey(),
		KeySecretNamespace: w.options.Namespace, KeyFile: w.options.GossipKeyFile,
	}
}

// hasOtherGossipKey reports whether messages with another gossip key come from an address of the
// node.
func (w *StatusWriter) hasOtherGossipKey(ctx context.Context, name string) bool {
	if w.options.GossipAddressesWithOtherKey == nil {
		return false
	}
	sources := w.options.GossipAddressesWithOtherKey()
	var node corev1.Node
	if len(sources) == 0 || w.options.Client.Get(ctx, client.ObjectKey{Name: name}, &node) != nil {
		return false
	}
	return slices.ContainsFunc(node.Status.Addresses, func(n corev1.NodeAddress) bool {
		a, err := netip.ParseAddr(n.Address)
		return err == nil && n.Type == corev1.NodeInternalIP && slices.Contains(sources, a.Unmap())
	})
}

// reportBlockedGossip sends an event about this Node when gossip with other nodes fails, when these
// are other nodes than before, and when that is over.
func (w *StatusWriter) reportBlockedGossip(ctx context.Context) {
	state := w.collectGossipFaults()
	why := state.Explain()
	if why.Text == w.lastReportedGossipFault {
		return
	}
	node := &corev1.Node{}
	if err := w.options.Client.Get(ctx, client.ObjectKey{Name: w.options.Self}, node); err != nil {
		return
	}
	w.lastReportedGossipFault = why.Text
	if !why.IsSet() {
		w.options.Log.Info("gossip with every speaker that runs works again")
		w.options.Events.Eventf(node, nil, corev1.EventTypeNormal, names.EventGossipBlocked, "GossipComplete", "gossip with every speaker that runs works again")
		return
	}
	w.options.Log.Warn(why.Text, "reason", why.Reason)
	w.options.Events.Eventf(node, nil, corev1.EventTypeWarning, names.EventGossipBlocked, blockedGossipEventAction(why.Reason, &state), "%s", why.Text)
}

// blockedGossipEventAction returns the action of the event about gossip that fails. It differs with
// what fails, since the API shows only the first of similar events.
func blockedGossipEventAction(reason names.Reason, g *status.GossipFaults) string {
	const maxActionLetters = 128 // of the API
	action := string(reason)
	for _, n := range g.UnreachableNodes {
		action += " " + n + g.BlockedProtocolByNode[n]
	}
	return action[:min(len(action), maxActionLetters)]
}
