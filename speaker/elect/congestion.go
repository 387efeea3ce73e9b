package elect

import "time"

// On a busy machine speakers run late. A beacon that is late for this reason does not say that its
// sender is dead, and a takeover from a living node makes the machine busier still. So each node
// measures how late its own steps are, and how late the beacons of each watched member come. While
// either is large it waits longer before it calls a member silent and before it takes an address.

// recentDelay is the longest delay of late. It is halved each recentDelayHalvingInterval: the next
// phase of the load is likely to be as bad as the last one. The zero value is no delay.
type recentDelay struct {
	longestDelay time.Duration
	observedAt   time.Time
}

const (
	recentDelayHalvingInterval = 15 * time.Second
	// maxRecordedDelay bounds what a single delay can change. With it a member that dies is
	// noticed after three seconds, sooner than by the gossip.
	maxRecordedDelay = time.Second
	// delaysBeforeSilence is how many of the longest recent delays a beacon may be late.
	delaysBeforeSilence = 3
)

// recordDelay records a delay that was observed now.
func (d *recentDelay) recordDelay(observedDelay time.Duration, now time.Time) {
	if observedDelay = min(observedDelay, maxRecordedDelay); observedDelay > 0 && observedDelay >= d.remaining(now) {
		*d = recentDelay{observedDelay, now}
	}
}

// remaining returns what of the longest delay still counts.
func (d *recentDelay) remaining(now time.Time) time.Duration {
	return d.longestDelay >> min(now.Sub(d.observedAt)/recentDelayHalvingInterval, 63)
}

// recordBeaconDelay records how late a beacon of the member arrived. Lost beacons before it do not
// count, as the sequence number shows them.
func (h *beaconRecord) recordBeaconDelay(seq uint64, f stepFacts) {
	if !h.beaconHeardAt.IsZero() && seq-h.lastSeq < maxBeaconsBetweenTwoHeard {
		due := h.beaconHeardAt.Add(time.Duration(seq-h.lastSeq) * f.timing.BeaconInterval)
		h.beaconDelay.recordDelay(f.now.Sub(due), f.now)
	}
	h.beaconHeardAt = f.now
}

// maxBeaconsBetweenTwoHeard bounds the beacons between two whose times are compared. Beyond it the
// member was cut off, or was not watched from here.
const maxBeaconsBetweenTwoHeard = 100

// extraDelay is how much longer than usual this node waits for others because it runs late itself.
// It is zero while no recent delay is longer than a beacon interval.
func (f stepFacts) extraDelay() time.Duration { return f.extraDelayAfter(f.ownDelay) }

func (f stepFacts) extraDelayAfter(longestDelay time.Duration) time.Duration {
	return max(0, f.timing.BeaconInterval+delaysBeforeSilence*longestDelay-f.timing.SilenceTimeout)
}

// extraDelayFor is how much longer than usual this node waits for what a member does.
func (w *livenessWatch) extraDelayFor(n string, f stepFacts) time.Duration {
	if h := w.recordsByMember[n]; h != nil {
		return f.extraDelayAfter(max(f.ownDelay, h.beaconDelay.remaining(f.now)))
	}
	return f.extraDelay()
}

// silenceTimeoutOf is how long this node waits for a beacon of a member.
func (w *livenessWatch) silenceTimeoutOf(n string, f stepFacts) time.Duration {
	return f.timing.SilenceTimeout + w.extraDelayFor(n, f)
}

// recordFalseDeath records that a living node was declared dead. Until it is declared dead again
// its witnesses have to report it for some time, which doubles with each further mistake.
func (w *livenessWatch) recordFalseDeath(n string, f stepFacts) {
	d := w.confirmationDelayByNode[n]
	if d == nil {
		d = &recentDelay{}
		w.confirmationDelayByNode[n] = d
	}
	d.recordDelay(max(f.timing.SilenceTimeout, 2*d.remaining(f.now)), f.now)
}

// confirmationDelay is how long witnesses must report a node until it is declared dead.
func (w *livenessWatch) confirmationDelay(n string, f stepFacts) time.Duration {
	if d := w.confirmationDelayByNode[n]; d != nil {
		return d.remaining(f.now)
	}
	return 0
}

// recordOwnDelay records how late this node steps. While it did not run it could not hear the
// others, so that time does not count as their silence. Call it at the beginning of a step.
func recordOwnDelay(m *Machine, now time.Time) {
	late := now.Sub(m.NextDeadline())
	if late < m.timing.BeaconInterval/2 || len(m.memberNames) < 2 {
		return
	}
	// detectProcessPause processes longer ones
	m.liveness.ownDelay.recordDelay(min(late, m.timing.LeaseAfterLastBeaconTimeout), now)
	m.liveness.excuseSilence(late)
}

// excuseSilence makes a time not count as silence of the others.
func (w *livenessWatch) excuseSilence(late time.Duration) {
	for _, h := range w.recordsByMember {
		if !h.isSilent {
			h.lastHeardAt = h.lastHeardAt.Add(late)
		}
		if !h.beaconHeardAt.IsZero() {
			h.beaconHeardAt = h.beaconHeardAt.Add(late)
		}
	}
}

// stepFactsForProbe are the facts for an acquire probe. A holder that lives and is late gets more
// time to answer.
func stepFactsForProbe(m *Machine, a *addressState) stepFacts {
	f, timing := m.stepFacts(), m.timing
	timing.ProbeFrameInterval += m.liveness.extraDelayFor(a.highestKnownClaim.Holder, f) / time.Duration(timing.FramesPerProbe)
	f.timing = &timing
	return f
}

// ReportRecentDelay returns how late the node of m ran at worst of late.
func ReportRecentDelay(m *Machine) time.Duration { return m.liveness.ownDelay.remaining(m.now) }
