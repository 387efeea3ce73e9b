package plan

import (
	"iter"
	"slices"
)

// SortedList is an immutable sorted list. An edited one shares with the former what did not change, so that an edit of a long list
// costs little and leaves little behind. The zero value is empty.
type SortedList[T any] struct {
	parts  [][]T // none of them empty
	length int
}

// partSize is how many elements a part has when it is made; it is divided when it has twice as many, and joined to its
// neighbour when both together have half.
const partSize = 128

// NewSortedList returns a List of elements that are in order.
func NewSortedList[T any](sorted ...T) SortedList[T] {
	return SortedList[T]{parts: slices.Collect(slices.Chunk(sorted, partSize)), length: len(sorted)}
}

// Len is the number of elements.
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

// Slice returns the elements in a slice of the caller's own.
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

// withEdits returns the list with what changed in it put in, and what is gone taken out. Both are sorted.
func (l SortedList[T]) withEdits(changed, gone []T, compare func(x, y T) int) SortedList[T] {
	if len(changed)+len(gone) == 0 {
		return l
	}
	out := SortedList[T]{parts: make([][]T, 0, len(l.parts)+len(changed)/partSize+1)}
	if len(l.parts) == 0 {
		out.appendPart(changed)
		return out
	}
	for i, part := range l.parts {
		of, without := len(changed), len(gone) // what comes before the next part
		if i+1 < len(l.parts) {
			next := l.parts[i+1][0]
			of, _ = slices.BinarySearchFunc(changed, next, compare)
			without, _ = slices.BinarySearchFunc(gone, next, compare)
		}
		if of+without > 0 {
			part = mergeEdits(part, changed[:of], gone[:without], compare)
			changed, gone = changed[of:], gone[without:]
		}
		out.appendPart(part)
	}
	return out
}

// appendPart adds a part, which may be empty, too long or too short, at the end of a list that is being made.
func (l *SortedList[T]) appendPart(part []T) {
	l.length += len(part)
	last := len(l.parts) - 1
	switch {
	case len(part) == 0:
	case len(part) >= 2*partSize:
		l.parts = slices.AppendSeq(l.parts, slices.Chunk(part, partSize))
	case last >= 0 && len(l.parts[last])+len(part) <= partSize/2:
		l.parts[last] = slices.Concat(l.parts[last], part)
	default:
		l.parts = append(l.parts, part)
	}
}
