package elect

import "time"

// On a busy machine speakers run late. A beacon that is late for this reason does not say that its
// sender is dead, and a takeover from a living node makes the machine busier still. So each node
// measures how late its own steps are, and how late the beacons of each watched member come. While
// either is large it waits longer before it calls a member silent and before it takes an address.

// decayingMaxDelay is the longest delay of late. It is halved each recordedDelayHalvingInterval:
// the next phase of the load is likely to be as bad as the last one. The zero value is no delay.
type decayingMaxDelay struct {
	longestDelay time.Duration
	observedAt   time.Time
}

const (
	recordedDelayHalvingInterval = 15 * time.Second
	// maxRecordedDelay bounds what a single delay can change. With it a member that dies is
	// noticed after three seconds, sooner than by the gossip.
	maxRecordedDelay = time.Second
	// recentDelayToleranceFactor is how many of the longest recent delays a beacon may be late.
	recentDelayToleranceFactor = 3
)

// recordDelay records a delay that was observed now.
func (d *decayingMaxDelay) recordDelay(observedDelay time.Duration, now time.Time) {
	if observedDelay = min(observedDelay, maxRecordedDelay); observedDelay > 0 && observedDelay >= d.currentDelay(now) {
		*d = decayingMaxDelay{observedDelay, now}
	}
}

// currentDelay returns what of the longest delay still counts.
func (d *decayingMaxDelay) currentDelay(now time.Time) time.Duration {
	return d.longestDelay >> min(now.Sub(d.observedAt)/recordedDelayHalvingInterval, 63)
}

// beaconBatch is the last beacon of a member, together with those that arrived with it.
// previousSeq and previousHeardAt are of the beacon before them, and delayBefore is the delay of
// the member until then.
type beaconBatch struct {
	previousSeq     uint64
	previousHeardAt time.Time
	delayBefore     decayingMaxDelay
}

// recordBeaconDelay records how late a beacon of the member arrived. Lost beacons before it do not
// count, as the sequence number shows them. Nor do beacons that arrived together with it: the
// network held them back, and the member was not late. A kernel does so at the end of a cut, with
// what waited for the Ethernet address of the watcher. A member that is late itself sends no beacon
// for the time that it missed.
func (h *beaconRecord) recordBeaconDelay(seq uint64, f stepContext) {
	b := &h.lastBatch
	if h.lastBeaconHeardAt.IsZero() || f.now.Sub(h.lastBeaconHeardAt) >= f.timing.BeaconInterval/2 {
		*b = beaconBatch{h.lastSeq, h.lastBeaconHeardAt, h.beaconDelay}
	}
	h.lastBeaconHeardAt, h.beaconDelay = f.now, b.delayBefore
	skippedCount := seq - b.previousSeq - 1
	if !b.previousHeardAt.IsZero() && skippedCount < f.timing.beaconsPerSilenceTimeout() {
		due := b.previousHeardAt.Add(time.Duration(skippedCount+1) * f.timing.BeaconInterval)
		h.beaconDelay.recordDelay(f.now.Sub(due), f.now)
	}
}

// beaconsPerSilenceTimeout is how many beacons in a row do not arrive in time if a member is cut
// off. It sends each of them some milliseconds late, and may have stopped for a while, since it
// hears nobody. So the time until the next one arrives says nothing about how late the member runs.
func (t *Timing) beaconsPerSilenceTimeout() uint64 {
	return uint64(t.MemberSilenceTimeout / t.BeaconInterval)
}

// extraDelayForOwnLateness is how much longer than usual this node waits for others because it runs
// late itself. It is zero while no recent delay is longer than a beacon interval.
func (f stepContext) extraDelayForOwnLateness() time.Duration {
	return f.extraDelayForLateness(f.ownStepDelay)
}

func (f stepContext) extraDelayForLateness(longestDelay time.Duration) time.Duration {
	return max(0, f.timing.BeaconInterval+recentDelayToleranceFactor*longestDelay-f.timing.MemberSilenceTimeout)
}

// extraDelayForMember is how much longer than usual this node waits for what a member does.
func (w *livenessWatch) extraDelayForMember(n string, f stepContext) time.Duration {
	if h := w.recordsByMember[n]; h != nil {
		return f.extraDelayForLateness(max(f.ownStepDelay, h.beaconDelay.currentDelay(f.now)))
	}
	return f.extraDelayForOwnLateness()
}

// silenceTimeoutOf is how long this node waits for a beacon of a member.
func (w *livenessWatch) silenceTimeoutOf(n string, f stepContext) time.Duration {
	return f.timing.MemberSilenceTimeout + w.extraDelayForMember(n, f)
}

// recordFalseDeath records that a living node was declared dead. Until it is declared dead again
// its witnesses have to report it for some time, which doubles with each further mistake.
func (w *livenessWatch) recordFalseDeath(n string, f stepContext) {
	d := w.deathConfirmationDelayByNode[n]
	if d == nil {
		d = &decayingMaxDelay{}
		w.deathConfirmationDelayByNode[n] = d
	}
	d.recordDelay(max(f.timing.MemberSilenceTimeout, 2*d.currentDelay(f.now)), f.now)
}

// deathConfirmationDelay is how long witnesses must report a node until it is declared dead.
func (w *livenessWatch) deathConfirmationDelay(n string, f stepContext) time.Duration {
	if d := w.deathConfirmationDelayByNode[n]; d != nil {
		return d.currentDelay(f.now)
	}
	return 0
}

// maxOwnStepDelay is what of a late step counts. It is some more than the delay after which
// handleProcessPause expires the lease: on a busy machine, many steps are as late as that, also
// those of other nodes. A far longer pause, for example by a signal, says little about the next
// steps.
func (t *Timing) maxOwnStepDelay() time.Duration { return t.LeaseAfterOwnBeaconTimeout * 5 / 4 }

// recordAndDiscountOwnStepDelay records how late this node steps. While it did not run it could not
// hear the others, so that time does not count as their silence. Call it at the beginning of a
// step.
func recordAndDiscountOwnStepDelay(m *Machine, now time.Time) {
	late := now.Sub(m.NextDeadline())
	if late < m.timing.BeaconInterval/2 || len(m.memberNames) < 2 {
		return
	}
	m.liveness.ownStepDelay.recordDelay(min(late, m.timing.maxOwnStepDelay()), now)
	m.liveness.discountOwnDelayFromSilence(late)
}

// discountOwnDelayFromSilence makes a time not count as silence of the others.
func (w *livenessWatch) discountOwnDelayFromSilence(late time.Duration) {
	for _, h := range w.recordsByMember {
		if !h.isSilent {
			h.lastSignOfLifeAt = h.lastSignOfLifeAt.Add(late)
		}
		for _, heardAt := range []*time.Time{&h.lastBeaconHeardAt, &h.lastBatch.previousHeardAt} {
			if !heardAt.IsZero() {
				*heardAt = heardAt.Add(late)
			}
		}
	}
}

// stepContextWithExtraProbeTime are the facts for an acquire probe. A holder that lives and is late
// gets more time to answer.
func stepContextWithExtraProbeTime(m *Machine, a *addressState) stepContext {
	f, timing := m.stepContext(), m.timing
	timing.ProbeFrameInterval += m.liveness.extraDelayForMember(a.highestKnownClaim.Holder, f) / time.Duration(timing.FramesPerProbe)
	f.timing = &timing
	return f
}

// LongestRecentStepDelay returns how late the node of m ran at worst of late.
func LongestRecentStepDelay(m *Machine) time.Duration {
	return m.liveness.ownStepDelay.currentDelay(m.now)
}
