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
	runNonce            uint64
	timing              Timing
	startedAt           time.Time
	now                 time.Time // time of the current step
	resumedAfterPauseAt time.Time // when the process ran again after its last pause

	addressesByIP       map[netip.Addr]*addressState
	addressesHeldBySelf map[*addressState]struct{} // addresses that this node answers for
	// addresses with claims, by the claim's holder
	addressesByHolder map[string]map[*addressState]struct{}
	gateways          gatewayWatch
	// acquisitions to start at the end of the step
	addressesToAcquire        map[*addressState]struct{}
	scheduledAddresses        addressWorkSchedule
	claimHashBuckets          claimHashBuckets
	claimsVersion             ClaimsVersion
	addressGroupsByCandidates sameCandidatesGroups
	addressesWithOrphanClaim  map[*addressState]struct{}
	// when forgetAddressesWithoutCandidates last examined a bucket
	lastForgetSweepAt         time.Time
	lastForgetSweepBucket     int
	rebalanceLastConsideredAt time.Time // when a rebalance was last considered

	membership
	liveness livenessWatch
	lease    lease
	// lastSyncAnswerAtByMember is when each member last answered a sync request with all its
	// claims.
	lastSyncAnswerAtByMember map[string]time.Time
	syncRequests             syncRequests

	firstBidsReceived         bool // the first BidsChanged came
	fullStateReceived         bool // the full state of another member came
	acquisitionsAllowed       bool // see allowAcquisitionsAfterStartup
	shutdownHandoverRequested bool // ShutdownHandoverRequested came
	shutdownHandoverReported  bool // ShutdownHandoverFinished was an effect
	pendingProbes             pendingProbes

	outbox outbox
}

// NewMachine returns a Machine that holds no address.
func NewMachine(self string, nonce uint64, timing Timing, now time.Time) *Machine {
	m := &Machine{
		runNonce: nonce, timing: timing, startedAt: now, now: now,
		addressesByIP:             map[netip.Addr]*addressState{},
		scheduledAddresses:        newAddressWorkSchedule(),
		addressesHeldBySelf:       map[*addressState]struct{}{},
		addressesByHolder:         map[string]map[*addressState]struct{}{},
		addressesToAcquire:        map[*addressState]struct{}{},
		gateways:                  gatewayWatch{recentClaims: map[*addressState]struct{}{}, contestingClaimByAddress: map[*addressState]Claim{}},
		addressGroupsByCandidates: sameCandidatesGroups{},
		outbox:                    outbox{claimRepeatsLeftByAddress: map[*addressState]int{}},
		addressesWithOrphanClaim:  map[*addressState]struct{}{},
		lastForgetSweepAt:         now,
		rebalanceLastConsideredAt: now,
		membership:                membership{self: self, membersChangedAt: now, nodesByMAC: map[facts.MAC]string{}},
		liveness:                  newLivenessWatch(),
		lastSyncAnswerAtByMember:  map[string]time.Time{},
		syncRequests:              newSyncRequests(),
		pendingProbes:             pendingProbes{probesByID: map[uint64]pendingProbe{}, addressesAnsweredEarly: map[*addressState]struct{}{}},
	}
	m.applyMembers(facts.MemberSet{})
	return m
}

// Step processes facts that become known at one time. It returns what has to be done, in order.
func (m *Machine) Step(now time.Time, inputs ...Input) []Effect {
	m.outbox.beginStep()
	recordAndDiscountOwnStepDelay(m, now)
	m.handleProcessPause(now)
	m.now = now
	for _, in := range inputs {
		m.applyInput(in)
	}
	m.performDueWork()
	return m.outbox.orderedEffects(m.claimReceivers)
}

// stepContext are what the parts of the Machine read in one step besides their own state. The parts
// do not change them.
type stepContext struct {
	now              time.Time
	timing           *Timing
	members          *membership
	runNonce         uint64 // of this process
	claimsDigest     uint64
	isHandingOverAll bool          // this node hands over all addresses
	ownStepDelay     time.Duration // how late this node ran of late; see congestion.go
}

func (m *Machine) stepContext() stepContext {
	return stepContext{
		now: m.now, timing: &m.timing, members: &m.membership, runNonce: m.runNonce, claimsDigest: m.claimsVersion.digest, isHandingOverAll: m.shutdownHandoverRequested,
		ownStepDelay: m.liveness.ownStepDelay.currentDelay(m.now),
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
	case ShutdownHandoverRequested:
		m.beginShutdownHandover()
	case TimePassed:
	}
}

// maxDueAddressesPerStep bounds the addresses that one step works on, so that beacons and the
// messages of others do not wait for thousands. The next step continues.
const maxDueAddressesPerStep = 128

// performDueWork does the work whose time has come.
func (m *Machine) performDueWork() {
	m.allowAcquisitionsAfterStartup()
	if m.liveness.sendDueBeacon(m.stepContext(), &m.outbox) {
		m.outbox.repeatNewClaims(m.claimReceivers)
	}
	m.performLivenessActions(m.liveness.findAdoptedNodesDueForSync(m.stepContext()))
	m.performLivenessActions(m.liveness.detectAndReportSilence(m.stepContext(), &m.outbox))
	m.maintainLease()
	resolveOverdueContests(m)
	askGatewaysAboutRecentClaims(m)
	m.beginAcquisitions()
	for range maxDueAddressesPerStep {
		a := m.scheduledAddresses.takeDueAddress(m.now)
		if a == nil {
			break
		}
		switch {
		case a.acquisition != nil:
			a.acquisition.isProbing = true
			askGateways(m)
			if a.acquisition.mayAnswerEarly {
				beginEarlyAnswer(m, a)
			}
			m.pendingProbes.probeAddress(a, stepContextWithExtraProbeTime(m, a), &m.outbox)
			// in case that the probe's result is lost
			m.scheduledAddresses.scheduleAddress(a, m.now.Add(10*m.timing.StartupWithoutMembersDelay))
		case a.move != nil:
			m.offerToNextCandidate(a)
		case a.orphanClaim.Epoch > 0:
			m.resolveOrphanClaim(a)
		}
	}
	m.rebalanceHeldAddresses()
	m.forgetAddressesWithoutCandidates()
	if m.shutdownHandoverRequested && !m.shutdownHandoverReported && len(m.addressesHeldBySelf) == 0 {
		m.shutdownHandoverReported = true
		m.outbox.shutdownHandoverFinished = true
	}
}

// allowAcquisitionsAfterStartup lifts rule 1: a starting speaker takes no address before a full
// exchange of state with another member, or before StartupWithoutMembersDelay has passed without
// reaching one. If members are known but send no state, it waits five times as long at most. It
// always probes before it takes an address.
func (m *Machine) allowAcquisitionsAfterStartup() {
	if m.acquisitionsAllowed || !m.firstBidsReceived {
		return
	}
	if m.fullStateReceived || !m.now.Before(m.stepContext().acquisitionsAllowedAt(m.startedAt)) {
		m.acquisitionsAllowed = true
		for _, a := range m.addressesByIP {
			m.reconcileAddress(a)
		}
	}
}

// acquisitionsAllowedAt is when a starting speaker takes addresses although no member sends a
// state.
func (f stepContext) acquisitionsAllowedAt(startedAt time.Time) time.Time {
	wait := f.timing.StartupWithoutMembersDelay
	if len(f.members.memberNames) > 1 {
		wait *= 5
	}
	return startedAt.Add(wait)
}

// NextDeadline returns when the Machine has to be stepped with TimePassed, at the latest.
func (m *Machine) NextDeadline() time.Time {
	next := m.now.Add(m.timing.LeaseAfterOwnBeaconTimeout / 2)
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	earlier(m.liveness.nextDeadline(m.stepContext()))
	if !m.acquisitionsAllowed && m.firstBidsReceived {
		earlier(m.stepContext().acquisitionsAllowedAt(m.startedAt))
	}
	earlier(m.scheduledAddresses.nextDueAt())
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
		if a.isHeldBySelf && haveBidLinksChanged(old, b) && len(b.OwnLinkIndexes) > 0 {
			// without links it answers on the old ones until another node takes over
			m.outbox.emitAddressEffect(HoldAddress{intent.Binding{Address: a.ip, LinkIndexes: b.OwnLinkIndexes}})
		}
		m.updateAddressGroupCounts(a) // the address is offered to the new candidates
		m.reconcileAddress(a)
	}
}

// applyMembers processes the set of live members. It always includes this node.
func (m *Machine) applyMembers(set facts.MemberSet) {
	old := m.replaceMembers(set, m.runNonce)
	m.outbox.messageFormat = newestCommonMessageFormat(m.membersByName, m.self)
	m.liveness.updateMembers(m.stepContext())
	m.claimReceivers = m.orderClaimReceivers(m.liveness.watchersOfSelf)
	mine := sortedByIP(m.addressesHeldBySelf)
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

// performLivenessActions does what the watch asks for.
func (m *Machine) performLivenessActions(o livenessActions) {
	changed := o.nodesWithChangedLiveness
	if slices.ContainsFunc(changed, func(n string) bool { return !m.isAlive(n) }) {
		changed = append(changed, m.liveness.judgeSilentNodes(m.stepContext())...)
	}
	for _, n := range changed {
		m.reconcileAddressesOfHolder(n)
	}
	for _, n := range o.nodesToProbe {
		m.pendingProbes.probeReachability(pendingProbe{silentNode: n}, m.stepContext(), &m.outbox)
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
