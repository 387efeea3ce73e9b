package plan

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// inputsWithPeers is exampleInputs with two routers and an advertisement to both.
func inputsWithPeers() Inputs {
	in := exampleInputs()
	in.Snapshot.Peers = []*snapshot.Peer{
		{Name: "tor1", MyASN: 64512, PeerASN: 65000, Address: netip.MustParseAddr("192.0.2.254"), Port: 179},
		{Name: "tor2", MyASN: 64512, PeerASN: 65000, Address: netip.MustParseAddr("192.0.2.253"), Port: 179},
	}
	in.Snapshot.BGPAdvertisements = []*snapshot.BGPAdvertisement{{Name: "all", Pools: []string{"p"}, PrefixLengthIPv4: 32, PrefixLengthIPv6: 128}}
	return in
}

// soleBGPVerdict returns the BGP verdict on the one Service.
func soleBGPVerdict(t *testing.T, in Inputs) BGPVerdict {
	t.Helper()
	p := buildPlan(in)
	if p.BGPVerdicts.Len() != 1 {
		t.Fatalf("%d verdicts, want one: %+v", p.BGPVerdicts.Len(), p.BGPVerdicts)
	}
	return *p.BGPVerdicts.Slice()[0]
}

func TestBGPVerdictReasons(t *testing.T) {
	none := func(in *Inputs) {}
	local := editService(func(s *view.Service) { s.HasLocalTrafficPolicy = true })
	for name, c := range map[string]struct {
		edit func(*Inputs)
		want names.Reason
	}{
		"everything is as it should be":       {none, names.ReasonAnnounced},
		"no address":                          {editService(func(s *view.Service) { s.AssignedAddresses = nil }), names.ReasonNoAddress},
		"an address of no pool":               {editService(func(s *view.Service) { s.AssignedAddresses = []netip.Addr{netip.MustParseAddr("203.0.113.1")} }), names.ReasonAddressOutsidePools},
		"an advertisement of another pool":    {func(in *Inputs) { in.Snapshot.BGPAdvertisements[0].Pools = []string{"other"} }, names.ReasonNoAdvertisement},
		"an advertisement for other nodes":    {func(in *Inputs) { in.Snapshot.BGPAdvertisements[0].NodeSelectors = selectNodeByName("b") }, names.ReasonNoAdvertisement},
		"an advertisement for other Services": {func(in *Inputs) { in.Snapshot.BGPAdvertisements[0].ServiceSelectors = selectNodeByName("b") }, names.ReasonNoAdvertisement},
		"two values of localPref for one peer": {func(in *Inputs) {
			in.Snapshot.BGPAdvertisements = append(in.Snapshot.BGPAdvertisements, &snapshot.BGPAdvertisement{Name: "more", Pools: []string{"p"}, PrefixLengthIPv4: 32, PrefixLengthIPv6: 128, LocalPref: 200, Peers: []string{"tor1"}})
		}, names.ReasonConflictingAdvertisements},
		"more communities than a route can carry": {func(in *Inputs) {
			in.Snapshot.BGPAdvertisements = append(in.Snapshot.BGPAdvertisements, adsWithManyCommunities(32, 6)...)
		}, names.ReasonTooManyCommunities},
		"as many communities for two prefixes": {func(in *Inputs) {
			in.Snapshot.BGPAdvertisements = append(append(in.Snapshot.BGPAdvertisements, adsWithManyCommunities(32, 3)...), adsWithManyCommunities(31, 3)...)
		}, names.ReasonAnnounced},
		"as many communities for two peers": {func(in *Inputs) {
			ads := adsWithManyCommunities(32, 6)
			for i, ad := range ads {
				ad.Peers = []string{[]string{"tor1", "tor2"}[i%2]}
			}
			in.Snapshot.BGPAdvertisements = append(in.Snapshot.BGPAdvertisements, ads...)
		}, names.ReasonAnnounced},
		"two values of localPref for two prefixes": {func(in *Inputs) {
			in.Snapshot.BGPAdvertisements = append(in.Snapshot.BGPAdvertisements, &snapshot.BGPAdvertisement{Name: "more", Pools: []string{"p"}, PrefixLengthIPv4: 31, PrefixLengthIPv6: 128, LocalPref: 200})
		}, names.ReasonAnnounced},
		"two values of localPref for two peers": {func(in *Inputs) {
			in.Snapshot.BGPAdvertisements[0].Peers = []string{"tor2"}
			in.Snapshot.BGPAdvertisements = append(in.Snapshot.BGPAdvertisements, &snapshot.BGPAdvertisement{Name: "more", Pools: []string{"p"}, PrefixLengthIPv4: 32, PrefixLengthIPv6: 128, LocalPref: 200, Peers: []string{"tor1"}})
		}, names.ReasonAnnounced},
		"a node without network":                  {editNode("a", func(n *view.Node) { n.NetworkUnavailable = true }), names.ReasonNodeNetworkUnavailable},
		"no endpoint that serves":                 {func(in *Inputs) { clear(in.Endpoints) }, names.ReasonNoEndpoints},
		"Local, with an endpoint on another node": {local, names.ReasonNoLocalEndpoints},
		"Local, with an endpoint on this node":    {func(in *Inputs) { local(in); in.SelfNode = "b" }, names.ReasonAnnounced},
		"no peer on this node": {func(in *Inputs) {
			in.Snapshot.Peers[0].NodeSelectors, in.Snapshot.Peers[1].NodeSelectors = selectNodeByName("b"), selectNodeByName("c")
		}, names.ReasonNoPeers},
		"peers of another family": {func(in *Inputs) {
			in.Snapshot.Peers[0].Address, in.Snapshot.Peers[1].Address = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
		}, names.ReasonNoPeers},
		"a peer of another family that carries both": {func(in *Inputs) {
			in.Snapshot.Peers[0].Address, in.Snapshot.Peers[0].DualStack = netip.MustParseAddr("2001:db8::1"), true
		}, names.ReasonAnnounced},
		"peers that do not exist":                           {func(in *Inputs) { in.Snapshot.BGPAdvertisements[0].Peers = []string{"tor9"} }, names.ReasonNoPeers},
		"a leaving node, whose routes the engine withdraws": {editNode("a", func(n *view.Node) { n.IsLeaving = true }), names.ReasonAnnounced},
	} {
		t.Run(name, func(t *testing.T) {
			in := inputsWithPeers()
			c.edit(&in)
			v := soleBGPVerdict(t, in)
			if v.Reason != c.want {
				t.Errorf("the reason is %s, want %s", v.Reason, c.want)
			}
			if announced := len(buildPlan(in).Routes) > 0; announced != (c.want == names.ReasonAnnounced) || announced != (len(v.Peers) > 0) {
				t.Errorf("reason %s, peers %v, routes %+v", v.Reason, v.Peers, buildPlan(in).Routes)
			}
		})
	}
}

// adsWithManyCommunities returns advertisements, each with as many large communities
// as it may have.
func adsWithManyCommunities(length, count int) []*snapshot.BGPAdvertisement {
	var out []*snapshot.BGPAdvertisement
	for i := range count {
		ad := &snapshot.BGPAdvertisement{Name: fmt.Sprint(length, i), Pools: []string{"p"}, PrefixLengthIPv4: length, PrefixLengthIPv6: 128}
		for j := range 63 {
			ad.Communities = append(ad.Communities, snapshot.Community{Large: true, FirstPart: 64512, SecondPart: uint32(i), ThirdPartOfLarge: uint32(j)})
		}
		out = append(out, ad)
	}
	return out
}

// The limit of the speakers equals the one that the controller uses for a Service's condition.
func TestCommunityLimitEqualsTheControllers(t *testing.T) {
	few := intent.Attributes{Communities: make([]uint32, advertise.MaxCommunityBytesPerRoute/4)}
	many := intent.Attributes{Communities: make([]uint32, advertise.MaxCommunityBytesPerRoute/4+1)}
	if few.HasTooManyCommunities() || !many.HasTooManyCommunities() {
		t.Errorf("%d bytes are too many: %t; 4 more: %t", advertise.MaxCommunityBytesPerRoute, few.HasTooManyCommunities(), many.HasTooManyCommunities())
	}
}

func TestRoutesFollowAdvertisementsAndPeers(t *testing.T) {
	prefix := func(s string) netip.Prefix { return netip.MustParsePrefix(s) }
	second := view.ObjectKey{Namespace: "default", Name: "zzz"}
	for name, c := range map[string]struct {
		edit func(*Inputs)
		want []*intent.Route
	}{
		"a host route for all peers": {func(*Inputs) {}, []*intent.Route{{Prefix: prefix("192.0.2.1/32"), PeerNames: []string{"tor1", "tor2"}}}},
		"an aggregate once for several Services": {func(in *Inputs) {
			in.Snapshot.BGPAdvertisements[0].PrefixLengthIPv4 = 24
			in.Services[second] = view.Service{Key: second, IsLoadBalancer: true, AssignedAddresses: []netip.Addr{serviceAddress.Next()}}
			in.Endpoints[second] = view.Endpoints{Service: second, AnyServing: true}
		}, []*intent.Route{{Prefix: prefix("192.0.2.0/24"), PeerNames: []string{"tor1", "tor2"}}}},
		"an aggregate stays while one Service needs it": {func(in *Inputs) {
			in.Snapshot.BGPAdvertisements[0].PrefixLengthIPv4 = 24
			in.Services[second] = view.Service{Key: second, IsLoadBalancer: true, AssignedAddresses: []netip.Addr{serviceAddress.Next()}}
		}, []*intent.Route{{Prefix: prefix("192.0.2.0/24"), PeerNames: []string{"tor1", "tor2"}}}},
		"communities of several advertisements are united, for the peers of each": {func(in *Inputs) {
			in.Snapshot.BGPAdvertisements[0].Communities = []snapshot.Community{{FirstPart: 64512, SecondPart: 2}}
			in.Snapshot.BGPAdvertisements = append(in.Snapshot.BGPAdvertisements, &snapshot.BGPAdvertisement{
				Name: "more", Pools: []string{"p"}, PrefixLengthIPv4: 32, PrefixLengthIPv6: 128, Peers: []string{"tor2"},
				Communities: []snapshot.Community{{FirstPart: 64512, SecondPart: 1}, {FirstPart: 64512, SecondPart: 2}, {Large: true, FirstPart: 1, SecondPart: 2, ThirdPartOfLarge: 3}},
			})
		}, []*intent.Route{
			{Prefix: prefix("192.0.2.1/32"), PeerNames: []string{"tor1"}, Attributes: intent.Attributes{Communities: []uint32{64512<<16 | 2}}},
			{Prefix: prefix("192.0.2.1/32"), PeerNames: []string{"tor2"}, Attributes: intent.Attributes{
				Communities: []uint32{64512<<16 | 1, 64512<<16 | 2}, LargeCommunities: [][3]uint32{{1, 2, 3}},
			}},
		}},
		"an aggregate beside its host routes": {func(in *Inputs) {
			in.Snapshot.BGPAdvertisements = append(in.Snapshot.BGPAdvertisements, &snapshot.BGPAdvertisement{Name: "agg", Pools: []string{"p"}, PrefixLengthIPv4: 24, PrefixLengthIPv6: 128, LocalPref: 50})
		}, []*intent.Route{
			{Prefix: prefix("192.0.2.0/24"), PeerNames: []string{"tor1", "tor2"}, Attributes: intent.Attributes{LocalPref: 50}},
			{Prefix: prefix("192.0.2.1/32"), PeerNames: []string{"tor1", "tor2"}},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			in := inputsWithPeers()
			c.edit(&in)
			got := buildPlan(in).Routes
			same := slices.EqualFunc(got, c.want, func(x, y *intent.Route) bool {
				return x.Prefix == y.Prefix && slices.Equal(x.PeerNames, y.PeerNames) && x.Attributes.Equal(y.Attributes)
			})
			if !same {
				t.Errorf("the routes are\n%+v, want\n%+v", got, c.want)
			}
			if again := buildPlan(in).Routes; !reflect.DeepEqual(again, got) {
				t.Errorf("the same inputs gave\n%+v, and then\n%+v", got, again)
			}
		})
	}
}

// TestRouteSaysThatLastLocalEndpointsTerminate checks which routes say that the last endpoints on
// this node terminate, and the advertisements that a route names.
func TestRouteSaysThatLastLocalEndpointsTerminate(t *testing.T) {
	for name, c := range map[string]struct {
		local bool
		ready []string
		want  bool
	}{
		"the last endpoints here terminate":     {true, []string{"b"}, true},
		"no endpoint is ready anywhere":         {true, nil, true},
		"an endpoint here is ready":             {true, []string{"a"}, false},
		"the traffic policy sends to all nodes": {false, []string{"b"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			in := inputsWithPeers()
			editService(func(s *view.Service) { s.HasLocalTrafficPolicy = c.local })(&in)
			for k, e := range in.Endpoints {
				e.AnyServing, e.ServingNodes, e.EndpointCountsOfServingNodes, e.ReadyNodes = true, []string{"a", "b"}, []int{1, 1}, c.ready
				in.Endpoints[k] = e
			}
			p := buildPlan(in)
			if len(p.Routes) != 1 || p.Routes[0].EndpointsTerminating != c.want || !slices.Equal(p.Routes[0].AdvertisementNames, []string{"all"}) {
				t.Errorf("the routes are %+v", p.Routes)
			}
			for v := range p.BGPVerdicts.All() {
				if v.EndpointsTerminating != c.want {
					t.Errorf("the verdict is %+v", v)
				}
			}
		})
	}
}
