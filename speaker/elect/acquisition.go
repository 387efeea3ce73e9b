package elect

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// The Reasons that events carry.
const (
	reasonUnheld       = names.ReasonUnheld
	reasonHolderGone   = names.ReasonHolderGone
	reasonHandedOver   = names.ReasonHandedOver
	reasonSuperseded   = names.ReasonSuperseded
	reasonNobodyServes = names.ReasonNobodyServes
	reasonNoTaker      = names.ReasonNoTaker
)

// acquisitionAttempt is the attempt of this node to take an address: it waits for its turn, then
// probes.
type acquisitionAttempt struct {
	expectedTaker string // the node that is expected to take the address
	isProbing     bool
	// mayAnswerEarly is set until the first probe if this node answers while it probes.
	mayAnswerEarly bool
	// answeredProbeCount counts the probes that a host answered, and firstAnswerAt is the time of
	// the first. nextProbeDelay is the delay before the next probe.
	answeredProbeCount   int
	firstAnswerAt        time.Time
	nextProbeDelay       time.Duration
	takeReason           names.Reason
	isBlockReported      bool
	previousHolderSeenAt time.Time // last sign of life of the previous holder, if known
}

// AddressesToTake returns the addresses that this node takes next unless a host answers for them.
// It is the first of the candidates, and the acquisition has begun.
func AddressesToTake(m *Machine) []intent.Binding {
	var out []intent.Binding
	for _, a := range m.addressesByIP {
		if a.acquisition != nil && a.acquisition.expectedTaker == m.self {
			out = append(out, intent.Binding{Address: a.ip, LinkIndexes: a.bid.OwnLinkIndexes})
		}
	}
	return out
}

// endAcquisition cancels the attempt to take the address.
func (m *Machine) endAcquisition(a *addressState) {
	delete(m.addressesToAcquire, a)
	if a.acquisition != nil {
		endEarlyAnswer(m, a)
		a.acquisition = nil
		m.scheduledAddresses.unscheduleAddress(a)
		m.updateAddressGroupCounts(a)
	}
}

// isAlive reports whether the node is a member that is not declared dead.
func (m *Machine) isAlive(n string) bool {
	return m.liveness.isAlive(n, &m.membership)
}

// answersWithoutClaimBeforeTaking is how often a member may answer probes without a claim. Then
// this node takes the address all the same: the kernel of the member answers, not its speaker
// (proxy ARP, or IPVS without strictARP).
const answersWithoutClaimBeforeTaking = 3

// maxProbeRetryDelay bounds the delay between two probes for an address that a host answers for. It
// is also how long it may take to notice that a holder outside of the gossip is gone.
const maxProbeRetryDelay = 2 * time.Second

// handleProbeResult processes the result of any probe.
func (m *Machine) handleProbeResult(r facts.ProbeResult) {
	p, ok := m.pendingProbes.takeProbe(r.ID)
	switch {
	case !ok:
	case p.asksGateways:
		recordGatewayProbe(m, p.sentAt, len(r.AnsweringMACs) > 0)
	case p.addressToProbe == nil && len(r.AnsweringMACs) == 0:
	case p.silentNode != "":
		m.performLivenessActions(m.liveness.reportAsConnectedWitness(p.silentNode, m.stepContext(), &m.outbox))
	case p.addressToProbe == nil:
		m.lease.handleReachabilityProbeResult(p.sentAt, m.now, m.syncRequests.nextRequestID())
	case verifyAnswerByUnicastProbe(m, p, &r):
	case p.targetMAC != facts.MAC{} && p.addressToProbe.isHeldBySelf && !p.addressToProbe.isRechecking:
		judgeConflictProbeResult(m, p.addressToProbe, p.targetMAC, r)
	case p.addressToProbe.isRechecking:
		if m.lease.handleRecheckResult(p.addressToProbe, r, m.now) {
			m.yieldToHolderWithoutClaim(p.addressToProbe)
		}
	case p.addressToProbe.acquisition != nil && p.addressToProbe.acquisition.isProbing:
		m.judgeAcquireProbe(p.addressToProbe, r)
	}
}

// judgeAcquireProbe continues an acquisition after its probe.
func (m *Machine) judgeAcquireProbe(a *addressState, r facts.ProbeResult) {
	c := a.acquisition
	c.isProbing = false
	switch {
	case r.NoFrameSent: // no link worked, so the silence means nothing
		endEarlyAnswer(m, a)
		m.scheduledAddresses.scheduleAddress(a, m.now.Add(4*m.timing.FirstProbeRetryDelay))
	case len(r.AnsweringMACs) > 0 && a.isBlockedByAnswer():
		m.handleUnclaimedAnswer(a, c, r.AnsweringMACs[0])
	default:
		if len(r.AnsweringMACs) > 0 && a.bid.WireCheck == intent.WireCheckWarn {
			m.outbox.emitEffect(newConflictEvent(a, r.AnsweringMACs[0], "another host (%s) answers for %s, which this node takes all the same (wireCheck: Warn)"))
		}
		if mac, found := m.firstUnknownMAC(r.RivalProberMACs); found {
			// the host is about to use the address (RFC 5227 section 2.1.1)
			m.handleUnclaimedAnswer(a, c, mac)
			return
		}
		if a.isOutrankedByRivalProber(&m.membership, r.RivalProberMACs) {
			// the other node takes the address, or this one probes again
			endEarlyAnswer(m, a)
			m.scheduledAddresses.scheduleAddress(a, m.now.Add(m.timing.PerRankAcquireDelay))
			return
		}
		m.takeAddress(a, a.highestKnownClaim.Epoch+1, c.takeReason)
	}
}

// handleUnclaimedAnswer processes an answer for an address that has no live claim.
func (m *Machine) handleUnclaimedAnswer(a *addressState, c *acquisitionAttempt, mac facts.MAC) {
	endEarlyAnswer(m, a)
	if c.answeredProbeCount++; c.answeredProbeCount == 1 {
		c.firstAnswerAt = m.now
	}
	m.scheduledAddresses.scheduleAddress(a, m.now.Add(c.jitteredRetryDelay(a.ip, m.self, m.runNonce)))
	c.nextProbeDelay = min(2*c.nextProbeDelay, maxProbeRetryDelay)
	owner, known := m.nodeOfMAC(mac)
	_, member := m.membersByName[owner]
	switch {
	case !known:
		// not at once: it may be a node that this one does not know yet
		if c.answeredProbeCount == 2 && shouldReportBlockedAcquisition(m, c) {
			m.outbox.emitEffect(newConflictEvent(a, mac, "a host outside of the cluster (%s) answers for %s"))
		}
	case !member: // it holds the address, and only the gossip does not reach it
		reportBlockedAcquisition(m, a, c, owner, mac)
	case a.highestKnownClaim.Holder != owner && c.answeredProbeCount >= answersWithoutClaimBeforeTaking &&
		// a sync showed that it claims nothing
		m.lastSyncAnswerAtByMember[owner].After(c.firstAnswerAt):
		m.outbox.emitEffect(newAnswerWithoutClaimEvent(a, owner, mac))
		m.takeAddress(a, a.highestKnownClaim.Epoch+1, c.takeReason)
	default: // its claim may be on the way
		m.requestSync(owner)
		reportBlockedAcquisition(m, a, c, owner, mac)
	}
}

// jitteredRetryDelay returns between half of the retry delay and all of it. Two speakers that do
// not know each other, such as those of two clusters on one segment, would otherwise probe at the
// same times for ever and take each other for a rival.
func (c *acquisitionAttempt) jitteredRetryDelay(ip netip.Addr, self string, nonce uint64) time.Duration {
	h := finalizeSplitMix64(rendezvousWeight(ip, self) ^ nonce + uint64(c.answeredProbeCount))
	return c.nextProbeDelay/2 + time.Duration(h%uint64(c.nextProbeDelay/2))
}

var eventClauseByReason = map[names.Reason]string{
	reasonUnheld:       "no node held it",
	reasonHolderGone:   "its holder is gone",
	reasonHandedOver:   "it was handed over",
	reasonSuperseded:   "another node holds it with a newer claim",
	reasonNobodyServes: "no node can serve it any more",
	reasonNoTaker:      "this node cannot serve it and no other node takes it",
}

// takeAddress starts to hold the address.
func (m *Machine) takeAddress(a *addressState, epoch uint64, reason names.Reason) {
	e := newAddressTakenEvent(a, m.self, reason, m.now)
	delete(m.pendingProbes.addressesAnsweredEarly, a) // it goes on to answer
	m.endAcquisition(a)
	a.isHeldBySelf = true
	m.addressesHeldBySelf[a] = struct{}{}
	m.lease.startWithFirstAddress(m.now, len(m.addressesHeldBySelf))
	if reason != reasonHandedOver {
		a.isClaimedWithoutGateway = m.gateways.isSilent
		m.gateways.recordOwnClaim(a, m.now)
	}
	m.claimAddress(a, epoch)
	m.outbox.emitAddressEffect(HoldAddress{intent.Binding{Address: a.ip, LinkIndexes: a.bid.OwnLinkIndexes}})
	m.outbox.emitEffect(e)
}

// claimAddress claims the address for this node and sends the claim to all members.
func (m *Machine) claimAddress(a *addressState, epoch uint64) {
	former := a.highestKnownClaim.Holder
	c := Claim{Address: a.ip, Holder: m.self, Nonce: m.runNonce, Epoch: epoch, WithoutGateway: a.isClaimedWithoutGateway,
		FormerHolders: listFormerHolders(a.highestKnownClaim, m.self, m.isAlive(former))}
	m.recordClaim(a, c)
	if _, ok := m.membersByName[former]; ok && former != m.self {
		m.outbox.queueClaim(kindClaims, former, c) // first to the node that has to stop answering
	}
	m.outbox.broadcastClaim(a)
}

// releaseAddress gives the address up without a successor. The epoch stays the same: a node that is
// cut off releases its addresses too, and must not supersede the node that took over.
func (m *Machine) releaseAddress(a *addressState, reason names.Reason) {
	c := a.highestKnownClaim
	c.Released, c.WithoutGateway = true, false
	m.stopAnswering(a, reason)
	m.recordClaim(a, c)
	m.outbox.broadcastClaim(a)
}

// stopAnswering stops answering for the address at once.
func (m *Machine) stopAnswering(a *addressState, reason names.Reason) {
	if a.isRechecking {
		m.lease.addressCountLeftToRecheck--
	}
	a.forgetOrphanClaim(m.addressesWithOrphanClaim, &m.scheduledAddresses)
	delete(m.gateways.contestingClaimByAddress, a)
	a.isHeldBySelf, a.isRechecking = false, false
	delete(m.addressesHeldBySelf, a)
	a.endMove(&m.scheduledAddresses)
	m.updateAddressGroupCounts(a)
	m.outbox.emitAddressEffect(DropAddress{a.ip})
	m.outbox.emitEffect(newAddressGivenUpEvent(a, m.self, reason))
}

// handleConflict processes an answer of another host for an address that this node holds.
//
// If the host is a member, the two exchange claims and the higher epoch wins. A member that still
// answers afterwards does so by its kernel, not its speaker. If gossip does not reach the node, the
// higher rendezvous weight wins, which both compute alike.
func (m *Machine) handleConflict(c facts.Conflict) {
	a := m.addressesByIP[c.Address]
	if a == nil || !a.isHeldBySelf {
		return
	}
	owner, known := m.nodeOfMAC(c.ForeignMAC)
	_, member := m.membersByName[owner]
	switch {
	case !known:
		m.outbox.emitEffect(RejoinGossip{}) // it may be a member that this node lost
		m.outbox.emitEffect(newConflictEvent(a, c.ForeignMAC, "another host (%s) answers for %s, which this node holds"))
	case isNodeDeadOrNoMember(m, owner): // the network may answer for it
		if member {
			sendClaimAndRequestSync(m, a, owner)
		}
		verifyConflictByUnicastProbe(m, a, c.ForeignMAC)
	case m.lease.isExpired: // this node was the one that was away
		m.yieldToHolderWithoutClaim(a)
	case member && m.now.Sub(a.claimSentToRivalAt) > 2*maxProbeRetryDelay:
		a.claimSentToRivalAt = m.now
		sendClaimAndRequestSync(m, a, owner)
	case member:
		if m.now.Sub(a.claimSentToRivalAt) < maxProbeRetryDelay/4 || !m.lastSyncAnswerAtByMember[owner].After(a.claimSentToRivalAt) {
			sendClaimAndRequestSync(m, a, owner)
			return
		}
		m.outbox.emitEffect(newAnswerWithoutClaimEvent(a, owner, c.ForeignMAC))
	}
}

// resolveConflictOutsideGossip decides about a held address for which a node outside of the gossip
// answers.
func resolveConflictOutsideGossip(m *Machine, a *addressState, owner string, mac facts.MAC) {
	switch {
	case m.lease.isExpired: // this node was the one that was away
		m.yieldToHolderWithoutClaim(a)
	case !a.bid.IsCandidate(owner): // an earlier node
		m.outbox.emitEffect(newConflictEvent(a, mac, "another host (%s) answers for %s, which this node holds"))
	case rendezvousWeight(a.ip, owner) > rendezvousWeight(a.ip, m.self):
		m.yieldToHolderWithoutClaim(a)
	default:
		m.outbox.emitEffect(RejoinGossip{})
		m.outbox.emitAddressEffect(RepeatAnnouncement{a.ip})
	}
}

// sendClaimAndRequestSync sends a member the claim to the address and asks it for its claims.
func sendClaimAndRequestSync(m *Machine, a *addressState, with string) {
	m.outbox.queueClaim(kindClaims, with, a.highestKnownClaim)
	m.requestSync(with)
}

// newAddressTakenEvent reports that this node holds the address now. It reads the acquisition,
// which must not have ended yet.
func newAddressTakenEvent(a *addressState, self string, reason names.Reason, now time.Time) Event {
	e := Event{Kind: EventAddressTaken, Address: a.ip, Reason: reason,
		Text: fmt.Sprintf("%s is now held by node %s: %s", a.ip, self, eventClauseByReason[reason])}
	if reason != reasonUnheld && a.highestKnownClaim.Holder != self {
		e.FormerHolder = a.highestKnownClaim.Holder
	}
	if a.acquisition != nil && !a.acquisition.previousHolderSeenAt.IsZero() && reason == reasonHolderGone {
		e.TakeoverDelay = now.Sub(a.acquisition.previousHolderSeenAt)
	}
	return e
}

func newAddressGivenUpEvent(a *addressState, self string, reason names.Reason) Event {
	return Event{Kind: EventAddressGivenUp, Address: a.ip, Reason: reason,
		Text: fmt.Sprintf("%s is no longer held by node %s: %s", a.ip, self, eventClauseByReason[reason])}
}

// newConflictEvent reports another host; format describes what the Ethernet address %s does with
// the address %s.
func newConflictEvent(a *addressState, mac facts.MAC, format string) Event {
	return Event{
		Kind: EventForeignHostAnswers, Address: a.ip, AnsweringMAC: mac,
		Text: fmt.Sprintf(format, mac, a.ip) + ": remove the address from that host or from the pool",
	}
}

func newAnswerWithoutClaimEvent(a *addressState, node string, mac facts.MAC) Event {
	return Event{
		Kind: EventAnswerWithoutClaim, Address: a.ip, AnsweringMAC: mac,
		Text: fmt.Sprintf("node %s (%s) answers for %s without holding it: ", node, mac, a.ip) +
			"check whether one of its interfaces has the address, and check for proxy ARP " +
			"and for kube-proxy in ipvs mode without strictARP",
	}
}

// yieldToHolderWithoutClaim gives the address up to another node whose claim did not arrive. It
// marks this node's claim as released, since the claim of the other node is not known here.
func (m *Machine) yieldToHolderWithoutClaim(a *addressState) {
	m.releaseAddress(a, reasonSuperseded)
	m.reconcileAddress(a)
}

// haveBidLinksChanged reports whether a held address moves to other links of this node.
func haveBidLinksChanged(old, now intent.Bid) bool {
	return !slices.Equal(old.OwnLinkIndexes, now.OwnLinkIndexes)
}

// sortedByIP returns the addresses that are the keys of a map, sorted.
func sortedByIP[V any](byAddress map[*addressState]V) []*addressState {
	out := make([]*addressState, 0, len(byAddress))
	for a := range byAddress {
		out = append(out, a)
	}
	slices.SortFunc(out, func(x, y *addressState) int { return x.ip.Compare(y.ip) })
	return out
}
