package layer2

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// overhearing is what Overhear was told and Run did not take yet.
type overhearing struct {
	wake chan struct{} // holds one

	mu      sync.Mutex // guards pending
	pending map[netip.Addr][]int
}

func newOverhearing() overhearing {
	return overhearing{wake: make(chan struct{}, 1), pending: map[netip.Addr][]int{}}
}

func (o *overhearing) take() map[netip.Addr][]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.pending
	o.pending = map[netip.Addr][]int{}
	return out
}

// Overhear tells on which links this node may come to answer for addresses, as far as that changed: it lets questions about
// those of IPv6 in before, which go to groups (RFC 4291 section 2.7.1). So a new holder knows whom to tell, its socket
// is open, and the switches that snoop on MLD have its place already. Questions of IPv4 go to everybody.
func (e *Engine) Overhear(changed []intent.Claim, gone []netip.Addr) {
	o := &e.overhearing
	o.mu.Lock()
	for _, c := range changed {
		if FamilyOf(c.Address) == IPv6 {
			o.pending[c.Address] = c.Links
		}
	}
	for _, a := range gone {
		if FamilyOf(a) == IPv6 {
			o.pending[a] = nil
		}
	}
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// overhear takes in what Overhear was told.
func (e *Engine) overhear() {
	for a, links := range e.overhearing.take() {
		before := e.overheard[a]
		if e.overheard[a] = links; len(links) == 0 {
			delete(e.overheard, a)
		}
		for _, l := range before {
			if p := e.ports[portKey{l, IPv6}]; p != nil && p.io != nil && !slices.Contains(links, l) {
				p.io.Leave(a)
			}
		}
		for _, l := range links {
			key := portKey{l, IPv6}
			if p := e.ports[key]; p == nil {
				e.need(key) // which joins
			} else if !slices.Contains(before, l) {
				e.join(p, a)
			}
		}
	}
}

// rejoin lets questions in that go to the groups of the overheard addresses, on a port that was opened.
func (e *Engine) rejoin(p *port) {
	if p.key.family != IPv6 {
		return
	}
	for a, links := range e.overheard {
		if slices.Contains(links, p.link.Index) {
			e.join(p, a)
		}
	}
}
