package elect

import (
	"container/heap"
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// addressState is everything that this node knows and does about one address. It has at most one of a contest and a move.
type addressState struct {
	ip    netip.Addr
	bid   intent.Bid // without candidates when nobody may hold the address
	claim Claim      // the highest that is known
	held  bool
	// acquisition is under way while this node is about to take the address, move while it is about to hand it over.
	acquisition *acquisition
	move        *move
	// rechecking says that the wire is asked whether this node is still the holder; see fence.go.
	rechecking bool
	// orphanClaim is a higher claim than this node's, of a holder that seems not to live, since when it is known; see claims.go.
	orphanClaim Claim
	orphanSince time.Time
	// disputedAt is when another member was last told that this node holds the address, because it seemed to hold it too.
	disputedAt time.Time
	// dueAt is when the contest or the move wants to go on; slot is the place in the waiting line, -1 outside of it.
	dueAt      time.Time
	queueIndex int
	// group and owner are what the address counts for in the spread; see place.go.
	group       *candidateGroup
	countedNode string
	// idleSince is since when nobody may hold the address.
	idleSince time.Time
}

// ensureAddress returns the record of the address, which is made if there is none.
func (m *Machine) ensureAddress(ip netip.Addr) *addressState {
	a := m.addressesByIP[ip]
	if a == nil {
		a = &addressState{ip: ip, queueIndex: -1, idleSince: m.now, claim: Claim{Address: ip}}
		m.addressesByIP[ip] = a
		m.claimBuckets[bucketIndex(ip)].addAddress(a)
	}
	return a
}

// canServe says whether this node could hold the address.
func (m *Machine) canServe(a *addressState) bool {
	return a.bid.IsEligible(m.self) && len(a.bid.Links) > 0
}

// reconcileAddress brings what this node does about an address in line with what it knows of it.
func (m *Machine) reconcileAddress(a *addressState) {
	able := m.canServe(a) && !m.leaving
	switch {
	case a.held && a.bid.Candidates == nil:
		m.releaseAddress(a, reasonNobodyServes)
	case a.held && !able && a.bid.InGrace && !m.leaving:
		m.beginGrace(a)
	case a.held && !able:
		m.beginMove(a)
	case a.held:
		if a.move != nil && !a.move.forRebalance {
			m.endMove(a)
		}
	case !able || !m.takingAllowed || m.isLiveClaim(a.claim):
		m.endAcquisition(a)
	case a.acquisition == nil:
		m.unplacedAddresses[a] = struct{}{}
	}
	m.countAddress(a)
}

// recordClaim puts a claim in the place of the former.
func (m *Machine) recordClaim(a *addressState, c Claim) {
	if old := a.claim; old.Epoch > 0 && old.Holder != c.Holder {
		delete(m.addressesByHolder[old.Holder], a)
		if len(m.addressesByHolder[old.Holder]) == 0 {
			delete(m.addressesByHolder, old.Holder)
		}
	}
	change := a.claim.digestPart() ^ c.digestPart()
	m.claimsDigest ^= change
	m.claimBuckets[bucketIndex(a.ip)].updateDigest(change)
	a.claim = c
	if m.addressesByHolder[c.Holder] == nil {
		m.addressesByHolder[c.Holder] = map[*addressState]struct{}{}
	}
	m.addressesByHolder[c.Holder][a] = struct{}{}
	m.countAddress(a)
}

// isLiveClaim says whether the claim binds: its holder is alive, in the same life in which it made the claim.
func (m *Machine) isLiveClaim(c Claim) bool {
	if c.Epoch == 0 || c.Released || !m.isAlive(c.Holder) {
		return false
	}
	if c.Holder == m.self { // a claim of a former life of ours, or one whose address we gave up
		return m.ensureAddress(c.Address).held && c.Nonce == m.nonce
	}
	n := m.membersByName[c.Holder].Nonce
	return n == 0 || n == c.Nonce
}

// scheduleAddress has the address looked at again at the given time.
func (m *Machine) scheduleAddress(a *addressState, due time.Time) {
	a.dueAt = due
	if a.queueIndex < 0 {
		heap.Push(&m.dueAddresses, a)
		return
	}
	heap.Fix(&m.dueAddresses, a.queueIndex)
}

// unscheduleAddress undoes wait.
func (m *Machine) unscheduleAddress(a *addressState) {
	if a.queueIndex >= 0 {
		heap.Remove(&m.dueAddresses, a.queueIndex)
	}
}

// claimRetentionTimeout is how long a claim to an address that nobody may hold is remembered: longer than a partition that is
// noticed takes to heal, so that an old claim does not come back as a new one.
const claimRetentionTimeout = 10 * time.Minute

// forgetIdleAddresses drops what is known of addresses that nobody may hold: first the claims of holders that are gone count as
// released, which every member finds out alike; a while later the record goes. It looks at one bucket a call.
func (m *Machine) forgetIdleAddresses() {
	if m.now.Sub(m.lastSweepAt) < time.Second {
		return
	}
	m.lastSweepAt = m.now
	m.sweptBucket = (m.sweptBucket + 1) % bucketCount
	for a := range m.claimBuckets[m.sweptBucket].addresses {
		if a.bid.Candidates != nil || a.held || !m.takingAllowed {
			a.idleSince = m.now
			continue
		}
		old := m.now.Sub(a.idleSince)
		if c := a.claim; old >= claimRetentionTimeout/10 && c.Epoch > 0 && !c.Released && !m.isLiveClaim(c) {
			c.Released = true
			m.recordClaim(a, c)
		}
		if old >= claimRetentionTimeout && (a.claim.Epoch == 0 || a.claim.Released) {
			m.claimBuckets[m.sweptBucket].removeAddress(a)
			delete(m.addressesByHolder[a.claim.Holder], a)
			delete(m.addressesByIP, a.ip)
			delete(m.repeatsLeft, a)
		}
	}
}

// addressQueue is the addresses that wait for a time, the next one first.
type addressQueue []*addressState

// Len is part of heap.Interface, as are the following.
func (l addressQueue) Len() int { return len(l) }

// Less orders by time, then address, so that a run in virtual time can be repeated.
func (l addressQueue) Less(i, j int) bool {
	if !l[i].dueAt.Equal(l[j].dueAt) {
		return l[i].dueAt.Before(l[j].dueAt)
	}
	return l[i].ip.Less(l[j].ip)
}

// Swap exchanges two addresses.
func (l addressQueue) Swap(i, j int) {
	l[i], l[j] = l[j], l[i]
	l[i].queueIndex, l[j].queueIndex = i, j
}

// Push appends an address.
func (l *addressQueue) Push(x any) {
	a := x.(*addressState)
	a.queueIndex = len(*l)
	*l = append(*l, a)
}

// Pop takes the last address off.
func (l *addressQueue) Pop() any {
	last := len(*l) - 1
	a := (*l)[last]
	(*l)[last] = nil
	*l, a.queueIndex = (*l)[:last], -1
	return a
}
