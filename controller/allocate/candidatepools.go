package allocate

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// candidatePools orders the pools that a Service may get an address from without naming one: the pinned ones that admit it by priority, then the
// open ones; equals by name. Pools are filed under what a Service must have for them to admit it, so that those that do not match cost
// nothing.
type candidatePools struct {
	openPools []*poolEntry
	// unrestrictedPools are pinned pools that admit any Service.
	unrestrictedPools []*poolEntry
	// poolsByNamespace are pinned pools that admit any Service of a namespace, and selecting those that look at its labels too.
	poolsByNamespace, selectingPoolsByNamespace map[string][]*poolEntry
	// poolsByLabel are pinned pools for all namespaces whose selectors each need some label with some value; general are the others.
	poolsByLabel   map[labelPair][]*poolEntry
	unindexedPools []*poolEntry
	// pinnedByNamespace remembers everyone and poolsByNamespace together, in order.
	pinnedByNamespace map[string][]*poolEntry
}

type labelPair struct{ key, value string }

// addPool files a pool. It is called for pools in the order that decides between equals.
func (c *candidatePools) addPool(src *poolEntry) {
	a := src.pool.ServiceAllocation
	switch {
	case !src.pool.AutoAssign:
	case a == nil:
		c.openPools = append(c.openPools, src)
	case a.NamespacesRestricted:
		into := &c.poolsByNamespace
		if len(a.ServiceSelectors) > 0 {
			into = &c.selectingPoolsByNamespace
		}
		if *into == nil {
			*into = map[string][]*poolEntry{}
		}
		for _, n := range a.Namespaces {
			(*into)[n] = append((*into)[n], src)
		}
	case len(a.ServiceSelectors) == 0:
		c.unrestrictedPools = append(c.unrestrictedPools, src)
	default:
		c.addPoolByLabels(src)
	}
}

// addPoolByLabels files a pool that admits Services of all namespaces by their labels.
func (c *candidatePools) addPoolByLabels(src *poolEntry) {
	var keys []labelPair
	for _, s := range src.pool.ServiceAllocation.ServiceSelectors {
		needed, possible := requiredLabels(s)
		if !possible {
			continue
		}
		if len(needed) == 0 {
			c.unindexedPools = append(c.unindexedPools, src)
			return
		}
		keys = append(keys, needed...)
	}
	if c.poolsByLabel == nil {
		c.poolsByLabel = map[labelPair][]*poolEntry{}
	}
	for _, k := range keys {
		if l := c.poolsByLabel[k]; len(l) == 0 || l[len(l)-1] != src {
			c.poolsByLabel[k] = append(l, src)
		}
	}
}

// requiredLabels returns labels of which a Service must have one for the selector to match it; none when it may match without.
func requiredLabels(s labels.Selector) (needed []labelPair, possible bool) {
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

func (c *candidatePools) clearPinned() { c.pinnedByNamespace = map[string][]*poolEntry{} }

// poolsForService returns the pools for a Service: the pinned ones, in order, and the open ones.
func (c *candidatePools) poolsForService(s *view.Service) (pinned, open []*poolEntry) {
	pinned, ok := c.pinnedByNamespace[s.Key.Namespace]
	if !ok {
		pinned = slices.SortedFunc(slices.Values(slices.Concat(c.unrestrictedPools, c.poolsByNamespace[s.Key.Namespace])), compareEntries)
		c.pinnedByNamespace[s.Key.Namespace] = pinned
	}
	var more []*poolEntry
	more = appendAdmitting(more, c.unindexedPools, s)
	more = appendAdmitting(more, c.selectingPoolsByNamespace[s.Key.Namespace], s)
	if len(c.poolsByLabel) > 0 {
		for k, v := range s.Labels {
			more = appendAdmitting(more, c.poolsByLabel[labelPair{k, v}], s)
		}
	}
	if len(more) > 0 {
		pinned = append(more, pinned...)
		slices.SortFunc(pinned, compareEntries)
		pinned = slices.Compact(pinned)
	}
	return pinned, c.openPools
}

func appendAdmitting(to, from []*poolEntry, s *view.Service) []*poolEntry {
	for _, src := range from {
		if poolAdmits(src.pool, s) {
			to = append(to, src)
		}
	}
	return to
}

func compareEntries(x, y *poolEntry) int {
	return cmp.Or(cmp.Compare(priorityRank(x.pool), priorityRank(y.pool)), cmp.Compare(x.snapshotOrder, y.snapshotOrder))
}

// priorityRank turns a priority into an order: lower is better, 0 is last. What is less than 0 counts as 0, since the contract leaves it open.
func priorityRank(p *snapshot.Pool) uint {
	return uint(max(p.ServiceAllocation.Priority, 0)) - 1
}

// poolAdmits says whether the pool may serve the Service: its namespace and its labels both have to be admitted.
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
