package elect

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// newFalseDeathCounter returns a check that counts how often a speaker declares another one dead
// that lives.
func (w *clusterSimulation) newFalseDeathCounter() (check func(), count *int) {
	count = new(int)
	before := map[string][]string{}
	return func() {
		for _, name := range w.nodeNames {
			n := w.nodesByName[name]
			if n.machine == nil {
				continue
			}
			dead := n.machine.DeadMembers()
			for _, d := range dead {
				if w.nodesByName[d].machine != nil && !slices.Contains(before[name], d) {
					*count++
				}
			}
			before[name] = dead
		}
	}, count
}

// Ten speakers share two cores with other programs, and get 1,000 addresses at once. What follows
// from this makes the machine busier: objects are written, and all speakers read them. Meanwhile
// one of the speakers dies.
func TestBusyProcessorsCauseNoFalseDeaths(t *testing.T) {
	for seed := range seedCountPerTest() {
		w := newClusterSimulation(t, seed, 10, 1000)
		addresses := w.addresses
		w.addresses = nil
		w.startAllSpeakers()
		w.runSimulationFor(6*time.Second, nil)
		w.useBusyProcessors(2, 30+int(seed%3)*10)
		check, falseDeaths := w.newFalseDeathCounter()
		w.runSimulationFor(5*time.Second, check)
		w.addresses = addresses
		w.deliverBids()
		w.runSimulationFor(5*time.Second, check)
		victim := w.nodeNames[seed%10]
		held := len(w.nodesByName[victim].heldAddresses)
		w.killSpeaker(victim)
		w.runSimulationFor(4*time.Second, check)
		if *falseDeaths > 0 {
			t.Errorf("seed %d: living nodes were declared dead %d times", seed, *falseDeaths)
		}
		// two candidates may take an address at the same time
		if most := len(addresses) + held + held/2; w.addressTakeCount > most {
			t.Errorf("seed %d: addresses were taken %d times, want %d at most", seed, w.addressTakeCount, most)
		}
		w.runThenRequireHolderAndAnswer(time.Second, seed)
	}
}

// runThenRequireHolderAndAnswer lets time pass, and fails unless one node holds each address at the
// end and has answered meanwhile. On a busy machine the lease of a holder may end for a moment.
func (w *clusterSimulation) runThenRequireHolderAndAnswer(d time.Duration, seed int64) {
	w.t.Helper()
	answered := map[netip.Addr]bool{}
	for end := w.now.Add(d); w.now.Before(end); {
		w.runSimulationFor(20*time.Millisecond, nil)
		for _, a := range w.addresses {
			answered[a] = answered[a] || len(w.answeringNodes(a)) > 0
		}
	}
	faults := 0
	for _, a := range w.addresses {
		holders := 0
		for _, n := range w.nodesByName {
			if n.heldAddresses[a] {
				holders++
			}
		}
		if holders != 1 || !answered[a] {
			faults++
		}
	}
	if faults > 0 {
		w.t.Errorf("seed %d: %d addresses have no holder, two holders, or no answer in %v", seed, faults, d)
	}
}

// A node takes 5,000 addresses from another one of 100 nodes. The queue of messages sends 25 in a
// millisecond, as package members does.
func TestFormerHolderLearnsOfLargeTakeoverPromptly(t *testing.T) {
	if testing.Short() {
		t.Skip("5,000 addresses on 100 nodes take ten seconds")
	}
	w := newClusterSimulation(t, 1, 100, 5000)
	w.maxSentMessagesPerMillisecond = 25
	former, next := w.nodeNames[10], w.nodeNames[60]
	for _, name := range w.nodeNames {
		w.nodesByName[name].hasServingEndpoint = name == former
	}
	w.startAllSpeakers()
	w.runThenRequireOneHolderEach(6*time.Second, "start")
	check, falseDeaths := w.newFalseDeathCounter()
	w.nodesByName[former].hasServingEndpoint, w.nodesByName[next].hasServingEndpoint = false, true
	began := w.now
	w.deliverBids()
	var taken, heard time.Duration
	w.runSimulationFor(2*time.Second, func() {
		check()
		if taken == 0 && len(w.nodesByName[next].heldAddresses) == len(w.addresses) {
			taken = w.now.Sub(began)
		}
		if heard == 0 && len(w.nodesByName[former].heldAddresses) == 0 {
			heard = w.now.Sub(began)
		}
	})
	if taken == 0 || heard == 0 || heard-taken > handoverOverlapTimeout {
		t.Errorf("the former holder has heard of all addresses %v after they were taken, want %v at most", heard-taken, handoverOverlapTimeout)
	}
	if *falseDeaths > 0 {
		t.Errorf("living nodes were declared dead %d times", *falseDeaths)
	}
	w.runThenRequireOneHolderEach(time.Millisecond, "takeover")
	t.Logf("taken after %v, heard by the former holder after %v", taken, heard)
}
