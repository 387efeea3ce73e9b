package udp_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// birdSingleHopConfig is a router with sessions to the node over both families, link-local
// addresses included. birdMultihopConfig is a router two hops away.
const (
	birdSingleHopConfig = `router id 192.168.0.1;
protocol device {}
protocol bfd {
  interface "eth0" {
    min rx interval 50 ms;
    min tx interval 50 ms;
    idle tx interval 1 s;
    multiplier 3;
  };
  neighbor 192.168.0.11 dev "eth0";
  neighbor fd00:a8::b dev "eth0";
}
`
	birdMultihopConfig = `router id 10.99.0.2;
protocol device {}
protocol bfd {
  multihop {
    min rx interval 100 ms;
    min tx interval 100 ms;
    multiplier 4;
  };
  neighbor 192.168.0.11 local 10.99.0.2 multihop on;
  neighbor fd00:a8::b local fd00:99::2 multihop on;
}
`
)

// waitForBIRDSessionState waits until BIRD shows a peer in the state.
func (b *bfdEngineInLab) waitForBIRDSessionState(what string, r *router.Router, peer netip.Addr, state string) {
	b.t.Helper()
	b.awaitNoError("BIRD shows that "+what, func() error {
		out, err := r.RunShowCommand(b.t.Context(), "show bfd sessions")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); len(f) > 2 && f[0] == peer.String() && f[2] == state {
				return nil
			}
		}
		return fmt.Errorf("it shows\n%s", out)
	})
}

func TestSessionsWithBIRDComeUpAndRecover(t *testing.T) {
	t.Parallel()
	b := startBFDEngineInLab(t)
	r := b.startRouter(router.BIRD, "router", birdSingleHopConfig)
	b.engine.SetSessions(sessionConfigsToRouter(fastProfile()))
	b.awaitNoError("both are up", func() error { return b.checkAllUp(2) })
	b.waitForBIRDSessionState("IPv4 is up", r, nodeIPv4, "Up")
	b.waitForBIRDSessionState("IPv6 is up", r, nodeIPv6, "Up")

	slower := fastProfile()
	slower.TransmitInterval, slower.ReceiveInterval, slower.DetectMultiplier = 300*time.Millisecond, 300*time.Millisecond, 4
	b.engine.SetSessions(sessionConfigsToRouter(slower))
	b.expectAllStayUp("a change of intervals", 2*time.Second)
	b.awaitNoError("the poll sequences end", b.checkNoPollSequence)
	if err := r.ChangeRunningConfig(t.Context(), strings.ReplaceAll(birdSingleHopConfig, "50 ms", "100 ms")); err != nil {
		t.Fatal(err)
	}
	b.engine.SetSessions(sessionConfigsToRouter(fastProfile()))
	b.awaitNoError("both changes take effect", func() error {
		return b.checkStatus(routerIPv4, func(s bfd.SessionStatus) bool {
			return s.DetectionTime == 300*time.Millisecond && s.EffectiveTransmitInterval == 100*time.Millisecond
		})
	})
	b.expectAllStayUp("a change of BIRD's intervals", 2*time.Second)

	if err := r.KillDaemons(); err != nil {
		t.Fatal(err)
	}
	b.waitForEvent("BIRD is killed", routerIPv4, func(v bfd.Event) bool { return v.Cause == session.CauseDetectionExpired && v.IsPathFailure() })
	if err := r.StartEndedDaemons(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.awaitNoError("both are up again", func() error { return b.checkAllUp(2) })

	b.stopEngine()
	b.waitForBIRDSessionState("the speaker has stopped", r, nodeIPv4, "Down")
	b.waitForBIRDSessionState("the speaker has stopped", r, nodeIPv6, "Down")
}

func TestMultihopSessionsWithBIRDComeUp(t *testing.T) {
	t.Parallel()
	b := startBFDEngineInLab(t)
	r := b.startRouter(router.BIRD, "far", birdMultihopConfig)
	passive := fastProfile()
	passive.Passive = true
	sessions := []bfd.SessionConfig{
		{SessionKey: bfd.SessionKey{PeerAddress: multihopRouterIPv4, LocalAddress: nodeIPv4, Multihop: true}, Profile: passive},
		{SessionKey: bfd.SessionKey{PeerAddress: multihopRouterIPv6, LocalAddress: nodeIPv6, Multihop: true}, Profile: passive},
	}
	b.engine.SetSessions(sessions)
	b.awaitNoError("the low TTL is reported", func() error {
		return b.checkStatus(multihopRouterIPv4, func(s bfd.SessionStatus) bool { return s.Fault.Reason == names.ReasonBFDTTLTooLow })
	})
	sessions = slices.Clone(sessions) // the engine has the others
	for i := range sessions {
		sessions[i].MinimumTTL = 63 // BIRD sends with 64
	}
	b.engine.SetSessions(sessions)
	b.awaitNoError("both are up, though we wait for BIRD to begin", func() error { return b.checkAllUp(2) })
	b.waitForBIRDSessionState("IPv4 is up", r, nodeIPv4, "Up")
	b.waitForBIRDSessionState("IPv6 is up", r, nodeIPv6, "Up")
	b.expectAllStayUp("the path is fine", time.Second)
}
