package facts

import (
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/internal/ethernet"
)

// PublishedLinks describe the links of a node as far as other nodes need it to judge whether the
// node can answer for an address. They are immutable.
type PublishedLinks struct {
	// RawSocketsDenied is set when the node may not open raw sockets, so that it can answer for no
	// address.
	RawSocketsDenied bool
	// IsIncomplete is set when there was no room for all links.
	IsIncomplete bool
	// HasIPv4 is set when a link of the node has an IPv4 address.
	HasIPv4 bool
	Links   []PublishedLink
}

// PublishedLink is one link in PublishedLinks.
type PublishedLink struct {
	// NameHash is the LinkNameHash of the name.
	NameHash uint32
	// IsDown is set when the link is down or without carrier.
	IsDown bool
	// IsVirtualRouter is set when the Ethernet address belongs to a virtual router.
	IsVirtualRouter bool
	// CannotSendIPv4 and CannotSendIPv6 are set when the node cannot answer for the family there.
	CannotSendIPv4, CannotSendIPv6 bool
	// Subnets are the subnets of the link, sorted, without link-local ones and those of one
	// address.
	Subnets []netip.Prefix
}

// linkNameHashMask keeps a hash within 3 bytes.
const linkNameHashMask = 1<<24 - 1

// LinkNameHash is the hash of the name of a link that nodes publish. Two names with the same hash
// cost time only: a node may wait for another one that cannot answer.
func LinkNameHash(name string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(name))
	sum := h.Sum32()
	return (sum ^ sum>>24) & linkNameHashMask
}

// NewPublishedLinks describes the links of this node: the usable ones, and those that are down.
func NewPublishedLinks(usable, down LinkSet) *PublishedLinks {
	out := &PublishedLinks{}
	for _, l := range slices.Concat(usable, down) {
		d := PublishedLink{
			NameHash: LinkNameHash(l.Name), IsDown: l.IsDown, IsVirtualRouter: l.HasVirtualRouterMAC(),
			CannotSendIPv4: l.CannotSendIPv4, CannotSendIPv6: l.CannotSendIPv6 || !l.hasIPv6Address(),
		}
		out.HasIPv4 = out.HasIPv4 || slices.ContainsFunc(l.AddressesWithPrefixLength, func(p netip.Prefix) bool { return p.Addr().Is4() })
		d.Subnets = l.Subnets()
		out.Links = append(out.Links, d)
	}
	return out
}

// Subnets returns the subnets of the link, sorted, without link-local ones and those of one
// address.
func (l Link) Subnets() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range l.AddressesWithPrefixLength {
		if !p.Addr().IsLinkLocalUnicast() && !p.IsSingleIP() {
			out = append(out, p.Masked())
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// HasFamilyOf reports whether the node has an address of the family of a. It may have an IPv4
// address on a link that is not usable, such as the loopback: nodeAddresses are those that
// Kubernetes knows of.
func (n *PublishedLinks) HasFamilyOf(a netip.Addr, nodeAddresses []netip.Addr) bool {
	if a.Is4() {
		return n.HasIPv4 || len(nodeAddresses) == 0 || slices.ContainsFunc(nodeAddresses, netip.Addr.Is4)
	}
	return slices.ContainsFunc(n.Links, func(l PublishedLink) bool { return l.CanSendFamilyOf(a) })
}

// hasIPv6Address reports whether the link has an IPv6 address; a link-local one is enough. Without
// one the kernel drops what arrives on the link for an IPv6 address.
func (l Link) hasIPv6Address() bool {
	return slices.ContainsFunc(l.AddressesWithPrefixLength, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// HasVirtualRouterMAC reports whether the Ethernet address of the link belongs to a virtual router
// (RFC 9568 section 7.3). Several nodes may have a link with this address, on the segment of
// another link.
func (l Link) HasVirtualRouterMAC() bool {
	return ethernet.IsVirtualRouterAddress(l.MAC[:])
}

// CanSendFamilyOf reports whether the node can answer for the address on the link.
func (d PublishedLink) CanSendFamilyOf(a netip.Addr) bool {
	if a.Is4() {
		return !d.CannotSendIPv4
	}
	return !d.CannotSendIPv6
}

// HasName reports whether the link may have this name.
func (d PublishedLink) HasName(name string) bool { return LinkNameHash(name) == d.NameHash }

// HasVirtualRouterMAC reports whether the Ethernet address belongs to a virtual router.
func (d PublishedLink) HasVirtualRouterMAC() bool { return d.IsVirtualRouter }

// CoversAddress reports whether a subnet of the link covers the address.
func (d PublishedLink) CoversAddress(a netip.Addr) bool {
	return slices.ContainsFunc(d.Subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Equal reports whether both describe the same.
func (n *PublishedLinks) Equal(o *PublishedLinks) bool {
	if n == nil || o == nil {
		return n == o
	}
	return n.RawSocketsDenied == o.RawSocketsDenied && n.IsIncomplete == o.IsIncomplete && n.HasIPv4 == o.HasIPv4 &&
		slices.EqualFunc(n.Links, o.Links, func(x, y PublishedLink) bool {
			return x.NameHash == y.NameHash && x.IsDown == y.IsDown && x.IsVirtualRouter == y.IsVirtualRouter &&
				x.CannotSendIPv4 == y.CannotSendIPv4 && x.CannotSendIPv6 == y.CannotSendIPv6 && slices.Equal(x.Subnets, y.Subnets)
		})
}

// PublishedNode is what a member tells all others about its node.
type PublishedNode struct {
	// LinkMACs are the Ethernet addresses of its usable links, the most important ones first.
	LinkMACs []MAC
	// MaxMessageFormat is the highest version of the messages between speakers that it reads.
	MaxMessageFormat byte
	// Links are nil until they are known.
	Links *PublishedLinks
}
