package elect

import "slices"

// move is an address that this node hands over: it answers until the target does.
type move struct {
	to string
	// epoch is the last one offered; each attempt offers a higher one, so that a late answer to an earlier offer
	// cannot be taken for the later holder.
	epoch uint64
	tried []string
	// rebalance says that this node could go on: the move is given up when its target does not want it.
	rebalance bool
	// lingering says that nothing was offered yet, because this node can serve for a while.
	lingering bool
}

// linger puts a move off: where the endpoints of a Service go from one node to another, the kube-proxy of the other may
// need a second to learn of them, and those of this node still serve.
func (m *Machine) linger(a *address) {
	if a.move == nil || a.move.rebalance {
		m.overrule(a)
		a.move = &move{epoch: a.claim.Epoch, lingering: true}
		m.wait(a, m.now.Add(m.timing.Linger))
	}
}

// beginMove starts to hand the address over.
func (m *Machine) beginMove(a *address) {
	if v := a.move; v != nil && !v.rebalance && !v.lingering && (v.to == "" || m.alive(v.to)) {
		return
	}
	m.overrule(a)
	epoch := a.claim.Epoch
	if a.move != nil {
		epoch = a.move.epoch
	}
	a.move = &move{epoch: epoch}
	m.offerNext(a)
}

// endMove goes on holding the address, or has handed it over.
func (m *Machine) endMove(a *address) {
	if a.move != nil {
		a.move = nil
		m.rest(a)
	}
}

// offer asks a node to take the address.
func (m *Machine) offer(a *address, to string) {
	v := a.move
	v.epoch = max(v.epoch, a.claim.Epoch) + 1
	v.to = to
	v.tried = append(v.tried, to)
	m.wait(a, m.now.Add(m.timing.Offer))
	m.queue(kindOffer, to, Claim{Address: a.ip, Holder: to, Epoch: v.epoch})
	m.count(a) // the next address is placed as if this one had moved
}

// offerNext offers the address to the best candidate that was not tried yet. When all were, a node that cannot serve the
// address gives it up; one that can, and only wants to leave, keeps it and tries again.
func (m *Machine) offerNext(a *address) {
	v := a.move
	v.lingering = false
	if v.rebalance {
		m.endMove(a)
		m.count(a)
		return
	}
	for _, s := range m.standings(a, func(string) bool { return false }) {
		if s.node == m.self || slices.Contains(v.tried, s.node) {
			continue
		}
		m.offer(a, s.node)
		return
	}
	if !m.able(a) {
		m.release(a, reasonNoTaker)
		return
	}
	v.to, v.tried = "", nil
	m.wait(a, m.now.Add(2*m.timing.Retry))
}

// offered takes what another holder hands over, if this node can serve it. The order of effects makes it answer before
// the old holder hears of it and stops.
func (m *Machine) offered(from string, claims []Claim) {
	for _, c := range claims {
		a := m.at(c.Address)
		able := m.able(a) && !m.leaving && m.started && !m.fence.closed
		// An offer that was under way for long, by a cut cable say, may come from one who is no holder any more.
		known := a.claim
		stale := c.Epoch <= known.Epoch || (known.Holder != from && m.live(known))
		if !able || stale || a.held || c.Holder != m.self {
			m.queue(kindRefuse, from, c)
			continue
		}
		m.take(a, c.Epoch, reasonHandedOver)
	}
}

// refused tries the next candidate.
func (m *Machine) refused(from string, claims []Claim) {
	for _, c := range claims {
		a := m.addresses[c.Address]
		if a != nil && a.move != nil && a.move.to == from && a.move.epoch == c.Epoch {
			m.offerNext(a)
		}
	}
}

// leave begins to hand everything over.
func (m *Machine) leave() {
	m.leaving = true
	m.beaconTo(m.others)
	for _, a := range sorted(m.mine) {
		m.evaluate(a)
	}
	for _, a := range m.addresses {
		m.endContest(a)
	}
}
