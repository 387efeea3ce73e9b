package elect

import (
	"encoding/binary"
	"maps"
	"slices"
	"time"
)

// broadcastSuspicion reports to all members that a node is silent, or that it is heard again. It
// reports whether the node is declared dead or alive by it.
func (w *livenessWatch) broadcastSuspicion(n string, h *beaconRecord, f stepFacts, out *outbox) bool {
	if h.isSilent {
		w.lastSeenByNode[n] = h.lastHeardAt
	}
	hasChanged := w.recordTestimony(n, f.members.self, h.memberNonce, h.isSilent, f)
	b := appendString(out.beginMessage(kindSuspicion), n)
	b = binary.AppendUvarint(b, h.memberNonce)
	b = append(b, w.suspicionKind(n, f.members.self, h))
	b = binary.AppendUvarint(b, uint64(f.now.Sub(h.lastHeardAt).Milliseconds()))
	if out.messageFormat >= 3 {
		b = append(b, w.witnessFlags(f))
	}
	for _, o := range f.members.otherMembers {
		if o != n {
			out.sendMessage(o, b)
		}
	}
	return hasChanged
}

// handleSuspicion processes the report of another member.
func (w *livenessWatch) handleSuspicion(from string, r *messageReader, f stepFacts) livenessOutcome {
	var o livenessOutcome
	n, nonce, said, age := r.readString(), r.readUvarint(), r.readByte(), r.readUvarint()
	silent := said != suspicionRetracted
	if r.format >= 3 && r.readByte()&flagWitnessIsDeaf != 0 {
		silent, said = false, suspicionRetracted // it would say the same of any node
	}
	p, ok := f.members.membersByName[n]
	isEarlierRun := p.RunNonce != 0 && p.RunNonce != nonce
	if !ok || r.err != nil || n == f.members.self || isEarlierRun {
		return o
	}
	if _, known := w.lastSeenByNode[n]; silent && !known && age < 60_000 {
		w.lastSeenByNode[n] = f.now.Add(-time.Duration(age) * time.Millisecond)
	}
	if said == suspicionVerified {
		w.addConnectedWitness(n, from)
	}
	o.addChangedNode(n, w.recordTestimony(n, from, nonce, silent, f))
	return o
}

// recordTestimony records what a witness reports about a node. It reports whether the node is
// declared dead or alive by it.
func (w *livenessWatch) recordTestimony(n, by string, nonce uint64, silent bool, f stepFacts) bool {
	if !silent {
		delete(w.witnessNoncesBySilentNode[n], by)
		delete(w.connectedWitnesses[n], by)
		return len(w.witnessNoncesBySilentNode[n]) == 0 && w.declareAlive(n, f)
	}
	if w.witnessNoncesBySilentNode[n] == nil {
		w.witnessNoncesBySilentNode[n], w.suspectedSinceByNode[n] = map[string]uint64{}, f.now
	}
	w.witnessNoncesBySilentNode[n][by] = nonce
	return w.judgeSilence(n, f)
}

// declareAlive retracts that a node is dead. It reports whether the node was declared dead.
func (w *livenessWatch) declareAlive(n string, f stepFacts) bool {
	_, was := w.deadRunNonceByNode[n]
	delete(w.witnessNoncesBySilentNode, n)
	delete(w.deadRunNonceByNode, n)
	delete(w.connectedWitnesses, n)
	delete(w.lastSeenByNode, n)
	if was {
		w.recordFalseDeath(n, f)
		w.adoptUnwatchedNodes(f)
	}
	return was
}

// judgeSilence decides whether a silent node is dead. Two witnesses that report the same run of the
// node are enough. One witness is enough if a gateway or another node answers it, and if no second
// watcher is alive that still hears the node. It reports whether the node is now declared dead.
func (w *livenessWatch) judgeSilence(n string, f stepFacts) bool {
	by := w.witnessNoncesBySilentNode[n]
	votes := map[uint64]int{}
	for _, nonce := range by {
		votes[nonce]++
	}
	for _, witness := range slices.Sorted(maps.Keys(by)) {
		nonce := by[witness]
		if votes[nonce] < watchersPerMember && !(w.isConnectedWitness(n, witness) && w.isOnlyWitness(n, witness, f.members)) {
			continue
		}
		if w.isDeclaredDead(n, nonce) || f.now.Sub(w.suspectedSinceByNode[n]) < w.confirmationDelay(n, f) {
			return false
		}
		w.deadRunNonceByNode[n] = nonce
		w.adoptUnwatchedNodes(f)
		return true
	}
	return false
}

// isOnlyWitness reports whether no other watcher of the node is alive and hears it. A watcher that
// only the witness finds silent counts as alive: the witness may be deaf itself.
func (w *livenessWatch) isOnlyWitness(n, witness string, members *membership) bool {
	if witness == members.self && w.areAllOthersSilent(members) {
		return true // nobody is left who could contradict
	}
	return !slices.ContainsFunc(members.ringNeighbours(n, watchersPerMember), func(o string) bool {
		_, silent := w.witnessNoncesBySilentNode[n][o]
		return o != witness && !silent && !w.isSuspectedByOthers(o, witness) && w.isAlive(o, members)
	})
}

// isSuspectedByOthers reports whether a member other than the witness finds the node silent.
func (w *livenessWatch) isSuspectedByOthers(n, witness string) bool {
	for by := range w.witnessNoncesBySilentNode[n] {
		if by != witness {
			return true
		}
	}
	return false
}

// areAllOthersSilent reports whether this node itself finds every other member silent.
func (w *livenessWatch) areAllOthersSilent(members *membership) bool {
	return !slices.ContainsFunc(members.otherMembers, func(o string) bool {
		_, silent := w.witnessNoncesBySilentNode[o][members.self]
		return !silent && w.isAlive(o, members)
	})
}

// judgeSilentNodes judges all silent nodes again after another node died: its silence about them no
// longer counts. It returns those that are now declared dead.
func (w *livenessWatch) judgeSilentNodes(f stepFacts) (dead []string) {
	for _, n := range slices.Sorted(maps.Keys(w.witnessNoncesBySilentNode)) {
		if w.judgeSilence(n, f) {
			dead = append(dead, n)
		}
	}
	return dead
}

// flagWitnessIsDeaf is set in a report of a silent node if the witness has received no message at
// all for a while. It may be the one that does not hear.
const flagWitnessIsDeaf = 1

// witnessFlags are the flags of a report of this node.
func (w *livenessWatch) witnessFlags(f stepFacts) byte {
	if f.now.Sub(w.lastReceivedAt) >= f.timing.SilenceTimeout-f.timing.BeaconInterval {
		return flagWitnessIsDeaf
	}
	return 0
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
