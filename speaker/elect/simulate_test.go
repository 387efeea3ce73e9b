package elect

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// seeds is how many worlds each property is tried in.
const seeds = 20

// scenarios are what may happen to a few nodes. Each is tried in many worlds, with and without loss.
var scenarios = map[string]func(w *world){
	"all start at once and each address is taken": func(w *world) {
		w.run(2*time.Second, w.one(both))
		w.settle(3*time.Second, "start")
	},
	"a dead holder is followed within a second and takes nothing back": func(w *world) {
		old := w.settle(6*time.Second, "start")
		others := w.byNode()
		w.stop(old)
		w.run(time.Second, w.one(both))
		next := w.settle(time.Millisecond, "takeover")
		for n, held := range others { // what a dead node did not hold stays where it is
			for _, a := range held {
				if now := w.holders(a); n != old && now[0] != n {
					w.t.Errorf("%s died and %s moved from %s to %s", old, a, n, now[0])
				}
			}
		}
		w.run(10*time.Second, w.one(both))
		w.start(old)
		w.run(5*time.Second, w.one(both))
		if got := w.settle(time.Second, "return"); got != next {
			w.t.Errorf("%s came back and the address moved from %s to %s", old, next, got)
		}
	},
	"a speaker that leaves hands over without a moment of silence": func(w *world) {
		old := w.settle(6*time.Second, "start")
		one := w.one(both)
		w.step(w.nodes[old], Leave{})
		w.run(3*time.Second, func() {
			one()
			if len(w.holders(w.addresses[0])) == 0 {
				w.t.Fatal("nobody answers during the hand-over")
			}
		})
		if !w.nodes[old].drained {
			w.t.Error("the speaker that leaves does not learn that it is done")
		}
	},
	"a node that may not hold the address any more hands it over": func(w *world) {
		old := w.settle(6*time.Second, "start")
		w.nodes[old].able = false
		w.bids()
		w.run(2*time.Second, w.one(both))
		if next := w.settle(time.Second, "exclusion"); next == old {
			w.t.Errorf("%s keeps the address that it may not hold", old)
		}
	},
	"a holder whose endpoints end lingers, and then hands over": func(w *world) {
		old := w.settle(6*time.Second, "start")
		w.nodes[old].able, w.nodes[old].grace = false, true
		w.bids()
		w.run(time.Second, w.unbroken())
		if now := w.holders(w.addresses[0]); !slices.Contains(now, old) {
			w.t.Errorf("after a second %v answer, want %s, whose successor may not be ready", now, old)
		}
		w.run(time.Second, w.unbroken())
		if next := w.settle(time.Millisecond, "the end of the grace"); next == old {
			w.t.Errorf("%s keeps the address", old)
		}
	},
	"a partition heals to one holder within a second": func(w *world) {
		old := w.settle(6*time.Second, "start")
		w.split(1, old)
		w.run(10*time.Second, w.one(both))
		var next string // where the others, and the gateway, are
		for _, n := range w.holders(w.addresses[0]) {
			if n != old {
				next = n
			}
		}
		w.heal()
		if now := w.settle(time.Second, "healing"); now != next && w.loss == 0 {
			w.t.Errorf("%s took the address from %s, which lived and had followed it", now, next)
		}
		w.run(5*time.Second, w.one(both))
	},
	"a short cut heals to one holder": func(w *world) {
		old := w.settle(6*time.Second, "start")
		w.split(1, old)
		w.run(time.Duration(w.rnd.Intn(1500))*time.Millisecond, w.one(both))
		w.heal()
		w.run(time.Second, w.one(both))
		w.settle(time.Millisecond, "healing")
	},
	"gossip that is blocked while the wire is whole makes no second holder": func(w *world) {
		old := w.settle(6*time.Second, "start")
		part := []string{old}
		if w.rnd.Intn(2) == 0 {
			for _, n := range w.names[:len(w.names)/2] {
				if n != old {
					part = append(part, n)
				}
			}
		}
		taken := w.taken
		w.block(1, part...)
		w.run(15*time.Second, w.one(0))
		w.heal()
		w.run(3*time.Second, w.one(0))
		if got := w.settle(time.Millisecond, "healing"); got != old || w.taken != taken {
			w.t.Errorf("%d addresses moved though every holder lived; the first from %s to %s", w.taken-taken, old, got)
		}
	},
	"a short pause changes nothing": func(w *world) {
		old := w.settle(6*time.Second, "start")
		taken := w.taken
		for range 5 {
			w.pause(old, 100*time.Millisecond)
			w.run(time.Second, w.one(0))
		}
		if w.loss == 0 && w.taken != taken {
			w.t.Errorf("pauses of 100 ms moved %d addresses", w.taken-taken)
		}
		w.settle(time.Second, "going on")
	},
	"a paused holder does not answer beside its successor": func(w *world) {
		old := w.settle(6*time.Second, "start")
		w.pause(old, 200*time.Millisecond+time.Duration(w.rnd.Intn(2000))*time.Millisecond)
		w.run(5*time.Second, w.one(0))
		w.settle(time.Second, "going on")
	},
	"the Service goes and its address is given up": func(w *world) {
		w.settle(6*time.Second, "start")
		for _, name := range w.names {
			w.step(w.nodes[name], Bids{Gone: w.addresses})
		}
		w.run(time.Second, nil)
		for _, a := range w.addresses {
			if h := w.holders(a); len(h) > 0 {
				w.t.Errorf("%v still answer for %s", h, a)
			}
		}
	},
}

// byNode groups the addresses by who answers for them.
func (w *world) byNode() map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for _, a := range w.addresses {
		for _, n := range w.holders(a) {
			out[n] = append(out[n], a)
		}
	}
	return out
}

func TestSimulatedSpeakers(t *testing.T) {
	for name, scenario := range scenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range int64(seeds) {
				for _, loss := range []float64{0, 0.1} {
					w := newWorld(t, seed, 3+int(seed%4), 1+int(seed%5))
					w.loss = loss
					if seed%3 == 0 {
						w.delay = 20 * time.Millisecond // messages overtake each other
					}
					w.startAll()
					scenario(w)
					if t.Failed() {
						t.Fatalf("with seed %d and loss %v", seed, loss)
					}
				}
			}
		})
	}
}

func TestDetectionIn100Nodes(t *testing.T) {
	var all []time.Duration
	for seed := range int64(2) {
		w := newWorld(t, seed, 100, 300)
		w.loss = 0.01
		w.startAll()
		w.settle(6*time.Second, "start")
		for i := range 5 {
			w.stop(w.names[(i*17+int(seed))%100])
			w.run(time.Second, nil)
			w.settle(time.Millisecond, "takeover")
		}
		all = append(all, w.delays...)
		before := w.messages
		w.run(5*time.Second, nil)
		if each := float64(w.messages-before) / 5 / 2 / 95; each > 25.5 {
			t.Errorf("%.1f packets a second go between a node and each of its watchers, want at most 25", each)
		}
	}
	slices.Sort(all)
	if len(all) == 0 {
		t.Fatal("no address moved")
	}
	if p99 := all[len(all)*99/100]; p99 > 600*time.Millisecond {
		t.Errorf("the 99th percentile of %d takeovers is %v, want 600 ms at most", len(all), p99)
	}
	t.Logf("%d takeovers: median %v, 99th percentile %v, longest %v", len(all), all[len(all)/2], all[len(all)*99/100], all[len(all)-1])
}

// TestTwoHundredNodes has a large cluster go through a cut, deaths and a return.
func TestTwoHundredNodes(t *testing.T) {
	w := newWorld(t, 1, 200, 60)
	w.loss = 0.01
	w.startAll()
	w.settle(3*time.Second, "start")
	w.split(1, w.names[:70]...)
	w.run(6*time.Second, nil)
	w.heal()
	w.settle(time.Second, "healing")
	dead := w.names[20:25]
	for _, n := range dead {
		w.stop(n)
	}
	w.run(time.Second, nil)
	w.settle(time.Millisecond, "five deaths at once")
	for _, n := range dead {
		w.start(n)
	}
	taken := w.taken
	w.run(time.Second, nil)
	w.settle(time.Millisecond, "their return")
	if w.taken != taken {
		t.Errorf("%d addresses moved because nodes came back", w.taken-taken)
	}
}
