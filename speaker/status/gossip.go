package status

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
)

// GossipState says with which speakers this one cannot exchange gossip, although they run.
type GossipState struct {
	// UnreachableNodes are their nodes, sorted.
	UnreachableNodes []string
	// BlockedProtocolByNode has UDP or TCP for those with which only that is blocked.
	BlockedProtocolByNode map[string]string
	// NodesWithOtherKey are those that use another gossip key, sorted.
	NodesWithOtherKey []string
	// Namespace is that of the Secret with the key. KeyFile is the file from which this speaker has
	// its key instead; empty without one.
	Namespace, KeyFile string
}

// buildGossipCondition says whether the speaker exchanges gossip with every living speaker.
func buildGossipCondition(g *GossipState) metav1.Condition {
	if why := g.Explain(); why.IsSet() {
		return metav1.Condition{Type: names.ConditionGossip, Status: metav1.ConditionFalse, Reason: string(why.Reason), Message: why.Text}
	}
	return metav1.Condition{Type: names.ConditionGossip, Status: metav1.ConditionTrue, Reason: string(names.ReasonGossipComplete), Message: "the speaker exchanges gossip with every other one that runs"}
}

// Explain says with which nodes gossip fails, why, and what to do. Nothing is set if it works.
func (g *GossipState) Explain() names.Explanation {
	var blocked []string
	for _, n := range g.UnreachableNodes {
		if slices.Contains(g.NodesWithOtherKey, n) {
			continue
		}
		if p := g.BlockedProtocolByNode[n]; p != "" {
			n += " (" + p + ")"
		}
		blocked = append(blocked, n)
	}
	blockedText := ""
	if len(blocked) > 0 {
		blockedText = fmt.Sprintf("gossip is blocked with the speakers of %s, although they run: let TCP and UDP of the gossip port pass between the nodes in both directions", joinNodes(blocked))
	}
	switch {
	case len(g.NodesWithOtherKey) > 0:
		text := fmt.Sprintf("the speakers of %s have another gossip key than this one: let all speakers use the entry %q of the Secret %s/%s", joinNodes(g.NodesWithOtherKey), names.GossipKeySecretEntry, g.Namespace, names.GossipSecret)
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

// joinNodes lists nodes, and says how many more there are.
func joinNodes(nodes []string) string {
	text := strings.Join(nodes[:min(len(nodes), maxNodesNamedInMessage)], ", ")
	if more := len(nodes) - maxNodesNamedInMessage; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
