package elect

import (
	"fmt"
	"math/rand"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// world is a segment with speakers on it, in virtual time: every message and every probe is an entry in a list of things
// to happen, and chance comes from a seed.
type world struct {
	t     *testing.T
	rnd   *rand.Rand
	now   time.Time
	nodes map[string]*simNode
	names []string
	queue []happening
	loss  float64
	// apart holds the pairs that cannot hear each other.
	apart   map[[2]string]bool
	address netip.Addr
}

type happening struct {
	at time.Time
	do func()
}

// simNode is a speaker; a nil machine is one that is off.
type simNode struct {
	name    string
	mac     facts.MAC
	nonce   uint64
	m       *Machine
	held    bool
	fence   time.Time
	paused  bool
	drained bool
	able    bool
}

func newWorld(t *testing.T, seed int64, n int) *world {
	w := &world{
		t: t, rnd: rand.New(rand.NewSource(seed)), now: time.Unix(1000, 0), nodes: map[string]*simNode{},
		apart: map[[2]string]bool{}, address: netip.MustParseAddr("192.0.2.1"),
	}
	for i := range n {
		name := fmt.Sprintf("n%d", i+1)
		w.names = append(w.names, name)
		w.nodes[name] = &simNode{name: name, mac: facts.MAC{2, 0, 0, 0, 0, byte(i + 1)}, able: true}
	}
	return w
}

func (w *world) at(d time.Duration, do func()) {
	w.queue = append(w.queue, happening{w.now.Add(d), do})
}

// start switches a speaker on: a new life, which has joined the others' gossip.
func (w *world) start(name string) {
	n := w.nodes[name]
	n.nonce, n.m, n.held, n.paused, n.drained = w.rnd.Uint64(), nil, false, false, false
	n.m = New(name, n.nonce, DefaultTiming(), w.now)
	w.bids()
	w.members()
	for _, other := range w.names {
		if o := w.nodes[other]; other != name && o.m != nil && w.hears(other, name) {
			w.step(n, RemoteState{o.m.State()})
			break
		}
	}
}

// stop switches a speaker off without a word; the gossip notices 5 s later.
func (w *world) stop(name string) {
	w.nodes[name].m, w.nodes[name].held = nil, false
	w.at(5*time.Second, w.members)
}

// members tells everybody who is alive as the slow gossip sees it.
func (w *world) members() {
	for _, name := range w.names {
		n := w.nodes[name]
		if n.m == nil {
			continue
		}
		var set facts.MemberSet
		for _, other := range w.names {
			if o := w.nodes[other]; o.m != nil && w.hears(name, other) {
				set.Members = append(set.Members, facts.Member{Name: other, Nonce: o.nonce, MACs: []facts.MAC{o.mac}})
			}
		}
		w.step(n, Members{set})
	}
}

// bids tells everybody which nodes may hold the address.
func (w *world) bids() {
	var able []string
	for _, name := range w.names {
		if w.nodes[name].able {
			able = append(able, name)
		}
	}
	for _, name := range w.names {
		if n := w.nodes[name]; n.m != nil {
			b := intent.Bid{Address: w.address, Candidates: Order(w.address, able, func(string) int { return 0 })}
			if n.able {
				b.Links = []int{1}
			}
			w.step(n, Bids{[]intent.Bid{b}})
		}
	}
}

func (w *world) hears(a, b string) bool {
	return !w.apart[[2]string{a, b}] && !w.apart[[2]string{b, a}]
}

// split separates one node from all others, wire and gossip alike.
func (w *world) split(name string) {
	for _, other := range w.names {
		if other != name {
			w.apart[[2]string{name, other}] = true
		}
	}
	w.at(5*time.Second, w.members)
}

// heal joins all again; the gossip notices half a second later and exchanges its states.
func (w *world) heal() {
	w.apart = map[[2]string]bool{}
	w.at(500*time.Millisecond, func() {
		w.members()
		for i, name := range w.names {
			a, b := w.nodes[name], w.nodes[w.names[(i+1)%len(w.names)]]
			if a.m != nil && b.m != nil {
				w.step(a, RemoteState{b.m.State()})
				w.step(b, RemoteState{a.m.State()})
			}
		}
	})
}

// step steps a machine and performs its effects.
func (w *world) step(n *simNode, in Input) {
	if n.m == nil || n.paused {
		return
	}
	for _, e := range n.m.Step(w.now, in) {
		switch e := e.(type) {
		case Holding:
			n.held = len(e.Claims) > 0
		case Send:
			if to := w.nodes[e.To]; w.hears(n.name, e.To) && w.rnd.Float64() >= w.loss {
				w.at(time.Duration(w.rnd.Intn(3000))*time.Microsecond, func() {
					w.step(to, Received{From: n.name, Payload: e.Payload})
				})
			}
		case Probe:
			wait := time.Duration(e.Attempts) * e.Interval
			w.at(wait, func() { w.step(n, Probed{facts.ProbeResult{ID: e.ID, Address: e.Address, Answers: w.ask(n)}}) })
		case AskGateway:
			w.at(time.Millisecond, func() {
				r := facts.ProbeResult{ID: e.ID}
				if !w.alone(n.name) {
					r.Answers = []facts.MAC{{2, 0, 0, 0, 0, 0xfe}}
				}
				w.step(n, Probed{r})
			})
		case Drained:
			n.drained = true
		}
	}
	n.fence = n.m.Fence(w.now)
}

func (w *world) alone(name string) bool {
	return !slices.ContainsFunc(w.names, func(o string) bool { return o != name && w.hears(name, o) })
}

// ask is the wire's answer to a probe.
func (w *world) ask(from *simNode) []facts.MAC {
	var out []facts.MAC
	for _, name := range w.names {
		if n := w.nodes[name]; n != from && w.answers(n) && w.hears(name, from.name) {
			out = append(out, n.mac)
		}
	}
	return out
}

// answers says whether the node would answer for the address now.
func (w *world) answers(n *simNode) bool {
	return n.m != nil && n.held && !n.paused && w.now.Before(n.fence)
}

func (w *world) holders() []string {
	var out []string
	for _, name := range w.names {
		if w.answers(w.nodes[name]) {
			out = append(out, name)
		}
	}
	return out
}

// run lets time pass; check is called after every happening.
func (w *world) run(d time.Duration, check func()) {
	end := w.now.Add(d)
	for {
		next := end
		var timer *simNode
		for _, name := range w.names {
			if n := w.nodes[name]; n.m != nil && !n.paused && n.m.Next().Before(next) {
				next, timer = n.m.Next(), n
			}
		}
		first := -1
		for i, h := range w.queue {
			if !h.at.After(next) && (first < 0 || h.at.Before(w.queue[first].at)) {
				first = i
			}
		}
		switch {
		case first >= 0:
			h := w.queue[first]
			w.queue = slices.Delete(w.queue, first, first+1)
			w.now = maxTime(w.now, h.at)
			h.do()
		case timer != nil:
			w.now = maxTime(w.now, next)
			w.step(timer, Tick{})
		default:
			w.now = end
			return
		}
		if check != nil {
			check()
		}
	}
}

// settle lets time pass until one node answers, and fails when that takes longer than the limit or two do at the end.
func (w *world) settle(limit time.Duration, what string) string {
	w.t.Helper()
	w.run(limit, nil)
	h := w.holders()
	if len(h) != 1 {
		w.t.Fatalf("%s: after %v the address is answered for by %v, want one node", what, limit, h)
	}
	return h[0]
}

// never returns a check that fails when two nodes have answered for longer than a planned move may take.
func (w *world) never() func() {
	var since time.Time
	return func() {
		if len(w.holders()) < 2 {
			since = time.Time{}
			return
		}
		if since.IsZero() {
			since = w.now
		}
		if d := w.now.Sub(since); d > 200*time.Millisecond {
			w.t.Fatalf("%v answer at once for %v", w.holders(), d)
		}
	}
}

// seeds is how many worlds each property is tried in.
const seeds = 40

func TestSimulatedSpeakers(t *testing.T) {
	tests := map[string]func(w *world){
		"all start at once and one takes the address": func(w *world) {
			w.run(2*time.Second, w.never())
			w.settle(time.Second, "start")
		},
		"a dead holder is followed within a second and takes nothing back": func(w *world) {
			old := w.settle(3*time.Second, "start")
			w.stop(old)
			w.run(time.Second, w.never())
			next := w.settle(time.Millisecond, "takeover")
			w.run(10*time.Second, w.never())
			w.start(old)
			w.run(5*time.Second, w.never())
			if got := w.settle(time.Second, "return"); got != next {
				w.t.Errorf("%s came back and the address moved from %s to %s", old, next, got)
			}
		},
		"a speaker that leaves hands over without a moment of silence": func(w *world) {
			old := w.settle(3*time.Second, "start")
			both := w.never()
			w.step(w.nodes[old], Leave{})
			w.run(2*time.Second, func() {
				both()
				if len(w.holders()) == 0 {
					w.t.Fatal("nobody answers during the hand-over")
				}
			})
			if !w.nodes[old].drained {
				w.t.Error("the speaker that leaves does not learn that it is done")
			}
		},
		"a node that may not hold the address any more hands it over": func(w *world) {
			old := w.settle(3*time.Second, "start")
			w.nodes[old].able = false
			w.bids()
			if next := w.settle(2*time.Second, "exclusion"); next == old {
				w.t.Errorf("%s keeps the address that it may not hold", old)
			}
		},
		"a partition heals to one holder within a second": func(w *world) {
			old := w.settle(3*time.Second, "start")
			w.split(old)
			w.run(10*time.Second, nil)
			w.heal()
			w.settle(1500*time.Millisecond, "healing")
			w.run(5*time.Second, w.never())
		},
		"a paused holder does not answer beside its successor": func(w *world) {
			old := w.settle(3*time.Second, "start")
			w.nodes[old].paused, w.nodes[old].fence = true, w.now
			w.run(2*time.Second, nil)
			next := w.settle(time.Second, "takeover")
			w.nodes[old].paused = false
			w.run(3*time.Second, w.never())
			if got := w.settle(time.Second, "going on"); got != next {
				w.t.Errorf("%s went on and the address moved from %s to %s", old, next, got)
			}
		},
		"the Service goes and its address is given up": func(w *world) {
			w.settle(3*time.Second, "start")
			for _, n := range w.nodes {
				w.step(n, Bids{})
			}
			w.run(time.Second, nil)
			if h := w.holders(); len(h) > 0 {
				w.t.Errorf("%v still answer", h)
			}
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			for seed := range int64(seeds) {
				for _, loss := range []float64{0, 0.1} {
					w := newWorld(t, seed, 3+int(seed%3))
					w.loss = loss
					for _, n := range w.names {
						w.start(n)
					}
					tc(w)
					if t.Failed() {
						t.Fatalf("with seed %d and loss %v", seed, loss)
					}
				}
			}
		})
	}
}
