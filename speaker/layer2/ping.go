package layer2

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// PingWire opens what answers pings (RFC 792, RFC 4443 section 4) on links.
type PingWire interface {
	OpenPings(l facts.Link, f Family) (Pings, error)
}

// Pings answers the echo requests of one family that come in on one link.
type Pings interface {
	// Serve answers those to addresses that are held, until it fails or is closed; it is called once, and returns why
	// it ended.
	Serve(held func(netip.Addr) bool) error
	// Close ends Serve, and waits for nobody.
	Close() error
}

// AnswerPings has the pings of held addresses answered, which nobody does otherwise: the kernel does not know the
// addresses, and kube-proxy serves their ports alone. Nothing but the answers depends on it.
func AnswerPings(w PingWire) Option { return func(e *Engine) { e.pings = w } }

// pingsAgain is when a socket for pings that failed is opened again, while its link's port is fine.
const pingsAgain = 10 * time.Second

// openPings begins to answer pings on the link of an open port.
func (e *Engine) openPings(p *port) {
	if e.pings == nil || p.pings != nil || e.now().Before(p.pingsAt) {
		return
	}
	io, err := e.pings.OpenPings(p.link, p.key.family)
	p.pingsAt = e.now().Add(pingsAgain)
	if err != nil {
		e.dropped.Add(1)
		return
	}
	p.pings = io
	generation, link := p.generation, p.key.link
	e.readers.Add(1)
	go func() {
		defer e.readers.Done()
		err := io.Serve(func(a netip.Addr) bool {
			h, held := e.known.Load().held[a]
			if !held || !slices.Contains(h.links, link) || e.fenced() {
				return false
			}
			h.tally.pings.Add(1)
			return true
		})
		e.frames <- received{port: p.key, generation: generation, pings: io, err: err}
	}()
}

// closePings ends the answering.
func (e *Engine) closePings(p *port) {
	if p.pings != nil {
		_ = p.pings.Close() // nothing was written that is not out
		p.pings = nil
	}
}
