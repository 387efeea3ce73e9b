package allocate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// Decision is what a Service is to hold, and why. Addresses equal to what it holds already mean that nothing changes;
// no addresses mean that it holds none from now on.
type Decision struct {
	Addresses []netip.Addr
	Pool      string
	// Reason is ReasonAssigned when the Service has what it asks for. Any other Reason may come with addresses: those
	// that it had and keeps.
	Reason names.Reason
	// Text is one sentence for people.
	Text string
}

// decider is one call of Decide.
type decider struct {
	s        *view.Service
	l        *Ledger
	snap     *snapshot.Snapshot
	held     Assignment
	families []view.Family
}

// Decide says what the Service is to hold. An address once given is kept, whatever becomes of the pools, until the
// Service itself asks for something else; where what it asks for cannot be had, it keeps what it has.
func Decide(s *view.Service, l *Ledger, snap *snapshot.Snapshot) Decision {
	d := decider{s: s, l: l, snap: snap, families: s.Families()}
	d.held, _ = l.Held(s.Key)
	if len(d.families) == 0 {
		return Decision{Reason: names.ReasonNoClusterIP, Text: "the Service has no cluster IP, so nothing would deliver packets for its address: headless Services cannot be of type LoadBalancer"}
	}
	d.dropLost()
	switch {
	case s.RequestFault != "":
		return d.keep(names.ReasonInvalidRequest, "%s", s.RequestFault)
	case s.FamilyPolicy == view.RequireDualStack && len(d.families) < 2:
		return d.keep(names.ReasonFamilyMismatch, "ipFamilyPolicy is RequireDualStack, but the Service has cluster IPs of one family only")
	case len(s.Requested) > 0:
		return d.explicit()
	case s.Pool != "":
		return d.fromPool()
	}
	return d.automatic()
}

// dropLost takes from the Service what its own spec gave up: an address that its sharing rights no longer cover, and
// addresses of a family that it no longer has.
func (d *decider) dropLost() {
	kept := slices.DeleteFunc(slices.Clone(d.held.Addresses), func(a netip.Addr) bool {
		ok, _ := d.l.usable(a, d.s)
		return !ok || !slices.Contains(d.families, view.FamilyOf(a))
	})
	d.held.Addresses = kept
}

// keep leaves the Service with what it has and says why it does not get what it asks for.
func (d *decider) keep(r names.Reason, format string, args ...any) Decision {
	text := fmt.Sprintf(format, args...)
	if len(d.held.Addresses) > 0 {
		text += fmt.Sprintf("; the Service keeps %s", join(d.held.Addresses))
	}
	return Decision{Addresses: d.held.Addresses, Pool: d.held.Pool, Reason: r, Text: text}
}

func (d *decider) assigned(addresses []netip.Addr, pool string) Decision {
	return Decision{
		Addresses: addresses, Pool: pool, Reason: names.ReasonAssigned,
		Text: fmt.Sprintf("assigned %s from pool %q", join(addresses), pool),
	}
}

func join(addresses []netip.Addr) string {
	var out []string
	for _, a := range addresses {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}

// explicit serves a Service that names its addresses.
func (d *decider) explicit() Decision {
	want := d.s.Requested
	var families []view.Family
	for _, a := range want {
		families = append(families, view.FamilyOf(a))
	}
	slices.Sort(families)
	if !slices.Equal(families, d.families) {
		return d.keep(names.ReasonFamilyMismatch, "the requested %s is not of the same families as the Service's cluster IPs (%s)", join(want), join(d.s.ClusterIPs))
	}
	pool := d.snap.PoolFor(want...)
	if pool == nil {
		return d.keep(names.ReasonAddressNotInPool, "no pool contains the requested %s: ask for an address of a pool, or add it to one", join(want))
	}
	if d.s.Pool != "" && d.s.Pool != pool.Name {
		return d.keep(names.ReasonInvalidRequest, "the requested %s belongs to pool %q, but the annotation %s asks for pool %q: take one of them out",
			join(want), pool.Name, names.AnnotationPool, d.s.Pool)
	}
	if !admits(pool, d.s) {
		return d.keep(names.ReasonPoolNotAllowed, "the serviceAllocation of pool %q does not admit this Service", pool.Name)
	}
	for _, a := range want {
		if ok, who := d.l.usable(a, d.s); !ok {
			return d.keep(names.ReasonAddressInUse, "the requested %s is held by Service %s, which may not share it", a, who)
		}
	}
	return d.assigned(want, pool.Name)
}

// fromPool serves a Service that names its pool.
func (d *decider) fromPool() Decision {
	pool := d.snap.Pool(d.s.Pool)
	switch {
	case pool == nil:
		return d.keep(names.ReasonPoolNotFound, "no IPAddressPool %q exists: create it, or correct the annotation %s", d.s.Pool, names.AnnotationPool)
	case !admits(pool, d.s):
		return d.keep(names.ReasonPoolNotAllowed, "the serviceAllocation of pool %q does not admit this Service", pool.Name)
	}
	if inside := d.within(pool); len(inside) > 0 {
		d.held.Addresses = inside
		return d.complete(pool)
	}
	if got := d.take([]*snapshot.Pool{pool}); got.Reason == names.ReasonAssigned {
		return got
	}
	return d.keep(names.ReasonPoolExhausted, "pool %q has no free address for this Service: add addresses to it or free some", pool.Name)
}

// within returns what the Service holds from the pool, which it keeps: a move that was decided but not seen to be written
// is decided again in the same way.
func (d *decider) within(p *snapshot.Pool) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(d.held.Addresses), func(a netip.Addr) bool { return !p.Contains(a) })
}

// automatic serves a Service that leaves the choice to us.
func (d *decider) automatic() Decision {
	if len(d.held.Addresses) > 0 {
		pool := d.snap.PoolFor(d.held.Addresses...)
		if pool == nil {
			return d.keep(names.ReasonAddressNotInPool, "no pool contains %s any more: put it back into a pool, or recreate the Service to move it", join(d.held.Addresses))
		}
		return d.complete(pool)
	}
	if d.snap == nil || len(d.snap.Pools) == 0 {
		return d.keep(names.ReasonNoPools, "no IPAddressPool exists: create one")
	}
	pools := candidates(d.snap, d.s)
	if len(pools) == 0 {
		return d.keep(names.ReasonNoEligiblePool, "no pool is open to this Service: each has autoAssign false or a serviceAllocation for others; name one with the annotation %s", names.AnnotationPool)
	}
	return d.take(pools)
}

// complete keeps what the Service holds from the pool and adds the address of a family that it lacks, if it wants one.
func (d *decider) complete(pool *snapshot.Pool) Decision {
	have := d.held.Addresses
	if len(d.families) == 2 && len(have) == 1 && d.s.FamilyPolicy != view.SingleStack {
		missing := view.IPv4
		if view.FamilyOf(have[0]) == view.IPv4 {
			missing = view.IPv6
		}
		a, ok := d.l.first(pool, missing, d.s)
		switch {
		case ok:
			return d.assigned(append(slices.Clone(have), a), pool.Name)
		case d.s.FamilyPolicy == view.RequireDualStack:
			return d.keep(names.ReasonPoolExhausted, "pool %q has no free address of the second family, which RequireDualStack needs", pool.Name)
		}
	}
	return d.assigned(have, pool.Name)
}

// take gives the first free addresses of the first pool that has all that is wanted; where both families are preferred
// but not required and no pool has both, one of the primary family, else one of the other.
func (d *decider) take(pools []*snapshot.Pool) Decision {
	tries := [][]view.Family{d.families}
	if len(d.families) == 2 && d.s.FamilyPolicy != view.RequireDualStack {
		other := view.IPv6
		if d.s.PrimaryFamily == view.IPv6 {
			other = view.IPv4
		}
		tries = append(tries, []view.Family{d.s.PrimaryFamily}, []view.Family{other})
		if d.s.FamilyPolicy == view.SingleStack {
			tries = tries[1:]
		}
	}
	var tried []string
	for _, families := range tries {
		for _, p := range pools {
			if got := d.firstOf(p, families); len(got) == len(families) {
				return d.assigned(got, p.Name)
			}
			tried = append(tried, p.Name)
		}
	}
	slices.Sort(tried)
	return d.keep(names.ReasonPoolExhausted, "no free address of the needed family in the pools open to this Service (%s): add addresses or free some",
		strings.Join(slices.Compact(tried), ", "))
}

func (d *decider) firstOf(p *snapshot.Pool, families []view.Family) []netip.Addr {
	var out []netip.Addr
	for _, f := range families {
		a, ok := d.l.first(p, f, d.s)
		if !ok {
			return nil
		}
		out = append(out, a)
	}
	return out
}

// candidates are the pools tried when the Service names none: those pinned to it by priority and name, then the open
// ones by name.
func candidates(snap *snapshot.Snapshot, s *view.Service) []*snapshot.Pool {
	var pinned, open []*snapshot.Pool
	for _, p := range snap.Pools {
		switch {
		case !p.AutoAssign || !admits(p, s):
		case p.Allocation != nil:
			pinned = append(pinned, p)
		default:
			open = append(open, p)
		}
	}
	slices.SortStableFunc(pinned, func(x, y *snapshot.Pool) int { return cmp.Compare(rank(x), rank(y)) })
	return append(pinned, open...)
}

// rank turns a priority into an order: lower is better, 0 and less are last.
func rank(p *snapshot.Pool) uint {
	return uint(p.Allocation.Priority) - 1
}

// admits says whether the pool may serve the Service: its namespace and its labels both have to be admitted.
func admits(p *snapshot.Pool, s *view.Service) bool {
	a := p.Allocation
	if a == nil {
		return true
	}
	if a.NamespacesRestricted && !slices.Contains(a.Namespaces, s.Key.Namespace) {
		return false
	}
	return len(a.ServiceSelectors) == 0 ||
		slices.ContainsFunc(a.ServiceSelectors, func(sel labels.Selector) bool { return sel.Matches(labels.Set(s.Labels)) })
}
