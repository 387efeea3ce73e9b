package udp_test

import (
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// frrText is a router that watches a node over both families, and the far one that watches it over two hops.
const (
	frrText = `bfd
 profile node
  receive-interval 50
  transmit-interval 50
  detect-multiplier 3
 exit
 peer 192.168.0.11 local-address 192.168.0.1 interface eth0
  profile node
 exit
 peer fd00:a8::b local-address fd00:a8::1 interface eth0
  profile node
 exit
exit
`
	frrFarText = `bfd
 peer 192.168.0.11 multihop local-address 10.99.0.2
  receive-interval 100
  transmit-interval 100
  minimum-ttl 254
 exit
 peer fd00:a8::b multihop local-address fd00:99::2
  receive-interval 100
  transmit-interval 100
  minimum-ttl 254
 exit
exit
`
)

// fast is 3 x 50 ms.
func fast() bfd.Profile {
	p := bfd.DefaultProfile()
	p.Receive, p.Transmit = 50*time.Millisecond, 50*time.Millisecond
	return p
}

// both are sessions to the router over IPv4 and IPv6.
func both(p bfd.Profile) []bfd.Session {
	return []bfd.Session{
		{Key: bfd.Key{Peer: router4, Local: node4, Interface: "eth0"}, Profile: p},
		{Key: bfd.Key{Peer: router6}, Profile: p},
	}
}

func TestFRR(t *testing.T) {
	t.Parallel()
	b := lay(t)
	r := b.route(router.FRR, "router", frrText)
	b.engine.Set(both(fast()))
	b.want("the router is there", router4, isUp)
	b.eventually("IPv6 is up too", func() error { return b.allUp(2) })
	for _, peer := range []string{node4.String(), node6.String()} {
		peers, err := b.frrPeers(r)
		if p := peers[peer]; err != nil || p.Status != "up" || p.RemoteTransmit != 50 || p.RemoteReceive != 50 || p.RemoteMultiplier != 3 {
			t.Errorf("FRR shows %+v (%v), want up with 3 x 50 ms", p, err)
		}
	}

	slower := fast()
	slower.Transmit, slower.Receive, slower.Multiplier = 200*time.Millisecond, 400*time.Millisecond, 5
	b.engine.Set(both(slower))
	b.frrShows("the intervals changed", r, node4, func(p frrPeer) bool {
		return p.Status == "up" && p.RemoteTransmit == 200 && p.RemoteReceive == 400 && p.RemoteMultiplier == 5
	})
	b.quiet("a change of intervals", 2*time.Second)
	b.engine.Set(both(fast()))
	b.frrShows("they changed back", r, node6, func(p frrPeer) bool { return p.Status == "up" && p.RemoteTransmit == 50 })
	b.eventually("the poll sequences end", func() error { return b.noPoll() })
	if err := r.Configure(t.Context(), "bfd\n profile node\n receive-interval 100\n transmit-interval 120\n detect-multiplier 4\n"); err != nil {
		t.Fatal(err)
	}
	b.eventually("FRR's change is seen", func() error {
		return b.status(router4, func(s bfd.Status) bool {
			return s.Detection == 480*time.Millisecond && s.Transmit == 100*time.Millisecond
		})
	})
	b.quiet("a change of FRR's intervals", 2*time.Second)

	killed := time.Now()
	if err := r.Kill("bfdd"); err != nil {
		t.Fatal(err)
	}
	v := b.want("bfdd is killed", router4, func(v bfd.Event) bool { return !v.Up && v.Cause == session.CauseDetectionExpired && v.Failed() })
	t.Logf("noticed %s after the kill began, with a detection time of 480 ms", v.At.Sub(killed))
	if err := r.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.eventually("both come back", func() error { return b.allUp(2) })
}

func TestFRRSeesThatTheNodeIsGone(t *testing.T) {
	t.Parallel()
	b := lay(t)
	r := b.route(router.FRR, "router", frrText)
	b.engine.Set(both(fast()))
	b.eventually("both are up", func() error { return b.allUp(2) })
	if err := b.CutSilently("node1"); err != nil {
		t.Fatal(err)
	}
	b.frrShows("the path is lost", r, node4, func(p frrPeer) bool { return p.Status == "down" && p.Diagnostic == "control detection time expired" })
	b.want("we see it too", router4, func(v bfd.Event) bool { return !v.Up && v.Failed() })
	if err := b.Plug("node1"); err != nil {
		t.Fatal(err)
	}
	b.eventually("both are up again", func() error { return b.allUp(2) })
}

func TestFRRSeesAPlannedStop(t *testing.T) {
	t.Parallel()
	b := lay(t)
	r := b.route(router.FRR, "router", frrText)
	b.engine.Set(both(fast()))
	b.eventually("both are up", func() error { return b.allUp(2) })
	b.engine.Set(both(fast())[:1])
	b.frrShows("one session was removed on purpose", r, node6, func(p frrPeer) bool {
		return p.Status == "down" && p.RemoteDiagnostic == "administratively down"
	})
	b.stop()
	if err := <-b.ended; err != nil {
		t.Fatal(err)
	}
	b.ended <- nil
	b.frrShows("the speaker stopped on purpose", r, node4, func(p frrPeer) bool {
		return p.Status == "down" && p.RemoteDiagnostic == "administratively down"
	})
	b.start(2)
	b.engine.Set(both(fast()))
	b.eventually("a new speaker brings both up", func() error { return b.allUp(2) })
}

func TestFRRIsShutDownOnPurpose(t *testing.T) {
	t.Parallel()
	b := lay(t)
	r := b.route(router.FRR, "router", frrText)
	b.engine.Set(both(fast())[:1])
	b.want("the router is there", router4, isUp)
	const peer = "bfd\n peer 192.168.0.11 local-address 192.168.0.1 interface eth0\n "
	if err := r.Configure(t.Context(), peer+"shutdown\n"); err != nil {
		t.Fatal(err)
	}
	b.want("its administrator shuts the session down", router4, func(v bfd.Event) bool {
		return !v.Up && v.Cause == session.CauseNeighbourAdminDown && !v.Failed()
	})
	if err := r.Configure(t.Context(), peer+"no shutdown\n"); err != nil {
		t.Fatal(err)
	}
	b.want("and brings it back", router4, isUp)
}

func TestFRROverTwoHops(t *testing.T) {
	t.Parallel()
	b := lay(t)
	r := b.route(router.FRR, "far", frrFarText)
	p := fast()
	p.MinimumTTL = 254 // one router between
	sessions := []bfd.Session{
		{Key: bfd.Key{Peer: far4, Multihop: true}, Profile: p},
		{Key: bfd.Key{Peer: far6, Local: node6, Multihop: true}, Profile: p},
	}
	b.engine.Set(sessions)
	b.eventually("both are up", func() error { return b.allUp(2) })
	sessions = slices.Clone(sessions) // the engine has the others
	for i := range sessions {
		sessions[i].MinimumTTL = 1
	}
	b.engine.Set(sessions)
	b.quiet("any TTL will do", time.Second)
	if err := b.CutSilently("router"); err != nil {
		t.Fatal(err)
	}
	b.want("the router between is gone", far4, func(v bfd.Event) bool { return v.Failed() })
	if err := b.Plug("router"); err != nil {
		t.Fatal(err)
	}
	b.eventually("both are up again", func() error { return b.allUp(2) })
	b.frrShows("it is multihop", r, node6, func(p frrPeer) bool { return p.Multihop && p.Status == "up" })
}

func TestAStoppedProcessIsNoticedAndReturns(t *testing.T) {
	t.Parallel()
	b := lay(t)
	r := b.route(router.FRR, "router", frrText)
	b.engine.Set(both(fast())[:1])
	b.want("the router is there", router4, isUp)
	if err := r.Signal(syscall.SIGSTOP, "bfdd"); err != nil {
		t.Fatal(err)
	}
	b.want("bfdd hangs", router4, func(v bfd.Event) bool { return v.Failed() })
	if err := r.Signal(syscall.SIGCONT, "bfdd"); err != nil {
		t.Fatal(err)
	}
	b.want("bfdd goes on", router4, isUp)
}
