package elect

import (
	"container/heap"
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
// to happen, and chance comes from a seed. Gossip and the wire can be cut apart from each other.
type world struct {
	t         testing.TB
	rnd       *rand.Rand
	now       time.Time
	nodes     map[string]*simNode
	names     []string
	queue     happenings
	counter   int
	loss      float64
	delay     time.Duration // of a message, at most
	addresses []netip.Addr
	scores    map[string]int
	rebalance bool
	siblings  int // so many addresses in a row are of one Service
	// gossip and lan say in which part of a cut network a node is; parts of the same number hear each other. The
	// gateway is in part 0 of the LAN.
	gossip, lan map[string]int
	messages    int
	open        []*simQuestion
	taken       int             // how often an address was taken
	delays      []time.Duration // from the last sign of life to the takeover
	notes       map[string]int  // by kind
	trace       bool            // print what changes
}

// simQuestion is a probe under way.
type simQuestion struct {
	from          *simNode
	address       netip.Addr
	heard, rivals []facts.MAC
}

type happening struct {
	at    time.Time
	order int
	do    func()
}

type happenings []happening

func (h happenings) Len() int { return len(h) }
func (h happenings) Less(i, j int) bool {
	if h[i].at.Equal(h[j].at) {
		return h[i].order < h[j].order
	}
	return h[i].at.Before(h[j].at)
}
func (h happenings) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *happenings) Push(x any)   { *h = append(*h, x.(happening)) }
func (h *happenings) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// simNode is a speaker; a nil machine is one that is off.
type simNode struct {
	name    string
	mac     facts.MAC
	nonce   uint64
	m       *Machine
	held    map[netip.Addr]bool
	fence   time.Time
	paused  bool
	inbox   []Input
	timer   int
	drained bool
	able    bool
	grace   bool
}

func newWorld(t testing.TB, seed int64, n, addresses int) *world {
	w := &world{
		t: t, rnd: rand.New(rand.NewSource(seed)), now: time.Unix(1000, 0), nodes: map[string]*simNode{},
		gossip: map[string]int{}, lan: map[string]int{}, delay: 3 * time.Millisecond, notes: map[string]int{},
	}
	a := netip.MustParseAddr("192.0.2.1")
	for range addresses {
		w.addresses = append(w.addresses, a)
		a = a.Next()
	}
	for i := range n {
		name := fmt.Sprintf("n%03d", i+1)
		w.names = append(w.names, name)
		w.nodes[name] = &simNode{name: name, mac: facts.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}, able: true}
	}
	return w
}

func (w *world) at(d time.Duration, do func()) {
	w.counter++
	heap.Push(&w.queue, happening{w.now.Add(d), w.counter, do})
}

// startAll switches every speaker on.
func (w *world) startAll() {
	for _, n := range w.names {
		w.on(n)
	}
	w.members()
	w.bids()
	for i := range w.names {
		w.exchange(w.names[i], w.names[(i+1)%len(w.names)])
	}
}

func (w *world) on(name string) {
	n := w.nodes[name]
	*n = simNode{name: name, mac: n.mac, able: n.able, nonce: w.rnd.Uint64(), held: map[netip.Addr]bool{}}
	n.m = New(name, n.nonce, DefaultTiming(), w.now)
}

// start switches a speaker on: a new life, which has joined the others' gossip.
func (w *world) start(name string) {
	w.on(name)
	w.bids()
	w.members()
	for _, other := range w.names {
		if other != name && w.nodes[other].m != nil && w.talks(other, name) {
			w.exchange(name, other)
			break
		}
	}
}

// exchange is a full exchange of state, as at each join.
func (w *world) exchange(x, y string) {
	a, b := w.nodes[x], w.nodes[y]
	if a.m == nil || b.m == nil || x == y || !w.talks(x, y) {
		return
	}
	of, other := a.m.State(), b.m.State()
	w.step(a, RemoteState{other})
	w.step(b, RemoteState{of})
}

// stop switches a speaker off without a word; the gossip notices 5 s later.
func (w *world) stop(name string) {
	w.nodes[name].m, w.nodes[name].held = nil, nil
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
			if o := w.nodes[other]; o.m != nil && w.talks(name, other) {
				set.Members = append(set.Members, facts.Member{Name: other, Nonce: o.nonce, MACs: []facts.MAC{o.mac}})
			}
		}
		w.step(n, Members{set})
	}
}

// bids tells everybody which nodes may hold the addresses.
func (w *world) bids() {
	able := map[string]int{}
	for _, name := range w.names {
		if w.nodes[name].able {
			able[name] = w.scores[name]
		}
	}
	candidates := intent.NewCandidates(able)
	for _, name := range w.names {
		n := w.nodes[name]
		if n.m == nil {
			continue
		}
		var in Bids
		for i, a := range w.addresses {
			b := intent.Bid{Address: a, Candidates: candidates, Rebalance: w.rebalance}
			for j := i - i%max(w.siblings, 1); w.siblings > 0 && j < i-i%w.siblings+w.siblings; j++ {
				if j != i {
					b.Siblings = append(b.Siblings, w.addresses[j])
				}
			}
			b.Grace = n.grace
			if n.able {
				b.Links = []int{1}
			}
			in.Changed = append(in.Changed, b)
		}
		w.step(n, in)
	}
}

func (w *world) talks(a, b string) bool { return w.gossip[a] == w.gossip[b] }

func (w *world) hears(a, b string) bool { return w.lan[a] == w.lan[b] }

// split separates some nodes from all others, by gossip and on the wire.
func (w *world) split(part int, names ...string) {
	for _, n := range names {
		w.gossip[n], w.lan[n] = part, part
	}
	w.at(5*time.Second, w.members)
}

// block separates some nodes from all others by gossip alone.
func (w *world) block(part int, names ...string) {
	for _, n := range names {
		w.gossip[n] = part
	}
	w.at(5*time.Second, w.members)
}

// heal joins all again; the gossip notices a while later and exchanges its states. Who was given up for dead is a member
// again once it has heard of that and denied it.
func (w *world) heal() {
	w.gossip, w.lan = map[string]int{}, map[string]int{}
	w.at(time.Duration(50+w.rnd.Intn(350))*time.Millisecond, func() {
		for i, name := range w.names {
			w.exchange(name, w.names[(i+1)%len(w.names)])
		}
		w.at(time.Duration(w.rnd.Intn(300))*time.Millisecond, w.members)
	})
}

// pause has a speaker not run for a while: what comes meanwhile waits.
func (w *world) pause(name string, d time.Duration) {
	n := w.nodes[name]
	n.paused = true
	w.at(d, func() {
		n.paused = false
		inbox := n.inbox
		n.inbox = nil
		w.step(n, append(inbox, Tick{})...)
	})
}

// step steps a machine and performs its effects.
func (w *world) step(n *simNode, inputs ...Input) {
	if n.m == nil {
		return
	}
	if n.paused {
		n.inbox = append(n.inbox, inputs...)
		return
	}
	closed := n.m.fence.closed
	for _, e := range n.m.Step(w.now, inputs...) {
		if _, send := e.(Send); w.trace && !send {
			w.t.Logf("%v %s: %T%+v", w.now.Sub(time.Unix(1000, 0)), n.name, e, e)
		}
		w.perform(n, e)
	}
	if w.trace && closed != n.m.fence.closed {
		w.t.Logf("%v %s: fence closed %v", w.now.Sub(time.Unix(1000, 0)), n.name, !closed)
	}
	n.fence = n.m.Fence(w.now)
	n.timer++
	id, m := n.timer, n.m
	w.at(max(n.m.Next().Sub(w.now), 0), func() {
		if n.timer == id && n.m == m && !n.paused {
			w.step(n, Tick{})
		}
	})
}

func (w *world) perform(n *simNode, e Effect) {
	later := func(d time.Duration, to *simNode, in func() Input) {
		m := to.m
		w.at(d, func() {
			if to.m == m {
				w.step(to, in())
			}
		})
	}
	switch e := e.(type) {
	case Hold:
		n.held[e.Claim.Address] = true
		w.announce(n, e.Claim.Address)
	case Announce:
		w.announce(n, e.Address)
	case Drop:
		delete(n.held, e.Address)
	case Send:
		w.messages++
		if to := w.nodes[e.To]; w.talks(n.name, e.To) && w.rnd.Float64() >= w.loss {
			later(time.Duration(w.rnd.Int63n(int64(w.delay))), to, func() Input { return Received{From: n.name, Payload: e.Payload} })
		}
	case Probe:
		q := &simQuestion{from: n, address: e.Address}
		w.open = append(w.open, q)
		for i := range e.Attempts { // who answers while the question is open
			w.at(time.Duration(i)*e.Interval+time.Millisecond, func() {
				q.heard = append(q.heard, w.ask(n, e.Address)...)
				for _, o := range w.open {
					if o.from != n && o.address == e.Address && w.hears(o.from.name, n.name) {
						o.rivals = append(o.rivals, n.mac)
					}
				}
			})
		}
		later(time.Duration(e.Attempts)*e.Interval, n, func() Input {
			w.open = slices.DeleteFunc(w.open, func(o *simQuestion) bool { return o == q })
			return Probed{facts.ProbeResult{ID: e.ID, Address: e.Address, Answers: q.heard, Rivals: q.rivals}}
		})
	case Ask:
		r := facts.ProbeResult{ID: e.ID}
		wait := time.Duration(e.Attempts) * e.Interval
		if !w.alone(n.name) {
			r.Answers, wait = []facts.MAC{{2, 0, 0, 0, 0xff, 0xfe}}, time.Millisecond
		}
		later(wait, n, func() Input { return Probed{r} })
	case Drained:
		n.drained = true
	case Note:
		w.notes[e.Kind]++
		if e.Kind == NoteTaken {
			w.taken++
			if e.Delay > 0 {
				w.delays = append(w.delays, e.Delay)
			}
		}
	}
}

// announce has everybody on the wire hear that the node answers for the address.
func (w *world) announce(n *simNode, a netip.Addr) {
	w.at(100*time.Microsecond, func() {
		if !w.answers(n, a) {
			return
		}
		for _, q := range w.open {
			if q.from != n && q.address == a && w.hears(q.from.name, n.name) {
				q.heard = append(q.heard, n.mac)
			}
		}
		for _, name := range w.names {
			if o := w.nodes[name]; o != n && o.held[a] && w.hears(name, n.name) {
				w.step(o, Foreign{facts.ForeignClaim{Address: a, MAC: n.mac, Link: 1}})
			}
		}
	})
}

// alone says that neither the gateway nor another node can be heard on the wire.
func (w *world) alone(name string) bool {
	return w.lan[name] != 0 && !slices.ContainsFunc(w.names, func(o string) bool { return o != name && w.hears(name, o) })
}

// ask is the wire's answer to a question.
func (w *world) ask(from *simNode, a netip.Addr) []facts.MAC {
	var out []facts.MAC
	for _, name := range w.names {
		if n := w.nodes[name]; n != from && w.answers(n, a) && w.hears(name, from.name) {
			out = append(out, n.mac)
		}
	}
	return out
}

// answers says whether the node would answer for the address now.
func (w *world) answers(n *simNode, a netip.Addr) bool {
	return n.m != nil && n.held[a] && !n.paused && w.now.Before(n.fence)
}

// holders are the nodes that would answer for the address now.
func (w *world) holders(a netip.Addr) []string {
	var out []string
	for _, name := range w.names {
		if w.answers(w.nodes[name], a) {
			out = append(out, name)
		}
	}
	return out
}

// run lets time pass; check is called after every happening.
func (w *world) run(d time.Duration, check func()) {
	end := w.now.Add(d)
	for len(w.queue) > 0 && !w.queue[0].at.After(end) {
		h := heap.Pop(&w.queue).(happening)
		w.now = maxTime(w.now, h.at)
		h.do()
		if check != nil {
			check()
		}
	}
	w.now = end
}

// settle lets time pass, and fails when then not exactly one node answers for each address. It returns the holder of
// the first.
func (w *world) settle(d time.Duration, what string) string {
	w.t.Helper()
	w.run(d, nil)
	first := ""
	for _, a := range w.addresses {
		h := w.holders(a)
		if len(h) != 1 {
			w.t.Fatalf("%s: after %v %s is answered for by %v, want one node", what, d, a, h)
		}
		if first == "" {
			first = h[0]
		}
	}
	return first
}

// one returns a check that fails when two nodes that hear each other on the wire answer for an address at one time for
// longer than the limit.
func (w *world) one(limit time.Duration) func() {
	since := map[netip.Addr]time.Time{}
	return func() {
		for _, a := range w.addresses {
			h := w.holders(a)
			both := false
			for i := range h {
				for j := range i {
					both = both || w.hears(h[i], h[j])
				}
			}
			if !both {
				delete(since, a)
				continue
			}
			if since[a].IsZero() {
				since[a] = w.now
			}
			if d := w.now.Sub(since[a]); d > limit || limit == 0 {
				w.t.Fatalf("%v answer for %s at once, for %v", h, a, d)
			}
		}
	}
}

// both is how long two nodes may answer for an address in a planned move.
const both = 200 * time.Millisecond
