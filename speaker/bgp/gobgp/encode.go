package gobgp

import (
	"fmt"
	"net/netip"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/frame"
)

func family(f frame.Family) *api.Family {
	if f == frame.IPv6 {
		return &api.Family{Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_UNICAST}
	}
	return &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
}

func familyOf(p netip.Prefix) *api.Family {
	if p.Addr().Is6() {
		return family(frame.IPv6)
	}
	return family(frame.IPv4)
}

// encode turns a path into the library's terms.
func (s *Speaker) encode(p *bgp.Path) (*api.Path, error) {
	nlri := &api.IPAddressPrefix{Prefix: p.Prefix.Addr().String(), PrefixLen: uint32(p.Prefix.Bits())}
	attrs := []proto.Message{&api.OriginAttribute{Origin: 0}} // IGP
	if !p.NextHop.IsValid() {
		return nil, fmt.Errorf("the session has no next hop for it")
	}
	if p.Prefix.Addr().Is4() && p.NextHop.Is4() {
		attrs = append(attrs, &api.NextHopAttribute{NextHop: p.NextHop.String()})
	} else {
		n, err := anypb.New(nlri)
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, &api.MpReachNLRIAttribute{
			Family: familyOf(p.Prefix), NextHops: []string{p.NextHop.WithZone("").String()}, Nlris: []*anypb.Any{n},
		})
	}
	if p.Prepend > 0 {
		again := make([]uint32, p.Prepend)
		for i := range again {
			again[i] = s.asn
		}
		attrs = append(attrs, &api.AsPathAttribute{Segments: []*api.AsSegment{{Type: api.AsSegment_AS_SEQUENCE, Numbers: again}}})
	}
	if p.HasMED {
		attrs = append(attrs, &api.MultiExitDiscAttribute{Med: p.MED})
	}
	if p.LocalPref > 0 {
		attrs = append(attrs, &api.LocalPrefAttribute{LocalPref: p.LocalPref})
	}
	if len(p.Communities) > 0 {
		attrs = append(attrs, &api.CommunitiesAttribute{Communities: p.Communities})
	}
	if len(p.Large) > 0 {
		l := &api.LargeCommunitiesAttribute{}
		for _, c := range p.Large {
			l.Communities = append(l.Communities, &api.LargeCommunity{GlobalAdmin: c[0], LocalData1: c[1], LocalData2: c[2]})
		}
		attrs = append(attrs, l)
	}
	if len(p.Extended) > 0 {
		e := &api.ExtendedCommunitiesAttribute{}
		for _, c := range p.Extended {
			u, err := anypb.New(&api.UnknownExtended{Type: uint32(c[0]), Value: c[1:]})
			if err != nil {
				return nil, err
			}
			e.Communities = append(e.Communities, u)
		}
		attrs = append(attrs, e)
	}
	return assemble(p.Prefix, nlri, attrs)
}

// withdrawal is the path that takes a prefix back; the library wants the mandatory attributes even so.
func withdrawal(p netip.Prefix) (*api.Path, error) {
	nlri := &api.IPAddressPrefix{Prefix: p.Addr().String(), PrefixLen: uint32(p.Bits())}
	attrs := []proto.Message{&api.OriginAttribute{Origin: 0}}
	if p.Addr().Is4() {
		attrs = append(attrs, &api.NextHopAttribute{NextHop: "0.0.0.0"})
	} else {
		n, err := anypb.New(nlri)
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, &api.MpReachNLRIAttribute{Family: familyOf(p), NextHops: []string{"::"}, Nlris: []*anypb.Any{n}})
	}
	return assemble(p, nlri, attrs)
}

func assemble(p netip.Prefix, nlri proto.Message, attrs []proto.Message) (*api.Path, error) {
	out := &api.Path{Family: familyOf(p)}
	var err error
	if out.Nlri, err = anypb.New(nlri); err != nil {
		return nil, err
	}
	for _, m := range attrs {
		a, err := anypb.New(m)
		if err != nil {
			return nil, err
		}
		out.Pattrs = append(out.Pattrs, a)
	}
	return out, nil
}
