package bgp_test

import (
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// waitForBIRDOutput waits until BIRD's answer to a command contains every
// text, and none of those after an exclamation mark.
func waitForBIRDOutput(t *testing.T, r *router.Router, command string, want ...string) {
	t.Helper()
	awaitNoError(t, fmt.Sprintf("BIRD answers %q with %q", command, want), func() error {
		out, err := r.RunShowCommand(t.Context(), command)
		if err != nil {
			return err
		}
		for _, w := range want {
			if not, negative := strings.CutPrefix(w, "!"); strings.Contains(string(out), not) == negative {
				return fmt.Errorf("%q: it says\n%s", w, out)
			}
		}
		return nil
	})
}

// birdCase is a kind of session with BIRD. NODE4 and NODE6 are replaced by the node's addresses.
type birdCase struct {
	birdProtocolConfig string
	editPeer           func(*intent.Peer)
	routeAttributes    intent.Attributes
	nodeHasOnlyIPv6    bool // the node has no IPv4 address
	announcesIPv6Route bool // the route is of IPv6
	wantRouteTexts     []string
	wantHoldTime       time.Duration
}

// birdCases are the kinds of sessions with BIRD by name.
var birdCases = map[string]birdCase{
	"external": {
		birdProtocolConfig: "neighbor NODE4 as 64512; ipv4 { import all; export none; };",
		wantRouteTexts:     []string{"BGP.as_path: 64512\n", "BGP.next_hop: NODE4", "via NODE4 on eth0"},
	},
	"internal, with a local preference": {
		birdProtocolConfig: "neighbor NODE4 as 65000; ipv4 { import all; export none; };", editPeer: func(p *intent.Peer) { p.LocalASN = 65000 },
		routeAttributes: intent.Attributes{LocalPref: 250}, wantRouteTexts: []string{"BGP.as_path: \n", "BGP.local_pref: 250"},
	},
	"four-octet AS numbers": {
		birdProtocolConfig: "neighbor NODE4 as 4200000001; ipv4 { import all; export none; };", editPeer: func(p *intent.Peer) { p.LocalASN = 4200000001 },
		wantRouteTexts: []string{"BGP.as_path: 4200000001\n"},
	},
	"over IPv6": {
		birdProtocolConfig: "neighbor NODE6 as 64512; ipv6 { import all; export none; };", announcesIPv6Route: true,
		editPeer: func(p *intent.Peer) { p.Address, p.CarriesIPv4Routes, p.CarriesIPv6Routes = routerIPv6, false, true }, wantRouteTexts: []string{"BGP.next_hop: NODE6", "via NODE6 on eth0"},
	},
	"both families over IPv4": {
		birdProtocolConfig: "neighbor NODE4 as 64512; ipv4 { import all; export none; }; ipv6 { import all; export none; };", editPeer: func(p *intent.Peer) { p.CarriesIPv6Routes = true }, announcesIPv6Route: true,
		wantRouteTexts: []string{"BGP.next_hop: NODE6", "via NODE6 on eth0"},
	},
	"IPv4 routes of a node that has no IPv4 address": {
		birdProtocolConfig: "neighbor NODE6 as 64512; ipv4 { import all; export none; extended next hop on; };", nodeHasOnlyIPv6: true,
		editPeer: func(p *intent.Peer) { p.Address = routerIPv6 }, wantRouteTexts: []string{"BGP.next_hop: NODE6", "via NODE6 on eth0"},
	},
	"a password":   {birdProtocolConfig: `neighbor NODE4 as 64512; password "s3cret"; ipv4 { import all; export none; };`, editPeer: func(p *intent.Peer) { p.Password = "s3cret" }},
	"TTL security": {birdProtocolConfig: "neighbor NODE4 as 64512; ttl security on; ipv4 { import all; export none; };", editPeer: func(p *intent.Peer) { p.MaxHops = 1 }},
	"several hops": {
		birdProtocolConfig: "neighbor NODE4 as 64512; multihop 3; source address 10.99.0.1; ipv4 { import all; export none; };",
		editPeer:           func(p *intent.Peer) { p.Address, p.Multihop = netip.MustParseAddr("10.99.0.1"), true },
	},
	"a hold time":  {birdProtocolConfig: "neighbor NODE4 as 64512; hold time 6; ipv4 { import all; export none; };", wantHoldTime: 6 * time.Second},
	"no hold time": {birdProtocolConfig: "neighbor NODE4 as 64512; hold time 0; ipv4 { import all; export none; };", editPeer: func(p *intent.Peer) { p.HoldTime = 0 }},
	"attributes": {
		birdProtocolConfig: "neighbor NODE4 as 64512; ipv4 { import all; export none; };",
		routeAttributes: intent.Attributes{
			MED: 42, HasMED: true, PrependCount: 2, Communities: []uint32{64512<<16 | 7, 0xffffff01}, LargeCommunities: [][3]uint32{{64512, 1, 4294967295}},
			ExtendedCommunities: [][8]byte{{0x00, 0x02, 0xfc, 0x00, 0, 0, 0, 9}},
		},
		wantRouteTexts: []string{
			"BGP.as_path: 64512 64512 64512\n", "BGP.med: 42", "BGP.community: (64512,7) (65535,65281)", "BGP.large_community: (64512, 1, 4294967295)",
			"BGP.ext_community: (rt, 64512, 9)",
		},
	},
}

// TestBIRDGetsRoutesOnEachKindOfSession runs the cases of TestFRRGetsRoutesOnEachKindOfSession that
// BIRD supports.
func TestBIRDGetsRoutesOnEachKindOfSession(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: len(birdCases)})
	text := "router id 192.168.0.1;\nprotocol device {}\n"
	names := slices.Sorted(maps.Keys(birdCases))
	at := map[string]*strings.Replacer{}
	for i, name := range names {
		at[name] = strings.NewReplacer("NODE4", fmt.Sprintf("192.168.0.%d", 11+i), "NODE6", fmt.Sprintf("fd00:a8::%x", 11+i))
		text += fmt.Sprintf("protocol bgp node%d { local as 65000; %s }\n", i+1, at[name].Replace(birdCases[name].birdProtocolConfig))
		if birdCases[name].nodeHasOnlyIPv6 {
			removeAddress(t, b.NamespaceOfHost(fmt.Sprintf("node%d", i+1)), fmt.Sprintf("192.168.0.%d/24", 11+i))
		}
	}
	bird := startRouter(t, router.Config{Kind: router.BIRD, NetNS: b.NamespaceOfHost("router"), ConfigText: text})
	for i, name := range names {
		c := birdCases[name]
		t.Run(name, func(t *testing.T) {
			p := exampleExternalPeer()
			if c.editPeer != nil {
				c.editPeer(&p)
			}
			prefix := fmt.Sprintf("198.51.100.%d/32", 1+i)
			if c.announcesIPv6Route {
				prefix = fmt.Sprintf("2001:db8::%x/128", 1+i)
			}
			s := startSpeaker(t, b.NamespaceOfHost(fmt.Sprintf("node%d", 1+i)))
			rs := exampleRoutes(prefix)
			rs[0].Attributes = c.routeAttributes
			s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: rs})
			st := s.waitForEstablished("tor")
			want := []string{fmt.Sprintf("[node%d ", i+1)}
			for _, w := range c.wantRouteTexts {
				want = append(want, at[name].Replace(w))
			}
			waitForBIRDOutput(t, bird, "show route all for "+prefix, want...)
			if c.wantHoldTime > 0 && st.HoldTime != c.wantHoldTime {
				t.Errorf("the hold time is %s, want %s", st.HoldTime, c.wantHoldTime)
			}
		})
	}
}

// removeAddress removes an address from a node.
func removeAddress(t *testing.T, h netns.Path, address string) {
	t.Helper()
	err := h.RunInside(func() error {
		out, err := exec.Command("ip", "address", "del", address, "dev", "eth0").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDocumentedBIRDConfigKeepsRoutesOverCrash runs the configuration of
// docs/bgp.md through a crash and a drain.
func TestDocumentedBIRDConfigKeepsRoutesOverCrash(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 2})
	bird := startRouter(t, router.Config{Kind: router.BIRD, NetNS: b.NamespaceOfHost("router"), ConfigText: readDocumentedConfig(t, "BIRD")})
	p := exampleExternalPeer()
	p.GracefulRestart, p.RestartTime, p.CarriesIPv6Routes = true, 120*time.Second, true
	d := bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix, "198.51.100.2/32", "2001:db8::1/128")}
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	s.SetDesiredState(d)
	if st := s.waitForEstablished("tor"); !st.RouterKeepsRoutesOverRestart || len(st.NegotiatedFamilies) != 2 {
		t.Fatalf("graceful restart of both families was not negotiated: %+v", st)
	}
	waitForBIRDOutput(t, bird, "show route", servicePrefix, "198.51.100.2/32", "2001:db8::1/128")
	t.Run("the kernel has the routes", func(t *testing.T) {
		awaitNoError(t, "the kernel routes the address", func() error {
			r, ok, err := b.NamespaceOfHost("router").FindRouteToExactPrefix(netip.MustParsePrefix(servicePrefix))
			if err != nil || !ok || len(r.NextHops) != 1 || r.NextHops[0].String() != "192.168.0.11" {
				return fmt.Errorf("%+v, %v", r, err)
			}
			return nil
		})
	})
	whole := t // the next speaker lives longer than the subtest that starts it
	t.Run("the routes of a crashed speaker stay until the next one has sent its own", func(t *testing.T) {
		s.endEnginesWithoutStop()
		waitForBIRDOutput(t, bird, "show protocols all node1", "Neighbor graceful restart active")
		waitForBIRDOutput(t, bird, "show route for "+servicePrefix, servicePrefix)
		s = startSpeaker(whole, b.NamespaceOfHost("node1"))
		s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
		waitForBIRDOutput(t, bird, "show route", servicePrefix, "!198.51.100.2/32", "!2001:db8::1/128")
	})
	t.Run("a leaving node announces GRACEFUL_SHUTDOWN, then withdraws, then ends the session", func(t *testing.T) {
		s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix), NodeLeaving: true})
		waitForBIRDOutput(t, bird, "show route all for "+servicePrefix, "BGP.community: (65535,0)", "BGP.local_pref: 0\n")
		waitForBIRDOutput(t, bird, "show route", "!"+servicePrefix)
		s.Stop(t.Context())
		waitForBIRDOutput(t, bird, "show protocols all node1", "Last error:", "Received: ")
		waitForBIRDOutput(t, bird, "show route", "!"+servicePrefix)
	})
}

// TestBIRDWithFourOctetASN uses a router with a four-octet AS number, which
// restarts. It connects to one node, and the other node connects to it.
func TestBIRDWithFourOctetASN(t *testing.T) {
	t.Parallel()
	const number = 4200000000
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 2})
	text := "router id 192.168.0.1;\nprotocol device {}\n"
	for i, mine := range []uint32{64512, number} {
		text += fmt.Sprintf("protocol bgp node%d { local as %d; neighbor 192.168.0.%d as %d; connect delay time 1; connect retry time 1; ipv4 { import all; export none; }; }\n", i+1, uint32(number), 11+i, mine)
	}
	bird := startRouter(t, router.Config{Kind: router.BIRD, NetNS: b.NamespaceOfHost("router"), ConfigText: text})
	active, passive := startSpeaker(t, b.NamespaceOfHost("node1")), startSpeaker(t, b.NamespaceOfHost("node2"))
	p := exampleExternalPeer()
	p.PeerASN, p.MaxReconnectDelay = number, time.Second
	active.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	p.LocalASN, p.Passive = number, true
	passive.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes("198.51.100.2/32")})
	both := func() {
		t.Helper()
		waitForBIRDOutput(t, bird, "show route all for "+servicePrefix, "BGP.as_path: 64512\n")
		waitForBIRDOutput(t, bird, "show route all for 198.51.100.2/32", "BGP.local_pref: 100")
	}
	both()
	if err := bird.KillDaemons(); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*testSpeaker{active, passive} {
		awaitNoError(t, "the session has ended", func() error {
			if st := s.peerStatus("tor"); st.State == bgp.Established {
				return fmt.Errorf("%+v", st)
			}
			return nil
		})
	}
	if err := bird.StartEndedDaemons(t.Context()); err != nil {
		t.Fatal(err)
	}
	both()
}
