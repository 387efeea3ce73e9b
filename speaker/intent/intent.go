// Package intent holds values that describe what should be: the planner passes them to the engines.
// The package imports only the standard library, so that the engines do not depend on Kubernetes.
package intent

import (
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strconv"
)

// Candidates are the nodes that may hold an address. The value is immutable. The bids of many
// addresses share it, so that a bid costs the same in a large cluster as in a small one.
type Candidates struct {
	// Nodes are their names, sorted.
	Nodes []string
	// PreferenceScores are the preferences of the nodes, in the same order. Nodes with a higher
	// score are preferred.
	PreferenceScores []int
	// ContentHash is a hash. It is the same on all nodes for the same nodes and scores.
	ContentHash uint64
}

// NewCandidates returns the Candidates for scores by node. It returns nil without any node.
func NewCandidates(scores map[string]int) *Candidates {
	if len(scores) == 0 {
		return nil
	}
	c := &Candidates{Nodes: slices.Sorted(maps.Keys(scores)), PreferenceScores: make([]int, len(scores))}
	h := fnv.New64a()
	for i, n := range c.Nodes {
		c.PreferenceScores[i] = scores[n]
		h.Write(strconv.AppendInt(append([]byte(n), 0), int64(scores[n]), 10))
	}
	c.ContentHash = h.Sum64()
	return c
}

// HasNode reports whether the node is a candidate.
func (c *Candidates) HasNode(node string) bool {
	if c == nil {
		return false
	}
	_, ok := slices.BinarySearch(c.Nodes, node)
	return ok
}

// Bid is a node's part in the election of the holder of one address.
type Bid struct {
	Address netip.Addr
	// Candidates are all nodes that may hold the address. They are the same on all nodes with the
	// same view of the cluster. Different views cost time and never safety.
	Candidates *Candidates
	// SiblingAddresses are the other addresses of the same Services. If possible they get different
	// holders.
	SiblingAddresses []netip.Addr
	// OwnLinkIndexes are the indexes of this node's links on which it would answer. Empty if this
	// node is not a candidate, or if its service proxy does not know the endpoints here yet.
	OwnLinkIndexes []int
	// InEndpointGracePeriod is set while this node is no candidate any more but can still serve:
	// its last endpoint is ending, and other nodes have new ones.
	InEndpointGracePeriod bool
	// MayRebalance allows the holder to move the address to a node with too few addresses.
	MayRebalance bool
	// WireCheck says what the answer of a host does while no node holds the address.
	WireCheck WireCheckMode
}

// WireCheckMode says what the answer of a host does to an address that a node wants to take.
type WireCheckMode uint8

// The values of WireCheck, the strictest first.
const (
	// WireCheckEnforce: nobody takes the address while a host answers.
	WireCheckEnforce WireCheckMode = iota
	// WireCheckWarn: the node takes the address and reports the host.
	WireCheckWarn
	// WireCheckOff: the node takes the address.
	WireCheckOff
)

// IsCandidate reports whether the node with this name may hold the address.
func (b Bid) IsCandidate(self string) bool { return b.Candidates.HasNode(self) }

// Equal reports whether two bids have the same content.
func (b Bid) Equal(o Bid) bool {
	sameCandidates := b.Candidates == o.Candidates ||
		(b.Candidates != nil && o.Candidates != nil && b.Candidates.ContentHash == o.Candidates.ContentHash)
	return sameCandidates && b.Address == o.Address && b.MayRebalance == o.MayRebalance && b.WireCheck == o.WireCheck &&
		b.InEndpointGracePeriod == o.InEndpointGracePeriod && slices.Equal(b.OwnLinkIndexes, o.OwnLinkIndexes) && slices.Equal(b.SiblingAddresses, o.SiblingAddresses)
}

// Binding is an address with the links on which to answer for it. It is what the layer-2 engine
// applies.
type Binding struct {
	Address netip.Addr
	// LinkIndexes are link indexes, sorted.
	LinkIndexes []int
	// IsUnannounced is set while the node answers for the address and does not announce it yet.
	IsUnannounced bool
}

// HealthCheck asks the service proxy of this node how many endpoints of a Service it knows here.
type HealthCheck struct {
	// ID is different for each time that the question comes up, also for one Service.
	ID uint64
	// ServiceNamespace and ServiceName are those of the Service.
	ServiceNamespace, ServiceName string
	// HealthCheckNodePort is the Service's healthCheckNodePort; 0 if it has none, so that nothing
	// answers.
	HealthCheckNodePort uint16
	// NodeIPv4 and NodeIPv6 are this node's addresses at which to ask. A service proxy treats each
	// family on its own. An address is invalid if the Service has none of the family.
	NodeIPv4, NodeIPv6 netip.Addr
}
