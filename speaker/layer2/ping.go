package layer2

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// PingWire opens what answers pings (RFC 792, RFC 4443 section 4) on links.
type PingWire interface {
	OpenPingResponder(l facts.Link, f Family) (PingResponder, error)
}

// PingResponder answers the echo requests of one family that come in on one link.
type PingResponder interface {
	// Serve answers those to addresses that are held, until it fails or is closed; it is called once, and returns why
	// it ended.
	Serve(held func(netip.Addr) bool) error
	// Close ends Serve, and waits for nobody.
	Close() error
}

// WithPingWire has the pings of held addresses answered, which nobody does otherwise: the kernel does not know the
// addresses, and kube-proxy serves their ports alone. Nothing but the answers depends on it.
func WithPingWire(w PingWire) Option { return func(e *Engine) { e.pingWire = w } }

// pingRetryInterval is when a socket for pings that failed is opened again, while its link's port is fine.
const pingRetryInterval = 10 * time.Second

// openPingResponder begins to answer pings on the link of an open port.
func (e *Engine) openPingResponder(p *port) {
	if e.pingWire == nil || p.pingResponder != nil || e.now().Before(p.pingRetryAt) {
		return
	}
	io, err := e.pingWire.OpenPingResponder(p.link, p.key.family)
	p.pingRetryAt = e.now().Add(pingRetryInterval)
	if err != nil {
		e.dropped.Add(1)
		return
	}
	p.pingResponder = io
	generation, link := p.generation, p.key.link
	e.readers.Add(1)
	go func() {
		defer e.readers.Done()
		err := io.Serve(func(a netip.Addr) bool {
			h, held := e.responderTable.Load().holdings[a]
			if !held || !slices.Contains(h.links, link) || e.isPastSendDeadline() {
				return false
			}
			h.counters.pings.Add(1)
			return true
		})
		e.readerEvents <- readerEvent{port: p.key, generation: generation, pingResponder: io, err: err}
	}()
}

// closePingResponder ends the answering.
func (e *Engine) closePingResponder(p *port) {
	if p.pingResponder != nil {
		_ = p.pingResponder.Close() // nothing was written that is not out
		p.pingResponder = nil
	}
}
