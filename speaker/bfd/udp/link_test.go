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
	"github.com/gantry-lb/gantry/speaker/bfd/session"
	"github.com/gantry-lb/gantry/speaker/bfd/udp"
	"github.com/gantry-lb/gantry/speaker/links/sandbox"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// runIn runs an engine in a room; it is a bed without a router.
func runIn(t *testing.T, r *sandbox.Room, seed uint64) *bed {
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
	return &bed{t: t, engine: engine}
}

// in and out of a session between two rooms.
var (
	here  = netip.MustParseAddr("192.0.2.1")
	there = netip.MustParseAddr("192.0.2.2")
)

// cable joins two rooms by eth0.
func cable(near, far *sandbox.Room) {
	near.Veth("eth0", far, "eth0")
	near.Address("eth0", here.String()+"/24")
	far.Address("eth0", there.String()+"/24")
}

func TestALinkThatGoesAndReturns(t *testing.T) {
	t.Parallel()
	near, far := sandbox.New(t), sandbox.New(t)
	cable(near, far)
	a, b := runIn(t, near, 1), runIn(t, far, 2)
	a.engine.Set([]bfd.Session{{Key: bfd.Key{Peer: there, Interface: "eth0", Local: here}, Profile: fast()}})
	b.engine.Set([]bfd.Session{{Key: bfd.Key{Peer: here}, Profile: fast()}})
	a.want("the link is there", there, isUp)

	near.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	a.want("the link is deleted", there, func(v bfd.Event) bool { return v.Failed() })
	a.eventually("that is told", func() error {
		return a.status(there, func(s bfd.Status) bool { return s.Fault.Reason == names.ReasonBFDUnsent })
	})
	cable(near, far)
	a.want("a link of that name, and another index, is there", there, isUp)
	a.eventually("nothing is wrong any more", func() error { return a.allUp(1) })

	near.Do(func() error { return netns.SetDown("eth0") })
	a.want("the link goes down", there, func(v bfd.Event) bool { return v.Failed() })
	near.Do(func() error { return netns.SetUp("eth0") })
	a.want("and up", there, isUp)
}

func TestLinkLocalNeighboursOnTwoLinks(t *testing.T) {
	t.Parallel()
	near := sandbox.New(t)
	a := runIn(t, near, 1)
	peer, local := netip.MustParseAddr("fe80::2"), netip.MustParseAddr("fe80::1")
	var sessions []bfd.Session
	for i := range uint64(2) {
		far := sandbox.New(t)
		name := fmt.Sprintf("eth%d", i)
		near.Veth(name, far, "eth0")
		near.Address(name, local.String()+"/64")
		far.Address("eth0", peer.String()+"/64")
		b := runIn(t, far, 2+i)
		b.engine.Set([]bfd.Session{{Key: bfd.Key{Peer: local, Interface: "eth0", Local: peer}, Profile: fast()}})
		sessions = append(sessions, bfd.Session{Key: bfd.Key{Peer: peer, Interface: name}, Profile: fast()})
	}
	a.engine.Set(sessions)
	a.eventually("the same address is up on both links", func() error { return a.allUp(2) })
	near.Do(func() error { return netns.SetDown("eth1") })
	a.want("one link goes down", peer, func(v bfd.Event) bool { return v.Failed() && v.Key.Interface == "eth1" })
	a.eventually("the other one is up", func() error {
		for _, s := range a.engine.Status() {
			if up := s.State == session.Up; up != (s.Key.Interface == "eth0") {
				return fmt.Errorf("%s is %s", s.Key, s.State)
			}
		}
		return nil
	})
}

// TestBoundToADevice binds a session to an ordinary link as to a VRF device, which the kernels at hand lack: its ports are
// bound to the device too, beside those of the sessions outside.
func TestBoundToADevice(t *testing.T) {
	t.Parallel()
	near, far, other := sandbox.New(t), sandbox.New(t), sandbox.New(t)
	cable(near, far)
	near.Veth("red", other, "eth0")
	near.Address("red", "198.51.100.1/24")
	other.Address("eth0", "198.51.100.2/24")
	inside, outside := netip.MustParseAddr("198.51.100.2"), there
	a, b, c := runIn(t, near, 1), runIn(t, far, 2), runIn(t, other, 3)
	sessions := []bfd.Session{
		{Key: bfd.Key{Peer: inside, VRF: "red"}, Profile: fast()},
		{Key: bfd.Key{Peer: outside}, Profile: fast()},
	}
	a.engine.Set(sessions)
	b.engine.Set([]bfd.Session{{Key: bfd.Key{Peer: here}, Profile: fast()}})
	c.engine.Set([]bfd.Session{{Key: bfd.Key{Peer: netip.MustParseAddr("198.51.100.1")}, Profile: fast()}})
	a.eventually("both are up", func() error { return a.allUp(2) })
	a.engine.Set(sessions[:1])
	a.quiet("the one outside is removed", 500*time.Millisecond)
	a.engine.Set(sessions)
	a.eventually("both are up again", func() error { return a.allUp(2) })
}

func TestAPortThatIsTaken(t *testing.T) {
	t.Parallel()
	near, far := sandbox.New(t), sandbox.New(t)
	cable(near, far)
	var squatter net.PacketConn
	near.Do(func() (err error) {
		squatter, err = net.ListenPacket("udp4", ":3784")
		return err
	})
	a, b := runIn(t, near, 1), runIn(t, far, 2)
	a.engine.Set([]bfd.Session{{Key: bfd.Key{Peer: there}, Profile: fast()}})
	b.engine.Set([]bfd.Session{{Key: bfd.Key{Peer: here}, Profile: fast()}})
	a.eventually("the fault is told", func() error {
		return a.status(there, func(s bfd.Status) bool { return s.Fault.Reason == names.ReasonBFDPortInUse })
	})
	if err := squatter.Close(); err != nil {
		t.Fatal(err)
	}
	a.want("the port is free", there, isUp)
}

// TestAFlood of garbage from on and off the link, of well-formed packets of strangers and of random ones from the router's
// own address takes no session down.
func TestAFlood(t *testing.T) {
	t.Parallel()
	b := lay(t)
	b.route(router.FRR, "router", frrText)
	b.engine.Set(both(bfd.DefaultProfile()))
	b.eventually("both are up", func() error { return b.allUp(2) })
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	ended := make(chan error, 2)
	for _, host := range []string{"router", "client"} {
		go func() { ended <- b.Host(host).Do(func() error { return flood(ctx) }) }()
	}
	b.quiet("under a flood", 3*time.Second)
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if n := b.engine.Discarded()[session.WrongState]; n < 1000 {
		t.Errorf("%d packets of the flood came to us, too few to say anything: %v", n, b.engine.Discarded())
	}
}
