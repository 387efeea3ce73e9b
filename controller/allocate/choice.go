package allocate

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// choice orders the pools that a Service may get an address from without naming one: the pinned ones that admit it by priority, then the
// open ones; equals by name. Pools are filed under what a Service must have for them to admit it, so that those that do not match cost
// nothing.
type choice struct {
	open []*source
	// everyone are pinned pools that admit any Service.
	everyone []*source
	// byNamespace are pinned pools that admit any Service of a namespace, and selecting those that look at its labels too.
	byNamespace, selecting map[string][]*source
	// byLabel are pinned pools for all namespaces whose selectors each need some label with some value; general are the others.
	byLabel map[label][]*source
	general []*source
	// pinned remembers everyone and byNamespace together, in order.
	pinned map[string][]*source
}

type label struct{ key, value string }

// add files a pool. It is called for pools in the order that decides between equals.
func (c *choice) add(src *source) {
	a := src.pool.ServiceAllocation
	switch {
	case !src.pool.AutoAssign:
	case a == nil:
		c.open = append(c.open, src)
	case a.NamespacesRestricted:
		into := &c.byNamespace
		if len(a.ServiceSelectors) > 0 {
			into = &c.selecting
		}
		if *into == nil {
			*into = map[string][]*source{}
		}
		for _, n := range a.Namespaces {
			(*into)[n] = append((*into)[n], src)
		}
	case len(a.ServiceSelectors) == 0:
		c.everyone = append(c.everyone, src)
	default:
		c.file(src)
	}
}

// file files a pool that admits Services of all namespaces by their labels.
func (c *choice) file(src *source) {
	var keys []label
	for _, s := range src.pool.ServiceAllocation.ServiceSelectors {
		needed, possible := needs(s)
		if !possible {
			continue
		}
		if len(needed) == 0 {
			c.general = append(c.general, src)
			return
		}
		keys = append(keys, needed...)
	}
	if c.byLabel == nil {
		c.byLabel = map[label][]*source{}
	}
	for _, k := range keys {
		if l := c.byLabel[k]; len(l) == 0 || l[len(l)-1] != src {
			c.byLabel[k] = append(l, src)
		}
	}
}

// needs returns labels of which a Service must have one for the selector to match it; none when it may match without.
func needs(s labels.Selector) (needed []label, possible bool) {
	requirements, possible := s.Requirements()
	for _, r := range requirements {
		switch r.Operator() {
		case selection.Equals, selection.DoubleEquals, selection.In:
			for v := range r.Values() {
				needed = append(needed, label{r.Key(), v})
			}
			return needed, possible
		}
	}
	return nil, possible
}

func (c *choice) sort() { c.pinned = map[string][]*source{} }

// of returns the pools for a Service: the pinned ones, in order, and the open ones.
func (c *choice) of(s *view.Service) (pinned, open []*source) {
	pinned, ok := c.pinned[s.Key.Namespace]
	if !ok {
		pinned = slices.SortedFunc(slices.Values(slices.Concat(c.everyone, c.byNamespace[s.Key.Namespace])), bySource)
		c.pinned[s.Key.Namespace] = pinned
	}
	var more []*source
	more = admitting(more, c.general, s)
	more = admitting(more, c.selecting[s.Key.Namespace], s)
	if len(c.byLabel) > 0 {
		for k, v := range s.Labels {
			more = admitting(more, c.byLabel[label{k, v}], s)
		}
	}
	if len(more) > 0 {
		pinned = append(more, pinned...)
		slices.SortFunc(pinned, bySource)
		pinned = slices.Compact(pinned)
	}
	return pinned, c.open
}

func admitting(to, from []*source, s *view.Service) []*source {
	for _, src := range from {
		if admits(src.pool, s) {
			to = append(to, src)
		}
	}
	return to
}

func bySource(x, y *source) int {
	return cmp.Or(cmp.Compare(rank(x.pool), rank(y.pool)), cmp.Compare(x.seq, y.seq))
}

// rank turns a priority into an order: lower is better, 0 is last. What is less than 0 counts as 0, since the contract leaves it open.
func rank(p *snapshot.Pool) uint {
	return uint(max(p.ServiceAllocation.Priority, 0)) - 1
}

// admits says whether the pool may serve the Service: its namespace and its labels both have to be admitted.
func admits(p *snapshot.Pool, s *view.Service) bool {
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
