package explain

import (
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
)

// failedGossipCondition returns the condition of a speaker that cannot exchange gossip with another
// one; nil if it can.
func failedGossipCondition(s *v1alpha1.SpeakerStatusStatus) *metav1.Condition {
	if s == nil {
		return nil
	}
	if c := meta.FindStatusCondition(s.Conditions, names.ConditionGossipComplete); c != nil && c.Status == metav1.ConditionFalse {
		return c
	}
	return nil
}

// explainGossipFault says why the speaker of a node does not exchange gossip with others.
func (e *Explainer) explainGossipFault(node string) names.Explanation {
	g := failedGossipCondition(e.installation.speakerStatusByNode[node])
	switch {
	case g == nil:
		return names.Explanation{}
	case names.Reason(g.Reason) == names.ReasonGossipKeyDiffers:
		return e.explainGossipKeyMismatch()
	}
	return names.NewExplanation(names.Reason(g.Reason), "the speaker of %s: %s", node, g.Message)
}

// explainGossipKeyMismatch says which speakers have another gossip key than the others: those that
// most others name. Between two halves nobody can say which one is right.
func (e *Explainer) explainGossipKeyMismatch() names.Explanation {
	othersByNode := map[string][]string{}
	for _, node := range slices.Sorted(maps.Keys(e.installation.speakerStatusByNode)) {
		s := e.installation.speakerStatusByNode[node]
		if g := failedGossipCondition(s); g == nil || names.Reason(g.Reason) != names.ReasonGossipKeyDiffers {
			continue
		}
		for _, other := range s.Unreachable {
			othersByNode[other] = append(othersByNode[other], node)
		}
	}
	most := 0
	for _, others := range othersByNode {
		most = max(most, len(others))
	}
	var odd, rest []string
	for _, node := range slices.Sorted(maps.Keys(othersByNode)) {
		if len(othersByNode[node]) == most {
			odd = append(odd, node)
		} else {
			rest = append(rest, node)
		}
	}
	text := fmt.Sprintf("the speaker of %s has another gossip key than those of %s", joinFirstElements(odd, maxListedElements), joinFirstElements(rest, maxListedElements))
	if len(rest) == 0 {
		text = fmt.Sprintf("the speakers of %s have different gossip keys", joinFirstElements(odd, maxListedElements))
	}
	text += fmt.Sprintf(": let all use the entry %q of Secret %s/%s", names.GossipKeySecretEntry, e.gantryNamespace, names.GossipSecret)
	if d := e.installation.speakerDaemonSet; d != nil {
		if file := objects.ReadFlagOfPodSpec(&d.Spec.Template.Spec, "gossip-key-file"); file != "" {
			text += fmt.Sprintf("; DaemonSet %s lets each read its key from the file %s (--gossip-key-file)", d.Name, file)
		}
	}
	return names.Explanation{Reason: names.ReasonGossipKeyDiffers, Text: text}
}

// explainFaultyGossip names a node that may hold an address and does not hear others.
func (c *serviceDiagnosis) explainFaultyGossip() names.Explanation {
	for i := range c.announcementFinding.NodeExplanations {
		n := &c.announcementFinding.NodeExplanations[i]
		if !n.IsSelectedByL2Ad || n.Layer2Fault.IsSet() {
			continue
		}
		if why := c.explainGossipFault(n.Node); why.IsSet() {
			return names.NewExplanation(why.Reason, "a failover takes longer: %s", why.Text)
		}
	}
	return names.Explanation{}
}
