// Package elect decides which node answers for an address.
//
// The holder of an address asserts its claim; other nodes do not derive it. A claim carries an
// epoch and the highest epoch wins. Different views of the cluster therefore cost time and never
// safety. A node takes an address only when no live claim exists and no host answers an acquire
// probe. Nodes never contest a live claim.
//
// The package is pure: time is an argument, messages and probes are effects, and their outcomes are
// inputs. One goroutine owns a Machine. The cost of a step depends on what it changes and not on
// the number of addresses.
package elect

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// Machine is the state of the protocol on one node.
type Machine struct {
	nonce     uint64
	timing    Timing
	startedAt time.Time
	now       time.Time // time of the current step
	resumedAt time.Time // when the process ran again after its last pause

	addressesByIP map[netip.Addr]*addressState
	heldAddresses map[*addressState]struct{} // addresses that this node answers for
	// addresses with claims, by the claim's holder
	addressesByHolder map[string]map[*addressState]struct{}
	// acquisitions to start at the end of the step
	addressesToAcquire       map[*addressState]struct{}
	dueAddresses             addressQueue
	claimBuckets             claimBuckets
	claimsDigest             uint64 // XOR of the buckets' digests
	groupsByKey              candidateGroups
	addressesWithOrphanClaim map[*addressState]struct{}
	// when forgetAddressesWithoutCandidates last examined a bucket
	lastSweepAt           time.Time
	lastForgetSweepBucket int
	lastRebalanceAt       time.Time // when a rebalance was last considered

	membership
	liveness livenessWatch
	lease    lease
	// lastSyncAnswerByMember is when each member last answered a sync request with all its claims.
	lastSyncAnswerByMember map[string]time.Time
	syncRequests           syncRequests

	firstBidsReceived   bool // the first BidsChanged came
	fullStateReceived   bool // the full state of another member came
	acquisitionsAllowed bool // see allowAcquisitions
	handoverRequested   bool // HandoverRequested came
	handoverReported    bool // HandoverFinished was an effect
	probes              pendingProbes

	outbox outbox
}

// NewMachine returns a Machine that holds no address.
func NewMachine(self string, nonce uint64, timing Timing, now time.Time) *Machine {
	m := &Machine{
		nonce: nonce, timing: timing, startedAt: now, now: now,
		addressesByIP:            map[netip.Addr]*addressState{},
		dueAddresses:             newAddressQueue(),
		heldAddresses:            map[*addressState]struct{}{},
		addressesByHolder:        map[string]map[*addressState]struct{}{},
		addressesToAcquire:       map[*addressState]struct{}{},
		groupsByKey:              candidateGroups{},
		outbox:                   outbox{claimRepeatsLeft: map[*addressState]int{}},
		addressesWithOrphanClaim: map[*addressState]struct{}{},
		lastSweepAt:              now,
		lastRebalanceAt:          now,
		membership:               membership{self: self, membersChangedAt: now, nodesByMAC: map[facts.MAC]string{}},
		liveness:                 newLivenessWatch(),
		lastSyncAnswerByMember:   map[string]time.Time{},
		syncRequests:             newSyncRequests(),
		probes:                   pendingProbes{probesByID: map[uint64]pendingProbe{}},
	}
	m.applyMembers(facts.MemberSet{})
	return m
}

// Step processes facts that become known at one time. It returns what has to be done, in order.
func (m *Machine) Step(now time.Time, inputs ...Input) []Effect {
	m.outbox.beginStep()
	recordOwnDelay(m, now)
	m.detectProcessPause(now)
	m.now = now
	for _, in := range inputs {
		m.applyInput(in)
	}
	m.performDueWork()
	return m.outbox.orderedEffects(m.claimReceivers)
}

// stepFacts are what the parts of the Machine read in one step besides their own state. The parts
// do not change them.
type stepFacts struct {
	now          time.Time
	timing       *Timing
	members      *membership
	nonce        uint64 // of this process
	claimsDigest uint64
	leaving      bool          // this node hands over all addresses
	ownDelay     time.Duration // how late this node ran of late; see congestion.go
}

func (m *Machine) stepFacts() stepFacts {
	return stepFacts{
		now: m.now, timing: &m.timing, members: &m.membership, nonce: m.nonce, claimsDigest: m.claimsDigest, leaving: m.handoverRequested,
		ownDelay: m.liveness.ownDelay.remaining(m.now),
	}
}

func (m *Machine) applyInput(in Input) {
	switch in := in.(type) {
	case BidsChanged:
		m.applyBids(in)
	case MembersChanged:
		m.applyMembers(in.MemberSet)
	case MessageReceived:
		m.receiveMessage(in.From, in.Payload)
	case RemoteStateReceived:
		m.mergeRemoteState(in.EncodedClaims)
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

// dueAddressesPerStep bounds the addresses that one step works on, so that beacons and the messages
// of others do not wait for thousands. The next step continues.
const dueAddressesPerStep = 128

// performDueWork does the work whose time has come.
func (m *Machine) performDueWork() {
	m.allowAcquisitions()
	if m.liveness.sendDueBeacon(m.stepFacts(), &m.outbox) {
		m.outbox.repeatNewClaims(m.claimReceivers)
	}
	m.applyLivenessOutcome(m.liveness.findAdoptedNodesDueForSync(m.stepFacts()))
	m.applyLivenessOutcome(m.liveness.detectSilence(m.stepFacts(), &m.outbox))
	m.maintainLease()
	m.beginAcquisitions()
	for range dueAddressesPerStep {
		a := m.dueAddresses.takeDueAddress(m.now)
		if a == nil {
			break
		}
		switch {
		case a.acquisition != nil:
			a.acquisition.isProbing = true
			m.probes.probeAddress(a, stepFactsForProbe(m, a), &m.outbox)
			// in case that the probe's result is lost
			m.dueAddresses.scheduleAddress(a, m.now.Add(10*m.timing.StartupWithoutMembersDelay))
		case a.move != nil:
			m.offerToNextCandidate(a)
		case a.orphanClaim.Epoch > 0:
			m.resolveOrphanClaim(a)
		}
	}
	m.rebalanceHeldAddresses()
	m.forgetAddressesWithoutCandidates()
	if m.handoverRequested && !m.handoverReported && len(m.heldAddresses) == 0 {
		m.handoverReported = true
		m.outbox.handoverFinished = true
	}
}

// allowAcquisitions lifts rule 1: a starting speaker takes no address before a full exchange of
// state with another member, or before StartupWithoutMembersDelay has passed without reaching one.
// If members are known but send no state, it waits five times as long at most. It always probes
// before it takes an address.
func (m *Machine) allowAcquisitions() {
	if m.acquisitionsAllowed || !m.firstBidsReceived {
		return
	}
	if m.fullStateReceived || !m.now.Before(m.stepFacts().acquisitionsAllowedAt(m.startedAt)) {
		m.acquisitionsAllowed = true
		for _, a := range m.addressesByIP {
			m.reconcileAddress(a)
		}
	}
}

// acquisitionsAllowedAt is when a starting speaker takes addresses although no member sends a
// state.
func (f stepFacts) acquisitionsAllowedAt(startedAt time.Time) time.Time {
	wait := f.timing.StartupWithoutMembersDelay
	if len(f.members.memberNames) > 1 {
		wait *= 5
	}
	return startedAt.Add(wait)
}

// NextDeadline returns when the Machine has to be stepped with TimePassed, at the latest.
func (m *Machine) NextDeadline() time.Time {
	next := m.now.Add(m.timing.LeaseAfterLastBeaconTimeout / 2)
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	earlier(m.liveness.nextDeadline(m.stepFacts()))
	if !m.acquisitionsAllowed && m.firstBidsReceived {
		earlier(m.stepFacts().acquisitionsAllowedAt(m.startedAt))
	}
	earlier(m.dueAddresses.nextDueAt())
	if len(m.addressesToAcquire) > 0 { // the last step had too many
		earlier(m.now)
	}
	return laterTime(next, m.now.Add(time.Millisecond))
}

func laterTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// applyBids processes changed bids. A bid is gone when no node can serve the address any more.
func (m *Machine) applyBids(in BidsChanged) {
	m.firstBidsReceived = true
	for _, ip := range in.AddressesWithoutBid {
		if a := m.addressesByIP[ip]; a != nil {
			a.bid, a.withoutCandidatesSince = intent.Bid{}, m.now
			m.reconcileAddress(a)
		}
	}
	for _, b := range in.Bids {
		a := m.ensureAddressState(b.Address)
		old := a.bid
		a.bid = b
		if a.isHeld && haveBidLinksChanged(old, b) && len(b.OwnLinkIndexes) > 0 {
			// without links it answers on the old ones until another node takes over
			m.outbox.emitAddressEffect(HoldAddress{intent.Binding{Address: a.ip, LinkIndexes: b.OwnLinkIndexes}})
		}
		m.updateGroupCounts(a) // the address is offered to the new candidates
		m.reconcileAddress(a)
	}
}

// applyMembers processes the set of live members. It always includes this node.
func (m *Machine) applyMembers(set facts.MemberSet) {
	old := m.replaceMembers(set, m.nonce)
	m.outbox.messageFormat = messageFormatOfMembers(m.membersByName, m.self)
	m.liveness.updateMembers(m.stepFacts())
	m.claimReceivers = m.orderClaimReceivers(m.liveness.watchersOfSelf)
	mine := sortedByIP(m.heldAddresses)
	for _, n := range m.memberNames {
		if p, ok := old[n]; !ok || p.RunNonce != m.membersByName[n].RunNonce {
			m.membersChangedAt = m.now
			m.reconcileAddressesOfHolder(n)
			for _, a := range mine { // it may hold the same addresses if a partition healed
				m.outbox.queueClaim(kindClaims, n, a.highestKnownClaim)
			}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(old)) {
		if _, ok := m.membersByName[n]; !ok {
			m.membersChangedAt = m.now
			m.reconcileAddressesOfHolder(n)
		}
	}
	for _, a := range sortedByIP(m.addressesWithOrphanClaim) {
		m.resolveOrphanClaim(a)
	}
}

// applyLivenessOutcome does what the watch asks for.
func (m *Machine) applyLivenessOutcome(o livenessOutcome) {
	changed := o.changedNodes
	if slices.ContainsFunc(changed, func(n string) bool { return !m.isAlive(n) }) {
		changed = append(changed, m.liveness.judgeSilentNodes(m.stepFacts())...)
	}
	for _, n := range changed {
		m.reconcileAddressesOfHolder(n)
	}
	for _, n := range o.nodesToProbe {
		m.probes.probeReachability(pendingProbe{silentNode: n}, m.stepFacts(), &m.outbox)
	}
	for _, n := range o.membersToSync {
		m.requestSync(n)
	}
}

// reconcileAddressesOfHolder reconciles all addresses of a node that died or came back.
func (m *Machine) reconcileAddressesOfHolder(n string) {
	for _, a := range sortedByIP(m.addressesByHolder[n]) {
		m.reconcileAddress(a)
	}
}
