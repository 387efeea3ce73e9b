package layer2

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// question is a Probe under way.
type question struct {
	Probe
	sent    int
	next    time.Time
	over    bool // it is to be taken off the list
	carried bool // some link carried the question
	answers []facts.MAC
	rivals  []facts.MAC
	joined  []Port // that let questions about the address in meanwhile
}

// inquiries are the Probes that Run has yet to begin. Nothing limits them but who asks: a node may have to take every
// address of another one that died.
type inquiries struct {
	wake chan struct{} // holds a value when there are some
	mu   sync.Mutex    // guards all
	all  []Probe
}

func newInquiries() *inquiries { return &inquiries{wake: make(chan struct{}, 1)} }

func (i *inquiries) add(p Probe) {
	i.mu.Lock()
	i.all = append(i.all, p)
	i.mu.Unlock()
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

func (i *inquiries) take() []Probe {
	i.mu.Lock()
	defer i.mu.Unlock()
	all := i.all
	i.all = nil
	return all
}

// askBatch is how many questions are asked each pace: a node that has thousands of addresses to take must not overrun
// the segment.
const askBatch = 100

// ask begins a Probe.
func (e *Engine) ask(p Probe) {
	if q := e.asking[p.ID]; q != nil { // its result would be taken for this one's
		e.forget(q)
	}
	q := &question{Probe: p, next: e.now()}
	e.asking[p.ID] = q
	e.askOrder = append(e.askOrder, q)
	e.askedFor[p.Address] = append(e.askedFor[p.Address], q)
	e.askedNew = true
	for _, l := range p.Links {
		e.need(portKey{l, FamilyOf(p.Address)})
	}
}

// forget ends a question.
func (e *Engine) forget(q *question) {
	delete(e.asking, q.ID)
	q.over = true
	for _, io := range q.joined {
		io.Leave(q.Address)
	}
	others := slices.DeleteFunc(e.askedFor[q.Address], func(o *question) bool { return o == q })
	if e.askedFor[q.Address] = others; len(others) == 0 {
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
	room := askBatch
	if now.Before(e.askResume) {
		room = 0
	}
	for _, q := range e.askOrder { // the oldest first, so that what was begun comes to its end
		if q.over {
			continue
		}
		due, at := !now.Before(q.next), q.next
		switch more := due && len(q.answers) == 0 && q.sent < q.Attempts; {
		case more && q.Kind == Acquire && room == 0:
			at = e.askResume
		case more:
			if q.Kind == Acquire { // whether a neighbour lives must not wait behind what is to be taken
				if room--; room == 0 {
					e.askResume = now.Add(pace)
				}
			}
			q.sent++
			q.next = now.Add(q.Interval)
			at = q.next
			for _, l := range q.Links {
				e.sendQuestion(q, l)
			}
		case len(q.answers) > 0 || due:
			e.forget(q)
			e.report(facts.ProbeResult{ID: q.ID, Address: q.Address, Answers: q.answers, Rivals: q.rivals, Unasked: !q.carried})
			continue
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	e.askOrder = slices.DeleteFunc(e.askOrder, func(q *question) bool { return q.over })
	return next
}

func (e *Engine) sendQuestion(q *question, link int) {
	p := e.ports[portKey{link, FamilyOf(q.Address)}]
	if p == nil || p.io == nil || !q.Address.IsValid() {
		return
	}
	// Others who want the address ask its group, too (RFC 4862 section 5.4.2).
	if q.Kind == Acquire && !slices.Contains(q.joined, p.io) && p.io.Join(q.Address) == nil {
		q.joined = append(q.joined, p.io)
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

// hear takes a frame's sender as an answer to whoever asks for its address.
func (e *Engine) hear(a netip.Addr, mac facts.MAC) {
	for _, q := range e.askedFor[a] {
		if !slices.Contains(q.answers, mac) && len(q.answers) < macsLimit {
			q.answers = append(q.answers, mac)
			e.woken = true
		}
	}
}

// rival takes note of a host that asks, as the questions here do, whether it may use an address (RFC 5227 section 2.1.1,
// RFC 4862 section 5.4.3).
func (e *Engine) rival(a netip.Addr, mac facts.MAC) {
	for _, q := range e.askedFor[a] {
		if q.Kind == Acquire && !slices.Contains(q.rivals, mac) && len(q.rivals) < macsLimit {
			q.rivals = append(q.rivals, mac)
		}
	}
}

// macsLimit bounds how many hosts are told apart: one would do, but all members of the gossip may ask.
const macsLimit = 256
