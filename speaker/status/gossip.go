package status

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
)

// GossipFaults says with which speakers this one cannot exchange gossip, although they run.
type GossipFaults struct {
	// UnreachableNodes are their nodes, sorted.
	UnreachableNodes []string
	// BlockedProtocolByNode has UDP or TCP for those with which only that is blocked.
	BlockedProtocolByNode map[string]string
	// NodesWithOtherGossipKey are those that use another gossip key, sorted.
	NodesWithOtherGossipKey []string
	// KeySecretNamespace is that of the Secret with the key. KeyFile is the file from which this
	// speaker has its key instead; empty without one.
	KeySecretNamespace, KeyFile string
}

// buildGossipCondition says whether the speaker exchanges gossip with every living speaker.
func buildGossipCondition(g *GossipFaults) metav1.Condition {
	if why := g.Explain(); why.IsSet() {
		return metav1.Condition{Type: names.ConditionGossipComplete, Status: metav1.ConditionFalse, Reason: string(why.Reason), Message: why.Text}
	}
	return metav1.Condition{Type: names.ConditionGossipComplete, Status: metav1.ConditionTrue, Reason: string(names.ReasonGossipComplete), Message: "the speaker exchanges gossip with every other one that runs"}
}

// Explain says with which nodes gossip fails, why, and what to do. Nothing is set if it works.
func (g *GossipFaults) Explain() names.Explanation {
	var blocked []string
	for _, n := range g.UnreachableNodes {
		if slices.Contains(g.NodesWithOtherGossipKey, n) {
			continue
		}
		if p := g.BlockedProtocolByNode[n]; p != "" {
			n += " (" + p + ")"
		}
		blocked = append(blocked, n)
	}
	blockedText := ""
	if len(blocked) > 0 {
		blockedText = fmt.Sprintf("gossip is blocked with the speakers of %s, although they run: let TCP and UDP of the gossip port pass between the nodes in both directions", joinNodeNames(blocked))
	}
	switch {
	case len(g.NodesWithOtherGossipKey) > 0:
		text := fmt.Sprintf("the speakers of %s have another gossip key than this one: let all speakers use the entry %q of the Secret %s/%s", joinNodeNames(g.NodesWithOtherGossipKey), names.GossipKeySecretEntry, g.KeySecretNamespace, names.GossipSecret)
		if g.KeyFile != "" {
			text += fmt.Sprintf("; this one has its key from the file %s (--gossip-key-file)", g.KeyFile)
		}
		if blockedText != "" {
			text += "; " + blockedText
		}
		return names.Explanation{Reason: names.ReasonGossipKeyDiffers, Text: text}
	case blockedText != "":
		return names.Explanation{Reason: names.ReasonGossipBlocked, Text: blockedText}
	}
	return names.Explanation{}
}

// maxNodesNamedInMessage is how many nodes a message names.
const maxNodesNamedInMessage = 5

// joinNodeNames lists nodes, and says how many more there are.
func joinNodeNames(nodes []string) string {
	text := strings.Join(nodes[:min(len(nodes), maxNodesNamedInMessage)], ", ")
	if more := len(nodes) - maxNodesNamedInMessage; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
