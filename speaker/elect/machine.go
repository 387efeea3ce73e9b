// Package elect decides which node answers for an address. The holder asserts, nobody derives: a Claim carries an epoch,
// and the highest epoch is right, so that differing views of the cluster cost time and never safety. A node takes an
// address only when no live Claim exists and the wire is silent; a live Claim is never contested. The package is
// pure: time is an argument, messages and probes go out as effects and their outcomes come in as inputs. A Machine
// belongs to one goroutine.
package elect

import (
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
	// Retry is the pause after the wire was not silent.
	Retry time.Duration
	// Lease bounds how long the engine may answer without the Machine having been stepped: a speaker that was paused
	// does not answer before it has looked around.
	Lease time.Duration
}

// DefaultTiming returns the durations of production. They add up to a takeover about 300 ms after a node died.
func DefaultTiming() Timing {
	return Timing{
		Beacon: 50 * time.Millisecond, Silence: 200 * time.Millisecond, Delta: 100 * time.Millisecond,
		ProbeAttempts: 2, ProbeInterval: 30 * time.Millisecond,
		Settle: time.Second, Offer: 150 * time.Millisecond, Retry: 250 * time.Millisecond, Lease: 400 * time.Millisecond,
	}
}

// Machine is the protocol's state on one node.
type Machine struct {
	self   string
	nonce  uint64
	timing Timing
	start  time.Time
	now    time.Time // of the step under way

	bids    map[netip.Addr]intent.Bid
	claims  map[netip.Addr]Claim
	mine    map[netip.Addr]struct{} // what this node answers for
	members map[string]facts.Member
	ring    []string // names of the members, sorted
	// contests are the addresses that this node is about to take; moves those that it is about to hand over.
	contests map[netip.Addr]*contest
	moves    map[netip.Addr]*move
	watch    watch
	echoes   map[netip.Addr]int // new claims, and how often they are still to be told again
	digest   uint64             // XOR of the hashes of all claims that are not released

	planned, synced, started, leaving, drained bool
	// fenced is set after a pause, until another member has told what it knows.
	fenced      bool
	fencedUntil time.Time
	probeID     uint64
	probes      map[uint64]netip.Addr
	gateways    map[uint64]string // gateway questions, by ID: the suspected node

	out turn
}

// New returns a Machine that holds nothing.
func New(self string, nonce uint64, timing Timing, now time.Time) *Machine {
	m := &Machine{
		self: self, nonce: nonce, timing: timing, start: now, now: now,
		bids: map[netip.Addr]intent.Bid{}, claims: map[netip.Addr]Claim{}, mine: map[netip.Addr]struct{}{},
		members: map[string]facts.Member{}, contests: map[netip.Addr]*contest{}, moves: map[netip.Addr]*move{},
		echoes: map[netip.Addr]int{}, probes: map[uint64]netip.Addr{}, gateways: map[uint64]string{},
	}
	m.watch = newWatch()
	m.setMembers(facts.MemberSet{})
	return m
}

// Step takes in one fact and returns what has to be done, in order.
func (m *Machine) Step(now time.Time, in Input) []Effect {
	m.out = turn{}
	m.gap(now)
	m.now = now
	switch in := in.(type) {
	case Bids:
		m.setBids(in.Bids)
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
	case Leave:
		m.leave()
	case Tick:
	}
	m.tick()
	return m.finish()
}

// tick does what is due.
func (m *Machine) tick() {
	m.begin()
	m.beacons()
	m.watchOthers()
	for _, a := range m.due() {
		m.probe(a)
	}
	for _, a := range m.overdue() {
		m.offerNext(a)
	}
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
		m.evaluateAll()
	}
}

// gap notices that the process did not run for longer than others wait for it: somebody may have taken over meanwhile.
func (m *Machine) gap(now time.Time) {
	if now.Sub(m.now) <= m.timing.Lease || len(m.ring) < 2 {
		return
	}
	m.watch.forgive(now)
	if len(m.mine) == 0 {
		return
	}
	m.fenced, m.fencedUntil = true, now.Add(m.timing.Settle)
	m.sendAll(header(kindRequest))
}

// unfence lets the node answer again: another member has told what it knows.
func (m *Machine) unfence() {
	if m.fenced {
		m.fenced = false
		m.out.changed = true
	}
}

// Fence returns until when this node may answer, if it is not stepped again before.
func (m *Machine) Fence(now time.Time) time.Time {
	if m.fenced && now.Before(m.fencedUntil) {
		return time.Time{}
	}
	return now.Add(m.timing.Lease)
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
	}
	if !m.started {
		earlier(m.start.Add(m.timing.Settle))
	}
	for _, c := range m.contests {
		if !c.probing {
			earlier(c.at)
		}
	}
	for _, v := range m.moves {
		earlier(v.until)
	}
	return maxTime(next, m.now.Add(time.Millisecond))
}

func maxTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// setBids takes in what may be held. A bid that is gone means that nobody can serve the address any more.
func (m *Machine) setBids(bids []intent.Bid) {
	m.planned = true
	old := m.bids
	m.bids = make(map[netip.Addr]intent.Bid, len(bids))
	for _, b := range bids {
		m.bids[b.Address] = b
		if _, held := m.mine[b.Address]; held && !slices.Equal(old[b.Address].Links, b.Links) {
			m.out.changed = true // the links to answer on are other ones
		}
	}
	m.evaluateAll()
}

// setMembers takes in who is alive. This node always is.
func (m *Machine) setMembers(set facts.MemberSet) {
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
	m.watch.prune(m.members)
	m.evaluateAll()
}

// leave begins to hand everything over.
func (m *Machine) leave() {
	m.leaving = true
	m.beaconTo(m.others())
	m.evaluateAll()
}

// others are the names of the other members.
func (m *Machine) others() []string {
	return slices.DeleteFunc(slices.Clone(m.ring), func(n string) bool { return n == m.self })
}
