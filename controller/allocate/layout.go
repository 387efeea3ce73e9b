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

// address is an IP address as a number of 128 bits, an IPv4 address in its mapped form. It is the key of the Ledger: half the size of
// netip.Addr and without a pointer.
type address struct{ hi, lo uint64 }

const mapped = 0xffff << 32

func addressOf(a netip.Addr) address {
	b := a.As16()
	return address{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (a address) netip() netip.Addr {
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

func (a address) less(o address) bool { return a.hi < o.hi || (a.hi == o.hi && a.lo < o.lo) }

// minus returns a - o for o <= a, or the highest number of 64 bits when it is more than that.
func (a address) minus(o address) uint64 {
	lo, borrow := bits.Sub64(a.lo, o.lo, 0)
	if hi, _ := bits.Sub64(a.hi, o.hi, borrow); hi != 0 {
		return ^uint64(0)
	}
	return lo
}

func (a address) plus(n uint64) address {
	lo, carry := bits.Add64(a.lo, n, 0)
	return address{a.hi + carry, lo}
}

// maxPositions bounds the positions of one family of a pool: what lies beyond is given only when it is asked for. Giving
// a million a second it takes 290,000 years to get there.
const maxPositions = 1 << 63

// layout numbers the addresses of one family that a pool may give, in the order in which it gives them: the Ranges in
// theirs, each from its lowest address, without those that are excluded or avoided.
type layout struct {
	spans  []span // by position
	byAddr []span // by address
	size   uint64
	avoids bool
}

// span is an unbroken piece of a layout.
type span struct {
	first, last address
	at          uint64 // the position of first
}

func newLayout(p *snapshot.Pool, f view.Family) layout {
	l := layout{avoids: p.AvoidBuggyIPs && f == view.IPv4}
	for _, r := range p.AssignableRanges() {
		if view.FamilyOf(r.First) != f {
			continue
		}
		s := span{addressOf(r.First), addressOf(r.Last), l.size}
		n := l.count(s)
		if n == 0 {
			continue
		}
		l.spans = append(l.spans, s)
		l.size = min(l.size+min(n, maxPositions), maxPositions)
		if l.size == maxPositions {
			break
		}
	}
	l.byAddr = slices.Clone(l.spans)
	slices.SortFunc(l.byAddr, func(x, y span) int {
		if x.first.less(y.first) {
			return -1
		}
		return 1
	})
	return l
}

// The addresses of a /24 that are not avoided are .1 to .254; sound counts them below n, and nth is its inverse.
func sound(n uint64) uint64 { return n/256*254 + min(max(n%256, 1)-1, 254) }

func nth(n uint64) uint64 { return n/254*256 + n%254 + 1 }

// count returns how many positions the span has.
func (l *layout) count(s span) uint64 {
	if !l.avoids {
		n := s.last.minus(s.first)
		return n + min(1, ^n)
	}
	return sound(s.last.lo-mapped+1) - sound(s.first.lo-mapped)
}

// position returns where a stands, if the pool may give it.
func (l *layout) position(a address) (uint64, bool) {
	i := sort.Search(len(l.byAddr), func(i int) bool { return a.less(l.byAddr[i].first) }) - 1
	if i < 0 || l.byAddr[i].last.less(a) {
		return 0, false
	}
	s := l.byAddr[i]
	var at uint64
	switch last := a.lo & 255; {
	case !l.avoids:
		at = a.minus(s.first)
	case last == 0 || last == 255:
		return 0, false
	default:
		at = sound(a.lo-mapped) - sound(s.first.lo-mapped)
	}
	if at >= l.size-s.at {
		return 0, false
	}
	return s.at + at, true
}

// address returns what stands at the position.
func (l *layout) address(at uint64) address {
	i := sort.Search(len(l.spans), func(i int) bool { return at < l.spans[i].at }) - 1
	s := l.spans[i]
	if l.avoids {
		return address{0, mapped + nth(sound(s.first.lo-mapped)+at-s.at)}
	}
	return s.first.plus(at - s.at)
}
