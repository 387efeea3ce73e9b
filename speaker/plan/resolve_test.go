package plan

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/intent"
)

func TestBGPPeerIsResolvedForNode(t *testing.T) {
	for name, c := range map[string]struct {
		edit    func(in *Inputs, p *snapshot.Peer)
		want    intent.Peer // address, AS numbers and families
		blocked names.Reason
		says    string
	}{
		"the default gateway": {
			edit: func(in *Inputs, p *snapshot.Peer) { p.DefaultGatewayFamily = ipfamily.IPv4 },
			want: intent.Peer{Address: netip.MustParseAddr("192.0.2.253"), LocalASN: 64512, PeerASN: 65000, CarriesIPv4Routes: true},
		},
		"a link-local default gateway": {
			edit: func(in *Inputs, p *snapshot.Peer) { p.DefaultGatewayFamily = ipfamily.IPv6 },
			want: intent.Peer{Address: netip.MustParseAddr("fe80::1%eth1"), LocalASN: 64512, PeerASN: 65000, CarriesIPv6Routes: true},
		},
		"the default gateway, for both families": {
			edit: func(in *Inputs, p *snapshot.Peer) { p.DefaultGatewayFamily, p.DualStack = ipfamily.IPv4, true },
			want: intent.Peer{Address: netip.MustParseAddr("192.0.2.253"), LocalASN: 64512, PeerASN: 65000, CarriesIPv4Routes: true, CarriesIPv6Routes: true},
		},
		"no gateway": {
			edit:    func(in *Inputs, p *snapshot.Peer) { p.DefaultGatewayFamily, in.UsableLinks = ipfamily.IPv4, nil },
			want:    intent.Peer{LocalASN: 64512, PeerASN: 65000, CarriesIPv4Routes: true},
			blocked: names.ReasonNoGateway, says: "no IPv4 default gateway",
		},
		"AS numbers from node labels": {
			edit: func(in *Inputs, p *snapshot.Peer) {
				p.Address, p.NodeLabelOfMyASN, p.NodeLabelOfPeerASN = netip.MustParseAddr("192.0.2.254"), "mine", "theirs"
				in.Nodes["a"] = view.Node{Name: "a", Labels: map[string]string{"mine": "64601", "theirs": "65001"}}
			},
			want: intent.Peer{Address: netip.MustParseAddr("192.0.2.254"), LocalASN: 64601, PeerASN: 65001, CarriesIPv4Routes: true},
		},
		"a label that is missing": {
			edit: func(in *Inputs, p *snapshot.Peer) {
				p.Address, p.NodeLabelOfPeerASN = netip.MustParseAddr("192.0.2.254"), "theirs"
			},
			want:    intent.Peer{Address: netip.MustParseAddr("192.0.2.254"), CarriesIPv4Routes: true},
			blocked: names.ReasonNodeLabel, says: `no label "theirs"`,
		},
		"a fault in the object": {
			edit: func(in *Inputs, p *snapshot.Peer) {
				p.FirstProblem = &snapshot.Problem{Reason: names.ReasonUnknownSecret, Text: "no Secret exists"}
				p.BFD = &snapshot.BFDProfile{}
			},
			want:    intent.Peer{LocalASN: 64512, PeerASN: 65000},
			blocked: names.ReasonUnknownSecret, says: "no Secret exists",
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := inputsWithPeers()
			in.UsableLinks[0].LowestMetricDefaultGateways = []netip.Addr{netip.MustParseAddr("192.0.2.254")}
			// a backup
			in.UsableLinks[1].DefaultGateways = []netip.Addr{netip.MustParseAddr("192.0.2.252")}
			in.UsableLinks[1].LowestMetricDefaultGateways = []netip.Addr{netip.MustParseAddr("192.0.2.253"), netip.MustParseAddr("fe80::1")}
			p := &snapshot.Peer{Name: "gateway", MyASN: 64512, PeerASN: 65000, Port: 179}
			in.Snapshot.Peers = []*snapshot.Peer{p}
			c.edit(&in, p)
			plan := buildPlan(in)
			got := plan.Peers
			if len(got) != 1 {
				t.Fatalf("the peers are %+v", got)
			}
			seen := intent.Peer{Address: got[0].Address, LocalASN: got[0].LocalASN, PeerASN: got[0].PeerASN, CarriesIPv4Routes: got[0].CarriesIPv4Routes, CarriesIPv6Routes: got[0].CarriesIPv6Routes}
			if b := got[0].BlockedExplanation; seen != c.want || b.Reason != c.blocked || !strings.Contains(b.Text, c.says) {
				t.Errorf("the peer is %+v, blocked %q; want %+v, blocked for %s", seen, b, c.want, c.blocked)
			}
			// a gateway may come back at any time
			if c.blocked == "" || c.blocked == names.ReasonNoGateway {
				return
			}
			if v := plan.BGPVerdicts.Slice()[0]; got[0].BFD != nil || len(plan.Routes) > 0 || v.Reason != names.ReasonNoPeers {
				t.Errorf("a node that cannot peer has %+v and the verdict %+v", plan, v)
			}
		})
	}
}

func TestDisableMPAppliesToIPv4SessionsOnly(t *testing.T) {
	for name, c := range map[string]struct {
		peer snapshot.Peer
		want bool
	}{
		"IPv4":                {snapshot.Peer{Address: netip.MustParseAddr("192.0.2.254"), DisableMultiprotocol: true}, true},
		"not configured":      {snapshot.Peer{Address: netip.MustParseAddr("192.0.2.254")}, false},
		"IPv6":                {snapshot.Peer{Address: netip.MustParseAddr("2001:db8::1"), DisableMultiprotocol: true}, false},
		"both":                {snapshot.Peer{Address: netip.MustParseAddr("192.0.2.254"), DisableMultiprotocol: true, DualStack: true}, false},
		"a router on a link":  {snapshot.Peer{Address: netip.MustParseAddr("fe80::1"), VRF: "eth1", DisableMultiprotocol: true}, false},
		"an unnumbered one":   {snapshot.Peer{Interface: "eth1", DisableMultiprotocol: true}, false},
		"the default gateway": {snapshot.Peer{DefaultGatewayFamily: ipfamily.IPv4, DisableMultiprotocol: true}, true},
	} {
		in := inputsWithPeers()
		in.Snapshot.Peers = []*snapshot.Peer{&c.peer}
		p := buildPlan(in).Peers[0]
		if p.NoMultiprotocol != c.want {
			t.Errorf("%s: NoMultiprotocol is %t, want %t", name, p.NoMultiprotocol, c.want)
		}
		if p.Address.IsLinkLocalUnicast() && p.Address.Zone() != "eth1" {
			t.Errorf("%s: the router is %s, want it on eth1", name, p.Address)
		}
	}
}

func TestAttributesOfSeveralAdvertisementsAreMerged(t *testing.T) {
	in := inputsWithPeers()
	in.Snapshot.Peers = in.Snapshot.Peers[:1]
	editService(func(s *view.Service) { s.HasLocalTrafficPolicy = true })(&in)
	in.Endpoints[webServiceKey] = view.Endpoints{Service: webServiceKey, AnyServing: true, ServingNodes: []string{"a"}, EndpointCountsOfServingNodes: []int{3}}
	vpn := snapshot.ExtendedCommunity{0, 2, 0, 1, 0, 0, 0, 2}
	in.Snapshot.BGPAdvertisements = []*snapshot.BGPAdvertisement{
		{Name: "a", Pools: []string{"p"}, PrefixLengthIPv4: 32, PrefixLengthIPv6: 128},
		{Name: "b", Pools: []string{"p"}, PrefixLengthIPv4: 32, PrefixLengthIPv6: 128, HasMED: true, MED: 50, ASPathPrepend: 1, ExtendedCommunities: []snapshot.ExtendedCommunity{vpn}, LinkBandwidthPerEndpoint: 8},
		{Name: "c", Pools: []string{"p"}, PrefixLengthIPv4: 32, PrefixLengthIPv6: 128, HasMED: true, MED: 20, ASPathPrepend: 3, ExtendedCommunities: []snapshot.ExtendedCommunity{vpn}, LinkBandwidthPerEndpoint: 16},
	}
	want := intent.Attributes{MED: 20, HasMED: true, PrependCount: 3, ExtendedCommunities: [][8]byte{vpn}, LinkBandwidthBytesPerSecond: 3 * 16e6 / 8}
	if got := buildPlan(in).Routes; len(got) != 1 || !reflect.DeepEqual(got[0].Attributes, want) {
		t.Errorf("the routes are %+v, want %+v", got, want)
	}
	p := NewPlanner(in)
	p.Update()
	p.SetEndpoints(view.Endpoints{Service: webServiceKey, AnyServing: true, ServingNodes: []string{"a"}, EndpointCountsOfServingNodes: []int{4}})
	p.Update()
	if got := p.Plan().Routes[0].LinkBandwidthBytesPerSecond; got != 4*16e6/8 {
		t.Errorf("with one endpoint more the bandwidth is %d", got)
	}
	editService(func(s *view.Service) { s.HasLocalTrafficPolicy = false })(&in)
	if got := buildPlan(in).Routes[0].LinkBandwidthBytesPerSecond; got != 0 {
		t.Errorf("a Service whose traffic is spread over all endpoints has the bandwidth %d", got)
	}
}

// The router cannot tell the two peers apart. The older one is on some nodes only.
func TestDuplicatePeerIsBlocked(t *testing.T) {
	in := inputsWithPeers()
	older, younger := in.Snapshot.Peers[1], in.Snapshot.Peers[0]
	younger.OlderPeersWithSameSession, younger.BFD = []string{older.Name}, &snapshot.BFDProfile{}
	older.NodeSelectors = []labels.Selector{labels.SelectorFromSet(labels.Set{"rack": "1"})}
	if p := buildPlan(in); p.Peers[0].BlockedExplanation.Reason != "" || p.Peers[0].BFD == nil {
		t.Errorf("where the older does not peer the younger is %+v", p.Peers[0])
	}
	self := in.Nodes["a"]
	self.Labels = map[string]string{"rack": "1"}
	in.Nodes["a"] = self
	p := buildPlan(in)
	if b := p.Peers[0].BlockedExplanation; b.Reason != names.ReasonDuplicatePeer || p.Peers[0].BFD != nil || p.Peers[1].BlockedExplanation.Reason != "" {
		t.Errorf("the peers are %+v", p.Peers)
	}
	if len(p.Routes) != 1 || len(p.Routes[0].PeerNames) != 1 || p.Routes[0].PeerNames[0] != older.Name {
		t.Errorf("the routes are %+v", p.Routes)
	}
	older.OlderPeersWithSameSession, older.DefaultGatewayFamily, younger.OlderPeersWithSameSession = nil, ipfamily.IPv4, nil
	for i := range in.UsableLinks {
		in.UsableLinks[i].LowestMetricDefaultGateways = []netip.Addr{younger.Address}
	}
	if p := buildPlan(in); p.Peers[1].BlockedExplanation.Reason != names.ReasonDuplicatePeer || p.Peers[0].BlockedExplanation.Reason != "" {
		t.Errorf("where the default gateway is the router of another peer, they are %+v", p.Peers)
	}
	older.DefaultGatewayFamily, younger.OlderPeersWithSameSession = 0, []string{older.Name}
	older.FirstProblem = &snapshot.Problem{Reason: names.ReasonUnknownSecret}
	if p := buildPlan(in); p.Peers[0].BlockedExplanation.Reason != "" {
		t.Errorf("while the older is faulty the younger is %+v", p.Peers[0])
	}
}

// After each of many random changes, the routes equal those that a new Planner makes
// from the present inputs.
func TestIncrementalRoutesEqualRebuiltRoutes(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	in := inputsWithPeers()
	in.Snapshot.Pools[0].Ranges = []snapshot.Range{{First: netip.MustParseAddr("192.0.2.0"), Last: netip.MustParseAddr("192.0.2.255")}}
	p := NewPlanner(in)
	for step := range 2000 {
		k := view.ObjectKey{Namespace: "default", Name: fmt.Sprint(random.IntN(12))}
		switch random.IntN(6) {
		case 0:
			p.RemoveService(k)
		case 1:
			e := view.Endpoints{Service: k, AnyServing: random.IntN(3) > 0}
			if e.AnyServing {
				e.ServingNodes, e.EndpointCountsOfServingNodes = []string{"a"}, []int{1 + random.IntN(3)}
			}
			p.SetEndpoints(e)
		case 2:
			if random.IntN(10) > 0 {
				continue
			}
			s := *p.Inputs().Snapshot
			s.BGPAdvertisements = nil
			for i := range random.IntN(4) {
				s.BGPAdvertisements = append(s.BGPAdvertisements, &snapshot.BGPAdvertisement{
					Name: fmt.Sprint(i), Pools: []string{"p"}, PrefixLengthIPv4: 24 + 4*random.IntN(3), PrefixLengthIPv6: 128, MED: uint32(random.IntN(3)), HasMED: true,
					LinkBandwidthPerEndpoint: int32(random.IntN(2) * 8), Communities: []snapshot.Community{{FirstPart: 1, SecondPart: uint32(i)}},
				})
			}
			s.Peers = in.Snapshot.Peers[:random.IntN(3)]
			p.SetSnapshot(&s)
		default:
			p.SetService(view.Service{
				Key: k, IsLoadBalancer: random.IntN(8) > 0, HasLocalTrafficPolicy: random.IntN(2) == 0,
				AssignedAddresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(random.IntN(40))})},
			})
		}
		p.Update()
		now := p.Inputs()
		now.Services, now.Endpoints, now.Nodes = maps.Clone(now.Services), maps.Clone(now.Endpoints), maps.Clone(now.Nodes)
		want, got := buildPlan(now), p.Plan()
		if len(want.Routes)+len(got.Routes) > 0 && !reflect.DeepEqual(got.Routes, want.Routes) {
			t.Fatalf("after step %d the routes are\n%+v, want\n%+v", step, got.Routes, want.Routes)
		}
		if want, got := want.BGPVerdicts.Slice(), got.BGPVerdicts.Slice(); !reflect.DeepEqual(got, want) {
			t.Fatalf("after step %d the verdicts are\n%+v, want\n%+v", step, got, want)
		}
	}
}

// This changes one Service among 10,000 announced ones.
func BenchmarkRoutesOfOneServiceAmong10000(b *testing.B) {
	in := inputsWithPeers()
	in.Snapshot.Pools[0].Ranges = []snapshot.Range{{First: netip.MustParseAddr("10.0.0.0"), Last: netip.MustParseAddr("10.0.255.255")}}
	svc := func(i int) view.Service {
		k := view.ObjectKey{Namespace: "default", Name: fmt.Sprintf("s%05d", i)}
		return view.Service{Key: k, IsLoadBalancer: true, AssignedAddresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}}
	}
	for i := range 10000 {
		s := svc(i)
		in.Services[s.Key] = s
		in.Endpoints[s.Key] = view.Endpoints{Service: s.Key, AnyServing: true, ServingNodes: []string{"a"}, EndpointCountsOfServingNodes: []int{1}}
	}
	p := NewPlanner(in)
	p.Update()
	for i := 0; b.Loop(); i++ {
		s := svc(i % 10000)
		p.RemoveService(s.Key)
		p.Update()
		p.SetService(s)
		p.Update()
	}
}
