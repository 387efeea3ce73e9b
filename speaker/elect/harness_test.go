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

// clusterSimulation is a segment with speakers in virtual time. Each message and each probe is an
// event in a queue, and a seed decides what is random. Gossip and the segment can be cut
// separately.
type clusterSimulation struct {
	t                     testing.TB
	random                *rand.Rand
	now                   time.Time
	nodesByName           map[string]*simNode
	nodeNames             []string
	eventQueue            simEventQueue
	scheduledEventCount   int
	messageLossRate       float64
	maxMessageDelay       time.Duration // of one message
	timerLateness         time.Duration // of each timer of a node
	addresses             []netip.Addr
	preferenceScoreByNode map[string]int
	allowRebalance        bool
	wireCheck             intent.WireCheckMode
	hasEarlierVersions    bool // each second node reads only the oldest message format
	nodesAbleToServe      map[string]bool
	addressesPerService   int // so many consecutive addresses belong to one Service
	// gossipPartitionByNode and lanPartitionByNode are the part of the network that a node is in.
	// Nodes in the same part reach each other. The gateway is in part 0 of the LAN.
	gossipPartitionByNode, lanPartitionByNode map[string]int
	// what the network answers to broadcast requests
	fabricAnswerMACByAddress map[netip.Addr]facts.MAC
	removedHostMAC           facts.MAC
	deafNodes                map[string]bool // no message reaches them
	// doKernelsQueueDuringCuts: what a node sends during a cut waits in messagesHeldBack, and
	// arrives when the cut heals. A kernel does so while it asks for the Ethernet address of the
	// other node.
	doKernelsQueueDuringCuts      bool
	messagesHeldBack              []func()
	maxSentMessagesPerMillisecond int
	processors                    *busyProcessors // nil: a step takes no time
	messageCount                  int
	acquireProbeCount             int
	openProbes                    []*simProbe
	addressTakeCount              int             // how often any address was taken
	takeoverDelays                []time.Duration // of all takeovers
	eventCountByKind              map[string]int  // by kind
	logEffects                    bool            // log the effects
}

// simProbe is a probe without a result.
type simProbe struct {
	prober                         *simNode
	address                        netip.Addr
	answeringMACs, rivalProberMACs []facts.MAC
}

type simEvent struct {
	at       time.Time
	sequence int
	perform  func()
}

type simEventQueue []simEvent

func (h simEventQueue) Len() int { return len(h) }
func (h simEventQueue) Less(i, j int) bool {
	if h[i].at.Equal(h[j].at) {
		return h[i].sequence < h[j].sequence
	}
	return h[i].at.Before(h[j].at)
}
func (h simEventQueue) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *simEventQueue) Push(x any)   { *h = append(*h, x.(simEvent)) }
func (h *simEventQueue) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// simNode is a speaker. It is off when machine is nil.
type simNode struct {
	name                  string
	mac                   facts.MAC
	nonce                 uint64
	machine               *Machine
	heldAddresses         map[netip.Addr]bool
	answerDeadline        time.Time
	isPaused              bool
	clock                 simClock
	inputsWhilePaused     []Input
	timerID               int
	handoverFinished      bool
	hasServingEndpoint    bool
	inEndpointGracePeriod bool
	// isServiceProxyLate: it is a candidate, and its service proxy does not know the endpoints of
	// the addresses that it does not hold.
	isServiceProxyLate bool
	// urgentMessages that the node has not sent yet
	urgentMessages, normalPriorityMessages, bulkMessages []SendMessage
	isSending                                            bool
	isLeaseExpired                                       bool // after the last step
	// acquire probes in the present batch, when it is sent, and results of one time
	probesInBatch         int
	probeBatchAt          time.Time
	probeResultsToDeliver []Input
}

func newClusterSimulation(t testing.TB, seed int64, n, addresses int) *clusterSimulation {
	w := &clusterSimulation{
		t: t, random: rand.New(rand.NewSource(seed)), now: simulationStart, nodesByName: map[string]*simNode{},
		gossipPartitionByNode: map[string]int{}, lanPartitionByNode: map[string]int{}, eventCountByKind: map[string]int{},
		maxMessageDelay: 3 * time.Millisecond, hasEarlierVersions: seed%4 == 3,
	}
	a := netip.MustParseAddr("192.0.2.1")
	for range addresses {
		w.addresses = append(w.addresses, a)
		a = a.Next()
	}
	for i, clock := range newDifferentClocks(seed, n) {
		name := fmt.Sprintf("n%03d", i+1)
		w.nodeNames = append(w.nodeNames, name)
		w.nodesByName[name] = &simNode{name: name, mac: facts.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}, hasServingEndpoint: true, clock: clock}
	}
	return w
}

func (w *clusterSimulation) scheduleEvent(d time.Duration, do func()) {
	w.scheduledEventCount++
	heap.Push(&w.eventQueue, simEvent{w.now.Add(d), w.scheduledEventCount, do})
}

// startAllSpeakers starts all speakers.
func (w *clusterSimulation) startAllSpeakers() {
	for _, n := range w.nodeNames {
		w.startProcessOutsideGossip(n)
	}
	w.deliverMembers()
	w.deliverBids()
	for i := range w.nodeNames {
		w.exchangeStates(w.nodeNames[i], w.nodeNames[(i+1)%len(w.nodeNames)])
	}
}

func (w *clusterSimulation) startProcessOutsideGossip(name string) {
	n := w.nodesByName[name]
	*n = simNode{
		name: name, mac: n.mac, hasServingEndpoint: n.hasServingEndpoint, nonce: w.random.Uint64(), clock: n.clock,
		heldAddresses: map[netip.Addr]bool{},
	}
	n.machine = NewMachine(name, n.nonce, DefaultTiming(), w.clockOf(n))
}

// startSpeaker starts a speaker with a new nonce, which joins the gossip.
func (w *clusterSimulation) startSpeaker(name string) {
	w.startProcessOutsideGossip(name)
	w.deliverBids()
	w.deliverMembers()
	for _, other := range w.nodeNames {
		if other != name && w.nodesByName[other].machine != nil && w.canGossip(other, name) {
			w.exchangeStates(name, other)
			break
		}
	}
}

// exchangeStates is a full exchange of state, as after each join.
func (w *clusterSimulation) exchangeStates(x, y string) {
	a, b := w.nodesByName[x], w.nodesByName[y]
	if a.machine == nil || b.machine == nil || x == y || !w.canGossip(x, y) {
		return
	}
	of, other := a.machine.EncodeAllClaims(), b.machine.EncodeAllClaims()
	w.stepNode(a, RemoteStateReceived{other})
	w.stepNode(b, RemoteStateReceived{of})
}

// killSpeaker stops a speaker without a message. Gossip notices it 5 s later.
func (w *clusterSimulation) killSpeaker(name string) {
	w.nodesByName[name].machine, w.nodesByName[name].heldAddresses = nil, nil
	w.scheduleEvent(5*time.Second, w.deliverMembers)
}

// deliverMembers delivers the live members to all speakers, as gossip sees them.
func (w *clusterSimulation) deliverMembers() {
	for _, name := range w.nodeNames {
		n := w.nodesByName[name]
		if n.machine == nil {
			continue
		}
		var set facts.MemberSet
		for i, other := range w.nodeNames {
			format := byte(NewestMessageFormat)
			if w.hasEarlierVersions && i%2 == 0 {
				format = oldestMessageFormat
			}
			if o := w.nodesByName[other]; o.machine != nil && w.canGossip(name, other) {
				set.Members = append(set.Members, facts.Member{Name: other, RunNonce: o.nonce, LinkMACs: []facts.MAC{o.mac}, MaxMessageFormat: format})
			}
		}
		w.stepNode(n, MembersChanged{set})
	}
}

// deliverBids delivers the bids to all speakers.
func (w *clusterSimulation) deliverBids() {
	for _, name := range w.nodeNames {
		w.deliverBidsToNode(name)
	}
}

// deliverBidsToNode delivers the bids to one speaker.
func (w *clusterSimulation) deliverBidsToNode(name string) {
	n := w.nodesByName[name]
	if n.machine == nil {
		return
	}
	able := map[string]int{}
	for _, name := range w.nodeNames {
		if w.nodesByName[name].hasServingEndpoint {
			able[name] = w.preferenceScoreByNode[name]
		}
	}
	candidates := intent.NewCandidates(able)
	var in BidsChanged
	for i, a := range w.addresses {
		b := intent.Bid{Address: a, Candidates: candidates, MayRebalance: w.allowRebalance, WireCheck: w.wireCheck}
		for j := i - i%max(w.addressesPerService, 1); w.addressesPerService > 0 && j < i-i%w.addressesPerService+w.addressesPerService; j++ {
			if j != i {
				b.SiblingAddresses = append(b.SiblingAddresses, w.addresses[j])
			}
		}
		b.InEndpointGracePeriod = n.inEndpointGracePeriod
		if n.hasServingEndpoint && (w.nodesAbleToServe == nil || w.nodesAbleToServe[name]) && (!n.isServiceProxyLate || slices.Contains(w.answeringNodes(a), name)) {
			b.OwnLinkIndexes = []int{1}
		}
		in.Bids = append(in.Bids, b)
	}
	w.stepNode(n, in)
}

func (w *clusterSimulation) canGossip(a, b string) bool {
	return w.gossipPartitionByNode[a] == w.gossipPartitionByNode[b]
}

func (w *clusterSimulation) canHearOnLAN(a, b string) bool {
	return w.lanPartitionByNode[a] == w.lanPartitionByNode[b]
}

// cutOffNodes separates some nodes from all others, in gossip and on the segment.
func (w *clusterSimulation) cutOffNodes(part int, names ...string) {
	for _, n := range names {
		w.gossipPartitionByNode[n], w.lanPartitionByNode[n] = part, part
	}
	w.scheduleEvent(5*time.Second, w.deliverMembers)
}

// blockGossipOf separates some nodes from all others in gossip only.
func (w *clusterSimulation) blockGossipOf(part int, names ...string) {
	for _, n := range names {
		w.gossipPartitionByNode[n] = part
	}
	w.scheduleEvent(5*time.Second, w.deliverMembers)
}

// healCuts ends all cuts. A while later the nodes exchange their states. Later still all are
// members again, since a node declared dead has to refute that first.
func (w *clusterSimulation) healCuts() {
	w.gossipPartitionByNode, w.lanPartitionByNode = map[string]int{}, map[string]int{}
	for i, deliver := range w.messagesHeldBack {
		w.scheduleEvent(time.Duration(i)*10*time.Microsecond, deliver)
	}
	w.messagesHeldBack = nil
	w.scheduleEvent(time.Duration(50+w.random.Intn(350))*time.Millisecond, func() {
		for i, name := range w.nodeNames {
			w.exchangeStates(name, w.nodeNames[(i+1)%len(w.nodeNames)])
		}
		w.scheduleEvent(time.Duration(w.random.Intn(300))*time.Millisecond, w.deliverMembers)
	})
}

// pauseSpeaker stops a speaker's process for a while. Its inputs wait. Afterwards they come
// together or one by one.
func (w *clusterSimulation) pauseSpeaker(name string, d time.Duration) {
	n := w.nodesByName[name]
	n.isPaused = true
	oneByOne := w.random.Intn(2) == 0
	w.scheduleEvent(d, func() {
		n.isPaused = false
		inbox := append(n.inputsWhilePaused, TimePassed{})
		n.inputsWhilePaused = nil
		if !oneByOne {
			w.stepNode(n, inbox...)
			return
		}
		for _, in := range inbox {
			w.scheduleEvent(0, func() { w.stepNode(n, in) })
		}
	})
}

// stepNode steps a machine and performs its effects.
func (w *clusterSimulation) stepNode(n *simNode, inputs ...Input) {
	if n.machine == nil {
		return
	}
	if n.isPaused {
		n.inputsWhilePaused = append(n.inputsWhilePaused, inputs...)
		return
	}
	if w.processors != nil {
		w.processors.stepNode(n, inputs)
		return
	}
	w.performEffectsOfStep(n, n.machine.Step(w.clockOf(n), inputs...))
}

// performEffectsOfStep performs the effects of a step.
func (w *clusterSimulation) performEffectsOfStep(n *simNode, effects []Effect) {
	for _, e := range effects {
		if _, send := e.(SendMessage); w.logEffects && !send {
			w.t.Logf("%v %s: %T%+v", w.now.Sub(simulationStart), n.name, e, e)
		}
		w.performEffect(n, e)
	}
	if w.logEffects && n.isLeaseExpired != n.machine.lease.isExpired {
		w.t.Logf("%v %s: lease expired: %v", w.now.Sub(simulationStart), n.name, n.machine.lease.isExpired)
	}
	n.isLeaseExpired = n.machine.lease.isExpired
	n.answerDeadline = n.machine.LeaseDeadline(w.clockOf(n))
	n.timerID++
	id, m := n.timerID, n.machine
	w.scheduleEvent(n.clock.convertDelay(max(n.machine.NextDeadline().Sub(w.clockOf(n)), 0))+w.timerLateness, func() {
		if n.timerID == id && n.machine == m && !n.isPaused {
			w.stepNode(n, TimePassed{})
		}
	})
}

func (w *clusterSimulation) performEffect(n *simNode, e Effect) {
	later := func(d time.Duration, to *simNode, in func() Input) {
		m := to.machine
		w.scheduleEvent(d, func() {
			if to.machine == m {
				w.stepNode(to, in())
			}
		})
	}
	switch e := e.(type) {
	case HoldAddress:
		n.heldAddresses[e.Binding.Address] = true
		if !e.Binding.IsUnannounced {
			w.deliverAnnouncementOnLAN(n, e.Binding.Address)
		}
	case RepeatAnnouncement:
		w.deliverAnnouncementOnLAN(n, e.Address)
	case DropAddress:
		delete(n.heldAddresses, e.Address)
	case SendMessage:
		w.messageCount++
		if w.maxSentMessagesPerMillisecond > 0 {
			w.queueMessage(n, e)
			return
		}
		w.transmitMessage(n, e)
	case AcquireProbe:
		w.performAcquireProbe(n, e)
	case ReachabilityProbe:
		r := facts.ProbeResult{ID: e.ID}
		wait := time.Duration(e.FramesPerTarget) * e.FrameInterval
		if !w.isIsolatedOnLAN(n.name) && (!e.OnlyGateways || w.lanPartitionByNode[n.name] == 0) {
			r.AnsweringMACs, wait = []facts.MAC{{2, 0, 0, 0, 0xff, 0xfe}}, time.Millisecond
		}
		later(wait, n, func() Input { return ProbeFinished{r} })
	case ShutdownHandoverFinished:
		n.handoverFinished = true
	case Event:
		w.eventCountByKind[e.Kind]++
		if e.Kind == EventAddressTaken {
			w.addressTakeCount++
			if e.TakeoverDelay > 0 {
				w.takeoverDelays = append(w.takeoverDelays, e.TakeoverDelay)
			}
		}
	}
}

// isAnswering reports whether the node would answer for the address now.
func (w *clusterSimulation) isAnswering(n *simNode, a netip.Addr) bool {
	return n.machine != nil && n.heldAddresses[a] && !n.isPaused && w.clockOf(n).Before(n.answerDeadline)
}

// answeringNodes returns the nodes that would answer for the address now.
func (w *clusterSimulation) answeringNodes(a netip.Addr) []string {
	var out []string
	for _, name := range w.nodeNames {
		if w.isAnswering(w.nodesByName[name], a) {
			out = append(out, name)
		}
	}
	return out
}

// runSimulationFor lets time pass. It calls check after each event.
func (w *clusterSimulation) runSimulationFor(d time.Duration, check func()) {
	end := w.now.Add(d)
	for len(w.eventQueue) > 0 && !w.eventQueue[0].at.After(end) {
		h := heap.Pop(&w.eventQueue).(simEvent)
		w.now = laterTime(w.now, h.at)
		h.perform()
		if check != nil {
			check()
		}
	}
	w.now = end
}

// runThenRequireOneHolderEach lets time pass, then fails unless exactly one node answers for each
// address. It returns the holder of the first address.
func (w *clusterSimulation) runThenRequireOneHolderEach(d time.Duration, what string) string {
	w.t.Helper()
	w.runSimulationFor(d, nil)
	first := ""
	for _, a := range w.addresses {
		h := w.answeringNodes(a)
		if len(h) != 1 {
			w.t.Fatalf("%s: after %v %v answer for %s, want one node", what, d, h, a)
		}
		if first == "" {
			first = h[0]
		}
	}
	return first
}

// newTwoHoldersCheck returns a check that fails when two nodes that hear each other on the segment
// both answer for an address for longer than the limit.
func (w *clusterSimulation) newTwoHoldersCheck(limit time.Duration) func() {
	since := map[netip.Addr]time.Time{}
	return func() {
		for _, a := range w.addresses {
			h := w.answeringNodes(a)
			both := false
			for i := range h {
				for j := range i {
					both = both || w.canHearOnLAN(h[i], h[j])
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
				w.t.Fatalf("%v answer for %s at the same time, for %v", h, a, d)
			}
		}
	}
}

// handoverOverlapTimeout is how long two nodes may both answer for an address during a planned
// move.
const handoverOverlapTimeout = 200 * time.Millisecond
