package udp_test

import (
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/bfdtest"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// frrSingleHopConfig is a router with sessions to the node over both
// families. frrMultihopConfig is a router two hops away.
const (
	frrSingleHopConfig = `bfd
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
	frrMultihopConfig = `bfd
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

// fastProfile has a detection time of 3 x 50 ms.
func fastProfile() bfd.Profile {
	p := bfdtest.DefaultProfile()
	p.ReceiveInterval, p.TransmitInterval = 50*time.Millisecond, 50*time.Millisecond
	return p
}

// sessionConfigsToRouter returns the sessions to the router over IPv4 and IPv6.
func sessionConfigsToRouter(p bfd.Profile) []bfd.SessionConfig {
	return []bfd.SessionConfig{
		{SessionKey: bfd.SessionKey{PeerAddress: routerIPv4, LocalAddress: nodeIPv4, Interface: "eth0"}, Profile: p},
		{SessionKey: bfd.SessionKey{PeerAddress: routerIPv6}, Profile: p},
	}
}

func TestSessionsWithFRRComeUpAndRecover(t *testing.T) {
	t.Parallel()
	b := startBFDEngineInLab(t)
	r := b.startRouter(router.FRR, "router", frrSingleHopConfig)
	b.engine.SetSessions(sessionConfigsToRouter(fastProfile()))
	b.waitForEvent("the router is there", routerIPv4, isUpEvent)
	b.awaitNoError("IPv6 is up too", func() error { return b.checkAllUp(2) })
	for _, peer := range []string{nodeIPv4.String(), nodeIPv6.String()} {
		peers, err := b.frrSessionsByPeer(r)
		if p := peers[peer]; err != nil || p.Status != "up" || p.RemoteTransmitMilliseconds != 50 || p.RemoteReceiveMilliseconds != 50 || p.RemoteMultiplier != 3 {
			t.Errorf("FRR shows %+v (%v), want up with 3 x 50 ms", p, err)
		}
	}

	slower := fastProfile()
	slower.TransmitInterval, slower.ReceiveInterval, slower.DetectMultiplier = 200*time.Millisecond, 400*time.Millisecond, 5
	b.engine.SetSessions(sessionConfigsToRouter(slower))
	b.waitForFRRSession("the intervals changed", r, nodeIPv4, func(p frrSession) bool {
		return p.Status == "up" && p.RemoteTransmitMilliseconds == 200 && p.RemoteReceiveMilliseconds == 400 && p.RemoteMultiplier == 5
	})
	b.expectAllStayUp("a change of intervals", 2*time.Second)
	b.engine.SetSessions(sessionConfigsToRouter(fastProfile()))
	b.waitForFRRSession("they changed back", r, nodeIPv6, func(p frrSession) bool { return p.Status == "up" && p.RemoteTransmitMilliseconds == 50 })
	b.awaitNoError("the poll sequences end", func() error { return b.checkNoPollSequence() })
	if err := r.ChangeRunningConfig(t.Context(), "bfd\n profile node\n receive-interval 100\n transmit-interval 120\n detect-multiplier 4\n"); err != nil {
		t.Fatal(err)
	}
	b.awaitNoError("FRR's change takes effect", func() error {
		return b.checkStatus(routerIPv4, func(s bfd.SessionStatus) bool {
			return s.DetectionTime == 480*time.Millisecond && s.EffectiveTransmitInterval == 100*time.Millisecond
		})
	})
	b.expectAllStayUp("a change of FRR's intervals", 2*time.Second)

	killed := time.Now()
	if err := r.KillDaemons("bfdd"); err != nil {
		t.Fatal(err)
	}
	v := b.waitForEvent("bfdd is killed", routerIPv4, func(v bfd.Event) bool { return !v.Up && v.Cause == session.CauseDetectionExpired && v.IsPathFailure() })
	t.Logf("noticed %s after the kill began, with a detection time of 480 ms", v.ChangedAt.Sub(killed))
	if err := r.StartEndedDaemons(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.awaitNoError("both are up again", func() error { return b.checkAllUp(2) })
}

func TestFRRDetectsCutNode(t *testing.T) {
	t.Parallel()
	b := startBFDEngineInLab(t)
	r := b.startRouter(router.FRR, "router", frrSingleHopConfig)
	b.engine.SetSessions(sessionConfigsToRouter(fastProfile()))
	b.awaitNoError("both are up", func() error { return b.checkAllUp(2) })
	if err := b.CutCableKeepingCarrier("node1"); err != nil {
		t.Fatal(err)
	}
	b.waitForFRRSession("the path is lost", r, nodeIPv4, func(p frrSession) bool { return p.Status == "down" && p.Diagnostic == "control detection time expired" })
	b.waitForEvent("the node reports it too", routerIPv4, func(v bfd.Event) bool { return !v.Up && v.IsPathFailure() })
	if err := b.PlugCable("node1"); err != nil {
		t.Fatal(err)
	}
	b.awaitNoError("both are up again", func() error { return b.checkAllUp(2) })
}

func TestPlannedStopIsSignalledToFRR(t *testing.T) {
	t.Parallel()
	b := startBFDEngineInLab(t)
	r := b.startRouter(router.FRR, "router", frrSingleHopConfig)
	b.engine.SetSessions(sessionConfigsToRouter(fastProfile()))
	b.awaitNoError("both are up", func() error { return b.checkAllUp(2) })
	b.engine.SetSessions(sessionConfigsToRouter(fastProfile())[:1])
	b.waitForFRRSession("one session was shut down", r, nodeIPv6, func(p frrSession) bool {
		return p.Status == "down" && p.RemoteDiagnostic == "administratively down"
	})
	b.stopEngine()
	if err := <-b.engineEnded; err != nil {
		t.Fatal(err)
	}
	b.engineEnded <- nil
	b.waitForFRRSession("the speaker shut down", r, nodeIPv4, func(p frrSession) bool {
		return p.Status == "down" && p.RemoteDiagnostic == "administratively down"
	})
	b.startEngine(2)
	b.engine.SetSessions(sessionConfigsToRouter(fastProfile()))
	b.awaitNoError("a new speaker brings both up", func() error { return b.checkAllUp(2) })
}

func TestFRRAdminDownIsNoPathFailure(t *testing.T) {
	t.Parallel()
	b := startBFDEngineInLab(t)
	r := b.startRouter(router.FRR, "router", frrSingleHopConfig)
	b.engine.SetSessions(sessionConfigsToRouter(fastProfile())[:1])
	b.waitForEvent("the router is there", routerIPv4, isUpEvent)
	const peer = "bfd\n peer 192.168.0.11 local-address 192.168.0.1 interface eth0\n "
	if err := r.ChangeRunningConfig(t.Context(), peer+"shutdown\n"); err != nil {
		t.Fatal(err)
	}
	b.waitForEvent("its administrator shuts the session down", routerIPv4, func(v bfd.Event) bool {
		return !v.Up && v.Cause == session.CauseNeighbourSignalledAdminDown && !v.IsPathFailure()
	})
	if err := r.ChangeRunningConfig(t.Context(), peer+"no shutdown\n"); err != nil {
		t.Fatal(err)
	}
	b.waitForEvent("its administrator starts the session again", routerIPv4, isUpEvent)
}

func TestMultihopSessionsWithFRRComeUpAndRecover(t *testing.T) {
	t.Parallel()
	b := startBFDEngineInLab(t)
	r := b.startRouter(router.FRR, "far", frrMultihopConfig)
	p := fastProfile()
	p.MinimumTTL = 254 // one router between
	sessions := []bfd.SessionConfig{
		{SessionKey: bfd.SessionKey{PeerAddress: multihopRouterIPv4, Multihop: true}, Profile: p},
		{SessionKey: bfd.SessionKey{PeerAddress: multihopRouterIPv6, LocalAddress: nodeIPv6, Multihop: true}, Profile: p},
	}
	b.engine.SetSessions(sessions)
	b.awaitNoError("both are up", func() error { return b.checkAllUp(2) })
	sessions = slices.Clone(sessions) // the engine has the others
	for i := range sessions {
		sessions[i].MinimumTTL = 1
	}
	b.engine.SetSessions(sessions)
	b.expectAllStayUp("every TTL is accepted", time.Second)
	if err := b.CutCableKeepingCarrier("router"); err != nil {
		t.Fatal(err)
	}
	b.waitForEvent("the router between is cut off", multihopRouterIPv4, func(v bfd.Event) bool { return v.IsPathFailure() })
	if err := b.PlugCable("router"); err != nil {
		t.Fatal(err)
	}
	b.awaitNoError("both are up again", func() error { return b.checkAllUp(2) })
	b.waitForFRRSession("it is multihop", r, nodeIPv6, func(p frrSession) bool { return p.Multihop && p.Status == "up" })
}

func TestHungRouterProcessIsDetected(t *testing.T) {
	t.Parallel()
	b := startBFDEngineInLab(t)
	r := b.startRouter(router.FRR, "router", frrSingleHopConfig)
	b.engine.SetSessions(sessionConfigsToRouter(fastProfile())[:1])
	b.waitForEvent("the router is there", routerIPv4, isUpEvent)
	if err := r.SignalDaemons(syscall.SIGSTOP, "bfdd"); err != nil {
		t.Fatal(err)
	}
	b.waitForEvent("bfdd hangs", routerIPv4, func(v bfd.Event) bool { return v.IsPathFailure() })
	if err := r.SignalDaemons(syscall.SIGCONT, "bfdd"); err != nil {
		t.Fatal(err)
	}
	b.waitForEvent("bfdd continues", routerIPv4, isUpEvent)
}
