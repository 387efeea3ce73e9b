package explain

import (
	"context"
	"fmt"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/announcedcondition"
)

// layer2NodesWithoutSpeaker returns the nodes that an advertisement by layer 2 selects and that
// have no speaker: those whose speaker should run, and those that the DaemonSet does not cover.
func layer2NodesWithoutSpeaker(c *serviceDiagnosis) (failed, uncovered []string) {
	d := c.installation.speakerDaemonSet
	isIncomplete := d != nil && d.Status.NumberReady < d.Status.DesiredNumberScheduled
	for i := range c.announcementFinding.NodeExplanations {
		n := &c.announcementFinding.NodeExplanations[i]
		switch s := c.installation.speakerStatusByNode[n.Node]; {
		case !n.IsSelectedByL2Ad || n.Layer2Fault.Reason != names.ReasonNoSpeaker:
			continue
		case s.WasFoundDead() || isIncomplete:
			failed = append(failed, n.Node)
		default:
			uncovered = append(uncovered, n.Node)
		}
	}
	return failed, uncovered
}

// explainMissingFailoverNode names nodes that could take the addresses over if their speaker ran,
// and why it does not.
func explainMissingFailoverNode(c *serviceDiagnosis, ctx context.Context) cause {
	failed, _ := layer2NodesWithoutSpeaker(c)
	if len(failed) == 0 {
		return cause{}
	}
	why := announcedcondition.ExplainSpeakerFault(c.installation.speakerStatusByNode[failed[0]])
	missing := c.explainMissingSpeakers(ctx)
	why.Text = fmt.Sprintf("%s cannot take it over: %s; %s", joinFirstElements(failed, maxListedElements), why.Text, missing.text)
	return cause{c.blameNodesNotReady(ctx, failed, names.Explanation{Reason: names.ReasonNoSpeaker, Text: why.Text}), repairTarget{remedy: missing.remedy}}
}

// describeUncoveredNodes names nodes on which no speaker is meant to run, as the end of a sentence.
func describeUncoveredNodes(c *serviceDiagnosis) string {
	_, uncovered := layer2NodesWithoutSpeaker(c)
	if len(uncovered) == 0 {
		return ""
	}
	return "; no speaker runs on " + joinFirstElements(uncovered, maxListedElements)
}

// isSpeakerSilent reports whether the speaker has not written for long.
func (e *Explainer) isSpeakerSilent(s *v1alpha1.SpeakerStatusStatus) bool {
	return s != nil && s.LastSeen != nil && e.now().Sub(s.LastSeen.Time) > silentSpeakerTimeout
}
