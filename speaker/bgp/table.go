package bgp

import (
	"iter"
	"net/netip"
	"slices"
	"sync"

	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// PathAttributes are what a prefix is announced with. They are immutable, and shared: nearly all routes of a peer have the same.
type PathAttributes struct {
	NextHop netip.Addr
	intent.Attributes
}

// Equal says whether two Terms are the same.
func (t *PathAttributes) Equal(o *PathAttributes) bool {
	return t == o || t.NextHop == o.NextHop && t.Attributes.Equal(o.Attributes)
}

// Change is what became of a prefix: it has other Terms now, or, where they are nil, is announced no more.
type Change struct {
	Prefix     netip.Prefix
	Attributes *PathAttributes
}

// Table holds the routes for one peer. The peer's worker writes it; the Library, which makes UPDATEs of it, follows it from
// another goroutine. A session that is slow costs no memory: of each prefix the last change alone is kept for it.
type Table struct {
	mu               sync.Mutex // guards all that follows, and the Changes that follow it
	routes           map[netip.Prefix]*PathAttributes
	recentAttributes []*PathAttributes // the latest, so that prefixes with the same terms share them
	// changes are what the one that follows has not taken yet; nil when none does.
	changes *Changes
}

// maxRecentAttributes bounds how many Terms are looked through for some that are the same.
const maxRecentAttributes = 16

// NewTable returns an empty Table.
func NewTable() *Table { return &Table{routes: map[netip.Prefix]*PathAttributes{}} }

// Replace makes these the routes. It asks for all twice when some are gone.
func (t *Table) Replace(all iter.Seq2[netip.Prefix, PathAttributes]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	wanted := 0
	for prefix, terms := range all {
		wanted++
		if old, ok := t.routes[prefix]; !ok || !old.Equal(&terms) {
			t.routes[prefix] = t.internAttributes(terms)
			t.changes.markChanged(prefix)
		}
	}
	if len(t.routes) == wanted {
		return
	}
	still := make(map[netip.Prefix]struct{}, wanted)
	for prefix := range all {
		still[prefix] = struct{}{}
	}
	for prefix := range t.routes {
		if _, ok := still[prefix]; !ok {
			delete(t.routes, prefix)
			t.changes.markChanged(prefix)
		}
	}
}

// internAttributes returns Terms that are the same and were there before, or these.
func (t *Table) internAttributes(terms PathAttributes) *PathAttributes {
	for _, s := range t.recentAttributes {
		if s.Equal(&terms) {
			return s
		}
	}
	if len(t.recentAttributes) == maxRecentAttributes {
		t.recentAttributes = slices.Delete(t.recentAttributes, 0, 1)
	}
	t.recentAttributes = append(t.recentAttributes, &terms)
	return &terms
}

// Len returns how many prefixes are announced: those of some families, or, when none is named, of all.
func (t *Table) Len(families ...message.Family) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(families) == 0 {
		return len(t.routes)
	}
	n := 0
	for p := range t.routes {
		if slices.Contains(families, message.FamilyOf(p)) {
			n++
		}
	}
	return n
}

// Subscribe returns the Changes of the Table from now on, at first all that it has. Whoever followed before gets no more.
func (t *Table) Subscribe() *Changes {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changes = &Changes{table: t, ready: make(chan struct{}, 1), changedPrefixes: map[netip.Prefix]struct{}{}, resendFamilies: []message.Family{message.IPv4, message.IPv6}}
	t.changes.signalReady()
	return t.changes
}

// Changes are what became of a Table since they were last taken.
type Changes struct {
	table           *Table
	ready           chan struct{}
	changedPrefixes map[netip.Prefix]struct{}
	resendFamilies  []message.Family // of which every route is to be told
}

// Ready is ready to read when there may be changes to take.
func (c *Changes) Ready() <-chan struct{} { return c.ready }

// TakePending returns the changes, in no order.
func (c *Changes) TakePending() []Change {
	c.table.mu.Lock()
	defer c.table.mu.Unlock()
	out := make([]Change, 0, len(c.changedPrefixes)+len(c.resendFamilies)*len(c.table.routes)/2)
	for p := range c.changedPrefixes {
		if t := c.table.routes[p]; t == nil || !slices.Contains(c.resendFamilies, message.FamilyOf(p)) {
			out = append(out, Change{p, t})
		}
	}
	if len(c.resendFamilies) > 0 {
		for p, t := range c.table.routes {
			if slices.Contains(c.resendFamilies, message.FamilyOf(p)) {
				out = append(out, Change{p, t})
			}
		}
	}
	c.resendFamilies, c.changedPrefixes = nil, map[netip.Prefix]struct{}{} // a map never shrinks
	return out
}

// ResendFamily has every route of a family told once more.
func (c *Changes) ResendFamily(f message.Family) {
	c.table.mu.Lock()
	defer c.table.mu.Unlock()
	if !slices.Contains(c.resendFamilies, f) {
		c.resendFamilies = append(c.resendFamilies, f)
	}
	c.signalReady()
}

func (c *Changes) markChanged(p netip.Prefix) {
	if c != nil {
		c.changedPrefixes[p] = struct{}{}
		c.signalReady()
	}
}

func (c *Changes) signalReady() {
	select {
	case c.ready <- struct{}{}:
	default:
	}
}
