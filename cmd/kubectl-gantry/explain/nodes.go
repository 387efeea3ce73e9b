package explain

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/announcedcondition"
)

// blameNodesNotReady says first that nodes without speaker are not ready themselves. The rest of
// the text is about their speakers.
func (e *Explainer) blameNodesNotReady(ctx context.Context, nodes []string, why names.Explanation) names.Explanation {
	var notReady []string
	for _, name := range nodes[:min(len(nodes), maxListedElements)] {
		var n corev1.Node
		if err := e.objectReader.GetFromServer(ctx, client.ObjectKey{Name: name}, &n); err != nil {
			continue
		}
		if text := describeNodeNotReady(&n); text != "" {
			notReady = append(notReady, text)
		}
	}
	if len(notReady) > 0 {
		why.Text = fmt.Sprintf("%s: look at the machine first; %s", joinFirstElements(notReady, maxListedElements), why.Text)
	}
	return why
}

// describeNodeNotReady returns "" for a node that is ready.
func describeNodeNotReady(n *corev1.Node) string {
	for _, c := range n.Status.Conditions {
		since := c.LastTransitionTime.UTC().Format(time.DateTime)
		switch {
		case c.Type != corev1.NodeReady || c.Status == corev1.ConditionTrue:
			continue
		case c.Status == corev1.ConditionFalse:
			return fmt.Sprintf("Node %s is not ready since %s UTC (%s)", n.Name, since, shortenText(c.Message))
		}
		return fmt.Sprintf("Node %s is unreachable since %s UTC, so that its kubelet reports nothing", n.Name, since)
	}
	return ""
}

// nodesWithoutSpeaker are the nodes that may announce a Service, and whose speakers are gone.
func nodesWithoutSpeaker(f *announcedcondition.AnnouncementFinding) []string {
	var out []string
	for i := range f.NodeExplanations {
		if n := &f.NodeExplanations[i]; n.Fault().Reason == names.ReasonNoSpeaker {
			out = append(out, n.Node)
		}
	}
	return out
}
