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

// maxRunsPerModelScenario bounds the runs of each scenario. The target "make model" removes the
// bound.
var maxRunsPerModelScenario = func() int {
	if n, err := strconv.Atoi(os.Getenv("GANTRY_MODEL_RUNS")); err == nil {
		return n
	}
	return 150
}()

// chooseMaxModelRuns returns maxRunsPerModelScenario, or less in a short run of the tests.
func chooseMaxModelRuns() int {
	if testing.Short() {
		return 20
	}
	return maxRunsPerModelScenario
}

// modelTimeSlot is the unit of time of the model.
const modelTimeSlot = 10 * time.Millisecond

// exhaustiveChooser takes its choices from a path, and the first choice where the path ends.
type exhaustiveChooser struct {
	chosenOptions, optionCounts []int
	nextChoiceIndex             int
}

func (c *exhaustiveChooser) choose(n int) int {
	if n <= 1 {
		return 0
	}
	if c.nextChoiceIndex == len(c.chosenOptions) {
		c.chosenOptions, c.optionCounts = append(c.chosenOptions, 0), append(c.optionCounts, n)
	}
	c.nextChoiceIndex++
	return c.chosenOptions[c.nextChoiceIndex-1]
}

// nextPath moves to the next path. It returns false when there is none.
func (c *exhaustiveChooser) nextPath() bool {
	c.nextChoiceIndex = 0
	for i := len(c.chosenOptions) - 1; i >= 0; i-- {
		if c.chosenOptions[i]+1 < c.optionCounts[i] {
			c.chosenOptions[i]++
			c.chosenOptions, c.optionCounts = c.chosenOptions[:i+1], c.optionCounts[:i+1]
			return true
		}
	}
	return false
}

// modelRun is one run.
type modelRun struct {
	t            *testing.T
	choiceSource *exhaustiveChooser
	currentSlot  int
	nodes        []*modelNode
	// messages are the messages under way, openProbes the probes without a result.
	messages   []modelMessage
	openProbes []*modelProbe
	// lossesLeft, delaysLeft and messageReorderingsLeft are how many messages the model may still
	// lose, delay or reorder.
	lossesLeft, delaysLeft, messageReorderingsLeft int
	pendingFault                                   func(*modelRun) // happens once, at a chosen slot
	maxFaultSlot                                   int
	gossipPartitionByNode, lanPartitionByNode      [3]int
	isDeafByNode                                   [3]bool // no message reaches the node
	// isPathCut[x][y] says that no message of x reaches y.
	isPathCut [3][3]bool
	wireCheck intent.WireCheckMode
	// keptAddresses are addresses that node keeperIndex must hold in the end.
	keptAddresses map[netip.Addr]bool
	keeperIndex   int
	// states that any run has reached
	seenStates       map[uint64]bool
	reachedSeenState bool
	// the node that answered for an address in an epoch
	answererByAddressInEpoch map[addressInEpoch]int
	takeCountByAddress       [2]int
	trace                    []string
}

// addressInEpoch is an address in one epoch and in one part of the LAN.
type addressInEpoch struct {
	address      netip.Addr
	epoch        uint64
	lanPartition int
}

type modelNode struct {
	id               int
	machine          *Machine
	heldAddresses    map[netip.Addr]bool
	answerDeadline   time.Time
	pausedUntilSlot  int // slot at which the pause ends
	inbox            []Input
	nextStepDeadline time.Time
	isShuttingDown   bool
}

type modelMessage struct {
	from, to, dueSlot int
	payload           []byte
	isDelayed         bool
}

type modelProbe struct {
	proberIndex, dueSlot           int
	id                             uint64
	address                        netip.Addr // invalid for a reachability probe
	targetMAC                      facts.MAC  // the only host that is asked, if not zero
	slotsOfProbeFrames             []int
	answeringMACs, rivalProberMACs []facts.MAC
}

var modelAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}

func modelNodeName(i int) string { return string(rune('a' + i)) }

func modelNodeMAC(i int) facts.MAC { return facts.MAC{2, 0, 0, 0, 0, byte(i)} }

func (w *modelRun) currentTime() time.Time {
	return testStart.Add(time.Duration(w.currentSlot) * modelTimeSlot)
}

// startNodes starts the nodes. They know each other and the bids.
func (w *modelRun) startNodes() {
	w.answererByAddressInEpoch = map[addressInEpoch]int{}
	candidates := intent.NewCandidates(map[string]int{"a": 0, "b": 0, "c": 0})
	for i := range 3 {
		n := &modelNode{
			id: i, heldAddresses: map[netip.Addr]bool{},
			machine: NewMachine(modelNodeName(i), uint64(i+1), DefaultTiming(), w.currentTime()),
		}
		w.nodes = append(w.nodes, n)
	}
	for _, n := range w.nodes {
		bids := BidsChanged{}
		for _, a := range modelAddresses {
			bids.Bids = append(bids.Bids, intent.Bid{Address: a, Candidates: candidates, OwnLinkIndexes: []int{1}, WireCheck: w.wireCheck})
		}
		w.stepNode(n, bids, w.gossipMembersSeenBy(n.id), RemoteStateReceived{appendClaims(encodeMessageHeader(NewestMessageFormat, kindClaims), nil)})
	}
}

func (w *modelRun) gossipMembersSeenBy(of int) MembersChanged {
	var set facts.MemberSet
	for i := range 3 {
		if w.gossipPartitionByNode[i] == w.gossipPartitionByNode[of] && (i == of || len(w.nodes) < 3 || w.nodes[i].machine != nil) {
			set.Members = append(set.Members, facts.Member{
				Name: modelNodeName(i), RunNonce: uint64(i + 1), LinkMACs: []facts.MAC{modelNodeMAC(i)}, MaxMessageFormat: NewestMessageFormat,
			})
		}
	}
	return MembersChanged{set}
}

// stepNode steps a node and performs its effects.
func (w *modelRun) stepNode(n *modelNode, inputs ...Input) {
	if n.machine == nil {
		return
	}
	if w.currentSlot < n.pausedUntilSlot {
		n.inbox = append(n.inbox, inputs...)
		return
	}
	inputs, n.inbox = append(n.inbox, inputs...), nil
	effects := n.machine.Step(w.currentTime(), inputs...)
	n.answerDeadline = n.machine.LeaseDeadline(w.currentTime())
	for _, e := range effects {
		w.performEffect(n, e)
	}
	n.answerDeadline, n.nextStepDeadline = n.machine.LeaseDeadline(w.currentTime()), n.machine.NextDeadline()
}

func (w *modelRun) performEffect(n *modelNode, e Effect) {
	switch e := e.(type) {
	case HoldAddress:
		n.heldAddresses[e.Binding.Address] = true
	case DropAddress:
		delete(n.heldAddresses, e.Address)
	case RepeatAnnouncement:
		w.deliverAnnouncementToProbersAndHolders(n, e.Address)
	case SendMessage:
		to := int(e.To[0] - 'a')
		if w.gossipPartitionByNode[to] == w.gossipPartitionByNode[n.id] {
			w.messages = append(w.messages, modelMessage{from: n.id, to: to, dueSlot: w.currentSlot + 1, payload: e.Payload})
		}
	case AcquireProbe:
		w.openProbes = append(w.openProbes, &modelProbe{
			proberIndex: n.id, id: e.ID, address: e.Address, targetMAC: e.TargetMAC, dueSlot: w.currentSlot + 6, slotsOfProbeFrames: []int{w.currentSlot, w.currentSlot + 3},
		})
	case ReachabilityProbe:
		w.openProbes = append(w.openProbes, &modelProbe{proberIndex: n.id, id: e.ID, dueSlot: w.currentSlot + 1})
	case Event:
		w.trace = append(w.trace, fmt.Sprintf("%d ms: %s", w.currentSlot*10, e.Text))
		if e.Kind != EventAddressTaken {
			return
		}
		i := slices.Index(modelAddresses, e.Address)
		w.takeCountByAddress[i]++
		for _, o := range w.nodes {
			if o != n && e.Reason != reasonHandedOver && w.isAnswering(o, e.Address) && w.lanPartitionByNode[o.id] == w.lanPartitionByNode[n.id] {
				w.failRun("%s took %s while %s answered for it", modelNodeName(n.id), e.Address, modelNodeName(o.id))
			}
		}
	}
}

func (w *modelRun) failRun(format string, args ...any) {
	w.t.Helper()
	for _, line := range w.trace {
		w.t.Log(line)
	}
	w.t.Fatalf("choices %v: %d ms: %s", w.choiceSource.chosenOptions, w.currentSlot*10, fmt.Sprintf(format, args...))
}

func (w *modelRun) isAnswering(n *modelNode, a netip.Addr) bool {
	return n.machine != nil && n.heldAddresses[a] && w.currentSlot >= n.pausedUntilSlot && w.currentTime().Before(n.answerDeadline)
}

// deliverAnnouncementToProbersAndHolders delivers an announcement to nodes that probe for the
// address or hold it.
func (w *modelRun) deliverAnnouncementToProbersAndHolders(n *modelNode, a netip.Addr) {
	for _, q := range w.openProbes {
		if q.proberIndex != n.id && q.address == a && w.lanPartitionByNode[q.proberIndex] == w.lanPartitionByNode[n.id] {
			q.answeringMACs = append(q.answeringMACs, modelNodeMAC(n.id))
		}
	}
	for _, o := range w.nodes {
		if o != n && o.heldAddresses[a] && w.lanPartitionByNode[o.id] == w.lanPartitionByNode[n.id] {
			w.stepNode(o, ConflictDetected{facts.Conflict{Address: a, ForeignMAC: modelNodeMAC(n.id)}})
		}
	}
}

// deliverDueMessages delivers the messages of this slot. The order is a choice when one node gets
// several.
func (w *modelRun) deliverDueMessages() {
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
			if w.messageReorderingsLeft > 0 {
				if i = w.choiceSource.choose(len(free)); i > 0 {
					w.messageReorderingsLeft--
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
			switch ways[w.choiceSource.choose(len(ways))] {
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

func (w *modelRun) deliverMessage(m modelMessage) {
	if w.gossipPartitionByNode[m.from] == w.gossipPartitionByNode[m.to] && !w.isDeafByNode[m.to] && !w.isPathCut[m.from][m.to] {
		w.stepNode(w.nodes[m.to], MessageReceived{From: modelNodeName(m.from), Payload: m.payload})
	}
}

// advanceProbes sends the frames of open probes and delivers the results.
func (w *modelRun) advanceProbes() {
	var done []*modelProbe
	for _, q := range w.openProbes {
		for _, o := range w.nodes {
			if o.id == q.proberIndex || w.lanPartitionByNode[o.id] != w.lanPartitionByNode[q.proberIndex] || !slices.Contains(q.slotsOfProbeFrames, w.currentSlot) {
				continue
			}
			if w.isAnswering(o, q.address) && (q.targetMAC == facts.MAC{} || q.targetMAC == modelNodeMAC(o.id)) {
				q.answeringMACs = append(q.answeringMACs, modelNodeMAC(o.id))
			}
			for _, r := range w.openProbes {
				if r.proberIndex == o.id && r.address == q.address {
					r.rivalProberMACs = append(r.rivalProberMACs, modelNodeMAC(q.proberIndex))
				}
			}
		}
		if q.dueSlot <= w.currentSlot {
			done = append(done, q)
		}
	}
	for _, q := range done {
		w.openProbes = slices.DeleteFunc(w.openProbes, func(o *modelProbe) bool { return o == q })
		r := facts.ProbeResult{ID: q.id, Address: q.address, AnsweringMACs: q.answeringMACs, RivalProberMACs: q.rivalProberMACs}
		// the gateway is in part 0
		if !q.address.IsValid() && w.lanPartitionByNode[q.proberIndex] == 0 {
			r.AnsweringMACs = []facts.MAC{{0xfe}}
		}
		w.stepNode(w.nodes[q.proberIndex], ProbeFinished{r})
	}
}

// checkOneAnswererPerEpoch fails if two nodes answer for an address in one epoch.
func (w *modelRun) checkOneAnswererPerEpoch() {
	for _, a := range modelAddresses {
		for _, n := range w.nodes {
			if !w.isAnswering(n, a) {
				continue
			}
			term := addressInEpoch{a, n.machine.addressesByIP[a].highestKnownClaim.Epoch, w.lanPartitionByNode[n.id]}
			if other, ok := w.answererByAddressInEpoch[term]; ok && other != n.id {
				w.failRun("%s and %s answered for %s in epoch %d", modelNodeName(other), modelNodeName(n.id), a, term.epoch)
			}
			w.answererByAddressInEpoch[term] = n.id
		}
	}
}

// runSlots runs the given number of slots. It ends early in a state that an earlier run has
// reached.
func (w *modelRun) runSlots(slots int) {
	for end := w.currentSlot + slots; w.currentSlot < end && !w.reachedSeenState; {
		if w.pendingFault != nil && w.currentSlot%4 == 0 && (w.choiceSource.choose(2) == 0 || w.currentSlot >= w.maxFaultSlot) {
			w.pendingFault(w)
			w.pendingFault = nil
		}
		w.deliverDueMessages()
		w.advanceProbes()
		for _, n := range w.nodes {
			if n.machine != nil && w.currentSlot >= n.pausedUntilSlot && !w.currentTime().Before(n.nextStepDeadline) {
				w.stepNode(n, TimePassed{})
			}
		}
		w.checkOneAnswererPerEpoch()
		w.currentSlot++
		if w.seenStates != nil {
			h := w.stateFingerprint()
			w.reachedSeenState = w.seenStates[h] && w.choiceSource.nextChoiceIndex == len(w.choiceSource.chosenOptions)
			w.seenStates[h] = true
		}
	}
}

// endLossesDelaysAndReordering ends losses, delays and reordering.
func (w *modelRun) endLossesDelaysAndReordering() {
	w.lossesLeft, w.delaysLeft, w.messageReorderingsLeft, w.seenStates = 0, 0, 0, nil
}

// stateFingerprint is a hash of all that decides what happens next.
func (w *modelRun) stateFingerprint() uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, w.currentSlot, w.lossesLeft, w.delaysLeft, w.messageReorderingsLeft, w.pendingFault == nil, w.gossipPartitionByNode, w.lanPartitionByNode, w.isDeafByNode, w.isPathCut, w.takeCountByAddress)
	for _, n := range w.nodes {
		fmt.Fprint(h, n.pausedUntilSlot, len(n.heldAddresses), n.answerDeadline.UnixNano(), len(n.inbox))
		if n.machine != nil {
			n.machine.writeStateForFingerprint(h)
		}
	}
	for _, m := range w.messages {
		fmt.Fprint(h, m.from, m.to, m.dueSlot, m.isDelayed, m.payload)
	}
	for _, q := range w.openProbes {
		fmt.Fprint(h, q.proberIndex, q.dueSlot, q.id, q.address, q.answeringMACs, q.rivalProberMACs)
	}
	return h.Sum64()
}
