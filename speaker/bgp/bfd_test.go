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
	// The detection time is 15 x 100 ms: on a busy machine a router may wait for a processor.
	frrBFDProfiles = `bfd
 profile fast
  transmit-interval 100
  receive-interval 100
  detect-multiplier 15
 exit
 profile echo
  transmit-interval 100
  receive-interval 100
  detect-multiplier 15
  echo transmit-interval 100
  echo receive-interval 100
 exit
 profile begins
  transmit-interval 100
  receive-interval 100
  detect-multiplier 15
 exit
exit
`
	birdBFDConfig = `router id 192.168.0.2;
protocol device { scan time 1; }
protocol kernel { merge paths on; ipv4 { export all; import none; }; }
protocol kernel { merge paths on; ipv6 { export all; import none; }; }
protocol bfd { interface "eth0" { min rx interval 100 ms; min tx interval 100 ms; multiplier 15; }; }
template bgp node { local as 65000; bfd on; hold time 24; error wait time 1, 5; ipv4 { import all; export none; }; }
template bgp node6 { local as 65000; bfd on; hold time 24; error wait time 1, 5; ipv6 { import all; export none; }; }
`
)

// fastBFD has a detection time of 15 x 100 ms.
func fastBFD() *intent.BFD {
	return &intent.BFD{TransmitInterval: 100 * time.Millisecond, ReceiveInterval: 100 * time.Millisecond, EchoInterval: 100 * time.Millisecond, Multiplier: 15, MinTTL: 254}
}

// bfdCase is a kind of session with BFD. NODE4 and NODE6 are replaced by the node's addresses.
type bfdCase struct {
	frrNeighbourConfig, frrAddressFamilyConfigs string // FRR's side
	birdProtocolConfig                          string // or BIRD's, on the second router
	editPeer                                    func(*intent.Peer)
	ipv6                                        bool
}

// cutCount is how often to cut the path: twice in an ordinary session.
func (c *bfdCase) cutCount() int {
	if c.editPeer == nil {
		return 2
	}
	return 1
}

var bfdCases = map[string]bfdCase{
	"FRR":                       {frrNeighbourConfig: "neighbor NODE4 remote-as 64512\n neighbor NODE4 bfd profile fast"},
	"FRR, internal":             {frrNeighbourConfig: "neighbor NODE4 remote-as 65000\n neighbor NODE4 bfd profile fast", editPeer: func(p *intent.Peer) { p.LocalASN = 65000 }},
	"FRR, we are passive":       {frrNeighbourConfig: "neighbor NODE4 remote-as 64512\n neighbor NODE4 bfd profile begins", editPeer: func(p *intent.Peer) { p.BFD.Passive = true }},
	"FRR, with echo packets":    {frrNeighbourConfig: "neighbor NODE4 remote-as 64512\n neighbor NODE4 bfd profile echo", editPeer: func(p *intent.Peer) { p.BFD.EchoMode = true }},
	"FRR, from a given address": {frrNeighbourConfig: "neighbor NODE4 remote-as 64512\n neighbor NODE4 bfd profile fast", editPeer: func(p *intent.Peer) { p.SourceAddress = netip.MustParseAddr("192.168.0.99") }},
	"FRR, over several hops": {
		frrNeighbourConfig: "neighbor NODE4 remote-as 64512\n neighbor NODE4 ebgp-multihop 3\n neighbor NODE4 update-source 10.99.0.1\n neighbor NODE4 bfd profile fast",
		editPeer:           func(p *intent.Peer) { p.Address, p.Multihop = netip.MustParseAddr("10.99.0.1"), true },
	},
	"FRR, over IPv6": {
		frrNeighbourConfig: "neighbor NODE6 remote-as 64512\n neighbor NODE6 bfd profile fast", frrAddressFamilyConfigs: fmt.Sprintf(frrActivateIPv6Template, "NODE6"), ipv6: true,
		editPeer: func(p *intent.Peer) { p.Address, p.CarriesIPv4Routes, p.CarriesIPv6Routes = routerIPv6, false, true },
	},
	"BIRD": {birdProtocolConfig: "protocol bgp from node { neighbor NODE4 as 64512; }", editPeer: func(p *intent.Peer) { p.Address = netip.MustParseAddr("192.168.0.2") }},
	"BIRD, over IPv6": {
		birdProtocolConfig: "protocol bgp from node6 { neighbor NODE6 as 64512; }", ipv6: true,
		editPeer: func(p *intent.Peer) {
			p.Address, p.CarriesIPv4Routes, p.CarriesIPv6Routes = netip.MustParseAddr("fd00:a8::2"), false, true
		},
	},
}

// TestBFDDetectsCutPath cuts the path to a router without a loss of carrier. TCP would notice that
// at the end of the hold time. With BFD the router's kernel removes the route long before, and the
// speaker ends the session and reports BFD as the reason. Both recover without help.
func TestBFDDetectsCutPath(t *testing.T) {
	t.Parallel()
	cases := slices.Sorted(maps.Keys(bfdCases))
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: len(cases), Routers: 2})
	frr, bird := []string{""}, []string{birdBFDConfig}
	var families []string
	hosts := map[string]nodeOfSessionCase{}
	for i, name := range cases {
		h := nodeOfSessionCase{i, fmt.Sprintf("192.168.0.%d", 11+i), fmt.Sprintf("fd00:a8::%x", 11+i)}
		hosts[name] = h
		c := bfdCases[name]
		address := strings.NewReplacer("NODE4", h.ipv4, "NODE6", h.ipv6)
		frr = append(frr, address.Replace(c.frrNeighbourConfig))
		bird = append(bird, address.Replace(c.birdProtocolConfig))
		families = append(families, address.Replace(c.frrAddressFamilyConfigs))
	}
	startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(strings.Join(frr, "\n "), families...) + frrBFDProfiles})
	startRouter(t, router.Config{Kind: router.BIRD, NetNS: b.NamespaceOfHost("router2"), ConfigText: strings.Join(bird, "\n")})
	for _, name := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testBFDDetectsCutAndReconnect(t, b, bfdCases[name], hosts[name])
		})
	}
}

func testBFDDetectsCutAndReconnect(t *testing.T, b *router.RoutedLAN, c bfdCase, h nodeOfSessionCase) {
	p := exampleExternalPeer()
	p.BFD, p.HoldTime, p.MaxReconnectDelay = fastBFD(), 24*time.Second, time.Second
	if c.editPeer != nil {
		c.editPeer(&p)
	}
	if p.SourceAddress.IsValid() {
		p.SourceAddress = netip.MustParseAddr(h.ipv4)
	}
	at := "router"
	if c.birdProtocolConfig != "" {
		at = "router2"
	}
	node := fmt.Sprintf("node%d", 1+h.index)
	vip := fmt.Sprintf("198.51.100.%d/32", 1+h.index)
	if c.ipv6 {
		vip = fmt.Sprintf("2001:db8::%x/128", 1+h.index)
	}
	installed := func(want bool) func() error {
		return func() error {
			if _, ok, err := b.NamespaceOfHost(at).FindRouteToExactPrefix(netip.MustParsePrefix(vip)); err != nil || ok != want {
				return fmt.Errorf("route present: %t (%v)", ok, err)
			}
			return nil
		}
	}
	s := startSpeaker(t, b.NamespaceOfHost(node))
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(vip)})
	for range c.cutCount() {
		awaitNoError(t, "BFD is up", func() error {
			if st := s.peerStatus("tor"); st.BFDState != "Up" || st.State != bgp.Established {
				return fmt.Errorf("BFD is %q, the session %s: %s", st.BFDState, st.State, st.LastError.Text)
			}
			return nil
		})
		awaitNoError(t, "the router's kernel has the route", installed(true))
		ups := s.peerStatus("tor").EstablishedCount
		begun := time.Now()
		if err := b.CutCableKeepingCarrier(node); err != nil {
			t.Fatal(err)
		}
		awaitNoError(t, "the router's kernel has removed the route", installed(false))
		t.Logf("the route went %s after the cut began", time.Since(begun))
		awaitNoError(t, "the session has ended here", func() error {
			if st := s.peerStatus("tor"); st.State == bgp.Established || st.BFDState == "Up" {
				return fmt.Errorf("it is %s, and BFD %s: %s", st.State, st.BFDState, st.LastError.Text)
			}
			return nil
		})
		// On a busy machine BFD may be down at the moment of the cut,
		// while BFD does not watch the next session yet.
		if took := time.Since(begun); took > 20*time.Second && s.peerStatus("tor").EstablishedCount == ups {
			t.Errorf("that took %s, as long as the hold time", took)
		}
		if err := b.PlugCable(node); err != nil {
			t.Fatal(err)
		}
	}
	s.waitForEstablished("tor")
	awaitNoError(t, "the router's kernel has the route again", installed(true))
	t.Run("the profile may change", func(t *testing.T) {
		awaitNoError(t, "BFD is up", func() error { return s.checkBFDState("Up") })
		ups := s.peerStatus("tor").EstablishedCount
		slow := *p.BFD
		slow.TransmitInterval, slow.ReceiveInterval = 300*time.Millisecond, 300*time.Millisecond
		for _, step := range []struct {
			profile *intent.BFD
			state   string
		}{{&slow, "Up"}, {fastBFD(), "Up"}} {
			p.BFD = step.profile
			s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(vip)})
			awaitNoError(t, "BFD is in the wanted state", func() error { return s.checkBFDState(step.state) })
		}
		if st := s.peerStatus("tor"); st.EstablishedCount != ups || st.State != bgp.Established {
			t.Errorf("the edit reset the session: it is %s, established %d times, before the edit %d: %s", st.State, st.EstablishedCount, ups, st.LastError.Text)
		}
	})
}

// checkBFDState returns an error unless BFD is in the wanted state.
func (s *testSpeaker) checkBFDState(want string) error {
	if st := s.peerStatus("tor"); st.BFDState != want {
		return fmt.Errorf("it is %q", st.BFDState)
	}
	return nil
}

// TestBFDBecomesSingleHopWhenNodeGetsAddress starts before the node has an address on the
// router's link. An internal router then appears to be several hops away.
func TestBFDBecomesSingleHopWhenNodeGetsAddress(t *testing.T) {
	t.Parallel()
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig("neighbor 192.168.0.11 remote-as 65000\n neighbor 192.168.0.11 bfd profile fast") + frrBFDProfiles})
	address := func(op string) {
		t.Helper()
		err := b.NamespaceOfHost("node1").RunInside(func() error {
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
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	p.LocalASN, p.BFD, p.MaxReconnectDelay = 65000, fastBFD(), time.Second
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	awaitNoError(t, "the BFD fault is reported", func() error {
		if st := s.peerStatus("tor"); st.BFDState != "Down" || st.BFDFault.Reason != names.ReasonBFDUnsent {
			return fmt.Errorf("BFD is %s, the fault %+v", st.BFDState, st.BFDFault)
		}
		return nil
	})
	address("add")
	s.waitForEstablished("tor")
	awaitNoError(t, "BFD is up", func() error { return s.checkBFDState("Up") })
	if f := s.peerStatus("tor").BFDFault; f.Reason != "" {
		t.Errorf("the fault %+v remains", f)
	}
}

// TestBFDDownOfRestartingSpeakerKeepsRoutes checks that routers keep the routes of a
// restarting speaker although its BFD session goes down.
func TestBFDDownOfRestartingSpeakerKeepsRoutes(t *testing.T) {
	t.Parallel()
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 2, Routers: 2})
	calm := strings.NewReplacer("100", "300") // a busy machine must not take a path down
	frr := buildFRRConfig("neighbor 192.168.0.11 remote-as 64512\n neighbor 192.168.0.11 bfd profile fast", " bgp graceful-restart", " neighbor 192.168.0.11 bfd check-control-plane-failure")
	startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: frr + calm.Replace(frrBFDProfiles)})
	startRouter(t, router.Config{Kind: router.BIRD, NetNS: b.NamespaceOfHost("router2"), ConfigText: calm.Replace(birdBFDConfig) + "protocol bgp from node { neighbor 192.168.0.12 as 64512; bfd graceful; }"})
	for i, at := range []string{"router", "router2"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			node := fmt.Sprintf("node%d", 1+i)
			p := exampleExternalPeer()
			p.Address = netip.MustParseAddr(fmt.Sprintf("192.168.0.%d", 1+i))
			p.BFD, p.HoldTime, p.GracefulRestart, p.RestartTime = fastBFD(), 9*time.Second, true, 120*time.Second
			p.BFD.TransmitInterval, p.BFD.ReceiveInterval, p.BFD.Multiplier = 300*time.Millisecond, 300*time.Millisecond, 3
			desired := bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)}
			has := func() bool {
				_, ok, err := b.NamespaceOfHost(at).FindRouteToExactPrefix(netip.MustParsePrefix(servicePrefix))
				return ok && err == nil
			}
			up := func(s *testSpeaker) {
				s.SetDesiredState(desired)
				awaitNoError(t, "BFD is up", func() error {
					if st := s.peerStatus("tor"); st.BFDState != "Up" || st.State != bgp.Established || !st.RouterKeepsRoutesOverRestart {
						return fmt.Errorf("it is %+v", st)
					}
					return nil
				})
				awaitNoError(t, "the router has the route", func() error {
					if !has() {
						return fmt.Errorf("no")
					}
					return nil
				})
			}
			s := startSpeaker(t, b.NamespaceOfHost(node))
			up(s)
			for _, end := range []func(){func() { s.Stop(t.Context()); s.endEnginesWithoutStop() }, func() { s.endEnginesWithoutStop() }, func() { s.crashEngines() }} {
				end()
				look := time.NewTicker(10 * time.Millisecond)
				for range 150 { // longer than BFD needs
					if <-look.C; !has() {
						t.Fatal("the router removed the route")
					}
				}
				look.Stop()
				s = startSpeaker(t, b.NamespaceOfHost(node))
				up(s)
			}
		})
	}
}
