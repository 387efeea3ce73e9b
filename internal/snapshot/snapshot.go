// Package snapshot turns configuration objects into an immutable Snapshot and a list of Problems. A
// faulty object harms only itself: it yields Problems, and everything else is in the Snapshot.
// Build is deterministic: the order of its input never changes its output. The package reads no
// clock, writes no log and does not talk to the API server.
package snapshot

import (
	"cmp"
	"net/netip"
	"regexp"
	"slices"
	"sort"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
)

// Snapshot is the parsed configuration. It is immutable and may be shared between goroutines. All
// lists are sorted by name.
type Snapshot struct {
	// Namespace is the only one whose configuration objects are read; empty in some tests.
	Namespace string
	// IgnoresExcludeLabel means that the label names.LabelExcludeNode keeps no node from
	// announcing.
	IgnoresExcludeLabel bool
	// Pools are not in the order in which automatic allocation tries them; package allocate decides
	// that.
	Pools             []*Pool
	L2Advertisements  []*L2Advertisement
	BGPAdvertisements []*BGPAdvertisement
	Peers             []*Peer
	Reservations      []*Reservation
}

// Range is a range of addresses of one family, both ends included, First <= Last.
type Range struct{ First, Last netip.Addr }

// Contains says whether a is in r.
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
	// ServiceAllocation is nil when spec.serviceAllocation is absent: every Service may use the
	// pool.
	ServiceAllocation *ServiceAllocation
	// Retirement is nil when no address of the pool is retired.
	Retirement *Retirement
	// WithheldAddressesToFree are the addresses whose cool-down and quarantine an annotation ends,
	// once for each of its values. LiftWithheldValue is the value of the annotation.
	WithheldAddressesToFree []Range
	LiftWithheldValue       string
	// ExcludedRanges are in Ranges but never given; retired ranges are among them. A Service that
	// holds such an address keeps it, unless it is retired.
	ExcludedRanges []Range
	// AssignmentOrder says which free address is given next.
	AssignmentOrder AssignmentOrder
	// CooldownDelay is how long a released address waits before another Service may get it.
	CooldownDelay time.Duration
	// Quota is nil when a namespace may hold any number of addresses.
	Quota *NamespaceQuota
	// MaxAddressesPerService is how many addresses of each family a Service may have when this pool
	// gives it one more. 0 means the default: see LimitPerService.
	MaxAddressesPerService int
	// SharesOnlyWithinNamespace says that Services of different namespaces may not share an address
	// of the pool. Those that share one already may continue.
	SharesOnlyWithinNamespace bool
	// AcquireProbe is nil when addresses are given without an acquire probe.
	AcquireProbe *AcquireProbeSettings
}

// Retirement says which addresses of a Pool its Services give up.
type Retirement struct {
	// Ranges are the retired addresses; with WholePool, all addresses of the Pool are.
	Ranges    []Range
	WholePool bool
	// ServiceReassignInterval is the time between two Services that get other addresses.
	ServiceReassignInterval time.Duration
}

// LimitPerService returns how many addresses of each family a Service may have when this pool gives
// it one more.
func (p *Pool) LimitPerService() int { return max(p.MaxAddressesPerService, 1) }

// IsAddressRetired says whether the pool retires the address, which it covers.
func (p *Pool) IsAddressRetired(a netip.Addr) bool {
	return p.Retirement != nil && (p.Retirement.WholePool || anyRangeContains(p.Retirement.Ranges, a))
}

// isWholePoolRetired says whether the pool retires all of its addresses.
func (p *Pool) isWholePoolRetired() bool { return p.Retirement != nil && p.Retirement.WholePool }

// AssignmentOrder says which free address of a Pool is given next.
type AssignmentOrder string

// The orders of a Pool's addresses.
const (
	// OrderLowest gives the first free address in the order of the Ranges. An empty value means the
	// same.
	OrderLowest AssignmentOrder = "Lowest"
	// OrderRoundRobin gives the first free address after the one given last, and starts over at the
	// end.
	OrderRoundRobin AssignmentOrder = "RoundRobin"
	// OrderHash starts the search at a position derived from the Service's name, so that a Service
	// usually gets the same address again.
	OrderHash AssignmentOrder = "Hash"
)

// NamespaceQuota limits how many addresses of each family the Services of one namespace may hold
// from a Pool.
type NamespaceQuota struct {
	// DefaultLimit applies to namespaces without an entry in LimitByNamespace; negative means no
	// limit.
	DefaultLimit     int
	LimitByNamespace map[string]int
}

// LimitForNamespace returns the limit of a namespace; ok is false when there is none.
func (q *NamespaceQuota) LimitForNamespace(namespace string) (n int, ok bool) {
	if q == nil {
		return 0, false
	}
	n, named := q.LimitByNamespace[namespace]
	if !named {
		n = q.DefaultLimit
	}
	return n, n >= 0
}

// AcquireProbeSettings are the settings of acquire probes: a speaker checks that no host on the
// segment uses an address before a Service gets it.
type AcquireProbeSettings struct {
	// QuarantineDelay is how long an address is not given after a host answered for it.
	QuarantineDelay time.Duration
}

// ServiceAllocation says which Services may use a Pool, and how it ranks among the pools of a
// Service.
type ServiceAllocation struct {
	// Priority: a lower number is preferred; 0 is the least preferred.
	Priority int
	// Namespaces are the admitted namespaces, by name and by selector, sorted. They count only with
	// OnlyListedNamespaces; otherwise all namespaces are admitted.
	Namespaces           []string
	OnlyListedNamespaces bool
	// NamespaceSelectors are the selectors of Namespaces.
	NamespaceSelectors []labels.Selector
	// ServiceSelectors: a Service is admitted when one of them matches it, or when there is none.
	ServiceSelectors []labels.Selector
}

// CoversAddress says whether a is in a Range of the pool, even if the pool excludes or avoids it.
func (p *Pool) CoversAddress(a netip.Addr) bool { return anyRangeContains(p.Ranges, a) }

// CanAssignAddress says whether the pool may give a: it is in a Range, neither avoided nor
// excluded, and has no special purpose.
func (p *Pool) CanAssignAddress(a netip.Addr) bool {
	return p.CoversAddress(a) && !p.NeverAssignsAddress(a)
}

// NeverAssignsAddress says whether the pool never gives a, although it may be in a Range: a is
// avoided or excluded, has a special purpose, or the whole pool is retired.
func (p *Pool) NeverAssignsAddress(a netip.Addr) bool {
	return p.isWholePoolRetired() || p.AvoidBuggyIPs && IsBuggyIPv4(a) || isSpecialPurpose(a) || anyRangeContains(p.ExcludedRanges, a)
}

func anyRangeContains(ranges []Range, a netip.Addr) bool {
	for _, r := range ranges {
		if r.Contains(a) {
			return true
		}
	}
	return false
}

// AssignableRanges returns the Ranges in their order, without what is excluded and what has a
// special purpose. They still contain the addresses that AvoidBuggyIPs skips.
func (p *Pool) AssignableRanges() []Range {
	if p.isWholePoolRetired() {
		return nil
	}
	cuts := slices.Concat(p.ExcludedRanges, unservableRangesIn(p.Ranges))
	if len(cuts) == 0 {
		return p.Ranges
	}
	cuts = mergeRanges(cuts)
	var out []Range
	for _, r := range p.Ranges {
		rest, left := r, true
		for i := sort.Search(len(cuts), func(i int) bool { return r.First.Compare(cuts[i].Last) <= 0 }); left && i < len(cuts) && cuts[i].overlaps(r); i++ {
			c := cuts[i]
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

// mergeRanges returns the ranges sorted, and those that overlap as one.
func mergeRanges(in []Range) []Range {
	in = slices.Clone(in)
	slices.SortFunc(in, func(x, y Range) int { return x.First.Compare(y.First) })
	out := in[:1]
	for _, r := range in[1:] {
		last := &out[len(out)-1]
		switch {
		case !last.overlaps(r):
			out = append(out, r)
		case last.Last.Less(r.Last):
			last.Last = r.Last
		}
	}
	return out
}

// IsBuggyIPv4 says whether a is an IPv4 address that ends in .0 or .255. Some old routers and
// clients do not accept those.
func IsBuggyIPv4(a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	last := a.As4()[3]
	return last == 0 || last == 255
}

// L2Advertisement is a parsed L2Advertisement. One value serves every node: its selectors are not
// resolved.
type L2Advertisement struct {
	Name string
	// Pools are the names of the pools that it covers, sorted.
	Pools []string
	// NodeSelectors: a node matches when one of them does, or when there is none.
	NodeSelectors []labels.Selector
	// ServiceSelectors: a Service matches when one of them does, or when there is none.
	ServiceSelectors []labels.Selector
	// Interfaces are exact names of links. Without names it covers all usable links.
	Interfaces []string
	// Preferences: a node's score is the sum of the weights of those that match it.
	Preferences []NodePreference
	// Rebalance makes a node that holds too many addresses give some away slowly.
	Rebalance bool
	// WireCheck says what an answer of a host does to an address that no node holds.
	WireCheck WireCheck
}

// NodePreference prefers the nodes that the selector matches.
type NodePreference struct {
	Weight       int // 1..100
	NodeSelector labels.Selector
}

// ObjectReference names the configuration object that a Problem is about.
type ObjectReference struct{ Kind, Namespace, Name string }

// Problem is a fault in a configuration object. It is a value for people, not a Go error.
type Problem struct {
	Object ObjectReference
	Field  string // for example "spec.addresses[2]"
	Reason names.Reason
	// Text is one sentence: what is wrong, the offending text, and what to do.
	Text string
}

// ProblemIdentity is what stays of a Problem when other entries of its list, or other objects, are
// edited.
type ProblemIdentity struct {
	Object              ObjectReference
	Reason              names.Reason
	textWithoutPosition string
}

// listIndexPattern matches the index of a list entry in a field or text.
var listIndexPattern = regexp.MustCompile(`\[[0-9]+\]`)

// Identity returns what identifies the Problem: neither the position of the entry in its list, nor
// the other entry that it overlaps.
func (p Problem) Identity() ProblemIdentity {
	subject, _, _ := strings.Cut(listIndexPattern.ReplaceAllString(p.Text, "[]"), " "+overlapProblemText)
	return ProblemIdentity{p.Object, p.Reason, subject}
}

// IsOnlyAdvice says whether everything is served as written all the same.
func (p Problem) IsOnlyAdvice() bool { return p.Reason == names.ReasonClusterAddress }

// IsDanglingReference says whether the Problem is a reference to an object that may still be
// created.
func (p Problem) IsDanglingReference() bool {
	switch p.Reason {
	case names.ReasonUnknownPool, names.ReasonUnknownPeer, names.ReasonUnknownCommunity, names.ReasonUnknownBFDProfile, names.ReasonUnknownSecret:
		return true
	}
	return false
}

// IsOverlapWithOtherPool says whether an entry overlaps one of another pool. An edit of that pool
// may still remove it: whoever splits a pool may apply the new pool first.
func (p Problem) IsOverlapWithOtherPool() bool {
	return p.Reason == names.ReasonOverlap && !strings.HasSuffix(p.Text, endOfOverlapText(p.Object.Name))
}

// PoolOfEachAddress returns the pool of each address; nil when an address has none. An address
// still belongs to a pool that now avoids or excludes it. If no pool covers it any more, it belongs
// to the recorded pool as long as that exists: its Service keeps the address.
func (s *Snapshot) PoolOfEachAddress(recorded string, addrs ...netip.Addr) []*Pool {
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

// PoolThatCanAssignAll returns the pool that can assign every one of addrs, or nil.
func (s *Snapshot) PoolThatCanAssignAll(addrs ...netip.Addr) *Pool {
	if s == nil || len(addrs) == 0 {
		return nil
	}
next:
	for _, p := range s.Pools {
		for _, a := range addrs {
			if !p.CanAssignAddress(a) {
				continue next
			}
		}
		return p
	}
	return nil
}

// PoolByName returns the pool with that name, or nil.
func (s *Snapshot) PoolByName(name string) *Pool {
	if s == nil {
		return nil
	}
	i, found := slices.BinarySearchFunc(s.Pools, name, func(p *Pool, name string) int { return cmp.Compare(p.Name, name) })
	if !found {
		return nil
	}
	return s.Pools[i]
}
