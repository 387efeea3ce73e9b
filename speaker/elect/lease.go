package elect

import (
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// lease is the right of this node to answer for the addresses that it holds.
//
// Other nodes take over when they hear nothing from this node for MemberSilenceTimeout and their
// probes get no answer. So a node that is paused or cut off must stop before that. It must not
// answer again until it knows that no other node took over.
//
// The lease is valid while members acknowledge what this node sends, or while a gateway or another
// node answers its reachability probes. A node that reaches others on the segment also answers the
// probe of a node that wants to take over. The lease expires when neither is true any more, and
// after each pause of the process. It is regained when a member has sent all its claims. If no
// member does, it is regained when probes for all held addresses find no other holder.
type lease struct {
	isExpired bool
	expiredAt time.Time // when it expired
	// lastAnsweredMessageSentAt is when this node sent the last message or probe that was answered.
	lastAnsweredMessageSentAt time.Time
	lastReachabilityProbeAt   time.Time // when the last reachability probe for the lease was sent
	lastSyncRequestedAt       time.Time // when members were last asked for their claims
	// firstValidSyncID is the ID of the first sync that counts. Answers to earlier ones may be from
	// before the pause.
	firstValidSyncID uint64
	// recheckRunning is set while the held addresses are probed; addressCountLeftToRecheck is the
	// number without a result.
	recheckRunning            bool
	recheckStartedAt          time.Time // when it started
	addressCountLeftToRecheck int
	// isAnsweringInIsolation is set when nothing else on the segment or in the gossip answers: the
	// probes found no other holder, and this node answers.
	isAnsweringInIsolation bool
}

// startWithFirstAddress starts the lease with the first held address. The probe for it has just
// found no holder, or a holder has just offered it.
func (l *lease) startWithFirstAddress(now time.Time, held int) {
	if held == 1 && !l.isExpired {
		*l = lease{lastAnsweredMessageSentAt: now, lastReachabilityProbeAt: now}
	}
}

// recordConfirmation records that something sent at the given time was answered.
func (l *lease) recordConfirmation(sent time.Time) {
	if sent.After(l.lastAnsweredMessageSentAt) {
		l.lastAnsweredMessageSentAt = sent
	}
}

// deadline is until when this node may answer unless it is stepped again before. Others count from
// the last beacon.
func (l *lease) deadline(f stepContext, lastBeaconAt time.Time) time.Time {
	if l.isExpired {
		return time.Time{}
	}
	until := f.now.Add(f.timing.LeaseAfterOwnBeaconTimeout)
	if len(f.members.memberNames) > 1 {
		until = lastBeaconAt.Add(f.timing.LeaseAfterOwnBeaconTimeout)
	}
	if end := l.lastAnsweredMessageSentAt.Add(f.timing.LeaseConfirmationTimeout); !l.isAnsweringInIsolation && end.Before(until) {
		until = end
	}
	return until
}

// expireLease forbids this node to answer. Only a sync with the given ID or a later one counts
// after that.
func (l *lease) expireLease(now time.Time, nextSyncID uint64) {
	*l = lease{isExpired: true, expiredAt: now, lastAnsweredMessageSentAt: l.lastAnsweredMessageSentAt, firstValidSyncID: nextSyncID}
}

// leaseActions is what the owner of the lease has to do after a call.
type leaseActions struct {
	reachabilityProbeCount int  // reachability probes to send
	askMembersForClaims    bool // ask members for their claims
	recheckHeldAddresses   bool // probe all held addresses
	// isRegained means to announce all held addresses, since hosts may have learnt another holder.
	isRegained bool
}

// maintainLease asks for reachability probes when acknowledgements are missing, expires the lease
// when nothing answers, and tries to regain an expired lease. heldCount is the number of held
// addresses that another node could hold.
func (l *lease) maintainLease(f stepContext, heldCount int, nextSyncID uint64) leaseActions {
	var o leaseActions
	if heldCount == 0 {
		*l = lease{lastAnsweredMessageSentAt: f.now}
		return o
	}
	if l.isExpired {
		l.tryRegainLease(f, heldCount, &o)
		return o
	}
	unconfirmed := f.now.Sub(l.lastAnsweredMessageSentAt)
	if unconfirmed >= f.timing.UnconfirmedBeforeReachabilityProbeDelay && f.now.Sub(l.lastReachabilityProbeAt) >= f.timing.ReachabilityProbeInterval {
		l.lastReachabilityProbeAt = f.now
		o.reachabilityProbeCount++
	}
	if !l.isAnsweringInIsolation && unconfirmed >= f.timing.LeaseConfirmationTimeout {
		l.expireLease(f.now, nextSyncID)
		l.tryRegainLease(f, heldCount, &o)
	}
	return o
}

// extraPerAddressRecheckTimeout is the additional time for each probed address. The engine spreads
// probes over time.
const extraPerAddressRecheckTimeout = time.Millisecond

// tryRegainLease asks members for their claims. If no member answers, it asks for probes for all
// held addresses.
func (l *lease) tryRegainLease(f stepContext, heldCount int, o *leaseActions) {
	if f.now.Sub(l.lastSyncRequestedAt) >= f.timing.ReachabilityProbeInterval {
		l.lastSyncRequestedAt = f.now
		o.askMembersForClaims = true
		o.reachabilityProbeCount++
	}
	recheckTimeout := 2*f.timing.StartupWithoutMembersDelay + time.Duration(heldCount)*extraPerAddressRecheckTimeout
	switch {
	case l.recheckRunning && l.addressCountLeftToRecheck <= 0:
		l.markRegained(f.now)
		o.isRegained = true
		l.isAnsweringInIsolation = f.now.Sub(l.lastAnsweredMessageSentAt) >= f.timing.LeaseConfirmationTimeout
	case l.recheckRunning && f.now.Sub(l.recheckStartedAt) < recheckTimeout: // wait for the results
	case f.now.Sub(l.expiredAt) >= f.timing.UnconfirmedBeforeReachabilityProbeDelay+f.extraDelayForOwnLateness():
		l.recheckRunning, l.recheckStartedAt, l.addressCountLeftToRecheck = true, f.now, heldCount
		o.recheckHeldAddresses = true
	}
}

// handleReachabilityProbeResult processes an answer to a reachability probe that was sent at the
// given time.
func (l *lease) handleReachabilityProbeResult(sent, now time.Time, nextSyncID uint64) {
	if l.isAnsweringInIsolation { // no longer: find out what the others did meanwhile
		l.expireLease(now, nextSyncID)
	}
	l.recordConfirmation(sent)
}

// handleRecheckResult processes the result of a probe for a held address while the lease is
// expired. It reports whether another node holds the address.
func (l *lease) handleRecheckResult(a *addressState, r facts.ProbeResult, now time.Time) (isHeldElsewhere bool) {
	a.isRechecking = false
	if !a.isHeldBySelf || !l.isExpired || !l.recheckRunning {
		return false
	}
	l.addressCountLeftToRecheck--
	if r.NoFrameSent {
		l.recheckRunning, l.expiredAt = false, now // no link works: try later
		return false
	}
	return len(r.AnsweringMACs) > 0
}

// markRegained lets this node answer again.
func (l *lease) markRegained(now time.Time) {
	l.isExpired, l.recheckRunning = false, false
	l.lastReachabilityProbeAt = now
}

// recordFinishedSync records that a member sent all its claims, and that this node knows them now.
// It reports whether this node may answer again.
func (l *lease) recordFinishedSync(id uint64, sent, now time.Time) (isRegained bool) {
	if l.isExpired && id >= l.firstValidSyncID {
		l.markRegained(now)
		isRegained = true
	}
	l.recordConfirmation(sent)
	l.isAnsweringInIsolation = false
	return isRegained
}

// hasPossibleRivals reports whether another node could hold an address that this node holds.
func (m *Machine) hasPossibleRivals() bool {
	if len(m.addressesHeldBySelf) == 0 {
		return false
	}
	return len(m.memberNames) > 1 || m.addressGroupsByCandidates.canOthersHoldAddressesOf(m.self)
}

// LeaseDeadline returns until when this node may answer unless it is stepped again before.
func (m *Machine) LeaseDeadline(now time.Time) time.Time {
	if !m.hasPossibleRivals() {
		if len(m.pendingProbes.addressesAnsweredEarly) > 0 { // another node may take them
			return m.now.Add(m.timing.LeaseAfterOwnBeaconTimeout)
		}
		return now.Add(time.Second)
	}
	return m.lease.deadline(m.stepContext(), m.liveness.lastOwnBeaconSentAt)
}

// handleProcessPause expires the lease if the process did not run for so long that another node may
// have taken over. What was found out before the pause does not count any more: another node may
// have taken an address since this node probed for it.
func (m *Machine) handleProcessPause(now time.Time) {
	if now.Sub(m.now) <= m.timing.LeaseAfterOwnBeaconTimeout {
		return
	}
	m.now, m.resumedAfterPauseAt = now, now
	endEarlyAnswers(m)
	m.gateways.answeredAt, m.gateways.awaited = time.Time{}, false
	resolveContestedAddresses(m)
	m.liveness.restartSilenceTimers(now)
	// Not at once while this node runs late: the work of many probes would make the next step so
	// late that it begins them anew, and so on.
	m.pendingProbes.restartPendingAcquireProbes(&m.scheduledAddresses, now.Add(m.stepContext().extraDelayForOwnLateness()))
	if m.hasPossibleRivals() {
		m.lease.expireLease(now, m.syncRequests.nextRequestID())
	}
}

// mayHaveStaleMessages reports whether messages from a pause of this process may still wait. An
// offer among them may have gone to another node meanwhile.
func (m *Machine) mayHaveStaleMessages() bool {
	return !m.resumedAfterPauseAt.IsZero() && m.now.Sub(m.resumedAfterPauseAt) < m.timing.OfferTimeout
}

// maintainLease maintains the lease and does what it asks for.
func (m *Machine) maintainLease() {
	heldCount := 0
	if m.hasPossibleRivals() {
		heldCount = len(m.addressesHeldBySelf)
	}
	f := m.stepContext()
	o := m.lease.maintainLease(f, heldCount, m.syncRequests.nextRequestID())
	if o.askMembersForClaims {
		for i := range min(3, len(m.otherMembers)) {
			// start with another member each time, since some may be dead
			m.requestSync(m.otherMembers[(int(m.syncRequests.lastID)+i)%len(m.otherMembers)])
		}
	}
	for range o.reachabilityProbeCount {
		m.pendingProbes.probeReachability(pendingProbe{}, f, &m.outbox)
	}
	if o.isRegained {
		m.outbox.repeatAnnouncements(m.addressesHeldBySelf)
	}
	if o.recheckHeldAddresses {
		for _, a := range sortedByIP(m.addressesHeldBySelf) {
			a.isRechecking = true
			m.pendingProbes.probeAddress(a, f, &m.outbox)
		}
	}
}
