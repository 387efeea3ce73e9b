package bgp

import (
	"iter"
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
	intent.Attributes
}

// Equal reports whether both have the same values.
func (t *PathAttributes) Equal(o *PathAttributes) bool {
	return t == o || t.NextHop == o.NextHop && t.Attributes.Equal(o.Attributes)
}

// RouteChange is a change of one prefix: its new Attributes, or nil when it is withdrawn.
type RouteChange struct {
	Prefix     netip.Prefix
	Attributes *PathAttributes
}

// AdjRIBOut holds the routes to announce to one peer: its Adj-RIB-Out (RFC 4271 section 3.2). The
// peer's worker writes it. The UpdateGenerator, on another goroutine, reads its PendingChanges. A
// slow session costs no memory, since only the last change of each prefix is kept.
type AdjRIBOut struct {
	mu                 sync.Mutex // guards the fields below, and those of PendingChanges
	attributesByPrefix map[netip.Prefix]*PathAttributes
	recentAttributes   []*PathAttributes // the latest ones, for sharing
	// changesForSubscriber are those that the subscriber has not taken yet; nil without a
	// subscriber.
	changesForSubscriber *PendingChanges
}

// maxRecentAttributes bounds the search for equal attributes.
const maxRecentAttributes = 16

// NewAdjRIBOut returns an empty AdjRIBOut.
func NewAdjRIBOut() *AdjRIBOut {
	return &AdjRIBOut{attributesByPrefix: map[netip.Prefix]*PathAttributes{}}
}

// ReplaceRoutes sets the routes. It iterates twice when routes are removed.
func (t *AdjRIBOut) ReplaceRoutes(all iter.Seq2[netip.Prefix, PathAttributes]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	wanted := 0
	for prefix, attributes := range all {
		wanted++
		if old, ok := t.attributesByPrefix[prefix]; !ok || !old.Equal(&attributes) {
			t.attributesByPrefix[prefix] = t.shareEqualAttributes(attributes)
			t.changesForSubscriber.markPrefixChanged(prefix)
		}
	}
	if len(t.attributesByPrefix) == wanted {
		return
	}
	kept := make(map[netip.Prefix]struct{}, wanted)
	for prefix := range all {
		kept[prefix] = struct{}{}
	}
	for prefix := range t.attributesByPrefix {
		if _, ok := kept[prefix]; !ok {
			delete(t.attributesByPrefix, prefix)
			t.changesForSubscriber.markPrefixChanged(prefix)
		}
	}
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

// RouteCount returns how many prefixes of the given families are in
// the Table; of all families without an argument.
func (t *AdjRIBOut) RouteCount(families ...message.AFI) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(families) == 0 {
		return len(t.attributesByPrefix)
	}
	n := 0
	for p := range t.attributesByPrefix {
		if slices.Contains(families, message.AFIOf(p)) {
			n++
		}
	}
	return n
}

// Subscribe returns the PendingChanges of the Table. The first ones are all its routes.
// A Table has one subscriber: an earlier one gets no more changes.
func (t *AdjRIBOut) Subscribe() *PendingChanges {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changesForSubscriber = &PendingChanges{
		adjRIBOut:        t,
		ready:            latest.NewWake(),
		changedPrefixes:  map[netip.Prefix]struct{}{},
		familiesToResend: []message.AFI{message.FamilyIPv4, message.FamilyIPv6},
	}
	t.changesForSubscriber.ready.Signal()
	return t.changesForSubscriber
}

// PendingChanges are the changes of a Table since the last TakePending.
type PendingChanges struct {
	adjRIBOut        *AdjRIBOut
	ready            *latest.Wake
	changedPrefixes  map[netip.Prefix]struct{}
	familiesToResend []message.AFI // every route of these is pending
}

// Ready is ready to read when there may be pending changes.
func (c *PendingChanges) Ready() <-chan struct{} { return c.ready.C() }

// TakePending returns the pending changes, in no order.
func (c *PendingChanges) TakePending() []RouteChange {
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
func (c *PendingChanges) MarkFamilyForResend(f message.AFI) {
	c.adjRIBOut.mu.Lock()
	defer c.adjRIBOut.mu.Unlock()
	if !slices.Contains(c.familiesToResend, f) {
		c.familiesToResend = append(c.familiesToResend, f)
	}
	c.ready.Signal()
}

func (c *PendingChanges) markPrefixChanged(p netip.Prefix) {
	if c != nil {
		c.changedPrefixes[p] = struct{}{}
		c.ready.Signal()
	}
}
