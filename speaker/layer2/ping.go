package layer2

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
)

// PingResponderOpener opens ping responders on links (RFC 792, RFC 4443 section 4).
type PingResponderOpener interface {
	OpenPingResponder(l facts.Link, f ipfamily.Family) (PingResponder, error)
}

// PingResponder answers the echo requests of one family that arrive on one link.
type PingResponder interface {
	// AnswerPings answers the requests to held addresses until it fails or is closed, and returns
	// the reason. It is called once.
	AnswerPings(held func(netip.Addr) bool) error
	// Close ends Serve. It does not wait for it.
	Close() error
}

// WithPingResponders answers pings of held addresses. By default they have no answer, because the
// kernel does not know the addresses and kube-proxy serves only their ports.
func WithPingResponders(w PingResponderOpener) Option {
	return func(e *Engine) { e.pingResponderOpener = w }
}

// pingResponderReopenDelay is the delay before a failed ping responder is opened again, while
// the port of its link works.
const pingResponderReopenDelay = 10 * time.Second

// openPingResponder begins to answer pings on the link of an open port.
func (e *Engine) openPingResponder(p *linkPort) {
	if e.pingResponderOpener == nil || p.pingResponder != nil || e.now().Before(p.pingResponderReopenAt) {
		return
	}
	responder, err := e.pingResponderOpener.OpenPingResponder(p.link, p.key.family)
	p.pingResponderReopenAt = e.now().Add(pingResponderReopenDelay)
	if err != nil {
		e.droppedReportAndFrameCount.Add(1)
		return
	}
	p.pingResponder = responder
	generation, link := p.socketGeneration, p.key.linkIndex
	e.readerGoroutines.Add(1)
	go func() {
		defer e.readerGoroutines.Done()
		err := responder.AnswerPings(func(a netip.Addr) bool {
			h, held := e.responderTable.Load().heldAddressByIP[a]
			if !held || !slices.Contains(h.linkIndexes, link) || !e.maySendFor(a) {
				return false
			}
			h.counters.pingsAnswered.Add(1)
			return true
		})
		e.readerEvents <- readerEvent{linkAndFamily: p.key, socketGeneration: generation, pingResponder: responder, err: err}
	}()
}

// closePingResponder ends that.
func (e *Engine) closePingResponder(p *linkPort) {
	if p.pingResponder != nil {
		_ = p.pingResponder.Close() // the error is of no use: nothing is buffered
		p.pingResponder = nil
	}
}
