// Package facts holds values that describe what is: links, members, and what the engines report.
// They are immutable. The package imports only the standard library.
package facts

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// MAC is an Ethernet address.
type MAC [6]byte

// String returns the usual notation, such as "02:00:00:00:00:01".
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// Link is a network interface of the node that is usable for layer 2. It is up, has carrier and an
// Ethernet address, can broadcast, has no master, and is not excluded by name. A link that only is
// down or without carrier is marked with IsDown.
type Link struct {
	Index int
	Name  string
	MAC   MAC
	// PortMACs are the Ethernet addresses of the ports of a bond, sorted. It may send with them.
	PortMACs []MAC
	// AddressesWithPrefixLength are the addresses of the link with their prefix lengths, sorted.
	AddressesWithPrefixLength []netip.Prefix
	// DefaultGateways are the next hops of the default routes through this link, sorted.
	DefaultGateways []netip.Addr
	// LowestMetricDefaultGateways are the Gateways whose routes have the lowest metric of all
	// default routes of the family on the node. The kernel uses the others only when these are
	// gone.
	LowestMetricDefaultGateways []netip.Addr
	// GatewaysWithKnownMAC are the Gateways with an Ethernet address in the kernel's neighbour
	// table, sorted by address.
	GatewaysWithKnownMAC []LinkNeighbour
	// IsDown is set when the link is down or without carrier. Such a link is not usable.
	IsDown bool
	// CannotSendIPv4 and CannotSendIPv6 are set when frames of the family cannot be sent on this
	// link.
	CannotSendIPv4, CannotSendIPv6 bool
}

// MACsToSendWith returns the Ethernet addresses with which the link may send: its own one, and
// those of its ports.
func (l *Link) MACsToSendWith() []MAC { return append([]MAC{l.MAC}, l.PortMACs...) }

// LinkNeighbour is another host on a link.
type LinkNeighbour struct {
	Address netip.Addr
	MAC     MAC
}

// CanSendFamilyOf reports whether the node can answer for an address of this family on the link.
func (l Link) CanSendFamilyOf(a netip.Addr) bool {
	if a.Is4() {
		return !l.CannotSendIPv4
	}
	return !l.CannotSendIPv6 && l.hasIPv6Address()
}

// HasAddressOfFamilyOf reports whether the link has an address of the family of a.
func (l Link) HasAddressOfFamilyOf(a netip.Addr) bool {
	return slices.ContainsFunc(l.AddressesWithPrefixLength, func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() })
}

// InterfaceIndex returns the Index of the link.
func (l Link) InterfaceIndex() int { return l.Index }

// InterfaceName returns the Name of the link.
func (l Link) InterfaceName() string { return l.Name }

// CoversAddress reports whether a subnet of the link covers the address.
func (l Link) CoversAddress(a netip.Addr) bool {
	return slices.ContainsFunc(l.AddressesWithPrefixLength, func(p netip.Prefix) bool { return p.Contains(a) })
}

// SubnetReservingAddress returns the IPv4 subnet of the link of which the address is the network or
// the broadcast address. Hosts of that subnet cannot connect to it (RFC 1122 section 3.2.1.3). A
// subnet of one or two addresses has neither (RFC 3021).
func (l Link) SubnetReservingAddress(a netip.Addr) (netip.Prefix, bool) {
	for _, p := range l.AddressesWithPrefixLength {
		if a.Is4() && p.Bits() <= 30 && p.Contains(a) && (a == p.Masked().Addr() || !p.Contains(a.Next())) {
			return p.Masked(), true
		}
	}
	return netip.Prefix{}, false
}

// SkipReason is why a network interface is not a Link.
type SkipReason string

// The values of SkipReason. NotSkipped is that of a Link.
const (
	NotSkipped SkipReason = ""
	// its name is usual for container networks and tunnels
	SkippedContainerNetwork SkipReason = "usual"
	SkippedExcludedByName   SkipReason = "excluded" // by another name
	SkippedDownOrNoCarrier  SkipReason = "down"     // or without carrier
	// of a bridge or bond, which is used instead
	SkippedMemberOfMaster       SkipReason = "member"
	SkippedNotBroadcastEthernet SkipReason = "no Ethernet" // or no ARP, or no broadcast
)

// SkippedLink is a network interface that is not a Link.
type SkippedLink struct {
	Name   string
	Reason SkipReason
}

// LinkSet is links of the node, sorted by index.
type LinkSet []Link

// SplitUsableAndDown returns the usable links and those that are down.
func (s LinkSet) SplitUsableAndDown() (usable, down LinkSet) {
	usable = LinkSet{}
	for _, l := range s {
		if l.IsDown {
			down = append(down, l)
		} else {
			usable = append(usable, l)
		}
	}
	return usable, down
}

// FindByIndex returns the link with that index.
func (s LinkSet) FindByIndex(index int) (Link, bool) {
	for _, l := range s {
		if l.Index == index {
			return l, true
		}
	}
	return Link{}, false
}

// Member is a member of the gossip. It has the name of its Kubernetes node.
type Member struct {
	Name    string
	Address netip.Addr
	// RunNonce identifies one run of the member's process.
	RunNonce uint64
	// LinkMACs are the Ethernet addresses of the member's usable links.
	LinkMACs []MAC
	// MaxMessageFormat is the highest version of the messages between speakers that the member
	// reads; 0 if it does not say.
	MaxMessageFormat byte
	// Links describe the member's links; nil if they are not known.
	Links *PublishedLinks
}

// MemberSet is all live members including this node, sorted by name.
type MemberSet struct {
	Members []Member
	// HasExchangedFullState is set after the first full exchange of state with another member.
	HasExchangedFullState bool
	// VanishedAtByMember is when former members vanished that did not say that they leave. It has
	// those of the last minute or so, and only members that would have said it.
	VanishedAtByMember map[string]time.Time
}

// HasMember reports whether a member of that name is alive.
func (s MemberSet) HasMember(name string) bool {
	for _, m := range s.Members {
		if m.Name == name {
			return true
		}
	}
	return false
}

// ProbeResult is the result of a probe for an address.
type ProbeResult struct {
	ID      uint64
	Address netip.Addr
	// AnsweringMACs are the Ethernet addresses that answered, each once, without those of this
	// node.
	AnsweringMACs []MAC
	// RivalProberMACs are the Ethernet addresses of hosts that probed for the address at the same
	// time (RFC 5227 section 2.1.1), each once, without those of this node.
	RivalProberMACs []MAC
	// NoFrameSent is set when no link could send the probe. No answer then means nothing.
	NoFrameSent bool
}

// Conflict reports that another host answers for an address that this node answers for (RFC 5227
// section 2.4).
type Conflict struct {
	Address    netip.Addr
	ForeignMAC MAC
	LinkIndex  int
}

// ServiceHealthCheckResult is what the service proxy of this node says about a Service.
type ServiceHealthCheckResult struct {
	// ID is that of the intent.HealthCheck.
	ID uint64
	// Namespace and Name are those of the Service.
	Namespace, Name string
	Outcome         ServiceHealthCheckOutcome
}

// ServiceHealthCheckOutcome says whether the service proxy knows endpoints of the Service on this
// node.
type ServiceHealthCheckOutcome uint8

// The values of ServiceHealthCheckOutcome. ProxyKnowsEndpoints and ProxySilent are final.
const (
	// ProxyLacksEndpoints: for one family of the Service, it knows none.
	ProxyLacksEndpoints ServiceHealthCheckOutcome = iota + 1
	// ProxyKnowsEndpoints: for each family of the Service, it knows at least one.
	ProxyKnowsEndpoints
	// ProxySilent: for one family, nothing has answered for a while, and nothing will.
	ProxySilent
)
