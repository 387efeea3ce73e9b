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

// birdHas waits until BIRD's answer to a command has every text in it and none of those that begin with an exclamation mark.
func birdHas(t *testing.T, r *router.Router, command string, want ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("BIRD answers %q with %q", command, want), func() error {
		out, err := r.Show(t.Context(), command)
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

// birdCase is a kind of session with BIRD; NODE4 and NODE6 stand for the node's addresses.
type birdCase struct {
	protocol string
	peer     func(*intent.Peer)
	attr     intent.Attributes
	only6    bool // the node has no IPv4 address
	v6       bool // the route is of IPv6
	want     []string
	hold     time.Duration
}

// TestSessionsWithBIRD is for BIRD what TestSessionsWithFRR is for FRR.
func TestSessionsWithBIRD(t *testing.T) {
	cases := map[string]birdCase{
		"external": {
			protocol: "neighbor NODE4 as 64512; ipv4 { import all; export none; };",
			want:     []string{"BGP.as_path: 64512\n", "BGP.next_hop: NODE4", "via NODE4 on eth0"},
		},
		"internal, with a preference": {
			protocol: "neighbor NODE4 as 65000; ipv4 { import all; export none; };", peer: func(p *intent.Peer) { p.LocalASN = 65000 },
			attr: intent.Attributes{LocalPref: 250}, want: []string{"BGP.as_path: \n", "BGP.local_pref: 250"},
		},
		"four-octet AS numbers": {
			protocol: "neighbor NODE4 as 4200000001; ipv4 { import all; export none; };", peer: func(p *intent.Peer) { p.LocalASN = 4200000001 },
			want: []string{"BGP.as_path: 4200000001\n"},
		},
		"over IPv6": {
			protocol: "neighbor NODE6 as 64512; ipv6 { import all; export none; };", v6: true,
			peer: func(p *intent.Peer) { p.Address, p.IPv4, p.IPv6 = router6, false, true }, want: []string{"BGP.next_hop: NODE6", "via NODE6 on eth0"},
		},
		"both families over IPv4": {
			protocol: "neighbor NODE4 as 64512; ipv4 { import all; export none; }; ipv6 { import all; export none; };", peer: func(p *intent.Peer) { p.IPv6 = true }, v6: true,
			want: []string{"BGP.next_hop: NODE6", "via NODE6 on eth0"},
		},
		"IPv4 routes of a node that has no IPv4 address": {
			protocol: "neighbor NODE6 as 64512; ipv4 { import all; export none; extended next hop on; };", only6: true,
			peer: func(p *intent.Peer) { p.Address = router6 }, want: []string{"BGP.next_hop: NODE6", "via NODE6 on eth0"},
		},
		"a password":   {protocol: `neighbor NODE4 as 64512; password "s3cret"; ipv4 { import all; export none; };`, peer: func(p *intent.Peer) { p.Password = "s3cret" }},
		"TTL security": {protocol: "neighbor NODE4 as 64512; ttl security on; ipv4 { import all; export none; };", peer: func(p *intent.Peer) { p.Hops = 1 }},
		"several hops": {
			protocol: "neighbor NODE4 as 64512; multihop 3; source address 10.99.0.1; ipv4 { import all; export none; };",
			peer:     func(p *intent.Peer) { p.Address, p.Multihop = netip.MustParseAddr("10.99.0.1"), true },
		},
		"a hold time":  {protocol: "neighbor NODE4 as 64512; hold time 6; ipv4 { import all; export none; };", hold: 6 * time.Second},
		"no hold time": {protocol: "neighbor NODE4 as 64512; hold time 0; ipv4 { import all; export none; };", peer: func(p *intent.Peer) { p.Hold = 0 }},
		"attributes": {
			protocol: "neighbor NODE4 as 64512; ipv4 { import all; export none; };",
			attr: intent.Attributes{
				MED: 42, HasMED: true, Prepend: 2, Communities: []uint32{64512<<16 | 7, 0xffffff01}, Large: [][3]uint32{{64512, 1, 4294967295}},
				Extended: [][8]byte{{0x00, 0x02, 0xfc, 0x00, 0, 0, 0, 9}},
			},
			want: []string{
				"BGP.as_path: 64512 64512 64512\n", "BGP.med: 42", "BGP.community: (64512,7) (65535,65281)", "BGP.large_community: (64512, 1, 4294967295)",
				"BGP.ext_community: (rt, 64512, 9)",
			},
		},
	}
	b := lay(t, router.BedOptions{Nodes: len(cases)})
	text := "router id 192.168.0.1;\nprotocol device {}\n"
	names := slices.Sorted(maps.Keys(cases))
	at := map[string]*strings.Replacer{}
	for i, name := range names {
		at[name] = strings.NewReplacer("NODE4", fmt.Sprintf("192.168.0.%d", 11+i), "NODE6", fmt.Sprintf("fd00:a8::%x", 11+i))
		text += fmt.Sprintf("protocol bgp node%d { local as 65000; %s }\n", i+1, at[name].Replace(cases[name].protocol))
		if cases[name].only6 {
			forget(t, b.Host(fmt.Sprintf("node%d", i+1)), fmt.Sprintf("192.168.0.%d/24", 11+i))
		}
	}
	bird := start(t, router.Config{Kind: router.BIRD, NetNS: b.Host("router"), Text: text})
	for i, name := range names {
		c := cases[name]
		t.Run(name, func(t *testing.T) {
			p := tor()
			if c.peer != nil {
				c.peer(&p)
			}
			prefix := fmt.Sprintf("198.51.100.%d/32", 1+i)
			if c.v6 {
				prefix = fmt.Sprintf("2001:db8::%x/128", 1+i)
			}
			s := speak(t, b.Host(fmt.Sprintf("node%d", 1+i)))
			rs := routes(prefix)
			rs[0].Attributes = c.attr
			s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: rs})
			st := s.established("tor")
			want := []string{fmt.Sprintf("[node%d ", i+1)}
			for _, w := range c.want {
				want = append(want, at[name].Replace(w))
			}
			birdHas(t, bird, "show route all for "+prefix, want...)
			if c.hold > 0 && st.Hold != c.hold {
				t.Errorf("the hold time is %s, want %s", st.Hold, c.hold)
			}
		})
	}
}

// forget takes an address off a node.
func forget(t *testing.T, h netns.Handle, address string) {
	t.Helper()
	err := h.Do(func() error {
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

// TestTheDocumentedBIRD runs the configuration of the docs through a planned stop of each kind.
func TestTheDocumentedBIRD(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 2})
	bird := start(t, router.Config{Kind: router.BIRD, NetNS: b.Host("router"), Text: documented(t, "BIRD")})
	p := tor()
	p.GracefulRestart, p.RestartTime, p.IPv6 = true, 120*time.Second, true
	d := bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip, "198.51.100.2/32", "2001:db8::1/128")}
	s := speak(t, b.Host("node1"))
	s.Set(d)
	if st := s.established("tor"); !st.Graceful || len(st.Families) != 2 {
		t.Fatalf("graceful restart of both families is not agreed: %+v", st)
	}
	birdHas(t, bird, "show route", vip, "198.51.100.2/32", "2001:db8::1/128")
	t.Run("the kernel has the routes", func(t *testing.T) {
		eventually(t, "the kernel routes the address", func() error {
			r, ok, err := b.Host("router").RouteTo(netip.MustParsePrefix(vip))
			if err != nil || !ok || len(r.Via) != 1 || r.Via[0].String() != "192.168.0.11" {
				return fmt.Errorf("%+v, %v", r, err)
			}
			return nil
		})
	})
	whole := t // the next speaker lives longer than the part that starts it
	t.Run("a speaker that dies keeps its routes until the next one has sent its own", func(t *testing.T) {
		s.kill()
		birdHas(t, bird, "show protocols all node1", "Neighbor graceful restart active")
		birdHas(t, bird, "show route for "+vip, vip)
		s = speak(whole, b.Host("node1"))
		s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
		birdHas(t, bird, "show route", vip, "!198.51.100.2/32", "!2001:db8::1/128")
	})
	t.Run("a node that leaves says so first, then withdraws, and then ends the session", func(t *testing.T) {
		s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip), Leaving: true})
		birdHas(t, bird, "show route all for "+vip, "BGP.community: (65535,0)", "BGP.local_pref: 0\n")
		birdHas(t, bird, "show route", "!"+vip)
		s.Stop(t.Context())
		birdHas(t, bird, "show protocols all node1", "Last error:", "Received: ")
		birdHas(t, bird, "show route", "!"+vip)
	})
}

// TestBIRDWithALargeNumber is a router whose own AS number has four octets. It dials one node, which waits for it, and goes and comes back.
func TestBIRDWithALargeNumber(t *testing.T) {
	t.Parallel()
	const number = 4200000000
	b := lay(t, router.BedOptions{Nodes: 2})
	text := "router id 192.168.0.1;\nprotocol device {}\n"
	for i, mine := range []uint32{64512, number} {
		text += fmt.Sprintf("protocol bgp node%d { local as %d; neighbor 192.168.0.%d as %d; connect delay time 1; connect retry time 1; ipv4 { import all; export none; }; }\n", i+1, uint32(number), 11+i, mine)
	}
	bird := start(t, router.Config{Kind: router.BIRD, NetNS: b.Host("router"), Text: text})
	calls, waits := speak(t, b.Host("node1")), speak(t, b.Host("node2"))
	p := tor()
	p.PeerASN, p.Connect = number, time.Second
	calls.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	p.LocalASN, p.Passive = number, true
	waits.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes("198.51.100.2/32")})
	both := func() {
		t.Helper()
		birdHas(t, bird, "show route all for "+vip, "BGP.as_path: 64512\n")
		birdHas(t, bird, "show route all for 198.51.100.2/32", "BGP.local_pref: 100")
	}
	both()
	if err := bird.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*speaker{calls, waits} {
		eventually(t, "the session has ended", func() error {
			if st := s.state("tor"); st.Phase == bgp.Established {
				return fmt.Errorf("%+v", st)
			}
			return nil
		})
	}
	if err := bird.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	both()
}
