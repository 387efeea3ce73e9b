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
	// BeaconInterval is the interval of the beacons that each member sends to its two watchers.
	BeaconInterval time.Duration
	// SilenceTimeout is how long a watcher waits for a beacon before it suspects the sender: four lost in a row.
	SilenceTimeout time.Duration
	// CandidateDelay is how much longer each further candidate waits before it asks the wire: more than one probe takes, so
	// that the better candidate's claim arrives first.
	CandidateDelay time.Duration
	// ProbeAttempts and ProbeInterval say how the wire is asked before an address is taken.
	ProbeAttempts int
	ProbeInterval time.Duration
	// StartupDelay is how long a starting speaker that reaches nobody waits before it takes anything.
	StartupDelay time.Duration
	// OfferTimeout is how long a holder waits for the node that it offered an address to.
	OfferTimeout time.Duration
	// GraceDelay is how long a holder whose endpoints end keeps an address before it hands it over: kube-proxy writes its rules
	// once a second.
	GraceDelay time.Duration
	// RetryDelay is the first pause after the wire was not silent.
	RetryDelay time.Duration
	// LeaseTimeout bounds how long a holder may answer after its last beacon: not as long as others need to take over, which is
	// Silence and the questions to the wire.
	LeaseTimeout time.Duration
	// ConfirmationTimeout bounds how long a holder may answer after the last thing that it sent and that was answered, Doubt is when it
	// begins to ask the wire for a sign of life, and Recheck how often it does.
	ConfirmationTimeout, LivenessProbeDelay, LivenessProbeInterval time.Duration
	// RebalanceInterval is the interval between two rounds of a rebalance, Calm how long nobody may have come or gone before one.
	RebalanceInterval, RebalanceDelay time.Duration
}

// DefaultTiming returns the durations of production. They add up to a takeover about 300 ms after a node died.
func DefaultTiming() Timing {
	return Timing{
		BeaconInterval: 50 * time.Millisecond, SilenceTimeout: 200 * time.Millisecond, CandidateDelay: 100 * time.Millisecond,
		ProbeAttempts: 2, ProbeInterval: 30 * time.Millisecond,
		StartupDelay: time.Second, OfferTimeout: 150 * time.Millisecond, GraceDelay: 1200 * time.Millisecond, RetryDelay: 250 * time.Millisecond,
		LeaseTimeout: 200 * time.Millisecond, ConfirmationTimeout: 300 * time.Millisecond, LivenessProbeDelay: 200 * time.Millisecond, LivenessProbeInterval: 100 * time.Millisecond,
		RebalanceInterval: time.Second, RebalanceDelay: 10 * time.Second,
	}
}

// Machine is the protocol's state on one node.
type Machine struct {
	self      string
	nonce     uint64
	timing    Timing
	startedAt time.Time
	now       time.Time // of the step under way

	addressesByIP     map[netip.Addr]*addressState
	heldAddresses     map[*addressState]struct{}            // what this node answers for
	addressesByHolder map[string]map[*addressState]struct{} // the claims by holder
	unplacedAddresses map[*addressState]struct{}            // contests to begin at the end of the step
	dueAddresses      addressQueue
	claimBuckets      [bucketCount]claimBucket
	claimsDigest      uint64 // XOR of those of the parts
	groupsByKey       map[uint64]*candidateGroup
	repeatsLeft       map[*addressState]int // new claims, and how often they are still to be told again
	orphanAddresses   map[*addressState]struct{}
	lastSweepAt       time.Time // when a bucket was last looked at for what can be forgotten
	sweptBucket       int
	lastRebalanceAt   time.Time // when a rebalance was last thought about
	membersChangedAt  time.Time // when a member last came or went

	membersByName map[string]facts.Member
	memberNames   []string             // names of the members, sorted
	watchRing     []string             // the same in the order in which they watch each other
	ringPositions map[string]int       // in the circle
	otherMembers  []string             // the ring without this node
	nodesByMAC    map[facts.MAC]string // who has or had an Ethernet address
	liveness      livenessWatch
	lease         lease
	// lastSyncByMember is when a member last told all that it knows because it was asked.
	lastSyncByMember map[string]time.Time
	lastSyncID       uint64
	syncRequestsByID map[uint64]syncRequest

	bidsKnown, stateSynced, takingAllowed, leaving, handoverReported bool
	lastProbeID                                                      uint64
	probesByID                                                       map[uint64]pendingProbe

	output stepOutput
}

// New returns a Machine that holds nothing.
func New(self string, nonce uint64, timing Timing, now time.Time) *Machine {
	m := &Machine{
		self: self, nonce: nonce, timing: timing, startedAt: now, now: now,
		addressesByIP: map[netip.Addr]*addressState{}, heldAddresses: map[*addressState]struct{}{}, addressesByHolder: map[string]map[*addressState]struct{}{},
		unplacedAddresses: map[*addressState]struct{}{}, groupsByKey: map[uint64]*candidateGroup{}, repeatsLeft: map[*addressState]int{}, orphanAddresses: map[*addressState]struct{}{},
		nodesByMAC: map[facts.MAC]string{}, lastSyncByMember: map[string]time.Time{}, syncRequestsByID: map[uint64]syncRequest{}, probesByID: map[uint64]pendingProbe{},
		lastSweepAt: now, lastRebalanceAt: now, membersChangedAt: now, liveness: newLivenessWatch(),
	}
	m.applyMembers(facts.MemberSet{})
	return m
}

// Step takes in facts that are there at one time, and returns what has to be done, in order.
func (m *Machine) Step(now time.Time, inputs ...Input) []Effect {
	m.output = stepOutput{}
	m.detectPause(now)
	m.now = now
	for _, in := range inputs {
		m.applyInput(in)
	}
	m.performDueWork()
	return m.orderedEffects()
}

func (m *Machine) applyInput(in Input) {
	switch in := in.(type) {
	case BidsChanged:
		m.applyBids(in)
	case MembersChanged:
		m.applyMembers(in.Set)
	case MessageReceived:
		m.receiveMessage(in.From, in.Payload)
	case RemoteStateReceived:
		m.mergeRemoteState(in.Payload)
	case ProbeFinished:
		m.handleProbeResult(in.Result)
	case ConflictDetected:
		m.handleConflict(in.Conflict)
	case ClaimsRestored:
		m.restoreClaims(in.Claims)
	case HandoverRequested:
		m.beginHandover()
	case TimePassed:
	}
}

// performDueWork does what is due.
func (m *Machine) performDueWork() {
	m.allowTaking()
	m.sendDueBeacon()
	m.detectSilence()
	m.maintainLease()
	m.beginAcquisitions()
	for len(m.dueAddresses) > 0 && !m.now.Before(m.dueAddresses[0].dueAt) {
		a := m.dueAddresses[0]
		m.unscheduleAddress(a)
		switch {
		case a.acquisition != nil:
			a.acquisition.probing = true
			m.probeAddress(a)
			m.scheduleAddress(a, m.now.Add(10*m.timing.StartupDelay)) // in case that no answer comes, not even that there was none
		case a.move != nil:
			m.offerToNextCandidate(a)
		case a.orphanClaim.Epoch > 0:
			m.resolveOrphanClaim(a)
		}
	}
	m.rebalanceHeld()
	m.forgetIdleAddresses()
	if m.leaving && !m.handoverReported && len(m.heldAddresses) == 0 {
		m.handoverReported = true
		m.output.handoverFinished = true
	}
}

// allowTaking lifts rule 1 when its time has come: nothing is taken before one full exchange of state with another member, or
// before the settling time has passed and nobody was reached. Members that are known but never told their state
// delay the start five times as long at most; the wire is asked in any case.
func (m *Machine) allowTaking() {
	if m.takingAllowed || !m.bidsKnown {
		return
	}
	wait := m.timing.StartupDelay
	if len(m.memberNames) > 1 {
		wait *= 5
	}
	if m.stateSynced || !m.now.Before(m.startedAt.Add(wait)) {
		m.takingAllowed = true
		for _, a := range m.addressesByIP {
			m.reconcileAddress(a)
		}
	}
}

// NextDeadline returns when the Machine wants to be stepped with Tick, at the latest.
func (m *Machine) NextDeadline() time.Time {
	next := m.now.Add(m.timing.LeaseTimeout / 2)
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	if len(m.memberNames) > 1 {
		earlier(m.liveness.lastBeaconAt.Add(m.timing.BeaconInterval))
		earlier(m.nextSilenceDeadline())
	}
	if !m.takingAllowed {
		earlier(m.startedAt.Add(m.timing.StartupDelay))
	}
	if len(m.dueAddresses) > 0 {
		earlier(m.dueAddresses[0].dueAt)
	}
	return maxTime(next, m.now.Add(time.Millisecond))
}

func maxTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// applyBids takes in what changed of what may be held. A bid that is gone means that nobody can serve the address any more.
func (m *Machine) applyBids(in BidsChanged) {
	m.bidsKnown = true
	for _, ip := range in.GoneAddresses {
		if a := m.addressesByIP[ip]; a != nil {
			a.bid, a.idleSince = intent.Bid{}, m.now
			m.reconcileAddress(a)
		}
	}
	for _, b := range in.Bids {
		a := m.ensureAddress(b.Address)
		old := a.bid
		a.bid = b
		if a.held && hasOtherLinks(old, b) && len(b.Links) > 0 { // without any it answers where it did, until another one does
			m.emitAddressEffect(HoldAddress{intent.Binding{Address: a.ip, Links: b.Links}})
		}
		m.reconcileAddress(a)
	}
}

// applyMembers takes in who is alive. This node always is.
func (m *Machine) applyMembers(set facts.MemberSet) {
	old := m.membersByName
	m.membersByName = map[string]facts.Member{m.self: {Name: m.self, Nonce: m.nonce}}
	for _, p := range set.Members {
		if p.Name != m.self {
			m.membersByName[p.Name] = p
		}
	}
	m.memberNames = m.memberNames[:0]
	for n := range m.membersByName {
		m.memberNames = append(m.memberNames, n)
	}
	slices.Sort(m.memberNames)
	m.otherMembers = slices.DeleteFunc(slices.Clone(m.memberNames), func(n string) bool { return n == m.self })
	m.buildWatchRing()
	m.liveness.pruneMembers(m.membersByName)
	m.liveness.watchers, m.liveness.watchedMembers = m.ringNeighbours(m.self, watcherCount), m.ringNeighbours(m.self, -watcherCount)
	m.learnMACs()
	m.adoptUnwatched()
	mine := sortedByIP(m.heldAddresses)
	for _, n := range m.memberNames {
		if p, ok := old[n]; !ok || p.Nonce != m.membersByName[n].Nonce {
			m.membersChangedAt = m.now
			m.reconcileHolder(n)
			for _, a := range mine { // it may hold the same, from the other side of a cut that healed
				m.queueClaim(kindClaims, n, a.claim)
			}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(old)) {
		if _, ok := m.membersByName[n]; !ok {
			m.membersChangedAt = m.now
			m.reconcileHolder(n)
		}
	}
	for _, a := range sortedByIP(m.orphanAddresses) {
		m.resolveOrphanClaim(a)
	}
}
