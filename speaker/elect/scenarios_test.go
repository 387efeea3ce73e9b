package elect

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"
	"time"
)

// print writes everything that decides what the Machine does next.
func (m *Machine) print(w io.Writer) {
	since := func(t time.Time) time.Duration { return m.now.Sub(t) }
	for _, ip := range modelAddresses {
		a := m.addresses[ip]
		if a == nil {
			continue
		}
		fmt.Fprint(w, a.claim, a.held, a.checking, a.owner, since(a.due), a.slot >= 0, a.rumour, since(a.rumourSince))
		if c := a.contest; c != nil {
			fmt.Fprint(w, c.target, c.probing, c.answered, c.pause, c.reason)
		}
		if v := a.move; v != nil {
			fmt.Fprint(w, *v)
		}
		fmt.Fprint(w, m.echoes[a])
	}
	f := m.fence
	fmt.Fprint(w, f.closed, since(f.since), since(f.confirmed), since(f.asked), f.request, f.wire, f.unchecked, f.lonely)
	fmt.Fprint(w, m.ring, m.leaving, m.started, since(m.watch.lastBeacon), m.requests, m.probeID)
	for _, n := range slices.Sorted(maps.Keys(m.watch.heard)) {
		h := *m.watch.heard[n]
		fmt.Fprint(w, n, h.seq, since(h.at), h.silent, since(h.told), h.again, since(h.differs), since(h.asked), since(m.told[n]))
	}
	fmt.Fprint(w, m.watch.suspects, m.watch.dead, m.watch.leaving, m.watch.outside, len(m.exchanges))
}

// modelScenario is a fault and what has to be true afterwards.
type modelScenario struct {
	// settled says that the addresses have holders when it begins, and that no choice is made before.
	settled bool
	fault   func(*model)
	after   int // slots with choices after the beginning
	// undo ends the fault, if it ends.
	undo func(*model)
	// moves is how often an address may change its holder.
	moves int
}

// eachNode has the fault happen to any of the nodes.
func eachNode(f func(w *model, n *modelNode)) func(*model) {
	return func(w *model) { f(w, w.nodes[w.c.choose(3)]) }
}

var modelScenarios = map[string]modelScenario{
	"all start at once": {after: 40, moves: 1},
	"a node dies": {settled: true, after: 60, moves: 2, fault: eachNode(func(_ *model, n *modelNode) {
		n.m, n.held = nil, nil
	})},
	"a speaker leaves": {settled: true, after: 40, moves: 2, fault: eachNode(func(w *model, n *modelNode) {
		n.leaves = true
		w.do(n, Leave{})
	})},
	"a speaker leaves and another one dies": {settled: true, after: 60, moves: 4, fault: eachNode(func(w *model, n *modelNode) {
		n.leaves = true
		w.do(n, Leave{})
		other := w.nodes[(n.id+1+w.c.choose(2))%3]
		other.m, other.held = nil, nil
	})},
	"a process is paused": {settled: true, after: 90, moves: 2, fault: eachNode(func(w *model, n *modelNode) {
		n.wake = w.step + []int{9, 21, 27, 30, 35, 60}[w.c.choose(6)]
	})},
	"gossip is blocked while the wire is whole": {settled: true, after: 80, moves: 1, fault: eachNode(func(w *model, n *modelNode) {
		w.gossip[n.id] = 1
	}), undo: func(w *model) { w.gossip = [3]int{} }},
	"the LAN is cut": {settled: true, after: 80, moves: 3, fault: eachNode(func(w *model, n *modelNode) {
		w.gossip[n.id], w.lan[n.id] = 1, 1
	}), undo: func(w *model) { w.gossip, w.lan = [3]int{}, [3]int{} }},
}

func TestModel(t *testing.T) {
	for name, s := range modelScenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, seen, runs := &chooser{}, map[uint64]bool{}, 0
			for more := true; more && (modelRuns == 0 || runs < modelRuns); more = c.next() {
				s.check(t, c, seen)
				runs++
			}
			t.Logf("%d runs, %d states", runs, len(seen))
		})
	}
}

// check is one run of the scenario.
func (s modelScenario) check(t *testing.T, c *chooser, seen map[uint64]bool) {
	w := &model{t: t, c: c, losses: 1, delays: 1, swaps: 1, seen: seen}
	if s.settled {
		w.calm()
		w.begin()
		w.run(200)
		w.losses, w.delays, w.swaps, w.seen = 1, 1, 1, seen
	} else {
		w.begin()
	}
	w.fault, w.faultUntil = s.fault, w.step+20
	w.run(s.after)
	if w.pruned {
		return
	}
	w.calm()
	if s.undo != nil {
		s.undo(w)
	}
	w.run(300)
	for i, a := range modelAddresses {
		var holders []string
		for _, n := range w.nodes {
			if w.answers(n, a) {
				holders = append(holders, modelName(n.id))
				if n.leaves {
					w.fail("%s left and still answers for %s", modelName(n.id), a)
				}
			}
		}
		if len(holders) != 1 {
			w.fail("in the end %s is answered for by %v, want one node", a, holders)
		}
		if w.taken[i] > s.moves {
			w.fail("%s was taken %d times, want %d at most", a, w.taken[i], s.moves)
		}
	}
}
