package gobgp

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	packet "github.com/osrg/gobgp/v3/pkg/packet/bgp"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/frame"
)

// encoder makes the UPDATEs of one session.
type encoder struct {
	asn uint32 // our number, as the router sees it
	// external says that the router is of another autonomous system, wide that it knows AS numbers of four octets.
	external, wide bool
	families       []frame.Family
}

func newEncoder(a bgp.Agreed, asn uint32) *encoder {
	return &encoder{asn: asn, external: a.Peer.ASN != asn, wide: a.Peer.FourOctet, families: a.Families}
}

const (
	// defaultPref is the local preference of routes that none is asked for (as routers have it, too).
	defaultPref = 100
	// room is what of a message is left for the withdrawn routes, the attributes and the routes together.
	room = frame.MaxLen - 19 - 4
)

// updates tells the UPDATEs that the changes need: what is withdrawn first, then the routes, those with the same terms together.
// A route that fits into no message is told as a fault. It stops at the first error of tell, and puts the changes in order.
func (e *encoder) updates(changes []bgp.Change, tell func(message []byte, fault error) error) error {
	changes = slices.DeleteFunc(changes, func(c bgp.Change) bool { return !slices.Contains(e.families, frame.FamilyOf(c.Prefix)) })
	slices.SortFunc(changes, func(x, y bgp.Change) int { return x.Prefix.Compare(y.Prefix) })
	index := map[*bgp.Terms]int{nil: 0} // what is withdrawn has no terms
	for _, c := range changes {
		if _, ok := index[c.Terms]; !ok {
			index[c.Terms] = len(index)
		}
	}
	together := func(x, y bgp.Change) int {
		return cmp.Or(cmp.Compare(index[x.Terms], index[y.Terms]), cmp.Compare(frame.FamilyOf(x.Prefix), frame.FamilyOf(y.Prefix)))
	}
	if !slices.IsSortedFunc(changes, together) { // nearly always all have the same terms
		slices.SortStableFunc(changes, together)
	}
	for len(changes) > 0 {
		first := changes[0]
		n := slices.IndexFunc(changes, func(c bgp.Change) bool {
			return c.Terms != first.Terms || frame.FamilyOf(c.Prefix) != frame.FamilyOf(first.Prefix)
		})
		if n < 0 {
			n = len(changes)
		}
		if err := e.group(changes[:n], tell); err != nil {
			return err
		}
		changes = changes[n:]
	}
	return nil
}

// group tells the UPDATEs of changes of one family to the same terms.
func (e *encoder) group(g []bgp.Change, tell func([]byte, error) error) error {
	var attributes []packet.PathAttributeInterface
	taken := 0
	if g[0].Terms != nil {
		attributes = e.attributes(g[0].Terms)
	}
	for _, a := range attributes {
		taken += a.Len()
	}
	for len(g) > 0 {
		left, n := room-taken-mpHeader, 0
		for n < len(g) && left >= size(g[n].Prefix) {
			left -= size(g[n].Prefix)
			n++
		}
		if n == 0 {
			return tell(nil, fmt.Errorf("the attributes of %s take %d octets, more than an UPDATE has room for", g[0].Prefix, taken))
		}
		m, err := e.message(g[:n], attributes)
		if err = tell(m, err); err != nil {
			return err
		}
		g = g[n:]
	}
	return nil
}

// mpHeader is what a multiprotocol attribute takes at most beside its routes (RFC 4760 section 3).
const mpHeader = 4 + 2 + 1 + 1 + 16 + 1

// size is what a prefix takes in a message: its length, and the octets that are not zero by it (RFC 4271 section 4.3).
func size(p netip.Prefix) int { return 1 + (p.Bits()+7)/8 }

// message is the UPDATE about some changes of a group.
func (e *encoder) message(g []bgp.Change, attributes []packet.PathAttributeInterface) ([]byte, error) {
	var withdrawn, plain []*packet.IPAddrPrefix
	var multi []packet.AddrPrefixInterface
	of, terms := frame.FamilyOf(g[0].Prefix), g[0].Terms
	classic := of == frame.IPv4 && (terms == nil || terms.NextHop.Is4())
	for _, c := range g {
		switch length, text := uint8(c.Prefix.Bits()), c.Prefix.Addr().String(); {
		case classic && terms == nil:
			withdrawn = append(withdrawn, packet.NewIPAddrPrefix(length, text))
		case classic:
			plain = append(plain, packet.NewIPAddrPrefix(length, text))
		case of == frame.IPv4:
			multi = append(multi, packet.NewIPAddrPrefix(length, text))
		default:
			multi = append(multi, packet.NewIPv6AddrPrefix(length, text))
		}
	}
	switch {
	case classic && terms != nil:
		attributes = append(slices.Clip(attributes), packet.NewPathAttributeNextHop(terms.NextHop.String()))
	case !classic && terms != nil:
		attributes = append(slices.Clip(attributes), packet.NewPathAttributeMpReachNLRI(terms.NextHop.WithZone("").String(), multi))
	case !classic:
		attributes = []packet.PathAttributeInterface{packet.NewPathAttributeMpUnreachNLRI(multi)}
	}
	slices.SortFunc(attributes, func(x, y packet.PathAttributeInterface) int { return cmp.Compare(x.GetType(), y.GetType()) })
	m, err := packet.NewBGPUpdateMessage(withdrawn, attributes, plain).Serialize()
	if err != nil {
		return nil, fmt.Errorf("making the UPDATE for %s: %w", g[0].Prefix, err)
	}
	return m, nil
}

// attributes are those of routes with some terms, but their next hop.
func (e *encoder) attributes(t *bgp.Terms) []packet.PathAttributeInterface {
	out := append([]packet.PathAttributeInterface{packet.NewPathAttributeOrigin(0)}, e.path(t)...) // IGP
	if t.HasMED {
		out = append(out, packet.NewPathAttributeMultiExitDisc(t.MED))
	}
	if !e.external {
		out = append(out, packet.NewPathAttributeLocalPref(cmp.Or(t.LocalPref, defaultPref)))
	}
	if len(t.Communities) > 0 {
		out = append(out, packet.NewPathAttributeCommunities(t.Communities))
	}
	if len(t.Extended) > 0 {
		var octets []byte
		for _, c := range t.Extended {
			octets = append(octets, c[:]...)
		}
		flags := packet.BGP_ATTR_FLAG_OPTIONAL | packet.BGP_ATTR_FLAG_TRANSITIVE
		out = append(out, packet.NewPathAttributeUnknown(flags, packet.BGP_ATTR_TYPE_EXTENDED_COMMUNITIES, octets))
	}
	if len(t.Large) > 0 {
		var large []*packet.LargeCommunity
		for _, c := range t.Large {
			large = append(large, packet.NewLargeCommunity(c[0], c[1], c[2]))
		}
		out = append(out, packet.NewPathAttributeLargeCommunities(large))
	}
	return out
}

// path is the AS path: our number as often as is due and asked for, where the router is external; among ourselves only as
// often as asked for.
func (e *encoder) path(t *bgp.Terms) []packet.PathAttributeInterface {
	times := int(t.Prepend)
	if e.external {
		times++
	}
	if times == 0 {
		return []packet.PathAttributeInterface{packet.NewPathAttributeAsPath(nil)}
	}
	const sequence = packet.BGP_ASPATH_ATTR_TYPE_SEQ
	wide := packet.NewAs4PathParam(sequence, slices.Repeat([]uint32{e.asn}, times))
	if e.wide {
		return []packet.PathAttributeInterface{packet.NewPathAttributeAsPath([]packet.AsPathParamInterface{wide})}
	}
	narrow := packet.NewAsPathParam(sequence, slices.Repeat([]uint16{frame.Narrow(e.asn)}, times))
	out := []packet.PathAttributeInterface{packet.NewPathAttributeAsPath([]packet.AsPathParamInterface{narrow})}
	if e.asn > 0xffff { // the router passes on what it cannot read (RFC 6793 section 4.2.2)
		out = append(out, packet.NewPathAttributeAs4Path([]*packet.As4PathParam{wide}))
	}
	return out
}

func endOfRIB(f frame.Family) ([]byte, error) {
	family := packet.RF_IPv6_UC
	if f == frame.IPv4 {
		family = packet.RF_IPv4_UC
	}
	return packet.NewEndOfRib(family).Serialize()
}
