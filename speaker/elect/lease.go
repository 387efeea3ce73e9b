package elect

import (
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// lease says whether this node may answer for what it holds. Others take over from a node that they do not hear for
// Silence, after they asked the wire. So a node that does not run, or that is cut off, has to be silent before that;
// and it must not answer again before it knows that nobody took over.
//
// It is open while what this node sends is acknowledged, or while a gateway or another node answers it on the wire: who
// can be heard on the wire is heard by whoever asks the wire before a takeover. It closes when that ends, and after each
// pause of the process. Closed, it opens again when a member has told all that it knows; or, when no member
// does, when the wire is silent about every address that is held.
type lease struct {
	expired   bool
	expiredAt time.Time // closed since
	// confirmedAt is when the last thing was sent that was answered.
	confirmedAt time.Time
	lastProbeAt time.Time // when the wire was last asked for gateways and nodes
	lastSyncAt  time.Time // when members were last asked what they know
	// firstValidSync is the first question to members that counts; older answers may be from before the pause.
	firstValidSync uint64
	// recheckRunning says that the addresses are being asked for; unchecked counts those without an answer.
	recheckRunning   bool
	recheckStartedAt time.Time // since when
	uncheckedCount   int
	// isolated says that nobody answers at all: the addresses were silent on the wire, and this node goes on.
	isolated bool
}

// startIfFirst starts the trust with the first address that is held: the wire was just asked, or a holder just spoke.
func (f *lease) startIfFirst(now time.Time, held int) {
	if held == 1 && !f.expired {
		*f = lease{confirmedAt: now, lastProbeAt: now}
	}
}

// confirmSent takes in that something which was sent at the given time was answered.
func (f *lease) confirmSent(sent time.Time) {
	if sent.After(f.confirmedAt) {
		f.confirmedAt = sent
	}
}

// hasRivals says whether any other node could hold what this one holds.
func (m *Machine) hasRivals() bool {
	if len(m.heldAddresses) == 0 {
		return false
	}
	if len(m.memberNames) > 1 {
		return true
	}
	for g := range m.heldGroups() {
		if len(g.candidates.Nodes) > 1 {
			return true
		}
	}
	return false
}

func (m *Machine) heldGroups() map[*candidateGroup]struct{} {
	out := map[*candidateGroup]struct{}{}
	for _, g := range m.groupsByKey {
		if g.countByNode[m.self] > 0 {
			out[g] = struct{}{}
		}
	}
	return out
}

// LeaseDeadline returns until when this node may answer, if it is not stepped again before.
func (m *Machine) LeaseDeadline(now time.Time) time.Time {
	f := &m.lease
	if !m.hasRivals() {
		return now.Add(time.Second)
	}
	if f.expired {
		return time.Time{}
	}
	until := m.now.Add(m.timing.LeaseTimeout)
	if len(m.memberNames) > 1 { // others count from the last beacon
		until = m.liveness.lastBeaconAt.Add(m.timing.LeaseTimeout)
	}
	if end := f.confirmedAt.Add(m.timing.ConfirmationTimeout); !f.isolated && end.Before(until) {
		until = end
	}
	return until
}

// detectPause notices that the process did not run for as long as others wait for it: somebody may have taken over meanwhile.
func (m *Machine) detectPause(now time.Time) {
	if now.Sub(m.now) <= m.timing.LeaseTimeout {
		return
	}
	m.liveness.restartSilence(now)
	if m.hasRivals() {
		m.now = now
		m.expireLease()
	}
}

func (m *Machine) expireLease() {
	f := &m.lease
	*f = lease{expired: true, expiredAt: m.now, confirmedAt: f.confirmedAt, firstValidSync: m.lastSyncID + 1}
}

// maintainLease keeps the fence: it asks the wire when acknowledgements are missing, and asks to be let in again.
func (m *Machine) maintainLease() {
	f := &m.lease
	if len(m.heldAddresses) == 0 || !m.hasRivals() {
		*f = lease{confirmedAt: m.now}
		return
	}
	if f.expired {
		m.tryRegainLease()
		return
	}
	late := m.now.Sub(f.confirmedAt)
	if late >= m.timing.LivenessProbeDelay && m.now.Sub(f.lastProbeAt) >= m.timing.LivenessProbeInterval {
		f.lastProbeAt = m.now
		m.probeLiveness(pendingProbe{})
	}
	if !f.isolated && late >= m.timing.ConfirmationTimeout {
		m.expireLease()
		m.tryRegainLease()
	}
}

func (m *Machine) probeLiveness(q pendingProbe) {
	m.emitEffect(LivenessProbe{ID: m.registerProbe(q), Attempts: m.timing.ProbeAttempts, Interval: m.timing.ProbeInterval})
}

// probePacingInterval is how much longer the wire may take for each address that it is asked about: the questions are paced.
const probePacingInterval = time.Millisecond

// tryRegainLease asks the members what they know; when none of them says, the wire is asked for every address.
func (m *Machine) tryRegainLease() {
	f := &m.lease
	if m.now.Sub(f.lastSyncAt) >= m.timing.LivenessProbeInterval {
		f.lastSyncAt = m.now
		for i := range min(3, len(m.otherMembers)) { // others each time, since some may be dead
			m.requestSync(m.otherMembers[(int(m.lastSyncID)+i)%len(m.otherMembers)])
		}
		m.probeLiveness(pendingProbe{})
	}
	switch {
	case f.recheckRunning && f.uncheckedCount <= 0:
		m.regainLease()
		f.isolated = m.now.Sub(f.confirmedAt) >= m.timing.ConfirmationTimeout
	case f.recheckRunning && m.now.Sub(f.recheckStartedAt) < 2*m.timing.StartupDelay+time.Duration(len(m.heldAddresses))*probePacingInterval:
	case m.now.Sub(f.expiredAt) >= m.timing.LivenessProbeDelay:
		f.recheckRunning, f.recheckStartedAt, f.uncheckedCount = true, m.now, len(m.heldAddresses)
		for _, a := range sortedByIP(m.heldAddresses) {
			a.rechecking = true
			m.probeAddress(a)
		}
	}
}

// handleLivenessResult takes in whether a gateway or another node answered.
func (m *Machine) handleLivenessResult(q pendingProbe, r facts.ProbeResult) {
	if len(r.Answers) == 0 {
		return
	}
	if q.node != "" {
		if h := m.liveness.recordsByMember[q.node]; h != nil && h.silent && !m.liveness.isConnectedWitness(q.node, m.self) {
			m.liveness.addConnectedWitness(q.node, m.self)
			h.reportedAt = m.now
			m.broadcastSuspicion(q.node, h)
		}
		return
	}
	f := &m.lease
	if f.isolated { // somebody is there again: what did they do meanwhile?
		m.expireLease()
	}
	f.confirmSent(q.sentAt)
}

// handleRecheckResult takes in what the wire says about an address that this node holds while it does not answer for it.
func (m *Machine) handleRecheckResult(a *addressState, r facts.ProbeResult) {
	f := &m.lease
	a.rechecking = false
	if !a.held || !f.expired || !f.recheckRunning {
		return
	}
	f.uncheckedCount--
	switch {
	case r.NotSent:
		f.recheckRunning, f.expiredAt = false, m.now // no link works: later
	case len(r.Answers) > 0:
		m.yieldAddress(a)
	}
}

// regainLease lets this node answer again. Its neighbours may have learnt another holder meanwhile.
func (m *Machine) regainLease() {
	f := &m.lease
	f.expired, f.recheckRunning = false, false
	f.lastProbeAt = m.now
	for _, a := range sortedByIP(m.heldAddresses) {
		m.emitAddressEffect(RepeatAnnouncement{a.ip})
	}
}

// finishSync takes in that a member told all that it knows, and that this node knows it now.
func (m *Machine) finishSync(id uint64, sent time.Time) {
	m.stateSynced = true
	f := &m.lease
	if f.expired && id >= f.firstValidSync {
		m.regainLease()
	}
	f.confirmSent(sent)
	f.isolated = false
}
