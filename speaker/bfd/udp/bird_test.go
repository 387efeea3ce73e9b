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

// birdText is a router that watches a node over both families, with link-local addresses too; birdFarText watches it over
// two hops.
const (
	birdText = `router id 192.168.0.1;
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
	birdFarText = `router id 10.99.0.2;
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

// birdShows waits until BIRD says so about a peer.
func (b *bed) birdShows(what string, r *router.Router, peer netip.Addr, state string) {
	b.t.Helper()
	b.eventually("BIRD shows that "+what, func() error {
		out, err := r.Show(b.t.Context(), "show bfd sessions")
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

func TestBIRD(t *testing.T) {
	t.Parallel()
	b := lay(t)
	r := b.route(router.BIRD, "router", birdText)
	b.engine.Set(both(fast()))
	b.eventually("both are up", func() error { return b.allUp(2) })
	b.birdShows("IPv4 is up", r, node4, "Up")
	b.birdShows("IPv6 is up", r, node6, "Up")

	slower := fast()
	slower.Transmit, slower.Receive, slower.Multiplier = 300*time.Millisecond, 300*time.Millisecond, 4
	b.engine.Set(both(slower))
	b.quiet("a change of intervals", 2*time.Second)
	b.eventually("the poll sequences end", b.noPoll)
	if err := r.Configure(t.Context(), strings.ReplaceAll(birdText, "50 ms", "100 ms")); err != nil {
		t.Fatal(err)
	}
	b.engine.Set(both(fast()))
	b.eventually("both changes are seen", func() error {
		return b.status(router4, func(s bfd.Status) bool {
			return s.Detection == 300*time.Millisecond && s.Transmit == 100*time.Millisecond
		})
	})
	b.quiet("a change of BIRD's intervals", 2*time.Second)

	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	b.want("BIRD is killed", router4, func(v bfd.Event) bool { return v.Cause == session.CauseDetectionExpired && v.Failed() })
	if err := r.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.eventually("both come back", func() error { return b.allUp(2) })

	b.stop()
	b.birdShows("the speaker has stopped", r, node4, "Down")
	b.birdShows("the speaker has stopped", r, node6, "Down")
}

func TestBIRDOverTwoHops(t *testing.T) {
	t.Parallel()
	b := lay(t)
	r := b.route(router.BIRD, "far", birdFarText)
	passive := fast()
	passive.Passive = true
	sessions := []bfd.Session{
		{Key: bfd.Key{Peer: far4, Local: node4, Multihop: true}, Profile: passive},
		{Key: bfd.Key{Peer: far6, Local: node6, Multihop: true}, Profile: passive},
	}
	b.engine.Set(sessions)
	b.eventually("the TTL is found too low", func() error {
		return b.status(far4, func(s bfd.Status) bool { return s.Fault.Reason == names.ReasonBFDTTLTooLow })
	})
	sessions = slices.Clone(sessions) // the engine has the others
	for i := range sessions {
		sessions[i].MinimumTTL = 63 // BIRD sends with 64
	}
	b.engine.Set(sessions)
	b.eventually("both are up, though we wait for BIRD to begin", func() error { return b.allUp(2) })
	b.birdShows("IPv4 is up", r, node4, "Up")
	b.birdShows("IPv6 is up", r, node6, "Up")
	b.quiet("the path is fine", time.Second)
}
