package elect

import (
	"fmt"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// The Reasons of Notes, by their names here.
const (
	reasonUnheld       = names.ReasonUnheld
	reasonHolderGone   = names.ReasonHolderGone
	reasonHandedOver   = names.ReasonHandedOver
	reasonSuperseded   = names.ReasonSuperseded
	reasonNobodyServes = names.ReasonNobodyServes
	reasonNoTaker      = names.ReasonNoTaker
)

// acquisition is an address that this node waits to take, or asks the wire about.
type acquisition struct {
	expectedTaker string // the node that is to take the address, as far as this one can tell
	probing       bool
	// answeredProbes counts how often the wire was not silent, first is when that began; pause is the next one's length.
	answeredProbes int
	firstAnswerAt  time.Time
	retryDelay     time.Duration
	reason         names.Reason
	holderLastSeen time.Time // the last sign of life of the former holder, if it is known
}

// endAcquisition gives up the wish for an address.
func (m *Machine) endAcquisition(a *addressState) {
	delete(m.unplacedAddresses, a)
	if a.acquisition != nil {
		a.acquisition = nil
		m.unscheduleAddress(a)
		m.countAddress(a)
	}
}

// isAlive says whether the node is a member that is not given up for dead.
func (m *Machine) isAlive(n string) bool {
	p, ok := m.membersByName[n]
	return ok && !m.liveness.isDeclaredDead(n, p.Nonce)
}

// pendingProbe is what a Probe or an Ask under way is for: a contest's address, an address that this node holds, or a
// node about which a gateway is asked; the zero value is for the fence.
type pendingProbe struct {
	address *addressState
	node    string
	sentAt  time.Time
}

func (m *Machine) registerProbe(q pendingProbe) uint64 {
	m.lastProbeID++
	q.sentAt = m.now
	if len(m.probesByID) > 1<<16 { // their answers were lost
		clear(m.probesByID)
	}
	m.probesByID[m.lastProbeID] = q
	return m.lastProbeID
}

// probeAddress asks the wire about the address.
func (m *Machine) probeAddress(a *addressState) {
	m.emitEffect(AcquireProbe{
		ID: m.registerProbe(pendingProbe{address: a}), Address: a.ip, Links: a.bid.Links, Attempts: m.timing.ProbeAttempts, Interval: m.timing.ProbeInterval,
	})
}

// strayAnswerLimit is how often a member may answer without a claim before the address is taken all the same: its kernel
// answers, not its speaker (proxy ARP, or IPVS without strictARP).
const strayAnswerLimit = 3

// maxRetryDelay bounds the time until the wire is asked again about an address that somebody answers for: so long may a holder
// be dead that is neither a member nor claims anything.
const maxRetryDelay = 2 * time.Second

// handleProbeResult takes in what the wire said.
func (m *Machine) handleProbeResult(r facts.ProbeResult) {
	q, ok := m.probesByID[r.ID]
	delete(m.probesByID, r.ID)
	switch {
	case !ok:
	case q.address == nil:
		m.handleLivenessResult(q, r)
	case q.address.rechecking:
		m.handleRecheckResult(q.address, r)
	case q.address.acquisition != nil && q.address.acquisition.probing:
		m.judgeAcquireProbe(q.address, r)
	}
}

// judgeAcquireProbe goes on with a contest after the wire was asked.
func (m *Machine) judgeAcquireProbe(a *addressState, r facts.ProbeResult) {
	c := a.acquisition
	c.probing = false
	switch {
	case r.NotSent: // no link worked: that is no silence
		m.scheduleAddress(a, m.now.Add(4*m.timing.RetryDelay))
	case len(r.Answers) > 0:
		m.handleProbeAnswer(a, c, r.Answers[0])
	default:
		if mac, found := m.firstUnknownMAC(r.RivalProbers); found { // it is about to use the address (RFC 5227 section 2.1.1)
			m.handleProbeAnswer(a, c, mac)
			return
		}
		if m.isOutranked(a, r.RivalProbers) { // another node takes the address, or else this one asks again
			m.scheduleAddress(a, m.now.Add(m.timing.CandidateDelay))
			return
		}
		m.takeAddress(a, a.claim.Epoch+1, c.reason)
	}
}

// isOutranked says whether a node of a higher rendezvous weight asked the wire at the same time: of two that find it silent
// only one may take the address.
func (m *Machine) isOutranked(a *addressState, rivals []facts.MAC) bool {
	return slices.ContainsFunc(rivals, func(mac facts.MAC) bool {
		n, known := m.nodeOfMAC(mac)
		return known && a.bid.IsEligible(n) && rendezvousWeight(a.ip, n) > rendezvousWeight(a.ip, m.self)
	})
}

// handleProbeAnswer handles an address for which somebody answered though no live claim is known.
func (m *Machine) handleProbeAnswer(a *addressState, c *acquisition, mac facts.MAC) {
	if c.answeredProbes++; c.answeredProbes == 1 {
		c.firstAnswerAt = m.now
	}
	m.scheduleAddress(a, m.now.Add(m.jitteredRetryDelay(a, c)))
	c.retryDelay = min(2*c.retryDelay, maxRetryDelay)
	owner, known := m.nodeOfMAC(mac)
	_, member := m.membersByName[owner]
	switch {
	case !known:
		if c.answeredProbes == 2 { // not at once: it may be a node that this one has not heard of yet
			m.emitEvent(Event{Kind: EventConflict, Address: a.ip, ForeignMAC: mac, Text: fmt.Sprintf("a host that is no member (%s) answers for %s: take the address from that host or out of the pool", mac, a.ip)})
		}
	case !member: // it is out of reach of the gossip, not of the wire: it holds the address
	case a.claim.Holder != owner && c.answeredProbes >= strayAnswerLimit && m.lastSyncByMember[owner].After(c.firstAnswerAt): // it was asked, and claims nothing
		m.emitEvent(strayAnswerEvent(a, owner, mac))
		m.takeAddress(a, a.claim.Epoch+1, c.reason)
	default: // its claim may be on the way
		m.requestSync(owner)
	}
}

// jitteredRetryDelay is between half of the contest's pause and the whole: two that do not know each other, such as the speakers of two
// clusters on one segment, would ask at the same times for ever, and each find the other asking.
func (m *Machine) jitteredRetryDelay(a *addressState, c *acquisition) time.Duration {
	h := mixBits(rendezvousWeight(a.ip, m.self) ^ m.nonce + uint64(c.answeredProbes)) //nolint:gosec // it counts up from 1
	return c.retryDelay/2 + time.Duration(h%uint64(c.retryDelay/2))                   //nolint:gosec // neither is below 0
}

// firstUnknownMAC returns the first of the Ethernet addresses that no node has.
func (m *Machine) firstUnknownMAC(macs []facts.MAC) (facts.MAC, bool) {
	for _, mac := range macs {
		if _, known := m.nodeOfMAC(mac); !known {
			return mac, true
		}
	}
	return facts.MAC{}, false
}

// nodeOfMAC returns the node that has the Ethernet address: a member, or one that was.
func (m *Machine) nodeOfMAC(mac facts.MAC) (string, bool) {
	n, ok := m.nodesByMAC[mac]
	return n, ok
}

var reasonSentences = map[names.Reason]string{
	reasonUnheld:       "nobody held it",
	reasonHolderGone:   "its holder is gone",
	reasonHandedOver:   "it was handed over",
	reasonSuperseded:   "another node holds it, by a later claim",
	reasonNobodyServes: "nothing can serve it any more",
	reasonNoTaker:      "this node cannot serve it and no other node takes it",
}

// takeAddress begins to hold the address.
func (m *Machine) takeAddress(a *addressState, epoch uint64, reason names.Reason) {
	n := Event{Kind: EventTaken, Address: a.ip, Reason: reason,
		Text: fmt.Sprintf("%s is held by node %s from now on: %s", a.ip, m.self, reasonSentences[reason])}
	if a.acquisition != nil && !a.acquisition.holderLastSeen.IsZero() && reason == reasonHolderGone {
		n.TakeoverDelay = m.now.Sub(a.acquisition.holderLastSeen)
	}
	m.endAcquisition(a)
	a.held = true
	m.heldAddresses[a] = struct{}{}
	m.lease.startIfFirst(m.now, len(m.heldAddresses))
	m.assertClaim(a, epoch)
	m.emitAddressEffect(HoldAddress{intent.Binding{Address: a.ip, Links: a.bid.Links}})
	m.emitEvent(n)
}

// assertClaim asserts that this node holds the address.
func (m *Machine) assertClaim(a *addressState, epoch uint64) {
	c := Claim{Address: a.ip, Holder: m.self, Nonce: m.nonce, Epoch: epoch}
	m.recordClaim(a, c)
	m.output.claimsToBroadcast = append(m.output.claimsToBroadcast, c)
}

// releaseAddress gives the address up without a successor. The epoch stays: a node that is cut off releases too, and must not
// outdo the claim of whoever took over meanwhile.
func (m *Machine) releaseAddress(a *addressState, reason names.Reason) {
	c := a.claim
	c.Released = true
	m.stopAnswering(a, reason)
	m.recordClaim(a, c)
	m.output.claimsToBroadcast = append(m.output.claimsToBroadcast, c)
}

// stopAnswering ends the answering at once.
func (m *Machine) stopAnswering(a *addressState, reason names.Reason) {
	if a.rechecking {
		m.lease.uncheckedCount--
	}
	m.forgetOrphanClaim(a)
	a.held, a.rechecking = false, false
	delete(m.heldAddresses, a)
	m.endMove(a)
	m.countAddress(a)
	m.emitAddressEffect(DropAddress{a.ip})
	m.emitEvent(Event{Kind: EventGivenUp, Address: a.ip, Reason: reason,
		Text: fmt.Sprintf("%s is not held by node %s any more: %s", a.ip, m.self, reasonSentences[reason])})
}

func (m *Machine) emitEvent(n Event) { m.emitEffect(n) }

// handleConflict handles another host's claim to an address that this node holds, seen on the wire. Two members that both hold
// it have not heard each other: they exchange claims, and the epoch decides. A member that goes on though it knows the
// claim is not its speaker, but its kernel. Where the gossip between them is cut, the wire is all there is: then
// the rendezvous weight decides, which both compute alike.
func (m *Machine) handleConflict(f facts.Conflict) {
	a := m.addressesByIP[f.Address]
	if a == nil || !a.held {
		return
	}
	owner, known := m.nodeOfMAC(f.MAC)
	_, member := m.membersByName[owner]
	switch {
	case !known:
		m.emitEffect(RejoinGossip{}) // it may be a member that this one has lost
		m.emitEvent(conflictEvent(a, f.MAC))
	case m.lease.expired: // this node is the one that was away
		m.yieldAddress(a)
	case member && m.now.Sub(a.disputedAt) > 2*maxRetryDelay: // who seemed dead may hear, this once
		a.disputedAt = m.now
		m.exchangeClaims(a, owner)
	case member && m.isAlive(owner):
		if m.now.Sub(a.disputedAt) < maxRetryDelay/4 || !m.lastSyncByMember[owner].After(a.disputedAt) {
			m.exchangeClaims(a, owner)
			return
		}
		m.emitEvent(strayAnswerEvent(a, owner, f.MAC))
	case !member && !a.bid.IsEligible(owner): // it was a node once
		m.emitEvent(conflictEvent(a, f.MAC))
	case a.bid.IsEligible(owner) && rendezvousWeight(a.ip, owner) > rendezvousWeight(a.ip, m.self):
		m.yieldAddress(a)
	default:
		m.emitEffect(RejoinGossip{})
		m.emitAddressEffect(RepeatAnnouncement{a.ip})
	}
}

// exchangeClaims tells a member what this node knows of the address, and asks it for what it knows.
func (m *Machine) exchangeClaims(a *addressState, with string) {
	m.queueClaim(kindClaims, with, a.claim)
	m.requestSync(with)
}

func conflictEvent(a *addressState, mac facts.MAC) Event {
	return Event{Kind: EventConflict, Address: a.ip, ForeignMAC: mac, Text: fmt.Sprintf("another host (%s) claims %s, which this node holds: take the address from that host or out of the pool", mac, a.ip)}
}

func strayAnswerEvent(a *addressState, node string, mac facts.MAC) Event {
	return Event{Kind: EventStrayAnswer, Address: a.ip, ForeignMAC: mac, Text: fmt.Sprintf("node %s (%s) answers for %s without holding it: look for the address on one of its interfaces, for proxy ARP, and for kube-proxy in ipvs mode without strictARP", node, mac, a.ip)}
}

// yieldAddress stops the answering for an address that somebody else answers for, whose claim did not reach this node. The
// claim of this node stands as released: the other one's is not known here.
func (m *Machine) yieldAddress(a *addressState) {
	m.releaseAddress(a, reasonSuperseded)
	m.reconcileAddress(a)
}

func (m *Machine) learnMACs() {
	for _, n := range m.memberNames {
		for _, mac := range m.membersByName[n].MACs {
			if n != m.self {
				m.nodesByMAC[mac] = n
			}
		}
	}
	if len(m.nodesByMAC) > 64*len(m.memberNames)+4096 { // replaced cards of a lifetime: begin anew
		m.nodesByMAC = map[facts.MAC]string{}
	}
}

// hasOtherLinks says whether a held address is to be answered for on other links.
func hasOtherLinks(old, now intent.Bid) bool { return !slices.Equal(old.Links, now.Links) }

// sortedByIP returns the addresses of a set in order.
func sortedByIP(set map[*addressState]struct{}) []*addressState {
	out := make([]*addressState, 0, len(set))
	for a := range set {
		out = append(out, a)
	}
	slices.SortFunc(out, func(x, y *addressState) int { return x.ip.Compare(y.ip) })
	return out
}
