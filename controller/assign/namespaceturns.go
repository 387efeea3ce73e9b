package assign

import "iter"

// namespaceTurns is a queue in which namespaces take turns, so that a namespace with many items
// delays those of others by one item each. The items of one namespace keep their order. The zero
// value is an empty queue.
type namespaceTurns[T any] struct {
	itemsByNamespace map[string][]T
	// namespaces have items. The turn of the first one is next.
	namespaces []string
	itemCount  int
}

// addItem adds an item of a namespace, as its last.
func (q *namespaceTurns[T]) addItem(namespace string, item T) {
	if q.itemsByNamespace == nil {
		q.itemsByNamespace = map[string][]T{}
	}
	items := q.itemsByNamespace[namespace]
	if len(items) == 0 {
		q.namespaces = append(q.namespaces, namespace)
	}
	q.itemsByNamespace[namespace] = append(items, item)
	q.itemCount++
}

// takeItem removes and returns the first item of the namespace whose turn it is. The queue must not
// be empty.
func (q *namespaceTurns[T]) takeItem() T {
	namespace := q.namespaces[0]
	q.namespaces = q.namespaces[1:]
	items := q.itemsByNamespace[namespace]
	item := items[0]
	var none T
	items[0] = none // it may be large, and the list lives on
	if items = items[1:]; len(items) > 0 {
		q.itemsByNamespace[namespace] = items
		q.namespaces = append(q.namespaces, namespace)
	} else {
		delete(q.itemsByNamespace, namespace)
	}
	q.itemCount--
	return item
}

// allItems returns the items, in no order across namespaces.
func (q *namespaceTurns[T]) allItems() iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, items := range q.itemsByNamespace {
			for _, item := range items {
				if !yield(item) {
					return
				}
			}
		}
	}
}

// maxRecentWrites is how many of the last staged writes recentWriters knows. A namespace with at
// least minRecentWritesOfBusyNamespace of them is busy: no more than four can be.
const (
	maxRecentWrites                = 32
	minRecentWritesOfBusyNamespace = maxRecentWrites / 4
)

// recentWriters knows the namespaces of the last writes that were staged. The zero value knows
// none.
type recentWriters struct {
	namespaces       [maxRecentWrites]string // a ring; empty strings before it is full
	next             int
	countByNamespace map[string]int
}

// recordWrite records a write of a namespace.
func (r *recentWriters) recordWrite(namespace string) {
	if r.countByNamespace == nil {
		r.countByNamespace = map[string]int{}
	}
	if old := r.namespaces[r.next]; old != "" {
		if r.countByNamespace[old]--; r.countByNamespace[old] == 0 {
			delete(r.countByNamespace, old)
		}
	}
	r.namespaces[r.next] = namespace
	r.countByNamespace[namespace]++
	r.next = (r.next + 1) % maxRecentWrites
}

// isBusy says whether the namespace has many of the last writes.
func (r *recentWriters) isBusy(namespace string) bool {
	return r.countByNamespace[namespace] >= minRecentWritesOfBusyNamespace
}

// isQuietBesideBusy says whether another namespace is busy and this one is not.
func (r *recentWriters) isQuietBesideBusy(namespace string) bool {
	if r.isBusy(namespace) {
		return false
	}
	for _, n := range r.countByNamespace {
		if n >= minRecentWritesOfBusyNamespace {
			return true
		}
	}
	return false
}
