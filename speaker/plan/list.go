package plan

import (
	"iter"
	"slices"
)

// SortedList is an immutable sorted list. An edited list shares its unchanged parts with the old
// one, so that an edit of a long list costs little time and memory. The zero value is empty.
type SortedList[T any] struct {
	parts  [][]T // no part is empty
	length int
}

// sortedListPartSize is the number of elements of a new part. A part is split when it has twice as
// many. Two neighbours are joined when together they have at most half as many.
const sortedListPartSize = 128

// NewSortedList returns a SortedList of sorted elements.
func NewSortedList[T any](sorted ...T) SortedList[T] {
	return SortedList[T]{parts: slices.Collect(slices.Chunk(sorted, sortedListPartSize)), length: len(sorted)}
}

// Len returns the number of elements.
func (l SortedList[T]) Len() int { return l.length }

// All returns the elements in order.
func (l SortedList[T]) All() iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, part := range l.parts {
			for _, e := range part {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// Slice returns the elements in a new slice.
func (l SortedList[T]) Slice() []T {
	return slices.AppendSeq(make([]T, 0, l.length), l.All())
}

// lookup returns the element that compares as equal to e.
func (l SortedList[T]) lookup(e T, compare func(x, y T) int) (T, bool) {
	i, found := slices.BinarySearchFunc(l.parts, e, func(part []T, e T) int { return compare(part[0], e) })
	if !found {
		i--
	}
	if i >= 0 {
		if j, ok := slices.BinarySearchFunc(l.parts[i], e, compare); ok {
			return l.parts[i][j], true
		}
	}
	var none T
	return none, false
}

// withEdits returns the list with the changed elements inserted or replaced, and the gone ones
// deleted. Both arguments are sorted.
func (l SortedList[T]) withEdits(changed, gone []T, compare func(x, y T) int) SortedList[T] {
	if len(changed)+len(gone) == 0 {
		return l
	}
	out := SortedList[T]{parts: make([][]T, 0, len(l.parts)+len(changed)/sortedListPartSize+1)}
	if len(l.parts) == 0 {
		out.appendPart(changed)
		return out
	}
	for i, part := range l.parts {
		of, without := len(changed), len(gone) // those before the next part
		if i+1 < len(l.parts) {
			next := l.parts[i+1][0]
			of, _ = slices.BinarySearchFunc(changed, next, compare)
			without, _ = slices.BinarySearchFunc(gone, next, compare)
		}
		if of+without > 0 {
			part = applySortedEdits(part, changed[:of], gone[:without], compare)
			changed, gone = changed[of:], gone[without:]
		}
		out.appendPart(part)
	}
	return out
}

// appendPart adds a part to the end of a list that is being built. The part may be
// empty, too long or too short.
func (l *SortedList[T]) appendPart(part []T) {
	l.length += len(part)
	last := len(l.parts) - 1
	switch {
	case len(part) == 0:
	case len(part) >= 2*sortedListPartSize:
		l.parts = slices.AppendSeq(l.parts, slices.Chunk(part, sortedListPartSize))
	case last >= 0 && len(l.parts[last])+len(part) <= sortedListPartSize/2:
		l.parts[last] = slices.Concat(l.parts[last], part)
	default:
		l.parts = append(l.parts, part)
	}
}
