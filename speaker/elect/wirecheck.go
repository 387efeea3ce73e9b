package elect

import (
	"fmt"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// Some networks answer ARP and NDP requests from a cache, such as fabrics with ARP suppression or
// proxy ARP. They go on to answer for a dead node, with its Ethernet address. So an answer with the
// Ethernet address of a node that is gone is confirmed: the node asks this Ethernet address alone.
// Such a request reaches the host itself, and a living one answers it.

// isNodeDeadOrNoMember reports whether a node is declared dead, or is no member.
func isNodeDeadOrNoMember(m *Machine, n string) bool { return n != m.self && !m.isAlive(n) }

// verifyAnswerByUnicastProbe asks a host again that has the Ethernet address of a node that is
// gone, if nobody else answered the probe. It reports whether it does. After the second answer, or
// without one, it edits the result so that only hosts that really answer are left.
func verifyAnswerByUnicastProbe(m *Machine, p pendingProbe, r *facts.ProbeResult) bool {
	if p.targetMAC != (facts.MAC{}) {
		if !slices.Contains(r.AnsweringMACs, p.targetMAC) {
			reportNetworkAnswerForDeadNode(m, p.addressToProbe, p.targetMAC)
		}
		r.AnsweringMACs = slices.DeleteFunc(slices.Clone(r.AnsweringMACs), func(mac facts.MAC) bool { return mac != p.targetMAC })
		return false
	}
	a := p.addressToProbe
	isWaiting := a.isRechecking || a.acquisition != nil && a.acquisition.isProbing
	isOfGoneNode := func(mac facts.MAC) bool { n, known := m.nodeOfMAC(mac); return known && isNodeDeadOrNoMember(m, n) }
	if !isWaiting || len(r.AnsweringMACs) == 0 || slices.ContainsFunc(r.AnsweringMACs, func(mac facts.MAC) bool { return !isOfGoneNode(mac) }) {
		return false
	}
	m.pendingProbes.probeAddressAtMAC(a, r.AnsweringMACs[0], stepContextWithExtraProbeTime(m, a), &m.outbox)
	return true
}

// verifyConflictByUnicastProbe asks a host alone that answers for a held address with the Ethernet
// address of a node that is gone.
func verifyConflictByUnicastProbe(m *Machine, a *addressState, mac facts.MAC) {
	if m.now.Sub(a.lastConflictProbeAt) < maxProbeRetryDelay/4 {
		return
	}
	a.lastConflictProbeAt = m.now
	m.outbox.emitEffect(RejoinGossip{})
	m.pendingProbes.probeAddressAtMAC(a, mac, m.stepContext(), &m.outbox)
}

// judgeConflictProbeResult processes the result of verifyConflictByUnicastProbe.
func judgeConflictProbeResult(m *Machine, a *addressState, mac facts.MAC, r facts.ProbeResult) {
	owner, known := m.nodeOfMAC(mac)
	switch {
	case len(r.AnsweringMACs) == 0:
		m.outbox.emitAddressEffect(RepeatAnnouncement{a.ip})
	case !known || !isNodeDeadOrNoMember(m, owner): // it is a member again: the claims decide
	default:
		resolveConflictOutsideGossip(m, a, owner, mac)
	}
}

// reportNetworkAnswerForDeadNode reports that something answers for a node that is gone.
func reportNetworkAnswerForDeadNode(m *Machine, a *addressState, mac facts.MAC) {
	owner, _ := m.nodeOfMAC(mac)
	m.outbox.emitEffect(Event{
		Kind: EventAnswerWithoutClaim, Address: a.ip, AnsweringMAC: mac,
		Text: fmt.Sprintf("the network answers for %s with the Ethernet address of node %s (%s), which is gone: ", a.ip, owner, mac) +
			"check for ARP suppression and proxy ARP on the switches",
	})
}

// shouldReportBlockedAcquisition reports whether this node tells users what keeps an address from
// being taken: one of many candidates is enough.
func shouldReportBlockedAcquisition(m *Machine, c *acquisitionAttempt) bool {
	return c.expectedTaker == m.self || !m.isAlive(c.expectedTaker)
}

// blockedAcquisitionReportDelay is how long a known node may keep an address from being taken until
// that is reported. The claim of a living holder arrives earlier.
const blockedAcquisitionReportDelay = time.Second

// reportBlockedAcquisition reports a node that keeps the address from being taken, once.
func reportBlockedAcquisition(m *Machine, a *addressState, c *acquisitionAttempt, owner string, mac facts.MAC) {
	if c.isBlockReported || !shouldReportBlockedAcquisition(m, c) || m.now.Sub(c.firstAnswerAt) < blockedAcquisitionReportDelay {
		return
	}
	c.isBlockReported = true
	m.outbox.emitEffect(Event{
		Kind: EventForeignHostAnswers, Address: a.ip, AnsweringMAC: mac,
		Text: fmt.Sprintf("node %s (%s) answers for %s, and its speaker does not say that it holds it, so that no node takes it: check that speaker and its gossip, and whether an interface of the node has the address", owner, mac, a.ip),
	})
}
