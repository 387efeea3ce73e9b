package agent

import (
	"time"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/probing"
)

// addressProbes is what the agent does about addresses that are asked for before they are given.
type addressProbes struct {
	queue    probing.Queue
	snapshot *snapshot.Snapshot
	members  facts.MemberSet
}

// addressProbeIDBase keeps the IDs of the wire apart from those of the election's questions.
const addressProbeIDBase = 1 << 62

// SetProbeQuestions makes exactly these questions the open ones; the answers come by Options.Surveyed. It never waits.
func (a *Agent) SetProbeQuestions(questions []probing.Question) {
	for {
		select {
		case a.probeQuestions <- questions:
			return
		default:
		}
		select {
		case <-a.probeQuestions:
		default:
		}
	}
}

func (a *Agent) probingState() probing.State {
	return probing.State{
		Self: a.options.Self, Snapshot: a.addressProbes.snapshot, Links: a.portStates.markLinks(a.links), Members: a.addressProbes.members, IsHeld: a.machine.IsClaimed,
	}
}

// runAddressProbes asks what is due, and tells what was found.
func (a *Agent) runAddressProbes() {
	now := a.options.Now()
	if !a.addressProbes.queue.HasDue(now) {
		return
	}
	asks, answers := a.addressProbes.queue.Advance(a.probingState(), now)
	for _, q := range asks {
		a.options.Layer2.SendProbe(layer2.Probe{ID: addressProbeIDBase + q.ID, Address: q.Address, Links: q.Links, Attempts: probing.Attempts, Interval: probing.Interval})
	}
	for _, answer := range answers {
		a.options.ObserveProbeAnswer(answer)
	}
}

// nextDeadline is when the agent has something to do of itself.
func (a *Agent) nextDeadline() time.Time {
	next := a.machine.NextDeadline()
	if s := a.addressProbes.queue.NextDue(); !s.IsZero() && s.Before(next) {
		next = s
	}
	return next
}
