package bgp_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// TestNodesOnOneLinkDoNotTakeEachOtherForTheRouter runs two nodes with an unnumbered peer on one
// link. Each hears the advertisements of the other before the router starts. Both use the router.
func TestNodesOnOneLinkDoNotTakeEachOtherForTheRouter(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 2})
	far := b.NamespaceOfHost("router")
	advertisements := startAdvertisementCounter(t, far)
	var speakers []*testSpeaker
	for i, name := range []string{"node1", "node2"} {
		s := startSpeaker(t, b.NamespaceOfHost(name))
		s.SetDesiredState(bgp.DesiredState{
			Peers: []intent.Peer{unnumberedPeer("eth0")}, Routes: exampleRoutes(servicePrefix),
			NodeInternalIPs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("192.168.0.%d", 11+i))},
		})
		speakers = append(speakers, s)
	}
	for _, name := range []string{"node1", "node2"} {
		address := linkLocalAddress(t, b.NamespaceOfHost(name))
		awaitNoError(t, name+" advertises itself on the link", func() error {
			if n := advertisements(address); n < 3 {
				return fmt.Errorf("%d advertisements were heard", n)
			}
			return nil
		})
	}
	for _, s := range speakers {
		if st := s.peerStatus("tor"); st.RouterAddress.Addr().IsValid() {
			t.Errorf("without a router on the link, a node peers with %s", st.RouterAddress)
		}
	}
	startRouter(t, router.Config{Kind: router.FRR, NetNS: far, ConfigText: readDocumentedConfig(t, "FRR, unnumbered")})
	routerAddress := linkLocalAddress(t, far)
	awaitNoError(t, "both nodes peer with the router, and one session is established", func() error {
		established := 0
		for _, s := range speakers {
			st := s.peerStatus("tor")
			if st.RouterAddress.Addr().WithZone("") != routerAddress {
				return fmt.Errorf("a node peers with %s, the router is %s", st.RouterAddress, routerAddress)
			}
			if st.State == bgp.Established {
				established++
			}
		}
		if established == 0 {
			return errors.New("no session is established")
		}
		return nil
	})
}

// TestFRRTakesLinkLocalNextHops peers with FRR over link-local addresses, where the node has no
// other IPv6 address.
func TestFRRTakesLinkLocalNextHops(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	node := b.NamespaceOfHost("node1")
	runIPCommand(t, node, "address del fd00:a8::b/64 dev eth0")
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: readDocumentedConfig(t, "FRR, unnumbered")})
	s := startSpeaker(t, node)
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{unnumberedPeer("eth0")}, Routes: exampleRoutes(servicePrefix, servicePrefixIPv6)})
	s.waitForEstablished("tor")
	want := linkLocalAddress(t, node).String()
	for _, prefix := range []string{servicePrefix, servicePrefixIPv6} {
		used := 0
		for _, h := range waitForFRRRoute(t, frr, prefix).NextHops {
			if h.Used {
				used++
			}
			if h.IP != want {
				t.Errorf("a next hop of %s is %s, want %s", prefix, h.IP, want)
			}
		}
		if used != 1 {
			t.Errorf("%s has %d used next hops", prefix, used)
		}
	}
}

// startAdvertisementCounter counts the router advertisements that a host hears, by their source.
func startAdvertisementCounter(t *testing.T, h netns.Path) (count func(from netip.Addr) int) {
	t.Helper()
	c, err := h.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	const typeRouterAdvertisement = 134
	var mu sync.Mutex
	counts := map[netip.Addr]int{}
	go func() {
		buffer := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buffer)
			if err != nil {
				return
			}
			if n == 0 || buffer[0] != typeRouterAdvertisement {
				continue
			}
			source, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
			mu.Lock()
			counts[source]++
			mu.Unlock()
		}
	}()
	return func(from netip.Addr) int {
		mu.Lock()
		defer mu.Unlock()
		return counts[from]
	}
}
