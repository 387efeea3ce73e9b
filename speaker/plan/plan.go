// Package plan decides what this node should announce: Build turns the configuration, the Services, their endpoints,
// the nodes and the links into Bids for the election and one Verdict a Service. It is pure and deterministic: the
// same inputs in any order give the same Plan. It knows nothing of who holds an address; that is elect's.
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
	Services map[view.Key]view.Service
	// Endpoints of each Service; an absent entry counts as no endpoints.
	Endpoints map[view.Key]view.Endpoints
	// Nodes are all nodes of the cluster by name.
	Nodes map[string]view.Node
	// Links are the links of this node on which frames can be sent.
	Links facts.LinkSet
	// Denied says that this node's links are unusable because raw sockets are refused.
	Denied bool
}

// Plan is what this node should announce now.
type Plan struct {
	// Bids has one entry for each layer-2 address that some node may hold, sorted by address.
	Bids []intent.Bid
	// Verdicts has one entry for each Service of our class, sorted by Service.
	Verdicts []Verdict
}

// Verdict says whether this node may announce a Service by layer 2, and why not.
type Verdict struct {
	Service   view.Key
	Addresses []netip.Addr
	// Eligible says that this node takes part in the election. Reason is then ReasonNotHolder, to be replaced by
	// ReasonAnnounced for the holder.
	Eligible bool
	// Candidates is how many nodes may hold the addresses.
	Candidates int
	Reason     names.Reason
}

// entry gathers the Services of one address.
type entry struct {
	candidates map[string]int // node -> preference score
	links      []int
}

// Build makes the Plan.
func Build(in Inputs) Plan {
	var p Plan
	keys := make([]view.Key, 0, len(in.Services))
	for k := range in.Services {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, view.Key.Compare)

	entries := map[netip.Addr]*entry{}
	for _, k := range keys {
		s := in.Services[k]
		if !s.LoadBalancer || s.Class != in.Class {
			continue
		}
		d := decide(&in, &s)
		p.Verdicts = append(p.Verdicts, Verdict{
			Service: k, Addresses: s.Assigned, Eligible: d.reason == names.ReasonNotHolder,
			Candidates: len(d.scores), Reason: d.reason,
		})
		if len(d.scores) == 0 {
			continue
		}
		for _, a := range s.Assigned {
			entries[a] = join(entries[a], d, linksFor(&in, d.ads, a))
		}
	}
	p.Bids = bids(&in, entries)
	return p
}

// join adds a Service's candidates to those of the Services that share its address: a node has to be able to serve all
// of them, because one node answers for the address. Where no node can, the first Service in order decides.
func join(e *entry, d decision, links []int) *entry {
	if e == nil {
		return &entry{candidates: d.scores, links: links}
	}
	both := map[string]int{}
	for n, score := range e.candidates {
		if other, ok := d.scores[n]; ok {
			both[n] = score + other
		}
	}
	if len(both) > 0 {
		e.candidates = both
	}
	e.links = append(slices.Clone(e.links), links...)
	slices.Sort(e.links)
	e.links = slices.Compact(e.links)
	return e
}
