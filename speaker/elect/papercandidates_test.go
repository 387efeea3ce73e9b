package elect

import (
	"testing"
	"time"
)

// Many candidates cannot take an address, for a reason that the others do not know.
func TestUnableCandidatesHardlyDelayTakeover(t *testing.T) {
	for _, nodes := range []int{8, 20, 100} {
		if nodes > 20 && testing.Short() {
			continue
		}
		w := newClusterSimulation(t, 1, nodes, 10)
		w.nodesAbleToServe = map[string]bool{}
		for _, n := range w.nodeNames[:3] {
			w.nodesAbleToServe[n] = true
		}
		w.startAllSpeakers()
		holder := w.runThenRequireOneHolderEach(6*time.Second, "start")
		w.killSpeaker(holder)
		w.runThenRequireOneHolderEach(2*time.Second, "its death")
	}
}

// A starting speaker has nothing to do until it may take addresses.
func TestNextDeadlineDoesNotSpinDuringStartup(t *testing.T) {
	w := newClusterSimulation(t, 1, 2, 1)
	w.startProcessOutsideGossip(w.nodeNames[0])
	w.startProcessOutsideGossip(w.nodeNames[1])
	w.deliverMembers()
	w.deliverBids() // no states are exchanged
	m, steps := w.nodesByName[w.nodeNames[0]].machine, 0
	w.runSimulationFor(4*time.Second, nil)
	for end := w.now.Add(500 * time.Millisecond); w.now.Before(end); steps++ {
		w.now = m.NextDeadline()
		m.Step(w.now, TimePassed{})
	}
	if m.acquisitionsAllowed || steps > 100 {
		t.Errorf("the machine is stepped %d times in half a second, want a few beacons (acquisitions allowed: %v)", steps, m.acquisitionsAllowed)
	}
}
