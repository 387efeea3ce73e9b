package snapshot

import (
	"cmp"
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
	"sort"
)

// rangeIndex finds the range that overlaps another one. Its ranges do not overlap. Finding and
// inserting cost little more with many ranges than with few: the ranges of each family are sorted
// and divided into chunks of at most maxRangesPerChunk, so that an insertion moves one chunk only.
// The zero value is empty.
type rangeIndex struct {
	ranges     []poolRange
	ipv4, ipv6 []rangeChunk
}

// areEntriesSoundAndDisjoint says whether every entry of the pools can be served and overlaps no
// other one. It sorts them once, which costs less than to insert each of them into a rangeIndex.
func areEntriesSoundAndDisjoint(pools []parsedPool) bool {
	count := 0
	for i := range pools {
		count += len(pools[i].entries)
	}
	// the first address is the upper half of the number, the last one the lower half
	ipv4 := make([]uint64, 0, count)
	var ipv6 []numericAddressRange
	for i := range pools {
		for j := range pools[i].entries {
			e := &pools[i].entries[j]
			if e.err != nil || e.specialPurpose != "" {
				return false
			}
			first, last := addressNumberOf(e.First), addressNumberOf(e.Last)
			if e.First.Is4() {
				ipv4 = append(ipv4, first.low<<32|last.low&math.MaxUint32)
			} else {
				ipv6 = append(ipv6, numericAddressRange{first: first, last: last})
			}
		}
	}
	slices.Sort(ipv4)
	for i := 1; i < len(ipv4); i++ {
		if ipv4[i]>>32 <= ipv4[i-1]&math.MaxUint32 {
			return false
		}
	}
	slices.SortFunc(ipv6, func(x, y numericAddressRange) int {
		return cmp.Or(cmp.Compare(x.first.high, y.first.high), cmp.Compare(x.first.low, y.first.low))
	})
	for i := 1; i < len(ipv6); i++ {
		if !ipv6[i-1].last.isBelow(ipv6[i].first) {
			return false
		}
	}
	return true
}

// rangeChunk is a sorted part of the ranges of one family. It is never empty.
type rangeChunk []numericAddressRange

// numericAddressRange is a range with numbers for its ends, which are faster to compare than
// addresses.
type numericAddressRange struct {
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
	e := numericAddressRange{addressNumberOf(r.First), addressNumberOf(r.Last), len(x.ranges)}
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
