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

// contest is an address that this node waits to take, or asks the wire about.
type contest struct {
	target  string // the node that is to take the address, as far as this one can tell
	probing bool
	// answered counts how often the wire was not silent, first is when that began; pause is the next one's length.
	answered int
	first    time.Time
	pause    time.Duration
	reason   names.Reason
	since    time.Time // the last sign of life of the former holder, if it is known
}

// endContest gives up the wish for an address.
func (m *Machine) endContest(a *address) {
	delete(m.unplaced, a)
	if a.contest != nil {
		a.contest = nil
		m.rest(a)
		m.count(a)
	}
}

// alive says whether the node is a member that is not given up for dead.
func (m *Machine) alive(n string) bool {
	p, ok := m.members[n]
	return ok && !m.watch.isDead(n, p.Nonce)
}

// question is what a Probe or an Ask under way is for: a contest's address, an address that this node holds, or a
// node about which a gateway is asked; the zero value is for the fence.
type question struct {
	address *address
	node    string
	sent    time.Time
}

func (m *Machine) question(q question) uint64 {
	m.probeID++
	q.sent = m.now
	if len(m.questions) > 1<<16 { // their answers were lost
		clear(m.questions)
	}
	m.questions[m.probeID] = q
	return m.probeID
}

// probe asks the wire about the address.
func (m *Machine) probe(a *address) {
	m.effect(Probe{
		ID: m.question(question{address: a}), Address: a.ip, Links: a.bid.Links, Attempts: m.timing.ProbeAttempts, Interval: m.timing.ProbeInterval,
	})
}

// strayAnswers is how often a member may answer without a claim before the address is taken all the same: its kernel
// answers, not its speaker (proxy ARP, or IPVS without strictARP).
const strayAnswers = 3

// maxPause bounds the time until the wire is asked again about an address that somebody answers for: so long may a holder
// be dead that is neither a member nor claims anything.
const maxPause = 2 * time.Second

// probed takes in what the wire said.
func (m *Machine) probed(r facts.ProbeResult) {
	q, ok := m.questions[r.ID]
	delete(m.questions, r.ID)
	switch {
	case !ok:
	case q.address == nil:
		m.asked(q, r)
	case q.address.checking:
		m.checked(q.address, r)
	case q.address.contest != nil && q.address.contest.probing:
		m.settle(q.address, r)
	}
}

// settle goes on with a contest after the wire was asked.
func (m *Machine) settle(a *address, r facts.ProbeResult) {
	c := a.contest
	c.probing = false
	switch {
	case r.Unasked: // no link worked: that is no silence
		m.wait(a, m.now.Add(4*m.timing.Retry))
	case len(r.Answers) > 0:
		m.answered(a, c, r.Answers[0])
	default:
		if mac, found := m.stranger(r.Rivals); found { // it is about to use the address (RFC 5227 section 2.1.1)
			m.answered(a, c, mac)
			return
		}
		if m.outranked(a, r.Rivals) { // another node takes the address, or else this one asks again
			m.wait(a, m.now.Add(m.timing.Delta))
			return
		}
		m.take(a, a.claim.Epoch+1, c.reason)
	}
}

// outranked says whether a node of a higher rendezvous weight asked the wire at the same time: of two that find it silent
// only one may take the address.
func (m *Machine) outranked(a *address, rivals []facts.MAC) bool {
	return slices.ContainsFunc(rivals, func(mac facts.MAC) bool {
		n, known := m.owner(mac)
		return known && a.bid.Eligible(n) && weight(a.ip, n) > weight(a.ip, m.self)
	})
}

// answered handles an address for which somebody answered though no live claim is known.
func (m *Machine) answered(a *address, c *contest, mac facts.MAC) {
	if c.answered++; c.answered == 1 {
		c.first = m.now
	}
	m.wait(a, m.now.Add(m.uneven(a, c)))
	c.pause = min(2*c.pause, maxPause)
	owner, known := m.owner(mac)
	_, member := m.members[owner]
	switch {
	case !known:
		if c.answered == 2 { // not at once: it may be a node that this one has not heard of yet
			m.note(Note{Kind: NoteConflict, Address: a.ip, MAC: mac, Text: fmt.Sprintf("a host that is no member (%s) answers for %s: take the address from that host or out of the pool", mac, a.ip)})
		}
	case !member: // it is out of reach of the gossip, not of the wire: it holds the address
	case a.claim.Holder != owner && c.answered >= strayAnswers && m.told[owner].After(c.first): // it was asked, and claims nothing
		m.note(stray(a, owner, mac))
		m.take(a, a.claim.Epoch+1, c.reason)
	default: // its claim may be on the way
		m.sync(owner)
	}
}

// uneven is between half of the contest's pause and the whole: two that do not know each other, such as the speakers of two
// clusters on one segment, would ask at the same times for ever, and each find the other asking.
func (m *Machine) uneven(a *address, c *contest) time.Duration {
	h := mix(weight(a.ip, m.self) ^ m.nonce + uint64(c.answered)) //nolint:gosec // it counts up from 1
	return c.pause/2 + time.Duration(h%uint64(c.pause/2))         //nolint:gosec // neither is below 0
}

// stranger returns the first of the Ethernet addresses that no node has.
func (m *Machine) stranger(macs []facts.MAC) (facts.MAC, bool) {
	for _, mac := range macs {
		if _, known := m.owner(mac); !known {
			return mac, true
		}
	}
	return facts.MAC{}, false
}

// owner returns the node that has the Ethernet address: a member, or one that was.
func (m *Machine) owner(mac facts.MAC) (string, bool) {
	n, ok := m.macs[mac]
	return n, ok
}

var sentences = map[names.Reason]string{
	reasonUnheld:       "nobody held it",
	reasonHolderGone:   "its holder is gone",
	reasonHandedOver:   "it was handed over",
	reasonSuperseded:   "another node holds it, by a later claim",
	reasonNobodyServes: "nothing can serve it any more",
	reasonNoTaker:      "this node cannot serve it and no other node takes it",
}

// take begins to hold the address.
func (m *Machine) take(a *address, epoch uint64, reason names.Reason) {
	n := Note{Kind: NoteTaken, Address: a.ip, Reason: reason,
		Text: fmt.Sprintf("%s is held by node %s from now on: %s", a.ip, m.self, sentences[reason])}
	if a.contest != nil && !a.contest.since.IsZero() && reason == reasonHolderGone {
		n.Delay = m.now.Sub(a.contest.since)
	}
	m.endContest(a)
	a.held = true
	m.mine[a] = struct{}{}
	m.fence.begin(m.now, len(m.mine))
	m.claim(a, epoch)
	m.hold(Hold{intent.Claim{Address: a.ip, Links: a.bid.Links}})
	m.note(n)
}

// claim asserts that this node holds the address.
func (m *Machine) claim(a *address, epoch uint64) {
	c := Claim{Address: a.ip, Holder: m.self, Nonce: m.nonce, Epoch: epoch}
	m.record(a, c)
	m.out.tell = append(m.out.tell, c)
}

// release gives the address up without a successor. The epoch stays: a node that is cut off releases too, and must not
// outdo the claim of whoever took over meanwhile.
func (m *Machine) release(a *address, reason names.Reason) {
	c := a.claim
	c.Released = true
	m.stop(a, reason)
	m.record(a, c)
	m.out.tell = append(m.out.tell, c)
}

// stop ends the answering at once.
func (m *Machine) stop(a *address, reason names.Reason) {
	if a.checking {
		m.fence.unchecked--
	}
	m.forgetRumour(a)
	a.held, a.checking = false, false
	delete(m.mine, a)
	m.endMove(a)
	m.count(a)
	m.hold(Drop{a.ip})
	m.note(Note{Kind: NoteGiven, Address: a.ip, Reason: reason,
		Text: fmt.Sprintf("%s is not held by node %s any more: %s", a.ip, m.self, sentences[reason])})
}

func (m *Machine) note(n Note) { m.effect(n) }

// foreign handles another host's claim to an address that this node holds, seen on the wire. Two members that both hold
// it have not heard each other: they exchange claims, and the epoch decides. A member that goes on though it knows the
// claim is not its speaker, but its kernel. Where the gossip between them is cut, the wire is all there is: then
// the rendezvous weight decides, which both compute alike.
func (m *Machine) foreign(f facts.ForeignClaim) {
	a := m.addresses[f.Address]
	if a == nil || !a.held {
		return
	}
	owner, known := m.owner(f.MAC)
	_, member := m.members[owner]
	switch {
	case !known:
		m.effect(Rejoin{}) // it may be a member that this one has lost
		m.note(contested(a, f.MAC))
	case m.fence.closed: // this node is the one that was away
		m.yield(a)
	case member && m.now.Sub(a.disputed) > 2*maxPause: // who seemed dead may hear, this once
		a.disputed = m.now
		m.argue(a, owner)
	case member && m.alive(owner):
		if m.now.Sub(a.disputed) < maxPause/4 || !m.told[owner].After(a.disputed) {
			m.argue(a, owner)
			return
		}
		m.note(stray(a, owner, f.MAC))
	case !member && !a.bid.Eligible(owner): // it was a node once
		m.note(contested(a, f.MAC))
	case a.bid.Eligible(owner) && weight(a.ip, owner) > weight(a.ip, m.self):
		m.yield(a)
	default:
		m.effect(Rejoin{})
		m.hold(Announce{a.ip})
	}
}

// argue tells a member what this node knows of the address, and asks it for what it knows.
func (m *Machine) argue(a *address, with string) {
	m.queue(kindClaims, with, a.claim)
	m.sync(with)
}

func contested(a *address, mac facts.MAC) Note {
	return Note{Kind: NoteConflict, Address: a.ip, MAC: mac, Text: fmt.Sprintf("another host (%s) claims %s, which this node holds: take the address from that host or out of the pool", mac, a.ip)}
}

func stray(a *address, node string, mac facts.MAC) Note {
	return Note{Kind: NoteStray, Address: a.ip, MAC: mac, Text: fmt.Sprintf("node %s (%s) answers for %s without holding it: look for the address on one of its interfaces, for proxy ARP, and for kube-proxy in ipvs mode without strictARP", node, mac, a.ip)}
}

// yield stops the answering for an address that somebody else answers for, whose claim did not reach this node. The
// claim of this node stands as released: the other one's is not known here.
func (m *Machine) yield(a *address) {
	m.release(a, reasonSuperseded)
	m.evaluate(a)
}

func (m *Machine) learnMACs() {
	for _, n := range m.ring {
		for _, mac := range m.members[n].MACs {
			if n != m.self {
				m.macs[mac] = n
			}
		}
	}
	if len(m.macs) > 64*len(m.ring)+4096 { // replaced cards of a lifetime: begin anew
		m.macs = map[facts.MAC]string{}
	}
}

// linksChanged says whether a held address is to be answered for on other links.
func linksChanged(old, now intent.Bid) bool { return !slices.Equal(old.Links, now.Links) }

// sorted returns the addresses of a set in order.
func sorted(set map[*address]struct{}) []*address {
	out := make([]*address, 0, len(set))
	for a := range set {
		out = append(out, a)
	}
	slices.SortFunc(out, func(x, y *address) int { return x.ip.Compare(y.ip) })
	return out
}
