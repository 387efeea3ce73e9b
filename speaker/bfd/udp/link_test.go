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
	"github.com/gantry-lb/gantry/speaker/bfd/udp"
	"github.com/gantry-lb/gantry/speaker/links/netnstest"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// runEngineInNamespace runs an engine in a network namespace. The harness has no lab network.
func runEngineInNamespace(t *testing.T, r *netnstest.Namespace, seed uint64) *harness {
	t.Helper()
	engine, ended := bfd.New(udp.New(), time.Now, seed), make(chan error)
	ctx, stop := context.WithCancel(context.Background())
	go func() { ended <- r.Run(ctx, engine.Run) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the engine ended with %v", err)
		}
	})
	return &harness{t: t, engine: engine}
}

// The addresses of a session between two network namespaces.
var (
	nearAddress = netip.MustParseAddr("192.0.2.1")
	farAddress  = netip.MustParseAddr("192.0.2.2")
)

// connectNamespaces connects two network namespaces by eth0.
func connectNamespaces(near, far *netnstest.Namespace) {
	near.AddVethPair("eth0", far, "eth0")
	near.AddAddress("eth0", nearAddress.String()+"/24")
	far.AddAddress("eth0", farAddress.String()+"/24")
}

func TestLinkLossAndReturn(t *testing.T) {
	t.Parallel()
	near, far := netnstest.New(t), netnstest.New(t)
	connectNamespaces(near, far)
	a, b := runEngineInNamespace(t, near, 1), runEngineInNamespace(t, far, 2)
	a.engine.Set([]bfd.Session{{Key: bfd.Key{Peer: farAddress, Interface: "eth0", Local: nearAddress}, Profile: fastProfile()}})
	b.engine.Set([]bfd.Session{{Key: bfd.Key{Peer: nearAddress}, Profile: fastProfile()}})
	a.waitForEvent("the link is there", farAddress, isUpEvent)

	near.MustRun(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	a.waitForEvent("the link is deleted", farAddress, func(v bfd.Event) bool { return v.IsPathFailure() })
	a.eventually("the fault is reported", func() error {
		return a.checkStatus(farAddress, func(s bfd.Status) bool { return s.Fault.Reason == names.ReasonBFDUnsent })
	})
	connectNamespaces(near, far)
	a.waitForEvent("a link with that name and another index appears", farAddress, isUpEvent)
	a.eventually("no fault remains", func() error { return a.checkAllUp(1) })

	near.MustRun(func() error { return netns.SetLinkDown("eth0") })
	a.waitForEvent("the link is set down", farAddress, func(v bfd.Event) bool { return v.IsPathFailure() })
	near.MustRun(func() error { return netns.SetLinkUp("eth0") })
	a.waitForEvent("the link is set up", farAddress, isUpEvent)
}

func TestLinkLocalNeighboursOnTwoLinks(t *testing.T) {
	t.Parallel()
	near := netnstest.New(t)
	a := runEngineInNamespace(t, near, 1)
	peer, local := netip.MustParseAddr("fe80::2"), netip.MustParseAddr("fe80::1")
	var sessions []bfd.Session
	for i := range uint64(2) {
		far := netnstest.New(t)
		name := fmt.Sprintf("eth%d", i)
		near.AddVethPair(name, far, "eth0")
		near.AddAddress(name, local.String()+"/64")
		far.AddAddress("eth0", peer.String()+"/64")
		b := runEngineInNamespace(t, far, 2+i)
		b.engine.Set([]bfd.Session{{Key: bfd.Key{Peer: local, Interface: "eth0", Local: peer}, Profile: fastProfile()}})
		sessions = append(sessions, bfd.Session{Key: bfd.Key{Peer: peer, Interface: name}, Profile: fastProfile()})
	}
	a.engine.Set(sessions)
	a.eventually("the same address is up on both links", func() error { return a.checkAllUp(2) })
	near.MustRun(func() error { return netns.SetLinkDown("eth1") })
	a.waitForEvent("one link goes down", peer, func(v bfd.Event) bool { return v.IsPathFailure() && v.Key.Interface == "eth1" })
	a.eventually("the other one is up", func() error {
		for _, s := range a.engine.Status() {
			if up := s.State == session.Up; up != (s.Key.Interface == "eth0") {
				return fmt.Errorf("%s is %s", s.Key, s.State)
			}
		}
		return nil
	})
}

// TestSessionBoundToDevice binds a session to an ordinary link in place of a VRF device, which many
// test kernels lack. Its ports are bound to the device, next to those of unbound sessions.
func TestSessionBoundToDevice(t *testing.T) {
	t.Parallel()
	near, far, other := netnstest.New(t), netnstest.New(t), netnstest.New(t)
	connectNamespaces(near, far)
	near.AddVethPair("red", other, "eth0")
	near.AddAddress("red", "198.51.100.1/24")
	other.AddAddress("eth0", "198.51.100.2/24")
	inside, outside := netip.MustParseAddr("198.51.100.2"), farAddress
	a, b, c := runEngineInNamespace(t, near, 1), runEngineInNamespace(t, far, 2), runEngineInNamespace(t, other, 3)
	sessions := []bfd.Session{
		{Key: bfd.Key{Peer: inside, VRF: "red"}, Profile: fastProfile()},
		{Key: bfd.Key{Peer: outside}, Profile: fastProfile()},
	}
	a.engine.Set(sessions)
	b.engine.Set([]bfd.Session{{Key: bfd.Key{Peer: nearAddress}, Profile: fastProfile()}})
	c.engine.Set([]bfd.Session{{Key: bfd.Key{Peer: netip.MustParseAddr("198.51.100.1")}, Profile: fastProfile()}})
	a.eventually("both are up", func() error { return a.checkAllUp(2) })
	a.engine.Set(sessions[:1])
	a.expectAllStayUp("the unbound session is removed", 500*time.Millisecond)
	a.engine.Set(sessions)
	a.eventually("both are up again", func() error { return a.checkAllUp(2) })
}

func TestPortInUseIsReported(t *testing.T) {
	t.Parallel()
	near, far := netnstest.New(t), netnstest.New(t)
	connectNamespaces(near, far)
	var squatter net.PacketConn
	near.MustRun(func() (err error) {
		squatter, err = net.ListenPacket("udp4", ":3784")
		return err
	})
	a, b := runEngineInNamespace(t, near, 1), runEngineInNamespace(t, far, 2)
	a.engine.Set([]bfd.Session{{Key: bfd.Key{Peer: farAddress}, Profile: fastProfile()}})
	b.engine.Set([]bfd.Session{{Key: bfd.Key{Peer: nearAddress}, Profile: fastProfile()}})
	a.eventually("the fault is reported", func() error {
		return a.checkStatus(farAddress, func(s bfd.Status) bool { return s.Fault.Reason == names.ReasonBFDPortInUse })
	})
	if err := squatter.Close(); err != nil {
		t.Fatal(err)
	}
	a.waitForEvent("the port is free", farAddress, isUpEvent)
}

// TestSessionsSurviveFlood sends garbage from both sides of a router, well-formed packets of
// unknown hosts and random ones from the router's address. No session goes down.
func TestSessionsSurviveFlood(t *testing.T) {
	t.Parallel()
	b := newHarness(t)
	b.startRouter(router.FRR, "router", frrConfig)
	b.engine.Set(sessionsToRouter(bfdtest.DefaultProfile()))
	b.eventually("both are up", func() error { return b.checkAllUp(2) })
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	ended := make(chan error, 2)
	for _, host := range []string{"router", "client"} {
		go func() { ended <- b.Host(host).RunInside(func() error { return floodWithInvalidPackets(ctx) }) }()
	}
	b.expectAllStayUp("under a flood", 3*time.Second)
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if n := b.engine.DiscardedPackets()[session.DiscardWrongState]; n < 1000 {
		t.Errorf("%d packets of the flood came to us, too few for a result: %v", n, b.engine.DiscardedPackets())
	}
}
