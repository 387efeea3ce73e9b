package bgp_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

const servicePrefixIPv6 = "2001:db8:5::1/128"

func makeDualStack(p *intent.Peer) { p.CarriesIPv4Routes, p.CarriesIPv6Routes = true, true }

// nextHopCase is a node's addresses and what they give. An empty want means that the route is
// withheld.
type nextHopCase struct {
	name                             string
	local, router                    string
	editPeer                         func(*intent.Peer)
	editRouterOpen                   func(*message.OpenMessage)
	internalIPs                      []string
	nodeAddresses                    []string
	wantIPv4NextHop, wantIPv6NextHop string
}

func nextHopCases() []nextHopCase {
	extended := func(o *message.OpenMessage) { o.SupportsExtendedNextHop = true }
	return []nextHopCase{
		{
			name: "only the steady address of the link", local: "192.0.2.11", router: "192.0.2.1",
			nodeAddresses: []string{
				"2001:db8:1::dead/64 eth0 deprecated", "2001:db8:1::2/64 eth0 tentative", "2001:db8:1::3/64 eth0 duplicate",
				"2001:db8:1::4/64 eth0 temporary", "2001:db8:1::5/128 eth0", "2001:db8:1::11/64 eth0", "192.0.2.11/24 eth0", "fe80::11/64 eth0",
			},
			wantIPv4NextHop: "192.0.2.11", wantIPv6NextHop: "2001:db8:1::11",
		},
		{
			name: "the InternalIP in the subnet before another address there", local: "192.0.2.11", router: "192.0.2.1",
			internalIPs:     []string{"2001:db8:1::22"},
			nodeAddresses:   []string{"2001:db8:1::11/64 eth0", "2001:db8:1::22/64 eth0", "192.0.2.11/24 eth0"},
			wantIPv4NextHop: "192.0.2.11", wantIPv6NextHop: "2001:db8:1::22",
		},
		{
			name: "an address of the link before the InternalIP elsewhere", local: "192.0.2.11", router: "192.0.2.1",
			internalIPs:     []string{"2001:db8:9::1"},
			nodeAddresses:   []string{"2001:db8:9::1/64 eth1", "2001:db8:1::11/64 eth0", "192.0.2.11/24 eth0"},
			wantIPv4NextHop: "192.0.2.11", wantIPv6NextHop: "2001:db8:1::11",
		},
		{
			name: "the InternalIP before a host address of the link", local: "192.0.2.11", router: "192.0.2.1",
			internalIPs:     []string{"2001:db8:9::1"},
			nodeAddresses:   []string{"2001:db8:1::5/128 eth0", "2001:db8:9::1/64 eth1", "192.0.2.11/24 eth0"},
			wantIPv4NextHop: "192.0.2.11", wantIPv6NextHop: "2001:db8:9::1",
		},
		{
			name: "no address of another link", local: "192.0.2.11", router: "192.0.2.1",
			nodeAddresses:   []string{"2001:db8:9::1/64 docker0", "192.0.2.11/24 eth0"},
			wantIPv4NextHop: "192.0.2.11",
		},
		{
			name: "an IPv4 host address beside a subnet's", local: "2001:db8:1::11", router: "2001:db8:1::1",
			nodeAddresses:   []string{"192.0.2.100/32 eth0", "192.0.2.11/24 eth0", "2001:db8:1::11/64 eth0"},
			wantIPv4NextHop: "192.0.2.11", wantIPv6NextHop: "2001:db8:1::11",
		},
		{
			name: "an IPv6 session from the loopback", local: "2001:db8:f::11", router: "2001:db8:77::1",
			editPeer: func(p *intent.Peer) { p.Multihop = true }, internalIPs: []string{"192.0.2.11"},
			nodeAddresses:   []string{"127.0.0.1/8 lo", "::1/128 lo", "2001:db8:f::11/128 lo", "192.0.2.11/24 eth0"},
			wantIPv4NextHop: "192.0.2.11", wantIPv6NextHop: "2001:db8:f::11",
		},
		{
			name: "an IPv6 session from the loopback, and a router that takes IPv6 next hops", local: "2001:db8:f::11", router: "2001:db8:77::1",
			editPeer: func(p *intent.Peer) { p.Multihop = true }, editRouterOpen: extended,
			nodeAddresses:   []string{"127.0.0.1/8 lo", "::1/128 lo", "2001:db8:f::11/128 lo", "192.0.2.11/24 eth0"},
			wantIPv4NextHop: "2001:db8:f::11", wantIPv6NextHop: "2001:db8:f::11",
		},
		{
			name: "an IPv4 session from the loopback", local: "10.255.0.11", router: "10.77.0.1",
			editPeer:        func(p *intent.Peer) { p.Multihop = true },
			nodeAddresses:   []string{"127.0.0.1/8 lo", "::1/128 lo", "10.255.0.11/32 lo", "fe80::11/64 eth0"},
			wantIPv4NextHop: "10.255.0.11",
		},
		{
			name: "only temporary addresses, and a router on the link", local: "2001:db8:1::4", router: "2001:db8:1::1", editRouterOpen: extended,
			nodeAddresses:   []string{"2001:db8:1::4/64 eth0 temporary", "2001:db8:1::5/64 eth0 temporary", "fe80::11/64 eth0"},
			wantIPv4NextHop: "fe80::11 fe80::11", wantIPv6NextHop: "fe80::11 fe80::11",
		},
		{
			name: "IPv4 keeps its next hop where no IPv6 address can be one", local: "2001:db8:1::4", router: "2001:db8:77::1", editRouterOpen: extended,
			editPeer: func(p *intent.Peer) { p.Multihop = true }, internalIPs: []string{"192.0.2.11"},
			nodeAddresses:   []string{"2001:db8:1::4/64 eth0 temporary", "192.0.2.11/24 eth1", "fe80::11/64 eth0"},
			wantIPv4NextHop: "192.0.2.11",
		},
		{
			name: "a session from a temporary address", local: "2001:db8:1::4", router: "2001:db8:1::1",
			nodeAddresses:   []string{"2001:db8:1::4/64 eth0 temporary", "2001:db8:1::11/64 eth0", "192.0.2.11/24 eth0"},
			wantIPv4NextHop: "192.0.2.11", wantIPv6NextHop: "2001:db8:1::11",
		},
	}
}

// nextHopCasesOfOtherSessions are those of VRFs, of link-local sessions and of configured next
// hops.
func nextHopCasesOfOtherSessions() []nextHopCase {
	extended := func(o *message.OpenMessage) { o.SupportsExtendedNextHop = true }
	return []nextHopCase{
		{
			name: "a session in a VRF", local: "192.0.2.11", router: "192.0.2.1", editPeer: func(p *intent.Peer) { p.Device = "red" },
			nodeAddresses:   []string{"2001:db8:1::11/64 eth0", "192.0.2.11/24 eth0", "2001:db8:2::11/64 eth1 vrf=red", "192.0.2.11/24 eth1 vrf=red"},
			wantIPv4NextHop: "192.0.2.11", wantIPv6NextHop: "2001:db8:2::11",
		},
		{
			name: "an IPv4 session over link-local addresses", local: "169.254.0.2", router: "169.254.0.1",
			internalIPs:     []string{"10.9.0.11"},
			nodeAddresses:   []string{"169.254.0.2/30 eth0", "10.9.0.11/24 eth1", "169.254.7.7/16 eth2"},
			wantIPv4NextHop: "169.254.0.2",
		},
		{
			name: "a link-local session gets both addresses", local: "fe80::11", router: "fe80::1%eth0", editRouterOpen: extended,
			editPeer:        func(p *intent.Peer) { p.Unnumbered, p.Device = true, "eth0" },
			nodeAddresses:   []string{"192.0.2.11/24 eth0", "2001:db8:1::11/64 eth0", "fe80::11/64 eth0"},
			wantIPv4NextHop: "2001:db8:1::11 fe80::11", wantIPv6NextHop: "2001:db8:1::11 fe80::11",
		},
		{
			name: "a link-local address without another is sent twice", local: "fe80::11", router: "fe80::1%eth0", editRouterOpen: extended,
			editPeer:        func(p *intent.Peer) { p.Unnumbered, p.Device = true, "eth0" },
			nodeAddresses:   []string{"fe80::11/64 eth0"},
			wantIPv4NextHop: "fe80::11 fe80::11", wantIPv6NextHop: "fe80::11 fe80::11",
		},
		{
			name: "a link-local address is sent once to a router with the capability", local: "fe80::11", router: "fe80::1%eth0",
			editRouterOpen:  func(o *message.OpenMessage) { o.SupportsExtendedNextHop, o.SupportsLinkLocalNextHop = true, true },
			editPeer:        func(p *intent.Peer) { p.Unnumbered, p.Device = true, "eth0" },
			nodeAddresses:   []string{"fe80::11/64 eth0"},
			wantIPv4NextHop: "fe80::11", wantIPv6NextHop: "fe80::11",
		},
		{
			name: "a configured address", local: "192.0.2.11", router: "192.0.2.1",
			editPeer: func(p *intent.Peer) {
				p.NextHopIPv4, p.NextHopIPv6 = netip.MustParsePrefix("192.0.2.99/32"), netip.MustParsePrefix("2001:db8:1::99/128")
			},
			nodeAddresses:   []string{"2001:db8:1::11/64 eth0", "192.0.2.11/24 eth0"},
			wantIPv4NextHop: "192.0.2.99", wantIPv6NextHop: "2001:db8:1::99",
		},
		{
			name: "a configured network", local: "192.0.2.11", router: "192.0.2.1",
			editPeer: func(p *intent.Peer) {
				p.NextHopIPv4, p.NextHopIPv6 = netip.MustParsePrefix("198.18.0.0/16"), netip.MustParsePrefix("2001:db8:9::/64")
			},
			nodeAddresses:   []string{"2001:db8:1::11/64 eth0", "192.0.2.11/24 eth0", "198.18.3.4/24 eth1"},
			wantIPv4NextHop: "198.18.3.4",
		},
	}
}

func TestNextHopsOfASession(t *testing.T) {
	for _, tc := range append(nextHopCases(), nextHopCasesOfOtherSessions()...) {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			m := newLoopbackTransport()
			m.localIP = netip.MustParseAddr(tc.local)
			r := m.addRouter(t, tc.router, tc.editRouterOpen)
			m.setNodeAddresses(tc.nodeAddresses...)
			m.routerByLink["eth0"] = netip.MustParseAddr(tc.router)
			s := startLoopbackSpeaker(t, m)
			p := scriptedRouterPeer(makeDualStack, func(p *intent.Peer) { p.Address = netip.MustParseAddr(tc.router) })
			if tc.editPeer != nil {
				tc.editPeer(&p)
			}
			d := bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix, servicePrefixIPv6)}
			for _, text := range tc.internalIPs {
				d.NodeInternalIPs = append(d.NodeInternalIPs, netip.MustParseAddr(text))
			}
			s.SetDesiredState(d)
			withheld := names.Reason("")
			for prefix, want := range map[string]string{servicePrefix: tc.wantIPv4NextHop, servicePrefixIPv6: tc.wantIPv6NextHop} {
				if want == "" {
					withheld = names.ReasonNoNextHop
					continue
				}
				r.awaitRoute(t, prefix, "{Nexthop: "+want+"}")
			}
			if st := s.waitForEstablished("tor"); st.WithheldRouteReason.Reason != withheld {
				t.Errorf("the reason is %q, want %q: %+v", st.WithheldRouteReason.Reason, withheld, r.recordedRouteEvents())
			}
		})
	}
}

// TestNextHopsFollowNodeAddressChanges changes the addresses of a node while its session is up.
func TestNextHopsFollowNodeAddressChanges(t *testing.T) {
	m := newLoopbackTransport()
	r := m.addRouter(t, "192.0.2.1", nil)
	m.setNodeAddresses("192.0.2.11/24 eth0")
	s := startLoopbackSpeaker(t, m)
	d := bgp.DesiredState{Peers: []intent.Peer{scriptedRouterPeer(makeDualStack)}, Routes: exampleRoutes(servicePrefix, servicePrefixIPv6)}
	s.SetDesiredState(d)
	r.awaitRoute(t, servicePrefix, "")
	awaitReason := func(want names.Reason) {
		t.Helper()
		awaitNoError(t, fmt.Sprintf("the reason is %q", want), func() error {
			if st := s.peerStatus("tor"); st.WithheldRouteReason.Reason != want || st.State != bgp.Established {
				return fmt.Errorf("%+v", st)
			}
			return nil
		})
	}
	awaitReason(names.ReasonNoNextHop)
	for _, step := range []struct {
		addresses, want string
		reason          names.Reason
	}{
		{"2001:db8:1::11/64 eth0 tentative", "", names.ReasonNoNextHop},
		{"2001:db8:1::11/64 eth0", "2001:db8:1::11", ""},
		{"2001:db8:1::11/64 eth0 deprecated, 2001:db8:2::11/64 eth0", "2001:db8:2::11", ""},
		{"2001:db8:2::11/64 eth0, 2001:db8:1::11/64 eth0", "2001:db8:1::11", ""},
		{"", "", names.ReasonNoNextHop},
		{"fe80::11/64 eth0", "fe80::11", ""},
	} {
		all := []string{"192.0.2.11/24 eth0"}
		if step.addresses != "" {
			all = append(all, strings.Split(step.addresses, ",")...)
		}
		m.setNodeAddresses(all...)
		if step.want == "" {
			r.awaitNoRoute(t, servicePrefixIPv6)
		} else {
			r.awaitRoute(t, servicePrefixIPv6, "{Nexthop: "+step.want)
		}
		awaitReason(step.reason)
	}
	d.Peers = []intent.Peer{scriptedRouterPeer(makeDualStack, func(p *intent.Peer) { p.NextHopIPv6 = netip.MustParsePrefix("2001:db8:1::99/128") })}
	s.SetDesiredState(d)
	r.awaitRoute(t, servicePrefixIPv6, "{Nexthop: 2001:db8:1::99}")
	if st := s.peerStatus("tor"); st.EstablishedCount != 1 {
		t.Errorf("the session was established %d times", st.EstablishedCount)
	}
}
