package elect

import (
	"fmt"
	"testing"
	"time"
)

// spread checks that no node holds more than the tenth above its share that the README promises.
func (w *world) spread(what string, nodes int) {
	w.t.Helper()
	held := w.byNode()
	total := 0
	for _, a := range held {
		total += len(a)
	}
	most := limit(len(w.addresses), nodes)
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
			w := newWorld(t, int64(c.nodes), c.nodes, c.addresses)
			w.rebalance = true
			w.startAll()
			w.settle(6*time.Second, "start")
			w.spread("placed", c.nodes)

			lost := w.names[c.nodes/2]
			before := w.byNode()
			w.stop(lost)
			w.run(4*time.Second, nil) // less than a rebalance waits
			w.spread("after a loss", c.nodes-1)
			after := w.byNode()
			for n, held := range before {
				for _, a := range held {
					if n != lost && w.holders(a)[0] != n {
						t.Errorf("%s died and %s moved away from %s", lost, a, n)
					}
				}
			}
			w.run(6*time.Second, nil)
			w.start(lost)
			w.run(5*time.Second, w.unbroken())
			if got := len(w.byNode()[lost]); got > 0 {
				t.Errorf("%s came back and took %d addresses at once", lost, got)
			}
			taken := w.taken
			w.run(time.Duration(20+c.addresses/c.nodes)*time.Second, w.unbroken())
			w.spread("after a rebalance", c.nodes)
			over := 0
			for _, a := range after {
				over += max(len(a)-limit(c.addresses, c.nodes), 0)
			}
			if moved := w.taken - taken; moved > over {
				t.Errorf("the rebalance moved %d addresses where %d were too many on their nodes", moved, over)
			}
			taken = w.taken
			w.run(30*time.Second, nil)
			if w.taken != taken {
				t.Errorf("%d addresses moved after the rebalance was over", w.taken-taken)
			}
		})
	}
}

// unbroken returns a check that fails when an address is not answered for.
func (w *world) unbroken() func() {
	next := w.now
	return func() {
		if w.now.Before(next) { // it is dear for many addresses
			return
		}
		next = w.now.Add(7 * time.Millisecond)
		for _, a := range w.addresses {
			if len(w.holders(a)) == 0 {
				w.t.Fatalf("nobody answers for %s", a)
			}
		}
	}
}

func TestPreferredNodesHold(t *testing.T) {
	w := newWorld(t, 1, 6, 40)
	w.scores = map[string]int{"n002": 10, "n003": 10, "n005": 3}
	w.rebalance = true
	w.startAll()
	w.settle(6*time.Second, "start")
	only := func(when string, names ...string) {
		t.Helper()
		w.spread(when, len(names))
		for n, held := range w.byNode() {
			if w.scores[n] != w.scores[names[0]] {
				t.Errorf("%s: %s holds %d addresses, want %v to hold them", when, n, len(held), names)
			}
		}
	}
	only("both preferred nodes live", "n002", "n003")
	w.stop("n002")
	w.run(time.Second, nil)
	only("one preferred node lives", "n003")
	w.stop("n003")
	w.run(time.Second, nil)
	only("none of the most preferred lives", "n005")
	w.run(6*time.Second, nil)
	w.start("n002")
	w.start("n003")
	w.run(60*time.Second, w.unbroken())
	only("they are back", "n002", "n003")
}

func TestWithoutRebalanceHoldersStay(t *testing.T) {
	w := newWorld(t, 2, 4, 20)
	w.startAll()
	w.settle(6*time.Second, "start")
	w.stop("n001")
	w.run(7*time.Second, nil)
	w.start("n001")
	taken := w.taken
	w.run(time.Minute, w.unbroken())
	if w.taken != taken || len(w.byNode()["n001"]) > 0 {
		t.Errorf("%d addresses moved though no rebalance is asked for", w.taken-taken)
	}
}

// TestSiblingsHaveDifferentHolders: the addresses of one Service are not all lost with one node.
func TestSiblingsHaveDifferentHolders(t *testing.T) {
	for seed := range int64(20) {
		w := newWorld(t, seed, 4, 8)
		w.siblings = 2
		w.startAll()
		w.settle(6*time.Second, "start")
		for i := 0; i < len(w.addresses); i += 2 {
			if x, y := w.holders(w.addresses[i]), w.holders(w.addresses[i+1]); x[0] == y[0] {
				t.Errorf("seed %d: %s holds both addresses of one Service", seed, x[0])
			}
		}
	}
}

// TestTheFirstSpeakerOfAClusterDoesNotTakeEverything: when all start within a second, each finds its share.
func TestTheFirstSpeakerOfAClusterDoesNotTakeEverything(t *testing.T) {
	w := newWorld(t, 3, 4, 40)
	for i, n := range w.names {
		w.at(time.Duration(i)*300*time.Millisecond, func() { w.start(n) })
	}
	w.settle(8*time.Second, "start")
	w.spread("started one after the other", 4)
}
