package layer2

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// candidacyUpdates has the candidacies that UpdateCandidacies got and Run has not applied yet.
type candidacyUpdates struct {
	pendingSignal *latest.Wake

	mu                    sync.Mutex // guards pending
	changedLinksByAddress map[netip.Addr][]int
}

func newCandidacyUpdates() candidacyUpdates {
	return candidacyUpdates{pendingSignal: latest.NewWake(), changedLinksByAddress: map[netip.Addr][]int{}}
}

func (o *candidacyUpdates) takePendingUpdates() map[netip.Addr][]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.changedLinksByAddress
	o.changedLinksByAddress = map[netip.Addr][]int{}
	return out
}

// UpdateCandidacies sets on which links this node may come to answer for an address. It
// gets only what changed. For IPv6 the engine then receives the requests for these
// addresses, which go to multicast groups (RFC 4291 section 2.7.1). So a new holder
// knows which hosts asked, its socket is open, and switches that snoop on MLD already
// forward the group to it. IPv4 requests are broadcast and need nothing.
func (e *Engine) UpdateCandidacies(changed []intent.Binding, gone []netip.Addr) {
	o := &e.candidacyUpdates
	o.mu.Lock()
	for _, c := range changed {
		if ipfamily.FamilyOf(c.Address) == ipfamily.IPv6 {
			o.changedLinksByAddress[c.Address] = c.LinkIndexes
		}
	}
	for _, a := range gone {
		if ipfamily.FamilyOf(a) == ipfamily.IPv6 {
			o.changedLinksByAddress[a] = nil
		}
	}
	o.mu.Unlock()
	o.pendingSignal.Signal()
}

// applyCandidacies applies the pending updates.
func (e *Engine) applyCandidacies() {
	for a, links := range e.candidacyUpdates.takePendingUpdates() {
		before := e.candidateLinksByIPv6Address[a]
		if e.candidateLinksByIPv6Address[a] = links; len(links) == 0 {
			delete(e.candidateLinksByIPv6Address, a)
		}
		for _, l := range before {
			if p := e.ports[portKey{l, ipfamily.IPv6}]; p != nil && p.openedPort != nil && !slices.Contains(links, l) {
				p.openedPort.LeaveGroupOfAddress(a)
			}
		}
		for _, l := range links {
			key := portKey{l, ipfamily.IPv6}
			if p := e.ports[key]; p == nil {
				e.openPortIfNeeded(key) // joins the groups too
			} else if !slices.Contains(before, l) {
				e.joinSolicitedNodeGroup(p, a)
			}
		}
	}
}

// joinCandidateGroupsOnOpenedPort joins the groups of all candidate addresses on a newly opened
// port.
func (e *Engine) joinCandidateGroupsOnOpenedPort(p *linkPort) {
	if p.key.family != ipfamily.IPv6 {
		return
	}
	for a, links := range e.candidateLinksByIPv6Address {
		if slices.Contains(links, p.link.Index) {
			e.joinSolicitedNodeGroup(p, a)
		}
	}
}
