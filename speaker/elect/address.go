package elect

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/internal/priorityqueue"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// addressState is all that this node knows and does about one address. At most one of acquisition
// and move is set.
type addressState struct {
	ip                netip.Addr
	bid               intent.Bid // without candidates when no node may hold the address
	highestKnownClaim Claim      // the highest known claim
	isHeldBySelf      bool
	// isClaimedWithoutGateway is set if this node's claim is one without gateway.
	isClaimedWithoutGateway bool
	// acquisition is set while this node tries to take the address, move while it hands the address
	// over.
	acquisition *acquisitionAttempt
	move        *move
	// isRechecking is set while a probe checks whether another node took the address; see lease.go.
	isRechecking bool
	// orphanClaim is a claim above this node's own whose holder is not a live member. orphanSince
	// is when it arrived; see claims.go.
	orphanClaim Claim
	orphanSince time.Time
	// claimSentToRivalAt is when this node last sent its claim to another member that also answered
	// for the address.
	claimSentToRivalAt time.Time
	// lastConflictProbeAt is when this node last asked whether a host that answers for the held
	// address is real; see wirecheck.go.
	lastConflictProbeAt time.Time
	// nextWorkDueAt is when work on the acquisition, the move or the orphan claim continues, if the
	// address is in the queue of due addresses.
	nextWorkDueAt time.Time
	queuePosition priorityqueue.Position
	// group is the group that counts the address, countedForNode the node it is counted for; see
	// placement.go.
	group          *sameCandidatesGroup
	countedForNode string
	// withoutCandidatesSince is the time since which no node may hold the address.
	withoutCandidatesSince time.Time
}

// ensureAddressState returns the state of the address and creates it if there is none.
func (m *Machine) ensureAddressState(ip netip.Addr) *addressState {
	a := m.addressesByIP[ip]
	if a == nil {
		a = &addressState{ip: ip, withoutCandidatesSince: m.now, highestKnownClaim: Claim{Address: ip}}
		m.addressesByIP[ip] = a
		m.claimHashBuckets[claimBucketIndex(ip)].addAddress(a)
	}
	return a
}

// canBeHeldBySelf reports whether this node can hold the address.
func (a *addressState) canBeHeldBySelf(self string) bool {
	return a.bid.IsCandidate(self) && len(a.bid.OwnLinkIndexes) > 0
}

// holdsOtherAddressOfService reports whether the node holds another address of the same Service, or
// is about to.
func (a *addressState) holdsOtherAddressOfService(addressesByIP map[netip.Addr]*addressState, node string) bool {
	return slices.ContainsFunc(a.bid.SiblingAddresses, func(ip netip.Addr) bool {
		b := addressesByIP[ip]
		return b != nil && b.countedForNode == node
	})
}

// isOutrankedByRivalProber reports whether a node with a higher rendezvous weight probed at the
// same time. Two nodes may both find the address free; only one may take it.
func (a *addressState) isOutrankedByRivalProber(members *membership, rivals []facts.MAC) bool {
	return slices.ContainsFunc(rivals, func(mac facts.MAC) bool {
		n, known := members.nodeOfMAC(mac)
		return known && a.bid.IsCandidate(n) && rendezvousWeight(a.ip, n) > rendezvousWeight(a.ip, members.self)
	})
}

// endMove ends the move: the address was handed over, or this node keeps it.
func (a *addressState) endMove(due *addressWorkSchedule) {
	if a.move != nil {
		a.move = nil
		due.unscheduleAddress(a)
	}
}

// forgetOrphanClaim drops the orphan claim and ends the wait for its holder.
func (a *addressState) forgetOrphanClaim(withOrphanClaim map[*addressState]struct{}, due *addressWorkSchedule) {
	if a.orphanClaim.Epoch == 0 {
		return
	}
	a.orphanClaim = Claim{}
	delete(withOrphanClaim, a)
	if a.move == nil {
		due.unscheduleAddress(a)
	}
}

// reconcileAddress begins or ends what this node has to do about the address, after something has
// changed: taking it, moving it, releasing it, or nothing.
func (m *Machine) reconcileAddress(a *addressState) {
	able := a.canBeHeldBySelf(m.self) && !m.shutdownHandoverRequested
	switch {
	case a.isHeldBySelf && a.bid.Candidates == nil:
		m.releaseAddress(a, reasonNobodyServes)
	case a.isHeldBySelf && !able && a.bid.InEndpointGracePeriod && !m.shutdownHandoverRequested:
		m.beginMoveInEndpointGracePeriod(a)
	case a.isHeldBySelf && !able:
		m.beginMove(a)
	case a.isHeldBySelf:
		if a.move != nil && !a.move.forRebalance {
			a.endMove(&m.scheduledAddresses)
		}
	case !able || !m.acquisitionsAllowed || m.isLiveClaim(a.highestKnownClaim):
		m.endAcquisition(a)
	case a.acquisition == nil:
		m.addressesToAcquire[a] = struct{}{}
	}
	m.updateAddressGroupCounts(a)
}

// recordClaim replaces the known claim to the address.
func (m *Machine) recordClaim(a *addressState, c Claim) {
	if old := a.highestKnownClaim; old.Epoch > 0 && old.Holder != c.Holder {
		delete(m.addressesByHolder[old.Holder], a)
		if len(m.addressesByHolder[old.Holder]) == 0 {
			delete(m.addressesByHolder, old.Holder)
		}
	}
	change := a.highestKnownClaim.digestContribution() ^ c.digestContribution()
	if m.claimsVersion.digest ^= change; change != 0 {
		m.liveness.claimsChangedAt = m.now
	}
	m.claimHashBuckets[claimBucketIndex(a.ip)].updateDigest(change)
	a.highestKnownClaim = c
	if m.addressesByHolder[c.Holder] == nil {
		m.addressesByHolder[c.Holder] = map[*addressState]struct{}{}
	}
	m.addressesByHolder[c.Holder][a] = struct{}{}
	m.updateAddressGroupCounts(a)
}

// isLiveClaim reports whether the claim is binding: its holder is alive and has not restarted since
// it made the claim.
func (m *Machine) isLiveClaim(c Claim) bool {
	if c.Epoch == 0 || c.Released || !m.isAlive(c.Holder) {
		return false
	}
	if c.Holder == m.self { // not ours: from before a restart, or of an address given up
		return m.ensureAddressState(c.Address).isHeldBySelf && c.Nonce == m.runNonce
	}
	n := m.membersByName[c.Holder].RunNonce
	return n == 0 || n == c.Nonce
}

// claimWithoutCandidatesTimeout is how long a claim is kept after no node may hold its address any
// more. It is longer than a detected partition takes to heal. Otherwise the other side could bring
// an old claim back as a new one.
const claimWithoutCandidatesTimeout = 10 * time.Minute

// forgetAddressesWithoutCandidates removes what is known of addresses that no node may hold. First
// it marks claims of dead holders as released, which every member does on its own. Later it removes
// the address. Each call examines one bucket.
func (m *Machine) forgetAddressesWithoutCandidates() {
	if m.now.Sub(m.lastForgetSweepAt) < time.Second {
		return
	}
	m.lastForgetSweepAt = m.now
	m.lastForgetSweepBucket = (m.lastForgetSweepBucket + 1) % claimBucketCount
	for a := range m.claimHashBuckets[m.lastForgetSweepBucket].addresses {
		if a.bid.Candidates != nil || a.isHeldBySelf || !m.acquisitionsAllowed {
			a.withoutCandidatesSince = m.now
			continue
		}
		old := m.now.Sub(a.withoutCandidatesSince)
		if c := a.highestKnownClaim; old >= claimWithoutCandidatesTimeout/10 && c.Epoch > 0 && !c.Released && !m.isLiveClaim(c) {
			c.Released, c.WithoutGateway = true, false
			m.recordClaim(a, c)
		}
		if old >= claimWithoutCandidatesTimeout && (a.highestKnownClaim.Epoch == 0 || a.highestKnownClaim.Released) {
			m.claimHashBuckets[m.lastForgetSweepBucket].removeAddress(a)
			delete(m.addressesByHolder[a.highestKnownClaim.Holder], a)
			delete(m.addressesByIP, a.ip)
			delete(m.outbox.claimRepeatsLeftByAddress, a)
		}
	}
}

// addressWorkSchedule has the addresses that need work, ordered by the time at which they are due.
// Its owner removes an address before it does the work.
type addressWorkSchedule struct {
	queue *priorityqueue.Queue[*addressState]
}

// newAddressWorkSchedule returns an empty queue. It orders by time, then by address, so that a run
// in virtual time is repeatable.
func newAddressWorkSchedule() addressWorkSchedule {
	return addressWorkSchedule{priorityqueue.NewQueue(func(x, y *addressState) bool {
		if !x.nextWorkDueAt.Equal(y.nextWorkDueAt) {
			return x.nextWorkDueAt.Before(y.nextWorkDueAt)
		}
		return x.ip.Less(y.ip)
	}, func(a *addressState) *priorityqueue.Position { return &a.queuePosition })}
}

// scheduleAddress schedules work on the address for the given time.
func (l *addressWorkSchedule) scheduleAddress(a *addressState, due time.Time) {
	a.nextWorkDueAt = due
	l.queue.Insert(a)
}

// unscheduleAddress removes the address from the queue.
func (l *addressWorkSchedule) unscheduleAddress(a *addressState) { l.queue.Remove(a) }

// takeDueAddress removes and returns the first address if it is due, and returns nil otherwise.
func (l *addressWorkSchedule) takeDueAddress(now time.Time) *addressState {
	a, ok := l.queue.First()
	if !ok || now.Before(a.nextWorkDueAt) {
		return nil
	}
	l.queue.Remove(a)
	return a
}

// nextDueAt returns the time at which the first address is due, and the zero time if there is none.
func (l *addressWorkSchedule) nextDueAt() time.Time {
	a, ok := l.queue.First()
	if !ok {
		return time.Time{}
	}
	return a.nextWorkDueAt
}
