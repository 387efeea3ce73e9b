// Package facts holds values that say what is true: links, members, and what the engines report. Producers build a new
// value for each change and never touch it again. It imports the standard library alone.
package facts

import (
	"fmt"
	"net/netip"
)

// MAC is an Ethernet address.
type MAC [6]byte

// String returns the usual notation, "02:00:00:00:00:01".
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// Link is a network interface of the node, usable for layer 2: up, with carrier, an Ethernet address, no master,
// able to broadcast, and not excluded by name.
type Link struct {
	Index int
	Name  string
	MAC   MAC
	// Prefixes are the addresses of the link with the lengths of their subnets, sorted.
	Prefixes []netip.Prefix
	// Gateways are the next hops of the default routes through this link, sorted.
	Gateways []netip.Addr
	// PreferredGateways are those of the Gateways whose routes have the lowest metric of all of the node's default routes of the
	// family: the others wait for these to go.
	PreferredGateways []netip.Addr
	// ResolvedGateways are those of the gateways whose Ethernet addresses the kernel knows, sorted by address.
	ResolvedGateways []Neighbour
	// NoIPv4 and Without6 say that frames of IPv4, of IPv6, cannot be sent on this link.
	NoIPv4, NoIPv6 bool
}

// Neighbour is another host on a link.
type Neighbour struct {
	Address netip.Addr
	MAC     MAC
}

// CanCarry says whether an address can be answered for on the link.
func (l Link) CanCarry(a netip.Addr) bool {
	if a.Is4() {
		return !l.NoIPv4
	}
	return !l.NoIPv6
}

// SkipReason says why a network interface is no Link.
type SkipReason string

// The reasons to skip an interface, Used where there is none.
const (
	NotSkipped        SkipReason = ""
	SkippedUsual      SkipReason = "usual"       // by a name that container networks and tunnels use
	SkippedExcluded   SkipReason = "excluded"    // by another name
	SkippedDown       SkipReason = "down"        // or without carrier
	SkippedMember     SkipReason = "member"      // of a bridge, bond or VRF, which speaks for it
	SkippedNoEthernet SkipReason = "no Ethernet" // or no ARP, or no broadcast
)

// SkippedLink is a network interface that is no Link.
type SkippedLink struct {
	Name   string
	Reason SkipReason
}

// LinkSet is all usable links, sorted by index.
type LinkSet []Link

// FindByIndex returns the link of that index.
func (s LinkSet) FindByIndex(index int) (Link, bool) {
	for _, l := range s {
		if l.Index == index {
			return l, true
		}
	}
	return Link{}, false
}

// Member is a participant of the gossip, named as its Kubernetes node.
type Member struct {
	Name    string
	Address netip.Addr
	// Nonce tells one life of the member's process from the next.
	Nonce uint64
	// MACs are the Ethernet addresses of the member's usable links, sorted.
	MACs []MAC
}

// MemberSet is all live members, this node included, sorted by name.
type MemberSet struct {
	Members []Member
	// Synced says that one full exchange of state with another member has been done since the start.
	Synced bool
}

// HasMember says whether a member of that name is alive.
func (s MemberSet) HasMember(name string) bool {
	for _, m := range s.Members {
		if m.Name == name {
			return true
		}
	}
	return false
}

// ProbeResult is what asking the wire for an address gave.
type ProbeResult struct {
	ID      uint64
	Address netip.Addr
	// Answers are the Ethernet addresses that answered, each once; none of this node's own.
	Answers []MAC
	// RivalProbers are the Ethernet addresses of those who asked meanwhile whether they may use the address themselves
	// (RFC 5227 section 2.1.1), each once; none of this node's own.
	RivalProbers []MAC
	// NotSent says that no link could carry the question: no answer is then no silence.
	NotSent bool
}

// Conflict says that a host other than this node spoke for an address that this node answers for.
type Conflict struct {
	Address netip.Addr
	MAC     MAC
	Link    int
}
