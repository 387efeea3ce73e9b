package bgp

import (
	"iter"
	"net/netip"
	"slices"
	"sync"

	"github.com/gantry-lb/gantry/speaker/bgp/frame"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// Terms are what a prefix is announced with. They are immutable, and shared: nearly all routes of a peer have the same.
type Terms struct {
	NextHop netip.Addr
	intent.Attributes
}

// Equal says whether two Terms are the same.
func (t *Terms) Equal(o *Terms) bool {
	return t == o || t.NextHop == o.NextHop && t.Attributes.Equal(o.Attributes)
}

// Change is what became of a prefix: it has other Terms now, or, where they are nil, is announced no more.
type Change struct {
	Prefix netip.Prefix
	Terms  *Terms
}

// Table holds the routes for one peer. The peer's worker writes it; the Library, which makes UPDATEs of it, follows it from
// another goroutine. A session that is slow costs no memory: of each prefix the last change alone is kept for it.
type Table struct {
	mu     sync.Mutex // guards all that follows, and the Changes that follow it
	routes map[netip.Prefix]*Terms
	shared []*Terms // the latest, so that prefixes with the same terms share them
	// changes are what the one that follows has not taken yet; nil when none does.
	changes *Changes
}

// mostShared bounds how many Terms are looked through for some that are the same.
const mostShared = 16

// NewTable returns an empty Table.
func NewTable() *Table { return &Table{routes: map[netip.Prefix]*Terms{}} }

// Replace makes these the routes. It asks for all twice when some are gone.
func (t *Table) Replace(all iter.Seq2[netip.Prefix, Terms]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	wanted := 0
	for prefix, terms := range all {
		wanted++
		if old, ok := t.routes[prefix]; !ok || !old.Equal(&terms) {
			t.routes[prefix] = t.share(terms)
			t.changes.note(prefix)
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
			t.changes.note(prefix)
		}
	}
}

// share returns Terms that are the same and were there before, or these.
func (t *Table) share(terms Terms) *Terms {
	for _, s := range t.shared {
		if s.Equal(&terms) {
			return s
		}
	}
	if len(t.shared) == mostShared {
		t.shared = slices.Delete(t.shared, 0, 1)
	}
	t.shared = append(t.shared, &terms)
	return &terms
}

// Len returns how many prefixes are announced: those of some families, or, when none is named, of all.
func (t *Table) Len(families ...frame.Family) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(families) == 0 {
		return len(t.routes)
	}
	n := 0
	for p := range t.routes {
		if slices.Contains(families, frame.FamilyOf(p)) {
			n++
		}
	}
	return n
}

// Follow returns the Changes of the Table from now on, at first all that it has. Whoever followed before gets no more.
func (t *Table) Follow() *Changes {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changes = &Changes{of: t, some: make(chan struct{}, 1), prefixes: map[netip.Prefix]struct{}{}, again: []frame.Family{frame.IPv4, frame.IPv6}}
	t.changes.wake()
	return t.changes
}

// Changes are what became of a Table since they were last taken.
type Changes struct {
	of       *Table
	some     chan struct{}
	prefixes map[netip.Prefix]struct{}
	again    []frame.Family // of which every route is to be told
}

// Some is ready to read when there may be changes to take.
func (c *Changes) Some() <-chan struct{} { return c.some }

// Take returns the changes, in no order.
func (c *Changes) Take() []Change {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	out := make([]Change, 0, len(c.prefixes)+len(c.again)*len(c.of.routes)/2)
	for p := range c.prefixes {
		if t := c.of.routes[p]; t == nil || !slices.Contains(c.again, frame.FamilyOf(p)) {
			out = append(out, Change{p, t})
		}
	}
	if len(c.again) > 0 {
		for p, t := range c.of.routes {
			if slices.Contains(c.again, frame.FamilyOf(p)) {
				out = append(out, Change{p, t})
			}
		}
	}
	c.again, c.prefixes = nil, map[netip.Prefix]struct{}{} // a map never shrinks
	return out
}

// Again has every route of a family told once more.
func (c *Changes) Again(f frame.Family) {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	if !slices.Contains(c.again, f) {
		c.again = append(c.again, f)
	}
	c.wake()
}

func (c *Changes) note(p netip.Prefix) {
	if c != nil {
		c.prefixes[p] = struct{}{}
		c.wake()
	}
}

func (c *Changes) wake() {
	select {
	case c.some <- struct{}{}:
	default:
	}
}
