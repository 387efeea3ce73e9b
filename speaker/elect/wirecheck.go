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

// isNodeGone reports whether a node is declared dead, or is no member.
func isNodeGone(m *Machine, n string) bool { return n != m.self && !m.isAlive(n) }

// confirmAnswerOfDeadNode asks a host again that has the Ethernet address of a node that is gone,
// if nobody else answered the probe. It reports whether it does. After the second answer, or
// without one, it edits the result so that only hosts that really answer are left.
func confirmAnswerOfDeadNode(m *Machine, p pendingProbe, r *facts.ProbeResult) bool {
	if p.confirmedMAC != (facts.MAC{}) {
		if !slices.Contains(r.AnsweringMACs, p.confirmedMAC) {
			reportAnswerForGoneNode(m, p.addressToProbe, p.confirmedMAC)
		}
		r.AnsweringMACs = slices.DeleteFunc(slices.Clone(r.AnsweringMACs), func(mac facts.MAC) bool { return mac != p.confirmedMAC })
		return false
	}
	a := p.addressToProbe
	isWaiting := a.isRechecking || a.acquisition != nil && a.acquisition.isProbing
	isOfGoneNode := func(mac facts.MAC) bool { n, known := m.nodeOfMAC(mac); return known && isNodeGone(m, n) }
	if !isWaiting || len(r.AnsweringMACs) == 0 || slices.ContainsFunc(r.AnsweringMACs, func(mac facts.MAC) bool { return !isOfGoneNode(mac) }) {
		return false
	}
	m.probes.probeAddressAt(a, r.AnsweringMACs[0], stepFactsForProbe(m, a), &m.outbox)
	return true
}

// confirmConflict asks a host alone that answers for a held address with the Ethernet address of a
// node that is gone.
func confirmConflict(m *Machine, a *addressState, mac facts.MAC) {
	if m.now.Sub(a.conflictCheckedAt) < maxProbeRetryDelay/4 {
		return
	}
	a.conflictCheckedAt = m.now
	m.outbox.emitEffect(RejoinGossip{})
	m.probes.probeAddressAt(a, mac, m.stepFacts(), &m.outbox)
}

// judgeConfirmedConflict processes the result of confirmConflict.
func judgeConfirmedConflict(m *Machine, a *addressState, mac facts.MAC, r facts.ProbeResult) {
	owner, known := m.nodeOfMAC(mac)
	switch {
	case len(r.AnsweringMACs) == 0:
		m.outbox.emitAddressEffect(RepeatAnnouncement{a.ip})
	case !known || !isNodeGone(m, owner): // it is a member again: the claims decide
	default:
		judgeLivingRival(m, a, owner, mac)
	}
}

// reportAnswerForGoneNode reports that something answers for a node that is gone.
func reportAnswerForGoneNode(m *Machine, a *addressState, mac facts.MAC) {
	owner, _ := m.nodeOfMAC(mac)
	m.outbox.emitEffect(Event{
		Kind: EventStrayAnswer, Address: a.ip, AnsweringMAC: mac,
		Text: fmt.Sprintf("the network answers for %s with the Ethernet address of node %s (%s), which is gone: ", a.ip, owner, mac) +
			"check for ARP suppression and proxy ARP on the switches",
	})
}

// isObstacleReporter reports whether this node tells users what keeps an address from being taken:
// one of many candidates is enough.
func isObstacleReporter(m *Machine, c *acquisitionAttempt) bool {
	return c.expectedTaker == m.self || !m.isAlive(c.expectedTaker)
}

// obstacleReportDelay is how long a known node may keep an address from being taken until that is
// reported. The claim of a living holder arrives earlier.
const obstacleReportDelay = time.Second

// reportObstacle reports a node that keeps the address from being taken, once.
func reportObstacle(m *Machine, a *addressState, c *acquisitionAttempt, owner string, mac facts.MAC) {
	if c.isObstacleReported || !isObstacleReporter(m, c) || m.now.Sub(c.firstAnswerAt) < obstacleReportDelay {
		return
	}
	c.isObstacleReported = true
	m.outbox.emitEffect(Event{
		Kind: EventForeignHostAnswers, Address: a.ip, AnsweringMAC: mac,
		Text: fmt.Sprintf("node %s (%s) answers for %s, and its speaker does not say that it holds it, so that no node takes it: check that speaker and its gossip, and whether an interface of the node has the address", owner, mac, a.ip),
	})
}
