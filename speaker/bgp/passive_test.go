package bgp_test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// unnumberedPeer is a peer whose router is found on a link.
func unnumberedPeer(device string) intent.Peer {
	return intent.Peer{
		Name: "tor", Unnumbered: true, Device: device, Port: 179, LocalASN: 64512, AcceptedASNs: intent.AcceptExternalASN, HoldTime: 9 * time.Second, CarriesIPv4Routes: true, CarriesIPv6Routes: true,
	}
}

// kernelRouteTo returns how a host's kernel routes an address.
func kernelRouteTo(t *testing.T, h netns.Path, address string) string {
	t.Helper()
	var out []byte
	err := h.RunInside(func() error {
		// It fails and says so when there is no route.
		out, _ = exec.Command("ip", "route", "get", address).CombinedOutput()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestUnnumberedPeerFindsRouterByAdvertisements lets FRR and the speaker find each other only by
// router advertisements, with the documented configuration.
func TestUnnumberedPeerFindsRouterByAdvertisements(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: readDocumentedConfig(t, "FRR, unnumbered")})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := unnumberedPeer("eth0")
	p.BFD = &intent.BFD{TransmitInterval: 100 * time.Millisecond, ReceiveInterval: 100 * time.Millisecond, EchoInterval: 50 * time.Millisecond, Multiplier: 3, MinTTL: 254}
	d := bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix, "2001:db8::1/128")}
	s.SetDesiredState(d)
	st := s.waitForEstablished("tor")
	if a := st.RouterAddress.Addr(); !a.IsLinkLocalUnicast() || a.Zone() != "eth0" || st.RouterASN != 65000 {
		t.Errorf("the router is %s of AS %d", a, st.RouterASN)
	}
	for _, prefix := range []string{servicePrefix, "2001:db8::1/128"} {
		got := waitForFRRRoute(t, frr, prefix)
		// They are the global address, and the link-local one, which is used.
		for _, h := range got.NextHops {
			if h.Used != netip.MustParseAddr(h.IP).IsLinkLocalUnicast() || len(got.NextHops) != 2 {
				t.Errorf("the next hops of %s are %+v", prefix, got.NextHops)
			}
		}
	}
	for _, address := range []string{"198.51.100.1", "2001:db8::1"} {
		awaitNoError(t, "the router's kernel sends "+address+" to the node", func() error {
			if out := kernelRouteTo(t, b.NamespaceOfHost("router"), address); !strings.Contains(out, "fe80::") || !strings.Contains(out, "dev eth0") {
				return fmt.Errorf("it says %s", out)
			}
			return nil
		})
	}
	awaitNoError(t, "BFD is up", func() error {
		if st := s.peerStatus("tor"); st.BFDState != "Up" {
			return fmt.Errorf("it is %q", st.BFDState)
		}
		return nil
	})
	t.Run("an edit of the routes resets no session", func(t *testing.T) {
		d.Routes = append(d.Routes, exampleRoutes("198.51.100.2/32")...)
		s.SetDesiredState(d)
		waitForFRRRoute(t, frr, "198.51.100.2/32")
		if st := s.peerStatus("tor"); st.EstablishedCount != 1 {
			t.Errorf("%+v", st)
		}
	})
	t.Run("a missing link is reported", func(t *testing.T) {
		s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{unnumberedPeer("eth9")}, Routes: exampleRoutes(servicePrefix)})
		s.waitForError("tor", `this node has no link "eth9"`)
		if st := s.peerStatus("tor"); st.NotConnectingReason != names.ReasonNoRouter {
			t.Errorf("the reason is %q", st.NotConnectingReason)
		}
		waitForNoFRRRoute(t, frr, servicePrefix)
		s.SetDesiredState(d)
		waitForFRRRoute(t, frr, servicePrefix)
	})
}

// TestRouterConnectsToPassivePeer lets FRR connect to the speaker.
func TestRouterConnectsToPassivePeer(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig + "\n neighbor 192.168.0.11 timers connect 1\n neighbor 192.168.0.11 password s3cret")})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	p.Passive, p.MaxHops = true, 0
	d := bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)}
	other, err := b.NamespaceOfHost("node1").Listen("tcp", ":179")
	if err != nil {
		t.Fatal(err)
	}
	s.SetDesiredState(d) // without the password
	s.waitForError("tor", "another program on this node, perhaps a BGP daemon, uses the port")
	if st := s.peerStatus("tor"); st.NotConnectingReason != names.ReasonPortUnavailable {
		t.Errorf("the reason is %q", st.NotConnectingReason)
	}
	other.Close()
	awaitNoError(t, "it waits for the router", func() error {
		if st := s.peerStatus("tor"); st.State != bgp.Active {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	p.Password = "s3cret"
	twin := p // which must not get the router's connection
	twin.Name, twin.Password, twin.BlockedExplanation = "again", "other", names.Explanation{Reason: "DuplicatePeer", Text: "the other one is older"}
	d.Peers = []intent.Peer{twin, p, twin}
	d.Peers[2].Name = "yet again"
	s.SetDesiredState(d)
	s.waitForEstablished("tor")
	waitForFRRRoute(t, frr, servicePrefix)
	t.Run("connections from other addresses are closed", func(t *testing.T) {
		c, err := b.NamespaceOfHost("client").Dial(t.Context(), "tcp", "192.168.0.11:179")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if n, err := c.Read(make([]byte, 1)); err == nil || n > 0 {
			t.Errorf("the connection got an answer")
		}
		if st := s.peerStatus("tor"); st.State != bgp.Established || st.EstablishedCount != 1 {
			t.Errorf("the session was affected: %+v", st)
		}
	})
	t.Run("the router reconnects", func(t *testing.T) {
		if _, err := frr.RunShowCommand(t.Context(), "clear bgp 192.168.0.11"); err != nil {
			t.Fatal(err)
		}
		awaitNoError(t, "the second session", func() error {
			if st := s.peerStatus("tor"); st.EstablishedCount < 2 || st.State != bgp.Established {
				return fmt.Errorf("%+v", st)
			}
			return nil
		})
		waitForFRRRoute(t, frr, servicePrefix)
	})
}

// TestTwoPeersOfOneRouterHaveOwnSessions connects a node twice to one
// router: from two addresses, as two autonomous systems.
func TestTwoPeersOfOneRouterHaveOwnSessions(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	err := b.NamespaceOfHost("node1").RunInside(func() error { return netns.AddAddress("eth0", netip.MustParsePrefix("192.168.0.71/24")) })
	if err != nil {
		t.Fatal(err)
	}
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig + "\n neighbor 192.168.0.71 remote-as 64513")})
	first, second := exampleExternalPeer(), exampleExternalPeer()
	first.SourceAddress = netip.MustParseAddr("192.168.0.11")
	second.Name, second.SourceAddress, second.LocalASN, second.RouterID = "again", netip.MustParseAddr("192.168.0.71"), 64513, netip.MustParseAddr("10.0.0.71")
	d := bgp.DesiredState{Peers: []intent.Peer{first, second}, Routes: exampleRoutes(servicePrefix)}
	d.Routes[0].PeerNames = []string{"again", "tor"}
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	s.SetDesiredState(d)
	s.waitForEstablished("tor")
	s.waitForEstablished("again")
	paths := func(want ...string) {
		t.Helper()
		awaitNoError(t, fmt.Sprintf("the router has paths through %v", want), func() error {
			var got []string
			for _, p := range frrPaths(t, frr, servicePrefix) {
				got = append(got, p.ASPath.String+" via "+p.NextHops[0].IP)
			}
			if slices.Sort(got); !slices.Equal(got, want) {
				return fmt.Errorf("it has %v", got)
			}
			return nil
		})
	}
	paths("64512 via 192.168.0.11", "64513 via 192.168.0.71")
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{first}, Routes: exampleRoutes(servicePrefix)})
	paths("64512 via 192.168.0.11")
	if st := s.peerStatus("tor"); st.EstablishedCount != 1 {
		t.Errorf("the session of the remaining peer: %+v", st)
	}
	t.Run("both peers share one BFD session", func(t *testing.T) {
		second.SourceAddress, first.BFD = first.SourceAddress, fastBFD()
		slow := *first.BFD
		slow.TransmitInterval = time.Second
		second.BFD, second.Port = &slow, 1179
		s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{first, second}, Routes: exampleRoutes(servicePrefix)})
		awaitNoError(t, "the other peer reports the conflicting profile", func() error {
			a, b := s.peerStatus("tor").BFDFault, s.peerStatus("again").BFDFault
			if a.Reason == names.ReasonConflictingBFD || b.Reason != names.ReasonConflictingBFD || !strings.Contains(b.Text, `the settings of the BGPPeer "tor"`) {
				return fmt.Errorf("the faults are %+v and %+v", a, b)
			}
			return nil
		})
	})
}

// TestRouterConnectsToTwoPassivePeers lets a router connect to two
// addresses of a node, which belong to two BGPPeers.
func TestRouterConnectsToTwoPassivePeers(t *testing.T) {
	t.Parallel()
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	err := b.NamespaceOfHost("node1").RunInside(func() error { return netns.AddAddress("eth0", netip.MustParsePrefix("192.168.0.71/24")) })
	if err != nil {
		t.Fatal(err)
	}
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig + "\n neighbor 192.168.0.71 remote-as 64513\n neighbor 192.168.0.71 timers connect 1\n neighbor 192.168.0.11 timers connect 1")})
	first, second := exampleExternalPeer(), exampleExternalPeer()
	first.SourceAddress, first.Passive = netip.MustParseAddr("192.168.0.11"), true
	second.Name, second.SourceAddress, second.LocalASN, second.Passive = "again", netip.MustParseAddr("192.168.0.71"), 64513, true
	d := bgp.DesiredState{Peers: []intent.Peer{first, second}, Routes: exampleRoutes(servicePrefix)}
	d.Routes[0].PeerNames = []string{"again", "tor"}
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	s.SetDesiredState(d)
	s.waitForEstablished("tor")
	s.waitForEstablished("again")
	awaitNoError(t, "the router has both paths", func() error {
		if got := frrPaths(t, frr, servicePrefix); len(got) != 2 {
			return fmt.Errorf("it has %+v", got)
		}
		return nil
	})
}
