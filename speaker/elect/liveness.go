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
	beaconSeq    uint64
	lastBeaconAt time.Time
	beaconSentAt [16]time.Time // send times of the last beacons, by sequence number
	// watchers are the members that watch this node. watchedMembers are those that this node
	// watches.
	watchers, watchedMembers []string
	recordsByMember          map[string]*beaconRecord
	// witnessesByNode holds the witnesses of each silent node, with the nonce of the silent node
	// that each of them reports.
	witnessesByNode map[string]map[string]uint64
	deadNonceByNode map[string]uint64 // nonce of the run that ended
	leavingNodes    map[string]bool
	// connectedWitnesses holds, by silent node, the witnesses with an answer from a gateway or
	// another node. They are not cut off themselves.
	connectedWitnesses map[string]map[string]bool
	// adoptedNodes are nodes whose watchers are all dead. This node asks them in place of the
	// watchers.
	adoptedNodes []string
	// lastSeenByNode is the last sign of life of each silent node.
	lastSeenByNode map[string]time.Time
}

// beaconRecord is what this node heard from one member.
type beaconRecord struct {
	memberNonce, lastSeq uint64
	lastHeardAt          time.Time
	isSilent             bool
	// silenceReportedAt is when this node last reported the silence to the others. retractionsLeft
	// is how often it will still report the end of the silence.
	silenceReportedAt  time.Time
	retractionsLeft    int
	digestDiffersSince time.Time // zero while its digest equals ours
	syncRequestedAt    time.Time
}

func newLivenessWatch() livenessWatch {
	return livenessWatch{
		recordsByMember: map[string]*beaconRecord{}, witnessesByNode: map[string]map[string]uint64{},
		deadNonceByNode: map[string]uint64{}, leavingNodes: map[string]bool{},
		connectedWitnesses: map[string]map[string]bool{}, lastSeenByNode: map[string]time.Time{},
	}
}

func (w *livenessWatch) isDeclaredDead(n string, nonce uint64) bool {
	d, ok := w.deadNonceByNode[n]
	return ok && (nonce == 0 || d == nonce)
}

// lastSeenAt is when the node was last heard, zero when it is not known.
func (w *livenessWatch) lastSeenAt(n string) time.Time { return w.lastSeenByNode[n] }

// restartSilenceTimers counts every silence from now on, because this node itself did not run.
func (w *livenessWatch) restartSilenceTimers(now time.Time) {
	for _, h := range w.recordsByMember {
		h.lastHeardAt = now
	}
}

// forgetGoneMembers forgets nodes that are not members any more, and the deaths of earlier runs.
func (w *livenessWatch) forgetGoneMembers(members map[string]facts.Member) {
	for n := range w.recordsByMember {
		if _, ok := members[n]; !ok {
			delete(w.recordsByMember, n)
			delete(w.witnessesByNode, n)
			delete(w.deadNonceByNode, n)
			delete(w.leavingNodes, n)
			delete(w.connectedWitnesses, n)
		}
	}
	for n, by := range w.witnessesByNode { // a witness that left cannot retract its report
		maps.DeleteFunc(by, func(w string, _ uint64) bool { _, ok := members[w]; return !ok })
		maps.DeleteFunc(w.connectedWitnesses[n], func(w string, _ bool) bool { _, ok := members[w]; return !ok })
		if len(by) == 0 {
			delete(w.witnessesByNode, n)
			delete(w.deadNonceByNode, n)
			delete(w.connectedWitnesses, n)
		}
	}
	for n, nonce := range w.deadNonceByNode {
		if p, ok := members[n]; !ok || (p.Nonce != 0 && p.Nonce != nonce) {
			delete(w.deadNonceByNode, n)
			delete(w.witnessesByNode, n)
		}
	}
}

// adoptUnwatchedNodes finds the nodes whose watchers are all dead and for which this node is among
// the next living ones. These nodes send this node no beacons. It has to ask them.
func (m *Machine) adoptUnwatchedNodes() {
	w := &m.liveness
	w.adoptedNodes = nil
	if len(w.deadNonceByNode) < watchersPerMember {
		return
	}
	for _, n := range m.watchRing {
		if n == m.self || !m.isAlive(n) || slices.ContainsFunc(m.ringNeighbours(n, watchersPerMember), m.isAlive) {
			continue
		}
		living := slices.DeleteFunc(m.ringNeighbours(n, len(m.watchRing)), func(o string) bool { return !m.isAlive(o) })
		if !slices.Contains(living[:min(len(living), watchersPerMember)], m.self) {
			continue
		}
		w.adoptedNodes = append(w.adoptedNodes, n)
		if w.recordsByMember[n] == nil || w.recordsByMember[n].memberNonce != m.membersByName[n].Nonce {
			w.recordsByMember[n] = &beaconRecord{memberNonce: m.membersByName[n].Nonce}
		}
		if !slices.Contains(w.watchedMembers, n) { // it did not send to this node until now
			w.recordsByMember[n].lastHeardAt = m.now
		}
	}
}

// syncWithAdoptedNodes sends sync requests to the adopted nodes. Each living node answers them.
func (m *Machine) syncWithAdoptedNodes() {
	for _, n := range m.liveness.adoptedNodes {
		if h := m.liveness.recordsByMember[n]; h != nil && m.now.Sub(h.syncRequestedAt) >= m.timing.BeaconInterval {
			h.syncRequestedAt = m.now
			m.requestSync(n)
		}
	}
}

// recordSignOfLife records a sign of life.
func (m *Machine) recordSignOfLife(n string) {
	h := m.liveness.recordsByMember[n]
	if h == nil {
		return
	}
	h.lastHeardAt = m.now
	if h.isSilent {
		h.isSilent, h.silenceReportedAt, h.retractionsLeft = false, m.now, retractionRepeatCount
		m.broadcastSuspicion(n, h)
	}
}

// sendDueBeacon sends the beacon of this node to its watchers when it is due.
func (m *Machine) sendDueBeacon() {
	if len(m.memberNames) < 2 || m.now.Sub(m.liveness.lastBeaconAt) < m.timing.BeaconInterval {
		return
	}
	m.liveness.lastBeaconAt = m.now
	m.outbox.repeatNewClaims(m.otherMembers)
	m.sendBeacon(m.liveness.watchers)
}

func (m *Machine) sendBeacon(names []string) {
	w := &m.liveness
	w.beaconSeq++
	w.beaconSentAt[w.beaconSeq%uint64(len(w.beaconSentAt))] = m.now
	for i, n := range names {
		var flags byte
		if m.leaving {
			flags |= flagLeaving
		}
		if (w.beaconSeq+uint64(i)*beaconsPerAck/watchersPerMember)%beaconsPerAck == 0 {
			flags |= flagAckRequested
		}
		b := binary.AppendUvarint(encodeMessageHeader(kindBeacon), m.nonce)
		b = binary.AppendUvarint(b, w.beaconSeq)
		b = binary.AppendUvarint(b, m.claimsDigest)
		m.outbox.sendMessage(n, append(b, flags))
	}
}

// handleBeacon processes a beacon.
func (m *Machine) handleBeacon(from string, r *messageReader) {
	nonce, seq, digest, flags := r.readUvarint(), r.readUvarint(), r.readUvarint(), r.readByte()
	if r.err != nil {
		return
	}
	w := &m.liveness
	h := w.recordsByMember[from]
	if h == nil || h.memberNonce != nonce {
		h = &beaconRecord{memberNonce: nonce}
		w.recordsByMember[from] = h
	}
	if seq <= h.lastSeq { // late or replayed
		return
	}
	h.lastSeq = seq
	w.leavingNodes[from] = flags&flagLeaving != 0
	m.recordSignOfLife(from)
	if _, ok := w.deadNonceByNode[from]; ok && len(w.witnessesByNode[from]) == 0 {
		m.declareAlive(from)
	}
	if flags&flagAckRequested != 0 {
		b := binary.AppendUvarint(encodeMessageHeader(kindBeaconAck), nonce)
		b = binary.AppendUvarint(b, seq)
		m.outbox.sendMessage(from, binary.AppendUvarint(b, m.claimsDigest))
	}
	m.syncIfDigestDiffers(from, h, digest)
}

// handleAck processes the acknowledgement of a beacon. If the previous acknowledgement was long ago
// and the watcher knows other claims, this node asks for them first.
func (m *Machine) handleAck(from string, r *messageReader) {
	nonce, seq, digest := r.readUvarint(), r.readUvarint(), r.readUvarint()
	w := &m.liveness
	if r.err != nil || nonce != m.nonce || seq > w.beaconSeq || w.beaconSeq-seq >= uint64(len(w.beaconSentAt)) {
		return
	}
	sent := w.beaconSentAt[seq%uint64(len(w.beaconSentAt))]
	if digest != m.claimsDigest && sent.Sub(m.lease.confirmedAt) >= m.timing.SilenceTimeout {
		if h := w.recordsByMember[from]; h == nil || m.now.Sub(h.syncRequestedAt) >= m.timing.LivenessProbeInterval {
			m.requestSync(from)
		}
		return
	}
	m.lease.recordConfirmation(sent)
}

// syncIfDigestDiffers asks a member for its claims if its digest differs for some time: a message
// was lost.
func (m *Machine) syncIfDigestDiffers(from string, h *beaconRecord, digest uint64) {
	if digest == m.claimsDigest {
		h.digestDiffersSince = time.Time{}
		return
	}
	if h.digestDiffersSince.IsZero() {
		h.digestDiffersSince = m.now
	}
	if m.now.Sub(h.digestDiffersSince) >= 2*m.timing.BeaconInterval &&
		m.now.Sub(h.syncRequestedAt) >= m.timing.SilenceTimeout {
		h.syncRequestedAt = m.now
		m.requestSync(from)
	}
}

// detectSilence detects the silence of watched nodes and reports it.
func (m *Machine) detectSilence() {
	w := &m.liveness
	m.syncWithAdoptedNodes()
	for _, n := range slices.Concat(w.watchedMembers, w.adoptedNodes) {
		h := w.recordsByMember[n]
		if h == nil {
			continue
		}
		if !h.isSilent && m.now.Sub(h.lastHeardAt) >= m.timing.SilenceTimeout {
			h.isSilent = true
			h.silenceReportedAt = time.Time{}
		}
		if (!h.isSilent && h.retractionsLeft == 0) || m.now.Sub(h.silenceReportedAt) < 2*m.timing.BeaconInterval {
			continue
		}
		h.silenceReportedAt = m.now // repeat it, since datagrams get lost
		m.broadcastSuspicion(n, h)
		switch {
		case !h.isSilent:
			h.retractionsLeft--
		case !w.isConnectedWitness(n, m.self): // this node itself may be cut off
			m.probeLiveness(pendingProbe{node: n})
		}
	}
}

// nextSilenceDeadline is when the next watched member will have been silent for too long.
func (m *Machine) nextSilenceDeadline() time.Time {
	var next time.Time
	for _, n := range m.liveness.watchedMembers {
		if h := m.liveness.recordsByMember[n]; h != nil && !h.isSilent {
			if t := h.lastHeardAt.Add(m.timing.SilenceTimeout); next.IsZero() || t.Before(next) {
				next = t
			}
		}
	}
	return next
}

// broadcastSuspicion reports to all members that a node is silent, or that it is heard again.
func (m *Machine) broadcastSuspicion(n string, h *beaconRecord) {
	if h.isSilent {
		m.liveness.lastSeenByNode[n] = h.lastHeardAt
	}
	m.recordTestimony(n, m.self, h.memberNonce, h.isSilent)
	b := appendString(encodeMessageHeader(kindSuspicion), n)
	b = binary.AppendUvarint(b, h.memberNonce)
	b = append(b, m.liveness.suspicionKind(n, m.self, h))
	b = binary.AppendUvarint(b, uint64(m.now.Sub(h.lastHeardAt).Milliseconds()))
	for _, o := range m.otherMembers {
		if o != n {
			m.outbox.sendMessage(o, b)
		}
	}
}

// handleSuspicion processes the report of another member.
func (m *Machine) handleSuspicion(from string, r *messageReader) {
	n, nonce, said, age := r.readString(), r.readUvarint(), r.readByte(), r.readUvarint()
	silent := said != suspicionRetracted
	p, ok := m.membersByName[n]
	if !ok || r.err != nil || n == m.self || (p.Nonce != 0 && p.Nonce != nonce) { // an earlier run
		return
	}
	if _, known := m.liveness.lastSeenByNode[n]; silent && !known && age < 60_000 {
		m.liveness.lastSeenByNode[n] = m.now.Add(-time.Duration(age) * time.Millisecond)
	}
	if said == suspicionVerified {
		m.liveness.addConnectedWitness(n, from)
	}
	m.recordTestimony(n, from, nonce, silent)
}

func (m *Machine) recordTestimony(n, by string, nonce uint64, silent bool) {
	w := &m.liveness
	if !silent {
		delete(w.witnessesByNode[n], by)
		delete(w.connectedWitnesses[n], by)
		if len(w.witnessesByNode[n]) == 0 {
			m.declareAlive(n)
		}
		return
	}
	if w.witnessesByNode[n] == nil {
		w.witnessesByNode[n] = map[string]uint64{}
	}
	w.witnessesByNode[n][by] = nonce
	m.judgeSilence(n)
}

// declareAlive retracts that a node is dead.
func (m *Machine) declareAlive(n string) {
	w := &m.liveness
	_, was := w.deadNonceByNode[n]
	delete(w.witnessesByNode, n)
	delete(w.deadNonceByNode, n)
	delete(w.connectedWitnesses, n)
	delete(w.lastSeenByNode, n)
	if was {
		m.adoptUnwatchedNodes()
		m.reconcileAddressesOfHolder(n)
	}
}

// reconcileAddressesOfHolder reconciles all addresses of a node that died or came back.
func (m *Machine) reconcileAddressesOfHolder(n string) {
	for _, a := range sortedByIP(m.addressesByHolder[n]) {
		m.reconcileAddress(a)
	}
}

// judgeSilence decides whether a silent node is dead. Two witnesses that report the same run of the
// node are enough. One witness is enough if a gateway or another node answers it, and if no second
// watcher is alive that still hears the node.
func (m *Machine) judgeSilence(n string) {
	w := &m.liveness
	by := w.witnessesByNode[n]
	votes := map[uint64]int{}
	for _, nonce := range by {
		votes[nonce]++
	}
	for _, witness := range slices.Sorted(maps.Keys(by)) {
		nonce := by[witness]
		if votes[nonce] < watchersPerMember && !(w.isConnectedWitness(n, witness) && m.isOnlyWitness(n, witness)) {
			continue
		}
		if !w.isDeclaredDead(n, nonce) {
			w.deadNonceByNode[n] = nonce
			m.adoptUnwatchedNodes()
			m.reconcileAddressesOfHolder(n)
		}
		return
	}
}

// isOnlyWitness reports whether no other watcher of the node is alive and hears it.
func (m *Machine) isOnlyWitness(n, witness string) bool {
	w := &m.liveness
	return !slices.ContainsFunc(m.ringNeighbours(n, watchersPerMember), func(o string) bool {
		_, silent := w.witnessesByNode[n][o]
		return o != witness && !silent && len(w.witnessesByNode[o]) == 0 && m.isAlive(o)
	})
}

// The kinds of suspicion in a message.
const (
	suspicionRetracted  = 0 // the node is heard again
	suspicionUnverified = 1
	suspicionVerified   = 2 // the witness itself is not cut off
)

func (w *livenessWatch) suspicionKind(n, by string, h *beaconRecord) byte {
	switch {
	case !h.isSilent:
		return suspicionRetracted
	case w.isConnectedWitness(n, by):
		return suspicionVerified
	}
	return suspicionUnverified
}

func (w *livenessWatch) isConnectedWitness(n, by string) bool { return w.connectedWitnesses[n][by] }

func (w *livenessWatch) addConnectedWitness(n, by string) {
	if w.connectedWitnesses[n] == nil {
		w.connectedWitnesses[n] = map[string]bool{}
	}
	w.connectedWitnesses[n][by] = true
}
