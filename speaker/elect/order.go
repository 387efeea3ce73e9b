package elect

import (
	"cmp"
	"net/netip"
	"slices"
)

// Order returns the nodes as candidates for the address, best first: by score, highest first, then by rendezvous hash, so
// that addresses spread over nodes of one score and the loss of a node moves only what it held.
func Order(a netip.Addr, nodes []string, score func(string) int) []string {
	out := slices.Clone(nodes)
	slices.SortFunc(out, func(x, y string) int {
		return cmp.Or(cmp.Compare(score(y), score(x)), cmp.Compare(weight(a, y), weight(a, x)), cmp.Compare(x, y))
	})
	return out
}

// weight is the rendezvous hash of an address and a node: FNV-1a over both, then mixed so that near inputs are far apart
// (the finaliser of SplitMix64).
func weight(a netip.Addr, node string) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	b := a.As16()
	for _, c := range b {
		h = (h ^ uint64(c)) * prime
	}
	for i := range len(node) {
		h = (h ^ uint64(node[i])) * prime
	}
	h ^= h >> 30
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 27
	h *= 0x94d049bb133111eb
	return h ^ h>>31
}
