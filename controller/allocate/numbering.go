package allocate

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
	"sort"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// address is an IP address as a number of 128 bits, an IPv4 address in its mapped form. It is the
// key of the Ledger: half the size of netip.Addr and without a pointer.
type address struct{ hi, lo uint64 }

const mappedPrefix = 0xffff << 32

func addressOf(a netip.Addr) address {
	b := a.As16()
	return address{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (a address) toNetip() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
	return netip.AddrFrom16(b).Unmap()
}

func (a address) family() view.Family {
	if a.hi == 0 && a.lo>>32 == 0xffff {
		return view.IPv4
	}
	return view.IPv6
}

func (a address) isBelow(o address) bool { return a.hi < o.hi || (a.hi == o.hi && a.lo < o.lo) }

// distanceFrom returns a - o for o <= a. A difference of more than 64 bits is returned as the
// highest number of 64 bits.
func (a address) distanceFrom(o address) uint64 {
	lo, borrow := bits.Sub64(a.lo, o.lo, 0)
	if hi, _ := bits.Sub64(a.hi, o.hi, borrow); hi != 0 {
		return ^uint64(0)
	}
	return lo
}

func (a address) addOffset(n uint64) address {
	lo, carry := bits.Add64(a.lo, n, 0)
	return address{a.hi + carry, lo}
}

// maxPositions bounds the positions of one family of a pool. Addresses beyond are given only when
// requested. At a million addresses per second it takes 290,000 years to get there.
const maxPositions = 1 << 63

// numbering numbers the addresses of one family that a pool may give, in the order in which it
// gives them: range by range, each from its lowest address, without excluded and skipped addresses.
type numbering struct {
	spans          []span // by position
	spansByAddress []span // by address
	positionCount  uint64
	skipsBuggyIPs  bool
}

// span is a contiguous part of a numbering.
type span struct {
	first, last   address
	firstPosition uint64 // the position of first
}

func newNumbering(p *snapshot.Pool, f view.Family) numbering {
	l := numbering{skipsBuggyIPs: p.AvoidBuggyIPs && f == view.IPv4}
	for _, r := range p.AssignableRanges() {
		if view.FamilyOf(r.First) != f {
			continue
		}
		s := span{addressOf(r.First), addressOf(r.Last), l.positionCount}
		n := l.countPositions(s)
		if n == 0 {
			continue
		}
		l.spans = append(l.spans, s)
		l.positionCount = min(l.positionCount+min(n, maxPositions), maxPositions)
		if l.positionCount == maxPositions {
			break
		}
	}
	l.spansByAddress = slices.Clone(l.spans)
	slices.SortFunc(l.spansByAddress, func(x, y span) int {
		if x.first.isBelow(y.first) {
			return -1
		}
		return 1
	})
	return l
}

// The addresses of a /24 that are not skipped are .1 to .254. countUnskipped counts them below n;
// nthUnskipped is its inverse.
func countUnskipped(n uint64) uint64 { return n/256*254 + min(max(n%256, 1)-1, 254) }

func nthUnskipped(n uint64) uint64 { return n/254*256 + n%254 + 1 }

// countPositions returns how many positions the span has.
func (l *numbering) countPositions(s span) uint64 {
	if !l.skipsBuggyIPs {
		n := s.last.distanceFrom(s.first)
		return n + min(1, ^n)
	}
	return countUnskipped(s.last.lo-mappedPrefix+1) - countUnskipped(s.first.lo-mappedPrefix)
}

// positionOf returns the position of a, if the pool may give it.
func (l *numbering) positionOf(a address) (uint64, bool) {
	i := sort.Search(len(l.spansByAddress), func(i int) bool { return a.isBelow(l.spansByAddress[i].first) }) - 1
	if i < 0 || l.spansByAddress[i].last.isBelow(a) {
		return 0, false
	}
	s := l.spansByAddress[i]
	var at uint64
	switch last := a.lo & 255; {
	case !l.skipsBuggyIPs:
		at = a.distanceFrom(s.first)
	case last == 0 || last == 255:
		return 0, false
	default:
		at = countUnskipped(a.lo-mappedPrefix) - countUnskipped(s.first.lo-mappedPrefix)
	}
	if at >= l.positionCount-s.firstPosition {
		return 0, false
	}
	return s.firstPosition + at, true
}

// addressAt returns the address at the position.
func (l *numbering) addressAt(at uint64) address {
	i := sort.Search(len(l.spans), func(i int) bool { return at < l.spans[i].firstPosition }) - 1
	s := l.spans[i]
	if l.skipsBuggyIPs {
		return address{0, mappedPrefix + nthUnskipped(countUnskipped(s.first.lo-mappedPrefix)+at-s.firstPosition)}
	}
	return s.first.addOffset(at - s.firstPosition)
}
