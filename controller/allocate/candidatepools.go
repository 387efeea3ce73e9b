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
// Restricted pools that admit the Service come first, by priority; then the unrestricted ones;
// equal ones are in order of their names. Pools are indexed by what a Service must have to be
// admitted, so that pools that do not match cost nothing.
type candidatePools struct {
	poolsWithoutServiceAllocation []*poolEntry
	// allocationPoolsAdmittingAllServices have a serviceAllocation that admits any Service.
	allocationPoolsAdmittingAllServices []*poolEntry
	// allocationPoolsByAdmittedNamespace admit any Service of a namespace.
	// allocationPoolsBySelectedNamespaceAndLabels also have Service selectors.
	allocationPoolsByAdmittedNamespace, allocationPoolsBySelectedNamespaceAndLabels map[string][]*poolEntry
	// allocationPoolsByRequiredServiceLabel are pools for all namespaces of which each selector
	// needs a label with a certain value. allocationPoolsWithUnindexedSelectors are the others.
	allocationPoolsByRequiredServiceLabel map[labelPair][]*poolEntry
	allocationPoolsWithUnindexedSelectors []*poolEntry
	// cachedAllocationPoolsByNamespace caches allocationPoolsAdmittingAllServices and
	// allocationPoolsByAdmittedNamespace together, in order.
	cachedAllocationPoolsByNamespace map[string][]*poolEntry
}

type labelPair struct{ key, value string }

// addPool adds a pool to the index. It is called in the order that decides between equal pools.
func (c *candidatePools) addPool(src *poolEntry) {
	a := src.pool.ServiceAllocation
	switch {
	case !src.pool.AutoAssign:
	case a == nil:
		c.poolsWithoutServiceAllocation = append(c.poolsWithoutServiceAllocation, src)
	case a.OnlyListedNamespaces:
		into := &c.allocationPoolsByAdmittedNamespace
		if len(a.ServiceSelectors) > 0 {
			into = &c.allocationPoolsBySelectedNamespaceAndLabels
		}
		if *into == nil {
			*into = map[string][]*poolEntry{}
		}
		for _, n := range a.Namespaces {
			(*into)[n] = append((*into)[n], src)
		}
	case len(a.ServiceSelectors) == 0:
		c.allocationPoolsAdmittingAllServices = append(c.allocationPoolsAdmittingAllServices, src)
	default:
		c.indexPoolByServiceLabels(src)
	}
}

// indexPoolByServiceLabels adds a pool that admits Services of all namespaces by their labels.
func (c *candidatePools) indexPoolByServiceLabels(src *poolEntry) {
	var keys []labelPair
	for _, s := range src.pool.ServiceAllocation.ServiceSelectors {
		needed, possible := anyOfLabelsRequiredBySelector(s)
		if !possible {
			continue
		}
		if len(needed) == 0 {
			c.allocationPoolsWithUnindexedSelectors = append(c.allocationPoolsWithUnindexedSelectors, src)
			return
		}
		keys = append(keys, needed...)
	}
	if c.allocationPoolsByRequiredServiceLabel == nil {
		c.allocationPoolsByRequiredServiceLabel = map[labelPair][]*poolEntry{}
	}
	for _, k := range keys {
		if l := c.allocationPoolsByRequiredServiceLabel[k]; len(l) == 0 || l[len(l)-1] != src {
			c.allocationPoolsByRequiredServiceLabel[k] = append(l, src)
		}
	}
}

// anyOfLabelsRequiredBySelector returns labels of which a Service must have at least one for the
// selector to match. It returns none if the selector may match without.
func anyOfLabelsRequiredBySelector(s labels.Selector) (needed []labelPair, possible bool) {
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

func (c *candidatePools) resetCachedAllocationPools() {
	c.cachedAllocationPoolsByNamespace = map[string][]*poolEntry{}
}

// poolsForService returns the pools that may serve a Service. Restricted pools have a
// serviceAllocation that admits the Service; they come in the order of their priority. Unrestricted
// pools have none.
func (c *candidatePools) poolsForService(s *view.Service) (restricted, unrestricted []*poolEntry) {
	restricted, ok := c.cachedAllocationPoolsByNamespace[s.Key.Namespace]
	if !ok {
		restricted = slices.SortedFunc(slices.Values(slices.Concat(c.allocationPoolsAdmittingAllServices, c.allocationPoolsByAdmittedNamespace[s.Key.Namespace])), comparePoolPriorities)
		c.cachedAllocationPoolsByNamespace[s.Key.Namespace] = restricted
	}
	var more []*poolEntry
	more = appendAdmittingPools(more, c.allocationPoolsWithUnindexedSelectors, s)
	more = appendAdmittingPools(more, c.allocationPoolsBySelectedNamespaceAndLabels[s.Key.Namespace], s)
	if len(c.allocationPoolsByRequiredServiceLabel) > 0 {
		for k, v := range s.Labels {
			more = appendAdmittingPools(more, c.allocationPoolsByRequiredServiceLabel[labelPair{k, v}], s)
		}
	}
	if len(more) > 0 {
		restricted = append(more, restricted...)
		slices.SortFunc(restricted, comparePoolPriorities)
		restricted = slices.Compact(restricted)
	}
	return restricted, c.poolsWithoutServiceAllocation
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
	return cmp.Or(cmp.Compare(rankOfPoolPriority(x.pool), rankOfPoolPriority(y.pool)), cmp.Compare(x.orderInSnapshot, y.orderInSnapshot))
}

// rankOfPoolPriority turns a priority into a rank: lower is better, 0 is last. A negative priority
// counts as 0, since the API does not define it.
func rankOfPoolPriority(p *snapshot.Pool) uint {
	return uint(max(p.ServiceAllocation.Priority, 0)) - 1
}

// poolAdmits says whether the pool admits the Service: both its namespace and its labels must
// match.
func poolAdmits(p *snapshot.Pool, s *view.Service) bool {
	a := p.ServiceAllocation
	if a == nil {
		return true
	}
	if _, named := slices.BinarySearch(a.Namespaces, s.Key.Namespace); a.OnlyListedNamespaces && !named {
		return false
	}
	return len(a.ServiceSelectors) == 0 ||
		slices.ContainsFunc(a.ServiceSelectors, func(sel labels.Selector) bool { return sel.Matches(labels.Set(s.Labels)) })
}
