package bgp_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// runIPCommand runs the program ip on a host.
func runIPCommand(t *testing.T, h netns.Path, arguments string) string {
	t.Helper()
	var out []byte
	err := h.RunInside(func() (err error) {
		if out, err = exec.Command("ip", strings.Fields(arguments)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", arguments, err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// awaitFRRNextHop waits until FRR has one path to the prefix, and uses this next hop.
func awaitFRRNextHop(t *testing.T, frr *router.Router, prefix, want string) {
	t.Helper()
	awaitNoError(t, "FRR sends "+prefix+" to "+want, func() error {
		paths := frrPaths(t, frr, prefix)
		if len(paths) != 1 || !paths[0].Valid || paths[0].NextHops[0].IP != want {
			return fmt.Errorf("it has %+v", paths)
		}
		return nil
	})
}

// TestUnusableNodeAddressesAreNoNextHops gives the node addresses of each kind that must not be a
// next hop, and renumbers it while the session is up.
func TestUnusableNodeAddressesAreNoNextHops(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig, fmt.Sprintf(frrActivateIPv6Template, "192.168.0.11"))})
	node := b.NamespaceOfHost("node1")
	for _, a := range []string{"fd00:a8::dead/64 dev eth0 preferred_lft 0 nodad", "fd00:a8::100/128 dev eth0 nodad", "fd00:ff::11/128 dev lo"} {
		runIPCommand(t, node, "address add "+a)
	}
	s := startSpeaker(t, node)
	p := exampleExternalPeer()
	p.CarriesIPv6Routes = true
	d := bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix, servicePrefixIPv6)}
	s.SetDesiredState(d)
	awaitFRRNextHop(t, frr, servicePrefixIPv6, "fd00:a8::b")
	awaitFRRNextHop(t, frr, servicePrefix, "192.168.0.11")
	runIPCommand(t, node, "address del fd00:a8::b/64 dev eth0")
	runIPCommand(t, node, "address add fd00:a8::c/64 dev eth0") // after the check for a duplicate
	awaitFRRNextHop(t, frr, servicePrefixIPv6, "fd00:a8::c")
	runIPCommand(t, node, "address change fd00:a8::c/64 dev eth0 preferred_lft 0 valid_lft 600")
	runIPCommand(t, node, "address add fd00:a8::d/64 dev eth0 nodad")
	awaitFRRNextHop(t, frr, servicePrefixIPv6, "fd00:a8::d")
	if st := s.peerStatus("tor"); st.EstablishedCount != 1 || st.WithheldRouteReason.IsSet() {
		t.Errorf("%+v", st)
	}
}

// TestLocalhostAddressIsNoNextHop runs a session over IPv6 from an address on lo,
// where lo has 127.0.0.1 besides.
func TestLocalhostAddressIsNoNextHop(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	node, far := b.NamespaceOfHost("node1"), b.NamespaceOfHost("router")
	runIPCommand(t, node, "address add fd00:ff::11/128 dev lo nodad")
	runIPCommand(t, far, "-6 route add fd00:ff::11/128 via fd00:a8::b")
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: far, ConfigText: buildFRRConfig("neighbor fd00:ff::11 remote-as 64512\n neighbor fd00:ff::11 ebgp-multihop 2", " address-family ipv6 unicast\n  neighbor fd00:ff::11 activate\n exit-address-family")})
	s := startSpeaker(t, node)
	p := exampleExternalPeer()
	p.Address, p.SourceAddress, p.CarriesIPv6Routes, p.Multihop = netip.MustParseAddr("fd00:a8::1"), netip.MustParseAddr("fd00:ff::11"), true, true
	d := bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix, servicePrefixIPv6), NodeInternalIPs: []netip.Addr{netip.MustParseAddr("192.168.0.11")}}
	s.SetDesiredState(d)
	awaitFRRNextHop(t, frr, servicePrefixIPv6, "fd00:ff::11")
	awaitFRRNextHop(t, frr, servicePrefix, "192.168.0.11")
	if st := s.peerStatus("tor"); st.EstablishedCount != 1 {
		t.Errorf("%+v", st)
	}
}

// TestPrependedRouteReachesInternalRouters checks that an internal router does not take a route for
// a loop.
func TestPrependedRouteReachesInternalRouters(t *testing.T) {
	frr := startInternalRouterAndSpeaker(t, func(r *intent.Route) { r.PrependCount = 2 })
	waitForFRRRoute(t, frr, servicePrefix)
}

// TestExcludedNodeAnnouncesNoRoutes starts the speaker of an excluded node twice.
func TestExcludedNodeAnnouncesNoRoutes(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig)})
	for range 2 {
		s := startSpeaker(t, b.NamespaceOfHost("node1"))
		s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{exampleExternalPeer()}, Routes: exampleRoutes(servicePrefix), NodeLeaving: true})
		s.waitForEstablished("tor")
		s.Stop(t.Context())
		s.endEnginesWithoutStop()
	}
	if routes, updates := countRoutesAndUpdatesFromNode(t, frr); routes != 0 || updates > 2 {
		t.Errorf("the router got %d routes and %d UPDATEs, want none but End-of-RIB", routes, updates)
	}
}

// TestBIRDTakesLinkLocalNextHops peers with BIRD over link-local addresses, where the node has no
// other IPv6 address.
func TestBIRDTakesLinkLocalNextHops(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	node, far := b.NamespaceOfHost("node1"), b.NamespaceOfHost("router")
	runIPCommand(t, node, "address del fd00:a8::b/64 dev eth0")
	nodeAddress, routerAddress := linkLocalAddress(t, node), linkLocalAddress(t, far)
	bird := startRouter(t, router.Config{Kind: router.BIRD, NetNS: far, ConfigText: fmt.Sprintf(`router id 192.168.0.1;
protocol device {}
protocol bgp node1 { local as 65000; neighbor %s%%eth0 as 64512; ipv4 { import all; export none; extended next hop; }; ipv6 { import all; export none; }; }
`, nodeAddress)})
	s := startSpeaker(t, node)
	p := exampleExternalPeer()
	p.Address, p.Device, p.CarriesIPv6Routes = routerAddress.WithZone("eth0"), "eth0", true
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix, servicePrefixIPv6)})
	s.waitForEstablished("tor")
	waitForBIRDOutput(t, bird, "show route all "+servicePrefixIPv6, "via "+nodeAddress.String()+" on eth0")
	// The session's link has an IPv4 address, which is the better next hop.
	waitForBIRDOutput(t, bird, "show route all "+servicePrefix, "via 192.168.0.11 on eth0")
}

// linkLocalAddress returns the link-local address of a host's eth0.
func linkLocalAddress(t *testing.T, h netns.Path) netip.Addr {
	t.Helper()
	for _, word := range strings.Fields(runIPCommand(t, h, "-6 address show dev eth0 scope link")) {
		if p, err := netip.ParsePrefix(word); err == nil {
			return p.Addr()
		}
	}
	t.Fatal("eth0 has no link-local address")
	return netip.Addr{}
}

// watchRouteLosses looks for a route of a host's kernel every 100 ms. The function that it returns
// ends that, and returns how often the route was lost.
func watchRouteLosses(t *testing.T, h netns.Path, prefix string) (stop func() int) {
	t.Helper()
	ended, result := make(chan struct{}), make(chan int)
	go func() {
		losses, present := 0, true
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ended:
				result <- losses
				return
			case <-ticker.C:
			}
			_, found, err := h.FindRouteToExactPrefix(netip.MustParsePrefix(prefix))
			if found = found && err == nil; present && !found {
				losses++
			}
			present = found
		}
	}()
	return func() int {
		close(ended)
		return <-result
	}
}

// TestRoutesReturnAfterFRRRestartWithBFD restarts FRR. A stopping FRR may signal BFD Down before it
// closes the BGP session, and the speaker then ends this session. FRR 8.4 starts its BFD session
// again with the new BGP session, and may then end the BGP session once. The speaker ends no new
// session. SOAK is how long the router must keep the route afterwards.
func TestRoutesReturnAfterFRRRestartWithBFD(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig+"\n neighbor 192.168.0.11 bfd profile fast") + frrBFDProfiles})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	p.BFD, p.MaxReconnectDelay = fastBFD(), time.Second
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	awaitStable := func() bgp.PeerSessionStatus {
		t.Helper()
		awaitNoError(t, "BGP and BFD are up, and stay so for two seconds", func() error {
			if st := s.peerStatus("tor"); st.State != bgp.Established || st.BFDState != "Up" || time.Since(st.StateSince) < 2*time.Second {
				return fmt.Errorf("%+v", st)
			}
			return nil
		})
		waitForFRRRoute(t, frr, servicePrefix)
		return s.peerStatus("tor")
	}
	before := awaitStable()
	stopWatching := watchRouteLosses(t, b.NamespaceOfHost("router"), servicePrefix)
	if err := frr.SignalDaemons(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	awaitNoError(t, "the session ends", func() error {
		if st := s.peerStatus("tor"); st.State == bgp.Established {
			return fmt.Errorf("it is %s", st.State)
		}
		return nil
	})
	down := s.peerStatus("tor")
	if sent := down.MessageTotals.Sent.Notifications - before.MessageTotals.Sent.Notifications; sent > 1 || sent == 1 && down.LastError.Reason != names.ReasonBFDDown {
		t.Errorf("the speaker sent %d NOTIFICATIONs to the router that stops: %+v", sent, down)
	}
	if err := frr.KillDaemons(); err != nil { // what has not ended yet
		t.Fatal(err)
	}
	if err := frr.StartEndedDaemons(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := awaitStable()
	if text := os.Getenv("SOAK"); text != "" {
		soak, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(soak)
		after = awaitStable()
	}
	losses := stopWatching()
	t.Logf("the router's kernel lost the route %d times; %d sessions were established after the restart", losses, after.EstablishedCount-before.EstablishedCount)
	if losses > after.EstablishedCount-before.EstablishedCount {
		t.Errorf("the route was lost %d times: %+v", losses, after)
	}
	if sessions := after.EstablishedCount - before.EstablishedCount; sessions > 2 || sessions == 2 && !strings.Contains(after.LastError.Text, "the router ended the session: cease, BFD down") {
		t.Errorf("%d sessions were established after the restart: %+v", sessions, after)
	}
	if sent := after.MessageTotals.Sent.Notifications - down.MessageTotals.Sent.Notifications; sent != 0 {
		t.Errorf("the speaker ended %d sessions with the router that has started again", sent)
	}
}
