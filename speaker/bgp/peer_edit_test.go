package bgp_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// TestPeerEditsResetSessionOnlyWhenNeeded edits a BGPPeer with an established session. Only edits
// that need another OPEN or connection reset it, and every edit takes effect.
func TestPeerEditsResetSessionOnlyWhenNeeded(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig)})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	set := func(edit func()) (before bgp.PeerSessionStatus) {
		t.Helper()
		before = s.peerStatus("tor")
		edit()
		s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
		return before
	}
	set(func() {})
	s.waitForEstablished("tor")
	waitForFRRRoute(t, frr, servicePrefix)
	t.Run("the keepalive time", func(t *testing.T) {
		before := set(func() { p.KeepaliveTime = time.Second })
		awaitNoError(t, "keepalives are sent once a second", func() error {
			if st := s.peerStatus("tor"); st.MessageTotals.Sent.Keepalives < before.MessageTotals.Sent.Keepalives+3 {
				return fmt.Errorf("%d are sent, %d before the edit", st.MessageTotals.Sent.Keepalives, before.MessageTotals.Sent.Keepalives)
			}
			return nil
		})
	})
	t.Run("the expected AS number", func(t *testing.T) {
		for _, edit := range []func(){
			func() { p.PeerASN, p.AcceptedASNs = 0, intent.AcceptExternalASN },
			func() { p.PeerASN, p.AcceptedASNs = 65000, intent.AcceptOnlyPeerASN },
			func() { p.MaxReconnectDelay = time.Minute },
		} {
			set(edit)
		}
		s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix, "198.51.100.2/32")})
		waitForFRRRoute(t, frr, "198.51.100.2/32")
		if st := s.peerStatus("tor"); st.EstablishedCount != 1 || st.State != bgp.Established {
			t.Fatalf("the edit reset the session: %+v", st)
		}
	})
	t.Run("a wrong AS number, and a connectTime without a session", func(t *testing.T) {
		set(func() { p.PeerASN, p.MaxReconnectDelay = 65001, time.Hour })
		s.waitForError("tor", "its AS number is 65000, and the BGPPeer asks for 65001")
		waitForNoFRRRoute(t, frr, servicePrefix)
		set(func() { p.PeerASN, p.AcceptedASNs = 0, intent.AcceptInternalASN })
		s.waitForError("tor", "the BGPPeer asks for the internal 64512")
		if err := frr.ChangeRunningConfig(t.Context(), "router bgp 65000\n no neighbor 192.168.0.11\n"); err != nil {
			t.Fatal(err)
		}
		set(func() { p.PeerASN, p.AcceptedASNs = 0, intent.AcceptExternalASN })
		s.waitForError("tor", "before its OPEN")
		if err := frr.ChangeRunningConfig(t.Context(), "router bgp 65000\n "+frrExternalNeighbourConfig+"\n"); err != nil {
			t.Fatal(err)
		}
		set(func() { p.MaxReconnectDelay = time.Second })
		s.waitForEstablished("tor")
		waitForFRRRoute(t, frr, servicePrefix)
	})
	t.Run("the contents of the OPEN", func(t *testing.T) {
		for _, edit := range []func(){
			func() { p.HoldTime = 3 * time.Second },
			func() { p.RouterID = netip.MustParseAddr("10.9.9.9") },
			func() { p.NoMultiprotocol = true },
			func() { p.CarriesIPv6Routes, p.NoMultiprotocol = true, false },
		} {
			before := set(edit)
			awaitNoError(t, "a new session is established", func() error {
				if st := s.peerStatus("tor"); st.EstablishedCount == before.EstablishedCount || st.State != bgp.Established {
					return fmt.Errorf("%+v", st)
				}
				return nil
			})
			waitForFRRRoute(t, frr, servicePrefix)
		}
		if st := s.peerStatus("tor"); st.HoldTime != 3*time.Second {
			t.Errorf("the hold time is %s", st.HoldTime)
		}
		if got := waitForFRRRoute(t, frr, servicePrefix); got.Peer.RouterID != "10.9.9.9" {
			t.Errorf("the router ID is %s", got.Peer.RouterID)
		}
	})
}

// TestRouterRefusalReasonSurvivesRetries exceeds a router's prefix limit. FRR
// says so once, and then only closes connections.
func TestRouterRefusalReasonSurvivesRetries(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig, " address-family ipv4 unicast", "  neighbor 192.168.0.11 maximum-prefix 2", " exit-address-family")})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	p.MaxReconnectDelay = time.Second
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix, "198.51.100.2/32")})
	s.waitForEstablished("tor")
	waitForFRRRoute(t, frr, servicePrefix)
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix, "198.51.100.2/32", "198.51.100.3/32", "198.51.100.4/32", "198.51.100.5/32")})
	s.waitForError("tor", "maximum number of prefixes reached, 2 of ipv4-unicast: raise the limit")
	before := s.peerStatus("tor").MessageTotals
	awaitNoError(t, "the speaker tries again", func() error {
		st := s.peerStatus("tor")
		if st.MessageTotals.Sent.Opens < before.Sent.Opens+2 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	s.waitForError("tor", "maximum number of prefixes reached")
}

// TestErrorSuggestsEBGPMultiHop connects to a router several hops away without ebgpMultiHop.
func TestErrorSuggestsEBGPMultiHop(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("far"), ConfigText: buildFRRConfig("neighbor 192.168.0.11 remote-as 64512\n neighbor 192.168.0.11 ebgp-multihop")})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	p.Address = netip.MustParseAddr("10.99.0.2")
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	s.waitForError("tor", "ebgpMultiHop")
	p.Multihop = true
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	s.waitForEstablished("tor")
}

// TestTwoUnnumberedPeersGetTheirSessions uses a node with two uplinks to two routers.
func TestTwoUnnumberedPeersGetTheirSessions(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1, Routers: 2})
	if err := netns.AddCable(b.NamespaceOfHost("node1"), "up2", b.NamespaceOfHost("router2"), "down"); err != nil {
		t.Fatal(err)
	}
	for at, link := range map[string]string{"node1": "up2", "router2": "down"} {
		if err := b.NamespaceOfHost(at).RunInside(func() error { return netns.SetLinkUp(link) }); err != nil {
			t.Fatal(err)
		}
	}
	first := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: readDocumentedConfig(t, "FRR, unnumbered")})
	second := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router2"), ConfigText: strings.NewReplacer("eth0", "down", "192.168.0.1", "192.168.0.2", "65000", "65002").Replace(readDocumentedConfig(t, "FRR, unnumbered"))})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p, q := unnumberedPeer("eth0"), unnumberedPeer("up2")
	q.Name = "again"
	rs := exampleRoutes(servicePrefix, "2001:db8::1/128")
	for i := range rs {
		rs[i].PeerNames = []string{"again", "tor"}
	}
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p, q}, Routes: rs})
	s.waitForEstablished("tor")
	s.waitForEstablished("again")
	for _, r := range []*router.Router{first, second} {
		for _, prefix := range []string{servicePrefix, "2001:db8::1/128"} {
			waitForFRRRoute(t, r, prefix)
		}
	}
}

// TestOversizedRouteDoesNotAffectOthers announces one route
// with more communities than fit into a message.
func TestOversizedRouteDoesNotAffectOthers(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig)})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	rs := exampleRoutes(servicePrefix, "198.51.100.2/32", "198.51.100.3/32")
	for i := range 400 {
		rs[1].LargeCommunities = append(rs[1].LargeCommunities, [3]uint32{64512, 1, uint32(i)})
	}
	rs[2].LargeCommunities = rs[1].LargeCommunities[:280]
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{exampleExternalPeer()}, Routes: rs})
	s.waitForEstablished("tor")
	waitForFRRRoute(t, frr, servicePrefix)
	waitForFRRRoute(t, frr, "198.51.100.3/32")
	if got := frrPaths(t, frr, "198.51.100.2/32"); len(got) > 0 {
		t.Errorf("the router has %+v", got)
	}
	if st := s.peerStatus("tor"); st.EstablishedCount != 1 || st.WantedRouteCount != 3 || st.AnnouncedRouteCount != 2 || st.WithheldRouteReason.Reason != names.ReasonTooManyCommunities {
		t.Errorf("the session is %+v", st)
	}
	rs = slices.Clone(rs)
	rs[1] = &intent.Route{Prefix: rs[1].Prefix, PeerNames: rs[1].PeerNames, Attributes: intent.Attributes{LargeCommunities: rs[1].LargeCommunities[:1]}}
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{exampleExternalPeer()}, Routes: rs})
	waitForFRRRoute(t, frr, "198.51.100.2/32")
}

// TestSessionSurvivesMissingDefaultGateway removes the gateway's address for a moment, as
// a replaced default route does. The session with the gateway continues.
func TestSessionSurvivesMissingDefaultGateway(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig+"\n neighbor 192.168.0.11 bfd profile fast") + frrBFDProfiles})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p, lost := exampleExternalPeer(), exampleExternalPeer()
	p.BFD = fastBFD()
	lost.Address, lost.BlockedExplanation = netip.Addr{}, names.Explanation{Reason: "NoGateway", Text: "no default gateway"}
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{lost}, Routes: exampleRoutes(servicePrefix)})
	s.waitForError("tor", "no default gateway")
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	s.waitForEstablished("tor")
	ups := s.waitForStableSession("tor").EstablishedCount
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{lost}, Routes: exampleRoutes(servicePrefix, "198.51.100.2/32")})
	waitForFRRRoute(t, frr, "198.51.100.2/32")
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{lost}, Routes: exampleRoutes(servicePrefix, "198.51.100.3/32")})
	waitForFRRRoute(t, frr, "198.51.100.3/32")
	if st := s.peerStatus("tor"); st.EstablishedCount != ups || st.State != bgp.Established || st.BFDState != "Up" {
		t.Errorf("the edit reset the session: %+v", st)
	}
	if err := frr.ChangeRunningConfig(t.Context(), "router bgp 65000\n no neighbor 192.168.0.11\n"); err != nil {
		t.Fatal(err)
	}
	s.waitForError("tor", "no default gateway")
}

// TestRouterRestartIsNoticedWithoutHoldTime lets a router lose its
// connection without closing it, as a power cycle does. Without a hold time
// and without anything to send, only TCP keepalives notice it.
func TestRouterRestartIsNoticedWithoutHoldTime(t *testing.T) {
	t.Parallel()
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	forgets, forgotten := make(chan struct{}), make(chan struct{})
	quiet := make(chan net.Conn)
	var again atomic.Bool
	bad := startHostileRouter(t, b.NamespaceOfHost("router"), 2001, func(c net.Conn) {
		if sendOpenAndKeepalive(c, 0) != nil || again.Swap(true) {
			<-t.Context().Done()
			return
		}
		// Read our KEEPALIVE and UPDATE: unacknowledged data would be
		// retransmitted and notice the loss.
		for range 2 {
			if _, err := message.ReadMessage(c, make([]byte, message.MaxMessageLength)); err != nil {
				t.Error(err)
			}
		}
		_, _ = c.Write(message.EncodeKeepalive())
		for waiting := true; waiting; {
			select {
			case quiet <- c:
			case <-forgets:
				waiting = false
			}
		}
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
		close(forgotten)
	})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	p.HoldTime, p.Port = 0, bad.port
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	awaitNoError(t, "the router has acknowledged the route", func() error {
		if st := s.peerStatus("tor"); st.MessageTotals.Received.Keepalives < 2 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	awaitNoError(t, "all data of the connection is acknowledged", func() error { return checkAllBytesAcknowledged(<-quiet) })
	if err := b.CutCableKeepingCarrier("node1"); err != nil {
		t.Fatal(err)
	}
	close(forgets)
	<-forgotten
	if err := b.PlugCable("node1"); err != nil {
		t.Fatal(err)
	}
	awaitNoError(t, "a new session is established", func() error {
		if st := s.peerStatus("tor"); st.EstablishedCount < 2 || st.State != bgp.Established {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
}

// TestWithheldRouteHasReason configures both families with a router that has
// one enabled, and then removes the node's next hop of the other one.
func TestWithheldRouteHasReason(t *testing.T) {
	t.Parallel()
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig)})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	p.CarriesIPv6Routes = true
	waitForReason := func(want names.Reason, text string) {
		t.Helper()
		awaitNoError(t, fmt.Sprintf("the session has the reason %q", want), func() error {
			if st := s.peerStatus("tor"); st.State != bgp.Established || st.WithheldRouteReason.Reason != want || !strings.Contains(st.WithheldRouteReason.Text, text) {
				return fmt.Errorf("%+v", st)
			}
			return nil
		})
	}
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix, "2001:db8::1/128")})
	waitForReason(names.ReasonFamilyNotCarried, "2001:db8::1/128: it does not accept routes of ipv6-unicast")
	waitForFRRRoute(t, frr, servicePrefix)
	if err := b.NamespaceOfHost("node1").RunInside(func() error { return netns.SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "1") }); err != nil {
		t.Fatal(err)
	}
	if err := frr.ChangeRunningConfig(t.Context(), "router bgp 65000\n"+fmt.Sprintf(frrActivateIPv6Template, "192.168.0.11")+"\n"); err != nil {
		t.Fatal(err)
	}
	waitForReason(names.ReasonNoNextHop, "2001:db8::1/128")
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	waitForReason("", "")
}

// checkAllBytesAcknowledged returns an error while the other
// side has not acknowledged all written bytes.
func checkAllBytesAcknowledged(c net.Conn) error {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	left := 0
	var fault error
	if err := raw.Control(func(fd uintptr) { left, fault = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil || fault != nil {
		return errors.Join(err, fault)
	}
	if left > 0 {
		return fmt.Errorf("%d bytes are not acknowledged", left)
	}
	return nil
}
