// Package intent holds values that say what should be true: they pass from plan to the engines, which share no other
// package. It imports the standard library alone, so that the engines stay free of Kubernetes.
package intent

import "net/netip"

// Bid is a node's part in the election of one layer-2 address.
type Bid struct {
	Address netip.Addr
	// Candidates are the names of all nodes that may hold the address, best first. Nodes with the same view of
	// the cluster compute the same list; differing views cost time, never safety.
	Candidates []string
	// Links are the indexes of this node's links on which the address is answered for. Empty when this node is no
	// candidate.
	Links []int
}

// Eligible says whether this node, by name, may hold the address.
func (b Bid) Eligible(self string) bool {
	for _, c := range b.Candidates {
		if c == self {
			return true
		}
	}
	return false
}

// Claim is an address to be answered for on a set of links: what the layer-2 engine does.
type Claim struct {
	Address netip.Addr
	// Links are link indexes, sorted.
	Links []int
}
