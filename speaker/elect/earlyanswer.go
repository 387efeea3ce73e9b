package elect

import (
	"github.com/gantry-lb/gantry/speaker/intent"
)

// An early answer is an answer for an address that no node holds, while the acquire probe for it is
// still under way. A client then does not wait for the probe. The node makes no claim and does not
// announce the address before the probe has found it free. If another host answers the probe, the
// node stops, and no other node has noticed anything.

// isBlockedByAnswer reports whether the answer of a host keeps this node from taking the address.
// With WireCheckWarn a host keeps an address for which no claim is known: then it was there first,
// as far as the speakers remember. An address that a node has held before is taken from a host,
// since its clients are the cluster's.
func (a *addressState) isBlockedByAnswer() bool {
	switch a.bid.WireCheck {
	case intent.WireCheckEnforce:
		return true
	case intent.WireCheckWarn:
		return a.highestKnownClaim.Epoch == 0
	}
	return false
}

// mayAnswerBeforeProbe reports whether this node answers for the address while it probes. It has to
// be certain that no node holds the address: it knows all claims of the others, no message waits
// unread, and it is the node that all others expect to take the address.
func mayAnswerBeforeProbe(m *Machine, a *addressState, own ownRank, first string) bool {
	return a.bid.WireCheck != intent.WireCheckEnforce && a.highestKnownClaim.Epoch == 0 &&
		first == m.self && !own.isBehindNonMember &&
		(m.fullStateReceived || len(a.bid.Candidates.Nodes) == 1) &&
		!m.lease.isExpired && !m.mayHaveStaleMessages() && m.stepContext().extraDelayForOwnLateness() == 0
}

// beginEarlyAnswer answers for the address from now on, until its acquisition ends.
func beginEarlyAnswer(m *Machine, a *addressState) {
	a.acquisition.mayAnswerEarly = false // once: a second probe means that something was found
	m.pendingProbes.addressesAnsweredEarly[a] = struct{}{}
	m.outbox.emitAddressEffect(HoldAddress{intent.Binding{Address: a.ip, LinkIndexes: a.bid.OwnLinkIndexes, IsUnannounced: true}})
}

// endEarlyAnswer stops answering for an address that this node did not take.
func endEarlyAnswer(m *Machine, a *addressState) {
	if _, isAnswered := m.pendingProbes.addressesAnsweredEarly[a]; isAnswered {
		delete(m.pendingProbes.addressesAnsweredEarly, a)
		m.outbox.emitAddressEffect(DropAddress{a.ip})
	}
}

// endEarlyAnswers stops all early answers, because this node did not run for a while.
func endEarlyAnswers(m *Machine) {
	for _, a := range sortedByIP(m.pendingProbes.addressesAnsweredEarly) {
		endEarlyAnswer(m, a)
	}
}
