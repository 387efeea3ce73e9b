package snapshot

import (
	"math"
	"math/big"
)

// CountAssignableAddresses counts the addresses of the pool by family, without avoided and excluded
// ones. A count above math.MaxInt64 is returned as math.MaxInt64.
func (p *Pool) CountAssignableAddresses() (ipv4, ipv6 int64) {
	for _, r := range p.AssignableRanges() {
		n := r.addressCount()
		if r.First.Is4() {
			if p.AvoidBuggyIPs {
				n -= r.countDotZeroAndDot255Addresses()
			}
			ipv4 = addSaturating(ipv4, n)
			continue
		}
		ipv6 = addSaturating(ipv6, n)
	}
	return ipv4, ipv6
}

func addSaturating(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// addressCount counts the addresses of the Range.
func (r Range) addressCount() int64 {
	first := new(big.Int).SetBytes(r.First.AsSlice())
	n := new(big.Int).SetBytes(r.Last.AsSlice())
	n.Sub(n, first).Add(n, big.NewInt(1))
	if !n.IsInt64() {
		return math.MaxInt64
	}
	return n.Int64()
}

// countDotZeroAndDot255Addresses counts the addresses of an IPv4 Range that end in .0 or .255.
func (r Range) countDotZeroAndDot255Addresses() int64 {
	first, last := r.First.As4(), r.Last.As4()
	lo := int64(first[0])<<24 | int64(first[1])<<16 | int64(first[2])<<8 | int64(first[3])
	hi := int64(last[0])<<24 | int64(last[1])<<16 | int64(last[2])<<8 | int64(last[3])
	// upTo counts the addresses below n that end in .0 or .255.
	upTo := func(n int64) int64 { return (n+255)/256 + n/256 }
	return upTo(hi+1) - upTo(lo)
}
