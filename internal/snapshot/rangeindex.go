package snapshot

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"sort"
)

// rangeIndex finds the range that overlaps another one. Its ranges do not overlap. Finding and
// inserting cost little more with many ranges than with few: the ranges of each family are sorted
// and divided into chunks of at most maxRangesPerChunk, so that an insertion moves one chunk only.
// The zero value is empty.
type rangeIndex struct {
	// hasNoOverlap says that no range that will ever be inserted overlaps another one, so that
	// nothing needs to be found.
	hasNoOverlap bool
	ranges       []poolRange
	ipv4, ipv6   []rangeChunk
}

// newRangeIndex returns an empty index for the entries of all pools. It sorts them once, which
// costs less than to insert each of them, to see whether any entry is faulty or overlaps another.
func newRangeIndex(entriesByPool [][]parsedEntry) *rangeIndex {
	count := 0
	for _, entries := range entriesByPool {
		count += len(entries)
	}
	all := make([]indexedRange, 0, count)
	for _, entries := range entriesByPool {
		for i := range entries {
			e := &entries[i]
			// Its pool may keep previous ranges, which are not among these.
			if e.err != nil || e.specialPurpose != "" {
				return &rangeIndex{}
			}
			all = append(all, indexedRange{first: addressNumberOf(e.First), last: addressNumberOf(e.Last)})
		}
	}
	slices.SortFunc(all, func(x, y indexedRange) int {
		return cmp.Or(cmp.Compare(x.first.high, y.first.high), cmp.Compare(x.first.low, y.first.low))
	})
	for i := 1; i < len(all); i++ {
		if !all[i-1].last.isBelow(all[i].first) {
			return &rangeIndex{}
		}
	}
	return &rangeIndex{hasNoOverlap: true}
}

// rangeChunk is a sorted part of the ranges of one family. It is never empty.
type rangeChunk []indexedRange

// indexedRange is a range with numbers for its ends, which are faster to compare than addresses.
type indexedRange struct {
	first, last addressNumber
	index       int // in rangeIndex.ranges
}

const maxRangesPerChunk = 128

// addressNumber is an address as a number of 128 bits.
type addressNumber struct{ high, low uint64 }

func addressNumberOf(a netip.Addr) addressNumber {
	b := a.As16()
	return addressNumber{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (n addressNumber) isBelow(o addressNumber) bool {
	return n.high < o.high || n.high == o.high && n.low < o.low
}

func (x *rangeIndex) chunksForFamily(a netip.Addr) *[]rangeChunk {
	if a.Is4() {
		return &x.ipv4
	}
	return &x.ipv6
}

// findOverlap returns the range that overlaps r, the lowest one if there are several.
func (x *rangeIndex) findOverlap(r Range) (poolRange, bool) {
	if x.hasNoOverlap {
		return poolRange{}, false
	}
	chunks := *x.chunksForFamily(r.First)
	first, last := addressNumberOf(r.First), addressNumberOf(r.Last)
	c := sort.Search(len(chunks), func(i int) bool { return !chunks[i][len(chunks[i])-1].last.isBelow(first) })
	if c == len(chunks) {
		return poolRange{}, false
	}
	found := chunks[c][sort.Search(len(chunks[c]), func(i int) bool { return !chunks[c][i].last.isBelow(first) })]
	if last.isBelow(found.first) {
		return poolRange{}, false
	}
	return x.ranges[found.index], true
}

// insertRange adds a range that overlaps none of the others.
func (x *rangeIndex) insertRange(r poolRange) {
	if x.hasNoOverlap {
		return
	}
	e := indexedRange{addressNumberOf(r.First), addressNumberOf(r.Last), len(x.ranges)}
	x.ranges = append(x.ranges, r)
	chunks := x.chunksForFamily(r.First)
	if len(*chunks) == 0 {
		*chunks = []rangeChunk{{e}}
		return
	}
	// the first chunk that ends behind it, or the last one
	c := min(sort.Search(len(*chunks), func(i int) bool { return e.first.isBelow((*chunks)[i][len((*chunks)[i])-1].first) }), len(*chunks)-1)
	chunk := (*chunks)[c]
	at := sort.Search(len(chunk), func(i int) bool { return e.first.isBelow(chunk[i].first) })
	chunk = slices.Insert(chunk, at, e)
	(*chunks)[c] = chunk
	if len(chunk) > maxRangesPerChunk {
		half := len(chunk) / 2
		(*chunks)[c] = chunk[:half:half]
		*chunks = slices.Insert(*chunks, c+1, slices.Clone(chunk[half:]))
	}
}
