package gobgp

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	packet "github.com/osrg/gobgp/v3/pkg/packet/bgp"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// exampleNegotiatedParameters returns the result of the OPENs with a router of an AS number.
func exampleNegotiatedParameters(asn uint32, edit func(*bgp.NegotiatedParameters)) bgp.NegotiatedParameters {
	a := bgp.NegotiatedParameters{FourOctetASN: true, RemoteOpen: message.OpenMessage{ASN: asn}, CommonFamilies: []message.AFI{message.FamilyIPv4, message.FamilyIPv6}}
	if edit != nil {
		edit(&a)
	}
	return a
}

// encodeAndDecodeRoutes encodes changes and returns the attributes of
// each prefix as a router decodes them, or "withdrawn".
func encodeAndDecodeRoutes(t *testing.T, e *updateEncoder, changes []bgp.RouteChange) (routes map[string]string, messages int) {
	t.Helper()
	routes = map[string]string{}
	err := e.encodeUpdates(changes, func(m []byte, fault error) error {
		if fault != nil {
			return fault
		}
		messages++
		if len(m) > message.MaxMessageLength {
			t.Fatalf("a message has %d octets", len(m))
		}
		parsed, err := packet.ParseBGPMessage(m, &packet.MarshallingOption{})
		if err != nil {
			return err
		}
		u := parsed.Body.(*packet.BGPUpdate)
		var words, reached, gone []string
		for _, p := range u.NLRI {
			reached = append(reached, p.String())
		}
		for _, p := range u.WithdrawnRoutes {
			gone = append(gone, p.String())
		}
		for _, a := range u.PathAttributes {
			switch a := a.(type) {
			case *packet.PathAttributeMpReachNLRI:
				words = append(words, "via "+a.Nexthop.String())
				if a.LinkLocalNexthop != nil {
					words = append(words, "and "+a.LinkLocalNexthop.String())
				}
				for _, p := range a.Value {
					reached = append(reached, p.String())
				}
			case *packet.PathAttributeMpUnreachNLRI:
				for _, p := range a.Value {
					gone = append(gone, p.String())
				}
			default:
				words = append(words, a.String())
			}
		}
		for _, p := range reached {
			routes[p] = strings.Join(words, " ")
		}
		for _, p := range gone {
			routes[p] = "withdrawn"
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return routes, messages
}

func TestEncodedUpdatesHaveExpectedAttributes(t *testing.T) {
	v4, v6, hop4, hop6 := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/64"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fe80::1%eth0")
	const large = 4200000000
	for name, tc := range map[string]struct {
		asn, router uint32
		edit        func(*bgp.NegotiatedParameters)
		prefix      netip.Prefix
		terms       bgp.PathAttributes
		want        string
	}{
		"an external router gets our AS number once": {64512, 65000, nil, v4, bgp.PathAttributes{NextHop: hop4}, "{Origin: i} {AsPath: 64512} {Nexthop: 10.0.0.1}"},
		"an external router gets no local preference": {
			64512, 65000, nil, v4, bgp.PathAttributes{NextHop: hop4, Attributes: intent.Attributes{LocalPref: 7, MED: 0, HasMED: true, PrependCount: 2}},
			"{Origin: i} {AsPath: 64512 64512 64512} {Nexthop: 10.0.0.1} {Med: 0}",
		},
		"an internal router gets a local preference and no path": {64512, 64512, nil, v4, bgp.PathAttributes{NextHop: hop4}, "{Origin: i} {AsPath: } {Nexthop: 10.0.0.1} {LocalPref: 100}"},
		"an internal router gets no prepended path, which it would take for a loop": {
			64512, 64512, nil, v4, bgp.PathAttributes{NextHop: hop4, Attributes: intent.Attributes{PrependCount: 2}}, "{Origin: i} {AsPath: } {Nexthop: 10.0.0.1} {LocalPref: 100}",
		},
		"the configured local preference": {64512, 64512, nil, v4, bgp.PathAttributes{NextHop: hop4, Attributes: intent.Attributes{LocalPref: 7}}, "{Origin: i} {AsPath: } {Nexthop: 10.0.0.1} {LocalPref: 7}"},
		"IPv6 with a link-local next hop": {64512, 65000, nil, v6, bgp.PathAttributes{NextHop: hop6}, "via fe80::1 and fe80::1 {Origin: i} {AsPath: 64512}"},
		"the same for a router with the link-local capability": {
			64512, 65000, func(a *bgp.NegotiatedParameters) { a.AllowsLinkLocalOnlyNextHop = true }, v6, bgp.PathAttributes{NextHop: hop6}, "via fe80::1 {Origin: i} {AsPath: 64512}",
		},
		"IPv6 with a global and a link-local next hop": {
			64512, 65000, func(a *bgp.NegotiatedParameters) { a.AllowsLinkLocalOnlyNextHop = true }, v6,
			bgp.PathAttributes{NextHop: netip.MustParseAddr("2001:db8::1"), LinkLocalNextHop: hop6}, "via 2001:db8::1 and fe80::1 {Origin: i} {AsPath: 64512}",
		},
		"IPv4 with an IPv6 next hop": {64512, 65000, nil, v4, bgp.PathAttributes{NextHop: hop6}, "via fe80::1 and fe80::1 {Origin: i} {AsPath: 64512}"},
		"a four-octet AS number":     {large, 65000, nil, v4, bgp.PathAttributes{NextHop: hop4}, "{Origin: i} {AsPath: 4200000000} {Nexthop: 10.0.0.1}"},
		"a four-octet AS number for a router that supports two octets": {
			large, 65000, func(a *bgp.NegotiatedParameters) { a.FourOctetASN = false }, v4, bgp.PathAttributes{NextHop: hop4}, "{Origin: i} {AsPath: 23456} {Nexthop: 10.0.0.1} 4200000000",
		},
		"a two-octet AS number for such a router": {64512, 65000, func(a *bgp.NegotiatedParameters) { a.FourOctetASN = false }, v4, bgp.PathAttributes{NextHop: hop4}, "{Origin: i} {AsPath: 64512} {Nexthop: 10.0.0.1}"},
		"every community": {
			64512, 65000, nil, v4,
			bgp.PathAttributes{NextHop: hop4, Attributes: intent.Attributes{Communities: []uint32{1<<16 | 2}, LargeCommunities: [][3]uint32{{1, 2, 3}}, ExtendedCommunities: [][8]byte{{0, 2, 0, 1, 0, 0, 0, 2}}}},
			"{Origin: i} {AsPath: 64512} {Nexthop: 10.0.0.1} {Communities: 1:2} {Extcomms: [1:2]} {LargeCommunity: [ 1:2:3]}",
		},
		"a family that was not negotiated": {64512, 65000, func(a *bgp.NegotiatedParameters) { a.CommonFamilies = a.CommonFamilies[:1] }, v6, bgp.PathAttributes{NextHop: hop6}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := newUpdateEncoder(exampleNegotiatedParameters(tc.router, tc.edit), tc.asn)
			got, _ := encodeAndDecodeRoutes(t, e, []bgp.RouteChange{{Prefix: tc.prefix, Attributes: &tc.terms}})
			if got[tc.prefix.String()] != tc.want {
				t.Errorf("it reads %q, want %q", got[tc.prefix.String()], tc.want)
			}
		})
	}
}

// TestDecodedUpdatesEqualTheAdjRIBOut checks that a router which decodes the UPDATEs has the same
// routes as the AdjRIBOut, and that routes with the same attributes share UPDATEs.
func TestDecodedUpdatesEqualTheAdjRIBOut(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	e := newUpdateEncoder(exampleNegotiatedParameters(65000, nil), 64512)
	many := &bgp.PathAttributes{NextHop: netip.MustParseAddr("10.0.0.1")}
	for i := range 900 {
		many.Communities = append(many.Communities, uint32(i))
	}
	terms := []*bgp.PathAttributes{nil, {NextHop: netip.MustParseAddr("10.0.0.1")}, {NextHop: netip.MustParseAddr("2001:db8::1")}, many}
	var changes []bgp.RouteChange
	want, octets := map[string]string{}, 0
	for i := range 10000 {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		if i%3 == 0 {
			a = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i >> 8), 15: byte(i)})
		}
		c := bgp.RouteChange{Prefix: netip.PrefixFrom(a, a.BitLen()), Attributes: terms[random.IntN(3)]}
		if i < 300 {
			c.Attributes = many
		}
		if a.Is6() && c.Attributes != nil && c.Attributes.NextHop.Is4() {
			c.Attributes = terms[2]
		}
		changes = append(changes, c)
		want[c.Prefix.String()] = fmt.Sprint(c.Attributes == nil, c.Attributes == many)
		octets += encodedPrefixByteCount(c.Prefix)
	}
	random.Shuffle(len(changes), func(i, j int) { changes[i], changes[j] = changes[j], changes[i] })
	got, messages := encodeAndDecodeRoutes(t, e, slices.Clone(changes))
	for p, w := range want {
		if is := fmt.Sprint(got[p] == "withdrawn", strings.Contains(got[p], "Communities")); got[p] == "" || is != w {
			t.Fatalf("%s reads %.60q, want %s", p, got[p], w)
		}
	}
	if most := octets/(message.MaxMessageLength-100) + 5 + 300*17/(maxUpdateContentBytes-3700-maxMultiprotocolHeaderBytes) + 1; messages > most {
		t.Errorf("%d routes take %d messages, want %d at most", len(changes), messages, most)
	}
}

func TestOversizedRouteDoesNotAffectOthers(t *testing.T) {
	vast := &bgp.PathAttributes{NextHop: netip.MustParseAddr("10.0.0.1"), Attributes: intent.Attributes{Communities: make([]uint32, 1020)}}
	good := &bgp.PathAttributes{NextHop: netip.MustParseAddr("10.0.0.1")}
	var messages int
	var faults []error
	err := newUpdateEncoder(exampleNegotiatedParameters(65000, nil), 64512).encodeUpdates([]bgp.RouteChange{
		{Prefix: netip.MustParsePrefix("192.0.2.1/32"), Attributes: vast}, {Prefix: netip.MustParsePrefix("192.0.2.2/32"), Attributes: good},
	}, func(m []byte, fault error) error {
		if fault != nil {
			faults = append(faults, fault)
		} else {
			messages++
		}
		return nil
	})
	if err != nil || messages != 1 || len(faults) != 1 || !strings.Contains(faults[0].Error(), "192.0.2.1/32") {
		t.Errorf("%d messages, faults %v, %v", messages, faults, err)
	}
}
