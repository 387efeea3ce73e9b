// Package plan decides what this node should announce: a Planner turns the configuration, the Services, their endpoints,
// the nodes and the links into Bids for the election, Routes for the routers and a Verdict on each Service. It is pure and deterministic: the same
// inputs in any order give the same Plan. A change costs what it touches: one Service is decided anew when it or its
// endpoints change, all of them only when the configuration, a node or a link does. It knows nothing of who holds an
// address; that is elect's.
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

// Inputs is every fact that a Plan rests on.
type Inputs struct {
	// Self is the name of this node.
	Self string
	// Class is the load balancer class to serve; empty serves Services without a class.
	Class string
	// Snapshot is the configuration; nil counts as empty.
	Snapshot *snapshot.Snapshot
	Services map[view.ObjectKey]view.Service
	// Endpoints of each Service; an absent entry counts as no endpoints.
	Endpoints map[view.ObjectKey]view.Endpoints
	// Nodes are all nodes of the cluster by name.
	Nodes map[string]view.Node
	// Links are the links of this node on which frames can be sent.
	Links facts.LinkSet
	// RawSocketsDenied says that this node's links are unusable because raw sockets are refused.
	RawSocketsDenied bool
}

// Plan is what this node should announce now. It is immutable, and what its lists point to with it: Plans share what did not change.
type Plan struct {
	// Bids has one entry for each layer-2 address that some node may hold, sorted by address.
	Bids SortedList[intent.Bid]
	// Verdicts has one entry for each Service of our class, sorted by Service.
	Verdicts SortedList[*Verdict]
	// Peers are the routers that this node peers with, sorted by name; Routes what it announces to them, sorted by prefix.
	Peers  []intent.Peer
	Routes []*intent.Route
	// BGP has one entry for each Service of our class, sorted by Service.
	BGP SortedList[*BGPVerdict]
	// Leaving says that the node is to stop serving: it is excluded or drained. Its routes are still among Routes.
	Leaving bool
}

// Verdict says whether this node may announce a Service by layer 2, and why not.
type Verdict struct {
	Service   view.ObjectKey
	Addresses []netip.Addr
	// Eligible says that this node takes part in the election. Reason is then ReasonNotHolder, to be replaced by
	// ReasonAnnounced for the holder.
	Eligible bool
	// Candidates is how many nodes may hold the addresses.
	Candidates int
	Reason     names.Reason
}

func (v *Verdict) equal(o *Verdict) bool {
	return v.Eligible == o.Eligible && v.Candidates == o.Candidates && v.Reason == o.Reason && slices.Equal(v.Addresses, o.Addresses)
}

// Delta is what changed between two Plans.
type Delta struct {
	Changed []intent.Bid
	// Gone are the addresses without a bid now, sorted.
	Gone []netip.Addr
}

// Build makes the Plan of inputs that are all there at once.
func Build(in Inputs) Plan {
	p := NewPlanner(in)
	p.Update()
	return p.Plan()
}

// mergeEdits returns a sorted list with what changed in it put in, and what is gone taken out; the old list stays as it is. All
// three are sorted. What lies between is copied in pieces, so that one change in a long list costs little.
func mergeEdits[T any](old, changed, gone []T, compare func(x, y T) int) []T {
	out := make([]T, 0, len(old)+len(changed))
	for len(changed)+len(gone) > 0 {
		var e T
		removed := len(changed) == 0 || (len(gone) > 0 && compare(gone[0], changed[0]) < 0)
		if removed {
			e, gone = gone[0], gone[1:]
		} else {
			e, changed = changed[0], changed[1:]
		}
		i, found := 0, len(old) > 0 && compare(old[0], e) == 0 // as where everything changed
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

func sortedServices(set map[view.ObjectKey]struct{}) []view.ObjectKey {
	out := make([]view.ObjectKey, 0, len(set))
	for k := range set {
		out = append(out, k)
	}
	slices.SortFunc(out, view.ObjectKey.Compare)
	return out
}
