package reconcile

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/status"
)

const (
	// deadMemberReportDelay is how long the witnesses of a member must agree that it is dead until
	// this node writes so, provided that the election has declared it dead. The gossip takes some
	// 10 s to give it up. A shorter delay would report pauses of a process or a virtual machine.
	// With a longer one, the condition of a Service whose only holder dies would come later than
	// 2 s.
	deadMemberReportDelay = time.Second
	// deadNodeL2StatusRemovalDelay is how long after the loss of a member its ServiceL2Statuses are
	// removed. A speaker that lives and cannot be reached has corrected its SpeakerStatus by then.
	deadNodeL2StatusRemovalDelay = ownStatusMarkedDeadCheckDelay + 2*time.Second
)

// declaredDeadMembers are members of the gossip that the election has declared dead, and since when
// their witnesses agree. After a death that was taken back the election declares the next one later
// than that.
type declaredDeadMembers map[string]time.Time

// livingMembers returns the members of the Status that live. nextCheckIn is when to ask
// again, and 0 if nothing is open.
func (m declaredDeadMembers) livingMembers(s agent.Status, now time.Time) (living []string, nextCheckIn time.Duration) {
	maps.DeleteFunc(m, func(name string, _ time.Time) bool { return !slices.Contains(s.DeclaredDeadMemberNames, name) })
	for _, name := range s.DeclaredDeadMemberNames {
		if _, known := m[name]; known {
			continue
		}
		if m[name] = s.DeathAgreedSinceByMember[name]; m[name].IsZero() {
			m[name] = now
		}
	}
	for _, name := range s.MemberNames {
		since, silent := m[name]
		if age := now.Sub(since); silent && age < deadMemberReportDelay {
			nextCheckIn = max(nextCheckIn, deadMemberReportDelay-age)
		} else if silent {
			continue
		}
		living = append(living, name)
	}
	return living, nextCheckIn
}

// serviceL2StatusesToCleanUp returns the names of the ServiceL2Statuses whose nodes have no living
// speaker. Of all speakers, only the next one in the circle of names removes them.
func (w *StatusWriter) serviceL2StatusesToCleanUp(ctx context.Context, have []status.ExistingServiceL2Status) (remove []string) {
	now, isAbandoned := w.options.Now(), map[string]bool{w.options.Self: false}
	for _, o := range have {
		abandoned, known := isAbandoned[o.Node]
		if !known {
			abandoned = w.mustCleanUpAfterNode(ctx, o.Node, now)
			isAbandoned[o.Node] = abandoned
		}
		if abandoned {
			remove = append(remove, o.ExistingObjectName)
		}
	}
	return remove
}

// mustCleanUpAfterNode reports whether this node has to remove what the speaker of another node
// wrote.
func (w *StatusWriter) mustCleanUpAfterNode(ctx context.Context, node string, now time.Time) bool {
	if node == "" || slices.Contains(w.missingNodes.lastObservedMembers, node) || nextNameInSortedRing(w.missingNodes.lastObservedMembers, node) != w.options.Self {
		return false
	}
	n, known := w.missingNodes.missingNodeByName[node]
	if !known { // nobody saw it go: its speaker may be about to join
		w.missingNodes.addMissingNode(node, now)
		return false
	}
	if n.isUnreachable || now.Sub(n.missingSince) < deadNodeL2StatusRemovalDelay {
		return false
	}
	return !w.doesSpeakerSayThatItRuns(ctx, node)
}

// hasStatusesOfMissingNodes reports whether a ServiceL2Status is of a node without a living
// speaker.
func (w *StatusWriter) hasStatusesOfMissingNodes(ctx context.Context) bool {
	have, err := w.listServiceL2Statuses(ctx)
	return err == nil && slices.ContainsFunc(have, func(o status.ExistingServiceL2Status) bool {
		return o.Node != "" && !slices.Contains(w.missingNodes.lastObservedMembers, o.Node) && !w.missingNodes.missingNodeByName[o.Node].isUnreachable
	})
}
