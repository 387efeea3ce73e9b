package layer2

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// portKey says what a port is for.
type portKey struct {
	link   int
	family Family
}

// port is a link with its socket for one family, if that could be opened.
type port struct {
	key  portKey
	link facts.Link
	io   Port
	// generation tells the frames of this socket from those of an earlier one on a link of this index. 0 is none.
	generation uint64
	err        string // as last reported
	retryAt    time.Time
	backoff    time.Duration
	openedAt   time.Time

	// pings answers pings, if that is wished and works; pingsAt is when it may be opened again.
	pings   Pings
	pingsAt time.Time
}

// received is what a reader read.
type received struct {
	port       portKey
	generation uint64
	frame      Frame
	// pings is what ended with err, if it is not the port.
	pings Pings
	err   error
}

const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 10 * time.Second
)

// setLinks opens a port on each new link and closes those of links that are gone. A link whose Ethernet address changed
// counts as new: the segment has to learn the new one. One that was only renamed does not.
func (e *Engine) setLinks(links facts.LinkSet) {
	e.present = links
	for key, p := range e.ports {
		l, ok := links.ByIndex(key.link)
		if !ok || l.MAC != p.link.MAC {
			delete(e.ports, key)
			e.close(p)
			for a := range e.held {
				e.sched.Remove(a, key.link)
			}
			if !ok { // an index may come to mean another link
				e.neighbours.Forget(key.link)
			}
			continue
		}
		p.link = l
	}
	for _, l := range links {
		e.need(portKey{l.Index, IPv4})
	}
	for a, h := range e.held {
		for _, l := range h.links {
			e.need(portKey{l, FamilyOf(a)})
		}
	}
	for _, on := range e.overheard {
		for _, l := range on {
			e.need(portKey{l, IPv6})
		}
	}
	e.publish()
}

// need opens the port if there is such a link. Ports for IPv6 are opened when an address asks for one that the node holds
// or may come to hold, since their filter looks at every IPv6 packet of the link; they stay until the link goes.
func (e *Engine) need(key portKey) {
	l, ok := e.present.ByIndex(key.link)
	if !ok || e.ports[key] != nil {
		return
	}
	p := &port{key: key, link: l, backoff: firstBackoff}
	e.ports[key] = p
	e.open(p)
}

// open opens the port and announces what is held on its link.
func (e *Engine) open(p *port) {
	io, err := e.wire.Open(p.link, p.key.family)
	if err != nil {
		e.fail(p, err)
		return
	}
	p.io, p.err, p.retryAt, p.openedAt = io, "", time.Time{}, e.now()
	e.generation++
	p.generation = e.generation
	e.readers.Add(1)
	go e.read(io, p.key, p.generation, p.link.MAC)
	e.publish()
	p.pingsAt = time.Time{}
	e.openPings(p)
	e.rejoin(p)
	e.report(PortOpened{Link: p.link, Family: p.key.family})
	for a, h := range e.held {
		if FamilyOf(a) == p.key.family && slices.Contains(h.links, p.link.Index) {
			e.join(p, a)
			e.sched.Start(a, p.link.Index, e.now())
			e.tellNeighbours(a, p.link)
		}
	}
}

// join lets questions about the address in.
func (e *Engine) join(p *port, a netip.Addr) {
	if p.io == nil {
		return
	}
	if err := p.io.Join(a); err != nil {
		e.fail(p, err)
	}
}

// fail closes the port and has it opened again later, ever more slowly. The same error is reported once.
func (e *Engine) fail(p *port, err error) {
	now := e.now()
	if p.io != nil && now.Sub(p.openedAt) >= maxBackoff {
		p.backoff = firstBackoff
	}
	e.close(p)
	p.retryAt = now.Add(p.backoff)
	p.backoff = min(2*p.backoff, maxBackoff)
	e.woken = true
	if text := err.Error(); text != p.err {
		p.err = text
		e.report(PortFailed{Link: p.link, Family: p.key.family, Err: err})
	}
}

func (e *Engine) close(p *port) {
	e.closePings(p)
	if p.io != nil {
		e.lost.Add(p.io.Lost())
		p.io.Close() // the reader ends; its last word is of an old generation
		p.io, p.generation = nil, 0
		e.publish()
	}
}

// reopen tries the failed ports whose time has come and returns when the next one's does.
func (e *Engine) reopen(now time.Time) time.Time {
	var next time.Time
	for _, p := range e.ports {
		if p.io == nil && !now.Before(p.retryAt) {
			e.open(p)
		}
		at := p.retryAt
		if p.io != nil && e.pings != nil {
			if e.openPings(p); p.pings == nil {
				at = p.pingsAt
			}
		}
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}

// write sends a frame and says whether it went out; a port that fails is closed and tried again.
func (e *Engine) write(p *port, f Frame) bool {
	if p.io == nil {
		return false
	}
	err := p.io.Write(f)
	switch {
	case errors.Is(err, ErrNotSent):
		e.dropped.Add(1)
	case err != nil:
		e.fail(p, err)
	}
	return err == nil
}

// closeAll ends every reader. Their last words are thrown away, so that none waits for ever.
func (e *Engine) closeAll() {
	for _, p := range e.ports {
		e.close(p)
	}
	done := make(chan struct{})
	go func() {
		e.readers.Wait()
		close(done)
	}()
	for {
		select {
		case <-e.frames:
		case <-done:
			return
		}
	}
}
