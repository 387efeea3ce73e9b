// Package snapshot turns configuration objects into an immutable Snapshot and a list of Problems. A faulty object harms
// only itself: it yields Problems, everything sound is in the Snapshot. Build is deterministic: the order of
// its input never changes its output. Nothing here reads a clock, logs, or talks to the API server.
package snapshot

import (
	"net/netip"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
)

// Snapshot is the parsed configuration. It is immutable and may be shared between goroutines.
type Snapshot struct {
	// Pools by the order in which automatic allocation tries them is the business of package allocate; here
	// they are sorted by name.
	Pools []*Pool
	// L2Advertisements are sorted by name.
	L2Advertisements []*L2Advertisement
	// BGPAdvertisements and Peers are sorted by name.
	BGPAdvertisements []*BGPAdvertisement
	Peers             []*Peer
	// Reservations are sorted by name.
	Reservations []*Reservation
}

// Range is an inclusive range of addresses of one family, First <= Last.
type Range struct{ First, Last netip.Addr }

// Contains says whether a lies in r.
func (r Range) Contains(a netip.Addr) bool {
	return r.First.BitLen() == a.BitLen() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// Pool is a parsed IPAddressPool.
type Pool struct {
	Name   string
	Labels map[string]string
	// Ranges are in the order of spec.addresses.
	Ranges     []Range
	AutoAssign bool
	// AvoidBuggyIPs skips IPv4 addresses that end in .0 or .255.
	AvoidBuggyIPs bool
	// ServiceAllocation is nil when spec.serviceAllocation is absent: the pool is open to all.
	ServiceAllocation *ServiceAllocation
	// ExcludedRanges are never given, though they lie in Ranges; a Service that holds one keeps it.
	ExcludedRanges []Range
	// Order says which free address is given next.
	Order AssignmentOrder
	// CooldownDelay is how long an address waits, after nobody holds it any more, before another Service may have it.
	CooldownDelay time.Duration
	// Quota is nil when namespaces may hold any number of addresses.
	Quota *Quota
	// Probe is nil when addresses are given without asking the segment.
	Probe *ProbeSettings
}

// AssignmentOrder says which free address of a Pool is given next.
type AssignmentOrder string

// The orders of a Pool's addresses.
const (
	// OrderLowest gives the first free address, in the order of the Ranges. It is what an empty Order means.
	OrderLowest AssignmentOrder = "Lowest"
	// OrderRoundRobin gives the first free address behind the one given last, and starts again at the end.
	OrderRoundRobin AssignmentOrder = "RoundRobin"
	// OrderHash starts at a place that the name of the Service decides, so that it tends to get the same address again.
	OrderHash AssignmentOrder = "Hash"
)

// Quota bounds how many addresses of each family the Services of one namespace may hold from a Pool.
type Quota struct {
	// PerNamespace holds for namespaces that Namespaces does not name; negative is no bound.
	PerNamespace     int
	LimitByNamespace map[string]int
}

// LimitForNamespace returns the bound for a namespace; ok is false when there is none.
func (q *Quota) LimitForNamespace(namespace string) (n int, ok bool) {
	if q == nil {
		return 0, false
	}
	n, named := q.LimitByNamespace[namespace]
	if !named {
		n = q.PerNamespace
	}
	return n, n >= 0
}

// ProbeSettings asks the segment for an address before it is given.
type ProbeSettings struct {
	// QuarantineDelay is how long an address is not given after somebody answered for it.
	QuarantineDelay time.Duration
}

// ServiceAllocation restricts and ranks the Services that a Pool serves.
type ServiceAllocation struct {
	// Priority: lower is preferred, 0 is the least preferred.
	Priority int
	// Namespaces are the admitted namespaces, by name and by selector, sorted; empty together with
	// NamespacesRestricted false admits all.
	Namespaces           []string
	NamespacesRestricted bool
	// ServiceSelectors: a Service matches when any does; empty admits all.
	ServiceSelectors []labels.Selector
}

// CoversAddress says whether a lies in a Range, excluded and avoided addresses included.
func (p *Pool) CoversAddress(a netip.Addr) bool { return rangesContain(p.Ranges, a) }

// CanAssign says whether the pool may give a: it lies in a Range and is neither avoided nor excluded.
func (p *Pool) CanAssign(a netip.Addr) bool {
	return !(p.AvoidBuggyIPs && IsBuggyIPv4(a)) && rangesContain(p.Ranges, a) && !rangesContain(p.ExcludedRanges, a)
}

func rangesContain(ranges []Range, a netip.Addr) bool {
	for _, r := range ranges {
		if r.Contains(a) {
			return true
		}
	}
	return false
}

// AssignableRanges returns the Ranges in their order, without what is excluded. Addresses that AvoidBuggyIPs passes over are still in it.
func (p *Pool) AssignableRanges() []Range {
	if len(p.ExcludedRanges) == 0 {
		return p.Ranges
	}
	cuts := slices.Clone(p.ExcludedRanges)
	slices.SortFunc(cuts, func(x, y Range) int { return x.First.Compare(y.First) })
	var out []Range
	for _, r := range p.Ranges {
		rest, left := r, true
		for _, c := range cuts {
			if !left || !rest.Contains(c.First) && !c.Contains(rest.First) {
				continue
			}
			if rest.First.Less(c.First) {
				out = append(out, Range{rest.First, c.First.Prev()})
			}
			if left = c.Last.Less(rest.Last); left {
				rest.First = c.Last.Next()
			}
		}
		if left {
			out = append(out, rest)
		}
	}
	return out
}

// IsBuggyIPv4 says whether a is an IPv4 address that ends in .0 or .255, which some old routers and clients refuse.
func IsBuggyIPv4(a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	last := a.As4()[3]
	return last == 0 || last == 255
}

// L2Advertisement is a parsed L2Advertisement. The same value serves every node: selectors are kept, not resolved.
type L2Advertisement struct {
	Name string
	// Pools are the names of the pools it covers, resolved from names and selectors, sorted.
	Pools []string
	// NodeSelectors: a node matches when any does; empty matches all.
	NodeSelectors []labels.Selector
	// ServiceSelectors: a Service matches when any does; empty matches all.
	ServiceSelectors []labels.Selector
	// Interfaces are exact link names; empty means all usable links.
	Interfaces []string
	// Preferences add up their weights for the nodes they match.
	Preferences []Preference
	// Rebalance says that a holder of too many addresses gives some away, at a slow pace.
	Rebalance bool
}

// Preference is a soft wish for nodes.
type Preference struct {
	Weight   int // 1..100
	Selector labels.Selector
}

// ObjectReference names a configuration object that a Problem is about.
type ObjectReference struct{ Kind, Namespace, Name string }

// Problem is a fault in a configuration object. It is a value for people, not a Go error.
type Problem struct {
	Object ObjectReference
	Field  string // such as "spec.addresses[2]"
	Reason names.Reason
	// Text is one sentence: what is wrong, with the offending text, and what to do.
	Text string
}

// IsDanglingReference says whether the Problem is a reference to an object that may be yet to come.
func (p Problem) IsDanglingReference() bool {
	switch p.Reason {
	case names.ReasonUnknownPool, names.ReasonUnknownPeer, names.ReasonUnknownCommunity, names.ReasonUnknownBFDProfile, names.ReasonUnknownSecret:
		return true
	}
	return false
}

// PoolsOfAddresses returns the pool of each address, which they may have from different ones; nil when one has none. An address that its pool avoids or
// excludes by now is still of it, and so is one that no pool covers any more, as long as the pool is there that it is recorded to come
// from: whoever holds it keeps it.
func (s *Snapshot) PoolsOfAddresses(recorded string, addrs ...netip.Addr) []*Pool {
	if s == nil {
		return nil
	}
	var out []*Pool
	for _, a := range addrs {
		i := slices.IndexFunc(s.Pools, func(p *Pool) bool { return p.CoversAddress(a) })
		if i < 0 {
			i = slices.IndexFunc(s.Pools, func(p *Pool) bool { return p.Name == recorded })
		}
		if i < 0 {
			return nil
		}
		out = append(out, s.Pools[i])
	}
	return out
}

// PoolContaining returns the pool that contains every one of addrs, or nil.
func (s *Snapshot) PoolContaining(addrs ...netip.Addr) *Pool {
	if s == nil || len(addrs) == 0 {
		return nil
	}
next:
	for _, p := range s.Pools {
		for _, a := range addrs {
			if !p.CanAssign(a) {
				continue next
			}
		}
		return p
	}
	return nil
}

// PoolByName returns the pool of that name, or nil.
func (s *Snapshot) PoolByName(name string) *Pool {
	if s == nil {
		return nil
	}
	for _, p := range s.Pools {
		if p.Name == name {
			return p
		}
	}
	return nil
}
