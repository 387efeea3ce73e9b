// Package plan decides what this node should announce. A Planner turns the
// configuration, the Services, their endpoints, the nodes and the links into Bids for
// the election, Routes for the routers and a Layer2Verdict on each Service. It is pure and
// deterministic: the same inputs in any order give the same Plan. A change of a Service
// or its endpoints costs one decision. A change of the configuration, a node or a link
// decides all Services again. Package elect decides which node holds an address.
package plan

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// Inputs has every fact on which a Plan is based.
type Inputs struct {
	// SelfNode is the name of this node.
	SelfNode string
	// LoadBalancerClass is the load balancer class to serve. If it is empty, Services without a
	// class are served.
	LoadBalancerClass string
	// Snapshot is the configuration; nil counts as empty.
	Snapshot *snapshot.Snapshot
	Services map[view.ObjectKey]view.Service
	// Endpoints of each Service; a missing entry means no endpoints.
	Endpoints map[view.ObjectKey]view.Endpoints
	// Nodes are all nodes of the cluster by name.
	Nodes map[string]view.Node
	// UsableLinks are the links of this node on which frames can be sent.
	UsableLinks facts.LinkSet
	// DownLinks are the links of this node that are down or without carrier.
	DownLinks facts.LinkSet
	// PublishedLinksByNode are what other nodes say about their links, by name.
	PublishedLinksByNode map[string]*facts.PublishedLinks
	// ProxyRulesStateByService has the state of the service proxy for the Services with endpoints
	// on this node. nil before the first Update: the proxy then counts as ready for all of them.
	ProxyRulesStateByService map[view.ObjectKey]ProxyRulesState
	// FitnessOfNodes is what the nodes say of their own fitness.
	FitnessOfNodes FitnessOfNodes
	// RawSocketsDenied means that the links are unusable because raw sockets are not permitted.
	RawSocketsDenied bool
}

// Plan is what this node should announce now. It and everything that its lists point to are
// immutable: Plans share what did not change.
type Plan struct {
	// Bids has one entry for each layer 2 address that some node may hold, sorted by address.
	Bids SortedList[intent.Bid]
	// Layer2Verdicts has one entry for each Service of our class, sorted by Service.
	Layer2Verdicts SortedList[*Layer2Verdict]
	// Peers are this node's BGP peers, sorted by name. Routes are what it announces to
	// them, sorted by prefix.
	Peers  []intent.Peer
	Routes []*intent.Route
	// BGPVerdicts has one entry for each Service of our class, sorted by Service.
	BGPVerdicts SortedList[*BGPVerdict]
	// HealthChecks are the Services for which the service proxy of this node has to say whether it
	// knows their endpoints here, sorted by Service.
	HealthChecks []intent.HealthCheck
	// NodeUnavailableReason is why the node announces nothing at all: NodeNetworkUnavailable,
	// NodeExcluded or NodeLeaving. It is empty if the node may announce.
	NodeUnavailableReason names.Reason
	// NodeUnfitReason is why other nodes should serve rather than this one, for all or for some
	// addresses; empty if it is fit.
	NodeUnfitReason names.Reason
	// NodeLeaving means that the node is excluded or drained and has to stop serving.
	// Routes still has its routes.
	NodeLeaving bool
	// NodeInternalIPs are the node's internal addresses in the Kubernetes API.
	NodeInternalIPs []netip.Addr
}

// Layer2Verdict says whether this node may announce a Service by layer 2, and why not.
type Layer2Verdict struct {
	Service   view.ObjectKey
	Addresses []netip.Addr
	// IsSelfCandidate means that this node takes part in the election for one of the addresses at
	// least. Reason is then ReasonNotHolder; for the holder, ReasonAnnounced replaces it.
	IsSelfCandidate bool
	// CandidateCount is how many nodes may hold an address of the Service.
	CandidateCount int
	Reason         names.Reason
	// RequestedHolderFault says why the node that the Service asks for cannot hold the addresses.
	// It is zero if the node can, or if the Service asks for none.
	RequestedHolderFault names.Explanation
}

func (v *Layer2Verdict) equal(o *Layer2Verdict) bool {
	return v.IsSelfCandidate == o.IsSelfCandidate && v.CandidateCount == o.CandidateCount && v.Reason == o.Reason && v.RequestedHolderFault == o.RequestedHolderFault && slices.Equal(v.Addresses, o.Addresses)
}

// BidDelta is what changed between two Plans.
type BidDelta struct {
	ChangedBids []intent.Bid
	// AddressesWithoutBid are the addresses that have no bid any more, sorted.
	AddressesWithoutBid []netip.Addr
}

// applySortedEdits returns a new sorted list with the changed elements inserted or replaced, and
// the gone ones deleted. All three lists are sorted. It copies the elements between edits in
// blocks, so that one change in a long list costs little.
func applySortedEdits[T any](old, changed, gone []T, compare func(x, y T) int) []T {
	out := make([]T, 0, len(old)+len(changed))
	for len(changed)+len(gone) > 0 {
		var e T
		removed := len(changed) == 0 || (len(gone) > 0 && compare(gone[0], changed[0]) < 0)
		if removed {
			e, gone = gone[0], gone[1:]
		} else {
			e, changed = changed[0], changed[1:]
		}
		// the usual case when everything changed
		i, found := 0, len(old) > 0 && compare(old[0], e) == 0
		if !found {
			i, found = slices.BinarySearchFunc(old, e, compare)
		}
		out = append(out, old[:i]...)
		if !removed {
			out = append(out, e)
		}
		if found {
			i++
		}
		old = old[i:]
	}
	return append(out, old...)
}

func sortedKeysOfServiceSet(set map[view.ObjectKey]struct{}) []view.ObjectKey {
	out := make([]view.ObjectKey, 0, len(set))
	for k := range set {
		out = append(out, k)
	}
	slices.SortFunc(out, view.ObjectKey.Compare)
	return out
}
