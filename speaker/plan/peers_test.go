package plan

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/intent"
)

func TestOnePeerServesEveryRack(t *testing.T) {
	for name, c := range map[string]struct {
		edit    func(in *Inputs, p *snapshot.Peer)
		want    intent.Peer // address, numbers and families
		blocked string
	}{
		"its gateway": {
			edit: func(in *Inputs, p *snapshot.Peer) { p.Gateway = view.IPv4 },
			want: intent.Peer{Address: netip.MustParseAddr("192.0.2.253"), LocalASN: 64512, PeerASN: 65000, IPv4: true},
		},
		"its link-local gateway": {
			edit: func(in *Inputs, p *snapshot.Peer) { p.Gateway = view.IPv6 },
			want: intent.Peer{Address: netip.MustParseAddr("fe80::1%eth1"), LocalASN: 64512, PeerASN: 65000, IPv6: true},
		},
		"its gateway, for both families": {
			edit: func(in *Inputs, p *snapshot.Peer) { p.Gateway, p.DualStack = view.IPv4, true },
			want: intent.Peer{Address: netip.MustParseAddr("192.0.2.253"), LocalASN: 64512, PeerASN: 65000, IPv4: true, IPv6: true},
		},
		"no gateway": {
			edit:    func(in *Inputs, p *snapshot.Peer) { p.Gateway, in.Links = view.IPv4, nil },
			want:    intent.Peer{LocalASN: 64512, PeerASN: 65000, IPv4: true},
			blocked: "no default gateway of IPv4",
		},
		"its labels' numbers": {
			edit: func(in *Inputs, p *snapshot.Peer) {
				p.Address, p.MyASNLabel, p.PeerASNLabel = netip.MustParseAddr("192.0.2.254"), "mine", "theirs"
				in.Nodes["a"] = view.Node{Name: "a", Labels: map[string]string{"mine": "64601", "theirs": "65001"}}
			},
			want: intent.Peer{Address: netip.MustParseAddr("192.0.2.254"), LocalASN: 64601, PeerASN: 65001, IPv4: true},
		},
		"a label that is missing": {
			edit: func(in *Inputs, p *snapshot.Peer) {
				p.Address, p.PeerASNLabel = netip.MustParseAddr("192.0.2.254"), "theirs"
			},
			want:    intent.Peer{Address: netip.MustParseAddr("192.0.2.254"), IPv4: true},
			blocked: `no label "theirs"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := peered()
			in.Links[0].Gateways = []netip.Addr{netip.MustParseAddr("192.0.2.254")}
			in.Links[1].Gateways = []netip.Addr{netip.MustParseAddr("192.0.2.253"), netip.MustParseAddr("fe80::1")}
			p := &snapshot.Peer{Name: "gateway", MyASN: 64512, PeerASN: 65000, Port: 179}
			in.Snapshot.Peers = []*snapshot.Peer{p}
			c.edit(&in, p)
			got := Build(in).Peers
			if len(got) != 1 {
				t.Fatalf("the peers are %+v", got)
			}
			seen := intent.Peer{Address: got[0].Address, LocalASN: got[0].LocalASN, PeerASN: got[0].PeerASN, IPv4: got[0].IPv4, IPv6: got[0].IPv6}
			if seen != c.want || (got[0].Blocked == "") != (c.blocked == "") || !strings.Contains(got[0].Blocked, c.blocked) {
				t.Errorf("the peer is %+v, blocked %q; want %+v, blocked for %q", seen, got[0].Blocked, c.want, c.blocked)
			}
		})
	}
}

func TestAttributesOfSeveralAdvertisementsAreMerged(t *testing.T) {
	in := peered()
	in.Snapshot.Peers = in.Snapshot.Peers[:1]
	editService(func(s *view.Service) { s.Local = true })(&in)
	in.Endpoints[web] = view.Endpoints{Service: web, Serving: true, Nodes: []string{"a"}, Counts: []int{3}}
	vpn := snapshot.ExtendedCommunity{0, 2, 0, 1, 0, 0, 0, 2}
	in.Snapshot.BGPAds = []*snapshot.BGPAd{
		{Name: "a", Pools: []string{"p"}, Length4: 32, Length6: 128},
		{Name: "b", Pools: []string{"p"}, Length4: 32, Length6: 128, HasMED: true, MED: 50, Prepend: 1, Extended: []snapshot.ExtendedCommunity{vpn}, Bandwidth: 8},
		{Name: "c", Pools: []string{"p"}, Length4: 32, Length6: 128, HasMED: true, MED: 20, Prepend: 3, Extended: []snapshot.ExtendedCommunity{vpn}, Bandwidth: 16},
	}
	want := intent.Attributes{MED: 20, HasMED: true, Prepend: 3, Extended: [][8]byte{vpn}, Bandwidth: 3 * 16e6 / 8}
	if got := Build(in).Routes; len(got) != 1 || !reflect.DeepEqual(got[0].Attributes, want) {
		t.Errorf("the routes are %+v, want %+v", got, want)
	}
	p := NewPlanner(in)
	p.Update()
	p.SetEndpoints(view.Endpoints{Service: web, Serving: true, Nodes: []string{"a"}, Counts: []int{4}})
	p.Update()
	if got := p.Plan().Routes[0].Bandwidth; got != 4*16e6/8 {
		t.Errorf("with one endpoint more the bandwidth is %d", got)
	}
	editService(func(s *view.Service) { s.Local = false })(&in)
	if got := Build(in).Routes[0].Bandwidth; got != 0 {
		t.Errorf("a Service whose traffic is spread over all endpoints has the bandwidth %d", got)
	}
}
