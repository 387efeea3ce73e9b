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

// The model checker runs three nodes with two addresses in slots of 10 ms. It tries all orders of
// events that a scenario allows: which message of a slot arrives first, which one arrives a slot
// late, which one is lost, and when the fault happens. To follow each choice in every way it runs
// the scenario again from its start with other choices. It does not follow a state that an earlier
// run has reached. Beacons and acknowledgements arrive in time unless the fault stops them. The
// simulation tests their loss.

// maxModelRuns bounds the runs of each scenario. The target "make model" removes the bound.
var maxModelRuns = func() int {
	if n, err := strconv.Atoi(os.Getenv("GANTRY_MODEL_RUNS")); err == nil {
		return n
	}
	return 150
}()

// modelSlot is the unit of time of the model.
const modelSlot = 10 * time.Millisecond

// chooser takes its choices from a path, and the first choice where the path ends.
type chooser struct {
	chosenOptions, optionCounts []int
	depth                       int
}

func (c *chooser) choose(n int) int {
	if n <= 1 {
		return 0
	}
	if c.depth == len(c.chosenOptions) {
		c.chosenOptions, c.optionCounts = append(c.chosenOptions, 0), append(c.optionCounts, n)
	}
	c.depth++
	return c.chosenOptions[c.depth-1]
}

// nextPath moves to the next path. It returns false when there is none.
func (c *chooser) nextPath() bool {
	c.depth = 0
	for i := len(c.chosenOptions) - 1; i >= 0; i-- {
		if c.chosenOptions[i]+1 < c.optionCounts[i] {
			c.chosenOptions[i]++
			c.chosenOptions, c.optionCounts = c.chosenOptions[:i+1], c.optionCounts[:i+1]
			return true
		}
	}
	return false
}

// model is one run.
type model struct {
	t           *testing.T
	choices     *chooser
	currentSlot int
	nodes       []*modelNode
	// messages are the messages under way, openProbes the probes without a result.
	messages   []modelMessage
	openProbes []*modelProbe
	// lossesLeft, delaysLeft and swapsLeft are how many messages the model may still lose, delay or
	// reorder.
	lossesLeft, delaysLeft, swapsLeft int
	pendingFault                      func(*model) // happens once, at a chosen slot
	lastFaultSlot                     int
	gossipPartByNode, lanPartByNode   [3]int
	seenStates                        map[uint64]bool // states that any run has reached
	reachedSeenState                  bool
	// the node that answered for an address in an epoch
	answererByTerm map[modelTerm]int
	takeCounts     [2]int
	trace          []string
}

// modelTerm is an address in one epoch and in one part of the LAN.
type modelTerm struct {
	address netip.Addr
	epoch   uint64
	lanPart int
}

type modelNode struct {
	id             int
	machine        *Machine
	heldAddresses  map[netip.Addr]bool
	answerDeadline time.Time
	pausedUntil    int // slot at which the pause ends
	inbox          []Input
	nextTick       time.Time
	leaving        bool
}

type modelMessage struct {
	from, to, dueSlot int
	payload           []byte
	isDelayed         bool
}

type modelProbe struct {
	node, dueSlot   int
	id              uint64
	address         netip.Addr // invalid for a liveness probe
	frameSlots      []int
	answers, rivals []facts.MAC
}

var modelAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}

func modelName(i int) string { return string(rune('a' + i)) }

func modelMAC(i int) facts.MAC { return facts.MAC{2, 0, 0, 0, 0, byte(i)} }

func (w *model) currentTime() time.Time {
	return testStart.Add(time.Duration(w.currentSlot) * modelSlot)
}

// startNodes starts the nodes. They know each other and the bids.
func (w *model) startNodes() {
	w.answererByTerm = map[modelTerm]int{}
	candidates := intent.NewCandidates(map[string]int{"a": 0, "b": 0, "c": 0})
	for i := range 3 {
		n := &modelNode{
			id: i, heldAddresses: map[netip.Addr]bool{},
			machine: New(modelName(i), uint64(i+1), DefaultTiming(), w.currentTime()),
		}
		w.nodes = append(w.nodes, n)
	}
	for _, n := range w.nodes {
		bids := BidsChanged{}
		for _, a := range modelAddresses {
			bids.Bids = append(bids.Bids, intent.Bid{Address: a, Candidates: candidates, LinkIndexes: []int{1}})
		}
		w.stepNode(n, bids, w.membersOf(n.id), RemoteStateReceived{appendClaims(encodeMessageHeader(kindClaims), nil)})
	}
}

func (w *model) membersOf(of int) MembersChanged {
	var set facts.MemberSet
	for i := range 3 {
		if w.gossipPartByNode[i] == w.gossipPartByNode[of] && (i == of || len(w.nodes) < 3 || w.nodes[i].machine != nil) {
			set.Members = append(set.Members, facts.Member{
				Name: modelName(i), Nonce: uint64(i + 1), MACs: []facts.MAC{modelMAC(i)},
			})
		}
	}
	return MembersChanged{set}
}

// stepNode steps a node and performs its effects.
func (w *model) stepNode(n *modelNode, inputs ...Input) {
	if n.machine == nil {
		return
	}
	if w.currentSlot < n.pausedUntil {
		n.inbox = append(n.inbox, inputs...)
		return
	}
	inputs, n.inbox = append(n.inbox, inputs...), nil
	effects := n.machine.Step(w.currentTime(), inputs...)
	n.answerDeadline = n.machine.LeaseDeadline(w.currentTime())
	for _, e := range effects {
		w.performEffect(n, e)
	}
	n.answerDeadline, n.nextTick = n.machine.LeaseDeadline(w.currentTime()), n.machine.NextDeadline()
}

func (w *model) performEffect(n *modelNode, e Effect) {
	switch e := e.(type) {
	case HoldAddress:
		n.heldAddresses[e.Binding.Address] = true
	case DropAddress:
		delete(n.heldAddresses, e.Address)
	case RepeatAnnouncement:
		w.hearAnnouncement(n, e.Address)
	case SendMessage:
		to := int(e.To[0] - 'a')
		if w.gossipPartByNode[to] == w.gossipPartByNode[n.id] {
			w.messages = append(w.messages, modelMessage{from: n.id, to: to, dueSlot: w.currentSlot + 1, payload: e.Payload})
		}
	case AcquireProbe:
		w.openProbes = append(w.openProbes, &modelProbe{
			node: n.id, id: e.ID, address: e.Address, dueSlot: w.currentSlot + 6, frameSlots: []int{w.currentSlot, w.currentSlot + 3},
		})
	case LivenessProbe:
		w.openProbes = append(w.openProbes, &modelProbe{node: n.id, id: e.ID, dueSlot: w.currentSlot + 1})
	case Event:
		w.trace = append(w.trace, fmt.Sprintf("%d ms: %s", w.currentSlot*10, e.Text))
		if e.Kind != EventAddressTaken {
			return
		}
		i := slices.Index(modelAddresses, e.Address)
		w.takeCounts[i]++
		for _, o := range w.nodes {
			if o != n && e.Reason != reasonHandedOver && w.isAnswering(o, e.Address) && w.lanPartByNode[o.id] == w.lanPartByNode[n.id] {
				w.failRun("%s took %s while %s answered for it", modelName(n.id), e.Address, modelName(o.id))
			}
		}
	}
}

func (w *model) failRun(format string, args ...any) {
	w.t.Helper()
	for _, line := range w.trace {
		w.t.Log(line)
	}
	w.t.Fatalf("choices %v: %d ms: %s", w.choices.chosenOptions, w.currentSlot*10, fmt.Sprintf(format, args...))
}

func (w *model) isAnswering(n *modelNode, a netip.Addr) bool {
	return n.machine != nil && n.heldAddresses[a] && w.currentSlot >= n.pausedUntil && w.currentTime().Before(n.answerDeadline)
}

// hearAnnouncement delivers an announcement to nodes that probe for the address or hold it.
func (w *model) hearAnnouncement(n *modelNode, a netip.Addr) {
	for _, q := range w.openProbes {
		if q.node != n.id && q.address == a && w.lanPartByNode[q.node] == w.lanPartByNode[n.id] {
			q.answers = append(q.answers, modelMAC(n.id))
		}
	}
	for _, o := range w.nodes {
		if o != n && o.heldAddresses[a] && w.lanPartByNode[o.id] == w.lanPartByNode[n.id] {
			w.stepNode(o, ConflictDetected{facts.Conflict{Address: a, MAC: modelMAC(n.id)}})
		}
	}
}

// deliverDueMessages delivers the messages of this slot. The order is a choice when one node gets
// several.
func (w *model) deliverDueMessages() {
	var due []modelMessage
	w.messages = slices.DeleteFunc(w.messages, func(m modelMessage) bool {
		if m.dueSlot <= w.currentSlot {
			due = append(due, m)
		}
		return m.dueSlot <= w.currentSlot
	})
	for to := range w.nodes {
		var free []modelMessage
		for _, m := range due {
			switch {
			case m.to != to:
			case m.payload[1] == kindBeacon || m.payload[1] == kindBeaconAck:
				w.deliverMessage(m)
			default:
				free = append(free, m)
			}
		}
		for len(free) > 0 {
			i := 0
			if w.swapsLeft > 0 {
				if i = w.choices.choose(len(free)); i > 0 {
					w.swapsLeft--
				}
			}
			m := free[i]
			free = slices.Delete(free, i, i+1)
			ways := []string{"arrives"}
			if w.lossesLeft > 0 {
				ways = append(ways, "is lost")
			}
			if w.delaysLeft > 0 && !m.isDelayed {
				ways = append(ways, "is late")
			}
			switch ways[w.choices.choose(len(ways))] {
			case "arrives":
				w.deliverMessage(m)
			case "is lost":
				w.lossesLeft--
			case "is late":
				w.delaysLeft--
				m.isDelayed, m.dueSlot = true, w.currentSlot+2
				w.messages = append(w.messages, m)
			}
		}
	}
}

func (w *model) deliverMessage(m modelMessage) {
	if w.gossipPartByNode[m.from] == w.gossipPartByNode[m.to] {
		w.stepNode(w.nodes[m.to], MessageReceived{From: modelName(m.from), Payload: m.payload})
	}
}

// advanceProbes sends the frames of open probes and delivers the results.
func (w *model) advanceProbes() {
	var done []*modelProbe
	for _, q := range w.openProbes {
		for _, o := range w.nodes {
			if o.id == q.node || w.lanPartByNode[o.id] != w.lanPartByNode[q.node] || !slices.Contains(q.frameSlots, w.currentSlot) {
				continue
			}
			if w.isAnswering(o, q.address) {
				q.answers = append(q.answers, modelMAC(o.id))
			}
			for _, r := range w.openProbes {
				if r.node == o.id && r.address == q.address {
					r.rivals = append(r.rivals, modelMAC(q.node))
				}
			}
		}
		if q.dueSlot <= w.currentSlot {
			done = append(done, q)
		}
	}
	for _, q := range done {
		w.openProbes = slices.DeleteFunc(w.openProbes, func(o *modelProbe) bool { return o == q })
		r := facts.ProbeResult{ID: q.id, Address: q.address, AnsweringMACs: q.answers, RivalMACs: q.rivals}
		if !q.address.IsValid() && w.lanPartByNode[q.node] == 0 { // the gateway is in part 0
			r.AnsweringMACs = []facts.MAC{{0xfe}}
		}
		w.stepNode(w.nodes[q.node], ProbeFinished{r})
	}
}

// checkOneAnswererPerEpoch fails if two nodes answer for an address in one epoch.
func (w *model) checkOneAnswererPerEpoch() {
	for _, a := range modelAddresses {
		for _, n := range w.nodes {
			if !w.isAnswering(n, a) {
				continue
			}
			term := modelTerm{a, n.machine.addressesByIP[a].claim.Epoch, w.lanPartByNode[n.id]}
			if other, ok := w.answererByTerm[term]; ok && other != n.id {
				w.failRun("%s and %s answered for %s in epoch %d", modelName(other), modelName(n.id), a, term.epoch)
			}
			w.answererByTerm[term] = n.id
		}
	}
}

// runSlots runs the given number of slots. It ends early in a state that an earlier run has
// reached.
func (w *model) runSlots(slots int) {
	for end := w.currentSlot + slots; w.currentSlot < end && !w.reachedSeenState; {
		if w.pendingFault != nil && w.currentSlot%4 == 0 && (w.choices.choose(2) == 0 || w.currentSlot >= w.lastFaultSlot) {
			w.pendingFault(w)
			w.pendingFault = nil
		}
		w.deliverDueMessages()
		w.advanceProbes()
		for _, n := range w.nodes {
			if n.machine != nil && w.currentSlot >= n.pausedUntil && !w.currentTime().Before(n.nextTick) {
				w.stepNode(n, TimePassed{})
			}
		}
		w.checkOneAnswererPerEpoch()
		w.currentSlot++
		if w.seenStates != nil {
			h := w.stateFingerprint()
			w.reachedSeenState = w.seenStates[h] && w.choices.depth == len(w.choices.chosenOptions)
			w.seenStates[h] = true
		}
	}
}

// stopChoices ends losses, delays and reordering.
func (w *model) stopChoices() { w.lossesLeft, w.delaysLeft, w.swapsLeft, w.seenStates = 0, 0, 0, nil }

// stateFingerprint is a hash of all that decides what happens next.
func (w *model) stateFingerprint() uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, w.currentSlot, w.lossesLeft, w.delaysLeft, w.swapsLeft, w.pendingFault == nil, w.gossipPartByNode, w.lanPartByNode, w.takeCounts)
	for _, n := range w.nodes {
		fmt.Fprint(h, n.pausedUntil, len(n.heldAddresses), n.answerDeadline.UnixNano(), len(n.inbox))
		if n.machine != nil {
			n.machine.writeModelState(h)
		}
	}
	for _, m := range w.messages {
		fmt.Fprint(h, m.from, m.to, m.dueSlot, m.isDelayed, m.payload)
	}
	for _, q := range w.openProbes {
		fmt.Fprint(h, q.node, q.dueSlot, q.id, q.address, q.answers, q.rivals)
	}
	return h.Sum64()
}
