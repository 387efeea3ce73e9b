package elect

import (
	"slices"
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

// Three of 20 nodes are candidates, because the others have no link to the network of the
// addresses. A takeover takes about as long as if all nodes were candidates.
func TestFewCandidatesAmongManyNodesTakeOverAsFast(t *testing.T) {
	medianTakeover := func(candidates int) time.Duration {
		var all []time.Duration
		for seed := range seedCountPerTest() {
			w := newClusterSimulation(t, seed, 20, 10)
			for _, n := range w.nodeNames[candidates:] {
				w.nodesByName[n].hasServingEndpoint = false
			}
			w.startAllSpeakers()
			holder := w.runThenRequireOneHolderEach(6*time.Second, "start")
			w.takeoverDelays = nil
			w.killSpeaker(holder)
			w.runThenRequireOneHolderEach(time.Second, "its death")
			all = append(all, w.takeoverDelays...)
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	few, plain := medianTakeover(3), medianTakeover(20)
	if ratio := float64(few) / float64(plain); ratio > 1.7 {
		t.Errorf("with 3 candidates a takeover takes %v, with 20 it takes %v: %.2f times as long, want 1.7 at most", few, plain, ratio)
	}
}

// A starting speaker has nothing to do until it may take addresses.
func TestNextDeadlineDoesNotSpinDuringStartup(t *testing.T) {
	w := newClusterSimulation(t, 1, 2, 1)
	w.startProcessOutsideGossip(w.nodeNames[0])
	w.startProcessOutsideGossip(w.nodeNames[1])
	w.deliverMembers()
	w.deliverBids() // no states are exchanged
	n, steps := w.nodesByName[w.nodeNames[0]], 0
	m := n.machine
	w.runSimulationFor(4*time.Second, nil)
	now := w.clockOf(n)
	for end := now.Add(500 * time.Millisecond); now.Before(end); steps++ {
		now = m.NextDeadline()
		m.Step(now, TimePassed{})
	}
	if m.acquisitionsAllowed || steps > 100 {
		t.Errorf("the machine is stepped %d times in half a second, want a few beacons (acquisitions allowed: %v)", steps, m.acquisitionsAllowed)
	}
}
