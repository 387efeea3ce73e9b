package layer2

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// question is a Probe under way.
type question struct {
	Probe
	sent    int
	next    time.Time
	carried bool // some link carried the question
	answers []facts.MAC
	rivals  []facts.MAC // who else asked in order to use the address
}

// ask begins a Probe.
func (e *Engine) ask(p Probe) {
	if q := e.asking[p.ID]; q != nil { // its result would be taken for this one's
		e.forget(q)
	}
	e.asking[p.ID] = &question{Probe: p, next: e.now()}
	if e.askedFor[p.Address]++; e.askedFor[p.Address] == 1 {
		e.askedNew = true
	}
	for _, l := range p.Links {
		e.need(portKey{l, FamilyOf(p.Address)})
	}
}

// forget ends a question.
func (e *Engine) forget(q *question) {
	delete(e.asking, q.ID)
	if e.askedFor[q.Address]--; e.askedFor[q.Address] <= 0 {
		delete(e.askedFor, q.Address)
		e.askedNew = true
	}
}

// askAgain sends what is due, ends what is over, and returns when the next thing is due.
func (e *Engine) askAgain(now time.Time) time.Time {
	if e.askedNew { // before the first question goes out: its answer may be here at once
		e.askedNew = false
		e.publishAsked()
	}
	var next time.Time
	for id, q := range e.asking {
		if !now.Before(q.next) && len(q.answers) == 0 && q.sent < q.Attempts {
			q.sent++
			q.next = now.Add(q.Interval)
			for _, l := range q.Links {
				e.sendQuestion(q, l)
			}
		} else if len(q.answers) > 0 || !now.Before(q.next) {
			e.forget(q)
			e.report(facts.ProbeResult{ID: id, Address: q.Address, Answers: q.answers, Rivals: q.rivals, Unasked: !q.carried})
			continue
		}
		if next.IsZero() || q.next.Before(next) {
			next = q.next
		}
	}
	return next
}

func (e *Engine) sendQuestion(q *question, link int) {
	p := e.ports[portKey{link, FamilyOf(q.Address)}]
	if p == nil || p.io == nil || !q.Address.IsValid() {
		return
	}
	f := Frame{
		Destination: Asked(q.Address), Source: p.link.MAC, Operation: Request,
		SenderMAC: p.link.MAC, SenderIP: unspecified(p.key.family), TargetIP: q.Address,
	}
	if q.Kind == Ask {
		f.SenderIP = ownAddress(p.link, q.Address)
	}
	q.carried = e.write(p, f) || q.carried
}

// ownAddress is the link's address in the subnet of a, or any of the same family.
func ownAddress(l facts.Link, a netip.Addr) netip.Addr {
	own := unspecified(FamilyOf(a))
	for _, p := range l.Prefixes {
		if p.Contains(a) {
			return p.Addr()
		}
		if FamilyOf(p.Addr()) == FamilyOf(a) {
			own = p.Addr()
		}
	}
	return own
}

// rival takes a question of one who may want to use the address (RFC 5227 section 2.1.1, RFC 4862 section 5.4.3) as the
// wish of another to have what this node asks for.
func (e *Engine) rival(f Frame) {
	if f.Operation != Request || !f.SenderIP.IsUnspecified() || e.askedFor[f.TargetIP] == 0 {
		return
	}
	for _, q := range e.asking {
		if q.Address == f.TargetIP && q.Kind == Acquire && !slices.Contains(q.rivals, f.SenderMAC) {
			q.rivals = append(q.rivals, f.SenderMAC)
		}
	}
}

// hear takes a frame's sender as an answer to whoever asks for its address.
func (e *Engine) hear(a netip.Addr, mac facts.MAC) {
	if e.askedFor[a] == 0 { // as for nearly every frame of a flood
		return
	}
	for _, q := range e.asking {
		if q.Address == a && !slices.Contains(q.answers, mac) {
			q.answers = append(q.answers, mac)
			e.woken = true
		}
	}
}
