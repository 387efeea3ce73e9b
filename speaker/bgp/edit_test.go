package bgp_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/frame"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// TestEditsOfAPeer edits a BGPPeer whose session is established: what needs another OPEN or connection resets it, nothing else
// does, and every edit has its effect.
func TestEditsOfAPeer(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 1})
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText(plain)})
	s := speak(t, b.Host("node1"))
	p := tor()
	set := func(edit func()) (before bgp.State) {
		t.Helper()
		before = s.state("tor")
		edit()
		s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
		return before
	}
	set(func() {})
	s.established("tor")
	arrives(t, frr, vip)
	t.Run("the keepalive time", func(t *testing.T) {
		before := set(func() { p.Keepalive = time.Second })
		eventually(t, "keepalives go out once a second", func() error {
			if st := s.state("tor"); st.Counts.Sent.Keepalives < before.Counts.Sent.Keepalives+3 {
				return fmt.Errorf("%d have, and %d had", st.Counts.Sent.Keepalives, before.Counts.Sent.Keepalives)
			}
			return nil
		})
	})
	t.Run("what is asked of the router's number", func(t *testing.T) {
		for _, edit := range []func(){
			func() { p.PeerASN, p.ASNs = 0, intent.ASNExternal },
			func() { p.PeerASN, p.ASNs = 65000, intent.ASNGiven },
			func() { p.Connect = time.Minute },
		} {
			set(edit)
		}
		s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip, "198.51.100.2/32")})
		arrives(t, frr, "198.51.100.2/32")
		if st := s.state("tor"); st.Ups != 1 || st.Phase != bgp.Established {
			t.Fatalf("the session did not outlive that: %+v", st)
		}
	})
	t.Run("a number that the router does not have, and a connectTime while there is no session", func(t *testing.T) {
		set(func() { p.PeerASN, p.Connect = 65001, time.Hour })
		s.fails("tor", "its AS number is 65000, and the BGPPeer asks for 65001")
		goes(t, frr, vip)
		set(func() { p.PeerASN, p.ASNs = 0, intent.ASNInternal })
		s.fails("tor", "the BGPPeer asks for the internal 64512")
		if err := frr.Configure(t.Context(), "router bgp 65000\n no neighbor 192.168.0.11\n"); err != nil {
			t.Fatal(err)
		}
		set(func() { p.PeerASN, p.ASNs = 0, intent.ASNExternal })
		s.fails("tor", "before its OPEN")
		if err := frr.Configure(t.Context(), "router bgp 65000\n "+plain+"\n"); err != nil {
			t.Fatal(err)
		}
		set(func() { p.Connect = time.Second })
		s.established("tor")
		arrives(t, frr, vip)
	})
	t.Run("what is in the OPEN", func(t *testing.T) {
		for _, edit := range []func(){
			func() { p.Hold = 3 * time.Second },
			func() { p.RouterID = netip.MustParseAddr("10.9.9.9") },
			func() { p.NoMultiprotocol = true },
			func() { p.IPv6, p.NoMultiprotocol = true, false },
		} {
			before := set(edit)
			eventually(t, "there is another session", func() error {
				if st := s.state("tor"); st.Ups == before.Ups || st.Phase != bgp.Established {
					return fmt.Errorf("%+v", st)
				}
				return nil
			})
			arrives(t, frr, vip)
		}
		if st := s.state("tor"); st.Hold != 3*time.Second {
			t.Errorf("the hold time is %s", st.Hold)
		}
		if got := arrives(t, frr, vip); got.Peer.RouterID != "10.9.9.9" {
			t.Errorf("the router ID is %s", got.Peer.RouterID)
		}
	})
}

// TestTheRouterSaysWhyAndStaysSaid goes over a router's limit: FRR says so once, and then hangs up without a word.
func TestTheRouterSaysWhyAndStaysSaid(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 1})
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText(plain, " address-family ipv4 unicast", "  neighbor 192.168.0.11 maximum-prefix 2", " exit-address-family")})
	s := speak(t, b.Host("node1"))
	p := tor()
	p.Connect = time.Second
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip, "198.51.100.2/32")})
	s.established("tor")
	arrives(t, frr, vip)
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip, "198.51.100.2/32", "198.51.100.3/32", "198.51.100.4/32", "198.51.100.5/32")})
	s.fails("tor", "maximum number of prefixes reached, 2 of ipv4-unicast: raise the limit")
	before := s.state("tor").Counts
	eventually(t, "it was tried again", func() error {
		st := s.state("tor")
		if st.Counts.Sent.Opens < before.Sent.Opens+2 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	s.fails("tor", "maximum number of prefixes reached")
}

// TestARouterSeveralHopsAway is what a user forgets: ebgpMultiHop.
func TestARouterSeveralHopsAway(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 1})
	start(t, router.Config{Kind: router.FRR, NetNS: b.Host("far"), Text: frrText("neighbor 192.168.0.11 remote-as 64512\n neighbor 192.168.0.11 ebgp-multihop")})
	s := speak(t, b.Host("node1"))
	p := tor()
	p.Address = netip.MustParseAddr("10.99.0.2")
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	s.fails("tor", "ebgpMultiHop")
	p.Multihop = true
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	s.established("tor")
}

// TestTwoUnnumberedRouters has a node with two uplinks, each to a router of its own.
func TestTwoUnnumberedRouters(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 1, Routers: 2})
	if err := netns.Cable(b.Host("node1"), "up2", b.Host("router2"), "down"); err != nil {
		t.Fatal(err)
	}
	for at, link := range map[string]string{"node1": "up2", "router2": "down"} {
		if err := b.Host(at).Do(func() error { return netns.SetUp(link) }); err != nil {
			t.Fatal(err)
		}
	}
	first := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: documented(t, "FRR, unnumbered")})
	second := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router2"), Text: strings.NewReplacer("eth0", "down", "192.168.0.1", "192.168.0.2", "65000", "65002").Replace(documented(t, "FRR, unnumbered"))})
	s := speak(t, b.Host("node1"))
	p, q := unnumbered("eth0"), unnumbered("up2")
	q.Name = "again"
	rs := routes(vip, "2001:db8::1/128")
	for i := range rs {
		rs[i].Peers = []string{"again", "tor"}
	}
	s.Set(bgp.Desired{Peers: []intent.Peer{p, q}, Routes: rs})
	s.established("tor")
	s.established("again")
	for _, r := range []*router.Router{first, second} {
		for _, prefix := range []string{vip, "2001:db8::1/128"} {
			arrives(t, r, prefix)
		}
	}
}

// TestARouteThatIsTooLongHarmsNoOther has one with more communities than a message can carry.
func TestARouteThatIsTooLongHarmsNoOther(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 1})
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText(plain)})
	s := speak(t, b.Host("node1"))
	rs := routes(vip, "198.51.100.2/32", "198.51.100.3/32")
	for i := range 400 {
		rs[1].Large = append(rs[1].Large, [3]uint32{64512, 1, uint32(i)})
	}
	rs[2].Large = rs[1].Large[:280]
	s.Set(bgp.Desired{Peers: []intent.Peer{tor()}, Routes: rs})
	s.established("tor")
	arrives(t, frr, vip)
	arrives(t, frr, "198.51.100.3/32")
	if got := shown(t, frr, "198.51.100.2/32"); len(got) > 0 {
		t.Errorf("the router has %+v", got)
	}
	if st := s.state("tor"); st.Ups != 1 || st.Routes != 3 || st.Announced != 2 || st.Withheld.Reason != names.ReasonTooManyCommunities {
		t.Errorf("the session is %+v", st)
	}
	rs[1].Large = rs[1].Large[:1]
	s.Set(bgp.Desired{Peers: []intent.Peer{tor()}, Routes: rs})
	arrives(t, frr, "198.51.100.2/32")
}

// TestARouterThatCannotBeToldForTheMoment is what a default route that is replaced looks like: the session with the gateway goes on.
func TestARouterThatCannotBeToldForTheMoment(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 1})
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText(plain+"\n neighbor 192.168.0.11 bfd profile fast") + frrFast})
	s := speak(t, b.Host("node1"))
	p, lost := tor(), tor()
	p.BFD = fast()
	lost.Address, lost.Blocked = netip.Addr{}, intent.Block{Reason: "NoGateway", Text: "no default gateway"}
	s.Set(bgp.Desired{Peers: []intent.Peer{lost}, Routes: routes(vip)})
	s.fails("tor", "no default gateway")
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	s.established("tor")
	ups := s.settled("tor").Ups
	s.Set(bgp.Desired{Peers: []intent.Peer{lost}, Routes: routes(vip, "198.51.100.2/32")})
	arrives(t, frr, "198.51.100.2/32")
	s.Set(bgp.Desired{Peers: []intent.Peer{lost}, Routes: routes(vip, "198.51.100.3/32")})
	arrives(t, frr, "198.51.100.3/32")
	if st := s.state("tor"); st.Ups != ups || st.Phase != bgp.Established || st.BFD != "Up" {
		t.Errorf("the session did not outlive that: %+v", st)
	}
	if err := frr.Configure(t.Context(), "router bgp 65000\n no neighbor 192.168.0.11\n"); err != nil {
		t.Fatal(err)
	}
	s.fails("tor", "no default gateway")
}

// TestARouterThatComesBackIsMissedWithoutAHoldTime has a router forget its connection without a word, as one that is switched off
// and on: without a hold time and with nothing to send, nobody but TCP can tell.
func TestARouterThatComesBackIsMissedWithoutAHoldTime(t *testing.T) {
	t.Parallel()
	b := lay(t, router.BedOptions{Nodes: 1})
	forgets, forgotten := make(chan struct{}), make(chan struct{})
	quiet := make(chan net.Conn)
	var again atomic.Bool
	bad := loose(t, b.Host("router"), 2001, func(c net.Conn) {
		if welcome(c, 0) != nil || again.Swap(true) {
			<-t.Context().Done()
			return
		}
		for range 2 { // our KEEPALIVE and UPDATE; what is not confirmed would be sent again, and find out at once
			if _, err := frame.Read(c, make([]byte, frame.MaxLen)); err != nil {
				t.Error(err)
			}
		}
		_, _ = c.Write(frame.Keepalive())
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
	s := speak(t, b.Host("node1"))
	p := tor()
	p.Hold, p.Port = 0, bad.port
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	eventually(t, "the router has confirmed the route", func() error {
		if st := s.state("tor"); st.Counts.Received.Keepalives < 2 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	eventually(t, "nothing of the connection is under way", func() error { return unconfirmed(<-quiet) })
	if err := b.CutSilently("node1"); err != nil {
		t.Fatal(err)
	}
	close(forgets)
	<-forgotten
	if err := b.Plug("node1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "there is another session", func() error {
		if st := s.state("tor"); st.Ups < 2 || st.Phase != bgp.Established {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
}

// TestARouteThatTheSessionCannotCarryHasAReason asks for both families of a router that carries one, and then has no address for the
// other.
func TestARouteThatTheSessionCannotCarryHasAReason(t *testing.T) {
	t.Parallel()
	b := lay(t, router.BedOptions{Nodes: 1})
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText(plain)})
	s := speak(t, b.Host("node1"))
	p := tor()
	p.IPv6 = true
	says := func(want names.Reason, text string) {
		t.Helper()
		eventually(t, fmt.Sprintf("the session says %q", want), func() error {
			if st := s.state("tor"); st.Phase != bgp.Established || st.Withheld.Reason != want || !strings.Contains(st.Withheld.Text, text) {
				return fmt.Errorf("%+v", st)
			}
			return nil
		})
	}
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip, "2001:db8::1/128")})
	says(names.ReasonFamilyNotCarried, "2001:db8::1/128: it takes no routes of ipv6-unicast")
	arrives(t, frr, vip)
	if err := b.Host("node1").Do(func() error { return netns.Sysctl("net/ipv6/conf/eth0/disable_ipv6", "1") }); err != nil {
		t.Fatal(err)
	}
	if err := frr.Configure(t.Context(), "router bgp 65000\n"+fmt.Sprintf(onIPv6, "192.168.0.11")+"\n"); err != nil {
		t.Fatal(err)
	}
	says(names.ReasonNoNextHop, "2001:db8::1/128")
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	says("", "")
}

// unconfirmed says that the other side has not confirmed all that was written to a connection.
func unconfirmed(c net.Conn) error {
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
		return fmt.Errorf("%d bytes are", left)
	}
	return nil
}
