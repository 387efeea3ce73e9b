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

// unnumbered is a peer that is found on a link.
func unnumbered(device string) intent.Peer {
	return intent.Peer{
		Name: "tor", Unnumbered: true, Device: device, Port: 179, LocalASN: 64512, ASNs: intent.ASNExternal, Hold: 9 * time.Second, IPv4: true, IPv6: true,
	}
}

// kernel returns how a host routes an address.
func kernel(t *testing.T, h netns.Handle, address string) string {
	t.Helper()
	var out []byte
	err := h.Do(func() error {
		out, _ = exec.Command("ip", "route", "get", address).CombinedOutput() // where there is no way, that is what it prints
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestUnnumbered has FRR and the speaker find each other by router advertisements alone, as the docs show.
func TestUnnumbered(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 1})
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: documented(t, "FRR, unnumbered")})
	s := speak(t, b.Host("node1"))
	p := unnumbered("eth0")
	p.BFD = &intent.BFD{Transmit: 100 * time.Millisecond, Receive: 100 * time.Millisecond, Echo: 50 * time.Millisecond, Multiplier: 3, MinTTL: 254}
	d := bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip, "2001:db8::1/128")}
	s.Set(d)
	st := s.established("tor")
	if a := st.Remote.Addr(); !a.IsLinkLocalUnicast() || a.Zone() != "eth0" || st.ASN != 65000 {
		t.Errorf("the router is %s of AS %d", a, st.ASN)
	}
	for _, prefix := range []string{vip, "2001:db8::1/128"} {
		if got := arrives(t, frr, prefix); !netip.MustParseAddr(got.NextHops[0].IP).IsLinkLocalUnicast() {
			t.Errorf("the next hop of %s is %+v", prefix, got.NextHops)
		}
	}
	for _, address := range []string{"198.51.100.1", "2001:db8::1"} {
		eventually(t, "the router's kernel sends "+address+" to the node", func() error {
			if out := kernel(t, b.Host("router"), address); !strings.Contains(out, "fe80::") || !strings.Contains(out, "dev eth0") {
				return fmt.Errorf("it says %s", out)
			}
			return nil
		})
	}
	eventually(t, "BFD is up", func() error {
		if st := s.state("tor"); st.BFD != "Up" {
			return fmt.Errorf("it is %q", st.BFD)
		}
		return nil
	})
	t.Run("no session is lost to an edit of something else", func(t *testing.T) {
		d.Routes = append(d.Routes, routes("198.51.100.2/32")...)
		s.Set(d)
		arrives(t, frr, "198.51.100.2/32")
		if st := s.state("tor"); st.Ups != 1 {
			t.Errorf("%+v", st)
		}
	})
	t.Run("what the link lacks is said", func(t *testing.T) {
		s.Set(bgp.Desired{Peers: []intent.Peer{unnumbered("eth9")}, Routes: routes(vip)})
		s.fails("tor", `this node has no link "eth9"`)
		if st := s.state("tor"); st.Reason != names.ReasonNoRouter {
			t.Errorf("the reason is %q", st.Reason)
		}
		goes(t, frr, vip)
		s.Set(d)
		arrives(t, frr, vip)
	})
}

// TestThePassiveSide has FRR connect to the speaker.
func TestThePassiveSide(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 1})
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText(plain + "\n neighbor 192.168.0.11 timers connect 1\n neighbor 192.168.0.11 password s3cret")})
	s := speak(t, b.Host("node1"))
	p := tor()
	p.Passive, p.Hops = true, 0
	d := bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)}
	other, err := b.Host("node1").Listen("tcp", ":179")
	if err != nil {
		t.Fatal(err)
	}
	s.Set(d) // without the password
	s.fails("tor", "another program on this node, a BGP daemon perhaps, has the port")
	if st := s.state("tor"); st.Reason != names.ReasonPortUnavailable {
		t.Errorf("the reason is %q", st.Reason)
	}
	other.Close()
	eventually(t, "it waits for the router", func() error {
		if st := s.state("tor"); st.Phase != bgp.Active {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	p.Password = "s3cret"
	twin := p // which is not to have the router's connection
	twin.Name, twin.Password, twin.Blocked = "again", "other", intent.Block{Reason: "DuplicatePeer", Text: "the other one is older"}
	d.Peers = []intent.Peer{twin, p, twin}
	d.Peers[2].Name = "yet again"
	s.Set(d)
	s.established("tor")
	arrives(t, frr, vip)
	t.Run("strangers are hung up on", func(t *testing.T) {
		c, err := b.Host("client").Dial(t.Context(), "tcp", "192.168.0.11:179")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if n, err := c.Read(make([]byte, 1)); err == nil || n > 0 {
			t.Errorf("it got an answer")
		}
		if st := s.state("tor"); st.Phase != bgp.Established || st.Ups != 1 {
			t.Errorf("the session suffered: %+v", st)
		}
	})
	t.Run("the router comes back", func(t *testing.T) {
		if _, err := frr.Show(t.Context(), "clear bgp 192.168.0.11"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the second session", func() error {
			if st := s.state("tor"); st.Ups < 2 || st.Phase != bgp.Established {
				return fmt.Errorf("%+v", st)
			}
			return nil
		})
		arrives(t, frr, vip)
	})
}

// TestSeveralPeersAtOneAddress has a node peer twice with one router, as two autonomous systems from two addresses of its own.
func TestSeveralPeersAtOneAddress(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 1})
	err := b.Host("node1").Do(func() error { return netns.AddAddress("eth0", netip.MustParsePrefix("192.168.0.71/24")) })
	if err != nil {
		t.Fatal(err)
	}
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText(plain + "\n neighbor 192.168.0.71 remote-as 64513")})
	first, second := tor(), tor()
	first.Source = netip.MustParseAddr("192.168.0.11")
	second.Name, second.Source, second.LocalASN, second.RouterID = "again", netip.MustParseAddr("192.168.0.71"), 64513, netip.MustParseAddr("10.0.0.71")
	d := bgp.Desired{Peers: []intent.Peer{first, second}, Routes: routes(vip)}
	d.Routes[0].Peers = []string{"again", "tor"}
	s := speak(t, b.Host("node1"))
	s.Set(d)
	s.established("tor")
	s.established("again")
	paths := func(want ...string) {
		t.Helper()
		eventually(t, fmt.Sprintf("the router has paths through %v", want), func() error {
			var got []string
			for _, p := range shown(t, frr, vip) {
				got = append(got, p.AsPath.String+" via "+p.NextHops[0].IP)
			}
			if slices.Sort(got); !slices.Equal(got, want) {
				return fmt.Errorf("it has %v", got)
			}
			return nil
		})
	}
	paths("64512 via 192.168.0.11", "64513 via 192.168.0.71")
	s.Set(bgp.Desired{Peers: []intent.Peer{first}, Routes: routes(vip)})
	paths("64512 via 192.168.0.11")
	if st := s.state("tor"); st.Ups != 1 {
		t.Errorf("the session of the peer that stays: %+v", st)
	}
	t.Run("one BFD session watches both", func(t *testing.T) {
		second.Source, first.BFD = first.Source, fast()
		slow := *first.BFD
		slow.Transmit = time.Second
		second.BFD, second.Port = &slow, 1179
		s.Set(bgp.Desired{Peers: []intent.Peer{first, second}, Routes: routes(vip)})
		eventually(t, "the other peer says that its profile does not count", func() error {
			a, b := s.state("tor").Fault, s.state("again").Fault
			if a.Reason == names.ReasonConflictingBFD || b.Reason != names.ReasonConflictingBFD || !strings.Contains(b.Text, `the BGPPeer "tor" asks`) {
				return fmt.Errorf("they say %+v and %+v", a, b)
			}
			return nil
		})
	})
}

// TestTwoPassivePeersOfOneRouter has a router dial two addresses of a node: each is another BGPPeer's.
func TestTwoPassivePeersOfOneRouter(t *testing.T) {
	t.Parallel()
	b := lay(t, router.BedOptions{Nodes: 1})
	err := b.Host("node1").Do(func() error { return netns.AddAddress("eth0", netip.MustParsePrefix("192.168.0.71/24")) })
	if err != nil {
		t.Fatal(err)
	}
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText(plain + "\n neighbor 192.168.0.71 remote-as 64513\n neighbor 192.168.0.71 timers connect 1\n neighbor 192.168.0.11 timers connect 1")})
	first, second := tor(), tor()
	first.Source, first.Passive = netip.MustParseAddr("192.168.0.11"), true
	second.Name, second.Source, second.LocalASN, second.Passive = "again", netip.MustParseAddr("192.168.0.71"), 64513, true
	d := bgp.Desired{Peers: []intent.Peer{first, second}, Routes: routes(vip)}
	d.Routes[0].Peers = []string{"again", "tor"}
	s := speak(t, b.Host("node1"))
	s.Set(d)
	s.established("tor")
	s.established("again")
	eventually(t, "the router has both paths", func() error {
		if got := shown(t, frr, vip); len(got) != 2 {
			return fmt.Errorf("it has %+v", got)
		}
		return nil
	})
}
