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

// TestBFDComesAndGoes has BFD turned off and on again, here and at the router: routes come back each time, and BFD once both
// sides want it.
func TestBFDComesAndGoes(t *testing.T) {
	t.Parallel()
	b := lay(t, router.BedOptions{Nodes: 1})
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText(plain+"\n neighbor 192.168.0.11 timers connect 1\n neighbor 192.168.0.11 bfd profile fast") + frrFast})
	s := speak(t, b.Host("node1"))
	p := tor()
	p.Connect = time.Second
	set := func(f *intent.BFD) {
		p.BFD = f
		s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	}
	is := func(what, want string) {
		t.Helper()
		eventually(t, what+": BFD is "+want+" and the session established", func() error {
			if st := s.state("tor"); st.BFD != want || st.Phase != bgp.Established {
				return fmt.Errorf("BFD is %q, the session %s: %s", st.BFD, st.Phase, st.LastError)
			}
			return nil
		})
		arrives(t, frr, vip)
	}
	configure := func(line string) {
		t.Helper()
		if err := frr.Configure(t.Context(), "router bgp 65000\n "+line+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	set(fast())
	is("at first", "Up")
	set(nil)
	is("turned off here", "")
	set(fast())
	is("turned on again here", "Up")
	configure("no neighbor 192.168.0.11 bfd")
	is("turned off at the router", "Down")
	configure("neighbor 192.168.0.11 bfd profile fast")
	is("turned on again at the router", "Up")
	ups := s.settled("tor").Ups
	echo := fast()
	echo.EchoMode = true
	set(echo)
	is("with echoMode, which this profile of the router takes none of", "Up")
	passive := fast()
	passive.Passive, passive.Multiplier, passive.MinTTL = true, 9, 7
	set(passive)
	is("passive, with another multiplier and TTL", "Up")
	if st := s.state("tor"); st.Ups != ups {
		t.Errorf("the edits of the profile reset the session: %+v", st)
	}
}

// TestBFDOfARouterSomeHopsAwayByTTLSecurity has FRR take the router for several hops away, as it does when more than one hop is
// allowed.
func TestBFDOfARouterSomeHopsAwayByTTLSecurity(t *testing.T) {
	t.Parallel()
	b := lay(t, router.BedOptions{Nodes: 1})
	neighbour := "neighbor 192.168.0.11 remote-as 64512\n neighbor 192.168.0.11 ttl-security hops 2\n neighbor 192.168.0.11 update-source 10.99.0.2\n neighbor 192.168.0.11 bfd profile fast"
	start(t, router.Config{Kind: router.FRR, NetNS: b.Host("far"), Text: frrText(neighbour) + frrFast})
	s := speak(t, b.Host("node1"))
	p := tor()
	p.Address, p.Hops, p.BFD = netip.MustParseAddr("10.99.0.2"), 2, fast()
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	s.established("tor")
	eventually(t, "BFD is up", func() error { return s.path("Up") })
}

// settled waits for a session that BFD watches, until FRR has begun its BFD session anew, as it does when a BGP session is established:
// that looks like a path that fails.
func (s *speaker) settled(peer string) bgp.State {
	s.t.Helper()
	eventually(s.t, "the session and BFD are up for a while", func() error {
		if st := s.state(peer); st.Phase != bgp.Established || st.BFD != "Up" || time.Since(st.Since) < 2*time.Second {
			return fmt.Errorf("BFD is %q, the session %s: %s", st.BFD, st.Phase, st.LastError)
		}
		return nil
	})
	return s.state(peer)
}
