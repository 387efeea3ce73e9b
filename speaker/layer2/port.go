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
	key    portKey
	link   facts.Link
	socket Port
	// generation tells the frames of this socket from those of an earlier one on a link of this index. 0 is none.
	generation    uint64
	reportedError string // as last reported
	retryAt       time.Time
	retryDelay    time.Duration
	openedAt      time.Time

	// pingResponder answers pings, if that is wished and works; pingRetryAt is when it may be opened again.
	pingResponder PingResponder
	pingRetryAt   time.Time
}

// readerEvent is what a reader read.
type readerEvent struct {
	port       portKey
	generation uint64
	frame      Frame
	// pingResponder is what ended with err, if it is not the port.
	pingResponder PingResponder
	err           error
}

const (
	minRetryDelay = 100 * time.Millisecond
	maxRetryDelay = 10 * time.Second
)

// applyLinks opens a port on each new link and closes those of links that are gone. A link whose Ethernet address changed
// counts as new: the segment has to learn the new one. One that was only renamed does not.
func (e *Engine) applyLinks(links facts.LinkSet) {
	e.presentLinks = links
	for key, p := range e.ports {
		l, ok := links.FindByIndex(key.link)
		if !ok || l.MAC != p.link.MAC {
			delete(e.ports, key)
			e.closePort(p)
			for a := range e.holdings {
				e.schedule.Remove(a, key.link)
			}
			if !ok { // an index may come to mean another link
				e.askers.ForgetLink(key.link)
			}
			continue
		}
		p.link = l
	}
	for _, l := range links {
		e.ensurePort(portKey{l.Index, IPv4})
	}
	for a, h := range e.holdings {
		for _, l := range h.links {
			e.ensurePort(portKey{l, FamilyOf(a)})
		}
	}
	for _, on := range e.candidateLinksByAddress {
		for _, l := range on {
			e.ensurePort(portKey{l, IPv6})
		}
	}
	e.publishTable()
}

// ensurePort opens the port if there is such a link. Ports for IPv6 are opened when an address asks for one that the node holds
// or may come to hold, since their filter looks at every IPv6 packet of the link; they stay until the link goes.
func (e *Engine) ensurePort(key portKey) {
	l, ok := e.presentLinks.FindByIndex(key.link)
	if !ok || e.ports[key] != nil {
		return
	}
	p := &port{key: key, link: l, retryDelay: minRetryDelay}
	e.ports[key] = p
	e.openPort(p)
}

// openPort opens the port and announces what is held on its link.
func (e *Engine) openPort(p *port) {
	io, err := e.wire.OpenPort(p.link, p.key.family)
	if err != nil {
		e.failPort(p, err)
		return
	}
	p.socket, p.reportedError, p.retryAt, p.openedAt = io, "", time.Time{}, e.now()
	e.lastGeneration++
	p.generation = e.lastGeneration
	e.readers.Add(1)
	go e.readFrames(io, p.key, p.generation, p.link.MAC)
	e.publishTable()
	p.pingRetryAt = time.Time{}
	e.openPingResponder(p)
	e.joinCandidateGroups(p)
	e.sendReport(PortOpened{Link: p.link, Family: p.key.family})
	for a, h := range e.holdings {
		if FamilyOf(a) == p.key.family && slices.Contains(h.links, p.link.Index) {
			e.joinGroup(p, a)
			e.schedule.StartBurst(a, p.link.Index, e.now())
			e.scheduleNotices(a, p.link)
		}
	}
}

// joinGroup lets questions about the address in.
func (e *Engine) joinGroup(p *port, a netip.Addr) {
	if p.socket == nil {
		return
	}
	if err := p.socket.JoinGroup(a); err != nil {
		e.failPort(p, err)
	}
}

// failPort closes the port and has it opened again later, ever more slowly. The same error is reported once.
func (e *Engine) failPort(p *port, err error) {
	now := e.now()
	if p.socket != nil && now.Sub(p.openedAt) >= maxRetryDelay {
		p.retryDelay = minRetryDelay
	}
	e.closePort(p)
	p.retryAt = now.Add(p.retryDelay)
	p.retryDelay = min(2*p.retryDelay, maxRetryDelay)
	e.workNeeded = true
	if text := err.Error(); text != p.reportedError {
		p.reportedError = text
		e.sendReport(PortFailed{Link: p.link, Family: p.key.family, Err: err})
	}
}

func (e *Engine) closePort(p *port) {
	e.closePingResponder(p)
	if p.socket != nil {
		e.lostByClosedPorts.Add(p.socket.LostFrames())
		p.socket.Close() // the reader ends; its last word is of an old generation
		p.socket, p.generation = nil, 0
		e.publishTable()
	}
}

// reopenPorts tries the failed ports whose time has come and returns when the next one's does.
func (e *Engine) reopenPorts(now time.Time) time.Time {
	var next time.Time
	for _, p := range e.ports {
		if p.socket == nil && !now.Before(p.retryAt) {
			e.openPort(p)
		}
		at := p.retryAt
		if p.socket != nil && e.pingWire != nil {
			if e.openPingResponder(p); p.pingResponder == nil {
				at = p.pingRetryAt
			}
		}
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}

// writeFrame sends a frame and says whether it went out; a port that fails is closed and tried again.
func (e *Engine) writeFrame(p *port, f Frame) bool {
	if p.socket == nil {
		return false
	}
	err := p.socket.Write(f)
	switch {
	case errors.Is(err, ErrNotSent):
		e.dropped.Add(1)
	case err != nil:
		e.failPort(p, err)
	}
	return err == nil
}

// closeAllPorts ends every reader. Their last words are thrown away, so that none waits for ever.
func (e *Engine) closeAllPorts() {
	for _, p := range e.ports {
		e.closePort(p)
	}
	done := make(chan struct{})
	go func() {
		e.readers.Wait()
		close(done)
	}()
	for {
		select {
		case <-e.readerEvents:
		case <-done:
			return
		}
	}
}
