package bgp_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

func drainDelayEdit(delay time.Duration) func(*intent.Peer) {
	return func(p *intent.Peer) { p.DrainDelay, p.HasDrainDelay = delay, true }
}

const gracefulShutdownText = "{Communities: planned-shut}"

// TestRouteOfTerminatingEndpointsIsDrained checks that the router gets the route with
// GRACEFUL_SHUTDOWN while the endpoints serve, and loses it when they stop or after the delay.
func TestRouteOfTerminatingEndpointsIsDrained(t *testing.T) {
	const other = "198.51.100.2/32"
	routes := func(terminating bool) []*intent.Route {
		out := exampleRoutes(servicePrefix, other)
		out[0].EndpointsTerminating = terminating
		return out
	}
	m := newLoopbackTransport()
	slow, fast := m.addRouter(t, "192.0.2.1", nil), m.addRouter(t, "192.0.2.2", nil)
	s := startLoopbackSpeaker(t, m)
	d := bgp.DesiredState{Peers: []intent.Peer{
		scriptedRouterPeer(), scriptedRouterPeer(drainDelayEdit(time.Second), func(p *intent.Peer) { p.Name, p.Address = "tor2", m.addressOfRouter(fast) }),
	}}
	set := func(list []*intent.Route) {
		for _, r := range list {
			r.PeerNames = []string{"tor", "tor2"}
		}
		d.Routes = list
		s.SetDesiredState(d)
	}
	set(routes(false))
	both := []*scriptedRouter{slow, fast}
	for _, r := range both {
		r.awaitRoute(t, servicePrefix, "")
	}
	set(routes(true))
	for _, r := range both {
		r.awaitRoute(t, servicePrefix, gracefulShutdownText)
	}
	fast.awaitNoRoute(t, servicePrefix) // after its delay
	if got := slow.attributesOfRoute(servicePrefix); got == "" {
		t.Error("the route is withdrawn before the delay of its peer")
	}
	for _, r := range both {
		if got := r.attributesOfRoute(other); got == "" || got == gracefulShutdownText {
			t.Errorf("the other route is %q", got)
		}
	}
	awaitNoError(t, "no route is missing", func() error {
		if st := s.peerStatus("tor2"); st.WithheldRouteReason.IsSet() || st.WantedRouteCount != 1 || st.AnnouncedRouteCount != 1 || fmt.Sprint(st.DrainingPrefixes, st.DrainedPrefixes) != "[] ["+servicePrefix+"]" {
			return fmt.Errorf("%+v", st)
		}
		if st := s.peerStatus("tor"); fmt.Sprint(st.DrainingPrefixes, st.DrainedPrefixes) != "["+servicePrefix+"] []" {
			return fmt.Errorf("of the peer with the longer delay: %+v", st)
		}
		return nil
	})
	set(routes(false)) // new endpoints are ready
	for _, r := range both {
		awaitNoError(t, "the route is as before", func() error {
			if got := r.attributesOfRoute(servicePrefix); got == "" || got != r.attributesOfRoute(other) {
				return fmt.Errorf("it is %q", got)
			}
			return nil
		})
	}
	set(routes(true))
	slow.awaitRoute(t, servicePrefix, gracefulShutdownText)
	set(exampleRoutes(other)) // they have stopped
	slow.awaitNoRoute(t, servicePrefix)
}

// TestDrainedNodeStaysAtLowPreferenceForTheDelay checks a node that is drained, and a speaker that
// stops: the second does not wait for the delay of the first.
func TestDrainedNodeStaysAtLowPreferenceForTheDelay(t *testing.T) {
	for name, tc := range map[string]struct {
		edit      func(*intent.Peer)
		withdrawn bool // without a stop
	}{
		"by default it stays": {func(*intent.Peer) {}, false},
		"a short delay":       {drainDelayEdit(200 * time.Millisecond), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newLoopbackTransport()
			r := m.addRouter(t, "192.0.2.1", nil)
			s := startLoopbackSpeaker(t, m)
			d := bgp.DesiredState{Peers: []intent.Peer{scriptedRouterPeer(tc.edit)}, Routes: exampleRoutes(servicePrefix)}
			s.SetDesiredState(d)
			r.awaitRoute(t, servicePrefix, "")
			d.NodeLeaving = true
			s.SetDesiredState(d)
			if tc.withdrawn {
				r.awaitNoRoute(t, servicePrefix)
			} else {
				r.awaitRoute(t, servicePrefix, gracefulShutdownText)
			}
			if got := r.recordedRouteEvents(); len(got) < 2 || got[1] != "+"+servicePrefix {
				t.Errorf("the router got %v", got)
			}
			awaitNoError(t, "only announced routes are wanted", func() error {
				if st := s.peerStatus("tor"); st.WantedRouteCount != st.AnnouncedRouteCount || tc.withdrawn != (st.WantedRouteCount == 0) {
					return fmt.Errorf("%+v", st)
				}
				return nil
			})
			s.Stop(t.Context())
			r.awaitNoRoute(t, servicePrefix)
		})
	}
}

// TestDrainDelayEditDuringDrainTakesEffect edits the delay while routes drain: it counts from the
// start of the drain. No edit here resets the session, nor does a restartTime without graceful
// restart.
func TestDrainDelayEditDuringDrainTakesEffect(t *testing.T) {
	for name, drain := range map[string]func(*bgp.DesiredState){
		"the node is drained": func(d *bgp.DesiredState) { d.NodeLeaving = true },
		"endpoints terminate": func(d *bgp.DesiredState) {
			d.Routes = exampleRoutes(servicePrefix)
			d.Routes[0].EndpointsTerminating = true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newLoopbackTransport()
			r := m.addRouter(t, "192.0.2.1", nil)
			s := startLoopbackSpeaker(t, m)
			d := bgp.DesiredState{Peers: []intent.Peer{scriptedRouterPeer(drainDelayEdit(time.Hour))}, Routes: exampleRoutes(servicePrefix)}
			s.SetDesiredState(d)
			r.awaitRoute(t, servicePrefix, "")
			drain(&d)
			s.SetDesiredState(d)
			r.awaitRoute(t, servicePrefix, gracefulShutdownText)
			d.Peers = []intent.Peer{scriptedRouterPeer(drainDelayEdit(0), func(p *intent.Peer) { p.RestartTime = time.Minute })}
			s.SetDesiredState(d)
			r.awaitNoRoute(t, servicePrefix)
			if st := s.peerStatus("tor"); st.EstablishedCount != 1 || st.State != bgp.Established || len(r.receivedOpens()) != 1 {
				t.Errorf("an edit reset the session: %+v", st)
			}
		})
	}
}

// TestRemovedPeerIsDrained checks that a router learns to use other paths before a peer that is
// deleted takes its routes away.
func TestRemovedPeerIsDrained(t *testing.T) {
	m := newLoopbackTransport()
	r := m.addRouter(t, "192.0.2.1", nil)
	s := startLoopbackSpeaker(t, m)
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{scriptedRouterPeer()}, Routes: exampleRoutes(servicePrefix)})
	r.awaitRoute(t, servicePrefix, "")
	s.SetDesiredState(bgp.DesiredState{})
	r.awaitRoute(t, servicePrefix, gracefulShutdownText)
	awaitNoError(t, "the session ends", func() error {
		if n := r.receivedNotifications(); len(n) != 1 || n[0].Subcode != message.CeaseDeconfigured {
			return fmt.Errorf("the router got %v", n)
		}
		return nil
	})
	if got := r.recordedRouteEvents(); !slices.Equal(got, []string{"+" + servicePrefix, "+" + servicePrefix, "-" + servicePrefix}) {
		t.Errorf("the router got %v", got)
	}
}

// TestBFDStrictWithholdsRoutesUntilBFDIsUp checks that a router gets routes only while the BFD
// session is Up, and that BGP does not connect again and again while it is Down.
func TestBFDStrictWithholdsRoutesUntilBFDIsUp(t *testing.T) {
	m := newLoopbackTransport()
	r := m.addRouter(t, "192.0.2.1", nil)
	s := startLoopbackSpeaker(t, m)
	p := scriptedRouterPeer(func(p *intent.Peer) { p.BFDStrict, p.BFD = true, &intent.BFD{Multiplier: 3} })
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	s.waitForEstablished("tor")
	awaitNoError(t, "the status says that BFD is missing", func() error {
		if st := s.peerStatus("tor"); st.WithheldRouteReason.Reason != names.ReasonBFDDown || st.AnnouncedRouteCount != 0 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	key := bfd.SessionKey{PeerAddress: netip.MustParseAddr("192.0.2.1")}
	s.bfd.setStateAndSendEvent(session.Up, bfd.Event{Key: key, Up: true})
	r.awaitRoute(t, servicePrefix, "")
	s.bfd.setStateAndSendEvent(session.Down, bfd.Event{Key: key, Cause: session.CauseDetectionExpired})
	awaitNoError(t, "the session ended and is up again", func() error {
		if st := s.peerStatus("tor"); st.EstablishedCount != 2 || st.State != bgp.Established {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	if st := s.peerStatus("tor"); st.WithheldRouteReason.Reason != names.ReasonBFDDown || r.attributesOfRoute(servicePrefix) != "" {
		t.Errorf("while BFD is Down the router has %q: %+v", r.attributesOfRoute(servicePrefix), st)
	}
	if n := len(r.receivedOpens()); n != 2 {
		t.Errorf("the speaker connected %d times", n)
	}
	s.bfd.setStateAndSendEvent(session.Up, bfd.Event{Key: key, Up: true})
	r.awaitRoute(t, servicePrefix, "")
	// The route is withdrawn with the end of the session, or by a message just before it.
	got := r.recordedRouteEvents()
	if len(got) == 3 && got[1] == "-"+servicePrefix {
		got = slices.Delete(got, 1, 2)
	}
	if !slices.Equal(got, []string{"+" + servicePrefix, "+" + servicePrefix}) {
		t.Errorf("the router got %v", got)
	}
}

// TestNewSessionSurvivesBFDRestartByRouter checks that a new session survives a BFD session that
// the router starts again, and ends if BFD does not come Up.
func TestNewSessionSurvivesBFDRestartByRouter(t *testing.T) {
	m := newLoopbackTransport()
	r := m.addRouter(t, "192.0.2.1", nil)
	s := startLoopbackSpeaker(t, m)
	p := scriptedRouterPeer(func(p *intent.Peer) { p.BFD = &intent.BFD{Multiplier: 3} })
	key := bfd.SessionKey{PeerAddress: netip.MustParseAddr("192.0.2.1")}
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	s.waitForEstablished("tor")
	s.bfd.setStateAndSendEvent(session.Down, bfd.Event{Key: key, Cause: session.CauseNeighbourSignalledDown})
	s.bfd.setStateAndSendEvent(session.Up, bfd.Event{Key: key, Up: true})
	s.bfd.setStateAndSendEvent(session.Down, bfd.Event{Key: key, Cause: session.CauseNeighbourSignalledDown})
	if n := len(r.receivedOpens()); n != 1 {
		t.Errorf("the speaker connected %d times", n)
	}
	awaitNoError(t, "the session ends, since BFD stays Down", func() error {
		n := r.receivedNotifications()
		if len(n) == 0 {
			return fmt.Errorf("%+v", s.peerStatus("tor"))
		}
		if n[0].Subcode != message.CeaseBFDDown || !strings.Contains(s.peerStatus("tor").LastError.Text, "not up again within") {
			t.Fatalf("it ended with %s: %+v", n[0].Description(), s.peerStatus("tor"))
		}
		return nil
	})
}

// setStateAndSendEvent changes the state of all sessions.
func (m *fakeBFDEngine) setStateAndSendEvent(state session.State, v bfd.Event) {
	m.mu.Lock()
	m.state = state
	m.mu.Unlock()
	m.events <- v
}

// TestRIBSaysWhatIsAnnouncedAndWhy checks the JSON for administrators.
func TestRIBSaysWhatIsAnnouncedAndWhy(t *testing.T) {
	m := newLoopbackTransport()
	r := m.addRouter(t, "192.0.2.1", func(o *message.OpenMessage) { o.ASN = 64512 })
	s := startLoopbackSpeaker(t, m)
	d := bgp.DesiredState{
		Peers:  []intent.Peer{scriptedRouterPeer(makeDualStack, func(p *intent.Peer) { p.PeerASN = 64512 })},
		Routes: exampleRoutes(servicePrefix, servicePrefixIPv6),
	}
	d.Peers = append(d.Peers, scriptedRouterPeer(func(p *intent.Peer) {
		p.Name, p.LocalASN, p.BlockedExplanation = "blocked", 0, names.NewExplanation(names.ReasonNodeLabel, "no label")
	}))
	d.Routes[0].AdvertisementNames = []string{"all", "backup"}
	d.Routes[0].Communities, d.Routes[0].MED, d.Routes[0].HasMED = []uint32{64512<<16 | 7}, 5, true
	s.SetDesiredState(d)
	r.awaitRoute(t, servicePrefix, "")
	awaitNoError(t, "the RIB is complete", func() error {
		all := s.RIBs(t.Context())
		if len(all) != 2 || all[1].SessionState != string(bgp.Established) {
			return fmt.Errorf("%+v", all)
		}
		if all[0].PeerName != "blocked" || len(all[0].Routes) != 0 {
			return fmt.Errorf("%+v", all[0])
		}
		if all[1].RouterAddress != "192.0.2.1:179" || len(all[1].Routes) != 2 {
			return fmt.Errorf("%+v", all[1])
		}
		first, second := all[1].Routes[0], all[1].Routes[1]
		a := first.Attributes
		switch {
		case !first.Announced || a == nil || a.NextHop != "192.0.2.11" || a.LocalPref != 100 || a.MED == nil || *a.MED != 5:
			return fmt.Errorf("%+v %+v", first, a)
		case !slices.Equal(a.Communities, []string{"64512:7"}) || !slices.Equal(first.AdvertisementNames, []string{"all", "backup"}):
			return fmt.Errorf("%+v %+v", first, a)
		case second.Announced || second.WithheldReason != names.ReasonNoNextHop || second.WithheldText == "" || second.Attributes != nil:
			return fmt.Errorf("%+v", second)
		}
		return nil
	})
	s.endEngine()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if got := s.RIBs(canceled); len(got) != 0 {
		t.Errorf("an engine that has ended returns %+v", got)
	}
}
