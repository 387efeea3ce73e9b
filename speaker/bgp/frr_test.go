package bgp_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/test/lab/router"
)

const (
	vip = "198.51.100.1/32"
)

var (
	router6 = netip.MustParseAddr("fd00:a8::1")
	plain   = "neighbor 192.168.0.11 remote-as 64512"
)

const onIPv6 = ` address-family ipv6 unicast
  neighbor %s activate
 exit-address-family`

// sessionCase is a kind of session; NODE4 and NODE6 stand for the node's addresses.
type sessionCase struct {
	neighbour string // FRR's side
	families  string
	peer      func(*intent.Peer) // ours, from an ordinary external session on
	source    bool               // start from the node's address
	v4, v6    bool               // whose routes to announce; IPv4's by default
	check     func(t *testing.T, h host, st bgp.State, p path)
}

// host is the node of a case.
type host struct {
	index  int
	v4, v6 string
}

// TestSessionsWithFRR has FRR configured as its manual shows, for every kind of session that a BGPPeer asks for. Each is with a
// node of its own, and all are with the same router at the same time.
func TestSessionsWithFRR(t *testing.T) {
	cases := map[string]sessionCase{
		"external": {neighbour: "neighbor NODE4 remote-as 64512", check: func(t *testing.T, h host, _ bgp.State, p path) {
			if p.AsPath.String != "64512" || p.NextHops[0].IP != h.v4 || p.LocPrf != 0 {
				t.Errorf("%+v, want AS path 64512 via %s", p, h.v4)
			}
		}},
		"internal": {neighbour: "neighbor NODE4 remote-as 65000", peer: func(p *intent.Peer) { p.LocalASN = 65000 }, check: func(t *testing.T, h host, _ bgp.State, p path) {
			if p.AsPath.String != "Local" || p.LocPrf != 100 {
				t.Errorf("%+v, want an empty AS path and localPref 100", p)
			}
		}},
		"four-octet AS numbers": {neighbour: "neighbor NODE4 remote-as 4200000001", peer: func(p *intent.Peer) { p.LocalASN = 4200000001 }, check: func(t *testing.T, h host, _ bgp.State, p path) {
			if p.AsPath.String != "4200000001" {
				t.Errorf("the AS path is %s", p.AsPath.String)
			}
		}},
		"any external number": {neighbour: "neighbor NODE4 remote-as 64512", peer: func(p *intent.Peer) { p.PeerASN, p.ASNs = 0, intent.ASNExternal }, check: func(t *testing.T, h host, st bgp.State, _ path) {
			if st.ASN != 65000 {
				t.Errorf("the router's number is said to be %d", st.ASN)
			}
		}},
		"the internal number": {neighbour: "neighbor NODE4 remote-as 65000", peer: func(p *intent.Peer) { p.LocalASN, p.PeerASN, p.ASNs = 65000, 0, intent.ASNInternal }},
		"over IPv6": {
			neighbour: "neighbor NODE6 remote-as 64512", families: fmt.Sprintf(onIPv6, "NODE6"),
			peer: func(p *intent.Peer) { p.Address, p.IPv4, p.IPv6 = router6, false, true }, v6: true,
			check: func(t *testing.T, h host, _ bgp.State, p path) {
				if p.NextHops[0].IP != h.v6 {
					t.Errorf("the next hop is %+v", p.NextHops)
				}
			},
		},
		"both families over IPv4": {
			neighbour: "neighbor NODE4 remote-as 64512", families: fmt.Sprintf(onIPv6, "NODE4"), peer: func(p *intent.Peer) { p.IPv6 = true }, v4: true, v6: true,
			check: func(t *testing.T, h host, _ bgp.State, p path) {
				if p.NextHops[0].IP != h.v6 {
					t.Errorf("the IPv6 next hop is %+v", p.NextHops)
				}
			},
		},
		"both families over IPv6, with the link's IPv4 address as next hop": {
			neighbour: "neighbor NODE6 remote-as 64512", families: fmt.Sprintf(onIPv6, "NODE6"),
			peer: func(p *intent.Peer) { p.Address, p.IPv6 = router6, true }, v6: true, v4: true,
			check: func(t *testing.T, h host, _ bgp.State, p path) {
				if p.NextHops[0].IP != h.v4 {
					t.Errorf("the IPv4 next hop is %+v", p.NextHops)
				}
			},
		},
		"without multiprotocol": {neighbour: "neighbor NODE4 remote-as 64512\n neighbor NODE4 dont-capability-negotiate", peer: func(p *intent.Peer) { p.NoMultiprotocol = true }},
		"a password":            {neighbour: "neighbor NODE4 remote-as 64512\n neighbor NODE4 password s3cret", peer: func(p *intent.Peer) { p.Password = "s3cret" }},
		"TTL security":          {neighbour: "neighbor NODE4 remote-as 64512\n neighbor NODE4 ttl-security hops 1", peer: func(p *intent.Peer) { p.Hops = 1 }},
		"several hops": {
			neighbour: "neighbor NODE4 remote-as 64512\n neighbor NODE4 ebgp-multihop 3\n neighbor NODE4 update-source 10.99.0.1",
			peer:      func(p *intent.Peer) { p.Address, p.Multihop = netip.MustParseAddr("10.99.0.1"), true },
		},
		"a source address": {neighbour: "neighbor NODE4 remote-as 64512", source: true},
		"a device":         {neighbour: "neighbor NODE4 remote-as 64512", peer: func(p *intent.Peer) { p.Device = "eth0" }},
		"a router ID": {neighbour: "neighbor NODE4 remote-as 64512", peer: func(p *intent.Peer) { p.RouterID = netip.MustParseAddr("10.1.2.3") }, check: func(t *testing.T, h host, _ bgp.State, p path) {
			if p.Peer.RouterID != "10.1.2.3" {
				t.Errorf("the router ID is %s", p.Peer.RouterID)
			}
		}},
		"a hold time": {neighbour: "neighbor NODE4 remote-as 64512", peer: func(p *intent.Peer) { p.Hold, p.Keepalive = 6*time.Second, time.Second }, check: func(t *testing.T, h host, st bgp.State, _ path) {
			if st.Hold != 6*time.Second {
				t.Errorf("the hold time is %s", st.Hold)
			}
		}},
		"no hold time": {neighbour: "neighbor NODE4 remote-as 64512", peer: func(p *intent.Peer) { p.Hold = 0 }, check: func(t *testing.T, h host, st bgp.State, _ path) {
			if st.Hold != 0 {
				t.Errorf("the hold time is %s", st.Hold)
			}
		}},
		"another port": {neighbour: "neighbor NODE4 remote-as 64512", peer: func(p *intent.Peer) { p.Port = 1179 }},
	}
	b := lay(t, router.BedOptions{Nodes: len(cases)})
	redirect(t, b)
	var lines, families []string
	names := slices.Sorted(maps.Keys(cases))
	at := map[string]host{}
	for i, name := range names {
		h := host{i, fmt.Sprintf("192.168.0.%d", 11+i), fmt.Sprintf("fd00:a8::%x", 11+i)}
		address := strings.NewReplacer("NODE4", h.v4, "NODE6", h.v6)
		lines = append(lines, address.Replace(cases[name].neighbour))
		families = append(families, address.Replace(cases[name].families))
		at[name] = h
	}
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText(strings.Join(lines, "\n "), families...)})
	for _, name := range names {
		c, h := cases[name], at[name]
		t.Run(name, func(t *testing.T) {
			p := tor()
			if c.peer != nil {
				c.peer(&p)
			}
			if c.source {
				p.Source = netip.MustParseAddr(h.v4)
			}
			s := speak(t, b.Host(fmt.Sprintf("node%d", 1+h.index)))
			var prefixes []string
			if c.v6 {
				prefixes = append(prefixes, fmt.Sprintf("2001:db8::%x/128", 1+h.index))
			}
			if c.v4 || !c.v6 {
				prefixes = append(prefixes, fmt.Sprintf("198.51.100.%d/32", 1+h.index))
			}
			if c.v4 && p.Address.Is4() { // the other family's next hop is what is to be seen
				slices.Reverse(prefixes)
			}
			s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(prefixes...)})
			st := s.established("tor")
			var got path
			for _, prefix := range prefixes {
				got = arrives(t, frr, prefix)
			}
			if c.check != nil {
				c.check(t, h, st, got)
			}
		})
	}
}

func TestAttributesReachFRR(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 1})
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText(plain)})
	s := speak(t, b.Host("node1"))
	p := tor()
	rs := routes("198.51.100.1/32", "198.51.100.0/24")
	rs[0].Attributes = intent.Attributes{
		MED: 42, HasMED: true, Prepend: 2, Communities: []uint32{64512<<16 | 7, 0xffffff01}, Large: [][3]uint32{{64512, 1, 4294967295}},
		Extended: [][8]byte{{0x00, 0x02, 0xfc, 0x00, 0, 0, 0, 9}}, // a route target
	}
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: rs})
	s.established("tor")
	got := arrives(t, frr, vip)
	want := path{}
	want.AsPath.String, want.Community.String = "64512 64512 64512", "64512:7 no-export"
	want.Large.String, want.Extended.String = "64512:1:4294967295", "RT:64512:9"
	if got.AsPath.String != want.AsPath.String || got.Community.String != want.Community.String || got.Large.String != want.Large.String ||
		got.Extended.String != want.Extended.String || got.Med == nil || *got.Med != 42 {
		t.Errorf("the router has\n%+v, want\n%+v with MED 42", got, want)
	}
	if got := arrives(t, frr, "198.51.100.0/24"); got.Community.String != "" {
		t.Errorf("the plain route has communities: %+v", got)
	}
	t.Run("a change of attributes is one UPDATE, and no reset", func(t *testing.T) {
		before := s.state("tor").Counts.Sent.Updates
		rs := routes("198.51.100.1/32", "198.51.100.0/24")
		s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: rs})
		eventually(t, "the communities go", func() error {
			if got := arrives(t, frr, vip); got.Community.String != "" {
				return fmt.Errorf("%+v", got)
			}
			return nil
		})
		if st := s.state("tor"); st.Counts.Sent.Updates != before+1 || st.Ups != 1 {
			t.Errorf("%d UPDATEs, %d sessions; want one more than %d, and one session", st.Counts.Sent.Updates, st.Ups, before)
		}
	})
	t.Run("routes of a leaving node are announced as going, and then go", func(t *testing.T) {
		s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: rs, Leaving: true})
		eventually(t, "the route is marked", func() error {
			if got := arrives(t, frr, vip); !strings.Contains(got.Community.String, "graceful-shutdown") {
				return fmt.Errorf("%+v", got)
			}
			return nil
		})
		goes(t, frr, vip)
		s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: rs})
		arrives(t, frr, vip)
	})
}

func TestLocalPreferenceReachesInternalRouters(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 1})
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText("neighbor 192.168.0.11 remote-as 65000")})
	s := speak(t, b.Host("node1"))
	p := tor()
	p.LocalASN = 65000
	rs := routes(vip)
	rs[0].LocalPref = 250
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: rs})
	if got := arrives(t, frr, vip); got.LocPrf != 250 {
		t.Errorf("the router has %+v, want localPref 250", got)
	}
}

// TestPasswordsChange rotates the password while the session lives, first here and then at the router, as the manual says.
func TestPasswordsChange(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 1})
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText(plain + "\n neighbor 192.168.0.11 password old")})
	s := speak(t, b.Host("node1"))
	p := tor()
	p.Password = "wrong"
	p.Hold = 9 * time.Second
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	s.fails("tor", "Is the password the same on both sides?")
	p.Password = "old"
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	s.established("tor")
	arrives(t, frr, vip)
	p.Blocked = intent.Block{Reason: "UnknownSecret", Text: "the Secret is missing"}
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip, "198.51.100.2/32")})
	arrives(t, frr, "198.51.100.2/32") // a missing Secret ends no session
	p.Blocked, p.Password = intent.Block{}, "new"
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip, "198.51.100.3/32")})
	p.Password = "old" // the router was not told, and somebody takes it back
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip, "198.51.100.3/32")})
	arrives(t, frr, "198.51.100.3/32")
	if st := s.state("tor"); st.Ups != 1 {
		t.Errorf("the session was established %d times", st.Ups)
	}
	p.Password = "new"
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip, "198.51.100.4/32")})
	if err := frr.Configure(t.Context(), "router bgp 65000\n neighbor 192.168.0.11 password new\n"); err != nil {
		t.Fatal(err)
	}
	arrives(t, frr, "198.51.100.4/32") // FRR itself resets the session for it
}

// TestANotificationLosesNoRoute changes what is in the OPEN, which resets the session: with RFC 8538 that takes no route away.
func TestANotificationLosesNoRoute(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 1})
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText(plain, " bgp graceful-restart", " bgp graceful-restart notification")})
	p := tor()
	p.GracefulRestart, p.RestartTime = true, 120*time.Second
	s := speak(t, b.Host("node1"))
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	s.established("tor")
	arrives(t, frr, vip)
	for i := range 3 {
		p.Hold = time.Duration(60+i) * time.Second // is in the OPEN
		s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
		eventually(t, "the session is there again", func() error {
			got := shown(t, frr, vip)
			if len(got) == 0 {
				t.Fatalf("reset %d took the route away", i)
			}
			if st := s.state("tor"); st.Ups != i+2 || st.Phase != bgp.Established || got[0].Stale {
				return fmt.Errorf("%+v, %+v", st, got)
			}
			return nil
		})
	}
}

func TestFRRSaysWhyItRefuses(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 1})
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText(plain)})
	s := speak(t, b.Host("node1"))
	p := tor()
	p.PeerASN = 65001
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	s.fails("tor", "its AS number is 65000, and the BGPPeer asks for 65001")
	p.PeerASN, p.LocalASN = 65000, 64513
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	s.fails("tor", "bad peer AS")
	p.LocalASN, p.Blocked = 64512, intent.Block{Reason: "UnknownSecret", Text: "no password"}
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	s.fails("tor", "no password")
	if st := s.state("tor"); st.Reason != "UnknownSecret" {
		t.Errorf("the reason is %q", st.Reason)
	}
	p.Blocked, p.Source = intent.Block{}, netip.MustParseAddr("192.0.2.99")
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	s.fails("tor", "no interface of this node has that address")
	p.Source, p.Device = netip.Addr{}, "blue"
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	s.fails("tor", `this node has no link or VRF "blue"`)
	p.Device = ""
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	if st := s.established("tor"); st.Reason != "" {
		t.Errorf("the reason is still %q", st.Reason)
	}
	if err := frr.Configure(t.Context(), "router bgp 65000\n neighbor 192.168.0.11 shutdown message maintenance\n"); err != nil {
		t.Fatal(err)
	}
	s.fails("tor", "maintenance")
}

func TestASpeakerThatStopsTakesItsRoutesBack(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 1})
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText(plain, " bgp graceful-restart", " bgp graceful-restart preserve-fw-state")})
	s := speak(t, b.Host("node1"))
	p := tor()
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	s.established("tor")
	arrives(t, frr, vip)
	s.Stop(t.Context())
	goes(t, frr, vip)
	out, err := frr.Show(t.Context(), "show bgp neighbors 192.168.0.11")
	if err != nil || !strings.Contains(string(out), "the speaker stops") && !strings.Contains(string(out), "Administrative Shutdown") {
		t.Errorf("the router does not say why the session ended (%v):\n%s", err, out)
	}
}

// TestGracefulRestart checks what a router does with the routes of a speaker that restarts, dies, or leaves.
func TestGracefulRestart(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 1})
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText(plain, " bgp graceful-restart")})
	p := tor()
	p.GracefulRestart, p.RestartTime = true, 120*time.Second
	desired := bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip, "198.51.100.2/32")}
	s := speak(t, b.Host("node1"))
	s.Set(desired)
	if st := s.established("tor"); !st.Graceful {
		t.Fatalf("graceful restart is not agreed: %+v", st)
	}
	arrives(t, frr, vip)
	for _, how := range []struct {
		name string
		end  func(s *speaker)
	}{
		{"a speaker that stops keeps its routes", func(s *speaker) { s.Stop(t.Context()); s.kill() }},
		{"a speaker that dies keeps its routes", func(s *speaker) { s.kill() }},
	} {
		how.end(s)
		eventually(t, how.name+": the router sees the end of the session", func() error {
			if p := shown(t, frr, vip); len(p) != 1 || !p[0].Stale {
				return fmt.Errorf("%+v", p)
			}
			return nil
		})
		s = speak(t, b.Host("node1"))
		s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
		s.established("tor")
		goes(t, frr, "198.51.100.2/32") // was stale, and is no more after the End-of-RIB
		if got := arrives(t, frr, vip); got.Stale {
			t.Errorf("%s: the route is stale after the restart: %+v", how.name, got)
		}
		s.Set(desired)
		arrives(t, frr, "198.51.100.2/32")
	}
	leaving := desired
	leaving.Leaving = true
	s.Set(leaving)
	goes(t, frr, vip)
	s.Set(desired)
	arrives(t, frr, vip)
	s.Set(leaving)
	s.Stop(t.Context())
	goes(t, frr, vip)
}
