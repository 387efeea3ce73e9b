package bgp

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// PathAttributes are the attributes of an announced prefix. They are immutable.
// Prefixes share them, since nearly all routes of a peer have the same.
type PathAttributes struct {
	NextHop netip.Addr
	// LinkLocalNextHop goes with NextHop if the router is on the link (RFC 2545 section 3).
	LinkLocalNextHop netip.Addr
	intent.Attributes
}

// Equal reports whether both have the same values.
func (t *PathAttributes) Equal(o *PathAttributes) bool {
	return t == o || t.NextHop == o.NextHop && t.LinkLocalNextHop == o.LinkLocalNextHop && t.Attributes.Equal(o.Attributes)
}

// RouteChange is a change of one prefix: its new Attributes, or nil when it is withdrawn.
type RouteChange struct {
	Prefix     netip.Prefix
	Attributes *PathAttributes
}

// AdjRIBOut holds the routes to announce to one peer: its Adj-RIB-Out (RFC 4271 section 3.2). The
// peer's worker writes it. The UpdateGenerator, on another goroutine, reads its
// PendingRouteChanges. A slow session costs no memory, since only the last change of each prefix is
// kept.
type AdjRIBOut struct {
	mu                 sync.Mutex // guards the fields below, and those of PendingRouteChanges
	attributesByPrefix map[netip.Prefix]*PathAttributes
	recentAttributes   []*PathAttributes // the latest ones, for sharing
	// changesForSubscriber are those that the subscriber has not taken yet; nil without a
	// subscriber.
	changesForSubscriber *PendingRouteChanges
}

// maxRecentAttributes bounds the search for equal attributes.
const maxRecentAttributes = 16

// NewAdjRIBOut returns an empty AdjRIBOut.
func NewAdjRIBOut() *AdjRIBOut {
	return &AdjRIBOut{attributesByPrefix: map[netip.Prefix]*PathAttributes{}}
}

// SetRoute sets the attributes of a prefix; nil withdraws it.
func (t *AdjRIBOut) SetRoute(prefix netip.Prefix, attributes *PathAttributes) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.setRouteLocked(prefix, attributes)
}

func (t *AdjRIBOut) setRouteLocked(prefix netip.Prefix, attributes *PathAttributes) {
	old, ok := t.attributesByPrefix[prefix]
	switch {
	case attributes == nil && !ok || attributes != nil && ok && old.Equal(attributes):
		return
	case attributes == nil:
		delete(t.attributesByPrefix, prefix)
	default:
		t.attributesByPrefix[prefix] = t.shareEqualAttributes(*attributes)
	}
	t.changesForSubscriber.markPrefixChanged(prefix)
}

// attributesOf returns the attributes of a prefix, nil if it is not in the table.
func (t *AdjRIBOut) attributesOf(prefix netip.Prefix) *PathAttributes {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.attributesByPrefix[prefix]
}

// shareEqualAttributes returns equal attributes that are in use already, or a pointer to these.
func (t *AdjRIBOut) shareEqualAttributes(attributes PathAttributes) *PathAttributes {
	for _, recent := range t.recentAttributes {
		if recent.Equal(&attributes) {
			return recent
		}
	}
	if len(t.recentAttributes) == maxRecentAttributes {
		t.recentAttributes = slices.Delete(t.recentAttributes, 0, 1)
	}
	t.recentAttributes = append(t.recentAttributes, &attributes)
	return &attributes
}

// RouteCount returns how many prefixes are in the table.
func (t *AdjRIBOut) RouteCount() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.attributesByPrefix)
}

// SubscribeToChanges returns the PendingRouteChanges of the AdjRIBOut. The first ones are all
// its routes. An AdjRIBOut has one subscriber: an earlier one gets no more changes.
func (t *AdjRIBOut) SubscribeToChanges() *PendingRouteChanges {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changesForSubscriber = &PendingRouteChanges{
		adjRIBOut:        t,
		ready:            latest.NewWake(),
		changedPrefixes:  map[netip.Prefix]struct{}{},
		familiesToResend: []message.AFI{message.FamilyIPv4, message.FamilyIPv6},
	}
	t.changesForSubscriber.ready.Signal()
	return t.changesForSubscriber
}

// PendingRouteChanges are the changes of an AdjRIBOut since the last TakeChanges.
type PendingRouteChanges struct {
	adjRIBOut        *AdjRIBOut
	ready            *latest.Wake
	changedPrefixes  map[netip.Prefix]struct{}
	familiesToResend []message.AFI // every route of these is pending
}

// Ready is ready to read when there may be pending changes.
func (c *PendingRouteChanges) Ready() <-chan struct{} { return c.ready.C() }

// TakeChanges returns the pending changes, in no order.
func (c *PendingRouteChanges) TakeChanges() []RouteChange {
	c.adjRIBOut.mu.Lock()
	defer c.adjRIBOut.mu.Unlock()
	out := make([]RouteChange, 0, len(c.changedPrefixes)+len(c.familiesToResend)*len(c.adjRIBOut.attributesByPrefix)/2)
	for p := range c.changedPrefixes {
		if t := c.adjRIBOut.attributesByPrefix[p]; t == nil || !slices.Contains(c.familiesToResend, message.AFIOf(p)) {
			out = append(out, RouteChange{p, t})
		}
	}
	if len(c.familiesToResend) > 0 {
		for p, t := range c.adjRIBOut.attributesByPrefix {
			if slices.Contains(c.familiesToResend, message.AFIOf(p)) {
				out = append(out, RouteChange{p, t})
			}
		}
	}
	c.familiesToResend, c.changedPrefixes = nil, map[netip.Prefix]struct{}{} // a map never shrinks
	return out
}

// MarkFamilyForResend makes every route of a family pending again (RFC 2918).
func (c *PendingRouteChanges) MarkFamilyForResend(f message.AFI) {
	c.adjRIBOut.mu.Lock()
	defer c.adjRIBOut.mu.Unlock()
	if !slices.Contains(c.familiesToResend, f) {
		c.familiesToResend = append(c.familiesToResend, f)
	}
	c.ready.Signal()
}

func (c *PendingRouteChanges) markPrefixChanged(p netip.Prefix) {
	if c != nil {
		c.changedPrefixes[p] = struct{}{}
		c.ready.Signal()
	}
}
