package elect

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// The model checker runs three nodes with two addresses in slots of 10 ms through every order of events that a scenario
// allows: which message of a slot is delivered first, which one comes a slot late, which one is lost, and when the fault
// happens. It goes on from each choice in every way, by running the scenario again from its start with other choices; states
// that were reached before are not gone through again. Beacons and acknowledgements arrive in time, unless the fault stops
// them: their loss is what the simulator tries.

// modelRuns bounds the runs of each scenario here; make model sets it to go through all of them.
var modelRuns = func() int {
	if n, err := strconv.Atoi(os.Getenv("GANTRY_MODEL_RUNS")); err == nil {
		return n
	}
	return 150
}()

// slot is the model's unit of time.
const slot = 10 * time.Millisecond

// chooser takes choices from a path, and the first way where the path ends.
type chooser struct {
	path, widths []int
	at           int
}

func (c *chooser) choose(n int) int {
	if n <= 1 {
		return 0
	}
	if c.at == len(c.path) {
		c.path, c.widths = append(c.path, 0), append(c.widths, n)
	}
	c.at++
	return c.path[c.at-1]
}

// next moves to the next path; false when there is none.
func (c *chooser) next() bool {
	c.at = 0
	for i := len(c.path) - 1; i >= 0; i-- {
		if c.path[i]+1 < c.widths[i] {
			c.path[i]++
			c.path, c.widths = c.path[:i+1], c.widths[:i+1]
			return true
		}
	}
	return false
}

// model is one run.
type model struct {
	t     *testing.T
	c     *chooser
	step  int
	nodes []*modelNode
	// sent are messages under way, asked questions to the wire.
	sent  []modelMessage
	asked []*modelQuestion
	// losses, delays and swaps are how often the model may still do so.
	losses, delays, swaps int
	fault                 func(*model) // what happens once, at a slot of choice
	faultUntil            int
	gossip, lan           [3]int
	seen                  map[uint64]bool // states that were reached, over all runs
	pruned                bool
	answered              map[modelTerm]int // who answered for an address in an epoch
	taken                 [2]int
	trace                 []string
}

// modelTerm is an address in one epoch and on one part of the LAN.
type modelTerm struct {
	address netip.Addr
	epoch   uint64
	part    int
}

type modelNode struct {
	id     int
	m      *Machine
	held   map[netip.Addr]bool
	fence  time.Time
	wake   int // paused until this slot
	inbox  []Input
	tick   time.Time
	leaves bool
}

type modelMessage struct {
	from, to, due int
	payload       []byte
	late          bool
}

type modelQuestion struct {
	node, due     int
	id            uint64
	address       netip.Addr // not valid: asks for the gateway
	frames        []int
	heard, rivals []facts.MAC
}

var modelAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}

func modelName(i int) string { return string(rune('a' + i)) }

func modelMAC(i int) facts.MAC { return facts.MAC{2, 0, 0, 0, 0, byte(i)} }

func (w *model) now() time.Time { return epoch0.Add(time.Duration(w.step) * slot) }

// begin starts the nodes. They know each other, and the bids.
func (w *model) begin() {
	w.answered = map[modelTerm]int{}
	candidates := intent.NewCandidates(map[string]int{"a": 0, "b": 0, "c": 0})
	for i := range 3 {
		n := &modelNode{id: i, held: map[netip.Addr]bool{}, m: New(modelName(i), uint64(i+1), DefaultTiming(), w.now())}
		w.nodes = append(w.nodes, n)
	}
	for _, n := range w.nodes {
		bids := Bids{}
		for _, a := range modelAddresses {
			bids.Changed = append(bids.Changed, intent.Bid{Address: a, Candidates: candidates, Links: []int{1}})
		}
		w.do(n, bids, w.members(n.id), RemoteState{appendClaims(header(kindClaims), nil)})
	}
}

func (w *model) members(of int) Members {
	var set facts.MemberSet
	for i := range 3 {
		if w.gossip[i] == w.gossip[of] && (i == of || len(w.nodes) < 3 || w.nodes[i].m != nil) {
			set.Members = append(set.Members, facts.Member{Name: modelName(i), Nonce: uint64(i + 1), MACs: []facts.MAC{modelMAC(i)}})
		}
	}
	return Members{set}
}

// do steps a node and performs its effects.
func (w *model) do(n *modelNode, inputs ...Input) {
	if n.m == nil {
		return
	}
	if w.step < n.wake {
		n.inbox = append(n.inbox, inputs...)
		return
	}
	inputs, n.inbox = append(n.inbox, inputs...), nil
	effects := n.m.Step(w.now(), inputs...)
	n.fence = n.m.Fence(w.now())
	for _, e := range effects {
		w.perform(n, e)
	}
	n.fence, n.tick = n.m.Fence(w.now()), n.m.Next()
}

func (w *model) perform(n *modelNode, e Effect) {
	switch e := e.(type) {
	case Hold:
		n.held[e.Claim.Address] = true
	case Drop:
		delete(n.held, e.Address)
	case Announce:
		w.announced(n, e.Address)
	case Send:
		to := int(e.To[0] - 'a')
		if w.gossip[to] == w.gossip[n.id] {
			w.sent = append(w.sent, modelMessage{from: n.id, to: to, due: w.step + 1, payload: e.Payload})
		}
	case Probe:
		w.asked = append(w.asked, &modelQuestion{node: n.id, id: e.ID, address: e.Address, due: w.step + 6, frames: []int{w.step, w.step + 3}})
	case Ask:
		w.asked = append(w.asked, &modelQuestion{node: n.id, id: e.ID, due: w.step + 1})
	case Note:
		w.trace = append(w.trace, fmt.Sprintf("%d ms: %s", w.step*10, e.Text))
		if e.Kind != NoteTaken {
			return
		}
		i := slices.Index(modelAddresses, e.Address)
		w.taken[i]++
		for _, o := range w.nodes {
			if o != n && e.Reason != reasonHandedOver && w.answers(o, e.Address) && w.lan[o.id] == w.lan[n.id] {
				w.fail("%s took %s while %s answered for it", modelName(n.id), e.Address, modelName(o.id))
			}
		}
	}
}

func (w *model) fail(format string, args ...any) {
	w.t.Helper()
	for _, line := range w.trace {
		w.t.Log(line)
	}
	w.t.Fatalf("choices %v: %d ms: %s", w.c.path, w.step*10, fmt.Sprintf(format, args...))
}

func (w *model) answers(n *modelNode, a netip.Addr) bool {
	return n.m != nil && n.held[a] && w.step >= n.wake && w.now().Before(n.fence)
}

// announced has whoever asks for the address hear that the node has it.
func (w *model) announced(n *modelNode, a netip.Addr) {
	for _, q := range w.asked {
		if q.node != n.id && q.address == a && w.lan[q.node] == w.lan[n.id] {
			q.heard = append(q.heard, modelMAC(n.id))
		}
	}
	for _, o := range w.nodes {
		if o != n && o.held[a] && w.lan[o.id] == w.lan[n.id] {
			w.do(o, Foreign{facts.ForeignClaim{Address: a, MAC: modelMAC(n.id)}})
		}
	}
}

// deliver passes on what is due, in an order of choice where one node gets several messages.
func (w *model) deliver() {
	var due []modelMessage
	w.sent = slices.DeleteFunc(w.sent, func(m modelMessage) bool {
		if m.due <= w.step {
			due = append(due, m)
		}
		return m.due <= w.step
	})
	for to := range w.nodes {
		var free []modelMessage
		for _, m := range due {
			switch {
			case m.to != to:
			case m.payload[1] == kindBeacon || m.payload[1] == kindAck:
				w.arrive(m)
			default:
				free = append(free, m)
			}
		}
		for len(free) > 0 {
			i := 0
			if w.swaps > 0 {
				if i = w.c.choose(len(free)); i > 0 {
					w.swaps--
				}
			}
			m := free[i]
			free = slices.Delete(free, i, i+1)
			ways := []string{"arrives"}
			if w.losses > 0 {
				ways = append(ways, "is lost")
			}
			if w.delays > 0 && !m.late {
				ways = append(ways, "is late")
			}
			switch ways[w.c.choose(len(ways))] {
			case "arrives":
				w.arrive(m)
			case "is lost":
				w.losses--
			case "is late":
				w.delays--
				m.late, m.due = true, w.step+2
				w.sent = append(w.sent, m)
			}
		}
	}
}

func (w *model) arrive(m modelMessage) {
	if w.gossip[m.from] == w.gossip[m.to] {
		w.do(w.nodes[m.to], Received{From: modelName(m.from), Payload: m.payload})
	}
}

// ask has the questions to the wire heard and answered.
func (w *model) ask() {
	var done []*modelQuestion
	for _, q := range w.asked {
		for _, o := range w.nodes {
			if o.id == q.node || w.lan[o.id] != w.lan[q.node] || !slices.Contains(q.frames, w.step) {
				continue
			}
			if w.answers(o, q.address) {
				q.heard = append(q.heard, modelMAC(o.id))
			}
			for _, r := range w.asked {
				if r.node == o.id && r.address == q.address {
					r.rivals = append(r.rivals, modelMAC(q.node))
				}
			}
		}
		if q.due <= w.step {
			done = append(done, q)
		}
	}
	for _, q := range done {
		w.asked = slices.DeleteFunc(w.asked, func(o *modelQuestion) bool { return o == q })
		r := facts.ProbeResult{ID: q.id, Address: q.address, Answers: q.heard, Rivals: q.rivals}
		if !q.address.IsValid() && w.lan[q.node] == 0 { // the gateway is in part 0
			r.Answers = []facts.MAC{{0xfe}}
		}
		w.do(w.nodes[q.node], Probed{r})
	}
}

// check looks for two answers in one epoch.
func (w *model) check() {
	for _, a := range modelAddresses {
		for _, n := range w.nodes {
			if !w.answers(n, a) {
				continue
			}
			term := modelTerm{a, n.m.addresses[a].claim.Epoch, w.lan[n.id]}
			if other, ok := w.answered[term]; ok && other != n.id {
				w.fail("%s and %s answered for %s in epoch %d", modelName(other), modelName(n.id), a, term.epoch)
			}
			w.answered[term] = n.id
		}
	}
}

// run lets n slots pass. It ends early in a state that was gone through before.
func (w *model) run(slots int) {
	for end := w.step + slots; w.step < end && !w.pruned; {
		if w.fault != nil && w.step%4 == 0 && (w.c.choose(2) == 0 || w.step >= w.faultUntil) {
			w.fault(w)
			w.fault = nil
		}
		w.deliver()
		w.ask()
		for _, n := range w.nodes {
			if n.m != nil && w.step >= n.wake && !w.now().Before(n.tick) {
				w.do(n, Tick{})
			}
		}
		w.check()
		w.step++
		if w.seen != nil {
			h := w.fingerprint()
			w.pruned = w.seen[h] && w.c.at == len(w.c.path)
			w.seen[h] = true
		}
	}
}

// calm ends the trouble: what follows has no choices.
func (w *model) calm() { w.losses, w.delays, w.swaps, w.seen = 0, 0, 0, nil }

// fingerprint is the state as far as it decides what follows.
func (w *model) fingerprint() uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, w.step, w.losses, w.delays, w.swaps, w.fault == nil, w.gossip, w.lan, w.taken)
	for _, n := range w.nodes {
		fmt.Fprint(h, n.wake, len(n.held), n.fence.UnixNano(), len(n.inbox))
		if n.m != nil {
			n.m.print(h)
		}
	}
	for _, m := range w.sent {
		fmt.Fprint(h, m.from, m.to, m.due, m.late, m.payload)
	}
	for _, q := range w.asked {
		fmt.Fprint(h, q.node, q.due, q.id, q.address, q.heard, q.rivals)
	}
	return h.Sum64()
}
