package bgp_test

import (
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/test/lab/router"
)

func TestRoutesReachFRR(t *testing.T) {
	b := lay(t, router.BedOptions{Nodes: 1})
	frr := start(t, router.Config{Kind: router.FRR, NetNS: b.Host("router"), Text: frrText("neighbor 192.168.0.11 remote-as 64512")})
	s := speak(t, b.Host("node1"))
	p := tor()
	begin := time.Now()
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes("198.51.100.1/32")})
	s.established("tor")
	t.Logf("established after %s", time.Since(begin))
	got := arrives(t, frr, "198.51.100.1/32")
	t.Logf("installed after %s", time.Since(begin))
	if got.AsPath.String != "64512" || len(got.NextHops) != 1 || got.NextHops[0].IP != "192.168.0.11" {
		t.Errorf("the router has %+v, want AS path 64512 via 192.168.0.11", got)
	}
	s.Set(bgp.Desired{Peers: []intent.Peer{p}, Routes: routes("198.51.100.2/32")})
	arrives(t, frr, "198.51.100.2/32")
	goes(t, frr, "198.51.100.1/32")
	if st := s.state("tor"); st.Ups != 1 {
		t.Errorf("the session was reset: %+v", st)
	}
}
