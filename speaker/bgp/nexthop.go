package bgp

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// NodeAddress is an address of one of the node's links.
type NodeAddress struct {
	// AddressWithPrefixLength is the address with its prefix length.
	AddressWithPrefixLength netip.Prefix
	// LinkName is the link with the address. VRFName is the VRF of the link; empty without one.
	LinkName, VRFName string
	// IsTentative is set before the kernel has checked that the address is unique on the link.
	// IsDuplicate is set if another host has it. IsDeprecated is set when its preferred lifetime is
	// over (RFC 4862 section 5.5.4). IsTemporary is set for an address of RFC 8981, which the
	// kernel replaces after some hours.
	IsTentative, IsDuplicate, IsDeprecated, IsTemporary bool
}

// canBeNextHop reports whether traffic to the address reaches this node for as long as its
// configuration stays.
func (a *NodeAddress) canBeNextHop() bool {
	return !a.IsTentative && !a.IsDuplicate && !a.IsDeprecated && !a.IsTemporary &&
		!a.AddressWithPrefixLength.Addr().IsLoopback() && !a.AddressWithPrefixLength.Addr().IsUnspecified()
}

// isHostPrefix reports whether the address has no subnet.
func (a *NodeAddress) isHostPrefix() bool { return a.AddressWithPrefixLength.IsSingleIP() }

// sessionNextHops are the next hops of a session's routes. Each may be invalid.
type sessionNextHops struct {
	ipv4, ipv6 netip.Addr
	// ipv6LinkLocal is the link-local address of the session's link. It is set where the router is
	// on the link, and the session runs over link-local addresses or no other IPv6 address exists.
	ipv6LinkLocal netip.Addr
	// allowsIPv6NextHopForIPv4 is set if IPv4 routes may have an IPv6 next hop (RFC 8950).
	allowsIPv6NextHopForIPv4 bool
}

// listAddresses returns the valid next hops, for the log.
func (h *sessionNextHops) listAddresses() []string {
	var out []string
	for _, a := range []netip.Addr{h.ipv4, h.ipv6, h.ipv6LinkLocal} {
		if a.IsValid() {
			out = append(out, a.String())
		}
	}
	return out
}

// nextHopInputs is what decides the next hops of a session.
type nextHopInputs struct {
	peer *intent.Peer
	// routerAddress and localAddress are the ends of the connection.
	routerAddress, localAddress netip.Addr
	nodeAddresses               []NodeAddress
	nodeInternalIPs             []netip.Addr
	// allowsIPv6NextHopForIPv4 is set if IPv4 routes may have an IPv6 next hop (RFC 8950).
	allowsIPv6NextHopForIPv4 bool
}

// The ranks of addresses as next hops. Lower is better.
const (
	nextHopRankSessionAddress = iota
	nextHopRankInternalIPOnLink
	nextHopRankSubnetOnLink
	nextHopRankInternalIP // on another link
	nextHopRankHostPrefix
	nextHopRankUnusable
)

// chooseNextHops returns the next hops of a session.
func chooseNextHops(in *nextHopInputs) sessionNextHops {
	link, vrf := in.sessionLink()
	out := sessionNextHops{allowsIPv6NextHopForIPv4: in.allowsIPv6NextHopForIPv4}
	ipv4Rank, ipv6Rank := 0, 0
	out.ipv4, ipv4Rank = in.chooseGlobalNextHop(ipfamily.IPv4, link, vrf)
	out.ipv6, ipv6Rank = in.chooseGlobalNextHop(ipfamily.IPv6, link, vrf)
	if ipv6Rank > nextHopRankSubnetOnLink && ipv6Rank != nextHopRankUnusable && in.localAddress.IsLinkLocalUnicast() {
		out.ipv6 = netip.Addr{} // the router may have no route to another link
	}
	if linkLocal := in.chooseLinkLocalNextHop(link); in.localAddress.Is6() && in.localAddress.IsLinkLocalUnicast() || !out.ipv6.IsValid() {
		out.ipv6LinkLocal = linkLocal
	}
	hasIPv6 := out.ipv6.IsValid() || out.ipv6LinkLocal.IsValid()
	if out.ipv4.IsValid() && in.allowsIPv6NextHopForIPv4 && hasIPv6 && !in.peer.NextHopIPv4.IsValid() && (in.peer.Unnumbered || ipv4Rank > nextHopRankSubnetOnLink) {
		out.ipv4 = netip.Addr{} // the address of the session's own link is reachable
	}
	return out
}

// sessionLink returns the link on which the router is, or else the link of the session's address,
// and the VRF of both.
func (in *nextHopInputs) sessionLink() (link, vrf string) {
	device := cmp.Or(in.routerAddress.Zone(), in.peer.Device)
	vrf = vrfOfDevice(in.nodeAddresses, device)
	router, local := in.routerAddress.WithZone(""), in.localAddress.WithZone("")
	score := 0
	for i := range in.nodeAddresses {
		a, s := &in.nodeAddresses[i], 0
		switch {
		case a.VRFName != vrf:
		case router.IsLinkLocalUnicast() && a.LinkName == device:
			s = 3
		case !router.IsLinkLocalUnicast() && !a.isHostPrefix() && a.AddressWithPrefixLength.Contains(router):
			s = 2
		case a.AddressWithPrefixLength.Addr() == local:
			s = 1
		}
		if s > score {
			link, score = a.LinkName, s
		}
	}
	return link, vrf
}

// chooseGlobalNextHop returns the best global next hop of a family, with its rank.
func (in *nextHopInputs) chooseGlobalNextHop(f ipfamily.Family, link, vrf string) (netip.Addr, int) {
	configured := in.peer.NextHopIPv4
	if f == ipfamily.IPv6 {
		configured = in.peer.NextHopIPv6
	}
	if configured.IsValid() && configured.IsSingleIP() {
		return configured.Addr(), nextHopRankSessionAddress
	}
	best, bestRank := netip.Addr{}, nextHopRankUnusable
	known := false
	for i := range in.nodeAddresses {
		a := &in.nodeAddresses[i]
		known = known || a.AddressWithPrefixLength.Addr() == in.localAddress.WithZone("")
		if ipfamily.FamilyOf(a.AddressWithPrefixLength.Addr()) != f || in.isUnusableLinkLocal(a.AddressWithPrefixLength.Addr()) || !a.canBeNextHop() || a.VRFName != vrf {
			continue
		}
		rank := in.rankAsNextHop(a, link)
		if configured.IsValid() {
			if !configured.Contains(a.AddressWithPrefixLength.Addr()) {
				continue
			}
			rank = min(rank, nextHopRankHostPrefix)
		}
		if rank < bestRank || rank == bestRank && rank != nextHopRankUnusable && a.AddressWithPrefixLength.Addr().Less(best) {
			best, bestRank = a.AddressWithPrefixLength.Addr(), rank
		}
	}
	local := in.localAddress.WithZone("")
	if !best.IsValid() && !known && !configured.IsValid() && ipfamily.FamilyOf(local) == f && !in.isUnusableLinkLocal(local) && !local.IsLoopback() {
		return local, nextHopRankSessionAddress // the addresses could not be read, or are older
	}
	return best, bestRank
}

// isUnusableLinkLocal reports whether an address is link-local, and is no next hop on its own. The
// one of a session over IPv4 is: the router reaches it, and it needs no zone.
func (in *nextHopInputs) isUnusableLinkLocal(a netip.Addr) bool {
	return a.IsLinkLocalUnicast() && (a.Is6() || a != in.localAddress)
}

// rankAsNextHop returns the rank of an address that can be a next hop.
func (in *nextHopInputs) rankAsNextHop(a *NodeAddress, link string) int {
	address, onLink := a.AddressWithPrefixLength.Addr(), a.LinkName == link
	switch {
	case address == in.localAddress && (!a.isHostPrefix() || address == in.peer.SourceAddress || !in.linkHasSubnetAddress(a)):
		return nextHopRankSessionAddress
	case onLink && !a.isHostPrefix() && slices.Contains(in.nodeInternalIPs, address):
		return nextHopRankInternalIPOnLink
	case onLink && !a.isHostPrefix():
		return nextHopRankSubnetOnLink
	case slices.Contains(in.nodeInternalIPs, address):
		return nextHopRankInternalIP
	case onLink || address == in.localAddress:
		return nextHopRankHostPrefix
	}
	return nextHopRankUnusable
}

// linkHasSubnetAddress reports whether the link of an address has an address of the family with a
// subnet. The one without a subnet may then belong to a service that moves between nodes.
func (in *nextHopInputs) linkHasSubnetAddress(a *NodeAddress) bool {
	return slices.ContainsFunc(in.nodeAddresses, func(b NodeAddress) bool {
		return b.LinkName == a.LinkName && b.AddressWithPrefixLength.Addr().Is4() == a.AddressWithPrefixLength.Addr().Is4() && !b.isHostPrefix() &&
			!b.AddressWithPrefixLength.Addr().IsLinkLocalUnicast() && b.canBeNextHop()
	})
}

// chooseLinkLocalNextHop returns the link-local address of the session's link. It is invalid if the
// router is not on the link.
func (in *nextHopInputs) chooseLinkLocalNextHop(link string) netip.Addr {
	if in.peer.NextHopIPv6.IsValid() {
		return netip.Addr{}
	}
	if local := in.localAddress.WithZone(""); local.Is6() && local.IsLinkLocalUnicast() {
		return local
	}
	onLink := false
	best := netip.Addr{}
	for i := range in.nodeAddresses {
		a := &in.nodeAddresses[i]
		if a.LinkName != link {
			continue
		}
		onLink = onLink || !a.isHostPrefix() && a.AddressWithPrefixLength.Contains(in.routerAddress.WithZone(""))
		if address := a.AddressWithPrefixLength.Addr(); address.Is6() && address.IsLinkLocalUnicast() && a.canBeNextHop() && (!best.IsValid() || address.Less(best)) {
			best = address
		}
	}
	if !onLink {
		return netip.Addr{}
	}
	return best
}

// nextHopOfFamily returns the next hop of routes of a family, and the link-local address that goes
// with it. Both are invalid if there is none.
func (h sessionNextHops) nextHopOfFamily(f message.AFI) (nextHop, linkLocal netip.Addr) {
	switch {
	case f == message.FamilyIPv4 && h.ipv4.IsValid():
		return h.ipv4, netip.Addr{}
	case f == message.FamilyIPv4 && !h.allowsIPv6NextHopForIPv4:
		return netip.Addr{}, netip.Addr{}
	case h.ipv6.IsValid():
		return h.ipv6, h.ipv6LinkLocal
	}
	return h.ipv6LinkLocal, netip.Addr{}
}

// announceableFamilies returns the families of the established session whose routes are announced:
// they have a next hop, BFD does not hold them back, and a leaving node has not withdrawn them.
func (w *peerWorker) announceableFamilies() []message.AFI {
	var out []message.AFI
	rules := w.currentExportRules()
	for _, f := range rules.families {
		if nextHop, _ := rules.nextHops.nextHopOfFamily(f); nextHop.IsValid() && !rules.waitsForBFD && rules.shutdownPhase != routesWithdrawnForShutdown {
			out = append(out, f)
		}
	}
	return out
}

// isInSubnetOfVRFLink reports whether an address belongs to a network of one of the node's links in
// the VRF of a session.
func isInSubnetOfVRFLink(all []NodeAddress, device string, address netip.Addr) bool {
	vrf := vrfOfDevice(all, device)
	address = address.WithZone("")
	return slices.ContainsFunc(all, func(a NodeAddress) bool {
		return a.VRFName == vrf && !a.isHostPrefix() && a.AddressWithPrefixLength.Contains(address)
	})
}

// vrfOfDevice returns the VRF of a device, which is a link or the VRF itself; empty without one.
func vrfOfDevice(all []NodeAddress, device string) (vrf string) {
	for i := range all {
		if device != "" && (all[i].LinkName == device || all[i].VRFName == device) {
			vrf = all[i].VRFName
		}
	}
	return vrf
}
