package udp_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/bfdtest"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
	"github.com/gantry-lb/gantry/speaker/links/netnstest"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// runEngineInNamespace runs an engine in a network namespace. The harness has no lab network.
func runEngineInNamespace(t *testing.T, r *netnstest.Namespace, seed uint64) *bfdEngineInLab {
	t.Helper()
	engine, ended := bfd.NewEngine(newTransport(t), time.Now, seed), make(chan error)
	ctx, stop := context.WithCancel(context.Background())
	go func() { ended <- r.RunInside(ctx, engine.Run) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the engine ended with %v", err)
		}
	})
	return &bfdEngineInLab{t: t, engine: engine}
}

// The addresses of a session between two network namespaces.
var (
	nearNamespaceAddress = netip.MustParseAddr("192.0.2.1")
	farNamespaceAddress  = netip.MustParseAddr("192.0.2.2")
)

// connectNamespaces connects two network namespaces by eth0.
func connectNamespaces(near, far *netnstest.Namespace) {
	near.AddVethPair("eth0", far, "eth0")
	near.AddAddressToLink("eth0", nearNamespaceAddress.String()+"/24")
	far.AddAddressToLink("eth0", farNamespaceAddress.String()+"/24")
}

func TestSessionReturnsAfterLinkLoss(t *testing.T) {
	t.Parallel()
	near, far := netnstest.NewNamespace(t), netnstest.NewNamespace(t)
	connectNamespaces(near, far)
	a, b := runEngineInNamespace(t, near, 1), runEngineInNamespace(t, far, 2)
	a.engine.SetSessions([]bfd.SessionConfig{{SessionKey: bfd.SessionKey{PeerAddress: farNamespaceAddress, Interface: "eth0", LocalAddress: nearNamespaceAddress}, Profile: fastProfile()}})
	b.engine.SetSessions([]bfd.SessionConfig{{SessionKey: bfd.SessionKey{PeerAddress: nearNamespaceAddress}, Profile: fastProfile()}})
	a.waitForEvent("the link is there", farNamespaceAddress, isUpEvent)

	near.MustRunInside(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	a.waitForEvent("the link is deleted", farNamespaceAddress, func(v bfd.Event) bool { return v.IsPathFailure() })
	a.awaitNoError("the fault is reported", func() error {
		return a.checkStatus(farNamespaceAddress, func(s bfd.SessionStatus) bool { return s.Fault.Reason == names.ReasonBFDUnsent })
	})
	connectNamespaces(near, far)
	a.waitForEvent("a link with that name and another index appears", farNamespaceAddress, isUpEvent)
	a.awaitNoError("no fault remains", func() error { return a.checkAllUp(1) })

	near.MustRunInside(func() error { return netns.SetLinkDown("eth0") })
	a.waitForEvent("the link is set down", farNamespaceAddress, func(v bfd.Event) bool { return v.IsPathFailure() })
	near.MustRunInside(func() error { return netns.SetLinkUp("eth0") })
	a.waitForEvent("the link is set up", farNamespaceAddress, isUpEvent)
}

func TestSameLinkLocalNeighbourOnTwoLinksHasTwoSessions(t *testing.T) {
	t.Parallel()
	near := netnstest.NewNamespace(t)
	a := runEngineInNamespace(t, near, 1)
	peer, local := netip.MustParseAddr("fe80::2"), netip.MustParseAddr("fe80::1")
	var sessions []bfd.SessionConfig
	for i := range uint64(2) {
		far := netnstest.NewNamespace(t)
		name := fmt.Sprintf("eth%d", i)
		near.AddVethPair(name, far, "eth0")
		near.AddAddressToLink(name, local.String()+"/64")
		far.AddAddressToLink("eth0", peer.String()+"/64")
		b := runEngineInNamespace(t, far, 2+i)
		b.engine.SetSessions([]bfd.SessionConfig{{SessionKey: bfd.SessionKey{PeerAddress: local, Interface: "eth0", LocalAddress: peer}, Profile: fastProfile()}})
		sessions = append(sessions, bfd.SessionConfig{SessionKey: bfd.SessionKey{PeerAddress: peer, Interface: name}, Profile: fastProfile()})
	}
	a.engine.SetSessions(sessions)
	a.awaitNoError("the same address is up on both links", func() error { return a.checkAllUp(2) })
	near.MustRunInside(func() error { return netns.SetLinkDown("eth1") })
	a.waitForEvent("one link goes down", peer, func(v bfd.Event) bool { return v.IsPathFailure() && v.Key.Interface == "eth1" })
	a.awaitNoError("the other one is up", func() error {
		for _, s := range a.engine.SessionStatuses() {
			if up := s.State == session.Up; up != (s.SessionKey.Interface == "eth0") {
				return fmt.Errorf("%s is %s", s.SessionKey, s.State)
			}
		}
		return nil
	})
}

// TestVRFAndUnboundSessionsAreUpTogether binds a session to an ordinary link in place of a VRF
// device, which many test kernels lack. Its ports are bound to the device, next to those of unbound
// sessions.
func TestVRFAndUnboundSessionsAreUpTogether(t *testing.T) {
	t.Parallel()
	near, far, other := netnstest.NewNamespace(t), netnstest.NewNamespace(t), netnstest.NewNamespace(t)
	connectNamespaces(near, far)
	near.AddVethPair("red", other, "eth0")
	near.AddAddressToLink("red", "198.51.100.1/24")
	other.AddAddressToLink("eth0", "198.51.100.2/24")
	inside, outside := netip.MustParseAddr("198.51.100.2"), farNamespaceAddress
	a, b, c := runEngineInNamespace(t, near, 1), runEngineInNamespace(t, far, 2), runEngineInNamespace(t, other, 3)
	sessions := []bfd.SessionConfig{
		{SessionKey: bfd.SessionKey{PeerAddress: inside, VRF: "red"}, Profile: fastProfile()},
		{SessionKey: bfd.SessionKey{PeerAddress: outside}, Profile: fastProfile()},
	}
	a.engine.SetSessions(sessions)
	b.engine.SetSessions([]bfd.SessionConfig{{SessionKey: bfd.SessionKey{PeerAddress: nearNamespaceAddress}, Profile: fastProfile()}})
	c.engine.SetSessions([]bfd.SessionConfig{{SessionKey: bfd.SessionKey{PeerAddress: netip.MustParseAddr("198.51.100.1")}, Profile: fastProfile()}})
	a.awaitNoError("both are up", func() error { return a.checkAllUp(2) })
	a.engine.SetSessions(sessions[:1])
	a.expectAllStayUp("the unbound session is removed", 500*time.Millisecond)
	a.engine.SetSessions(sessions)
	a.awaitNoError("both are up again", func() error { return a.checkAllUp(2) })
}

func TestPortInUseIsReported(t *testing.T) {
	t.Parallel()
	near, far := netnstest.NewNamespace(t), netnstest.NewNamespace(t)
	connectNamespaces(near, far)
	var squatter net.PacketConn
	near.MustRunInside(func() (err error) {
		squatter, err = net.ListenPacket("udp4", ":3784")
		return err
	})
	a, b := runEngineInNamespace(t, near, 1), runEngineInNamespace(t, far, 2)
	a.engine.SetSessions([]bfd.SessionConfig{{SessionKey: bfd.SessionKey{PeerAddress: farNamespaceAddress}, Profile: fastProfile()}})
	b.engine.SetSessions([]bfd.SessionConfig{{SessionKey: bfd.SessionKey{PeerAddress: nearNamespaceAddress}, Profile: fastProfile()}})
	a.awaitNoError("the fault is reported", func() error {
		return a.checkStatus(farNamespaceAddress, func(s bfd.SessionStatus) bool { return s.Fault.Reason == names.ReasonBFDPortInUse })
	})
	if err := squatter.Close(); err != nil {
		t.Fatal(err)
	}
	a.waitForEvent("the port is free", farNamespaceAddress, isUpEvent)
}

// TestSessionsSurviveFlood sends garbage from both sides of a router, well-formed packets of
// unknown hosts and random ones from the router's address. No session goes down.
func TestSessionsSurviveFlood(t *testing.T) {
	t.Parallel()
	b := startBFDEngineInLab(t)
	b.startRouter(router.FRR, "router", frrSingleHopConfig)
	b.engine.SetSessions(sessionConfigsToRouter(bfdtest.DefaultProfile()))
	b.awaitNoError("both are up", func() error { return b.checkAllUp(2) })
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	ended := make(chan error, 2)
	for _, host := range []string{"router", "client"} {
		go func() {
			ended <- b.NamespaceOfHost(host).RunInside(func() error { return floodWithInvalidPackets(ctx) })
		}()
	}
	b.expectAllStayUp("under a flood", 3*time.Second)
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if n := b.engine.DiscardedPackets()[session.DiscardZeroYourDiscriminator]; n < 1000 {
		t.Errorf("%d packets of the flood came to us, too few for a result: %v", n, b.engine.DiscardedPackets())
	}
}
