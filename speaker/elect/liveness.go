package elect

import (
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// watchersPerMember is the number of members that watch each member.
const watchersPerMember = 2

// retractionRepeatCount is how often a member repeats that a node is heard again, in case that a
// message is lost.
const retractionRepeatCount = 5

// beaconsPerAck is how many beacons a watcher gets for each one that it has to acknowledge. With a
// beacon every 50 ms a node and each of its watchers exchange 25 packets a second.
const beaconsPerAck = 4

// livenessWatch is what this node knows from beacons about which members are alive. The members
// form a ring, ordered by a hash of their names. Each sends beacons to the next two, so that the
// cost grows with the number of nodes and not with its square.
type livenessWatch struct {
	lastOwnBeaconSeq          uint64
	lastOwnBeaconSentAt       time.Time
	beaconSendTimesBySequence [16]time.Time // send times of the last beacons, by sequence number
	// watchersOfSelf are the members that watch this node. membersWatchedBySelf are those that this
	// node watches.
	watchersOfSelf, membersWatchedBySelf []string
	recordsByMember                      map[string]*beaconRecord
	// reportedNoncesBySilentNode holds the witnesses of each silent node, with the nonce of the
	// silent node that each of them reports.
	reportedNoncesBySilentNode map[string]map[string]uint64
	deadRunNonceByNode         map[string]uint64 // nonce of the run that ended
	// deathAgreedSinceByNode is since when the witnesses of a silent node agree that it is dead.
	deathAgreedSinceByNode map[string]time.Time
	// suspectedSinceByNode is when the first of these witnesses reported the node.
	// deathConfirmationDelayByNode is how long they must report it, after it was declared dead by
	// mistake.
	suspectedSinceByNode         map[string]time.Time
	deathConfirmationDelayByNode map[string]*decayingMaxDelay
	leavingNodes                 map[string]bool
	// connectedWitnessesBySilentNode holds, by silent node, the witnesses with an answer from a
	// gateway or another node. They are not cut off themselves.
	connectedWitnessesBySilentNode map[string]map[string]bool
	// adoptedNodes are nodes whose watchers are all dead. This node asks them in place of the
	// watchers.
	adoptedNodes []string
	// lastSeenAtBySilentNode is the last sign of life of each silent node.
	lastSeenAtBySilentNode map[string]time.Time
	missedBeacons          missedBeaconCounter
	// lastMessageReceivedAt is when this node last received a message of any member.
	lastMessageReceivedAt time.Time
	// claimsChangedAt is when this node last learnt of another claim, or made one.
	claimsChangedAt time.Time
	ownStepDelay    decayingMaxDelay // of the steps of this node
}

// beaconRecord is what this node heard from one member.
type beaconRecord struct {
	memberNonce, lastSeq uint64
	lastSignOfLifeAt     time.Time
	// lastBeaconHeardAt is when the beacon with lastSeq arrived; zero if this node was paused
	// since. lastBatch is that beacon with those that arrived together with it. beaconDelay is how
	// late the member's beacons come.
	lastBeaconHeardAt time.Time
	lastBatch         beaconBatch
	beaconDelay       decayingMaxDelay
	isSilent          bool
	// silenceReportedAt is when this node last reported the silence to the others. retractionsLeft
	// is how often it will still report the end of the silence.
	silenceReportedAt  time.Time
	retractionsLeft    int
	digestDiffersSince time.Time // zero while its digest equals ours
	syncRequestedAt    time.Time
}

func newLivenessWatch() livenessWatch {
	return livenessWatch{
		recordsByMember: map[string]*beaconRecord{}, reportedNoncesBySilentNode: map[string]map[string]uint64{},
		deadRunNonceByNode: map[string]uint64{}, leavingNodes: map[string]bool{},
		connectedWitnessesBySilentNode: map[string]map[string]bool{}, lastSeenAtBySilentNode: map[string]time.Time{},
		suspectedSinceByNode: map[string]time.Time{}, deathAgreedSinceByNode: map[string]time.Time{}, deathConfirmationDelayByNode: map[string]*decayingMaxDelay{},
	}
}

func (w *livenessWatch) isDeclaredDead(n string, nonce uint64) bool {
	d, ok := w.deadRunNonceByNode[n]
	return ok && (nonce == 0 || d == nonce)
}

// lastSeenAt is when the node was last heard, zero when it is not known.
func (w *livenessWatch) lastSeenAt(n string) time.Time { return w.lastSeenAtBySilentNode[n] }

// restartSilenceTimers counts every silence from now on, because this node itself did not run.
func (w *livenessWatch) restartSilenceTimers(now time.Time) {
	w.lastMessageReceivedAt = now
	for _, h := range w.recordsByMember {
		h.lastSignOfLifeAt, h.lastBeaconHeardAt, h.lastBatch.previousHeardAt = now, time.Time{}, time.Time{}
	}
}

// forgetGoneMembers forgets nodes that are not members any more, and the deaths of earlier runs.
func (w *livenessWatch) forgetGoneMembers(members map[string]facts.Member) {
	for n := range w.recordsByMember {
		if _, ok := members[n]; !ok {
			delete(w.recordsByMember, n)
			delete(w.reportedNoncesBySilentNode, n)
			delete(w.deadRunNonceByNode, n)
			delete(w.leavingNodes, n)
			delete(w.connectedWitnessesBySilentNode, n)
			w.missedBeacons.forgetMember(n)
		}
	}
	maps.DeleteFunc(w.deathConfirmationDelayByNode, func(n string, _ *decayingMaxDelay) bool { _, ok := members[n]; return !ok })
	maps.DeleteFunc(w.suspectedSinceByNode, func(n string, _ time.Time) bool { _, ok := members[n]; return !ok })
	maps.DeleteFunc(w.deathAgreedSinceByNode, func(n string, _ time.Time) bool { _, ok := members[n]; return !ok })
	// a witness that left cannot retract its report
	for n, by := range w.reportedNoncesBySilentNode {
		maps.DeleteFunc(by, func(w string, _ uint64) bool { _, ok := members[w]; return !ok })
		maps.DeleteFunc(w.connectedWitnessesBySilentNode[n], func(w string, _ bool) bool { _, ok := members[w]; return !ok })
		if len(by) == 0 {
			delete(w.reportedNoncesBySilentNode, n)
			delete(w.deadRunNonceByNode, n)
			delete(w.deathAgreedSinceByNode, n)
			delete(w.connectedWitnessesBySilentNode, n)
		}
	}
	for n, nonce := range w.deadRunNonceByNode {
		if p, ok := members[n]; !ok || (p.RunNonce != 0 && p.RunNonce != nonce) {
			delete(w.deadRunNonceByNode, n)
			delete(w.deathAgreedSinceByNode, n)
			delete(w.reportedNoncesBySilentNode, n)
		}
	}
}

// livenessActions is what the owner of the watch has to do after a call.
type livenessActions struct {
	// declared dead or alive: reconcile the addresses that they hold
	nodesWithChangedLiveness []string
	// silent nodes: a reachability probe shows whether this node is cut off
	nodesToProbe  []string
	membersToSync []string // members with other claims: send them sync requests
}

func (o *livenessActions) addNodeIfLivenessChanged(n string, hasChanged bool) {
	if hasChanged {
		o.nodesWithChangedLiveness = append(o.nodesWithChangedLiveness, n)
	}
}

// isAlive reports whether the node is a member that is not declared dead.
func (w *livenessWatch) isAlive(n string, members *membership) bool {
	p, ok := members.membersByName[n]
	return ok && !w.isDeclaredDead(n, p.RunNonce)
}

// updateMembers fits the watch to a new set of members.
func (w *livenessWatch) updateMembers(f stepContext) {
	w.forgetGoneMembers(f.members.membersByName)
	w.watchersOfSelf = f.members.ringNeighbours(f.members.self, watchersPerMember)
	before := w.membersWatchedBySelf
	w.membersWatchedBySelf = f.members.ringNeighbours(f.members.self, -watchersPerMember)
	for _, n := range w.membersWatchedBySelf {
		// a member that this node watched earlier had no reason to send beacons here meanwhile
		if h := w.recordsByMember[n]; h != nil && !slices.Contains(before, n) {
			h.lastSignOfLifeAt = f.now
		}
	}
	w.adoptUnwatchedNodes(f)
}

// adoptUnwatchedNodes finds the nodes whose watchers are all dead and for which this node is among
// the next living ones. These nodes send this node no beacons. It has to ask them.
func (w *livenessWatch) adoptUnwatchedNodes(f stepContext) {
	w.adoptedNodes = nil
	if len(w.deadRunNonceByNode) < watchersPerMember {
		return
	}
	s := f.members
	isAlive := func(n string) bool { return w.isAlive(n, s) }
	for _, n := range s.watchRing {
		if n == s.self || !isAlive(n) || slices.ContainsFunc(s.ringNeighbours(n, watchersPerMember), isAlive) {
			continue
		}
		living := slices.DeleteFunc(s.ringNeighbours(n, len(s.watchRing)), func(o string) bool { return !isAlive(o) })
		if !slices.Contains(living[:min(len(living), watchersPerMember)], s.self) {
			continue
		}
		w.adoptedNodes = append(w.adoptedNodes, n)
		if w.recordsByMember[n] == nil || w.recordsByMember[n].memberNonce != s.membersByName[n].RunNonce {
			w.recordsByMember[n] = &beaconRecord{memberNonce: s.membersByName[n].RunNonce}
		}
		if !slices.Contains(w.membersWatchedBySelf, n) { // it did not send to this node until now
			w.recordsByMember[n].lastSignOfLifeAt = f.now
		}
	}
}

// findAdoptedNodesDueForSync returns the adopted nodes that a sync request is due to. Each living
// node answers them.
func (w *livenessWatch) findAdoptedNodesDueForSync(f stepContext) livenessActions {
	var o livenessActions
	for _, n := range w.adoptedNodes {
		if h := w.recordsByMember[n]; h != nil && f.now.Sub(h.syncRequestedAt) >= f.timing.BeaconInterval {
			h.syncRequestedAt = f.now
			o.membersToSync = append(o.membersToSync, n)
		}
	}
	return o
}

// recordSignOfLifeAndRetract records a sign of life. It reports whether the node is declared alive
// by it.
func (w *livenessWatch) recordSignOfLifeAndRetract(n string, f stepContext, out *outbox) bool {
	h := w.recordsByMember[n]
	if h == nil {
		return false
	}
	h.lastSignOfLifeAt = f.now
	if !h.isSilent {
		return false
	}
	h.isSilent, h.silenceReportedAt, h.retractionsLeft = false, f.now, retractionRepeatCount
	return w.broadcastSuspicionOrRetraction(n, h, f, out)
}

// recordSyncAnswer records that a member sent all its claims. Any report of its death is wrong.
func (w *livenessWatch) recordSyncAnswer(from string, f stepContext, out *outbox) livenessActions {
	var o livenessActions
	o.addNodeIfLivenessChanged(from, w.recordSignOfLifeAndRetract(from, f, out))
	o.addNodeIfLivenessChanged(from, w.declareAlive(from, f))
	return o
}

// sendDueBeacon sends the beacon of this node to its watchers when it is due. It reports whether it
// was.
func (w *livenessWatch) sendDueBeacon(f stepContext, out *outbox) bool {
	if len(f.members.memberNames) < 2 || f.now.Sub(w.lastOwnBeaconSentAt) < f.timing.BeaconInterval {
		return false
	}
	w.lastOwnBeaconSentAt = f.now
	w.sendBeacon(w.watchersOfSelf, f, out)
	return true
}

func (w *livenessWatch) sendBeacon(names []string, f stepContext, out *outbox) {
	w.lastOwnBeaconSeq++
	w.beaconSendTimesBySequence[w.lastOwnBeaconSeq%uint64(len(w.beaconSendTimesBySequence))] = f.now
	for i, n := range names {
		var flags byte
		if f.isHandingOverAll {
			flags |= flagLeaving
		}
		if (w.lastOwnBeaconSeq+uint64(i)*beaconsPerAck/watchersPerMember)%beaconsPerAck == 0 {
			flags |= flagAckRequested
		}
		b := binary.AppendUvarint(out.beginMessage(kindBeacon), f.runNonce)
		b = binary.AppendUvarint(b, w.lastOwnBeaconSeq)
		b = binary.AppendUvarint(b, f.claimsDigest)
		out.queueUrgentMessage(n, append(b, flags))
	}
}

// handleBeacon processes a beacon.
func (w *livenessWatch) handleBeacon(from string, r *messageReader, f stepContext, out *outbox) livenessActions {
	var o livenessActions
	nonce, seq, digest, flags := r.readUvarint(), r.readUvarint(), r.readUvarint(), r.readByte()
	if r.err != nil {
		return o
	}
	if run := f.members.membersByName[from].RunNonce; run != 0 && run != nonce {
		return o // replayed from an earlier run
	}
	h := w.recordsByMember[from]
	if h == nil || h.memberNonce != nonce {
		h = &beaconRecord{memberNonce: nonce}
		w.recordsByMember[from] = h
	}
	if seq <= h.lastSeq { // late or replayed
		return o
	}
	if slices.Contains(w.membersWatchedBySelf, from) {
		w.missedBeacons.countBeaconsMissedInGap(from, h.lastSeq, seq)
		h.recordBeaconDelay(seq, f)
	}
	h.lastSeq = seq
	w.leavingNodes[from] = flags&flagLeaving != 0
	o.addNodeIfLivenessChanged(from, w.recordSignOfLifeAndRetract(from, f, out))
	if _, ok := w.deadRunNonceByNode[from]; ok && len(w.reportedNoncesBySilentNode[from]) == 0 {
		o.addNodeIfLivenessChanged(from, w.declareAlive(from, f))
	}
	if flags&flagAckRequested != 0 {
		b := binary.AppendUvarint(out.beginMessage(kindBeaconAck), nonce)
		b = binary.AppendUvarint(b, seq)
		out.queueUrgentMessage(from, binary.AppendUvarint(b, f.claimsDigest))
	}
	if h.shouldSyncForDigest(digest, w.extraDelayForMember(from, f), f) {
		o.membersToSync = append(o.membersToSync, from)
	}
	return o
}

// handleBeaconAck processes the acknowledgement of a beacon and returns when that beacon was sent.
// If the watcher knows other claims, and none of this node's was under way just now, this node asks
// for them first: the time is zero. This node may have been paused by its hypervisor, so that no
// clock here shows the pause.
func (w *livenessWatch) handleBeaconAck(
	from string, r *messageReader, f stepContext, confirmedAt time.Time,
) (sent time.Time, o livenessActions) {
	nonce, seq, digest := r.readUvarint(), r.readUvarint(), r.readUvarint()
	if r.err != nil || nonce != f.runNonce || seq > w.lastOwnBeaconSeq || w.lastOwnBeaconSeq-seq >= uint64(len(w.beaconSendTimesBySequence)) {
		return time.Time{}, o
	}
	sent = w.beaconSendTimesBySequence[seq%uint64(len(w.beaconSendTimesBySequence))]
	isClaimUnderWay := sent.Sub(confirmedAt) < f.timing.MemberSilenceTimeout && f.now.Sub(w.claimsChangedAt) < f.timing.MemberSilenceTimeout
	if digest == f.claimsDigest || isClaimUnderWay {
		return sent, o
	}
	if h := w.recordsByMember[from]; h == nil || f.now.Sub(h.syncRequestedAt) >= f.timing.ReachabilityProbeInterval {
		o.membersToSync = append(o.membersToSync, from)
	}
	return time.Time{}, o
}

// shouldSyncForDigest reports whether to ask the member for its claims, because its digest differs
// for some time: a message was lost.
func (h *beaconRecord) shouldSyncForDigest(digest uint64, extraDelay time.Duration, f stepContext) bool {
	if digest == f.claimsDigest {
		h.digestDiffersSince = time.Time{}
		return false
	}
	if h.digestDiffersSince.IsZero() {
		h.digestDiffersSince = f.now
	}
	if f.now.Sub(h.digestDiffersSince) < 2*f.timing.BeaconInterval+extraDelay ||
		f.now.Sub(h.syncRequestedAt) < f.timing.MemberSilenceTimeout+extraDelay {
		return false
	}
	h.syncRequestedAt = f.now
	return true
}

// detectAndReportSilence detects the silence of watched nodes and reports it.
func (w *livenessWatch) detectAndReportSilence(f stepContext, out *outbox) livenessActions {
	var o livenessActions
	for _, n := range slices.Concat(w.membersWatchedBySelf, w.adoptedNodes) {
		h := w.recordsByMember[n]
		if h == nil {
			continue
		}
		if !h.isSilent && f.now.Sub(h.lastSignOfLifeAt) >= w.silenceTimeoutOf(n, f) {
			h.isSilent = true
			h.silenceReportedAt = time.Time{}
		}
		if h.isSilent && slices.Contains(w.membersWatchedBySelf, n) {
			w.missedBeacons.countBeaconsMissedInSilence(n, f.now.Sub(h.lastSignOfLifeAt), f.timing.BeaconInterval)
		}
		if (!h.isSilent && h.retractionsLeft == 0) || f.now.Sub(h.silenceReportedAt) < 2*f.timing.BeaconInterval {
			continue
		}
		h.silenceReportedAt = f.now // repeat it, since datagrams get lost
		o.addNodeIfLivenessChanged(n, w.broadcastSuspicionOrRetraction(n, h, f, out))
		switch {
		case !h.isSilent:
			h.retractionsLeft--
		case !w.isConnectedWitness(n, f.members.self): // this node itself may be cut off
			o.nodesToProbe = append(o.nodesToProbe, n)
		}
	}
	return o
}

// reportAsConnectedWitness records that a gateway or another node answered this node while the
// given node was silent: this node is not cut off.
func (w *livenessWatch) reportAsConnectedWitness(n string, f stepContext, out *outbox) livenessActions {
	var o livenessActions
	h := w.recordsByMember[n]
	if h != nil && h.isSilent && !w.isConnectedWitness(n, f.members.self) {
		w.addConnectedWitness(n, f.members.self)
		h.silenceReportedAt = f.now
		o.addNodeIfLivenessChanged(n, w.broadcastSuspicionOrRetraction(n, h, f, out))
	}
	return o
}

// nextDeadline is when the next beacon is due or the next watched member will have been silent for
// too long. It is zero for a node without other members.
func (w *livenessWatch) nextDeadline(f stepContext) time.Time {
	if len(f.members.memberNames) < 2 {
		return time.Time{}
	}
	next := w.lastOwnBeaconSentAt.Add(f.timing.BeaconInterval)
	for _, n := range w.membersWatchedBySelf {
		if h := w.recordsByMember[n]; h != nil && !h.isSilent {
			if t := h.lastSignOfLifeAt.Add(w.silenceTimeoutOf(n, f)); t.Before(next) {
				next = t
			}
		}
	}
	return next
}
