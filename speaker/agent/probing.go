package agent

import (
	"time"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/probing"
)

// addressProbes is the state of the probes that the controller requests before it assigns an
// address.
type addressProbes struct {
	queue    probing.Queue
	snapshot *snapshot.Snapshot
	members  facts.MemberSet
}

// addressProbeIDBase keeps the IDs of address probes apart from those of acquire probes.
const addressProbeIDBase = 1 << 62

func (a *Agent) probingState() probing.State {
	return probing.State{
		Self: a.options.Self, Snapshot: a.addressProbes.snapshot, Links: a.portFaults.markUnusableFamilies(a.links),
		Members: a.addressProbes.members, IsHeld: a.machine.IsClaimed,
	}
}

// runAddressProbes sends the due probes and reports the answers.
func (a *Agent) runAddressProbes() {
	now := a.options.Now()
	if !a.addressProbes.queue.HasDueWork(now) {
		return
	}
	questions, answers := a.addressProbes.queue.Advance(a.probingState(), now)
	for _, q := range questions {
		a.options.Layer2.SendProbe(layer2.Probe{
			ID: addressProbeIDBase + q.ID, Address: q.Address, Links: q.Links,
			Attempts: probing.ProbeAttempts, Interval: probing.ProbeInterval,
		})
	}
	for _, answer := range answers {
		a.options.ObserveProbeAnswer(answer)
	}
}

// nextActionDeadline returns when the agent has to act without an input.
func (a *Agent) nextActionDeadline() time.Time {
	next := a.machine.NextDeadline()
	if s := a.addressProbes.queue.NextDueTime(); !s.IsZero() && s.Before(next) {
		next = s
	}
	return next
}
