package elect

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// move is an address that this node hands over: it answers until the target does.
type move struct {
	to    string
	until time.Time
	// epoch is the last one offered; each attempt offers a higher one, so that a late answer to an earlier offer
	// cannot be taken for the later holder.
	epoch uint64
	tried []string
}

// beginMove starts to hand the address over.
func (m *Machine) beginMove(a netip.Addr) {
	if v := m.moves[a]; v != nil && (v.to == "" || m.alive(v.to)) {
		return
	}
	m.moves[a] = &move{epoch: m.claims[a].Epoch}
	m.offerNext(a)
}

// overdue returns the addresses whose offer was not answered in time, sorted.
func (m *Machine) overdue() []netip.Addr {
	var out []netip.Addr
	for a, v := range m.moves {
		if !m.now.Before(v.until) {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// offerNext offers the address to the best candidate that was not tried yet. When all were, a node that cannot serve the
// address gives it up; one that can, and only wants to leave, keeps it and tries again.
func (m *Machine) offerNext(a netip.Addr) {
	v := m.moves[a]
	bid := m.bids[a]
	for _, n := range bid.Candidates {
		if n == m.self || slices.Contains(v.tried, n) || !m.alive(n) || m.watch.leaving[n] {
			continue
		}
		v.epoch++
		v.to, v.until = n, m.now.Add(m.timing.Offer)
		v.tried = append(v.tried, n)
		m.send(n, appendClaims(header(kindOffer), []Claim{{Address: a, Holder: n, Epoch: v.epoch}}))
		return
	}
	if !bid.Eligible(m.self) || len(bid.Links) == 0 {
		m.release(a, "this node cannot serve it and no other node takes it")
		return
	}
	v.to, v.until, v.tried = "", m.now.Add(2*m.timing.Retry), nil
}

// offered takes what another holder hands over, if this node can serve it. The order of effects makes it answer before
// the old holder hears of it and stops.
func (m *Machine) offered(from string, claims []Claim) {
	var refuse []Claim
	for _, c := range claims {
		bid := m.bids[c.Address]
		known := m.claims[c.Address]
		able := bid.Eligible(m.self) && len(bid.Links) > 0 && !m.leaving && m.started
		// An offer that was under way for long, by a cut cable say, may come from one who is no holder any more.
		stale := c.Epoch <= known.Epoch || (known.Holder != from && m.live(known))
		if !able || stale || c.Holder != m.self {
			refuse = append(refuse, c)
			continue
		}
		m.take(c.Address, c.Epoch, fmt.Sprintf("node %s handed it over", from))
	}
	if len(refuse) > 0 {
		m.send(from, appendClaims(header(kindRefuse), refuse))
	}
}

// refused tries the next candidate.
func (m *Machine) refused(from string, claims []Claim) {
	for _, c := range claims {
		if v := m.moves[c.Address]; v != nil && v.to == from && v.epoch == c.Epoch {
			m.offerNext(c.Address)
		}
	}
}
