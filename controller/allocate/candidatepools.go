package allocate

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// candidatePools are the pools from which a Service may get an address without naming one.
// Restricted pools that admit the Service come first, by priority; then come the open ones; equal
// ones are in order of their names. Pools are indexed by what a Service must have to be admitted,
// so that pools that do not match cost nothing.
type candidatePools struct {
	openPools []*poolEntry
	// pinnedUnrestrictedPools have a serviceAllocation that admits any Service.
	pinnedUnrestrictedPools []*poolEntry
	// pinnedPoolsByNamespace admit any Service of a namespace. labelSelectingPoolsByNamespace also
	// have Service selectors.
	pinnedPoolsByNamespace, labelSelectingPoolsByNamespace map[string][]*poolEntry
	// pinnedPoolsByLabel are pools for all namespaces of which each selector needs a label with a
	// certain value. poolsWithUnindexedSelectors are the others.
	pinnedPoolsByLabel          map[labelPair][]*poolEntry
	poolsWithUnindexedSelectors []*poolEntry
	// cachedPinnedByNamespace caches pinnedUnrestrictedPools and pinnedPoolsByNamespace together,
	// in order.
	cachedPinnedByNamespace map[string][]*poolEntry
}

type labelPair struct{ key, value string }

// addPool adds a pool to the index. It is called in the order that decides between equal pools.
func (c *candidatePools) addPool(src *poolEntry) {
	a := src.pool.ServiceAllocation
	switch {
	case !src.pool.AutoAssign:
	case a == nil:
		c.openPools = append(c.openPools, src)
	case a.NamespacesRestricted:
		into := &c.pinnedPoolsByNamespace
		if len(a.ServiceSelectors) > 0 {
			into = &c.labelSelectingPoolsByNamespace
		}
		if *into == nil {
			*into = map[string][]*poolEntry{}
		}
		for _, n := range a.Namespaces {
			(*into)[n] = append((*into)[n], src)
		}
	case len(a.ServiceSelectors) == 0:
		c.pinnedUnrestrictedPools = append(c.pinnedUnrestrictedPools, src)
	default:
		c.addPoolByLabels(src)
	}
}

// addPoolByLabels adds a pool that admits Services of all namespaces by their labels.
func (c *candidatePools) addPoolByLabels(src *poolEntry) {
	var keys []labelPair
	for _, s := range src.pool.ServiceAllocation.ServiceSelectors {
		needed, possible := labelsRequiredBySelector(s)
		if !possible {
			continue
		}
		if len(needed) == 0 {
			c.poolsWithUnindexedSelectors = append(c.poolsWithUnindexedSelectors, src)
			return
		}
		keys = append(keys, needed...)
	}
	if c.pinnedPoolsByLabel == nil {
		c.pinnedPoolsByLabel = map[labelPair][]*poolEntry{}
	}
	for _, k := range keys {
		if l := c.pinnedPoolsByLabel[k]; len(l) == 0 || l[len(l)-1] != src {
			c.pinnedPoolsByLabel[k] = append(l, src)
		}
	}
}

// labelsRequiredBySelector returns labels of which a Service must have at least one for the
// selector to match. It returns none if the selector may match without.
func labelsRequiredBySelector(s labels.Selector) (needed []labelPair, possible bool) {
	requirements, possible := s.Requirements()
	for _, r := range requirements {
		switch r.Operator() {
		case selection.Equals, selection.DoubleEquals, selection.In:
			for v := range r.Values() {
				needed = append(needed, labelPair{r.Key(), v})
			}
			return needed, possible
		}
	}
	return nil, possible
}

func (c *candidatePools) clearPinnedCache() { c.cachedPinnedByNamespace = map[string][]*poolEntry{} }

// poolsForService returns the pools for a Service: the restricted ones in order, and the open ones.
func (c *candidatePools) poolsForService(s *view.Service) (pinned, open []*poolEntry) {
	pinned, ok := c.cachedPinnedByNamespace[s.Key.Namespace]
	if !ok {
		pinned = slices.SortedFunc(slices.Values(slices.Concat(c.pinnedUnrestrictedPools, c.pinnedPoolsByNamespace[s.Key.Namespace])), comparePoolPriorities)
		c.cachedPinnedByNamespace[s.Key.Namespace] = pinned
	}
	var more []*poolEntry
	more = appendAdmittingPools(more, c.poolsWithUnindexedSelectors, s)
	more = appendAdmittingPools(more, c.labelSelectingPoolsByNamespace[s.Key.Namespace], s)
	if len(c.pinnedPoolsByLabel) > 0 {
		for k, v := range s.Labels {
			more = appendAdmittingPools(more, c.pinnedPoolsByLabel[labelPair{k, v}], s)
		}
	}
	if len(more) > 0 {
		pinned = append(more, pinned...)
		slices.SortFunc(pinned, comparePoolPriorities)
		pinned = slices.Compact(pinned)
	}
	return pinned, c.openPools
}

func appendAdmittingPools(to, from []*poolEntry, s *view.Service) []*poolEntry {
	for _, src := range from {
		if poolAdmits(src.pool, s) {
			to = append(to, src)
		}
	}
	return to
}

func comparePoolPriorities(x, y *poolEntry) int {
	return cmp.Or(cmp.Compare(priorityRank(x.pool), priorityRank(y.pool)), cmp.Compare(x.orderInSnapshot, y.orderInSnapshot))
}

// priorityRank turns a priority into a rank: lower is better, 0 is last. A negative priority counts
// as 0, since the API does not define it.
func priorityRank(p *snapshot.Pool) uint {
	return uint(max(p.ServiceAllocation.Priority, 0)) - 1
}

// poolAdmits says whether the pool admits the Service: both its namespace and its labels must
// match.
func poolAdmits(p *snapshot.Pool, s *view.Service) bool {
	a := p.ServiceAllocation
	if a == nil {
		return true
	}
	if _, named := slices.BinarySearch(a.Namespaces, s.Key.Namespace); a.NamespacesRestricted && !named {
		return false
	}
	return len(a.ServiceSelectors) == 0 ||
		slices.ContainsFunc(a.ServiceSelectors, func(sel labels.Selector) bool { return sel.Matches(labels.Set(s.Labels)) })
}
