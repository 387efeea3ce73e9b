package gobgp

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	packet "github.com/osrg/gobgp/v3/pkg/packet/bgp"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
)

// updateEncoder encodes the UPDATEs of one session.
type updateEncoder struct {
	localASN uint32 // our AS number on this session
	// isRouterInOtherAS is true if the router is in another AS.
	isRouterInOtherAS bool
	// usesFourOctetASN is true if both sides support AS numbers of four octets (RFC 6793).
	usesFourOctetASN   bool
	negotiatedFamilies []message.AFI
	// allowsLinkLocalOnlyNextHop is true if the router takes a link-local next hop in 16 octets.
	allowsLinkLocalOnlyNextHop bool
}

func newUpdateEncoder(n bgp.NegotiatedParameters, asn uint32) *updateEncoder {
	return &updateEncoder{localASN: asn, isRouterInOtherAS: n.RemoteOpen.ASN != asn, usesFourOctetASN: n.FourOctetASN, negotiatedFamilies: n.CommonFamilies, allowsLinkLocalOnlyNextHop: n.AllowsLinkLocalOnlyNextHop}
}

const (
	// maxUpdateContentBytes is the space in an UPDATE for withdrawn
	// routes, attributes and routes together, in bytes.
	maxUpdateContentBytes = message.MaxMessageLength - 19 - 4
)

// encodeUpdates calls emit with each UPDATE that the changes need: withdrawals first, then
// the routes, grouped by attributes. A route that does not fit into an UPDATE is emitted as
// a fault. It sorts changes, and stops at the first error of emit.
func (e *updateEncoder) encodeUpdates(changes []bgp.RouteChange, emit func(update []byte, fault error) error) error {
	changes = slices.DeleteFunc(changes, func(c bgp.RouteChange) bool { return !slices.Contains(e.negotiatedFamilies, message.AFIOf(c.Prefix)) })
	slices.SortFunc(changes, func(x, y bgp.RouteChange) int { return x.Prefix.Compare(y.Prefix) })
	index := map[*bgp.PathAttributes]int{nil: 0} // withdrawals have no attributes
	for _, c := range changes {
		if _, ok := index[c.Attributes]; !ok {
			index[c.Attributes] = len(index)
		}
	}
	byGroup := func(x, y bgp.RouteChange) int {
		return cmp.Or(cmp.Compare(index[x.Attributes], index[y.Attributes]), cmp.Compare(message.AFIOf(x.Prefix), message.AFIOf(y.Prefix)))
	}
	if !slices.IsSortedFunc(changes, byGroup) { // usually all have the same attributes
		slices.SortStableFunc(changes, byGroup)
	}
	for len(changes) > 0 {
		first := changes[0]
		n := slices.IndexFunc(changes, func(c bgp.RouteChange) bool {
			return c.Attributes != first.Attributes || message.AFIOf(c.Prefix) != message.AFIOf(first.Prefix)
		})
		if n < 0 {
			n = len(changes)
		}
		if err := e.encodeUpdatesOfAttributeGroup(changes[:n], emit); err != nil {
			return err
		}
		changes = changes[n:]
	}
	return nil
}

// encodeUpdatesOfAttributeGroup calls emit with the UPDATEs of changes of one family and the same
// attributes.
func (e *updateEncoder) encodeUpdatesOfAttributeGroup(group []bgp.RouteChange, emit func(update []byte, fault error) error) error {
	var attributes []packet.PathAttributeInterface
	taken := 0
	if group[0].Attributes != nil {
		attributes = e.buildAttributesWithoutNextHop(group[0].Attributes)
	}
	for _, a := range attributes {
		taken += a.Len()
	}
	for len(group) > 0 {
		left, n := maxUpdateContentBytes-taken-maxMultiprotocolHeaderBytes, 0
		for n < len(group) && left >= encodedPrefixByteCount(group[n].Prefix) {
			left -= encodedPrefixByteCount(group[n].Prefix)
			n++
		}
		if n == 0 {
			return emit(nil, fmt.Errorf("the attributes of %s take %d octets and do not fit into an UPDATE", group[0].Prefix, taken))
		}
		m, err := e.encodeUpdate(group[:n], attributes)
		if err = emit(m, err); err != nil {
			return err
		}
		group = group[n:]
	}
	return nil
}

// maxMultiprotocolHeaderBytes is the longest header of a multiprotocol attribute, in bytes (RFC
// 4760 section 3).
const maxMultiprotocolHeaderBytes = 4 + 2 + 1 + 1 + 32 + 1

// encodedPrefixByteCount returns the length of an encoded prefix in bytes: its
// length octet and the significant octets (RFC 4271 section 4.3).
func encodedPrefixByteCount(p netip.Prefix) int { return 1 + (p.Bits()+7)/8 }

// encodeUpdate returns the UPDATE for some changes of a group.
func (e *updateEncoder) encodeUpdate(group []bgp.RouteChange, attributes []packet.PathAttributeInterface) ([]byte, error) {
	var withdrawn, plain []*packet.IPAddrPrefix
	var multi []packet.AddrPrefixInterface
	family, routeAttributes := message.AFIOf(group[0].Prefix), group[0].Attributes
	classic := family == message.FamilyIPv4 && (routeAttributes == nil || routeAttributes.NextHop.Is4())
	for _, c := range group {
		switch length, text := uint8(c.Prefix.Bits()), c.Prefix.Addr().String(); {
		case classic && routeAttributes == nil:
			withdrawn = append(withdrawn, packet.NewIPAddrPrefix(length, text))
		case classic:
			plain = append(plain, packet.NewIPAddrPrefix(length, text))
		case family == message.FamilyIPv4:
			multi = append(multi, packet.NewIPAddrPrefix(length, text))
		default:
			multi = append(multi, packet.NewIPv6AddrPrefix(length, text))
		}
	}
	switch {
	case classic && routeAttributes != nil:
		attributes = append(slices.Clip(attributes), packet.NewPathAttributeNextHop(routeAttributes.NextHop.String()))
	case !classic && routeAttributes != nil:
		attributes = append(slices.Clip(attributes), e.buildMPReachAttribute(routeAttributes, multi))
	case !classic:
		attributes = []packet.PathAttributeInterface{packet.NewPathAttributeMpUnreachNLRI(multi)}
	}
	// In the order of their types, but multiprotocol routes first: a router finds them so even if
	// another attribute is faulty (RFC 7606 section 5.1).
	slices.SortFunc(attributes, func(x, y packet.PathAttributeInterface) int {
		return cmp.Or(-cmp.Compare(sortRankOfPathAttribute(x), sortRankOfPathAttribute(y)), cmp.Compare(x.GetType(), y.GetType()))
	})
	m, err := packet.NewBGPUpdateMessage(withdrawn, attributes, plain).Serialize()
	if err != nil {
		return nil, fmt.Errorf("encoding the UPDATE for %s: %w", group[0].Prefix, err)
	}
	return m, nil
}

func sortRankOfPathAttribute(a packet.PathAttributeInterface) int {
	if t := a.GetType(); t == packet.BGP_ATTR_TYPE_MP_REACH_NLRI || t == packet.BGP_ATTR_TYPE_MP_UNREACH_NLRI {
		return 1
	}
	return 0
}

// buildMPReachAttribute returns the attribute with multiprotocol routes and their next hop. Without
// a global address the link-local one is sent twice: routers without the link-local capability
// expect 32 octets.
func (e *updateEncoder) buildMPReachAttribute(t *bgp.PathAttributes, routes []packet.AddrPrefixInterface) packet.PathAttributeInterface {
	out := packet.NewPathAttributeMpReachNLRI(t.NextHop.WithZone("").String(), routes)
	switch second := t.LinkLocalNextHop; {
	case second.IsValid():
		out.LinkLocalNexthop = second.WithZone("").AsSlice()
	case t.NextHop.IsLinkLocalUnicast() && !e.allowsLinkLocalOnlyNextHop:
		out.LinkLocalNexthop = t.NextHop.WithZone("").AsSlice()
	}
	return out
}

// buildAttributesWithoutNextHop returns the attributes except the next hop.
func (e *updateEncoder) buildAttributesWithoutNextHop(t *bgp.PathAttributes) []packet.PathAttributeInterface {
	const igp = 0
	out := append([]packet.PathAttributeInterface{packet.NewPathAttributeOrigin(igp)}, e.buildASPathAttribute(t)...)
	if t.HasMED {
		out = append(out, packet.NewPathAttributeMultiExitDisc(t.MED))
	}
	if !e.isRouterInOtherAS {
		out = append(out, packet.NewPathAttributeLocalPref(cmp.Or(t.LocalPref, bgp.DefaultLocalPref)))
	}
	if len(t.Communities) > 0 {
		out = append(out, packet.NewPathAttributeCommunities(t.Communities))
	}
	if len(t.ExtendedCommunities) > 0 {
		var octets []byte
		for _, c := range t.ExtendedCommunities {
			octets = append(octets, c[:]...)
		}
		flags := packet.BGP_ATTR_FLAG_OPTIONAL | packet.BGP_ATTR_FLAG_TRANSITIVE
		out = append(out, packet.NewPathAttributeUnknown(flags, packet.BGP_ATTR_TYPE_EXTENDED_COMMUNITIES, octets))
	}
	if len(t.LargeCommunities) > 0 {
		var large []*packet.LargeCommunity
		for _, c := range t.LargeCommunities {
			large = append(large, packet.NewLargeCommunity(c[0], c[1], c[2]))
		}
		out = append(out, packet.NewPathAttributeLargeCommunities(large))
	}
	return out
}

// buildASPathAttribute returns the AS path. It contains our AS number once for an external router,
// plus the configured prepends. It is empty for an internal router, which would take its own number
// for a loop.
func (e *updateEncoder) buildASPathAttribute(t *bgp.PathAttributes) []packet.PathAttributeInterface {
	if !e.isRouterInOtherAS {
		return []packet.PathAttributeInterface{packet.NewPathAttributeAsPath(nil)}
	}
	times := 1 + int(t.PrependCount)
	const sequence = packet.BGP_ASPATH_ATTR_TYPE_SEQ
	wide := packet.NewAs4PathParam(sequence, slices.Repeat([]uint32{e.localASN}, times))
	if e.usesFourOctetASN {
		return []packet.PathAttributeInterface{packet.NewPathAttributeAsPath([]packet.AsPathParamInterface{wide})}
	}
	narrow := packet.NewAsPathParam(sequence, slices.Repeat([]uint16{message.TwoOctetASN(e.localASN)}, times))
	out := []packet.PathAttributeInterface{packet.NewPathAttributeAsPath([]packet.AsPathParamInterface{narrow})}
	if e.localASN > 0xffff { // the router forwards AS4_PATH unread (RFC 6793 section 4.2.2)
		out = append(out, packet.NewPathAttributeAs4Path([]*packet.As4PathParam{wide}))
	}
	return out
}

func encodeEndOfRIB(f message.AFI) ([]byte, error) {
	family := packet.RF_IPv6_UC
	if f == message.FamilyIPv4 {
		family = packet.RF_IPv4_UC
	}
	return packet.NewEndOfRib(family).Serialize()
}
