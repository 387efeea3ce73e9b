package bgp_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// TestLeavingNodeAnnouncesNothingAtItsStart checks that a node which is leaving or excluded when
// its speaker starts, or when a peer is added, never enters the router's table.
func TestLeavingNodeAnnouncesNothingAtItsStart(t *testing.T) {
	m := newLoopbackTransport()
	first, second := m.addRouter(t, "192.0.2.1", nil), m.addRouter(t, "192.0.2.2", nil)
	s := startLoopbackSpeaker(t, m)
	d := bgp.DesiredState{Peers: []intent.Peer{scriptedRouterPeer()}, Routes: exampleRoutes(servicePrefix), NodeLeaving: true}
	s.SetDesiredState(d)
	s.waitForEstablished("tor")
	added := scriptedRouterPeer(func(p *intent.Peer) { p.Name, p.Address = "tor2", m.addressOfRouter(second) })
	d.Peers = append(slices.Clone(d.Peers), added)
	d.Routes = []*intent.Route{{Prefix: d.Routes[0].Prefix, PeerNames: []string{"tor", "tor2"}}}
	s.SetDesiredState(d)
	s.waitForEstablished("tor2")
	first.closeConnection() // a new session announces nothing either
	awaitNoError(t, "the session is up again", func() error {
		if st := s.peerStatus("tor"); st.EstablishedCount != 2 || st.State != bgp.Established {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	s.Stop(t.Context())
	for _, r := range []*scriptedRouter{first, second} {
		if got := r.recordedRouteEvents(); len(got) > 0 {
			t.Errorf("the router got %v, want nothing", got)
		}
		awaitNoError(t, "the router gets a Cease", func() error {
			if n := r.receivedNotifications(); len(n) != 1 || n[0].Subcode != message.CeaseShutdown {
				return fmt.Errorf("it got %v", n)
			}
			return nil
		})
	}
}

// TestNodeNoLongerLeavingAnnouncesAgain checks the way back.
func TestNodeNoLongerLeavingAnnouncesAgain(t *testing.T) {
	m := newLoopbackTransport()
	r := m.addRouter(t, "192.0.2.1", nil)
	s := startLoopbackSpeaker(t, m)
	d := bgp.DesiredState{Peers: []intent.Peer{scriptedRouterPeer()}, Routes: exampleRoutes(servicePrefix), NodeLeaving: true}
	s.SetDesiredState(d)
	s.waitForEstablished("tor")
	d.NodeLeaving = false
	s.SetDesiredState(d)
	r.awaitRoute(t, servicePrefix, "{Nexthop: 192.0.2.11}")
}

// TestStopOfALeavingNodeWithdrawsItsRoutes checks that the router keeps no routes of a node that
// starts to leave in the moment in which its speaker stops, although graceful restart is agreed.
func TestStopOfALeavingNodeWithdrawsItsRoutes(t *testing.T) {
	m := newLoopbackTransport()
	r := m.addRouter(t, "192.0.2.1", func(o *message.OpenMessage) {
		o.GracefulRestart = &message.GracefulRestartCapability{ForwardingKeptByFamily: map[message.AFI]bool{}}
	})
	s := startLoopbackSpeaker(t, m)
	d := bgp.DesiredState{
		Peers:  []intent.Peer{scriptedRouterPeer(func(p *intent.Peer) { p.GracefulRestart, p.RestartTime = true, time.Minute })},
		Routes: exampleRoutes(servicePrefix),
	}
	s.SetDesiredState(d)
	r.awaitRoute(t, servicePrefix, "")
	d.NodeLeaving = true
	s.SetDesiredState(d)
	s.Stop(t.Context())
	r.awaitNoRoute(t, servicePrefix)
}
