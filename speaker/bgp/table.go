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

// Table holds the routes to announce to one peer: its Adj-RIB-Out (RFC 4271 section 3.2). The
// peer's worker writes it. The UpdateGenerator, on another goroutine, reads its PendingChanges. A
// slow session costs no memory, since only the last change of each prefix is kept.
type Table struct {
	mu               sync.Mutex // guards the fields below, and those of PendingChanges
	routes           map[netip.Prefix]*PathAttributes
	recentAttributes []*PathAttributes // the latest ones, for sharing
	// changes are those that the subscriber has not taken yet; nil without a subscriber.
	changes *PendingChanges
}

// maxRecentAttributes bounds the search for equal attributes.
const maxRecentAttributes = 16

// NewTable returns an empty Table.
func NewTable() *Table { return &Table{routes: map[netip.Prefix]*PathAttributes{}} }

// ReplaceRoutes sets the routes. It iterates twice when routes are removed.
func (t *Table) ReplaceRoutes(all iter.Seq2[netip.Prefix, PathAttributes]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	wanted := 0
	for prefix, attributes := range all {
		wanted++
		if old, ok := t.routes[prefix]; !ok || !old.Equal(&attributes) {
			t.routes[prefix] = t.shareEqualAttributes(attributes)
			t.changes.markPrefixChanged(prefix)
		}
	}
	if len(t.routes) == wanted {
		return
	}
	kept := make(map[netip.Prefix]struct{}, wanted)
	for prefix := range all {
		kept[prefix] = struct{}{}
	}
	for prefix := range t.routes {
		if _, ok := kept[prefix]; !ok {
			delete(t.routes, prefix)
			t.changes.markPrefixChanged(prefix)
		}
	}
}

// shareEqualAttributes returns equal attributes that are in use already, or a pointer to these.
func (t *Table) shareEqualAttributes(attributes PathAttributes) *PathAttributes {
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

// Len returns how many prefixes of the given families are in
// the Table; of all families without an argument.
func (t *Table) Len(families ...message.AFI) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(families) == 0 {
		return len(t.routes)
	}
	n := 0
	for p := range t.routes {
		if slices.Contains(families, message.AFIOf(p)) {
			n++
		}
	}
	return n
}

// Subscribe returns the PendingChanges of the Table. The first ones are all its routes.
// A Table has one subscriber: an earlier one gets no more changes.
func (t *Table) Subscribe() *PendingChanges {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changes = &PendingChanges{
		table:            t,
		ready:            latest.NewWake(),
		changedPrefixes:  map[netip.Prefix]struct{}{},
		familiesToResend: []message.AFI{message.IPv4, message.IPv6},
	}
	t.changes.ready.Signal()
	return t.changes
}

// PendingChanges are the changes of a Table since the last TakePending.
type PendingChanges struct {
	table            *Table
	ready            *latest.Wake
	changedPrefixes  map[netip.Prefix]struct{}
	familiesToResend []message.AFI // every route of these is pending
}

// Ready is ready to read when there may be pending changes.
func (c *PendingChanges) Ready() <-chan struct{} { return c.ready.C() }

// TakePending returns the pending changes, in no order.
func (c *PendingChanges) TakePending() []RouteChange {
	c.table.mu.Lock()
	defer c.table.mu.Unlock()
	out := make([]RouteChange, 0, len(c.changedPrefixes)+len(c.familiesToResend)*len(c.table.routes)/2)
	for p := range c.changedPrefixes {
		if t := c.table.routes[p]; t == nil || !slices.Contains(c.familiesToResend, message.AFIOf(p)) {
			out = append(out, RouteChange{p, t})
		}
	}
	if len(c.familiesToResend) > 0 {
		for p, t := range c.table.routes {
			if slices.Contains(c.familiesToResend, message.AFIOf(p)) {
				out = append(out, RouteChange{p, t})
			}
		}
	}
	c.familiesToResend, c.changedPrefixes = nil, map[netip.Prefix]struct{}{} // a map never shrinks
	return out
}

// ResendFamily makes every route of a family pending again (RFC 2918).
func (c *PendingChanges) ResendFamily(f message.AFI) {
	c.table.mu.Lock()
	defer c.table.mu.Unlock()
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
