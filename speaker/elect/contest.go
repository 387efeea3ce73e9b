package elect

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// contest is an address that this node waits to take, or asks the wire about.
type contest struct {
	at      time.Time
	probing bool
	// answered counts how often the wire was not silent, first is when that began.
	answered int
	first    time.Time
	why      string
}

// evaluateAll looks at every address again.
func (m *Machine) evaluateAll() {
	for a := range m.bids {
		m.evaluate(a)
	}
	for a := range m.mine {
		if _, ok := m.bids[a]; !ok {
			m.evaluate(a)
		}
	}
	for a := range m.contests {
		if _, ok := m.bids[a]; !ok {
			delete(m.contests, a)
		}
	}
}

// evaluate brings what this node does about an address in line with what it knows of it.
func (m *Machine) evaluate(a netip.Addr) {
	bid := m.bids[a]
	able := bid.Eligible(m.self) && len(bid.Links) > 0
	if _, held := m.mine[a]; held {
		switch {
		case len(bid.Candidates) == 0:
			m.release(a, "nothing can serve it any more")
		case !able || m.leaving:
			m.beginMove(a)
		default:
			delete(m.moves, a)
		}
		return
	}
	c, known := m.claims[a]
	if !able || m.leaving || !m.started || (known && m.live(c)) {
		delete(m.contests, a)
		return
	}
	if m.contests[a] != nil {
		return
	}
	why := "nobody held it"
	if known && !c.Released {
		why = fmt.Sprintf("%s is gone", c.Holder)
	}
	m.contests[a] = &contest{at: m.now.Add(time.Duration(m.position(bid.Candidates)) * m.timing.Delta), why: why}
}

// position is this node's place among the candidates that could take the address now.
func (m *Machine) position(candidates []string) int {
	i := 0
	for _, n := range candidates {
		if n == m.self {
			break
		}
		if m.alive(n) && !m.watch.leaving[n] {
			i++
		}
	}
	return i
}

// alive says whether the node is a member that is not given up for dead.
func (m *Machine) alive(n string) bool {
	p, ok := m.members[n]
	return ok && !m.watch.isDead(n, p.Nonce)
}

// live says whether the claim binds: its holder is alive, in the same life in which it made the claim.
func (m *Machine) live(c Claim) bool {
	if c.Released || !m.alive(c.Holder) {
		return false
	}
	if c.Holder == m.self { // a claim of a former life of ours, or one whose address we gave up
		_, held := m.mine[c.Address]
		return held && c.Nonce == m.nonce
	}
	n := m.members[c.Holder].Nonce
	return n == 0 || n == c.Nonce
}

// due returns the addresses whose wait is over, sorted.
func (m *Machine) due() []netip.Addr {
	var out []netip.Addr
	for a, c := range m.contests {
		if !c.probing && !m.now.Before(c.at) {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// probe asks the wire before the address is taken.
func (m *Machine) probe(a netip.Addr) {
	m.contests[a].probing = true
	m.probeID++
	m.probes[m.probeID] = a
	m.out.effects = append(m.out.effects, Probe{
		ID: m.probeID, Address: a, Links: m.bids[a].Links, Attempts: m.timing.ProbeAttempts, Interval: m.timing.ProbeInterval,
	})
}

// strayAnswers is how often a member may answer without a claim before the address is taken all the same: its kernel
// answers, not its speaker (proxy ARP, or IPVS without strictARP).
const strayAnswers = 3

// probed takes in what the wire said.
func (m *Machine) probed(r facts.ProbeResult) {
	if node, ok := m.gateways[r.ID]; ok {
		delete(m.gateways, r.ID)
		if len(r.Answers) > 0 {
			m.watch.reachable(node)
			m.judge(node)
		}
		return
	}
	a, ok := m.probes[r.ID]
	delete(m.probes, r.ID)
	c := m.contests[a]
	if !ok || c == nil {
		return
	}
	c.probing = false
	switch {
	case r.Unasked: // no link worked: that is no silence
		c.at = m.now.Add(4 * m.timing.Retry)
	case len(r.Answers) == 0:
		m.take(a, m.claims[a].Epoch+1, c.why)
	default:
		m.answered(a, c, r.Answers[0])
	}
}

// answered handles an address for which somebody answered though no live claim is known.
func (m *Machine) answered(a netip.Addr, c *contest, mac facts.MAC) {
	if c.answered++; c.answered == 1 {
		c.first = m.now
	}
	c.at = m.now.Add(m.timing.Retry)
	owner, member := m.owner(mac)
	switch {
	case !member:
		c.at = m.now.Add(4 * m.timing.Retry)
		if c.answered == 1 {
			m.note(NoteConflict, a, mac, fmt.Sprintf("a host that is no member (%s) answers for %s: take the address from that host or out of the pool", mac, a))
		}
	case c.answered >= strayAnswers && m.watch.told[owner].After(c.first): // it was asked, and claims nothing
		m.note(NoteStray, a, mac, fmt.Sprintf("node %s (%s) answers for %s without holding it: look for proxy ARP, or for kube-proxy in ipvs mode without strictARP", owner, mac, a))
		m.take(a, m.claims[a].Epoch+1, c.why)
	default: // its claim may be on the way
		m.send(owner, header(kindRequest))
	}
}

// owner returns the member that has the Ethernet address.
func (m *Machine) owner(mac facts.MAC) (string, bool) {
	for _, n := range m.ring {
		if slices.Contains(m.members[n].MACs, mac) {
			return n, true
		}
	}
	return "", false
}

// take begins to hold the address.
func (m *Machine) take(a netip.Addr, epoch uint64, why string) {
	delete(m.contests, a)
	c := Claim{Address: a, Holder: m.self, Nonce: m.nonce, Epoch: epoch}
	m.mine[a] = struct{}{}
	m.record(c)
	m.out.changed = true
	m.out.tell = append(m.out.tell, c)
	m.note(NoteTaken, a, facts.MAC{}, fmt.Sprintf("%s is held by node %s from now on: %s", a, m.self, why))
}

// release gives the address up without a successor. The epoch stays: a node that is cut off releases too, and must not
// outdo the claim of whoever took over meanwhile.
func (m *Machine) release(a netip.Addr, why string) {
	m.stop(a, why)
	c := m.claims[a]
	c.Released = true
	m.record(c)
	m.out.tell = append(m.out.tell, c)
}

// stop ends the answering at once.
func (m *Machine) stop(a netip.Addr, why string) {
	delete(m.mine, a)
	delete(m.moves, a)
	m.out.changed = true
	m.note(NoteGiven, a, facts.MAC{}, fmt.Sprintf("%s is not held by node %s any more: %s", a, m.self, why))
}

// foreign handles another host's claim to an address that this node holds, seen on the wire. Two members that both hold
// it have not heard each other: they exchange claims, and the epoch decides.
func (m *Machine) foreign(f facts.ForeignClaim) {
	if _, held := m.mine[f.Address]; !held {
		return
	}
	owner, member := m.owner(f.MAC)
	if !member {
		m.out.effects = append(m.out.effects, Rejoin{}) // it may be a member that this one has lost
		m.note(NoteConflict, f.Address, f.MAC, fmt.Sprintf("another host (%s) claims %s, which this node holds: take the address from that host or out of the pool", f.MAC, f.Address))
		return
	}
	m.sendClaims(owner, []Claim{m.claims[f.Address]})
	m.send(owner, header(kindRequest))
}
