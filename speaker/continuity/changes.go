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
	addresses []netip.Addr
	traffic   *view.ServiceTraffic
}

// applyTo changes the Service. A Service with neither traffic nor slices is to be forgotten.
func (c serviceChange) applyTo(s *steering.Service) {
	if c.exposure != nil {
		s.Addresses, s.Traffic = c.exposure.addresses, c.exposure.traffic
	}
	if c.slices != nil {
		s.Slices = *c.slices
	}
}

// pendingChanges are the changes that the Engine has not seen yet, one for each Service. So who
// reads the Services never waits for the kernel, and what is pending stays as small as the cluster.
type pendingChanges struct {
	wake *latest.Wake

	mu        sync.Mutex // guards what follows
	byService map[view.ObjectKey]serviceChange
}

func newPendingChanges() *pendingChanges {
	return &pendingChanges{wake: latest.NewWake(), byService: map[view.ObjectKey]serviceChange{}}
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

// take returns all pending changes. They are not pending any more.
func (p *pendingChanges) take() map[view.ObjectKey]serviceChange {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.byService
	p.byService = map[view.ObjectKey]serviceChange{}
	return all
}
