package agent

import (
	"time"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/survey"
)

// surveys is what the agent does about addresses that are asked for before they are given.
type surveys struct {
	desk    survey.Desk
	config  *snapshot.Snapshot
	members facts.MemberSet
}

// surveysFrom keeps the IDs of the wire apart from those of the election's questions.
const surveysFrom = 1 << 62

// Survey makes exactly these questions the open ones; the answers come by Options.Surveyed. It never waits.
func (a *Agent) Survey(questions []survey.Question) {
	for {
		select {
		case a.questions <- questions:
			return
		default:
		}
		select {
		case <-a.questions:
		default:
		}
	}
}

func (a *Agent) world() survey.World {
	return survey.World{
		Self: a.o.Self, Snapshot: a.surveys.config, Links: a.ports.mark(a.links), Members: a.surveys.members, Held: a.machine.Claimed,
	}
}

// survey asks what is due, and tells what was found.
func (a *Agent) survey() {
	now := a.o.Now()
	if !a.surveys.desk.Due(now) {
		return
	}
	asks, answers := a.surveys.desk.Step(a.world(), now)
	for _, q := range asks {
		a.o.Layer2.Probe(layer2.Probe{ID: surveysFrom + q.ID, Address: q.Address, Links: q.Links, Attempts: survey.Attempts, Interval: survey.Interval})
	}
	for _, answer := range answers {
		a.o.Surveyed(answer)
	}
}

// next is when the agent has something to do of itself.
func (a *Agent) next() time.Time {
	next := a.machine.Next()
	if s := a.surveys.desk.Next(); !s.IsZero() && s.Before(next) {
		next = s
	}
	return next
}
