// Package intent holds values that say what should be true: they pass from plan to the engines, which share no other
// package. It imports the standard library alone, so that the engines stay free of Kubernetes.
package intent

import (
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strconv"
)

// Candidates are the nodes that may hold an address. The value is immutable: the bids of many addresses share it, so
// that a bid costs the same in a large cluster as in a small one.
type Candidates struct {
	// Nodes are the names, sorted.
	Nodes []string
	// Scores are the preferences of the nodes, in their order; higher ones are preferred.
	Scores []int
	// Key is the same for the same nodes and scores, whoever built the value.
	Key uint64
}

// NewCandidates returns the Candidates for the scores of nodes by name; nil when there are none.
func NewCandidates(scores map[string]int) *Candidates {
	if len(scores) == 0 {
		return nil
	}
	c := &Candidates{Nodes: slices.Sorted(maps.Keys(scores)), Scores: make([]int, len(scores))}
	h := fnv.New64a()
	for i, n := range c.Nodes {
		c.Scores[i] = scores[n]
		h.Write(strconv.AppendInt(append([]byte(n), 0), int64(scores[n]), 10))
	}
	c.Key = h.Sum64()
	return c
}

// HasNode says whether the node, by name, is a candidate.
func (c *Candidates) HasNode(node string) bool {
	if c == nil {
		return false
	}
	_, ok := slices.BinarySearch(c.Nodes, node)
	return ok
}

// Bid is a node's part in the election of one layer-2 address.
type Bid struct {
	Address netip.Addr
	// Candidates are all nodes that may hold the address. Nodes with the same view of the cluster have the same;
	// differing views cost time, never safety.
	Candidates *Candidates
	// Siblings are the other addresses of the same Services: where there is a choice they get different holders.
	Siblings []netip.Addr
	// Links are the indexes of this node's links on which the address is answered for. Empty when this node is no
	// candidate.
	Links []int
	// InGrace says that this node is no candidate any more and can serve for a while still: its endpoints end, and others
	// have begun elsewhere.
	InGrace bool
	// MayRebalance says that the holder may give the address to a node that holds too few, at a slow pace.
	MayRebalance bool
}

// IsEligible says whether this node, by name, may hold the address.
func (b Bid) IsEligible(self string) bool { return b.Candidates.HasNode(self) }

// Equal says whether two bids ask for the same.
func (b Bid) Equal(o Bid) bool {
	same := b.Candidates == o.Candidates || (b.Candidates != nil && o.Candidates != nil && b.Candidates.Key == o.Candidates.Key)
	return same && b.Address == o.Address && b.MayRebalance == o.MayRebalance && b.InGrace == o.InGrace && slices.Equal(b.Links, o.Links) && slices.Equal(b.Siblings, o.Siblings)
}

// Binding is an address to be answered for on a set of links: what the layer-2 engine does.
type Binding struct {
	Address netip.Addr
	// Links are link indexes, sorted.
	Links []int
}
