package allocate

import "math/bits"

// space says which of the positions 0..size-1 are taken. It is a tree of 64-bit words: a bit of the lowest level is a position,
// a bit of a higher one says that the whole word below it is taken. Words without a bit are not stored, so that the memory grows with
// what is taken and not with the size, and the next free position is found in as many steps as the tree has levels, at any fill.
type space struct {
	size   uint64
	taken  uint64 // how many positions are taken
	levels []map[uint64]uint64
	// low is a position below which everything is taken.
	low uint64
}

func newSpace(size uint64) *space {
	s := &space{size: size}
	for n := size; ; n = (n + 63) / 64 {
		s.levels = append(s.levels, map[uint64]uint64{})
		if n <= 64 {
			return s
		}
	}
}

// has says whether the position is taken.
func (s *space) has(at uint64) bool { return s.levels[0][at/64]&(1<<(at%64)) != 0 }

// take marks the position as taken; it may be already.
func (s *space) take(at uint64) {
	if s.has(at) {
		return
	}
	s.taken++
	if at == s.low {
		s.low++
	}
	for _, words := range s.levels {
		w := words[at/64] | 1<<(at%64)
		words[at/64] = w
		if w != ^uint64(0) {
			return
		}
		at /= 64
	}
}

// free marks the position as free; it may be already.
func (s *space) free(at uint64) {
	if !s.has(at) {
		return
	}
	s.taken--
	s.low = min(s.low, at)
	for _, words := range s.levels {
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

// next returns the lowest free position that is not below from.
func (s *space) next(from uint64) (uint64, bool) {
	at := s.nextOn(0, max(from, s.low))
	if at >= s.size {
		return 0, false
	}
	if from <= s.low {
		s.low = at
	}
	return at, true
}

// nextOn returns the lowest bit of the level, not below from, that is not set; it may lie beyond the size.
func (s *space) nextOn(level int, from uint64) uint64 {
	if level == len(s.levels) {
		return from
	}
	words := s.levels[level]
	if open := ^words[from/64] &^ (1<<(from%64) - 1); open != 0 {
		return from&^63 + uint64(bits.TrailingZeros64(open))
	}
	word := s.nextOn(level+1, from/64+1)
	return word*64 + uint64(bits.TrailingZeros64(^words[word]))
}
