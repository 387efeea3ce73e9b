package continuity

import (
	"net/netip"
	"sync"

	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/steering"
)

// serviceChange is a change of a Service, of its EndpointSlices, or of both. A field that is nil
// changes nothing.
type serviceChange struct {
	exposure *exposure
	slices   *[]view.EndpointSlice
}

// exposure is what clients outside of the cluster see of a Service; zero for one that is removed.
type exposure struct {
	addresses      []netip.Addr
	traffic        *view.ServiceTraffic
	hasLocalPolicy bool
}

// applyTo changes the Service. A Service with neither traffic nor slices is to be forgotten.
func (c serviceChange) applyTo(s *steering.Service) {
	if c.exposure != nil {
		s.Addresses, s.Traffic, s.HasLocalPolicy = c.exposure.addresses, c.exposure.traffic, c.exposure.hasLocalPolicy
	}
	if c.slices != nil {
		s.Slices = *c.slices
	}
}

// pendingChanges are the changes that the Engine has not seen yet, one for each Service and node.
// So who reads the Services never waits for the kernel, and what is pending stays as small as the
// cluster.
type pendingChanges struct {
	wake *latest.Wake

	mu        sync.Mutex // guards what follows
	byService map[view.ObjectKey]serviceChange
	// addressesByNode are the addresses of changed nodes; none for one that is gone.
	addressesByNode map[string][]netip.Addr
}

func newPendingChanges() *pendingChanges {
	return &pendingChanges{wake: latest.NewWake(), byService: map[view.ObjectKey]serviceChange{}, addressesByNode: map[string][]netip.Addr{}}
}

// merge adds a change to what is pending for the Service.
func (p *pendingChanges) merge(k view.ObjectKey, c serviceChange) {
	p.mu.Lock()
	before := p.byService[k]
	if c.exposure == nil {
		c.exposure = before.exposure
	}
	if c.slices == nil {
		c.slices = before.slices
	}
	p.byService[k] = c
	p.mu.Unlock()
	p.wake.Signal()
}

// mergeNode replaces what is pending for a node.
func (p *pendingChanges) mergeNode(name string, addresses []netip.Addr) {
	p.mu.Lock()
	p.addressesByNode[name] = addresses
	p.mu.Unlock()
	p.wake.Signal()
}

// take returns all pending changes. They are not pending any more.
func (p *pendingChanges) take() (byService map[view.ObjectKey]serviceChange, addressesByNode map[string][]netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	byService, addressesByNode = p.byService, p.addressesByNode
	p.byService, p.addressesByNode = map[view.ObjectKey]serviceChange{}, map[string][]netip.Addr{}
	return byService, addressesByNode
}
