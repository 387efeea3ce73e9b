package layer2

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
)

// portKey identifies a port.
type portKey struct {
	linkIndex int
	family    ipfamily.Family
}

// linkPort is a link with its socket for one family, if that is open.
type linkPort struct {
	key        portKey
	link       facts.Link
	openedPort Port
	// socketGeneration tells the frames of this socket from those of an earlier socket with the
	// same key. 0 means that no socket is open.
	socketGeneration uint64
	reportedError    string // the last error that was reported
	reopenAt         time.Time
	reopenDelay      time.Duration
	openedAt         time.Time

	// pingResponder is nil while no pings are answered. pingResponderReopenAt is when to open the
	// next one.
	pingResponder         PingResponder
	pingResponderReopenAt time.Time
}

// readerEvent is what a reader passes to Run.
type readerEvent struct {
	linkAndFamily    portKey
	socketGeneration uint64
	frame            ARPOrNDPFrame
	// pingResponder is set when err ended a ping responder, and not the port.
	pingResponder PingResponder
	err           error
}

const (
	minFailedPortReopenDelay = 100 * time.Millisecond
	maxFailedPortReopenDelay = 10 * time.Second
)

// applyPendingLinks applies the set of links that SetLinks stored, if Run has not applied it yet.
func (e *Engine) applyPendingLinks() {
	select {
	case links := <-e.pendingLinkSet.C():
		e.applyLinks(links)
	default:
	}
}

// applyLinks opens a port on each new link and closes the ports of deleted links. A
// link with a new Ethernet address counts as new, because the segment has to learn
// that address. A renamed link keeps its ports.
func (e *Engine) applyLinks(links facts.LinkSet) {
	e.currentLinks = links
	for key, p := range e.ports {
		l, ok := links.FindByIndex(key.linkIndex)
		if !ok || l.MAC != p.link.MAC {
			delete(e.ports, key)
			e.closePort(p)
			for a := range e.heldAddressByIP {
				e.announcementSchedule.RemoveAddressOnLink(a, key.linkIndex)
			}
			if !ok { // the index may be reused for another link
				e.askers.ForgetLink(key.linkIndex)
			}
			continue
		}
		p.link = l
	}
	for _, l := range links {
		e.openPortIfNeeded(portKey{l.Index, ipfamily.IPv4})
	}
	for a, h := range e.heldAddressByIP {
		for _, l := range h.linkIndexes {
			e.openPortIfNeeded(portKey{l, ipfamily.FamilyOf(a)})
		}
	}
	for _, on := range e.candidateLinksByIPv6Address {
		for _, l := range on {
			e.openPortIfNeeded(portKey{l, ipfamily.IPv6})
		}
	}
	e.publishResponderTable()
}

// openPortIfNeeded opens the port if the link exists. An IPv6 port is opened only for an address
// that this node holds or may come to hold, because its filter checks every IPv6 packet of the
// link. It stays open until the link is deleted.
func (e *Engine) openPortIfNeeded(key portKey) {
	l, ok := e.currentLinks.FindByIndex(key.linkIndex)
	if !ok || e.ports[key] != nil {
		return
	}
	p := &linkPort{key: key, link: l, reopenDelay: minFailedPortReopenDelay}
	e.ports[key] = p
	e.openPort(p)
}

// openPort opens the socket and announces the addresses that are held on its link.
func (e *Engine) openPort(p *linkPort) {
	socket, err := e.portOpener.OpenPort(p.link, p.key.family)
	if err != nil {
		e.closeFailedPort(p, err)
		return
	}
	p.openedPort, p.reportedError, p.reopenAt, p.openedAt = socket, "", time.Time{}, e.now()
	e.lastPortGeneration++
	p.socketGeneration = e.lastPortGeneration
	e.readerGoroutines.Add(1)
	go e.answerAndPassOnFrames(socket, p.key, p.socketGeneration, p.link.MAC)
	e.publishResponderTable()
	p.pingResponderReopenAt = time.Time{}
	e.openPingResponder(p)
	e.joinCandidateGroupsOnOpenedPort(p)
	e.reports.PutDroppingOldest(PortOpened{Link: p.link, Family: p.key.family})
	for a, h := range e.heldAddressByIP {
		if ipfamily.FamilyOf(a) == p.key.family && slices.Contains(h.linkIndexes, p.link.Index) {
			e.joinSolicitedNodeGroup(p, a)
			e.announceOnLink(a, p.link)
		}
	}
}

// joinSolicitedNodeGroup joins the group of the address on the port, so that the port receives
// requests for it.
func (e *Engine) joinSolicitedNodeGroup(p *linkPort, a netip.Addr) {
	if p.openedPort == nil {
		return
	}
	if err := p.openedPort.JoinGroupOfAddress(a); err != nil {
		e.closeFailedPort(p, err)
	}
}

// closeFailedPort closes the port and schedules the next attempt, with a delay that doubles up to
// maxFailedPortReopenDelay. The same error is reported once.
func (e *Engine) closeFailedPort(p *linkPort, err error) {
	now := e.now()
	if p.openedPort != nil && now.Sub(p.openedAt) >= maxFailedPortReopenDelay {
		p.reopenDelay = minFailedPortReopenDelay
	}
	e.closePort(p)
	p.reopenAt = now.Add(p.reopenDelay)
	p.reopenDelay = min(2*p.reopenDelay, maxFailedPortReopenDelay)
	e.hasNewWork = true
	if text := err.Error(); text != p.reportedError {
		p.reportedError = text
		e.reports.PutDroppingOldest(PortFailed{Link: p.link, Family: p.key.family, Err: err})
	}
}

func (e *Engine) closePort(p *linkPort) {
	e.closePingResponder(p)
	if p.openedPort != nil {
		e.framesLostByClosedPorts.Add(p.openedPort.LostFrameCount())
		p.openedPort.Close() // the reader ends; its last event has an old generation
		p.openedPort, p.socketGeneration = nil, 0
		e.publishResponderTable()
	}
}

// reopenPorts opens the failed ports that are due, and returns when the next one is due.
func (e *Engine) reopenPorts(now time.Time) time.Time {
	var next time.Time
	for _, p := range e.ports {
		if p.openedPort == nil && !now.Before(p.reopenAt) {
			e.openPort(p)
		}
		at := p.reopenAt
		if p.openedPort != nil && e.pingResponderOpener != nil {
			if e.openPingResponder(p); p.pingResponder == nil {
				at = p.pingResponderReopenAt
			}
		}
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}

// writeFrame sends a frame and says whether it was sent. If the port fails, it is
// closed and opened again later.
func (e *Engine) writeFrame(p *linkPort, f ARPOrNDPFrame) bool {
	if p.openedPort == nil {
		return false
	}
	err := p.openedPort.WriteFrame(f)
	switch {
	case errors.Is(err, ErrFrameNotSent):
		e.droppedReportAndFrameCount.Add(1)
	case err != nil:
		e.closeFailedPort(p, err)
	}
	return err == nil
}

// closeAllPorts ends every reader. It drops the last events of the readers, so that no
// reader blocks.
func (e *Engine) closeAllPorts() {
	for _, p := range e.ports {
		e.closePort(p)
	}
	done := make(chan struct{})
	go func() {
		e.readerGoroutines.Wait()
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
