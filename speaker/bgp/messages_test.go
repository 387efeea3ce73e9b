package bgp_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// newRouteRefreshMessage returns a ROUTE-REFRESH.
func newRouteRefreshMessage(afi, subtype, safi byte) []byte {
	m := message.EncodeKeepalive()
	m[17], m[18] = 23, byte(message.TypeRouteRefresh)
	return append(m, 0, afi, subtype, safi)
}

// TestQuickRouteRefreshesShareOneAnswer sends requests close to each other. Policies of the router
// that change between them apply to all routes.
func TestQuickRouteRefreshesShareOneAnswer(t *testing.T) {
	m := newLoopbackTransport()
	r := m.addRouter(t, "192.0.2.1", nil)
	s := startLoopbackSpeaker(t, m)
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{scriptedRouterPeer()}, Routes: exampleRoutes(servicePrefix)})
	r.awaitRoute(t, servicePrefix, "")
	awaitEvents := func(n int) {
		t.Helper()
		awaitNoError(t, fmt.Sprintf("the route was sent %d times", n), func() error {
			if got := r.recordedRouteEvents(); len(got) != n {
				return fmt.Errorf("the router got %v", got)
			}
			return nil
		})
	}
	// these ask for nothing of ours
	r.sendToSpeaker(t, append(append(newRouteRefreshMessage(1, 0, 128), newRouteRefreshMessage(1, 1, 1)...), newRouteRefreshMessage(2, 0, 1)...))
	r.sendToSpeaker(t, newRouteRefreshMessage(1, 0, 1))
	awaitEvents(2)
	// Both get one answer.
	r.sendToSpeaker(t, append(newRouteRefreshMessage(1, 0, 1), newRouteRefreshMessage(1, 0, 1)...))
	awaitEvents(3)
	r.sendToSpeaker(t, newRouteRefreshMessage(1, 0, 1))
	awaitEvents(4)
}

// TestAllRoutersGetTheSameRouterID checks that a node has one router ID for all routers, which
// every router takes.
func TestAllRoutersGetTheSameRouterID(t *testing.T) {
	openOf := func(t *testing.T, node string, d bgp.DesiredState) message.OpenMessage {
		m := newLoopbackTransport()
		r := m.addRouter(t, "192.0.2.1", nil)
		s := startLoopbackSpeaker(t, m, func(o *bgp.Options) { o.NodeName = node })
		d.Peers = []intent.Peer{scriptedRouterPeer()}
		s.SetDesiredState(d)
		s.waitForEstablished("tor")
		return r.receivedOpens()[0]
	}
	seen := map[netip.Addr]string{}
	for i := range 40 {
		node := fmt.Sprintf("node%d", i+1)
		id := openOf(t, node, bgp.DesiredState{NodeInternalIPs: []netip.Addr{netip.MustParseAddr("2001:db8::1")}}).RouterID
		if first := id.As4()[0]; first == 0 || first == 127 || first >= 224 {
			t.Errorf("the router ID of %s is %s, which is no unicast address", node, id)
		}
		if other := seen[id]; other != "" {
			t.Errorf("%s and %s have the router ID %s", node, other, id)
		}
		seen[id] = node
	}
	internal := netip.MustParseAddr("10.1.2.3")
	if id := openOf(t, "node1", bgp.DesiredState{NodeInternalIPs: []netip.Addr{netip.MustParseAddr("2001:db8::1"), internal}}).RouterID; id != internal {
		t.Errorf("the router ID is %s, want the internal address %s", id, internal)
	}
}

// TestRouterWithoutCommonFamilyIsRejected checks that a router which carries neither IPv4 nor IPv6
// unicast gets no routes, and that the status says so.
func TestRouterWithoutCommonFamilyIsRejected(t *testing.T) {
	m := newLoopbackTransport()
	r := m.addRouter(t, "192.0.2.1", func(o *message.OpenMessage) { o.Families = []message.AFI{25} })
	s := startLoopbackSpeaker(t, m)
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{scriptedRouterPeer()}, Routes: exampleRoutes(servicePrefix)})
	s.waitForError("tor", "neither IPv4 nor IPv6 unicast")
	if st := s.peerStatus("tor"); st.NotConnectingReason != names.ReasonFamilyNotCarried {
		t.Errorf("the reason is %q", st.NotConnectingReason)
	}
	if n := r.receivedNotifications(); len(n) == 0 || n[0].Code != message.CodeOpenMessageError || n[0].Subcode != 7 {
		t.Errorf("the router got %v", n)
	}
	if got := r.recordedRouteEvents(); len(got) > 0 {
		t.Errorf("the router got %v", got)
	}
}

// TestTwoOctetASNRouterGetsASTrans peers with a number of four octets.
func TestTwoOctetASNRouterGetsASTrans(t *testing.T) {
	m := newLoopbackTransport()
	r := m.addRouter(t, "192.0.2.1", func(o *message.OpenMessage) { o.SupportsFourOctetASN = false })
	s := startLoopbackSpeaker(t, m)
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{scriptedRouterPeer(func(p *intent.Peer) { p.LocalASN = 4200000000 })}, Routes: exampleRoutes(servicePrefix)})
	r.awaitRoute(t, servicePrefix, "{AsPath: 23456}")
}

// TestPeerMovedToOtherRouterHardResetsOldOne moves a peer to another router and checks that the old
// one is asked to remove the routes at once, although graceful restart is agreed. An edit that
// keeps the router lets it keep them.
func TestPeerMovedToOtherRouterHardResetsOldOne(t *testing.T) {
	graceful := func(o *message.OpenMessage) {
		o.GracefulRestart = &message.GracefulRestartCapability{GracefulNotification: true, ForwardingKeptByFamily: map[message.AFI]bool{}}
	}
	base := func(p *intent.Peer) { p.GracefulRestart, p.RestartTime = true, 2*time.Minute }
	for name, tc := range map[string]struct {
		edit func(*intent.Peer)
		hard bool
	}{
		"another address": {func(p *intent.Peer) { p.Address = netip.MustParseAddr("192.0.2.2") }, true},
		"another port":    {func(p *intent.Peer) { p.Port = 1179 }, true},
		"another VRF":     {func(p *intent.Peer) { p.Device = "red" }, true},
		"blocked": {func(p *intent.Peer) {
			p.LocalASN, p.BlockedExplanation = 0, names.NewExplanation(names.ReasonNodeLabel, "the label is gone")
		}, true},
		"another hold time": {func(p *intent.Peer) { p.HoldTime = time.Minute }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newLoopbackTransport()
			r := m.addRouter(t, "192.0.2.1", graceful)
			m.addRouter(t, "192.0.2.2", graceful)
			s := startLoopbackSpeaker(t, m)
			s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{scriptedRouterPeer(base)}, Routes: exampleRoutes(servicePrefix)})
			r.awaitRoute(t, servicePrefix, "")
			s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{scriptedRouterPeer(base, tc.edit)}, Routes: exampleRoutes(servicePrefix)})
			awaitNoError(t, "the router gets a Cease", func() error {
				n := r.receivedNotifications()
				if len(n) == 0 {
					return errors.New("it got none")
				}
				if hard := n[0].Subcode == message.CeaseHardReset; hard != tc.hard {
					t.Errorf("the Cease is %s", n[0].Description())
				}
				return nil
			})
		})
	}
}

// TestConnectionAfterANotificationIsClosed checks that a router that keeps sending after the
// speaker's NOTIFICATION does not hold the connection.
func TestConnectionAfterANotificationIsClosed(t *testing.T) {
	m := newLoopbackTransport()
	r := m.addRouter(t, "192.0.2.1", nil)
	s := startLoopbackSpeaker(t, m)
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{scriptedRouterPeer()}, Routes: exampleRoutes(servicePrefix)})
	r.awaitRoute(t, servicePrefix, "")
	r.mu.Lock()
	c := r.conn
	r.mu.Unlock()
	s.SetDesiredState(bgp.DesiredState{})
	stop := time.After(20 * time.Second)
	for {
		if _, err := c.Write(message.EncodeKeepalive()); err != nil {
			return
		}
		select {
		case <-stop:
			t.Fatal("the connection is open long after the NOTIFICATION")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func TestNotificationsOfNewCodesAreNamed(t *testing.T) {
	for _, tc := range []struct {
		n    message.Notification
		want string
	}{
		{message.Notification{Code: 7, Subcode: 1}, "ROUTE-REFRESH message error"},
		{message.Notification{Code: 8}, "send hold timer expired"},
	} {
		if got := tc.n.Description(); !strings.Contains(got, tc.want) {
			t.Errorf("it reads %q, want %q", got, tc.want)
		}
	}
}

// TestSessionEndsWithoutFirstKeepalive checks that a router which sends only its OPEN is given up
// even without a hold time.
func TestSessionEndsWithoutFirstKeepalive(t *testing.T) {
	for _, holdSeconds := range []uint16{0, 90} {
		t.Run(fmt.Sprintf("hold time %d s", holdSeconds), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVirtualTimeTransport(t)
				accept := v.router.answerOpen
				v.router.answerOpen = func(o message.OpenMessage) ([]byte, bool) {
					answer, keep := accept(o)
					answer = answer[:len(answer)-len(message.EncodeKeepalive())]
					binary.BigEndian.PutUint16(answer[22:], holdSeconds)
					return answer, keep
				}
				s := startLoopbackSpeaker(t, v.loopbackTransport, func(o *bgp.Options) { o.Transport = v })
				s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{scriptedRouterPeer()}, Routes: exampleRoutes(servicePrefix)})
				time.Sleep(2 * time.Minute)
				if n := v.router.receivedNotifications(); len(n) == 0 || n[0].Code != message.CodeHoldTimerExpired {
					t.Errorf("the router got %v, want that the hold timer expired", n)
				}
				if st := s.peerStatus("tor"); st.EstablishedCount > 0 || st.LastError.Text == "" {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

// connectToSpeakerAsRouter opens a connection from a router to the speaker, and plays the router on
// it.
func (m *loopbackTransport) connectToSpeakerAsRouter(t *testing.T, device, from string, r *scriptedRouter) net.Conn {
	t.Helper()
	var l *loopbackListener
	awaitNoError(t, "the speaker listens in "+device, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if l = m.listeners[device]; l == nil {
			return errors.New("it does not")
		}
		return nil
	})
	pair, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pair.Close()
	router, err := net.Dial("tcp", pair.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	speaker, err := pair.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { router.Close() })
	l.acceptedConnections <- loopbackConn{speaker.(*net.TCPConn), m.localIP, netip.MustParseAddr(from)}
	if r != nil {
		go r.serveConnection(router)
	}
	return router
}

func makePassive(p *intent.Peer) { p.Passive = true }

// TestPassivePeersWithSameLinkLocalAddressOnTwoLinks checks that each connection reaches the peer
// of its own link, also if the link belongs to a VRF, and that one refused key harms only its peer.
func TestPassivePeersWithSameLinkLocalAddressOnTwoLinks(t *testing.T) {
	m := newLoopbackTransport()
	m.localIP = netip.MustParseAddr("fe80::11")
	first, second, third := m.addRouter(t, "fe80::1%eth0", nil), m.addRouter(t, "fe80::1%eth1", nil), m.addRouter(t, "192.0.2.3", nil)
	fourth := m.addRouter(t, "fe80::1%eth2", nil)
	m.setNodeAddresses("fe80::11/64 eth0", "fe80::11/64 eth1", "2001:db8:1::11/64 eth0", "2001:db8:2::11/64 eth1", "10.1.0.11/24 eth2 vrf=red")
	m.passwordErrorByRouter[netip.MustParseAddr("192.0.2.9")] = errors.New("no TCP MD5 in this kernel")
	var d bgp.DesiredState
	for name, edit := range map[string]func(*intent.Peer){
		"eth0":    func(p *intent.Peer) { p.Address, p.Device = netip.MustParseAddr("fe80::1%eth0"), "eth0" },
		"eth1":    func(p *intent.Peer) { p.Address, p.Device = netip.MustParseAddr("fe80::1%eth1"), "eth1" },
		"refused": func(p *intent.Peer) { p.Address, p.Password = netip.MustParseAddr("192.0.2.9"), "secret" },
		"link in a VRF": func(p *intent.Peer) {
			p.Address, p.Device, p.SourceAddress = netip.MustParseAddr("fe80::1%eth2"), "eth2", netip.MustParseAddr("fe80::11")
		},
		"vrf": func(p *intent.Peer) { p.Address, p.Device = netip.MustParseAddr("192.0.2.3"), "red" },
	} {
		p := scriptedRouterPeer(makePassive, makeDualStack, edit)
		p.Name = name
		d.Peers = append(d.Peers, p)
	}
	d.Routes = []*intent.Route{{Prefix: netip.MustParsePrefix(servicePrefixIPv6), PeerNames: []string{"eth0", "eth1", "vrf"}}}
	s := startLoopbackSpeaker(t, m)
	s.SetDesiredState(d)
	m.connectToSpeakerAsRouter(t, "", "fe80::1%eth1", second)
	second.awaitRoute(t, servicePrefixIPv6, "2001:db8:2::11")
	m.connectToSpeakerAsRouter(t, "", "fe80::1%eth0", first)
	first.awaitRoute(t, servicePrefixIPv6, "2001:db8:1::11")
	m.connectToSpeakerAsRouter(t, "red", "192.0.2.3", third)
	s.waitForEstablished("vrf")
	m.localIP = netip.MustParseAddr("fe80::11%eth2")
	m.connectToSpeakerAsRouter(t, "red", "fe80::1%eth2", fourth)
	s.waitForEstablished("link in a VRF")
	s.waitForError("refused", "no TCP MD5 in this kernel")
	// The peer of this address is in the VRF.
	stranger := m.connectToSpeakerAsRouter(t, "", "192.0.2.3", nil)
	if _, err := stranger.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the stranger's connection: %v", err)
	}
}

// TestOnlyRestartedRouterReplacesSession checks that a connection without an OPEN does not end a
// session. With graceful restart one with an OPEN replaces the session of a router that has
// restarted, but not if the router only helps others to restart.
func TestOnlyRestartedRouterReplacesSession(t *testing.T) {
	for name, tc := range map[string]struct {
		families map[message.AFI]bool
		replaced bool
	}{
		"a router that restarts": {map[message.AFI]bool{message.FamilyIPv4: true}, true},
		"a helper":               {map[message.AFI]bool{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := newLoopbackTransport()
			r := m.addRouter(t, "192.0.2.1", func(o *message.OpenMessage) {
				o.Families = []message.AFI{message.FamilyIPv4}
				o.GracefulRestart = &message.GracefulRestartCapability{ForwardingKeptByFamily: tc.families}
			})
			s := startLoopbackSpeaker(t, m)
			d := bgp.DesiredState{
				Peers:  []intent.Peer{scriptedRouterPeer(makePassive, func(p *intent.Peer) { p.GracefulRestart, p.RestartTime = true, time.Minute })},
				Routes: exampleRoutes(servicePrefix),
			}
			s.SetDesiredState(d)
			m.connectToSpeakerAsRouter(t, "", "192.0.2.1", r)
			r.awaitRoute(t, servicePrefix, "")
			m.connectToSpeakerAsRouter(t, "", "192.0.2.1", nil).Close()
			if tc.replaced {
				awaitNoError(t, "a new session replaces the first", func() error {
					if st := s.peerStatus("tor"); st.EstablishedCount > 1 || st.State != bgp.Established {
						t.Fatalf("the connection without an OPEN ended the session: %+v", st)
					}
					m.connectToSpeakerAsRouter(t, "", "192.0.2.1", r)
					time.Sleep(20 * time.Millisecond)
					if st := s.peerStatus("tor"); st.EstablishedCount < 2 {
						return fmt.Errorf("%+v", st)
					}
					return nil
				})
				return
			}
			c := m.connectToSpeakerAsRouter(t, "", "192.0.2.1", nil)
			if got, err := message.ReadMessage(c, make([]byte, message.MaxMessageLength)); err != nil || message.TypeOf(got) != message.TypeNotification {
				t.Errorf("the second connection got %v, %v", got, err)
			}
			if st := s.peerStatus("tor"); st.EstablishedCount != 1 || st.State != bgp.Established {
				t.Errorf("%+v", st)
			}
		})
	}
}
