package elect

import (
	"slices"
	"time"
)

// A candidate refuses an offer of a node that is not the holder as far as the candidate knows. The
// claim of a node that has just taken the address, and cannot keep it, may arrive after the offer,
// or be lost and repeated. So this node repeats its offers for a while before it releases the
// address. The interval doubles with each round, because a round offers to every candidate.
const (
	refusedOffersTimeout       = 300 * time.Millisecond
	firstRefusedOffersInterval = 20 * time.Millisecond
)

// move is the handover of an address to another node. This node answers until the target does.
type move struct {
	target string
	// offeredEpoch is the epoch of the last offer. Each attempt offers a higher one, so that a late
	// answer to an earlier offer cannot supersede the later holder.
	offeredEpoch uint64
	triedNodes   []string
	// refusedRounds counts the rounds in which all candidates refused.
	refusedRounds int
	beganAt       time.Time
	// forRebalance is set when this node can keep the address. The move ends if the target refuses.
	forRebalance bool
	// inEndpointGracePeriod is set while the endpoints here still serve. Until another node is
	// ready to take the address, this node keeps it.
	inEndpointGracePeriod bool
}

// beginMoveInEndpointGracePeriod starts a move whose endpoints here still serve. A node with new
// endpoints refuses the address until its service proxy knows these.
func (m *Machine) beginMoveInEndpointGracePeriod(a *addressState) {
	if a.move == nil || a.move.forRebalance {
		m.overruleOrphanClaim(a)
		a.move = &move{offeredEpoch: a.highestKnownClaim.Epoch, inEndpointGracePeriod: true, beganAt: m.now}
		m.offerToNextCandidate(a)
	}
}

// beginMove starts to hand the address over.
func (m *Machine) beginMove(a *addressState) {
	if v := a.move; v != nil && !v.forRebalance && !v.inEndpointGracePeriod && (v.target == "" || m.isAlive(v.target)) {
		return
	}
	m.overruleOrphanClaim(a)
	epoch := a.highestKnownClaim.Epoch
	if a.move != nil {
		epoch = a.move.offeredEpoch
	}
	a.move = &move{offeredEpoch: epoch, beganAt: m.now}
	m.offerToNextCandidate(a)
}

// offerAddress asks a node to take the address.
func (m *Machine) offerAddress(a *addressState, to string) {
	v := a.move
	v.offeredEpoch = max(v.offeredEpoch, a.highestKnownClaim.Epoch) + 1
	v.target = to
	v.triedNodes = append(v.triedNodes, to)
	m.scheduledAddresses.scheduleAddress(a, m.now.Add(m.timing.OfferTimeout+m.liveness.extraDelayForMember(to, m.stepContext())))
	m.outbox.queueClaim(kindOffer, to, Claim{Address: a.ip, Holder: to, Epoch: v.offeredEpoch, WithoutGateway: a.isClaimedWithoutGateway})
	m.updateAddressGroupCounts(a) // place the next address as if this one had moved
}

// offerToNextCandidate offers the address to the best candidate without an earlier offer. When all
// candidates refused for a while, a node that cannot serve the address releases it. A node that can
// serve and wants to stop, or whose endpoints still serve, keeps it and tries again.
func (m *Machine) offerToNextCandidate(a *addressState) {
	v := a.move
	if v.forRebalance {
		a.endMove(&m.scheduledAddresses)
		m.updateAddressGroupCounts(a)
		return
	}
	for _, s := range m.rankCandidates(a, func(string) bool { return false }) {
		if s.node == m.self || slices.Contains(v.triedNodes, s.node) {
			continue
		}
		m.offerAddress(a, s.node)
		return
	}
	retryDelay := 2 * m.timing.FirstProbeRetryDelay
	switch {
	case v.inEndpointGracePeriod:
		retryDelay = m.timing.GracePeriodOfferInterval
	case a.canBeHeldBySelf(m.self):
	case len(v.triedNodes) > 0 && m.now.Sub(v.beganAt) < refusedOffersTimeout:
		retryDelay = min(firstRefusedOffersInterval<<v.refusedRounds, refusedOffersTimeout-m.now.Sub(v.beganAt))
		v.refusedRounds++
	default:
		m.releaseAddress(a, reasonNoTaker)
		return
	}
	v.target, v.triedNodes = "", nil
	m.scheduledAddresses.scheduleAddress(a, m.now.Add(retryDelay))
	m.updateAddressGroupCounts(a)
}

// handleOffers takes the offered addresses that this node can serve and refuses the others. Effects
// are ordered so that this node answers before the old holder learns of it and stops.
func (m *Machine) handleOffers(from string, claims []Claim) {
	for _, c := range claims {
		a := m.ensureAddressState(c.Address)
		able := a.canBeHeldBySelf(m.self) && !m.shutdownHandoverRequested && m.acquisitionsAllowed && !m.lease.isExpired && !m.mayHaveStaleMessages()
		// A delayed offer, for example because of a cut cable, may come from a node that is no
		// longer the holder.
		known := a.highestKnownClaim
		stale := c.Epoch <= known.Epoch || (known.Holder != from && m.isLiveClaim(known))
		if !able || stale || a.isHeldBySelf || c.Holder != m.self {
			m.outbox.queueClaim(kindRefusal, from, c)
			continue
		}
		a.isClaimedWithoutGateway = c.WithoutGateway // both nodes are on the same side of a cut
		m.takeAddress(a, c.Epoch, reasonHandedOver)
	}
}

// handleRefusals offers the addresses to the next candidates.
func (m *Machine) handleRefusals(from string, claims []Claim) {
	for _, c := range claims {
		a := m.addressesByIP[c.Address]
		if a != nil && a.move != nil && a.move.target == from && a.move.offeredEpoch == c.Epoch {
			m.offerToNextCandidate(a)
		}
	}
}

// beginShutdownHandover starts to hand over all addresses.
func (m *Machine) beginShutdownHandover() {
	m.shutdownHandoverRequested = true
	m.liveness.sendBeacon(m.otherMembers, m.stepContext(), &m.outbox)
	for _, a := range sortedByIP(m.addressesHeldBySelf) {
		m.reconcileAddress(a)
	}
	for _, a := range m.addressesByIP {
		m.endAcquisition(a)
	}
}
