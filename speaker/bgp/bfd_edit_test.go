package bgp_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// TestBFDCanBeEnabledAndDisabled disables and enables BFD on the speaker and on the router.
// The routes return each time, and BFD comes up when both sides have it enabled.
func TestBFDCanBeEnabledAndDisabled(t *testing.T) {
	t.Parallel()
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig+"\n neighbor 192.168.0.11 timers connect 1\n neighbor 192.168.0.11 bfd profile fast") + frrBFDProfiles})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	p.MaxReconnectDelay = time.Second
	set := func(f *intent.BFD) {
		p.BFD = f
		s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	}
	waitForBFD := func(what, want string) {
		t.Helper()
		awaitNoError(t, what+": BFD is "+want+" and the session established", func() error {
			if st := s.peerStatus("tor"); st.BFDState != want || st.State != bgp.Established {
				return fmt.Errorf("BFD is %q, the session %s: %s", st.BFDState, st.State, st.LastError.Text)
			}
			return nil
		})
		waitForFRRRoute(t, frr, servicePrefix)
	}
	configure := func(line string) {
		t.Helper()
		if err := frr.ChangeRunningConfig(t.Context(), "router bgp 65000\n "+line+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	set(fastBFD())
	waitForBFD("at first", "Up")
	set(nil)
	waitForBFD("disabled here", "")
	set(fastBFD())
	waitForBFD("enabled again here", "Up")
	configure("no neighbor 192.168.0.11 bfd")
	waitForBFD("disabled on the router", "Down")
	configure("neighbor 192.168.0.11 bfd profile fast")
	waitForBFD("enabled again on the router", "Up")
	ups := s.waitForStableSession("tor").EstablishedCount
	echo := fastBFD()
	echo.EchoMode = true
	set(echo)
	waitForBFD("with echoMode, which the router's profile does not accept", "Up")
	passive := fastBFD()
	passive.Passive, passive.Multiplier, passive.MinTTL = true, 9, 7
	set(passive)
	waitForBFD("passive, with another multiplier and TTL", "Up")
	if st := s.peerStatus("tor"); st.EstablishedCount != ups {
		t.Errorf("the edits of the profile reset the session: %+v", st)
	}
}

// TestBFDWithTTLSecurityOverTwoHops uses TTL security with two hops:
// FRR then treats the neighbour as several hops away.
func TestBFDWithTTLSecurityOverTwoHops(t *testing.T) {
	t.Parallel()
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	neighbour := "neighbor 192.168.0.11 remote-as 64512\n neighbor 192.168.0.11 ttl-security hops 2\n neighbor 192.168.0.11 update-source 10.99.0.2\n neighbor 192.168.0.11 bfd profile fast"
	startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("far"), ConfigText: buildFRRConfig(neighbour) + frrBFDProfiles})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	p.Address, p.MaxHops, p.BFD = netip.MustParseAddr("10.99.0.2"), 2, fastBFD()
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	s.waitForEstablished("tor")
	awaitNoError(t, "BFD is up", func() error { return s.checkBFDState("Up") })
}

// waitForStableSession waits until the session and BFD have been up for two seconds. FRR restarts
// its BFD session when a BGP session is established, which looks like a failed path.
func (s *testSpeaker) waitForStableSession(peer string) bgp.PeerSessionStatus {
	s.t.Helper()
	awaitNoError(s.t, "the session and BFD have been up for two seconds", func() error {
		if st := s.peerStatus(peer); st.State != bgp.Established || st.BFDState != "Up" || time.Since(st.StateSince) < 2*time.Second {
			return fmt.Errorf("BFD is %q, the session %s: %s", st.BFDState, st.State, st.LastError.Text)
		}
		return nil
	})
	return s.peerStatus(peer)
}
