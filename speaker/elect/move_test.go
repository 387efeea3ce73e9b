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
