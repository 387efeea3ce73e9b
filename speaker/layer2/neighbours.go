package layer2

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// Neighbours remembers who asked for which address lately: who comes to answer for it tells them directly, since there are
// networks that ignore announcements to everybody. It reads no clock. The zero value is not usable.
type Neighbours struct {
	askers map[netip.Addr][]asker // by the address asked for, the latest last
}

// asker is a host that asked.
type asker struct {
	facts.Neighbour
	link int
	at   time.Time
}

const (
	// memory is how long an asker is remembered: hosts renew what they know by asking the holder alone, so that others
	// hear of an asker once.
	memory = 30 * time.Minute
	// askersLimit and targetsLimit bound the memory, so that a flood does not fill it.
	askersLimit  = 8
	targetsLimit = 16384
)

// NewNeighbours returns an empty Neighbours.
func NewNeighbours() *Neighbours { return &Neighbours{askers: map[netip.Addr][]asker{}} }

// Asked notes that a host asked for an address on a link. Of too many the one that asked first is forgotten.
func (n *Neighbours) Asked(a netip.Addr, link int, by facts.Neighbour, now time.Time) {
	known, ok := n.askers[a]
	if !ok && len(n.askers) >= targetsLimit {
		for other := range n.askers { // any: a real one asks again
			delete(n.askers, other)
			break
		}
	}
	known = slices.DeleteFunc(known, func(k asker) bool { return k.Address == by.Address && k.link == link })
	if len(known) >= askersLimit {
		known = slices.Delete(known, 0, len(known)-askersLimit+1)
	}
	n.askers[a] = append(known, asker{by, link, now})
}

// Who returns whom to tell about an address on a link: its routers first, then those who asked, the latest first.
func (n *Neighbours) Who(a netip.Addr, l facts.Link, now time.Time) []facts.Neighbour {
	var out []facts.Neighbour
	for _, r := range l.Routers {
		if FamilyOf(r.Address) == FamilyOf(a) {
			out = append(out, r)
		}
	}
	for _, k := range slices.Backward(n.askers[a]) {
		router := slices.ContainsFunc(out, func(r facts.Neighbour) bool { return r.Address == k.Address })
		if k.link == l.Index && now.Sub(k.at) < memory && !router {
			out = append(out, k.Neighbour)
		}
	}
	return out
}

// Forget forgets who asked on a link.
func (n *Neighbours) Forget(link int) {
	for a, known := range n.askers {
		if known = slices.DeleteFunc(known, func(k asker) bool { return k.link == link }); len(known) == 0 {
			delete(n.askers, a)
			continue
		}
		n.askers[a] = known
	}
}

// news is something to tell one neighbour.
type news struct {
	what Gratuitous
	to   facts.Neighbour
	at   time.Time
}

// secondTelling is for a frame that was lost, and for hosts with a Linux that ignores a change too soon after another.
const secondTelling = 1100 * time.Millisecond

// tellNeighbours has those who asked for an address told who answers now, twice.
func (e *Engine) tellNeighbours(a netip.Addr, l facts.Link) {
	now := e.now()
	for _, to := range e.neighbours.Who(a, l, now) {
		n := news{what: Gratuitous{a, l.Index}, to: to, at: now}
		e.telling = append(e.telling, n)
		n.at = now.Add(secondTelling)
		e.tellingAgain = append(e.tellingAgain, n)
	}
}

// tellBatch is how many neighbours are told each pace, beside the announcements to everybody.
const tellBatch = 50

// tell tells the neighbours what is due, tellBatch of them each pace, and returns when the next is.
func (e *Engine) tell(now time.Time) time.Time {
	if now.Before(e.tellResume) {
		return e.tellResume
	}
	var next time.Time
	room := tellBatch
	for _, queue := range []*[]news{&e.telling, &e.tellingAgain} { // each in the order of time
		for len(*queue) > 0 && !(*queue)[0].at.After(now) && room > 0 {
			e.sendNews((*queue)[0])
			*queue = (*queue)[1:]
			room--
		}
		if len(*queue) == 0 {
			*queue = nil // the memory behind it
			continue
		}
		if at := (*queue)[0].at; next.IsZero() || at.Before(next) {
			next = at
		}
	}
	if room == 0 {
		e.tellResume = now.Add(pace)
		if next.Before(e.tellResume) && !next.IsZero() {
			next = e.tellResume
		}
	}
	return next
}

// sendNews tells one neighbour. For IPv4 it is a question for the neighbour's own address: the answerer takes in who
// asks (RFC 826), whatever it thinks of announcements. For IPv6 it is an advertisement that nobody asked for (RFC 4861
// section 7.2.6).
func (e *Engine) sendNews(n news) {
	p := e.ports[portKey{n.what.Link, FamilyOf(n.what.Address)}]
	h := e.held[n.what.Address]
	if p == nil || !slices.Contains(h.links, n.what.Link) || e.fenced() {
		return
	}
	f := Frame{
		Destination: n.to.MAC, Source: p.link.MAC, Operation: Request,
		SenderMAC: p.link.MAC, SenderIP: n.what.Address, TargetIP: n.to.Address,
	}
	if p.key.family == IPv6 {
		f.Operation, f.TargetMAC, f.Unsolicited = Reply, n.to.MAC, true
	}
	if e.write(p, f) {
		h.tally.gratuitous.Add(1)
	}
}

// asks tells a reader whether a question is worth remembering: not again so soon, and not too many, so that a flood of
// questions is no work for the engine. It belongs to one reader.
type asks struct {
	recent [1024]recentAsk
	second time.Time
	count  int
}

type recentAsk struct {
	mac    facts.MAC
	target netip.Addr
	at     time.Time
}

const (
	// asksAgain is how long the same question is no news.
	asksAgain = time.Minute
	// asksLimit is how many are passed on in a second.
	asksLimit = 1000
)

// news says whether the question should be remembered.
func (s *asks) news(f Frame, now time.Time) bool {
	b := f.TargetIP.As16()
	slot := &s.recent[(uint(b[15])|uint(b[14])<<8^uint(f.SenderMAC[5])<<2^uint(f.SenderMAC[4])<<5)%uint(len(s.recent))]
	if slot.mac == f.SenderMAC && slot.target == f.TargetIP && now.Sub(slot.at) < asksAgain {
		return false
	}
	if now.Sub(s.second) >= time.Second {
		s.second, s.count = now, 0
	}
	if s.count++; s.count > asksLimit {
		return false
	}
	*slot = recentAsk{f.SenderMAC, f.TargetIP, now}
	return true
}
