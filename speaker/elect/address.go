package elect

import (
	"container/heap"
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// address is everything that this node knows and does about one address. It has at most one of a contest and a move.
type address struct {
	ip    netip.Addr
	bid   intent.Bid // without candidates when nobody may hold the address
	claim Claim      // the highest that is known
	held  bool
	// contest is under way while this node is about to take the address, move while it is about to hand it over.
	contest *contest
	move    *move
	// checking says that the wire is asked whether this node is still the holder; see fence.go.
	checking bool
	// rumour is a higher claim than this node's, of a holder that seems not to live, since when it is known; see claims.go.
	rumour      Claim
	rumourSince time.Time
	// disputed is when another member was last told that this node holds the address, because it seemed to hold it too.
	disputed time.Time
	// due is when the contest or the move wants to go on; slot is the place in the waiting line, -1 outside of it.
	due  time.Time
	slot int
	// group and owner are what the address counts for in the spread; see place.go.
	group *group
	owner string
	// idle is since when nobody may hold the address.
	idle time.Time
}

// at returns the record of the address, which is made if there is none.
func (m *Machine) at(ip netip.Addr) *address {
	a := m.addresses[ip]
	if a == nil {
		a = &address{ip: ip, slot: -1, idle: m.now, claim: Claim{Address: ip}}
		m.addresses[ip] = a
		m.parts[bucketOf(ip)].add(a)
	}
	return a
}

// able says whether this node could hold the address.
func (m *Machine) able(a *address) bool {
	return a.bid.Eligible(m.self) && len(a.bid.Links) > 0
}

// evaluate brings what this node does about an address in line with what it knows of it.
func (m *Machine) evaluate(a *address) {
	able := m.able(a) && !m.leaving
	switch {
	case a.held && a.bid.Candidates == nil:
		m.release(a, reasonNobodyServes)
	case a.held && !able && a.bid.Grace && !m.leaving:
		m.linger(a)
	case a.held && !able:
		m.beginMove(a)
	case a.held:
		if a.move != nil && !a.move.rebalance {
			m.endMove(a)
		}
	case !able || !m.started || m.live(a.claim):
		m.endContest(a)
	case a.contest == nil:
		m.unplaced[a] = struct{}{}
	}
	m.count(a)
}

// record puts a claim in the place of the former.
func (m *Machine) record(a *address, c Claim) {
	if old := a.claim; old.Epoch > 0 && old.Holder != c.Holder {
		delete(m.holders[old.Holder], a)
		if len(m.holders[old.Holder]) == 0 {
			delete(m.holders, old.Holder)
		}
	}
	change := a.claim.hash() ^ c.hash()
	m.digest ^= change
	m.parts[bucketOf(a.ip)].change(change)
	a.claim = c
	if m.holders[c.Holder] == nil {
		m.holders[c.Holder] = map[*address]struct{}{}
	}
	m.holders[c.Holder][a] = struct{}{}
	m.count(a)
}

// live says whether the claim binds: its holder is alive, in the same life in which it made the claim.
func (m *Machine) live(c Claim) bool {
	if c.Epoch == 0 || c.Released || !m.alive(c.Holder) {
		return false
	}
	if c.Holder == m.self { // a claim of a former life of ours, or one whose address we gave up
		return m.at(c.Address).held && c.Nonce == m.nonce
	}
	n := m.members[c.Holder].Nonce
	return n == 0 || n == c.Nonce
}

// wait has the address looked at again at the given time.
func (m *Machine) wait(a *address, due time.Time) {
	a.due = due
	if a.slot < 0 {
		heap.Push(&m.waiting, a)
		return
	}
	heap.Fix(&m.waiting, a.slot)
}

// rest undoes wait.
func (m *Machine) rest(a *address) {
	if a.slot >= 0 {
		heap.Remove(&m.waiting, a.slot)
	}
}

// forgetAfter is how long a claim to an address that nobody may hold is remembered: longer than a partition that is
// noticed takes to heal, so that an old claim does not come back as a new one.
const forgetAfter = 10 * time.Minute

// forget drops what is known of addresses that nobody may hold: first the claims of holders that are gone count as
// released, which every member finds out alike; a while later the record goes. It looks at one bucket a call.
func (m *Machine) forget() {
	if m.now.Sub(m.swept) < time.Second {
		return
	}
	m.swept = m.now
	m.sweep = (m.sweep + 1) % buckets
	for a := range m.parts[m.sweep].addresses {
		if a.bid.Candidates != nil || a.held || !m.started {
			a.idle = m.now
			continue
		}
		old := m.now.Sub(a.idle)
		if c := a.claim; old >= forgetAfter/10 && c.Epoch > 0 && !c.Released && !m.live(c) {
			c.Released = true
			m.record(a, c)
		}
		if old >= forgetAfter && (a.claim.Epoch == 0 || a.claim.Released) {
			m.parts[m.sweep].remove(a)
			delete(m.holders[a.claim.Holder], a)
			delete(m.addresses, a.ip)
			delete(m.echoes, a)
		}
	}
}

// line is the addresses that wait for a time, the next one first.
type line []*address

// Len is part of heap.Interface, as are the following.
func (l line) Len() int { return len(l) }

// Less orders by time, then address, so that a run in virtual time can be repeated.
func (l line) Less(i, j int) bool {
	if !l[i].due.Equal(l[j].due) {
		return l[i].due.Before(l[j].due)
	}
	return l[i].ip.Less(l[j].ip)
}

// Swap exchanges two addresses.
func (l line) Swap(i, j int) {
	l[i], l[j] = l[j], l[i]
	l[i].slot, l[j].slot = i, j
}

// Push appends an address.
func (l *line) Push(x any) {
	a := x.(*address)
	a.slot = len(*l)
	*l = append(*l, a)
}

// Pop takes the last address off.
func (l *line) Pop() any {
	last := len(*l) - 1
	a := (*l)[last]
	(*l)[last] = nil
	*l, a.slot = (*l)[:last], -1
	return a
}
