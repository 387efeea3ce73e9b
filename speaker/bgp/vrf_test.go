package bgp_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// TestBFDIsSingleHopOnlyInPeersOwnVRF checks that only the links of the peer's own VRF make an
// internal router one on a link, although networks of several VRFs may overlap.
func TestBFDIsSingleHopOnlyInPeersOwnVRF(t *testing.T) {
	for name, tc := range map[string]struct {
		router, device string
		multihop       bool
	}{
		"on a link of the VRF":                     {"10.2.0.1", "red", false},
		"beyond a router, the network exists too":  {"10.1.0.1", "red", true},
		"on a link of the default VRF":             {"10.1.0.1", "", false},
		"beyond a router, the network is in a VRF": {"10.2.0.1", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newLoopbackTransport()
			m.setNodeAddresses("10.1.0.11/24 eth0", "10.2.0.11/24 eth1 vrf=red")
			s := startLoopbackSpeaker(t, m)
			p := scriptedRouterPeer(func(p *intent.Peer) {
				p.Address, p.Device, p.LocalASN, p.BFD = netip.MustParseAddr(tc.router), tc.device, 65000, &intent.BFD{Multiplier: 3}
			})
			s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}})
			awaitNoError(t, "a BFD session is wanted", func() error {
				all := s.bfd.SessionStatuses()
				if len(all) != 1 {
					return fmt.Errorf("there are %+v", all)
				}
				if all[0].Multihop != tc.multihop || all[0].VRF != tc.device {
					t.Fatalf("multihop is %t in the VRF %q", all[0].Multihop, all[0].VRF)
				}
				return nil
			})
		})
	}
}

// TestListenerOfADeviceTakesOnlyItsConnections binds listeners to a device and to none, as passive
// peers in and outside of a VRF do. An ordinary link takes the place of the VRF device, which many
// kernels lack.
func TestListenerOfADeviceTakesOnlyItsConnections(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	const port = 1790
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	listen := func(device string) (bgp.Listener, error) {
		l, err := netnsTransport{b.NamespaceOfHost("router")}.Listen(ctx, bgp.ListenOptions{Port: port, BindDevice: device})
		if err == nil {
			t.Cleanup(l.Close)
		}
		return l, err
	}
	l, err := listen("eth1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listen("no-such-vrf"); err == nil {
		t.Error("a listener in a VRF that does not exist has no error")
	}
	dial := func(host, address string) error {
		c, err := b.NamespaceOfHost(host).Dial(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(port)))
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	}
	if err := dial("node1", "192.168.0.1"); err == nil {
		t.Error("the listener of eth1 takes a connection from eth0")
	}
	if err := dial("far", "10.99.0.1"); err != nil {
		t.Fatalf("connecting from eth1: %v", err)
	}
	select {
	case c := <-l.AcceptedConnections():
		defer c.Close()
		if c.RemoteIP().String() != "10.99.0.2" {
			t.Errorf("the connection is from %s", c.RemoteIP())
		}
	case <-ctx.Done():
		t.Error("the connection was not delivered")
	}
}
