package bgp_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// virtualTimeTransport is a loopbackTransport without sockets, so that a test runs in virtual time.
// Its router can be stopped.
type virtualTimeTransport struct {
	*loopbackTransport
	router            *scriptedRouter
	isRouterReachable bool // guarded by the mutex of loopbackTransport
}

// pipeConn is a connection with the addresses of the test.
type pipeConn struct {
	net.Conn
	local, remote netip.Addr
}

func (pipeConn) SetPassword(string) error                   { return nil }
func (pipeConn) SetTTLAndMinReceivedTTL(uint8, uint8) error { return nil }
func (c pipeConn) RemoteIP() netip.Addr                     { return c.remote }
func (c pipeConn) LocalIP() netip.Addr                      { return c.local }

func newVirtualTimeTransport(t *testing.T) *virtualTimeTransport {
	r := newScriptedRouter(nil)
	t.Cleanup(r.closeConnection)
	return &virtualTimeTransport{newLoopbackTransport(), r, true}
}

func (v *virtualTimeTransport) Dial(_ context.Context, o bgp.DialOptions) (bgp.Conn, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.isRouterReachable {
		return nil, fmt.Errorf("the router %s does not answer", o.RouterAddress)
	}
	near, far := net.Pipe()
	go v.router.serveConnection(far)
	return pipeConn{near, v.localIP, o.RouterAddress.Addr()}, nil
}

func (v *virtualTimeTransport) setRouterReachable(reachable bool) {
	v.mu.Lock()
	v.isRouterReachable = reachable
	v.mu.Unlock()
}

// TestBFDDownOfRestartedRouterKeepsNewSession restarts a router whose BFD session is Up before the
// new BGP session is established. The router starts its BFD session again with the new BGP session.
// It may end this session for that, as FRR 8.4 does. The speaker ends only the session with the
// router that stops.
func TestBFDDownOfRestartedRouterKeepsNewSession(t *testing.T) {
	for name, endsSession := range map[string]bool{"the router keeps the session": false, "the router ends the session": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testRouterRestartKeepsSession(t, endsSession) })
		})
	}
}

func testRouterRestartKeepsSession(t *testing.T, endsSession bool) {
	v := newVirtualTimeTransport(t)
	s := startLoopbackSpeaker(t, v.loopbackTransport, func(o *bgp.Options) { o.Transport = v })
	signalBFD := func(state session.State) {
		e := bfd.Event{Key: bfd.SessionKey{PeerAddress: netip.MustParseAddr("192.0.2.1")}, Up: state == session.Up}
		if !e.Up {
			e.Cause = session.CauseNeighbourSignalledDown
		}
		s.bfd.setStateAndSendEvent(state, e)
	}
	p := scriptedRouterPeer(func(p *intent.Peer) { p.BFD = &intent.BFD{Multiplier: 3} })
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	s.waitForEstablished("tor")
	signalBFD(session.Up)
	time.Sleep(time.Minute)

	v.setRouterReachable(false)
	signalBFD(session.Down) // before the router closes the session
	time.Sleep(1300 * time.Millisecond)
	if n := v.router.receivedNotifications(); len(n) != 1 || n[0].Subcode != message.CeaseBFDDown {
		t.Fatalf("the router that stops got %v, want a Cease, BFD down", n)
	}
	signalBFD(session.Up)
	time.Sleep(300 * time.Millisecond)
	v.setRouterReachable(true)
	s.waitForEstablished("tor")
	time.Sleep(6 * time.Millisecond)
	signalBFD(session.Down)
	wantSessions := 2
	if endsSession {
		wantSessions++
		v.router.sendToSpeaker(t, message.NewCeaseNotification(message.CeaseBFDDown, "").Encode())
		v.router.closeConnection()
		synctest.Wait()
		s.waitForEstablished("tor")
	}
	time.Sleep(180 * time.Millisecond)
	signalBFD(session.Up)
	time.Sleep(time.Minute)

	st := s.peerStatus("tor")
	if sent, got := st.MessageTotals.Sent.Notifications, v.router.receivedNotifications(); sent != 1 || len(got) != 1 {
		t.Errorf("the speaker sent %d NOTIFICATIONs, and the router got %v; want only the first", sent, got)
	}
	if st.State != bgp.Established || st.EstablishedCount != wantSessions || v.router.attributesOfRoute(servicePrefix) == "" {
		t.Errorf("the router has %q, the session was established %d times, want %d: %+v", v.router.attributesOfRoute(servicePrefix), st.EstablishedCount, wantSessions, st)
	}
	if endsSession && !strings.Contains(st.LastError.Text, "the router ended the session: cease, BFD down") {
		t.Errorf("the last error is %q, want the router's", st.LastError.Text)
	}
}
