// Package forwarding decides where this node sends packets of TCP connections that it does not
// know. When an address moves, the connections that are open stay with their former holder, which
// has their state. The new holder forwards their packets.
//
// All nodes know the holder of an address and its former holders in the same order, newest first.
// Each of them forwards only to a later one of this order, and what another node has forwarded is
// never sent back up. So no packet goes round in circles.
//
// The package is pure. It knows nothing of how the kernel is told.
package forwarding

import (
	"bytes"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/steering"
)

// Inputs are what a Forwarding is based on.
type Inputs struct {
	SelfNode string
	Holders  []elect.Holder
	Services map[view.ObjectKey]*steering.Service
	// AddressesByNode are the nodes' own addresses. A node without an entry is gone.
	AddressesByNode map[string][]netip.Addr
	// MACsByNode are the Ethernet addresses of the nodes with speakers.
	MACsByNode map[string][]facts.MAC
	// IsDead reports whether a node is dead.
	IsDead func(node string) bool
	// LinksOf returns the links on which packets for an address may arrive by ARP and NDP; none if
	// they may also arrive otherwise.
	LinksOf func(netip.Addr) facts.LinkSet
	// IsLeaving is set when this node hands over all addresses, because its speaker stops.
	IsLeaving bool
}

// Decide returns what should be forwarded.
func Decide(in Inputs) intent.Forwarding {
	services := map[netip.Addr][]*steering.Service{}
	for _, s := range in.Services {
		for _, a := range s.Addresses {
			services[a] = append(services[a], s)
		}
	}
	var out intent.Forwarding
	for _, h := range in.Holders {
		mayServe := func(node string) bool {
			return node != in.SelfNode && !in.IsDead(node) && canServe(services[h.Address], node)
		}
		if !canServe(services[h.Address], "") {
			continue
		}
		unknown, fromMembers, isStandby := nodesToAsk(h, in.SelfNode, in.IsLeaving)
		for _, l := range in.LinksOf(h.Address) {
			out.Addresses = append(out.Addresses, intent.ForwardedAddress{
				Address: h.Address, LinkIndex: l.Index, IsStandby: isStandby,
				IsEndOfChain:     in.isEndOfChain(h),
				NextHop:          in.firstReachable(h.Address, l, unknown, mayServe),
				NextHopOfMembers: in.firstReachable(h.Address, l, fromMembers, mayServe),
			})
		}
	}
	slices.SortFunc(out.Addresses, intent.ForwardedAddress.Compare)
	for node, macs := range in.MACsByNode {
		for _, m := range macs {
			if node != in.SelfNode {
				out.MemberMACs = append(out.MemberMACs, m)
			}
		}
	}
	slices.SortFunc(out.MemberMACs, func(x, y [6]byte) int { return bytes.Compare(x[:], y[:]) })
	out.MemberMACs = slices.Compact(out.MemberMACs)
	return out
}

// orderOf returns the holder and its former holders, newest first, each once.
func orderOf(h elect.Holder) []string {
	order := []string{h.Node}
	for _, n := range h.FormerHolders {
		if !slices.Contains(order, n) { // two that ask each other would send a packet in a circle
			order = append(order, n)
		}
	}
	return order
}

// nodesToAsk returns the nodes that may know a connection, the best first: for packets of clients,
// and for those that another node has forwarded. While another node holds the address, this node
// asks the holder first, so that the rules are right from the moment at which it takes the address.
func nodesToAsk(h elect.Holder, self string, isLeaving bool) (unknown, fromMembers []string, isStandby bool) {
	order := orderOf(h)
	i := slices.Index(order, self)
	switch {
	case i == 0 && !isLeaving: // nobody is above it: what comes from others went astray
		return order[1:], nil, false
	case i >= 0:
		return order, order[i+1:], i > 0
	}
	return order, nil, true
}

// isEndOfChain reports whether this node is the oldest former holder that lives. A holder that
// leaves counts as one, since the next holder forwards to it.
func (in *Inputs) isEndOfChain(h elect.Holder) bool {
	order := orderOf(h)
	i := slices.Index(order, in.SelfNode)
	return (i > 0 || i == 0 && in.IsLeaving) && !slices.ContainsFunc(order[i+1:], func(n string) bool { return !in.IsDead(n) })
}

// firstReachable returns the address on a link of the first of the nodes that may serve; invalid
// without any.
func (in *Inputs) firstReachable(a netip.Addr, l facts.Link, nodes []string, mayServe func(string) bool) netip.Addr {
	for _, n := range nodes {
		if !mayServe(n) {
			continue
		}
		for _, hop := range in.AddressesByNode[n] {
			if hop.Is4() == a.Is4() && l.CoversAddress(hop) {
				return hop
			}
		}
	}
	return netip.Addr{}
}

// canServe reports whether kube-proxy on the node serves connections to one of the Services; on any
// node if the name is empty. With the traffic policy Local it needs an endpoint there.
func canServe(all []*steering.Service, node string) bool {
	return slices.ContainsFunc(all, func(s *steering.Service) bool {
		return s.Traffic != nil || s.HasLocalPolicy && (node == "" || slices.ContainsFunc(s.Slices, func(slice view.EndpointSlice) bool {
			return slice.WithAddresses != nil && slices.ContainsFunc(slice.WithAddresses.Endpoints, func(e view.SliceEndpoint) bool { return e.Node == node })
		}))
	})
}
