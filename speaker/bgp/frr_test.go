package bgp_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/test/lab/router"
)

const (
	servicePrefix = "198.51.100.1/32"
)

var (
	routerIPv6                 = netip.MustParseAddr("fd00:a8::1")
	frrExternalNeighbourConfig = "neighbor 192.168.0.11 remote-as 64512"
)

const frrActivateIPv6Template = ` address-family ipv6 unicast
  neighbor %s activate
 exit-address-family`

// frrSessionCase is a kind of session. NODE4 and NODE6 are replaced by the node's addresses.
type frrSessionCase struct {
	frrNeighbourConfig      string // FRR's side
	frrAddressFamilyConfigs string
	// edits our peer, an ordinary external session
	editPeer              func(*intent.Peer)
	usesNodeSourceAddress bool // start from the node's address
	// the families to announce; IPv4 by default
	announcesIPv4Routes, announcesIPv6Routes bool
	checkRoute                               func(t *testing.T, h nodeOfSessionCase, st bgp.PeerSessionStatus, p frrPath)
}

// nodeOfSessionCase is the node of a case.
type nodeOfSessionCase struct {
	index      int
	ipv4, ipv6 string
}

// frrCases are the kinds of sessions with FRR by name.
var frrCases = map[string]frrSessionCase{
	"external": {frrNeighbourConfig: "neighbor NODE4 remote-as 64512", checkRoute: func(t *testing.T, h nodeOfSessionCase, _ bgp.PeerSessionStatus, p frrPath) {
		if p.ASPath.String != "64512" || p.NextHops[0].IP != h.ipv4 || p.LocalPref != 0 {
			t.Errorf("%+v, want AS path 64512 via %s", p, h.ipv4)
		}
	}},
	"internal": {frrNeighbourConfig: "neighbor NODE4 remote-as 65000", editPeer: func(p *intent.Peer) { p.LocalASN = 65000 }, checkRoute: func(t *testing.T, h nodeOfSessionCase, _ bgp.PeerSessionStatus, p frrPath) {
		if p.ASPath.String != "Local" || p.LocalPref != 100 {
			t.Errorf("%+v, want an empty AS path and localPref 100", p)
		}
	}},
	"four-octet AS numbers": {frrNeighbourConfig: "neighbor NODE4 remote-as 4200000001", editPeer: func(p *intent.Peer) { p.LocalASN = 4200000001 }, checkRoute: func(t *testing.T, h nodeOfSessionCase, _ bgp.PeerSessionStatus, p frrPath) {
		if p.ASPath.String != "4200000001" {
			t.Errorf("the AS path is %s", p.ASPath.String)
		}
	}},
	"any external number": {frrNeighbourConfig: "neighbor NODE4 remote-as 64512", editPeer: func(p *intent.Peer) { p.PeerASN, p.AcceptedASNs = 0, intent.AcceptExternalASN }, checkRoute: func(t *testing.T, h nodeOfSessionCase, st bgp.PeerSessionStatus, _ frrPath) {
		if st.RouterASN != 65000 {
			t.Errorf("the status has the AS number %d", st.RouterASN)
		}
	}},
	"the internal number": {frrNeighbourConfig: "neighbor NODE4 remote-as 65000", editPeer: func(p *intent.Peer) { p.LocalASN, p.PeerASN, p.AcceptedASNs = 65000, 0, intent.AcceptInternalASN }},
	"over IPv6": {
		frrNeighbourConfig: "neighbor NODE6 remote-as 64512", frrAddressFamilyConfigs: fmt.Sprintf(frrActivateIPv6Template, "NODE6"),
		editPeer: func(p *intent.Peer) { p.Address, p.CarriesIPv4Routes, p.CarriesIPv6Routes = routerIPv6, false, true }, announcesIPv6Routes: true,
		checkRoute: func(t *testing.T, h nodeOfSessionCase, _ bgp.PeerSessionStatus, p frrPath) {
			if p.NextHops[0].IP != h.ipv6 {
				t.Errorf("the next hop is %+v", p.NextHops)
			}
		},
	},
	"both families over IPv4": {
		frrNeighbourConfig: "neighbor NODE4 remote-as 64512", frrAddressFamilyConfigs: fmt.Sprintf(frrActivateIPv6Template, "NODE4"), editPeer: func(p *intent.Peer) { p.CarriesIPv6Routes = true }, announcesIPv4Routes: true, announcesIPv6Routes: true,
		checkRoute: func(t *testing.T, h nodeOfSessionCase, _ bgp.PeerSessionStatus, p frrPath) {
			if p.NextHops[0].IP != h.ipv6 {
				t.Errorf("the IPv6 next hop is %+v", p.NextHops)
			}
		},
	},
	"both families over IPv6, with the link's IPv4 address as next hop": {
		frrNeighbourConfig: "neighbor NODE6 remote-as 64512", frrAddressFamilyConfigs: fmt.Sprintf(frrActivateIPv6Template, "NODE6"),
		editPeer: func(p *intent.Peer) { p.Address, p.CarriesIPv6Routes = routerIPv6, true }, announcesIPv6Routes: true, announcesIPv4Routes: true,
		checkRoute: func(t *testing.T, h nodeOfSessionCase, _ bgp.PeerSessionStatus, p frrPath) {
			if p.NextHops[0].IP != h.ipv4 {
				t.Errorf("the IPv4 next hop is %+v", p.NextHops)
			}
		},
	},
	"without multiprotocol": {frrNeighbourConfig: "neighbor NODE4 remote-as 64512\n neighbor NODE4 dont-capability-negotiate", editPeer: func(p *intent.Peer) { p.NoMultiprotocol = true }},
	"a four-octet AS number with a router that offers two octets": {
		frrNeighbourConfig: "neighbor NODE4 remote-as 4200000001\n neighbor NODE4 dont-capability-negotiate", editPeer: func(p *intent.Peer) { p.LocalASN = 4200000001 },
		checkRoute: func(t *testing.T, h nodeOfSessionCase, _ bgp.PeerSessionStatus, p frrPath) {
			if p.ASPath.String != "23456" {
				t.Errorf("the AS path is %s, want the number that stands for one of four octets", p.ASPath.String)
			}
		},
	},
	"a password":   {frrNeighbourConfig: "neighbor NODE4 remote-as 64512\n neighbor NODE4 password s3cret", editPeer: func(p *intent.Peer) { p.Password = "s3cret" }},
	"TTL security": {frrNeighbourConfig: "neighbor NODE4 remote-as 64512\n neighbor NODE4 ttl-security hops 1", editPeer: func(p *intent.Peer) { p.MaxHops = 1 }},
	"several hops": {
		frrNeighbourConfig: "neighbor NODE4 remote-as 64512\n neighbor NODE4 ebgp-multihop 3\n neighbor NODE4 update-source 10.99.0.1",
		editPeer:           func(p *intent.Peer) { p.Address, p.Multihop = netip.MustParseAddr("10.99.0.1"), true },
	},
	"a source address": {frrNeighbourConfig: "neighbor NODE4 remote-as 64512", usesNodeSourceAddress: true},
	"a device":         {frrNeighbourConfig: "neighbor NODE4 remote-as 64512", editPeer: func(p *intent.Peer) { p.Device = "eth0" }},
	"a router ID": {frrNeighbourConfig: "neighbor NODE4 remote-as 64512", editPeer: func(p *intent.Peer) { p.RouterID = netip.MustParseAddr("10.1.2.3") }, checkRoute: func(t *testing.T, h nodeOfSessionCase, _ bgp.PeerSessionStatus, p frrPath) {
		if p.Peer.RouterID != "10.1.2.3" {
			t.Errorf("the router ID is %s", p.Peer.RouterID)
		}
	}},
	"a hold time": {frrNeighbourConfig: "neighbor NODE4 remote-as 64512", editPeer: func(p *intent.Peer) { p.HoldTime, p.KeepaliveTime = 6*time.Second, time.Second }, checkRoute: func(t *testing.T, h nodeOfSessionCase, st bgp.PeerSessionStatus, _ frrPath) {
		if st.HoldTime != 6*time.Second {
			t.Errorf("the hold time is %s", st.HoldTime)
		}
	}},
	"no hold time": {frrNeighbourConfig: "neighbor NODE4 remote-as 64512", editPeer: func(p *intent.Peer) { p.HoldTime = 0 }, checkRoute: func(t *testing.T, h nodeOfSessionCase, st bgp.PeerSessionStatus, _ frrPath) {
		if st.HoldTime != 0 {
			t.Errorf("the hold time is %s", st.HoldTime)
		}
	}},
	"another port": {frrNeighbourConfig: "neighbor NODE4 remote-as 64512", editPeer: func(p *intent.Peer) { p.Port = 1179 }},
}

// TestFRRGetsRoutesOnEachKindOfSession runs every kind of session that a BGPPeer can
// configure. Each case has its own node, and all have sessions with the same
// router at the same time. FRR is configured as its manual shows.
func TestFRRGetsRoutesOnEachKindOfSession(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: len(frrCases)})
	redirectPort1179To179(t, b)
	var lines, families []string
	names := slices.Sorted(maps.Keys(frrCases))
	at := map[string]nodeOfSessionCase{}
	for i, name := range names {
		h := nodeOfSessionCase{i, fmt.Sprintf("192.168.0.%d", 11+i), fmt.Sprintf("fd00:a8::%x", 11+i)}
		address := strings.NewReplacer("NODE4", h.ipv4, "NODE6", h.ipv6)
		lines = append(lines, address.Replace(frrCases[name].frrNeighbourConfig))
		families = append(families, address.Replace(frrCases[name].frrAddressFamilyConfigs))
		at[name] = h
	}
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(strings.Join(lines, "\n "), families...)})
	for _, name := range names {
		c, h := frrCases[name], at[name]
		t.Run(name, func(t *testing.T) {
			p := exampleExternalPeer()
			if c.editPeer != nil {
				c.editPeer(&p)
			}
			if c.usesNodeSourceAddress {
				p.SourceAddress = netip.MustParseAddr(h.ipv4)
			}
			s := startSpeaker(t, b.NamespaceOfHost(fmt.Sprintf("node%d", 1+h.index)))
			var prefixes []string
			if c.announcesIPv6Routes {
				prefixes = append(prefixes, fmt.Sprintf("2001:db8::%x/128", 1+h.index))
			}
			if c.announcesIPv4Routes || !c.announcesIPv6Routes {
				prefixes = append(prefixes, fmt.Sprintf("198.51.100.%d/32", 1+h.index))
			}
			// the check is for the other family's next hop
			if c.announcesIPv4Routes && p.Address.Is4() {
				slices.Reverse(prefixes)
			}
			s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(prefixes...)})
			st := s.waitForEstablished("tor")
			var got frrPath
			for _, prefix := range prefixes {
				got = waitForFRRRoute(t, frr, prefix)
			}
			if c.checkRoute != nil {
				c.checkRoute(t, h, st, got)
			}
		})
	}
}

func TestAttributesReachFRR(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig)})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	rs := exampleRoutes("198.51.100.1/32", "198.51.100.0/24")
	rs[0].Attributes = intent.Attributes{
		MED: 42, HasMED: true, PrependCount: 2, Communities: []uint32{64512<<16 | 7, 0xffffff01}, LargeCommunities: [][3]uint32{{64512, 1, 4294967295}},
		ExtendedCommunities: [][8]byte{{0x00, 0x02, 0xfc, 0x00, 0, 0, 0, 9}}, // a route target
	}
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: rs})
	s.waitForEstablished("tor")
	got := waitForFRRRoute(t, frr, servicePrefix)
	want := frrPath{}
	want.ASPath.String, want.Community.String = "64512 64512 64512", "64512:7 no-export"
	want.Large.String, want.Extended.String = "64512:1:4294967295", "RT:64512:9"
	if got.ASPath.String != want.ASPath.String || got.Community.String != want.Community.String || got.Large.String != want.Large.String ||
		got.Extended.String != want.Extended.String || got.MED == nil || *got.MED != 42 {
		t.Errorf("the router has\n%+v, want\n%+v with MED 42", got, want)
	}
	if got := waitForFRRRoute(t, frr, "198.51.100.0/24"); got.Community.String != "" {
		t.Errorf("the plain route has communities: %+v", got)
	}
	t.Run("a change of attributes is one UPDATE, and no reset", func(t *testing.T) {
		before := s.peerStatus("tor").MessageTotals.Sent.Updates
		rs := exampleRoutes("198.51.100.1/32", "198.51.100.0/24")
		s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: rs})
		awaitNoError(t, "the communities are removed", func() error {
			if got := waitForFRRRoute(t, frr, servicePrefix); got.Community.String != "" {
				return fmt.Errorf("%+v", got)
			}
			return nil
		})
		if st := s.peerStatus("tor"); st.MessageTotals.Sent.Updates != before+1 || st.EstablishedCount != 1 {
			t.Errorf("%d UPDATEs, %d sessions; want one more than %d, and one session", st.MessageTotals.Sent.Updates, st.EstablishedCount, before)
		}
	})
	t.Run("routes of a leaving node are announced with GRACEFUL_SHUTDOWN, then withdrawn", func(t *testing.T) {
		s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: rs, NodeLeaving: true})
		awaitNoError(t, "the route has the community GRACEFUL_SHUTDOWN", func() error {
			if got := waitForFRRRoute(t, frr, servicePrefix); !strings.Contains(got.Community.String, "graceful-shutdown") {
				return fmt.Errorf("%+v", got)
			}
			return nil
		})
		waitForNoFRRRoute(t, frr, servicePrefix)
		s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: rs})
		waitForFRRRoute(t, frr, servicePrefix)
	})
}

// startInternalRouterAndSpeaker starts an FRR of the node's own AS, and a speaker that announces
// servicePrefix to it. edit changes the route before.
func startInternalRouterAndSpeaker(t *testing.T, edit func(*intent.Route)) *router.Router {
	t.Helper()
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig("neighbor 192.168.0.11 remote-as 65000")})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	p.LocalASN = 65000
	rs := exampleRoutes(servicePrefix)
	edit(rs[0])
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: rs})
	return frr
}

func TestLocalPreferenceReachesInternalRouters(t *testing.T) {
	frr := startInternalRouterAndSpeaker(t, func(r *intent.Route) { r.LocalPref = 250 })
	if got := waitForFRRRoute(t, frr, servicePrefix); got.LocalPref != 250 {
		t.Errorf("the router has %+v, want localPref 250", got)
	}
}

// TestPasswordOfAnOpenSessionCanChange changes the password of an open session, first
// here and then at the router, as docs/bgp.md says.
func TestPasswordOfAnOpenSessionCanChange(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig + "\n neighbor 192.168.0.11 password old")})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	p.Password = "wrong"
	p.HoldTime = 9 * time.Second
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	s.waitForError("tor", "Is the password the same on both sides?")
	p.Password = "old"
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	s.waitForEstablished("tor")
	waitForFRRRoute(t, frr, servicePrefix)
	p.BlockedExplanation = names.Explanation{Reason: "UnknownSecret", Text: "the Secret is missing"}
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix, "198.51.100.2/32")})
	waitForFRRRoute(t, frr, "198.51.100.2/32") // a missing Secret ends no session
	p.BlockedExplanation, p.Password = names.Explanation{}, "new"
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix, "198.51.100.3/32")})
	p.Password = "old" // the edit is reverted before the router has it
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix, "198.51.100.3/32")})
	waitForFRRRoute(t, frr, "198.51.100.3/32")
	if st := s.peerStatus("tor"); st.EstablishedCount != 1 {
		t.Errorf("the session was established %d times", st.EstablishedCount)
	}
	p.Password = "new"
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix, "198.51.100.4/32")})
	if err := frr.ChangeRunningConfig(t.Context(), "router bgp 65000\n neighbor 192.168.0.11 password new\n"); err != nil {
		t.Fatal(err)
	}
	waitForFRRRoute(t, frr, "198.51.100.4/32") // FRR itself resets the session for it
}

// TestResetWithGracefulNotificationKeepsRoutes changes the OPEN, which
// resets the session. With RFC 8538 the router keeps the routes.
func TestResetWithGracefulNotificationKeepsRoutes(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig, " bgp graceful-restart", " bgp graceful-restart notification")})
	p := exampleExternalPeer()
	p.GracefulRestart, p.RestartTime = true, 120*time.Second
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	s.waitForEstablished("tor")
	waitForFRRRoute(t, frr, servicePrefix)
	for i := range 3 {
		p.HoldTime = time.Duration(60+i) * time.Second // is in the OPEN
		s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
		awaitNoError(t, "the session is established again", func() error {
			got := frrPaths(t, frr, servicePrefix)
			if len(got) == 0 {
				t.Fatalf("reset %d removed the route", i)
			}
			if st := s.peerStatus("tor"); st.EstablishedCount != i+2 || st.State != bgp.Established || got[0].Stale {
				return fmt.Errorf("%+v, %+v", st, got)
			}
			return nil
		})
	}
}

func TestConfigurationErrorsAreExplained(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig)})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	p.PeerASN = 65001
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	s.waitForError("tor", "its AS number is 65000, and the BGPPeer asks for 65001")
	p.PeerASN, p.LocalASN = 65000, 64513
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	s.waitForError("tor", "bad peer AS")
	p.LocalASN, p.BlockedExplanation = 64512, names.Explanation{Reason: "UnknownSecret", Text: "no password"}
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	s.waitForError("tor", "no password")
	if st := s.peerStatus("tor"); st.NotConnectingReason != "UnknownSecret" {
		t.Errorf("the reason is %q", st.NotConnectingReason)
	}
	p.BlockedExplanation, p.SourceAddress = names.Explanation{}, netip.MustParseAddr("192.0.2.99")
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	s.waitForError("tor", "no interface of this node has that address")
	p.SourceAddress, p.Device = netip.Addr{}, "blue"
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	s.waitForError("tor", `this node has no link or VRF "blue"`)
	p.Device = ""
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	if st := s.waitForEstablished("tor"); st.NotConnectingReason != "" {
		t.Errorf("the reason is still %q", st.NotConnectingReason)
	}
	if err := frr.ChangeRunningConfig(t.Context(), "router bgp 65000\n neighbor 192.168.0.11 shutdown message maintenance\n"); err != nil {
		t.Fatal(err)
	}
	s.waitForError("tor", "maintenance")
}

func TestSpeakerStopWithdrawsRoutes(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig, " bgp graceful-restart", " bgp graceful-restart preserve-fw-state")})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	s.waitForEstablished("tor")
	waitForFRRRoute(t, frr, servicePrefix)
	s.Stop(t.Context())
	waitForNoFRRRoute(t, frr, servicePrefix)
	out, err := frr.RunShowCommand(t.Context(), "show bgp neighbors 192.168.0.11")
	if err != nil || !strings.Contains(string(out), "the speaker stops") && !strings.Contains(string(out), "Administrative Shutdown") {
		t.Errorf("the router does not show why the session ended (%v):\n%s", err, out)
	}
}

// TestRouterKeepsRoutesOverSpeakerRestart checks the router's routes when a speaker restarts,
// crashes or leaves.
func TestRouterKeepsRoutesOverSpeakerRestart(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig, " bgp graceful-restart")})
	p := exampleExternalPeer()
	p.GracefulRestart, p.RestartTime = true, 120*time.Second
	desired := bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix, "198.51.100.2/32")}
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	s.SetDesiredState(desired)
	if st := s.waitForEstablished("tor"); !st.RouterKeepsRoutesOverRestart {
		t.Fatalf("graceful restart was not negotiated: %+v", st)
	}
	waitForFRRRoute(t, frr, servicePrefix)
	for _, how := range []struct {
		name string
		end  func(s *testSpeaker)
	}{
		{"a stopped speaker", func(s *testSpeaker) { s.Stop(t.Context()); s.endEnginesWithoutStop() }},
		{"a crashed speaker", func(s *testSpeaker) { s.endEnginesWithoutStop() }},
	} {
		how.end(s)
		awaitNoError(t, how.name+": the router keeps the route as stale", func() error {
			if p := frrPaths(t, frr, servicePrefix); len(p) != 1 || !p[0].Stale {
				return fmt.Errorf("%+v", p)
			}
			return nil
		})
		s = startSpeaker(t, b.NamespaceOfHost("node1"))
		s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
		s.waitForEstablished("tor")
		waitForNoFRRRoute(t, frr, "198.51.100.2/32") // the End-of-RIB removes stale routes
		if got := waitForFRRRoute(t, frr, servicePrefix); got.Stale {
			t.Errorf("%s: the route is stale after the restart: %+v", how.name, got)
		}
		s.SetDesiredState(desired)
		waitForFRRRoute(t, frr, "198.51.100.2/32")
	}
	leaving := desired
	leaving.NodeLeaving = true
	s.SetDesiredState(leaving)
	waitForNoFRRRoute(t, frr, servicePrefix)
	s.SetDesiredState(desired)
	waitForFRRRoute(t, frr, servicePrefix)
	s.SetDesiredState(leaving)
	s.Stop(t.Context())
	waitForNoFRRRoute(t, frr, servicePrefix)
}
