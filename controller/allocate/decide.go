package allocate

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// Decision is what a Service is to hold, and why. Addresses equal to what it holds already mean that nothing changes;
// no addresses mean that it holds none from now on. Addresses that take the place of others are to be held beside them until they are
// written: see Ledger.Prepare.
type Decision struct {
	Addresses []netip.Addr
	// Pool is the Pool of the first address.
	Pool string
	// Pools are the Pools of all addresses, in their order, each once; nil when Pool is the only one.
	Pools []string
	// Proposed are to be asked for on the segment before they are given, with ReasonProbing: see Ledger.Propose.
	Proposed []netip.Addr
	// Reason is ReasonAssigned when the Service has what it asks for. Any other Reason may come with addresses: those
	// that it had and keeps.
	Reason names.Reason
	// Text is one sentence for people.
	Text string
	// Waiting says that the Service would take more than it has: look at it again when addresses become free or pools change.
	Waiting bool
}

// decider is one call of Decide.
type decider struct {
	s     *view.Service
	l     *Ledger
	m     *market
	share *share
	// held is what the Service holds and may go on holding as far as others and its families are concerned; kept is what of it this
	// decision keeps.
	held Assignment
	kept []netip.Addr
	// v4 and v6 say which families it is to have, count how many addresses of each.
	v4, v6 bool
	count  int
	// picked are the addresses that this decision adds.
	picked []pick
	// full and over are the pools that had no address, and those that its namespace has its share of.
	full, over []*source
}

// pick is an address that a decision adds.
type pick struct {
	a   address
	src *source
}

// Decide says what the Service is to hold. An address once given is kept, whatever becomes of the pools, until the
// Service itself asks for something else; where what it asks for cannot be had, it keeps what it has.
func Decide(s *view.Service, l *Ledger, snap *snapshot.Snapshot) Decision {
	d := decider{s: s, l: l, m: l.follow(snap), share: shareOf(s), count: max(s.AddressCount, 1)}
	for _, a := range s.ClusterIPs {
		f := view.FamilyOf(a)
		d.v4, d.v6 = d.v4 || f == view.IPv4, d.v6 || f == view.IPv6
	}
	if !d.v4 && !d.v6 {
		return Decision{Reason: names.ReasonNoClusterIP, Text: "the Service has no cluster IP, so nothing would deliver packets for its address: headless Services cannot be of type LoadBalancer"}
	}
	if held, ok := l.Held(s.Key); ok {
		d.held = held
		d.held.Addresses = slices.DeleteFunc(held.Addresses, d.lost)
		d.kept = slices.Clone(d.held.Addresses)
	}
	switch {
	case s.RequestFault != "":
		return d.keep(names.ReasonInvalidRequest, "%s", s.RequestFault)
	case s.FamilyPolicy == view.RequireDualStack && !(d.v4 && d.v6):
		return d.keep(names.ReasonFamilyMismatch, "ipFamilyPolicy is RequireDualStack, but the Service has cluster IPs of one family only")
	case len(s.RequestedAddresses) > 0:
		return d.explicit()
	}
	d.kept = slices.DeleteFunc(d.kept, func(a netip.Addr) bool { return slices.Contains(s.AddressesToRelease, a) })
	if s.RequestedPool != "" {
		return d.fromPool()
	}
	return d.automatic()
}

// lost says whether the Service's own spec gave the address up: its sharing rights no longer cover it, or it has no cluster IP of that
// family any more.
func (d *decider) lost(a netip.Addr) bool {
	reason, _ := d.l.clash(addressOf(a), d.s.Key, d.share)
	return reason != "" || !d.wants(view.FamilyOf(a))
}

func (d *decider) wants(f view.Family) bool { return f == view.IPv4 && d.v4 || f == view.IPv6 && d.v6 }

// fromPool serves a Service that names its pool. What it got from the pool of that name it keeps, also where the pool has changed since:
// the pool's owner did that, not the Service's.
func (d *decider) fromPool() Decision {
	src := d.m.byName[d.s.RequestedPool]
	if d.held.Pool != d.s.RequestedPool && src != nil {
		d.kept = slices.DeleteFunc(d.kept, func(a netip.Addr) bool { return !src.pool.CanAssign(a) })
	}
	switch {
	case src == nil:
		return d.keep(names.ReasonPoolNotFound, "no IPAddressPool %q exists: create it, or correct the annotation %s", d.s.RequestedPool, names.AnnotationPool)
	case !admits(src.pool, d.s):
		return d.keep(names.ReasonPoolNotAllowed, notAdmitted, src.pool.Name)
	}
	if !d.fill([]*source{src}, nil) {
		return d.keep(d.short())
	}
	return d.settle()
}

// automatic serves a Service that leaves the choice to us.
func (d *decider) automatic() Decision {
	pinned, open := d.m.choice.of(d.s)
	if d.fill(pinned, open) {
		return d.settle()
	}
	switch {
	case len(d.m.byName) == 0:
		return d.keep(names.ReasonNoPools, "no IPAddressPool exists: create one")
	case len(pinned)+len(open) == 0:
		return d.keep(names.ReasonNoEligiblePool, "no pool is open to this Service: each has autoAssign false or a serviceAllocation for others; name one with the annotation %s", names.AnnotationPool)
	}
	return d.keep(d.short())
}

// explicit serves a Service that names its addresses.
func (d *decider) explicit() Decision {
	want := d.s.RequestedAddresses
	var v4, v6 int
	for _, a := range want {
		if a.Is4() {
			v4++
		} else {
			v6++
		}
		if slices.Contains(d.s.AddressesToRelease, a) {
			return d.keep(names.ReasonInvalidRequest, "the Service asks for %s, and with the annotation %s to be rid of it: take one of them out", a, names.AnnotationRelease)
		}
	}
	if (v4 > 0) != d.v4 || (v6 > 0) != d.v6 || v4 > d.count || v6 > d.count {
		return d.keep(names.ReasonFamilyMismatch, "the requested %s is not of the same families as the Service's cluster IPs (%s), %d of each", join(want), join(d.s.ClusterIPs), d.count)
	}
	d.kept = nil
	for _, a := range want {
		if slices.Contains(d.held.Addresses, a) {
			d.kept = append(d.kept, a)
		}
		src, reason, text := d.requested(a)
		if reason != "" {
			return d.keep(reason, "%s", text)
		}
		d.picked = append(d.picked, pick{addressOf(a), src})
	}
	d.picked = slices.DeleteFunc(d.picked, func(p pick) bool { return slices.Contains(d.held.Addresses, p.a.netip()) })
	if wait, ok := d.probe(); ok {
		return wait
	}
	return d.assigned(slices.Clone(want))
}

// settle makes the Decision of what is kept and picked.
func (d *decider) settle() Decision {
	if wait, ok := d.probe(); ok {
		return wait
	}
	out := d.assigned(d.arrange())
	if reason, text := d.flaw(); reason != "" {
		out.Reason, out.Text, out.Waiting = reason, text, true
		return out
	}
	n4, n6 := d.have(view.IPv4), d.have(view.IPv6)
	if d.v4 && d.v6 && (n4 == 0 || n6 == 0) {
		out.Waiting = d.s.FamilyPolicy != view.SingleStack
	}
	if (n4 > 0 && n4 < d.count) || (n6 > 0 && n6 < d.count) {
		out.Reason, _, _ = d.short()
		out.Text = "assigned " + join(out.Addresses) + ", fewer than the " + itoa(d.count) + " of each family that the annotation " + names.AnnotationAddressCount + " asks for: " + d.shortText()
		out.Waiting = true
	}
	return out
}

// probe says which of the picked addresses the segment has to be asked for first.
func (d *decider) probe() (Decision, bool) {
	asked := false
	for _, p := range d.picked {
		if p.src.pool.Probe != nil && !d.l.held(p.a) && !d.l.silent(p.a, d.s.Key) {
			asked = true
		}
	}
	if !asked {
		return Decision{}, false
	}
	var proposed []netip.Addr
	for _, p := range d.picked {
		proposed = append(proposed, p.a.netip())
	}
	out := d.keep(names.ReasonProbing, "asking the segment whether somebody uses %s already; the answer is up to a speaker with a link there", join(proposed))
	out.Proposed = proposed
	return out, true
}

// arrange lists what the Service is to hold: what it keeps stays in its place, another address of the same family takes the place of one
// that goes, and what is new comes last, IPv4 first.
func (d *decider) arrange() []netip.Addr {
	if len(d.held.Addresses) == 0 && len(d.picked) == 1 { // nearly always
		return []netip.Addr{d.picked[0].a.netip()}
	}
	picked := slices.Clone(d.picked)
	slices.SortStableFunc(picked, func(x, y pick) int { return int(x.a.family()) - int(y.a.family()) })
	out := make([]netip.Addr, 0, len(d.kept)+len(picked))
	for _, a := range d.held.Addresses {
		if slices.Contains(d.kept, a) {
			out = append(out, a)
			continue
		}
		i := slices.IndexFunc(picked, func(p pick) bool { return p.a.family() == view.FamilyOf(a) })
		if i >= 0 {
			out = append(out, picked[i].a.netip())
			picked = slices.Delete(picked, i, i+1)
		}
	}
	for _, p := range picked {
		out = append(out, p.a.netip())
	}
	return out
}

// flaw says what the pools no longer allow of what is kept.
func (d *decider) flaw() (names.Reason, string) {
	for _, a := range d.kept {
		src := d.m.covering(addressOf(a))
		switch {
		case src == nil:
			return names.ReasonAddressNotInPool, "no pool contains " + a.String() + " any more; the Service keeps it: put it back into a pool, or exchange it with the annotation " + names.AnnotationRelease
		case !src.pool.CanAssign(a):
			return names.ReasonAddressNotInPool, "pool " + src.pool.Name + " excludes " + a.String() + " now; the Service keeps it: exchange it with the annotation " + names.AnnotationRelease
		case d.s.RequestedPool != "" && src.pool.Name != d.s.RequestedPool:
			return names.ReasonAddressNotInPool, "pool " + d.s.RequestedPool + " no longer contains " + a.String() + "; the Service keeps it: put it back, or exchange it with the annotation " + names.AnnotationRelease
		case !admits(src.pool, d.s):
			return names.ReasonPoolNotAllowed, "the serviceAllocation of pool " + src.pool.Name + " no longer admits this Service; it keeps " + a.String() + ": exchange it with the annotation " + names.AnnotationRelease
		}
	}
	return "", ""
}
