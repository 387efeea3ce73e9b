package agent

import (
	"time"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/probing"
)

// addressProbingState is the state of the probes that AddressProbes request: the controller's,
// which come before it assigns an address, and those of operators.
type addressProbingState struct {
	questionQueue probing.QuestionQueue
	snapshot      *snapshot.Snapshot
	members       facts.MemberSet
}

// addressProbeIDBase keeps the IDs of address probes apart from those of acquire probes.
const addressProbeIDBase = 1 << 62

func (a *Agent) collectProbingInputs() probing.ProbingInputs {
	return probing.ProbingInputs{
		Self: a.options.NodeName, Snapshot: a.addressProbes.snapshot, Links: a.portFaults.markUnusableFamiliesOfLinks(a.ownUsableLinks),
		Members: a.addressProbes.members, IsHeldByMember: a.electionMachine.IsClaimed,
	}
}

// runAddressProbes sends the due probes and reports the answers.
func (a *Agent) runAddressProbes() {
	now := a.options.Now()
	if !a.addressProbes.questionQueue.HasDueWork(now) {
		return
	}
	questions, answers := a.addressProbes.questionQueue.TakeDueProbesAndNewAnswers(a.collectProbingInputs(), now)
	for _, q := range questions {
		kind := layer2.ProbeKindAcquire
		if q.IsLikeNeighbour {
			kind = layer2.ProbeKindReachability
		}
		a.options.Layer2Engine.SendProbe(layer2.Probe{
			ID: addressProbeIDBase + q.ID, Address: q.Address, LinkIndexes: q.LinkIndexes,
			FramesPerLink: probing.FramesPerProbe, FrameInterval: probing.ProbeFrameInterval, Kind: kind,
		})
	}
	for _, answer := range answers {
		a.options.ObserveProbeAnswer(answer)
	}
}

// nextActionDeadline returns when the agent has to act without an input.
func (a *Agent) nextActionDeadline() time.Time {
	next := a.electionMachine.NextDeadline()
	if s := a.addressProbes.questionQueue.NextDueTime(); !s.IsZero() && s.Before(next) {
		next = s
	}
	return next
}
