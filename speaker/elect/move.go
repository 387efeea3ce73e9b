package elect

import "slices"

// move is an address that this node hands over: it answers until the target does.
type move struct {
	target string
	// offeredEpoch is the last one offered; each attempt offers a higher one, so that a late answer to an earlier offer
	// cannot be taken for the later holder.
	offeredEpoch uint64
	triedNodes   []string
	// forRebalance says that this node could go on: the move is given up when its target does not want it.
	forRebalance bool
	// inGrace says that nothing was offered yet, because this node can serve for a while.
	inGrace bool
}

// beginGrace puts a move off: where the endpoints of a Service go from one node to another, the kube-proxy of the other may
// need a second to learn of them, and those of this node still serve.
func (m *Machine) beginGrace(a *addressState) {
	if a.move == nil || a.move.forRebalance {
		m.overruleOrphanClaim(a)
		a.move = &move{offeredEpoch: a.claim.Epoch, inGrace: true}
		m.scheduleAddress(a, m.now.Add(m.timing.GraceDelay))
	}
}

// beginMove starts to hand the address over.
func (m *Machine) beginMove(a *addressState) {
	if v := a.move; v != nil && !v.forRebalance && !v.inGrace && (v.target == "" || m.isAlive(v.target)) {
		return
	}
	m.overruleOrphanClaim(a)
	epoch := a.claim.Epoch
	if a.move != nil {
		epoch = a.move.offeredEpoch
	}
	a.move = &move{offeredEpoch: epoch}
	m.offerToNextCandidate(a)
}

// endMove goes on holding the address, or has handed it over.
func (m *Machine) endMove(a *addressState) {
	if a.move != nil {
		a.move = nil
		m.unscheduleAddress(a)
	}
}

// offerAddress asks a node to take the address.
func (m *Machine) offerAddress(a *addressState, to string) {
	v := a.move
	v.offeredEpoch = max(v.offeredEpoch, a.claim.Epoch) + 1
	v.target = to
	v.triedNodes = append(v.triedNodes, to)
	m.scheduleAddress(a, m.now.Add(m.timing.OfferTimeout))
	m.queueClaim(kindOffer, to, Claim{Address: a.ip, Holder: to, Epoch: v.offeredEpoch})
	m.countAddress(a) // the next address is placed as if this one had moved
}

// offerToNextCandidate offers the address to the best candidate that was not tried yet. When all were, a node that cannot serve the
// address gives it up; one that can, and only wants to leave, keeps it and tries again.
func (m *Machine) offerToNextCandidate(a *addressState) {
	v := a.move
	v.inGrace = false
	if v.forRebalance {
		m.endMove(a)
		m.countAddress(a)
		return
	}
	for _, s := range m.rankCandidates(a, func(string) bool { return false }) {
		if s.node == m.self || slices.Contains(v.triedNodes, s.node) {
			continue
		}
		m.offerAddress(a, s.node)
		return
	}
	if !m.canServe(a) {
		m.releaseAddress(a, reasonNoTaker)
		return
	}
	v.target, v.triedNodes = "", nil
	m.scheduleAddress(a, m.now.Add(2*m.timing.RetryDelay))
}

// handleOffers takes what another holder hands over, if this node can serve it. The order of effects makes it answer before
// the old holder hears of it and stops.
func (m *Machine) handleOffers(from string, claims []Claim) {
	for _, c := range claims {
		a := m.ensureAddress(c.Address)
		able := m.canServe(a) && !m.leaving && m.takingAllowed && !m.lease.expired
		// An offer that was under way for long, by a cut cable say, may come from one who is no holder any more.
		known := a.claim
		stale := c.Epoch <= known.Epoch || (known.Holder != from && m.isLiveClaim(known))
		if !able || stale || a.held || c.Holder != m.self {
			m.queueClaim(kindRefuse, from, c)
			continue
		}
		m.takeAddress(a, c.Epoch, reasonHandedOver)
	}
}

// handleRefusals tries the next candidate.
func (m *Machine) handleRefusals(from string, claims []Claim) {
	for _, c := range claims {
		a := m.addressesByIP[c.Address]
		if a != nil && a.move != nil && a.move.target == from && a.move.offeredEpoch == c.Epoch {
			m.offerToNextCandidate(a)
		}
	}
}

// beginHandover begins to hand everything over.
func (m *Machine) beginHandover() {
	m.leaving = true
	m.sendBeacon(m.otherMembers)
	for _, a := range sortedByIP(m.heldAddresses) {
		m.reconcileAddress(a)
	}
	for _, a := range m.addressesByIP {
		m.endAcquisition(a)
	}
}
