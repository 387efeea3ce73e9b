package allocate

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
	"sort"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// address is an IP address as a number of 128 bits, an IPv4 address in its mapped form. It is the
// key of the Ledger: half the size of netip.Addr and without a pointer.
type address struct{ highBits, lowBits uint64 }

const ipv4MappedPrefix = 0xffff << 32

func addressFromNetip(a netip.Addr) address {
	b := a.As16()
	return address{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (a address) toNetip() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.highBits)
	binary.BigEndian.PutUint64(b[8:], a.lowBits)
	return netip.AddrFrom16(b).Unmap()
}

func (a address) family() ipfamily.Family {
	if a.highBits == 0 && a.lowBits>>32 == 0xffff {
		return ipfamily.IPv4
	}
	return ipfamily.IPv6
}

func (a address) isBelow(o address) bool {
	return a.highBits < o.highBits || (a.highBits == o.highBits && a.lowBits < o.lowBits)
}

// distanceFrom returns a - o for o <= a. A difference of more than 64 bits is returned as the
// highest number of 64 bits.
func (a address) distanceFrom(o address) uint64 {
	lo, borrow := bits.Sub64(a.lowBits, o.lowBits, 0)
	if hi, _ := bits.Sub64(a.highBits, o.highBits, borrow); hi != 0 {
		return ^uint64(0)
	}
	return lo
}

func (a address) addOffset(n uint64) address {
	lo, carry := bits.Add64(a.lowBits, n, 0)
	return address{a.highBits + carry, lo}
}

// maxAddressPositions bounds the positions of one family of a pool. Addresses beyond are given only
// when requested. At a million addresses per second it takes 290,000 years to get there.
const maxAddressPositions = 1 << 63

// addressNumbering numbers the addresses of one family that a pool may give, in the order in which
// it gives them: range by range, each from its lowest address, without excluded and skipped
// addresses.
type addressNumbering struct {
	spansSortedByPosition []addressSpan // by position
	spansSortedByAddress  []addressSpan // by address
	positionCount         uint64
	skipsDotZeroAndDot255 bool
}

// addressSpan is a contiguous part of a numbering.
type addressSpan struct {
	first, last   address
	firstPosition uint64 // the position of first
}

func newAddressNumbering(p *snapshot.Pool, f ipfamily.Family) addressNumbering {
	l := addressNumbering{skipsDotZeroAndDot255: p.AvoidBuggyIPs && f == ipfamily.IPv4}
	for _, r := range p.AssignableRanges() {
		if ipfamily.FamilyOf(r.First) != f {
			continue
		}
		s := addressSpan{addressFromNetip(r.First), addressFromNetip(r.Last), l.positionCount}
		n := l.countSpanPositions(s)
		if n == 0 {
			continue
		}
		l.spansSortedByPosition = append(l.spansSortedByPosition, s)
		l.positionCount = min(l.positionCount+min(n, maxAddressPositions), maxAddressPositions)
		if l.positionCount == maxAddressPositions {
			break
		}
	}
	l.spansSortedByAddress = slices.Clone(l.spansSortedByPosition)
	slices.SortFunc(l.spansSortedByAddress, func(x, y addressSpan) int {
		if x.first.isBelow(y.first) {
			return -1
		}
		return 1
	})
	return l
}

// The addresses of a /24 that are not skipped are .1 to .254. countNonBuggyIPsBelowOffset
// counts them below n; offsetOfNonBuggyIP is its inverse.
func countNonBuggyIPsBelowOffset(n uint64) uint64 {
	return n/256*254 + min(max(n%256, 1)-1, 254)
}

func offsetOfNonBuggyIP(n uint64) uint64 { return n/254*256 + n%254 + 1 }

// countSpanPositions returns how many positions the span has.
func (l *addressNumbering) countSpanPositions(s addressSpan) uint64 {
	if !l.skipsDotZeroAndDot255 {
		n := s.last.distanceFrom(s.first)
		return n + min(1, ^n)
	}
	return countNonBuggyIPsBelowOffset(s.last.lowBits-ipv4MappedPrefix+1) - countNonBuggyIPsBelowOffset(s.first.lowBits-ipv4MappedPrefix)
}

// positionOfAddress returns the position of a, if the pool may give it.
func (l *addressNumbering) positionOfAddress(a address) (uint64, bool) {
	i := sort.Search(len(l.spansSortedByAddress), func(i int) bool { return a.isBelow(l.spansSortedByAddress[i].first) }) - 1
	if i < 0 || l.spansSortedByAddress[i].last.isBelow(a) {
		return 0, false
	}
	s := l.spansSortedByAddress[i]
	var at uint64
	switch last := a.lowBits & 255; {
	case !l.skipsDotZeroAndDot255:
		at = a.distanceFrom(s.first)
	case last == 0 || last == 255:
		return 0, false
	default:
		at = countNonBuggyIPsBelowOffset(a.lowBits-ipv4MappedPrefix) - countNonBuggyIPsBelowOffset(s.first.lowBits-ipv4MappedPrefix)
	}
	if at >= l.positionCount-s.firstPosition {
		return 0, false
	}
	return s.firstPosition + at, true
}

// addressAtPosition returns the address at the position.
func (l *addressNumbering) addressAtPosition(at uint64) address {
	i := sort.Search(len(l.spansSortedByPosition), func(i int) bool { return at < l.spansSortedByPosition[i].firstPosition }) - 1
	s := l.spansSortedByPosition[i]
	if l.skipsDotZeroAndDot255 {
		return address{0, ipv4MappedPrefix + offsetOfNonBuggyIP(countNonBuggyIPsBelowOffset(s.first.lowBits-ipv4MappedPrefix)+at-s.firstPosition)}
	}
	return s.first.addOffset(at - s.firstPosition)
}
