package elect

import (
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// fence says whether this node may answer for what it holds. Others take over from a node that they do not hear for
// Silence, after they asked the wire. So a node that does not run, or that is cut off, has to be silent before that;
// and it must not answer again before it knows that nobody took over.
//
// It is open while what this node sends is acknowledged, or while a gateway or another node answers it on the wire: who
// can be heard on the wire is heard by whoever asks the wire before a takeover. It closes when that ends, and after each
// pause of the process. Closed, it opens again when a member has told all that it knows; or, when no member
// does, when the wire is silent about every address that is held.
type fence struct {
	closed bool
	since  time.Time // closed since
	// confirmed is when the last thing was sent that was answered.
	confirmed time.Time
	asked     time.Time // when the wire was last asked for gateways and nodes
	synced    time.Time // when members were last asked what they know
	// request is the first question to members that counts; older answers may be from before the pause.
	request uint64
	// wire says that the addresses are being asked for; unchecked counts those without an answer.
	wire      bool
	wired     time.Time // since when
	unchecked int
	// lonely says that nobody answers at all: the addresses were silent on the wire, and this node goes on.
	lonely bool
}

// begin starts the trust with the first address that is held: the wire was just asked, or a holder just spoke.
func (f *fence) begin(now time.Time, held int) {
	if held == 1 && !f.closed {
		*f = fence{confirmed: now, asked: now}
	}
}

// confirm takes in that something which was sent at the given time was answered.
func (f *fence) confirm(sent time.Time) {
	if sent.After(f.confirmed) {
		f.confirmed = sent
	}
}

// rivals says whether any other node could hold what this one holds.
func (m *Machine) rivals() bool {
	if len(m.mine) == 0 {
		return false
	}
	if len(m.ring) > 1 {
		return true
	}
	for g := range m.groupsOfMine() {
		if len(g.candidates.Nodes) > 1 {
			return true
		}
	}
	return false
}

func (m *Machine) groupsOfMine() map[*group]struct{} {
	out := map[*group]struct{}{}
	for _, g := range m.groups {
		if g.load[m.self] > 0 {
			out[g] = struct{}{}
		}
	}
	return out
}

// Fence returns until when this node may answer, if it is not stepped again before.
func (m *Machine) Fence(now time.Time) time.Time {
	f := &m.fence
	if !m.rivals() {
		return now.Add(time.Second)
	}
	if f.closed {
		return time.Time{}
	}
	until := m.now.Add(m.timing.Lease)
	if len(m.ring) > 1 { // others count from the last beacon
		until = m.watch.lastBeacon.Add(m.timing.Lease)
	}
	if end := f.confirmed.Add(m.timing.Trust); !f.lonely && end.Before(until) {
		until = end
	}
	return until
}

// gap notices that the process did not run for as long as others wait for it: somebody may have taken over meanwhile.
func (m *Machine) gap(now time.Time) {
	if now.Sub(m.now) <= m.timing.Lease {
		return
	}
	m.watch.forgive(now)
	if m.rivals() {
		m.now = now
		m.closeFence()
	}
}

func (m *Machine) closeFence() {
	f := &m.fence
	*f = fence{closed: true, since: m.now, confirmed: f.confirmed, request: m.requests + 1}
}

// doubt keeps the fence: it asks the wire when acknowledgements are missing, and asks to be let in again.
func (m *Machine) doubt() {
	f := &m.fence
	if len(m.mine) == 0 || !m.rivals() {
		*f = fence{confirmed: m.now}
		return
	}
	if f.closed {
		m.reopen()
		return
	}
	late := m.now.Sub(f.confirmed)
	if late >= m.timing.Doubt && m.now.Sub(f.asked) >= m.timing.Recheck {
		f.asked = m.now
		m.ask(question{})
	}
	if !f.lonely && late >= m.timing.Trust {
		m.closeFence()
		m.reopen()
	}
}

func (m *Machine) ask(q question) {
	m.effect(Ask{ID: m.question(q), Attempts: m.timing.ProbeAttempts, Interval: m.timing.ProbeInterval})
}

// perQuestion is how much longer the wire may take for each address that it is asked about: the questions are paced.
const perQuestion = time.Millisecond

// reopen asks the members what they know; when none of them says, the wire is asked for every address.
func (m *Machine) reopen() {
	f := &m.fence
	if m.now.Sub(f.synced) >= m.timing.Recheck {
		f.synced = m.now
		for i := range min(3, len(m.others)) { // others each time, since some may be dead
			m.sync(m.others[(int(m.requests)+i)%len(m.others)])
		}
		m.ask(question{})
	}
	switch {
	case f.wire && f.unchecked <= 0:
		m.openFence()
		f.lonely = m.now.Sub(f.confirmed) >= m.timing.Trust
	case f.wire && m.now.Sub(f.wired) < 2*m.timing.Settle+time.Duration(len(m.mine))*perQuestion:
	case m.now.Sub(f.since) >= m.timing.Doubt:
		f.wire, f.wired, f.unchecked = true, m.now, len(m.mine)
		for _, a := range sorted(m.mine) {
			a.checking = true
			m.probe(a)
		}
	}
}

// asked takes in whether a gateway or another node answered.
func (m *Machine) asked(q question, r facts.ProbeResult) {
	if len(r.Answers) == 0 {
		return
	}
	if q.node != "" {
		if h := m.watch.heard[q.node]; h != nil && h.silent && !m.watch.vouches(q.node, m.self) {
			m.watch.vouch(q.node, m.self)
			h.told = m.now
			m.tellSuspicion(q.node, h)
		}
		return
	}
	f := &m.fence
	if f.lonely { // somebody is there again: what did they do meanwhile?
		m.closeFence()
	}
	f.confirm(q.sent)
}

// checked takes in what the wire says about an address that this node holds while it does not answer for it.
func (m *Machine) checked(a *address, r facts.ProbeResult) {
	f := &m.fence
	a.checking = false
	if !a.held || !f.closed || !f.wire {
		return
	}
	f.unchecked--
	switch {
	case r.Unasked:
		f.wire, f.since = false, m.now // no link works: later
	case len(r.Answers) > 0:
		m.yield(a)
	}
}

// openFence lets this node answer again. Its neighbours may have learnt another holder meanwhile.
func (m *Machine) openFence() {
	f := &m.fence
	f.closed, f.wire = false, false
	f.asked = m.now
	for _, a := range sorted(m.mine) {
		m.hold(Announce{a.ip})
	}
}

// vouched takes in that a member told all that it knows, and that this node knows it now.
func (m *Machine) vouched(id uint64, sent time.Time) {
	m.synced = true
	f := &m.fence
	if f.closed && id >= f.request {
		m.openFence()
	}
	f.confirm(sent)
	f.lonely = false
}
