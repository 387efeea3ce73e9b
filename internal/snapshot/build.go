package snapshot

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
)

// NamespaceLabels is what Build needs to know of a namespace.
type NamespaceLabels struct {
	Name   string
	Labels map[string]string
}

// Objects are the configuration objects as the API server has them, in any order.
type Objects struct {
	Pools             []v1beta1.IPAddressPool
	L2Advertisements  []v1beta1.L2Advertisement
	BGPAdvertisements []v1beta1.BGPAdvertisement
	BGPPeers          []v1beta2.BGPPeer
	BFDProfiles       []v1beta1.BFDProfile
	Communities       []v1beta1.Community
	Reservations      []v1alpha1.AddressReservation
	Namespaces        []NamespaceLabels
	Nodes             []NodeLabels
	// Secrets are those of type kubernetes.io/basic-auth.
	Secrets []BasicAuthSecret
	// PreviousSnapshot is the Snapshot before this one; nil at the start. If an edit breaks an
	// object, its state in Previous stays in force.
	PreviousSnapshot *Snapshot
}

// snapshotBuilder collects the Problems of one Build.
type snapshotBuilder struct {
	problems []Problem
	// currentObjectUnservable says that the current object cannot be served as written,
	// currentObjectServableForSomePools that it can be for some of its pools.
	currentObjectUnservable, currentObjectServableForSomePools bool
	// currentObjectFirstFault is the first Problem that broke the current object.
	currentObjectFirstFault Problem
}

// reportProblemAndMarkBroken records a Problem that makes the object keep its last good state.
func (b *snapshotBuilder) reportProblemAndMarkBroken(o ObjectReference, field string, reason names.Reason, format string, args ...any) {
	b.reportProblem(o, field, reason, format, args...)
	if !b.currentObjectUnservable {
		b.currentObjectUnservable, b.currentObjectFirstFault = true, b.problems[len(b.problems)-1]
	}
}

func (b *snapshotBuilder) reportProblem(o ObjectReference, field string, reason names.Reason, format string, args ...any) {
	b.problems = append(b.problems, Problem{Object: o, Field: field, Reason: reason, Text: fmt.Sprintf(format, args...)})
}

// BuildSnapshot parses the objects. The Snapshot has everything that is sound; a Problem names each
// fault.
func BuildSnapshot(o Objects) (*Snapshot, []Problem) {
	var b snapshotBuilder
	s := &Snapshot{Pools: b.parsePools(o.Pools, o.Namespaces, o.PreviousSnapshot)}
	advertisements := slices.Clone(o.L2Advertisements)
	slices.SortFunc(advertisements, func(x, y v1beta1.L2Advertisement) int { return cmp.Compare(x.Name, y.Name) })
	for i := range advertisements {
		b.currentObjectUnservable = false
		ad := b.parseL2Advertisement(&advertisements[i], s.Pools)
		if last := o.PreviousSnapshot.l2AdvertisementByName(ad.Name); b.currentObjectUnservable && last != nil {
			ad = last
		}
		s.L2Advertisements = append(s.L2Advertisements, ad)
	}
	s.BGPAdvertisements = b.parseBGPAdvertisements(o.BGPAdvertisements, &o, s.Pools)
	s.Peers = b.parsePeers(o.BGPPeers, &o)
	s.Reservations = b.parseReservations(o.Reservations, s.Pools)
	slices.SortFunc(b.problems, func(x, y Problem) int {
		return cmp.Or(cmp.Compare(x.Object.Kind, y.Object.Kind), cmp.Compare(x.Object.Name, y.Object.Name),
			cmp.Compare(x.Field, y.Field), cmp.Compare(x.Text, y.Text))
	})
	return s, b.problems
}

// parsePools parses the pools, the oldest first. If two entries overlap, the older pool keeps its
// addresses and the later entry is left out. A pool that an edit broke keeps its previous entries.
func (b *snapshotBuilder) parsePools(in []v1beta1.IPAddressPool, namespaces []NamespaceLabels, last *Snapshot) []*Pool {
	in = slices.Clone(in)
	slices.SortFunc(in, func(x, y v1beta1.IPAddressPool) int {
		return cmp.Or(x.CreationTimestamp.Compare(y.CreationTimestamp.Time), cmp.Compare(x.Name, y.Name))
	})
	var takenRanges []poolRange
	var out []*Pool
	for i := range in {
		p := &in[i]
		o := ObjectReference{Kind: "IPAddressPool", Namespace: p.Namespace, Name: p.Name}
		b.currentObjectUnservable = false
		pool := &Pool{
			Name: p.Name, Labels: p.Labels,
			AutoAssign:        p.Spec.AutoAssign == nil || *p.Spec.AutoAssign,
			AvoidBuggyIPs:     p.Spec.AvoidBuggyIPs,
			ServiceAllocation: b.parseServiceAllocation(o, p.Spec.AllocateTo, namespaces),
		}
		before := last.PoolByName(p.Name)
		if b.currentObjectUnservable && before != nil {
			pool.ServiceAllocation = before.ServiceAllocation
		}
		b.currentObjectUnservable = false
		entries := b.parseRanges(o, p.Spec.Addresses, takenRanges)
		if b.currentObjectUnservable && before != nil {
			entries = before.previousRangesWithoutOverlap(takenRanges)
		}
		for _, e := range entries {
			takenRanges = append(takenRanges, e)
			pool.Ranges = append(pool.Ranges, e.Range)
		}
		b.parsePoolExtension(o, pool, before, p.Spec.Gantry)
		out = append(out, pool)
	}
	slices.SortFunc(out, func(x, y *Pool) int { return cmp.Compare(x.Name, y.Name) })
	return out
}

// parseRanges parses the entries of one pool. It leaves out those that are invalid or overlap
// takenRanges.
func (b *snapshotBuilder) parseRanges(o ObjectReference, entries []string, takenRanges []poolRange) []poolRange {
	var out []poolRange
	for j, text := range entries {
		field := fmt.Sprintf("spec.addresses[%d]", j)
		r, err := ParseRange(text)
		if err != nil {
			b.reportProblemAndMarkBroken(o, field, names.ReasonInvalidAddress, "%s: %v", field, err)
			continue
		}
		if what := purposeOfSpecialRange(r); what != "" {
			b.reportProblemAndMarkBroken(o, field, names.ReasonInvalidAddress, "%s: %q has %s: write addresses of the nodes' network, or addresses that routers forward to it", field, text, what)
			continue
		}
		t, clash := findOverlap(takenRanges, r)
		if !clash {
			t, clash = findOverlap(out, r)
		}
		if clash {
			b.reportProblemAndMarkBroken(o, field, names.ReasonOverlap, "%s: %q overlaps with already defined CIDR or range %q of pool %q: remove one of them",
				field, text, t.entryText, t.poolName)
			continue
		}
		out = append(out, poolRange{r, o.Name, text})
	}
	return out
}

// previousRangesWithoutOverlap returns the pool's ranges that do not overlap takenRanges.
func (p *Pool) previousRangesWithoutOverlap(takenRanges []poolRange) []poolRange {
	var out []poolRange
	for _, r := range p.Ranges {
		if _, clash := findOverlap(takenRanges, r); !clash {
			out = append(out, poolRange{r, p.Name, r.String()})
		}
	}
	return out
}

// poolRange is a Range with its pool and its text there.
type poolRange struct {
	Range
	poolName, entryText string
}

func findOverlap(takenRanges []poolRange, r Range) (poolRange, bool) {
	for _, t := range takenRanges {
		if t.overlaps(r) {
			return t, true
		}
	}
	return poolRange{}, false
}

func (b *snapshotBuilder) parseServiceAllocation(o ObjectReference, in *v1beta1.ServiceAllocation, namespaces []NamespaceLabels) *ServiceAllocation {
	if in == nil {
		return nil
	}
	a := &ServiceAllocation{Priority: in.Priority}
	a.OnlyListedNamespaces = len(in.Namespaces)+len(in.NamespaceSelectors) > 0
	for _, n := range in.Namespaces {
		if slices.Contains(a.Namespaces, n) {
			b.reportProblem(o, "spec.serviceAllocation.namespaces", names.ReasonDuplicate, "spec.serviceAllocation.namespaces lists %q twice: remove one", n)
			continue
		}
		a.Namespaces = append(a.Namespaces, n)
	}
	for _, s := range b.parseSelectors(o, "spec.serviceAllocation.namespaceSelectors", in.NamespaceSelectors) {
		for _, n := range namespaces {
			if s.Matches(labels.Set(n.Labels)) {
				a.Namespaces = append(a.Namespaces, n.Name)
			}
		}
	}
	slices.Sort(a.Namespaces)
	a.Namespaces = slices.Compact(a.Namespaces)
	a.ServiceSelectors = b.parseSelectors(o, "spec.serviceAllocation.serviceSelectors", in.ServiceSelectors)
	return a
}

// parseSelectors parses label selectors. An invalid one matches nothing: it must not widen what the
// object selects.
func (b *snapshotBuilder) parseSelectors(o ObjectReference, field string, in []metav1.LabelSelector) []labels.Selector {
	var out []labels.Selector
	for i := range in {
		s, err := metav1.LabelSelectorAsSelector(&in[i])
		if err != nil {
			b.reportProblemAndMarkBroken(o, field, names.ReasonInvalidSelector, "%s[%d]: %v: write matchLabels, or matchExpressions with the operator In or NotIn and values, or Exists or DoesNotExist without values", field, i, err)
			s = labels.Nothing()
		}
		out = append(out, s)
	}
	return out
}

// resolvePools returns the names of the pools that an advertisement covers: by name and by
// selector, or all pools when it has neither.
func (b *snapshotBuilder) resolvePools(o ObjectReference, wanted []string, selectors []metav1.LabelSelector, pools []*Pool) []string {
	all := len(wanted) == 0 && len(selectors) == 0
	parsed := b.parseSelectors(o, "spec.ipAddressPoolSelectors", selectors)
	var out []string
	for _, p := range pools {
		selected := slices.ContainsFunc(parsed, func(s labels.Selector) bool { return s.Matches(labels.Set(p.Labels)) })
		if all || selected || slices.Contains(wanted, p.Name) {
			out = append(out, p.Name)
		}
	}
	for i, n := range wanted {
		if !slices.ContainsFunc(pools, func(p *Pool) bool { return p.Name == n }) {
			field := fmt.Sprintf("spec.ipAddressPools[%d]", i)
			b.reportProblem(o, field, names.ReasonUnknownPool, "%s: no IPAddressPool %q exists in namespace %q: create it, or correct the name", field, n, o.Namespace)
		}
	}
	return out
}

// ParseRange reads an entry of spec.addresses: a CIDR (host bits are masked), a range that includes
// both ends (blanks around the ends are allowed), or a single address. The error quotes the text
// and says what to write.
func ParseRange(text string) (Range, error) {
	if first, last, ok := strings.Cut(text, "-"); ok {
		return parseRangeEnds(text, strings.TrimSpace(first), strings.TrimSpace(last))
	}
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return Range{a.Unmap(), a.Unmap()}, nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return Range{}, fmt.Errorf("%q is no CIDR, range or address: write 192.0.2.0/24, 192.0.2.10-192.0.2.20 or 192.0.2.10, without blanks", text)
	}
	return Range{p.Masked().Addr(), lastAddressOfPrefix(p)}, nil
}

func parseRangeEnds(text, first, last string) (Range, error) {
	a, errA := netip.ParseAddr(first)
	z, errZ := netip.ParseAddr(last)
	switch {
	case errA != nil || a.Zone() != "":
		return Range{}, fmt.Errorf("in the range %q the start %q is no address: write FIRST-LAST, such as 192.0.2.10-192.0.2.20", text, first)
	case errZ != nil || z.Zone() != "":
		return Range{}, fmt.Errorf("in the range %q the end %q is no address: write FIRST-LAST, such as 192.0.2.10-192.0.2.20", text, last)
	case a.BitLen() != z.BitLen():
		return Range{}, fmt.Errorf("the range %q mixes IPv4 and IPv6: write an entry for each family", text)
	case z.Less(a):
		return Range{}, fmt.Errorf("the range %q ends before it starts: write %s-%s", text, last, first)
	}
	return Range{a, z}, nil
}

// lastAddressOfPrefix returns the highest address of p.
func lastAddressOfPrefix(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		keep := min(max(p.Bits()-8*i, 0), 8)
		b[i] |= byte(0xff >> keep)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
