package allocate

import "math/bits"

// takenPositionTree stores which of the positions 0..size-1 are taken. It is a tree of 64-bit
// words: a bit of the lowest level is a position; a bit of a higher level says that the whole word
// below it is taken. Words without a set bit are not stored. So the memory grows with the number of
// taken positions and not with the size, and the next free position is found in as many steps as
// the tree has levels.
type takenPositionTree struct {
	positionCount        uint64
	takenCount           uint64 // how many positions are taken
	takenBitsByTreeLevel []map[uint64]uint64
	// lowestMaybeFreePosition is a position below which every position is taken.
	lowestMaybeFreePosition uint64
}

func newTakenPositionTree(size uint64) *takenPositionTree {
	s := &takenPositionTree{positionCount: size}
	for n := size; ; n = (n + 63) / 64 {
		s.takenBitsByTreeLevel = append(s.takenBitsByTreeLevel, map[uint64]uint64{})
		if n <= 64 {
			return s
		}
	}
}

// isTaken says whether the position is taken.
func (s *takenPositionTree) isTaken(at uint64) bool {
	return s.takenBitsByTreeLevel[0][at/64]&(1<<(at%64)) != 0
}

// markTaken marks the position as taken. It may be taken already.
func (s *takenPositionTree) markTaken(at uint64) {
	if s.isTaken(at) {
		return
	}
	s.takenCount++
	if at == s.lowestMaybeFreePosition {
		s.lowestMaybeFreePosition++
	}
	for _, words := range s.takenBitsByTreeLevel {
		w := words[at/64] | 1<<(at%64)
		words[at/64] = w
		if w != ^uint64(0) {
			return
		}
		at /= 64
	}
}

// markFree marks the position as free. It may be free already.
func (s *takenPositionTree) markFree(at uint64) {
	if !s.isTaken(at) {
		return
	}
	s.takenCount--
	s.lowestMaybeFreePosition = min(s.lowestMaybeFreePosition, at)
	for _, words := range s.takenBitsByTreeLevel {
		before := words[at/64]
		if w := before &^ (1 << (at % 64)); w == 0 {
			delete(words, at/64)
		} else {
			words[at/64] = w
		}
		if before != ^uint64(0) {
			return
		}
		at /= 64
	}
}

// nextFreePosition returns the lowest free position that is not below from.
func (s *takenPositionTree) nextFreePosition(from uint64) (uint64, bool) {
	at := s.lowestUnsetBitOnLevelFrom(0, max(from, s.lowestMaybeFreePosition))
	if at >= s.positionCount {
		return 0, false
	}
	if from <= s.lowestMaybeFreePosition {
		s.lowestMaybeFreePosition = at
	}
	return at, true
}

// lowestUnsetBitOnLevelFrom returns the lowest unset bit of the level that is not below from; it
// may lie beyond the size.
func (s *takenPositionTree) lowestUnsetBitOnLevelFrom(level int, from uint64) uint64 {
	if level == len(s.takenBitsByTreeLevel) {
		return from
	}
	words := s.takenBitsByTreeLevel[level]
	if open := ^words[from/64] &^ (1<<(from%64) - 1); open != 0 {
		return from&^63 + uint64(bits.TrailingZeros64(open))
	}
	word := s.lowestUnsetBitOnLevelFrom(level+1, from/64+1)
	return word*64 + uint64(bits.TrailingZeros64(^words[word]))
}
