package bgp_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// TestRefusedCapabilitiesAreOmittedFromNextOpen lets routers refuse OPENs as old ones do. The
// speaker connects again without what was refused, but never without what the routes need.
func TestRefusedCapabilitiesAreOmittedFromNextOpen(t *testing.T) {
	refuse := func(subcode uint8, data ...byte) []byte {
		return (&message.Notification{Code: message.CodeOpenMessageError, Subcode: subcode, Data: data}).Encode()
	}
	all := func(p *intent.Peer) { p.GracefulRestart, p.RestartTime = true, time.Minute }
	for name, tc := range map[string]struct {
		edit func(*intent.Peer)
		// takes reports whether the router takes an OPEN.
		takes   func(message.OpenMessage) bool
		refusal []byte
		want    func(message.OpenMessage) bool
		says    string
	}{
		"no optional parameters": {
			takes:   func(o message.OpenMessage) bool { return len(o.Capabilities()) == 0 },
			refusal: refuse(4), says: "graceful restart (64)",
		},
		"unspecific": {
			takes:   func(o message.OpenMessage) bool { return len(o.Capabilities()) == 0 },
			refusal: refuse(0), says: "without these capabilities",
		},
		"one capability": {
			takes:   func(o message.OpenMessage) bool { return o.GracefulRestart == nil },
			refusal: refuse(7, 64, 2, 0x40, 0x3c),
			want: func(o message.OpenMessage) bool {
				return o.SupportsRouteRefresh && o.SupportsFourOctetASN && len(o.Families) == 1
			},
			says: "until the BGPPeer changes: graceful restart (64)",
		},
		"one capability that is not named": {
			takes:   func(o message.OpenMessage) bool { return o.GracefulRestart == nil },
			refusal: refuse(7), says: "graceful restart (64)",
		},
		"the needed ones stay": {
			edit:    func(p *intent.Peer) { p.LocalASN, p.CarriesIPv6Routes = 4200000000, true },
			takes:   func(o message.OpenMessage) bool { return !o.SupportsRouteRefresh && o.GracefulRestart == nil },
			refusal: refuse(4),
			want:    func(o message.OpenMessage) bool { return o.SupportsFourOctetASN && len(o.Families) == 2 },
			says:    "route refresh (2)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newLoopbackTransport()
			r := m.addRouter(t, "192.0.2.1", nil)
			accept := r.answerOpen
			r.answerOpen = func(o message.OpenMessage) ([]byte, bool) {
				if !tc.takes(o) {
					return tc.refusal, false
				}
				return accept(o)
			}
			s := startLoopbackSpeaker(t, m)
			p := scriptedRouterPeer(all)
			if tc.edit != nil {
				tc.edit(&p)
			}
			s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
			r.awaitRoute(t, servicePrefix, "")
			opens := r.receivedOpens()
			last := opens[len(opens)-1]
			r.checkASNLengthAsOffered(t, last)
			if st := s.peerStatus("tor"); !strings.Contains(st.LastError.Text, tc.says) {
				t.Errorf("the status says %q, want %q", st.LastError.Text, tc.says)
			}
			if tc.want != nil && !tc.want(last) {
				t.Errorf("the last OPEN has %v", last.Capabilities())
			}
			p.HoldTime = 30 * time.Second
			s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
			awaitNoError(t, "an edit tries all capabilities again", func() error {
				if now := r.receivedOpens(); len(now) <= len(opens) || !slices.Equal(now[len(opens)].Capabilities(), opens[0].Capabilities()) {
					return fmt.Errorf("%d OPENs", len(now))
				}
				return nil
			})
		})
	}
}

// TestRefusedCapabilitiesAreTriedAgainAfterAnHour moves the clock.
func TestRefusedCapabilitiesAreTriedAgainAfterAnHour(t *testing.T) {
	m := newLoopbackTransport()
	r := m.addRouter(t, "192.0.2.1", nil)
	var isOld atomic.Bool
	isOld.Store(true)
	accept := r.answerOpen
	r.answerOpen = func(o message.OpenMessage) ([]byte, bool) {
		if isOld.Load() && len(o.Capabilities()) > 0 {
			return (&message.Notification{Code: message.CodeOpenMessageError, Subcode: 4}).Encode(), false
		}
		return accept(o)
	}
	var moved atomic.Int64
	s := startLoopbackSpeaker(t, m, func(o *bgp.Options) {
		o.Now = func() time.Time { return time.Now().Add(time.Duration(moved.Load())) }
	})
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{scriptedRouterPeer()}, Routes: exampleRoutes(servicePrefix)})
	r.awaitRoute(t, servicePrefix, "")
	isOld.Store(false)
	moved.Store(int64(61 * time.Minute))
	before := len(r.receivedOpens())
	r.closeConnection()
	awaitNoError(t, "the next OPEN has all capabilities", func() error {
		opens := r.receivedOpens()
		if len(opens) == before {
			return errors.New("there is none")
		}
		if len(opens[before].Capabilities()) == 0 {
			t.Fatal("the next OPEN has none")
		}
		return nil
	})
}

// TestCapabilityRequiredByRouterIsReported checks that the status names what the router asks for.
func TestCapabilityRequiredByRouterIsReported(t *testing.T) {
	m := newLoopbackTransport()
	r := m.addRouter(t, "192.0.2.1", nil)
	r.answerOpen = func(message.OpenMessage) ([]byte, bool) {
		return (&message.Notification{Code: message.CodeOpenMessageError, Subcode: 7, Data: []byte{9, 1, 3}}).Encode(), false
	}
	s := startLoopbackSpeaker(t, m)
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{scriptedRouterPeer()}, Routes: exampleRoutes(servicePrefix)})
	s.waitForError("tor", "it requires a capability that this speaker did not offer: BGP role (9)")
}

// TestExtendedNextHopIsOfferedOnlyOverIPv6 checks the OPEN.
func TestExtendedNextHopIsOfferedOnlyOverIPv6(t *testing.T) {
	for local, want := range map[string]bool{"192.0.2.11": false, "2001:db8:1::11": true} {
		m := newLoopbackTransport()
		m.localIP = netip.MustParseAddr(local)
		r := m.addRouter(t, "192.0.2.1", nil)
		s := startLoopbackSpeaker(t, m)
		s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{scriptedRouterPeer(makeDualStack)}})
		s.waitForEstablished("tor")
		if got := r.receivedOpens()[0].SupportsExtendedNextHop; got != want {
			t.Errorf("over %s the OPEN has the capability: %t", local, got)
		}
	}
}

// TestRoutersDropRoutesOfBootedNode checks that routers drop the routes of a node that has booted,
// and keep those of a speaker that has only restarted. It concerns the first session.
func TestRoutersDropRoutesOfBootedNode(t *testing.T) {
	for _, booted := range []bool{true, false} {
		m := newLoopbackTransport()
		r := m.addRouter(t, "192.0.2.1", nil)
		s := startLoopbackSpeaker(t, m, func(o *bgp.Options) { o.FirstRunSinceBoot = booted })
		p := scriptedRouterPeer(func(p *intent.Peer) { p.GracefulRestart, p.RestartTime = true, 300*time.Second })
		s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
		s.waitForEstablished("tor")
		first := r.receivedOpens()[0].GracefulRestart
		if !first.SenderHasRestarted || first.ForwardingKeptByFamily[message.FamilyIPv4] == booted || first.RestartSeconds != 300 {
			t.Errorf("booted %t: the first OPEN has %+v", booted, first)
		}
		r.closeConnection()
		awaitNoError(t, "the second session keeps the forwarding state", func() error {
			opens := r.receivedOpens()
			if len(opens) < 2 {
				return errors.New("there is none")
			}
			if g := opens[1].GracefulRestart; g.SenderHasRestarted || !g.ForwardingKeptByFamily[message.FamilyIPv4] {
				t.Fatalf("it has %+v", g)
			}
			return nil
		})
	}
}
