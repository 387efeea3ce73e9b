package elect

import (
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// lease is the right of this node to answer for the addresses that it holds.
//
// Other nodes take over when they hear nothing from this node for SilenceTimeout and their probes
// get no answer. So a node that is paused or cut off must stop before that. It must not answer
// again until it knows that no other node took over.
//
// The lease is valid while members acknowledge what this node sends, or while a gateway or another
// node answers its liveness probes. A node that reaches others on the segment also answers the
// probe of a node that wants to take over. The lease expires when neither is true any more, and
// after each pause of the process. It is regained when a member has sent all its claims. If no
// member does, it is regained when probes for all held addresses find no other holder.
type lease struct {
	isExpired bool
	expiredAt time.Time // when it expired
	// confirmedAt is when this node sent the last message or probe that was answered.
	confirmedAt time.Time
	lastProbeAt time.Time // when the last liveness probe for the lease was sent
	lastSyncAt  time.Time // when members were last asked for their claims
	// firstValidSyncID is the ID of the first sync that counts. Answers to earlier ones may be from
	// before the pause.
	firstValidSyncID uint64
	// recheckRunning is set while the held addresses are probed; uncheckedCount is the number
	// without a result.
	recheckRunning   bool
	recheckStartedAt time.Time // when it started
	uncheckedCount   int
	// isIsolated is set when nothing else on the segment or in the gossip answers: the probes found
	// no other holder, and this node answers.
	isIsolated bool
}

// startWithFirstAddress starts the lease with the first held address. The probe for it has just
// found no holder, or a holder has just offered it.
func (l *lease) startWithFirstAddress(now time.Time, held int) {
	if held == 1 && !l.isExpired {
		*l = lease{confirmedAt: now, lastProbeAt: now}
	}
}

// recordConfirmation records that something sent at the given time was answered.
func (l *lease) recordConfirmation(sent time.Time) {
	if sent.After(l.confirmedAt) {
		l.confirmedAt = sent
	}
}

// hasPossibleRivals reports whether another node could hold an address that this node holds.
func (m *Machine) hasPossibleRivals() bool {
	if len(m.heldAddresses) == 0 {
		return false
	}
	if len(m.memberNames) > 1 {
		return true
	}
	for g := range m.groupsOfHeldAddresses() {
		if len(g.candidates.Nodes) > 1 {
			return true
		}
	}
	return false
}

func (m *Machine) groupsOfHeldAddresses() map[*candidateGroup]struct{} {
	out := map[*candidateGroup]struct{}{}
	for _, g := range m.groupsByKey {
		if g.countByNode[m.self] > 0 {
			out[g] = struct{}{}
		}
	}
	return out
}

// LeaseDeadline returns until when this node may answer unless it is stepped again before.
func (m *Machine) LeaseDeadline(now time.Time) time.Time {
	l := &m.lease
	if !m.hasPossibleRivals() {
		return now.Add(time.Second)
	}
	if l.isExpired {
		return time.Time{}
	}
	until := m.now.Add(m.timing.LeaseTimeout)
	if len(m.memberNames) > 1 { // others count from the last beacon
		until = m.liveness.lastBeaconAt.Add(m.timing.LeaseTimeout)
	}
	if end := l.confirmedAt.Add(m.timing.ConfirmationTimeout); !l.isIsolated && end.Before(until) {
		until = end
	}
	return until
}

// detectProcessPause expires the lease if the process did not run for so long that another node may
// have taken over. What was found out before the pause does not count any more: another node may
// have taken an address since this node probed for it.
func (m *Machine) detectProcessPause(now time.Time) {
	if now.Sub(m.now) <= m.timing.LeaseTimeout {
		return
	}
	m.now, m.resumedAt = now, now
	m.liveness.restartSilenceTimers(now)
	m.repeatAddressProbes()
	if m.hasPossibleRivals() {
		m.expireLease()
	}
}

// repeatAddressProbes ignores the results of all probes under way, and schedules the acquire probes
// again.
func (m *Machine) repeatAddressProbes() {
	for _, p := range m.probes.takeAll() {
		if a := p.address; a != nil && a.acquisition != nil && a.acquisition.isProbing {
			a.acquisition.isProbing = false
			m.dueAddresses.scheduleAddress(a, m.now)
		}
	}
}

// mayHaveStaleMessages reports whether messages from a pause of this process may still wait. An
// offer among them may have gone to another node meanwhile.
func (m *Machine) mayHaveStaleMessages() bool {
	return !m.resumedAt.IsZero() && m.now.Sub(m.resumedAt) < m.timing.OfferTimeout
}

func (m *Machine) expireLease() {
	l := &m.lease
	*l = lease{isExpired: true, expiredAt: m.now, confirmedAt: l.confirmedAt, firstValidSyncID: m.syncRequests.lastID + 1}
}

// maintainLease sends liveness probes when acknowledgements are missing, expires the lease when
// nothing answers, and tries to regain an expired lease.
func (m *Machine) maintainLease() {
	l := &m.lease
	if len(m.heldAddresses) == 0 || !m.hasPossibleRivals() {
		*l = lease{confirmedAt: m.now}
		return
	}
	if l.isExpired {
		m.tryRegainLease()
		return
	}
	unconfirmed := m.now.Sub(l.confirmedAt)
	if unconfirmed >= m.timing.LivenessProbeDelay && m.now.Sub(l.lastProbeAt) >= m.timing.LivenessProbeInterval {
		l.lastProbeAt = m.now
		m.probeLiveness(pendingProbe{})
	}
	if !l.isIsolated && unconfirmed >= m.timing.ConfirmationTimeout {
		m.expireLease()
		m.tryRegainLease()
	}
}

func (m *Machine) probeLiveness(p pendingProbe) {
	m.outbox.emitEffect(LivenessProbe{
		ID: m.probes.registerProbe(p, m.now), Attempts: m.timing.ProbeAttempts, Interval: m.timing.ProbeInterval,
	})
}

// perProbedAddressDelay is the additional time for each probed address. The engine spreads probes
// over time.
const perProbedAddressDelay = time.Millisecond

// tryRegainLease asks members for their claims. If no member answers, it probes all held addresses.
func (m *Machine) tryRegainLease() {
	l := &m.lease
	if m.now.Sub(l.lastSyncAt) >= m.timing.LivenessProbeInterval {
		l.lastSyncAt = m.now
		for i := range min(3, len(m.otherMembers)) {
			// start with another member each time, since some may be dead
			m.requestSync(m.otherMembers[(int(m.syncRequests.lastID)+i)%len(m.otherMembers)])
		}
		m.probeLiveness(pendingProbe{})
	}
	recheckTimeout := 2*m.timing.StartupDelay + time.Duration(len(m.heldAddresses))*perProbedAddressDelay
	switch {
	case l.recheckRunning && l.uncheckedCount <= 0:
		m.regainLease()
		l.isIsolated = m.now.Sub(l.confirmedAt) >= m.timing.ConfirmationTimeout
	case l.recheckRunning && m.now.Sub(l.recheckStartedAt) < recheckTimeout: // wait for the results
	case m.now.Sub(l.expiredAt) >= m.timing.LivenessProbeDelay:
		l.recheckRunning, l.recheckStartedAt, l.uncheckedCount = true, m.now, len(m.heldAddresses)
		for _, a := range sortedByIP(m.heldAddresses) {
			a.isRechecking = true
			m.probeAddress(a)
		}
	}
}

// handleLivenessResult processes the result of a liveness probe.
func (m *Machine) handleLivenessResult(p pendingProbe, r facts.ProbeResult) {
	if len(r.AnsweringMACs) == 0 {
		return
	}
	if p.node != "" {
		m.applyWatchOutcome(m.liveness.recordOwnConnection(p.node, m.stepFacts(), &m.outbox))
		return
	}
	l := &m.lease
	if l.isIsolated { // no longer: find out what the others did meanwhile
		m.expireLease()
	}
	l.recordConfirmation(p.sentAt)
}

// handleRecheckResult processes the result of a probe for a held address while the lease is
// expired.
func (m *Machine) handleRecheckResult(a *addressState, r facts.ProbeResult) {
	l := &m.lease
	a.isRechecking = false
	if !a.isHeld || !l.isExpired || !l.recheckRunning {
		return
	}
	l.uncheckedCount--
	switch {
	case r.NotSent:
		l.recheckRunning, l.expiredAt = false, m.now // no link works: try later
	case len(r.AnsweringMACs) > 0:
		m.yieldAddress(a)
	}
}

// regainLease lets this node answer again. It announces all addresses, since hosts may have learnt
// another holder.
func (m *Machine) regainLease() {
	l := &m.lease
	l.isExpired, l.recheckRunning = false, false
	l.lastProbeAt = m.now
	for _, a := range sortedByIP(m.heldAddresses) {
		m.outbox.emitAddressEffect(RepeatAnnouncement{a.ip})
	}
}

// finishSync records that a member sent all its claims, and that this node knows them now.
func (m *Machine) finishSync(id uint64, sent time.Time) {
	m.fullStateReceived = true
	l := &m.lease
	if l.isExpired && id >= l.firstValidSyncID {
		m.regainLease()
	}
	l.recordConfirmation(sent)
	l.isIsolated = false
}
