// Package elect decides which node answers for an address. The holder asserts, nobody derives: a Claim carries an epoch,
// and the highest epoch is right, so that differing views of the cluster cost time and never safety. A node takes an
// address only when no live Claim exists and the wire is silent; a live Claim is never contested. The package is
// pure: time is an argument, messages and probes go out as effects and their outcomes come in as inputs. A Machine
// belongs to one goroutine. A step costs what it touches: nothing in it is in proportion to all addresses.
package elect

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// Timing holds the protocol's durations.
type Timing struct {
	// Beacon is the interval of the beacons that each member sends to its two watchers.
	Beacon time.Duration
	// Silence is how long a watcher waits for a beacon before it suspects the sender: four lost in a row.
	Silence time.Duration
	// Delta is how much longer each further candidate waits before it asks the wire: more than one probe takes, so
	// that the better candidate's claim arrives first.
	Delta time.Duration
	// ProbeAttempts and ProbeInterval say how the wire is asked before an address is taken.
	ProbeAttempts int
	ProbeInterval time.Duration
	// Settle is how long a starting speaker that reaches nobody waits before it takes anything.
	Settle time.Duration
	// Offer is how long a holder waits for the node that it offered an address to.
	Offer time.Duration
	// Linger is how long a holder whose endpoints end keeps an address before it hands it over: kube-proxy writes its rules
	// once a second.
	Linger time.Duration
	// Retry is the first pause after the wire was not silent.
	Retry time.Duration
	// Lease bounds how long a holder may answer after its last beacon: not as long as others need to take over, which is
	// Silence and the questions to the wire.
	Lease time.Duration
	// Trust bounds how long a holder may answer after the last thing that it sent and that was answered, Doubt is when it
	// begins to ask the wire for a sign of life, and Recheck how often it does.
	Trust, Doubt, Recheck time.Duration
	// Pace is the interval between two rounds of a rebalance, Calm how long nobody may have come or gone before one.
	Pace, Calm time.Duration
}

// DefaultTiming returns the durations of production. They add up to a takeover about 300 ms after a node died.
func DefaultTiming() Timing {
	return Timing{
		Beacon: 50 * time.Millisecond, Silence: 200 * time.Millisecond, Delta: 100 * time.Millisecond,
		ProbeAttempts: 2, ProbeInterval: 30 * time.Millisecond,
		Settle: time.Second, Offer: 150 * time.Millisecond, Linger: 1200 * time.Millisecond, Retry: 250 * time.Millisecond,
		Lease: 200 * time.Millisecond, Trust: 300 * time.Millisecond, Doubt: 200 * time.Millisecond, Recheck: 100 * time.Millisecond,
		Pace: time.Second, Calm: 10 * time.Second,
	}
}

// Machine is the protocol's state on one node.
type Machine struct {
	self   string
	nonce  uint64
	timing Timing
	start  time.Time
	now    time.Time // of the step under way

	addresses map[netip.Addr]*address
	mine      map[*address]struct{}            // what this node answers for
	holders   map[string]map[*address]struct{} // the claims by holder
	unplaced  map[*address]struct{}            // contests to begin at the end of the step
	waiting   line
	parts     [buckets]bucket
	digest    uint64 // XOR of those of the parts
	groups    map[uint64]*group
	echoes    map[*address]int // new claims, and how often they are still to be told again
	rumours   map[*address]struct{}
	swept     time.Time // when a bucket was last looked at for what can be forgotten
	sweep     int
	balanced  time.Time // when a rebalance was last thought about
	stirred   time.Time // when a member last came or went

	members map[string]facts.Member
	ring    []string             // names of the members, sorted
	circle  []string             // the same in the order in which they watch each other
	places  map[string]int       // in the circle
	others  []string             // the ring without this node
	macs    map[facts.MAC]string // who has or had an Ethernet address
	watch   watch
	fence   fence
	// told is when a member last told all that it knows because it was asked.
	told      map[string]time.Time
	requests  uint64
	exchanges map[uint64]exchange

	planned, synced, started, leaving, drained bool
	probeID                                    uint64
	questions                                  map[uint64]question

	out turn
}

// New returns a Machine that holds nothing.
func New(self string, nonce uint64, timing Timing, now time.Time) *Machine {
	m := &Machine{
		self: self, nonce: nonce, timing: timing, start: now, now: now,
		addresses: map[netip.Addr]*address{}, mine: map[*address]struct{}{}, holders: map[string]map[*address]struct{}{},
		unplaced: map[*address]struct{}{}, groups: map[uint64]*group{}, echoes: map[*address]int{}, rumours: map[*address]struct{}{},
		macs: map[facts.MAC]string{}, told: map[string]time.Time{}, exchanges: map[uint64]exchange{}, questions: map[uint64]question{},
		swept: now, balanced: now, stirred: now, watch: newWatch(),
	}
	m.setMembers(facts.MemberSet{})
	return m
}

// Step takes in facts that are there at one time, and returns what has to be done, in order.
func (m *Machine) Step(now time.Time, inputs ...Input) []Effect {
	m.out = turn{}
	m.gap(now)
	m.now = now
	for _, in := range inputs {
		m.admit(in)
	}
	m.tick()
	return m.finish()
}

func (m *Machine) admit(in Input) {
	switch in := in.(type) {
	case Bids:
		m.setBids(in)
	case Members:
		m.setMembers(in.Set)
	case Received:
		m.receive(in.From, in.Payload)
	case RemoteState:
		m.receiveState(in.Payload)
	case Probed:
		m.probed(in.Result)
	case Foreign:
		m.foreign(in.Claim)
	case Restored:
		m.restore(in.Claims)
	case Leave:
		m.leave()
	case Tick:
	}
}

// tick does what is due.
func (m *Machine) tick() {
	m.begin()
	m.beacons()
	m.watchOthers()
	m.doubt()
	m.place()
	for len(m.waiting) > 0 && !m.now.Before(m.waiting[0].due) {
		a := m.waiting[0]
		m.rest(a)
		switch {
		case a.contest != nil:
			a.contest.probing = true
			m.probe(a)
			m.wait(a, m.now.Add(10*m.timing.Settle)) // in case that no answer comes, not even that there was none
		case a.move != nil:
			m.offerNext(a)
		case a.rumour.Epoch > 0:
			m.resolve(a)
		}
	}
	m.rebalance()
	m.forget()
	if m.leaving && !m.drained && len(m.mine) == 0 {
		m.drained = true
		m.out.drained = true
	}
}

// begin lifts rule 1 when its time has come: nothing is taken before one full exchange of state with another member, or
// before the settling time has passed and nobody was reached. Members that are known but never told their state
// delay the start five times as long at most; the wire is asked in any case.
func (m *Machine) begin() {
	if m.started || !m.planned {
		return
	}
	wait := m.timing.Settle
	if len(m.ring) > 1 {
		wait *= 5
	}
	if m.synced || !m.now.Before(m.start.Add(wait)) {
		m.started = true
		for _, a := range m.addresses {
			m.evaluate(a)
		}
	}
}

// Next returns when the Machine wants to be stepped with Tick, at the latest.
func (m *Machine) Next() time.Time {
	next := m.now.Add(m.timing.Lease / 2)
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	if len(m.ring) > 1 {
		earlier(m.watch.lastBeacon.Add(m.timing.Beacon))
		earlier(m.nextSilence())
	}
	if !m.started {
		earlier(m.start.Add(m.timing.Settle))
	}
	if len(m.waiting) > 0 {
		earlier(m.waiting[0].due)
	}
	return maxTime(next, m.now.Add(time.Millisecond))
}

func maxTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// setBids takes in what changed of what may be held. A bid that is gone means that nobody can serve the address any more.
func (m *Machine) setBids(in Bids) {
	m.planned = true
	for _, ip := range in.Gone {
		if a := m.addresses[ip]; a != nil {
			a.bid, a.idle = intent.Bid{}, m.now
			m.evaluate(a)
		}
	}
	for _, b := range in.Changed {
		a := m.at(b.Address)
		old := a.bid
		a.bid = b
		if a.held && linksChanged(old, b) && len(b.Links) > 0 { // without any it answers where it did, until another one does
			m.hold(Hold{intent.Claim{Address: a.ip, Links: b.Links}})
		}
		m.evaluate(a)
	}
}

// setMembers takes in who is alive. This node always is.
func (m *Machine) setMembers(set facts.MemberSet) {
	old := m.members
	m.members = map[string]facts.Member{m.self: {Name: m.self, Nonce: m.nonce}}
	for _, p := range set.Members {
		if p.Name != m.self {
			m.members[p.Name] = p
		}
	}
	m.ring = m.ring[:0]
	for n := range m.members {
		m.ring = append(m.ring, n)
	}
	slices.Sort(m.ring)
	m.others = slices.DeleteFunc(slices.Clone(m.ring), func(n string) bool { return n == m.self })
	m.closeCircle()
	m.watch.prune(m.members)
	m.watch.to, m.watch.of = m.after(m.self, watchers), m.after(m.self, -watchers)
	m.learnMACs()
	m.adopt()
	mine := sorted(m.mine)
	for _, n := range m.ring {
		if p, ok := old[n]; !ok || p.Nonce != m.members[n].Nonce {
			m.stirred = m.now
			m.review(n)
			for _, a := range mine { // it may hold the same, from the other side of a cut that healed
				m.queue(kindClaims, n, a.claim)
			}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(old)) {
		if _, ok := m.members[n]; !ok {
			m.stirred = m.now
			m.review(n)
		}
	}
	for _, a := range sorted(m.rumours) {
		m.resolve(a)
	}
}
