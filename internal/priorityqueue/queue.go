// Package priorityqueue has a queue that returns its first item in an order of the caller's, and
// from which any item can be removed.
package priorityqueue

import "container/heap"

// Position is the place of an item in a Queue. The zero value means that the item is in none. Each
// item has one, which only the Queue changes. An item can be in one Queue at a time.
type Position struct{ oneBasedHeapIndex int }

// IsQueued says whether the item is in a Queue.
func (p Position) IsQueued() bool { return p.oneBasedHeapIndex > 0 }

// Queue holds items by their order. Insert and Remove cost the logarithm of the number of items.
// Two items that are equal in the order come in any order, but in the same one in each run.
type Queue[T any] struct{ heap itemHeap[T] }

// NewQueue returns an empty Queue. isBefore is its order; positionOf returns where an item keeps
// its Position.
func NewQueue[T any](isBefore func(x, y T) bool, positionOf func(T) *Position) *Queue[T] {
	return &Queue[T]{itemHeap[T]{isBefore: isBefore, positionOf: positionOf}}
}

// Len returns the number of items.
func (q *Queue[T]) Len() int { return len(q.heap.items) }

// First returns the first item without removing it, and false if the Queue is empty.
func (q *Queue[T]) First() (T, bool) {
	if q.Len() == 0 {
		var none T
		return none, false
	}
	return q.heap.items[0], true
}

// Insert adds an item. If the Queue has it already, Insert moves it to its new place: call it
// after each change of the item that affects the order.
func (q *Queue[T]) Insert(x T) {
	if p := q.heap.positionOf(x); p.IsQueued() {
		heap.Fix(&q.heap, p.oneBasedHeapIndex-1)
		return
	}
	heap.Push(&q.heap, x)
}

// Remove removes an item, if the Queue has it.
func (q *Queue[T]) Remove(x T) {
	if p := q.heap.positionOf(x); p.IsQueued() {
		heap.Remove(&q.heap, p.oneBasedHeapIndex-1)
	}
}

// itemHeap implements heap.Interface.
type itemHeap[T any] struct {
	items      []T
	isBefore   func(x, y T) bool
	positionOf func(T) *Position
}

// Len is part of heap.Interface, like the methods that follow.
func (h *itemHeap[T]) Len() int { return len(h.items) }

// Less compares two items.
func (h *itemHeap[T]) Less(i, j int) bool { return h.isBefore(h.items[i], h.items[j]) }

// Swap exchanges two items.
func (h *itemHeap[T]) Swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	h.positionOf(h.items[i]).oneBasedHeapIndex, h.positionOf(h.items[j]).oneBasedHeapIndex = i+1, j+1
}

// Push appends an item.
func (h *itemHeap[T]) Push(x any) {
	h.items = append(h.items, x.(T))
	h.positionOf(x.(T)).oneBasedHeapIndex = len(h.items)
}

// Pop removes the last item.
func (h *itemHeap[T]) Pop() any {
	last := len(h.items) - 1
	x := h.items[last]
	var none T
	h.items[last] = none // frees the memory
	h.items = h.items[:last]
	*h.positionOf(x) = Position{}
	return x
}
