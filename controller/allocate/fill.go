package allocate

import (
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// fill picks what the Service lacks, and says whether it then has what it cannot do without. The pools are tried in the order given. A pool
// that has both families comes before all that have one; where none has both, each family comes from the first pool that has it.
// What waits for the Service comes before everything else.
func (d *decider) fill(pinned, open []*source) bool {
	d.trim()
	named := d.s.RequestedPool != ""
	for _, f := range [...]view.Family{view.IPv4, view.IPv6} {
		for d.wants(f) && d.have(f) < d.count && d.reclaim(f, named) {
		}
	}
	if !d.essential(pinned, open) {
		return false
	}
	for _, f := range [...]view.Family{view.IPv4, view.IPv6} {
		for d.have(f) > 0 && d.have(f) < d.count && d.one(f, pinned, open) {
		}
	}
	return true
}

// trim drops what is kept beyond the number that the Service asks for, the last first.
func (d *decider) trim() {
	if len(d.kept) <= d.count {
		return
	}
	n := map[view.Family]int{}
	kept := d.kept[:0]
	for _, a := range d.kept {
		f := view.FamilyOf(a)
		if n[f]++; n[f] <= d.count {
			kept = append(kept, a)
		}
	}
	d.kept = kept
}

// essential picks the first address of each family that the Service has none of.
func (d *decider) essential(pinned, open []*source) bool {
	lacks4, lacks6 := d.v4 && d.have(view.IPv4) == 0, d.v6 && d.have(view.IPv6) == 0
	first, second := view.IPv4, view.IPv6
	if d.s.PrimaryFamily == view.IPv6 {
		first, second = second, first
	}
	switch {
	case !lacks4 && !lacks6:
		return true
	case !lacks4:
		return d.one(view.IPv6, pinned, open) || d.optional()
	case !lacks6:
		return d.one(view.IPv4, pinned, open) || d.optional()
	case d.s.FamilyPolicy == view.SingleStack: // two cluster IPs all the same: only the first family counts
		return d.one(first, pinned, open) || d.one(second, pinned, open)
	}
	if d.both(pinned) || d.both(open) {
		return true
	}
	d.full = nil
	one := d.one(first, pinned, open)
	other := d.one(second, pinned, open)
	if d.s.FamilyPolicy == view.RequireDualStack {
		return one && other
	}
	return one || other
}

// optional says whether the Service can do without the family that could not be had: it has the other one.
func (d *decider) optional() bool {
	return d.v4 && d.v6 && d.s.FamilyPolicy != view.RequireDualStack
}

// both picks an address of each family from the first pool that has both.
func (d *decider) both(from []*source) bool {
	for _, src := range from {
		n := len(d.picked)
		if d.choose(src, view.IPv4) && d.choose(src, view.IPv6) {
			return true
		}
		d.picked = d.picked[:n]
	}
	return false
}

// one picks an address of the family: from a pool that the Service has addresses of where that is possible, else from the first
// that has one.
func (d *decider) one(f view.Family, pinned, open []*source) bool {
	if f == view.IPv4 && !d.v4 || f == view.IPv6 && !d.v6 {
		return false
	}
	own := func(src *source) bool {
		return slices.ContainsFunc(d.picked, func(p pick) bool { return p.src == src }) ||
			slices.ContainsFunc(d.kept, src.pool.CanAssign)
	}
	if len(d.picked)+len(d.kept) > 0 {
		for _, from := range [...][]*source{pinned, open} {
			for _, src := range from {
				if own(src) && d.choose(src, f) {
					return true
				}
			}
		}
	}
	for _, from := range [...][]*source{pinned, open} {
		for _, src := range from {
			if d.choose(src, f) {
				return true
			}
		}
	}
	return false
}

// have counts the addresses of the family that are kept or picked.
func (d *decider) have(f view.Family) int {
	n := 0
	for _, a := range d.kept {
		if view.FamilyOf(a) == f {
			n++
		}
	}
	for _, p := range d.picked {
		if p.a.family() == f {
			n++
		}
	}
	return n
}

// reclaim picks an address of the family that waits for the Service.
func (d *decider) reclaim(f view.Family, named bool) bool {
	for _, a := range d.l.waiting[d.s.Key] {
		if a.family() != f || d.barred(a) {
			continue
		}
		src := d.m.gives(a)
		if src == nil || !admits(src.pool, d.s) || named && src.pool.Name != d.s.RequestedPool {
			continue
		}
		reason, _ := d.l.clash(a, d.s.Key, d.share)
		if _, blocked := d.l.blocked(a, d.s.Key); blocked || reason != "" {
			continue
		}
		if !d.affords(src.stock(f), a) {
			d.over = append(d.over, src)
			continue
		}
		d.picked = append(d.picked, pick{a, src})
		return true
	}
	return false
}

// barred says whether the address may not be picked: it is picked or kept already, or the Service wants to be rid of it.
func (d *decider) barred(a address) bool {
	if slices.ContainsFunc(d.picked, func(p pick) bool { return p.a == a }) {
		return true
	}
	if len(d.kept)+len(d.s.AddressesToRelease) == 0 {
		return false
	}
	n := a.netip()
	return slices.Contains(d.kept, n) || slices.Contains(d.s.AddressesToRelease, n)
}

// affords says whether the namespace may have the address, or one that nobody of it holds when it is the zero address.
func (d *decider) affords(st *stock, a address) bool {
	if st.holdings == nil {
		return true
	}
	ns := d.s.Key.Namespace
	var room [1]int32
	if a != (address{}) && d.l.firstOf(ns, d.l.holders.of(a, &room)) >= 0 {
		return true
	}
	n := 1
	for _, p := range d.picked {
		if p.src.stock(p.a.family()) == st {
			n++
		}
	}
	return st.within(ns, n)
}

// choose picks an address of the family from the pool: one that the Service may share, or a free one, as the pool's order says.
func (d *decider) choose(src *source, f view.Family) bool {
	st := src.stock(f)
	free, ok := d.free(st)
	if d.share != nil {
		if on := st.shelves[d.share.circle]; on != nil {
			at, shared := on.first(d.share.ports)
			if a := st.at(at, shared); shared && !d.barred(a) && d.affords(st, a) && (!ok || at < free || st.pool.Order != snapshot.OrderLowest && st.pool.Order != "") {
				d.picked = append(d.picked, pick{a, src})
				return true
			}
		}
	}
	switch {
	case !ok:
		d.full = append(d.full, src)
		return false
	case !d.affords(st, address{}):
		d.over = append(d.over, src)
		return false
	}
	d.picked = append(d.picked, pick{st.layout.address(free), src})
	return true
}

// free returns the next free position that is not barred. What is barred is little: one lap around it is enough.
func (d *decider) free(st *stock) (uint64, bool) {
	from := st.start(d.s.Key)
	at, ok := st.next(from)
	for range len(d.picked) + len(d.s.AddressesToRelease) {
		if !ok || !d.barred(st.layout.address(at)) {
			break
		}
		at, ok = st.next(at + 1)
	}
	return at, ok && !d.barred(st.layout.address(at))
}

// at returns the address at a position, if there is one.
func (s *stock) at(at uint64, there bool) address {
	if !there {
		return address{}
	}
	return s.layout.address(at)
}

// short says why fill could not pick what the Service lacks.
func (d *decider) short() (names.Reason, string, string) {
	if len(d.over) > 0 {
		return names.ReasonQuotaExceeded, "%s", d.shortText()
	}
	return names.ReasonPoolExhausted, "%s", d.shortText()
}

func (d *decider) shortText() string {
	if len(d.over) > 0 {
		return "namespace " + d.s.Key.Namespace + " holds as many addresses as its quota allows in the pools open to this Service (" + list(d.over) + "): raise the quota or free some"
	}
	return "no free address of the needed family in the pools open to this Service (" + list(d.full) + "): add addresses or free some"
}
