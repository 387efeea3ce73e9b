package elect

import (
	"fmt"
	"testing"
	"time"
)

// requireEvenSpread fails if a node holds more than a tenth above its share, as the README
// promises.
func (w *clusterSimulation) requireEvenSpread(what string, nodes int) {
	w.t.Helper()
	held := w.answeredAddressesByNode()
	total := 0
	for _, a := range held {
		total += len(a)
	}
	most := evenShareLimitPerNode(len(w.addresses), nodes)
	for n, a := range held {
		if len(a) > most {
			w.t.Errorf("%s: %s holds %d of %d addresses over %d nodes, want %d at most", what, n, len(a), total, nodes, most)
		}
	}
	if total != len(w.addresses) {
		w.t.Errorf("%s: %d of %d addresses are held", what, total, len(w.addresses))
	}
}

func TestAddressesAreSpreadEvenly(t *testing.T) {
	for _, c := range []struct{ nodes, addresses int }{{3, 5}, {4, 40}, {10, 100}, {20, 400}, {50, 1000}} {
		t.Run(fmt.Sprintf("%d addresses over %d nodes", c.addresses, c.nodes), func(t *testing.T) {
			t.Parallel()
			w := newClusterSimulation(t, int64(c.nodes), c.nodes, c.addresses)
			w.allowRebalance = true
			w.startAllSpeakers()
			w.runThenRequireOneHolderEach(6*time.Second, "start")
			w.requireEvenSpread("placed", c.nodes)

			lost := w.nodeNames[c.nodes/2]
			before := w.answeredAddressesByNode()
			w.killSpeaker(lost)
			w.runSimulationFor(4*time.Second, nil) // less than RebalanceAfterMemberChangeDelay
			w.requireEvenSpread("after a loss", c.nodes-1)
			after := w.answeredAddressesByNode()
			for n, held := range before {
				for _, a := range held {
					if n != lost && w.answeringNodes(a)[0] != n {
						t.Errorf("%s died and %s moved away from %s", lost, a, n)
					}
				}
			}
			w.runSimulationFor(6*time.Second, nil)
			w.startSpeaker(lost)
			w.runSimulationFor(5*time.Second, w.newAlwaysAnsweredCheck())
			if got := len(w.answeredAddressesByNode()[lost]); got > 0 {
				t.Errorf("%s came back and took %d addresses at once", lost, got)
			}
			taken := w.addressTakeCount
			w.runSimulationFor(time.Duration(20+c.addresses/c.nodes)*time.Second, w.newAlwaysAnsweredCheck())
			w.requireEvenSpread("after a rebalance", c.nodes)
			over := 0
			for _, a := range after {
				over += max(len(a)-evenShareLimitPerNode(c.addresses, c.nodes), 0)
			}
			if moved := w.addressTakeCount - taken; moved > over {
				t.Errorf("the rebalance moved %d addresses where %d were too many on their nodes", moved, over)
			}
			taken = w.addressTakeCount
			w.runSimulationFor(30*time.Second, nil)
			if w.addressTakeCount != taken {
				t.Errorf("%d addresses moved after the rebalance was over", w.addressTakeCount-taken)
			}
		})
	}
}

// newAlwaysAnsweredCheck returns a check that fails when no node answers for an address.
func (w *clusterSimulation) newAlwaysAnsweredCheck() func() {
	next := w.now
	return func() {
		if w.now.Before(next) { // the check is expensive for many addresses
			return
		}
		next = w.now.Add(7 * time.Millisecond)
		for _, a := range w.addresses {
			if len(w.answeringNodes(a)) == 0 {
				w.t.Fatalf("no node answers for %s", a)
			}
		}
	}
}

func TestPreferredNodesHoldTheAddresses(t *testing.T) {
	w := newClusterSimulation(t, 1, 6, 40)
	w.preferenceScoreByNode = map[string]int{"n002": 10, "n003": 10, "n005": 3}
	w.allowRebalance = true
	w.startAllSpeakers()
	w.runThenRequireOneHolderEach(6*time.Second, "start")
	only := func(when string, names ...string) {
		t.Helper()
		w.requireEvenSpread(when, len(names))
		for n, held := range w.answeredAddressesByNode() {
			if w.preferenceScoreByNode[n] != w.preferenceScoreByNode[names[0]] {
				t.Errorf("%s: %s holds %d addresses, want %v to hold them", when, n, len(held), names)
			}
		}
	}
	only("both preferred nodes live", "n002", "n003")
	w.killSpeaker("n002")
	w.runSimulationFor(time.Second, nil)
	only("one preferred node lives", "n003")
	w.killSpeaker("n003")
	w.runSimulationFor(time.Second, nil)
	only("none of the most preferred nodes lives", "n005")
	w.runSimulationFor(6*time.Second, nil)
	w.startSpeaker("n002")
	w.startSpeaker("n003")
	w.runSimulationFor(60*time.Second, w.newAlwaysAnsweredCheck())
	only("the preferred nodes are back", "n002", "n003")
}

func TestWithoutRebalanceHoldersKeepTheirAddresses(t *testing.T) {
	w := newClusterSimulation(t, 2, 4, 20)
	w.startAllSpeakers()
	w.runThenRequireOneHolderEach(6*time.Second, "start")
	w.killSpeaker("n001")
	w.runSimulationFor(7*time.Second, nil)
	w.startSpeaker("n001")
	taken := w.addressTakeCount
	w.runSimulationFor(time.Minute, w.newAlwaysAnsweredCheck())
	if w.addressTakeCount != taken || len(w.answeredAddressesByNode()["n001"]) > 0 {
		t.Errorf("%d addresses moved though rebalancing is off", w.addressTakeCount-taken)
	}
}

// TestAddressesOfOneServiceHaveDifferentHolders: the loss of one node does not cost all addresses
// of a Service.
func TestAddressesOfOneServiceHaveDifferentHolders(t *testing.T) {
	for seed := range int64(20) {
		w := newClusterSimulation(t, seed, 4, 8)
		w.addressesPerService = 2
		w.startAllSpeakers()
		w.runThenRequireOneHolderEach(6*time.Second, "start")
		for i := 0; i < len(w.addresses); i += 2 {
			if x, y := w.answeringNodes(w.addresses[i]), w.answeringNodes(w.addresses[i+1]); x[0] == y[0] {
				t.Errorf("seed %d: %s holds both addresses of one Service", seed, x[0])
			}
		}
	}
}

// TestTheFirstSpeakerOfAClusterDoesNotTakeEverything: when all speakers start within a second, each
// gets its share.
func TestTheFirstSpeakerOfAClusterDoesNotTakeEverything(t *testing.T) {
	w := newClusterSimulation(t, 3, 4, 40)
	for i, n := range w.nodeNames {
		w.scheduleEvent(time.Duration(i)*300*time.Millisecond, func() { w.startSpeaker(n) })
	}
	w.runThenRequireOneHolderEach(8*time.Second, "start")
	w.requireEvenSpread("after a staggered start", 4)
}
