package layer2

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// candidacyUpdates is what Overhear was told and Run did not take yet.
type candidacyUpdates struct {
	wake chan struct{} // holds one

	mu      sync.Mutex // guards pending
	pending map[netip.Addr][]int
}

func newCandidacyUpdates() candidacyUpdates {
	return candidacyUpdates{wake: make(chan struct{}, 1), pending: map[netip.Addr][]int{}}
}

func (o *candidacyUpdates) takePending() map[netip.Addr][]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.pending
	o.pending = map[netip.Addr][]int{}
	return out
}

// SetCandidacies tells on which links this node may come to answer for addresses, as far as that changed: it lets questions about
// those of IPv6 in before, which go to groups (RFC 4291 section 2.7.1). So a new holder knows whom to tell, its socket
// is open, and the switches that snoop on MLD have its place already. Questions of IPv4 go to everybody.
func (e *Engine) SetCandidacies(changed []intent.Binding, gone []netip.Addr) {
	o := &e.candidacyUpdates
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

// applyCandidacies takes in what Overhear was told.
func (e *Engine) applyCandidacies() {
	for a, links := range e.candidacyUpdates.takePending() {
		before := e.candidateLinksByAddress[a]
		if e.candidateLinksByAddress[a] = links; len(links) == 0 {
			delete(e.candidateLinksByAddress, a)
		}
		for _, l := range before {
			if p := e.ports[portKey{l, IPv6}]; p != nil && p.socket != nil && !slices.Contains(links, l) {
				p.socket.LeaveGroup(a)
			}
		}
		for _, l := range links {
			key := portKey{l, IPv6}
			if p := e.ports[key]; p == nil {
				e.ensurePort(key) // which joins
			} else if !slices.Contains(before, l) {
				e.joinGroup(p, a)
			}
		}
	}
}

// joinCandidateGroups lets questions in that go to the groups of the overheard addresses, on a port that was opened.
func (e *Engine) joinCandidateGroups(p *port) {
	if p.key.family != IPv6 {
		return
	}
	for a, links := range e.candidateLinksByAddress {
		if slices.Contains(links, p.link.Index) {
			e.joinGroup(p, a)
		}
	}
}
