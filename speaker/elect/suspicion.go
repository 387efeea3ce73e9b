package elect

import (
	"encoding/binary"
	"maps"
	"slices"
	"time"
)

// broadcastSuspicionOrRetraction reports to all members that a node is silent, or that it is heard
// again. It reports whether the node is declared dead or alive by it.
func (w *livenessWatch) broadcastSuspicionOrRetraction(n string, h *beaconRecord, f stepContext, out *outbox) bool {
	if h.isSilent {
		w.lastSeenAtBySilentNode[n] = h.lastSignOfLifeAt
	}
	hasChanged := w.recordAndJudgeWitnessReport(n, f.members.self, h.memberNonce, h.isSilent, f)
	b := appendString(out.beginMessage(kindSuspicion), n)
	b = binary.AppendUvarint(b, h.memberNonce)
	b = append(b, w.suspicionKind(n, f.members.self, h))
	b = binary.AppendUvarint(b, uint64(f.now.Sub(h.lastSignOfLifeAt).Milliseconds()))
	if out.messageFormat >= 3 {
		b = append(b, w.witnessFlags(f))
	}
	for _, o := range f.members.otherMembers {
		if o != n {
			out.queueUrgentMessage(o, b)
		}
	}
	return hasChanged
}

// handleWitnessReport processes the report of another member.
func (w *livenessWatch) handleWitnessReport(from string, r *messageReader, f stepContext) livenessActions {
	var o livenessActions
	n, nonce, said, age := r.readString(), r.readUvarint(), r.readByte(), r.readUvarint()
	silent := said != suspicionRetracted
	if r.format >= 3 && r.readByte()&flagWitnessReceivesNothing != 0 {
		silent, said = false, suspicionRetracted // it would say the same of any node
	}
	p, ok := f.members.membersByName[n]
	isEarlierRun := p.RunNonce != 0 && p.RunNonce != nonce
	if !ok || r.err != nil || n == f.members.self || isEarlierRun {
		return o
	}
	if _, known := w.lastSeenAtBySilentNode[n]; silent && !known && age < 60_000 {
		w.lastSeenAtBySilentNode[n] = f.now.Add(-time.Duration(age) * time.Millisecond)
	}
	if said == suspicionFromConnectedWitness {
		w.addConnectedWitness(n, from)
	}
	o.addNodeIfLivenessChanged(n, w.recordAndJudgeWitnessReport(n, from, nonce, silent, f))
	return o
}

// recordAndJudgeWitnessReport records what a witness reports about a node. It reports whether the
// node is declared dead or alive by it.
func (w *livenessWatch) recordAndJudgeWitnessReport(n, by string, nonce uint64, silent bool, f stepContext) bool {
	if !silent {
		delete(w.reportedNoncesBySilentNode[n], by)
		delete(w.connectedWitnessesBySilentNode[n], by)
		w.recordAgreement(n, f)
		return len(w.reportedNoncesBySilentNode[n]) == 0 && w.declareAlive(n, f)
	}
	if w.reportedNoncesBySilentNode[n] == nil {
		w.reportedNoncesBySilentNode[n], w.suspectedSinceByNode[n] = map[string]uint64{}, f.now
	}
	w.reportedNoncesBySilentNode[n][by] = nonce
	return w.judgeSilence(n, f)
}

// declareAlive retracts that a node is dead. It reports whether the node was declared dead.
func (w *livenessWatch) declareAlive(n string, f stepContext) bool {
	_, was := w.deadRunNonceByNode[n]
	delete(w.reportedNoncesBySilentNode, n)
	delete(w.deadRunNonceByNode, n)
	delete(w.deathAgreedSinceByNode, n)
	delete(w.connectedWitnessesBySilentNode, n)
	delete(w.lastSeenAtBySilentNode, n)
	if was {
		w.recordFalseDeath(n, f)
		w.adoptUnwatchedNodes(f)
	}
	return was
}

// judgeSilence decides whether a silent node is dead: the witnesses agree, and have reported it for
// the confirmation delay. It reports whether the node is now declared dead.
func (w *livenessWatch) judgeSilence(n string, f stepContext) bool {
	nonce, isAgreed := w.recordAgreement(n, f)
	if !isAgreed || w.isDeclaredDead(n, nonce) || f.now.Sub(w.suspectedSinceByNode[n]) < w.deathConfirmationDelay(n, f) {
		return false
	}
	w.deadRunNonceByNode[n] = nonce
	w.adoptUnwatchedNodes(f)
	return true
}

// recordAgreement records since when the witnesses agree that a node is dead. It returns the nonce
// of the run about which they do.
func (w *livenessWatch) recordAgreement(n string, f stepContext) (nonce uint64, isAgreed bool) {
	nonce, isAgreed = w.agreedNonce(n, f.members)
	if _, known := w.deathAgreedSinceByNode[n]; !isAgreed {
		delete(w.deathAgreedSinceByNode, n)
	} else if !known {
		w.deathAgreedSinceByNode[n] = f.now
	}
	return nonce, isAgreed
}

// agreedNonce returns the nonce of the run of a node that the witnesses agree is dead. Two
// witnesses that report the same run are enough. One witness is enough if a gateway or another node
// answers it, and if no second watcher is alive that still hears the node.
func (w *livenessWatch) agreedNonce(n string, members *membership) (nonce uint64, isAgreed bool) {
	by := w.reportedNoncesBySilentNode[n]
	votes := map[uint64]int{}
	for _, nonce := range by {
		votes[nonce]++
	}
	for _, witness := range slices.Sorted(maps.Keys(by)) {
		nonce := by[witness]
		if votes[nonce] >= watchersPerMember || w.isConnectedWitness(n, witness) && w.hasNoContradictingWatcher(n, witness, members) {
			return nonce, true
		}
	}
	return 0, false
}

// hasNoContradictingWatcher reports whether no other watcher of the node is alive and hears it. A
// watcher that only the witness finds silent counts as alive: the witness may be deaf itself.
func (w *livenessWatch) hasNoContradictingWatcher(n, witness string, members *membership) bool {
	if witness == members.self && w.areAllOthersSilent(members) {
		return true // nobody is left who could contradict
	}
	return !slices.ContainsFunc(members.ringNeighbours(n, watchersPerMember), func(o string) bool {
		_, silent := w.reportedNoncesBySilentNode[n][o]
		return o != witness && !silent && !w.isSuspectedByOthers(o, witness) && w.isAlive(o, members)
	})
}

// isSuspectedByOthers reports whether a member other than the witness finds the node silent.
func (w *livenessWatch) isSuspectedByOthers(n, witness string) bool {
	for by := range w.reportedNoncesBySilentNode[n] {
		if by != witness {
			return true
		}
	}
	return false
}

// areAllOthersSilent reports whether this node itself finds every other member silent.
func (w *livenessWatch) areAllOthersSilent(members *membership) bool {
	return !slices.ContainsFunc(members.otherMembers, func(o string) bool {
		_, silent := w.reportedNoncesBySilentNode[o][members.self]
		return !silent && w.isAlive(o, members)
	})
}

// judgeSilentNodes judges all silent nodes again after another node died: its silence about them no
// longer counts. It returns those that are now declared dead.
func (w *livenessWatch) judgeSilentNodes(f stepContext) (dead []string) {
	for _, n := range slices.Sorted(maps.Keys(w.reportedNoncesBySilentNode)) {
		if w.judgeSilence(n, f) {
			dead = append(dead, n)
		}
	}
	return dead
}

// flagWitnessReceivesNothing is set in a report of a silent node if the witness has received no
// message at all for a while. It may be the one that does not hear.
const flagWitnessReceivesNothing = 1

// witnessFlags are the flags of a report of this node.
func (w *livenessWatch) witnessFlags(f stepContext) byte {
	if f.now.Sub(w.lastMessageReceivedAt) >= f.timing.MemberSilenceTimeout-f.timing.BeaconInterval {
		return flagWitnessReceivesNothing
	}
	return 0
}

// The kinds of suspicion in a message.
const (
	suspicionRetracted            = 0 // the node is heard again
	suspicionFromUncheckedWitness = 1
	suspicionFromConnectedWitness = 2 // the witness itself is not cut off
)

func (w *livenessWatch) suspicionKind(n, by string, h *beaconRecord) byte {
	switch {
	case !h.isSilent:
		return suspicionRetracted
	case w.isConnectedWitness(n, by):
		return suspicionFromConnectedWitness
	}
	return suspicionFromUncheckedWitness
}

func (w *livenessWatch) isConnectedWitness(n, by string) bool {
	return w.connectedWitnessesBySilentNode[n][by]
}

func (w *livenessWatch) addConnectedWitness(n, by string) {
	if w.connectedWitnessesBySilentNode[n] == nil {
		w.connectedWitnessesBySilentNode[n] = map[string]bool{}
	}
	w.connectedWitnessesBySilentNode[n][by] = true
}
