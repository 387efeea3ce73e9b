// Package survey decides when this node asks its segment whether somebody uses an address, and what the answers mean. The controller asks the
// question of all speakers; they take turns, so that as a rule one asks, and the next does when that one finds nothing. It is pure: it
// reads no clock and sends nothing.
package survey

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
	// turn is how long each node waits for the one before it, and farTurn how long those wait that have no link in the subnet of the
	// address: a question and its answer through the API take less.
	turn    = time.Second
	farTurn = 3 * time.Second
	// maxTurns bounds the wait in a large cluster.
	maxTurns = 10
	// again is when a question is asked again that could not be asked, or whose answer is in doubt.
	again = time.Second
	// strikes is how often one of our own nodes has to answer for an address that none of them holds until that counts: a node may be
	// behind by a moment, but it may also have the address as its own.
	strikes = 3
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
	By string
}

// Ask is a question for the wire.
type Ask struct {
	ID      uint64
	Address netip.Addr
	Links   []int
}

// World is what the decisions rest on.
type World struct {
	// Self is the name of this node.
	Self     string
	Snapshot *snapshot.Snapshot
	// Links are those on which frames can be sent.
	Links   facts.LinkSet
	Members facts.MemberSet
	// Held says whether one of the members answers for the address.
	Held func(netip.Addr) bool
}

// Desk keeps the open questions. The zero value has none; it belongs to one goroutine.
type Desk struct {
	open map[string]*open
	// asked finds the question of an Ask by its number, which never comes twice.
	asked map[uint64]*open
	last  uint64
	done  []Answer
}

type open struct {
	Question
	due     time.Time
	asking  bool
	done    bool
	strikes int
}

// Set makes exactly these questions the open ones. Those that were answered stay answered.
func (d *Desk) Set(questions []Question, w World, now time.Time) {
	before := d.open
	d.open = make(map[string]*open, len(questions))
	for _, q := range questions {
		o := before[q.ID]
		if o == nil {
			o = &open{Question: q, due: now.Add(wait(q, w))}
		}
		d.open[q.ID] = o
	}
	for n, o := range d.asked {
		if d.open[o.ID] == nil {
			delete(d.asked, n)
		}
	}
}

// Step returns what to ask now, and what is answered without.
func (d *Desk) Step(w World, now time.Time) (asks []Ask, answers []Answer) {
	for _, o := range d.open {
		if o.done || o.asking || now.Before(o.due) {
			continue
		}
		links, own, _ := where(o.Question, w)
		switch {
		case own != "":
			d.answer(o, own)
		case len(links) == 0 || w.Held != nil && w.Held(o.Address):
			o.due = now.Add(again)
		default:
			if d.asked == nil {
				d.asked = map[uint64]*open{}
			}
			d.last++
			d.asked[d.last], o.asking = o, true
			asks = append(asks, Ask{d.last, o.Address, links})
		}
	}
	slices.SortFunc(asks, func(x, y Ask) int { return x.Address.Compare(y.Address) })
	answers, d.done = d.done, nil
	return asks, answers
}

// Found takes in what the wire said to an Ask.
func (d *Desk) Found(r facts.ProbeResult, w World, now time.Time) {
	o := d.asked[r.ID]
	delete(d.asked, r.ID)
	if o == nil {
		return
	}
	o.asking = false
	foreign, ours := sort(r, w.Members)
	switch {
	case len(foreign) > 0:
		d.answer(o, text(foreign))
	case r.Unasked:
		o.due = now.Add(again)
	case len(ours) > 0:
		if o.strikes++; o.strikes >= strikes {
			d.answer(o, text(ours))
			return
		}
		o.due = now.Add(again)
	default:
		d.answer(o, "")
	}
}

// Next is when Step has something to do; zero when nothing waits for the time.
func (d *Desk) Next() (next time.Time) {
	for _, o := range d.open {
		if !o.done && !o.asking && (next.IsZero() || o.due.Before(next)) {
			next = o.due
		}
	}
	return next
}

// Due says whether Step has something to do.
func (d *Desk) Due(now time.Time) bool {
	next := d.Next()
	return len(d.done) > 0 || !next.IsZero() && !next.After(now)
}

func (d *Desk) answer(o *open, by string) {
	o.done = true
	d.done = append(d.done, Answer{o.Question, by})
}

// sort tells the answers of strangers from those of our own nodes. Another node that asks the same is no stranger that wants the address.
func sort(r facts.ProbeResult, members facts.MemberSet) (foreign, ours []facts.MAC) {
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
	for _, m := range r.Rivals {
		if !member(m) && !slices.Contains(foreign, m) {
			foreign = append(foreign, m)
		}
	}
	return foreign, ours
}

// most is how many Ethernet addresses are told.
const most = 8

func text(macs []facts.MAC) string {
	var out []string
	for _, m := range macs[:min(len(macs), most)] {
		out = append(out, m.String())
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// wait is how long this node leaves a question to others.
func wait(q Question, w World) time.Duration {
	order := slices.Clone(w.Members.Members)
	slices.SortFunc(order, func(x, y facts.Member) int {
		return cmp.Or(cmp.Compare(rank(x.Name, q.Address), rank(y.Name, q.Address)), cmp.Compare(x.Name, y.Name))
	})
	before := slices.IndexFunc(order, func(m facts.Member) bool { return m.Name == w.Self })
	out := time.Duration(min(max(before, 0), maxTurns)) * turn
	if _, _, near := where(q, w); !near {
		out += farTurn
	}
	return out
}

// rank spreads the questions over the nodes.
func rank(node string, a netip.Addr) uint64 {
	h := fnv.New64a()
	b := a.As16()
	_, _ = h.Write(b[:])
	_, _ = h.Write([]byte(node))
	return h.Sum64()
}

// where returns the links on which the address would be announced: those that the layer-2 advertisements of its pool name, else those whose
// subnet covers it, else all. own is this node's Ethernet address when it has the address itself. near says that one of the links has a subnet
// that covers the address.
func where(q Question, w World) (links []int, own string, near bool) {
	var on, all []int
	for _, l := range w.Links {
		for _, p := range l.Prefixes {
			if p.Addr() == q.Address {
				return nil, l.MAC.String(), true
			}
		}
		if !l.Carries(q.Address) || !named(q, w.Snapshot, l.Name) {
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

// named says whether the advertisements of the pool admit the link. A pool without one is asked for on every link.
func named(q Question, s *snapshot.Snapshot, link string) bool {
	if s == nil {
		return true
	}
	advertised := false
	for _, ad := range s.L2Ads {
		if !slices.Contains(ad.Pools, q.Pool) {
			continue
		}
		if advertised = true; len(ad.Interfaces) == 0 || slices.Contains(ad.Interfaces, link) {
			return true
		}
	}
	return !advertised
}
