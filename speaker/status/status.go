// Package status decides what a speaker writes about itself: Build turns the Plan and what is held into the
// ServiceL2Status entries that this node stands for, and Stale names the entries of others that it has to remove. It is
// pure; reconcile writes.
package status

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// Entry says that a node announces a Service by layer 2.
type Entry struct {
	Service view.Key
	Node    string
}

// Name is the name of the entry's object: the same for the same node and Service, whoever writes it.
func (e Entry) Name() string {
	sum := sha256.Sum256([]byte(e.Service.String() + "@" + e.Node))
	return "l2-" + hex.EncodeToString(sum[:8])
}

// Compare orders entries by Service, then node.
func (e Entry) Compare(o Entry) int {
	if c := e.Service.Compare(o.Service); c != 0 {
		return c
	}
	switch {
	case e.Node < o.Node:
		return -1
	case e.Node > o.Node:
		return 1
	}
	return 0
}

// Build returns the entries of this node, sorted: one for each Service of which it holds an address.
func Build(self string, p plan.Plan, held []netip.Addr) []Entry {
	var out []Entry
	for _, v := range p.Verdicts {
		if slices.ContainsFunc(v.Addresses, func(a netip.Addr) bool { return slices.Contains(held, a) }) {
			out = append(out, Entry{Service: v.Service, Node: self})
		}
	}
	slices.SortFunc(out, Entry.Compare)
	return out
}

// Diff compares what should be written with what exists. An existing entry goes when it is this node's and no longer
// wanted, or another node's for a Service of which this node holds every address: the holder clears up after
// a node that died.
func Diff(self string, want, have []Entry, whole func(view.Key) bool) (create, remove []Entry) {
	for _, e := range want {
		if !slices.Contains(have, e) {
			create = append(create, e)
		}
	}
	for _, e := range have {
		mine := e.Node == self
		wanted := slices.ContainsFunc(want, func(w Entry) bool { return w.Service == e.Service })
		if (mine && !slices.Contains(want, e)) || (!mine && wanted && whole(e.Service)) {
			remove = append(remove, e)
		}
	}
	return create, remove
}

// Whole says whether this node holds every one of the Service's addresses.
func Whole(p plan.Plan, held []netip.Addr, k view.Key) bool {
	for _, v := range p.Verdicts {
		if v.Service == k {
			return !slices.ContainsFunc(v.Addresses, func(a netip.Addr) bool { return !slices.Contains(held, a) })
		}
	}
	return false
}
