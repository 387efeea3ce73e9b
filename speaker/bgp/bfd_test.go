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

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/test/lab/router"
)

const (
	// frrFast and birdFast are 3 x 100 ms.
	frrFast = `bfd
 profile fast
  transmit-interval 100
  receive-interval 100
  detect-multiplier 3
 exit
 profile echo
  transmit-interval 100
  receive-interval 100
  echo transmit-interval 100
  echo receive-interval 100
 exit
 profile begins
  transmit-interval 100
  receive-interval 100
 exit
exit
`
	birdFast = `router id 192.168.0.2;
protocol device { scan time 1; }
protocol kernel { merge paths on; ipv4 { export all; import none; }; }
protocol kernel { merge paths on; ipv6 { export all; import none; }; }
protocol bfd { interface "eth0" { min rx interval 100 ms; min tx interval 100 ms; multiplier 3; }; }
template bgp node { local as 65000; bfd on; hold time 9; error wait time 1, 5; ipv4 { import all; export none; }; }
template bgp node6 { local as 65000; bfd on; hold time 9; error wait time 1, 5; ipv6 { import all; export none; }; }
`
)

// fast is 3 x 100 ms.
func fast() *intent.BFD {
	return &intent.BFD{Transmit: 100 * time.Millisecond, Receive: 100 * time.Millisecond, Echo: 100 * time.Millisecond, Multiplier: 3, MinTTL: 254}
}

// pathCase is a kind of session that BFD watches; NODE4 and NODE6 stand for the node's addresses.
type pathCase struct {
	frr, families string // FRR's side
	bird          string // or BIRD's, on the second router
	peer          func(*intent.Peer)
	v6            bool
}

// cuts is how often to cut the path: a second time where there is nothing special.
func (c *pathCase) cuts() int {
	if c.peer == nil {
		return 2
	}
	return 1
}

var pathCases = map[string]pathCase{
	"FRR":                       {frr: "neighbor NODE4 remote-as 64512\n neighbor NODE4 bfd profile fast"},
	"FRR, inside of one AS":     {frr: "neighbor NODE4 remote-as 65000\n neighbor NODE4 bfd profile fast", peer: func(p *intent.Peer) { p.LocalASN = 65000 }},
	"FRR, which has to begin":   {frr: "neighbor NODE4 remote-as 64512\n neighbor NODE4 bfd profile begins", peer: func(p *intent.Peer) { p.BFD.Passive = true }},
	"FRR, with echo packets":    {frr: "neighbor NODE4 remote-as 64512\n neighbor NODE4 bfd profile echo", peer: func(p *intent.Peer) { p.BFD.EchoMode = true }},
	"FRR, from a given address": {frr: "neighbor NODE4 remote-as 64512\n neighbor NODE4 bfd profile fast", peer: func(p *intent.Peer) { p.Source = netip.MustParseAddr("192.168.0.99") }},
	"FRR, over several hops": {
		frr:  "neighbor NODE4 remote-as 64512\n neighbor NODE4 ebgp-multihop 3\n neighbor NODE4 update-source 10.99.0.1\n neighbor NODE4 bfd profile fast",
		peer: func(p *intent.Peer) { p.Address, p.Multihop = netip.MustParseAddr("10.99.0.1"), true },
	},
	"FRR, over IPv6": {
		frr: "neighbor NODE6 remote-as 64512\n neighbor NODE6 bfd profile fast", families: fmt.Sprintf(onIPv6, "NODE6"), v6: true,
		peer: func(p *intent.Peer) { p.Address, p.IPv4, p.IPv6 = router6, false, true },
	},
	"BIRD": {bird: "protocol bgp from node { neighbor NODE4 as 64512; }", peer: func(p *intent.Peer) { p.Address = netip.MustParseAddr("192.168.0.2") }},
	"BIRD, over IPv6": {
		bird: "protocol bgp from node6 { neighbor NODE6 as 64512; }", v6: true,
		peer: func(p *intent.Peer) { p.Address, p.IPv4, p.IPv6 = netip.MustParseAddr("fd00:a8::2"), false, true },
	},
}

// TestBFD cuts the path to a router silently, which TCP notices when the hold time is over: by then the route has long gone
// from the router's kernel, and the session has ended here, with BFD as the reason. All that comes back by itself.
func TestBFD(t *testing.T) {
	t.Parallel()
	cases := slices.Sorted(maps.Keys(pathCases))
	b := lay(t, router.BedOptions{Nodes: len(cases), Routers: 2})
	frr, bird := []string{""}, []string{birdFast}
	var families []string
	hosts := map[string]host{}
	for i, name := range cases {
		h := host{i, fmt.Sprintf("192.168.0.%d", 11+i), fmt.Sprintf("fd00:a8::%x", 11+i)}
		hosts[name] = h
		c := pathCases[name]
		address := strings.NewReplacer("NODE4", h.v4, "NODE6", h.v6)
		frr = append(frr, address.Replace(c.frr))
		bird = append(bird, address.Replace(c.bird))
		families = append(families, address.Replace(c.families))
	}
	start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText(strings.Join(frr, "\n "), families...) + frrFast})
	start(t, router.Config{Kind: router.BIRD, NetNS: b.Host("router2"), Text: strings.Join(bird, "\n")})
	for _, name := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cutAndMend(t, b, pathCases[name], hosts[name])
		})
	}
}

func cutAndMend(t *testing.T, b *router.Bed, c pathCase, h host) {
	p := tor()
	p.BFD, p.Hold, p.Connect = fast(), 9*time.Second, time.Second
	if c.peer != nil {
		c.peer(&p)
	}
	if p.Source.IsValid() {
		p.Source = netip.MustParseAddr(h.v4)
	}
	at := "router"
	if c.bird != "" {
		at = "router2"
	}
	node := fmt.Sprintf("node%d", 1+h.index)
	vip := fmt.Sprintf("198.51.100.%d/32", 1+h.index)
	if c.v6 {
		vip = fmt.Sprintf("2001:db8::%x/128", 1+h.index)
	}
	installed := func(want bool) func() error {
		return func() error {
			if _, ok, err := b.Host(at).RouteTo(netip.MustParsePrefix(vip)); err != nil || ok != want {
				return fmt.Errorf("there is a route: %t (%v)", ok, err)
			}
			return nil
		}
	}
	s := speak(t, b.Host(node))
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	for range c.cuts() {
		eventually(t, "BFD is up", func() error {
			if st := s.state("tor"); st.BFD != "Up" || st.Phase != bgp.Established {
				return fmt.Errorf("BFD is %q, the session %s: %s", st.BFD, st.Phase, st.LastError)
			}
			return nil
		})
		eventually(t, "the router's kernel has the route", installed(true))
		ups := s.state("tor").Ups
		begun := time.Now()
		if err := b.CutSilently(node); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the router's kernel has it no more", installed(false))
		t.Logf("the route went %s after the cut began", time.Since(begun))
		eventually(t, "the session has ended here", func() error {
			if st := s.state("tor"); st.Phase == bgp.Established || st.BFD == "Up" {
				return fmt.Errorf("it is %s, and BFD %s: %s", st.Phase, st.BFD, st.LastError)
			}
			return nil
		})
		// Where the processors are busy, BFD may have been down at the very moment of the cut, and a new session under way: nobody
		// watches that one yet.
		if took := time.Since(begun); took > 8*time.Second && s.state("tor").Ups == ups {
			t.Errorf("that took %s, no less than the hold time would", took)
		}
		if err := b.Plug(node); err != nil {
			t.Fatal(err)
		}
	}
	s.established("tor")
	eventually(t, "the router's kernel has the route again", installed(true))
	t.Run("the profile may change", func(t *testing.T) {
		eventually(t, "BFD is up", func() error { return s.path("Up") })
		ups := s.state("tor").Ups
		slow := *p.BFD
		slow.Transmit, slow.Receive = 300*time.Millisecond, 300*time.Millisecond
		for _, step := range []struct {
			profile *intent.BFD
			state   string
		}{{&slow, "Up"}, {fast(), "Up"}} {
			p.BFD = step.profile
			s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
			eventually(t, "BFD follows", func() error { return s.path(step.state) })
		}
		if st := s.state("tor"); st.Ups != ups || st.Phase != bgp.Established {
			t.Errorf("the session did not outlive that: %s, established %d times, before that %d: %s", st.Phase, st.Ups, ups, st.LastError)
		}
	})
}

// path says whether BFD sees the path in a state.
func (s *speaker) path(want string) error {
	if st := s.state("tor"); st.BFD != want {
		return fmt.Errorf("it is %q", st.BFD)
	}
	return nil
}

// TestBFDFollowsTheAddressesOfTheNode begins before the node has an address on the router's link: an internal router seems to
// be several hops away then.
func TestBFDFollowsTheAddressesOfTheNode(t *testing.T) {
	t.Parallel()
	b := lay(t, router.BedOptions{Nodes: 1})
	start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText("neighbor 192.168.0.11 remote-as 65000\n neighbor 192.168.0.11 bfd profile fast") + frrFast})
	address := func(op string) {
		t.Helper()
		err := b.Host("node1").Do(func() error {
			if out, err := exec.Command("ip", "address", op, "192.168.0.11/24", "dev", "eth0").CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	address("del")
	s := speak(t, b.Host("node1"))
	p := tor()
	p.LocalASN, p.BFD, p.Connect = 65000, fast(), time.Second
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)})
	eventually(t, "what BFD lacks is said", func() error {
		if st := s.state("tor"); st.BFD != "Down" || st.Fault.Reason != names.ReasonBFDUnsent {
			return fmt.Errorf("BFD is %s, the fault %+v", st.BFD, st.Fault)
		}
		return nil
	})
	address("add")
	s.established("tor")
	eventually(t, "BFD is up", func() error { return s.path("Up") })
	if f := s.state("tor").Fault; f.Reason != "" {
		t.Errorf("the fault %+v is left", f)
	}
}

// TestBFDAndGracefulRestart checks that routers keep the routes of a speaker that restarts though BFD goes with it, and that a
// path that BFD loses is no restart.
func TestBFDAndGracefulRestart(t *testing.T) {
	t.Parallel()
	b := lay(t, router.BedOptions{Nodes: 2, Routers: 2})
	calm := strings.NewReplacer("100", "300") // no path is to be lost for want of a processor
	frr := frrText("neighbor 192.168.0.11 remote-as 64512\n neighbor 192.168.0.11 bfd profile fast", " bgp graceful-restart", " neighbor 192.168.0.11 bfd check-control-plane-failure")
	start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frr + calm.Replace(frrFast)})
	start(t, router.Config{Kind: router.BIRD, NetNS: b.Host("router2"), Text: calm.Replace(birdFast) + "protocol bgp from node { neighbor 192.168.0.12 as 64512; bfd graceful; }"})
	for i, at := range []string{"router", "router2"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			node := fmt.Sprintf("node%d", 1+i)
			p := tor()
			p.Address = netip.MustParseAddr(fmt.Sprintf("192.168.0.%d", 1+i))
			p.BFD, p.Hold, p.GracefulRestart, p.RestartTime = fast(), 9*time.Second, true, 120*time.Second
			p.BFD.Transmit, p.BFD.Receive = 300*time.Millisecond, 300*time.Millisecond
			desired := bgp.Desired{Peers: []intent.Peer{p}, Routes: routes(vip)}
			has := func() bool {
				_, ok, err := b.Host(at).RouteTo(netip.MustParsePrefix(vip))
				return ok && err == nil
			}
			up := func(s *speaker) {
				s.Set(desired)
				eventually(t, "BFD is up", func() error {
					if st := s.state("tor"); st.BFD != "Up" || st.Phase != bgp.Established || !st.Graceful {
						return fmt.Errorf("it is %+v", st)
					}
					return nil
				})
				eventually(t, "the route is there", func() error {
					if !has() {
						return fmt.Errorf("no")
					}
					return nil
				})
			}
			s := speak(t, b.Host(node))
			up(s)
			for _, end := range []func(){func() { s.Stop(t.Context()); s.kill() }, func() { s.kill() }, func() { s.die() }} {
				end()
				look := time.NewTicker(10 * time.Millisecond)
				for range 150 { // longer than BFD needs
					if <-look.C; !has() {
						t.Fatal("the router gave the route up")
					}
				}
				look.Stop()
				s = speak(t, b.Host(node))
				up(s)
			}
		})
	}
}
