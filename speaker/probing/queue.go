// Package survey decides when this node asks its segment whether somebody uses an address, and what the answers mean. The controller asks the
// question of all speakers; they take turns, so that as a rule one asks, and the next does when that one finds nothing. It is pure: it
// reads no clock and sends nothing.
package probing

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/speaker/facts"
)

// What is sent on the wire for one question. RFC 5227 section 1.1 has three probes, one to two seconds apart, for hosts on any link that take a
// minute to wake up; here a person waits, the hosts are those of a server room, and who answers later is found by the holder.
const (
	Attempts = 3
	Interval = 200 * time.Millisecond
)

const (
	// turnDelay is how long each node waits for the one before it, and offSubnetDelay how long those wait that have no link in the subnet of the
	// address: a question and its answer through the API take less.
	turnDelay      = time.Second
	offSubnetDelay = 3 * time.Second
	// maxTurns bounds the wait in a large cluster.
	maxTurns = 10
	// retryInterval is when a question is asked again that could not be asked, or whose answer is in doubt.
	retryInterval = time.Second
	// memberAnswersRequired is how often one of our own nodes has to answer for an address that none of them holds until that counts: a node may be
	// behind by a moment, but it may also have the address as its own.
	memberAnswersRequired = 3
)

// Question is an address to ask for. ID tells it from another about the same address.
type Question struct {
	ID      string
	Address netip.Addr
	Pool    string
}

// Answer is what was found: By are the Ethernet addresses that answered, empty when nobody did.
type Answer struct {
	Question
	AnsweredBy string
}

// Probe is a question for the wire.
type Probe struct {
	ID      uint64
	Address netip.Addr
	Links   []int
}

// State is what the decisions rest on.
type State struct {
	// Self is the name of this node.
	Self     string
	Snapshot *snapshot.Snapshot
	// Links are those on which frames can be sent.
	Links   facts.LinkSet
	Members facts.MemberSet
	// IsHeld says whether one of the members answers for the address.
	IsHeld func(netip.Addr) bool
}

// Queue keeps the open questions. The zero value has none; it belongs to one goroutine.
type Queue struct {
	openByID map[string]*openQuestion
	// openByProbeID finds the question of an Ask by its number, which never comes twice.
	openByProbeID map[uint64]*openQuestion
	lastProbeID   uint64
	finished      []Answer
}

type openQuestion struct {
	Question
	dueAt         time.Time
	isProbing     bool
	isFinished    bool
	memberAnswers int
}

// SetQuestions makes exactly these questions the open ones. Those that were answered stay answered.
func (d *Queue) SetQuestions(questions []Question, w State, now time.Time) {
	before := d.openByID
	d.openByID = make(map[string]*openQuestion, len(questions))
	for _, q := range questions {
		o := before[q.ID]
		if o == nil {
			o = &openQuestion{Question: q, dueAt: now.Add(firstDelay(q, w))}
		}
		d.openByID[q.ID] = o
	}
	for n, o := range d.openByProbeID {
		if d.openByID[o.ID] == nil {
			delete(d.openByProbeID, n)
		}
	}
}

// Advance returns what to ask now, and what is answered without.
func (d *Queue) Advance(w State, now time.Time) (asks []Probe, answers []Answer) {
	for _, o := range d.openByID {
		if o.isFinished || o.isProbing || now.Before(o.dueAt) {
			continue
		}
		links, own, _ := probeLinks(o.Question, w)
		switch {
		case own != "":
			d.finishQuestion(o, own)
		case len(links) == 0 || w.IsHeld != nil && w.IsHeld(o.Address):
			o.dueAt = now.Add(retryInterval)
		default:
			if d.openByProbeID == nil {
				d.openByProbeID = map[uint64]*openQuestion{}
			}
			d.lastProbeID++
			d.openByProbeID[d.lastProbeID], o.isProbing = o, true
			asks = append(asks, Probe{d.lastProbeID, o.Address, links})
		}
	}
	slices.SortFunc(asks, func(x, y Probe) int { return x.Address.Compare(y.Address) })
	answers, d.finished = d.finished, nil
	return asks, answers
}

// RecordResult takes in what the wire said to an Ask.
func (d *Queue) RecordResult(r facts.ProbeResult, w State, now time.Time) {
	o := d.openByProbeID[r.ID]
	delete(d.openByProbeID, r.ID)
	if o == nil {
		return
	}
	o.isProbing = false
	foreign, ours := splitAnswers(r, w.Members)
	switch {
	case len(foreign) > 0:
		d.finishQuestion(o, joinMACs(foreign))
	case r.NotSent:
		o.dueAt = now.Add(retryInterval)
	case len(ours) > 0:
		if o.memberAnswers++; o.memberAnswers >= memberAnswersRequired {
			d.finishQuestion(o, joinMACs(ours))
			return
		}
		o.dueAt = now.Add(retryInterval)
	default:
		d.finishQuestion(o, "")
	}
}

// NextDue is when Step has something to do; zero when nothing waits for the time.
func (d *Queue) NextDue() (next time.Time) {
	for _, o := range d.openByID {
		if !o.isFinished && !o.isProbing && (next.IsZero() || o.dueAt.Before(next)) {
			next = o.dueAt
		}
	}
	return next
}

// HasDue says whether Step has something to do.
func (d *Queue) HasDue(now time.Time) bool {
	next := d.NextDue()
	return len(d.finished) > 0 || !next.IsZero() && !next.After(now)
}

func (d *Queue) finishQuestion(o *openQuestion, by string) {
	o.isFinished = true
	d.finished = append(d.finished, Answer{o.Question, by})
}

// splitAnswers tells the answers of strangers from those of our own nodes. Another node that asks the same is no stranger that wants the address.
func splitAnswers(r facts.ProbeResult, members facts.MemberSet) (foreign, ours []facts.MAC) {
	member := func(m facts.MAC) bool {
		return slices.ContainsFunc(members.Members, func(o facts.Member) bool { return slices.Contains(o.MACs, m) })
	}
	for _, m := range r.Answers {
		if member(m) {
			ours = append(ours, m)
		} else {
			foreign = append(foreign, m)
		}
	}
	for _, m := range r.RivalProbers {
		if !member(m) && !slices.Contains(foreign, m) {
			foreign = append(foreign, m)
		}
	}
	return foreign, ours
}

// reportedMACsLimit is how many Ethernet addresses are told.
const reportedMACsLimit = 8

func joinMACs(macs []facts.MAC) string {
	var out []string
	for _, m := range macs[:min(len(macs), reportedMACsLimit)] {
		out = append(out, m.String())
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// firstDelay is how long this node leaves a question to others.
func firstDelay(q Question, w State) time.Duration {
	order := slices.Clone(w.Members.Members)
	slices.SortFunc(order, func(x, y facts.Member) int {
		return cmp.Or(cmp.Compare(nodeRank(x.Name, q.Address), nodeRank(y.Name, q.Address)), cmp.Compare(x.Name, y.Name))
	})
	before := slices.IndexFunc(order, func(m facts.Member) bool { return m.Name == w.Self })
	out := time.Duration(min(max(before, 0), maxTurns)) * turnDelay
	if _, _, near := probeLinks(q, w); !near {
		out += offSubnetDelay
	}
	return out
}

// nodeRank spreads the questions over the nodes.
func nodeRank(node string, a netip.Addr) uint64 {
	h := fnv.New64a()
	b := a.As16()
	_, _ = h.Write(b[:])
	_, _ = h.Write([]byte(node))
	return h.Sum64()
}

// probeLinks returns the links on which the address would be announced: those that the layer-2 advertisements of its pool name, else those whose
// subnet covers it, else all. own is this node's Ethernet address when it has the address itself. near says that one of the links has a subnet
// that covers the address.
func probeLinks(q Question, w State) (links []int, own string, near bool) {
	var on, all []int
	for _, l := range w.Links {
		for _, p := range l.Prefixes {
			if p.Addr() == q.Address {
				return nil, l.MAC.String(), true
			}
		}
		if !l.CanCarry(q.Address) || !adsAdmitLink(q, w.Snapshot, l.Name) {
			continue
		}
		all = append(all, l.Index)
		if slices.ContainsFunc(l.Prefixes, func(p netip.Prefix) bool { return p.Contains(q.Address) }) {
			on = append(on, l.Index)
		}
	}
	if len(on) > 0 {
		return on, "", true
	}
	return all, "", false
}

// adsAdmitLink says whether the advertisements of the pool admit the link. A pool without one is asked for on every link.
func adsAdmitLink(q Question, s *snapshot.Snapshot, link string) bool {
	if s == nil {
		return true
	}
	advertised := false
	for _, ad := range s.L2Advertisements {
		if !slices.Contains(ad.Pools, q.Pool) {
			continue
		}
		if advertised = true; len(ad.Interfaces) == 0 || slices.Contains(ad.Interfaces, link) {
			return true
		}
	}
	return !advertised
}
