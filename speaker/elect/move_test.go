package elect

import (
	"testing"
	"time"
)

// All nodes but one are excluded, one some milliseconds after the other. So an address may go to a
// node that has to hand it over at once, to a node that has not heard of the first move yet. Some
// node answers for each address all the time.
func TestNodesExcludedInARowHandOverWithoutAGap(t *testing.T) {
	for seed := range seedCountPerTest() {
		w := newClusterSimulation(t, seed, 4, 40)
		w.startAllSpeakers()
		w.runThenRequireOneHolderEach(6*time.Second, "start")
		left := w.nodeNames[seed%4]
		var next time.Duration
		for _, excluded := range w.nodeNames {
			if excluded == left {
				continue
			}
			next += time.Duration(w.random.Int63n(int64(4 * time.Millisecond)))
			w.scheduleEvent(next, func() {
				w.nodesByName[excluded].hasServingEndpoint = false
				for _, name := range w.nodeNames {
					w.scheduleEvent(time.Duration(w.random.Int63n(int64(2*time.Millisecond))), func() { w.deliverBidsToNode(name) })
				}
			})
		}
		w.runSimulationFor(2*time.Second, w.newAlwaysAnsweredCheck())
		if holder := w.runThenRequireOneHolderEach(time.Millisecond, "the exclusions"); holder != left {
			t.Errorf("seed %d: %s holds the address, want %s, the only node that is not excluded", seed, holder, left)
		}
	}
}

// No node can take the address any more. The holder repeats its offers for a while, because the
// refusals may rest on old knowledge, and offers less often each time.
func TestRefusedOffersAreRepeatedLessAndLessOften(t *testing.T) {
	w := newClusterSimulation(t, 1, 5, 1)
	w.startAllSpeakers()
	name := w.runThenRequireOneHolderEach(6*time.Second, "start")
	holder, address := w.nodesByName[name], w.addresses[0]
	w.nodesAbleToServe = map[string]bool{}
	w.deliverBids()
	var offerCount uint64 // each offer has an epoch of its own
	w.runSimulationFor(time.Second, func() {
		if a := holder.machine.addressesByIP[address]; a.move != nil {
			offerCount = max(offerCount, a.move.offeredEpoch-a.highestKnownClaim.Epoch)
		}
	})
	if candidates := uint64(4); offerCount < 2*candidates || offerCount > 6*candidates {
		t.Errorf("the holder makes %d offers to %d candidates, want 2 to 6 to each", offerCount, candidates)
	}
	if got := w.answeringNodes(address); len(got) > 0 {
		t.Errorf("%v answer for an address that no node can serve", got)
	}
}
