package bgp_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// hostileRouter is a router that misbehaves. It counts its connections.
type hostileRouter struct {
	port             uint16
	connectionCount  atomic.Int32
	handleConnection func(c net.Conn)
	listener         net.Listener
}

// startHostileRouter starts a hostileRouter on the lab's router.
func startHostileRouter(t *testing.T, h netns.Path, port uint16, behave func(c net.Conn)) *hostileRouter {
	t.Helper()
	l, err := h.Listen("tcp", fmt.Sprintf("192.168.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	r := &hostileRouter{port: port, handleConnection: behave, listener: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.connectionCount.Add(1)
			go func() {
				defer c.Close()
				behave(c)
			}()
		}
	}()
	return r
}

// sendOpenAndKeepalive answers the speaker's OPEN as a router does.
func sendOpenAndKeepalive(c net.Conn, hold uint16) error {
	buf := make([]byte, message.MaxMessageLength)
	if _, err := message.ReadMessage(c, buf); err != nil {
		return err
	}
	o := message.OpenMessage{ASN: 65000, HoldSeconds: hold, RouterID: netip.MustParseAddr("192.0.2.66"), Families: []message.AFI{message.FamilyIPv4}, SupportsFourOctetASN: true, SupportsRouteRefresh: true}
	_, err := c.Write(append(o.Encode(), message.EncodeKeepalive()...))
	return err
}

// encodeNumberedUpdate returns an UPDATE with count /24 routes, numbered from first.
func encodeNumberedUpdate(from, count int) []byte {
	attrs := []byte{0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe8, 0x40, 3, 4, 192, 168, 0, 1}
	var nlri []byte
	for i := from; i < from+count; i++ {
		nlri = append(nlri, 24, 20, byte(i>>8), byte(i))
	}
	body := append([]byte{0, 0, 0, byte(len(attrs))}, attrs...)
	body = append(body, nlri...)
	out := append(bytes.Repeat([]byte{0xff}, 16), 0, 0, byte(message.TypeUpdate))
	binary.BigEndian.PutUint16(out[16:], uint16(19+len(body)))
	return append(out, body...)
}

// floodMessageCount is the number of UPDATEs in a flood, of 900 routes each.
const floodMessageCount = 4000

// hostileBehaviour is what a router does on a connection, and what the session's last error says.
type hostileBehaviour struct {
	handleConnection func(c net.Conn)
	wantErrorText    string // in the last error
}

// newHostileBehaviours returns the behaviours by name. One of them floods, and reports the end of
// its flood.
func newHostileBehaviours(t *testing.T, flooded chan<- error) map[string]hostileBehaviour {
	return map[string]hostileBehaviour{
		"garbage": {func(c net.Conn) {
			_, _ = c.Write(bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 10))
			_, _ = io.Copy(io.Discard, c)
		}, "is not a BGP message"},
		"disconnects":  {func(net.Conn) {}, "closed the connection"},
		"silent":       {func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, "it sent no OPEN within"},
		"silent later": {func(c net.Conn) { _ = sendOpenAndKeepalive(c, 3); _, _ = io.Copy(io.Discard, c) }, "no message from the router for 3s, the hold time"},
		"garbage later": {func(c net.Conn) {
			_ = sendOpenAndKeepalive(c, 90)
			_, _ = c.Write(make([]byte, 5000))
			_, _ = io.Copy(io.Discard, c)
		}, "is not a BGP message"},
		"a long message": {func(c net.Conn) {
			_ = sendOpenAndKeepalive(c, 90)
			m := encodeNumberedUpdate(0, 1)
			m[16], m[17] = 0xff, 0xff
			_, _ = c.Write(m)
			_, _ = io.Copy(io.Discard, c)
		}, "it sent an UPDATE of 65535 bytes"},
		"a second OPEN": {func(c net.Conn) {
			_ = sendOpenAndKeepalive(c, 90)
			o := message.OpenMessage{ASN: 65000, RouterID: netip.MustParseAddr("192.0.2.66")}
			_, _ = c.Write(o.Encode())
			_, _ = io.Copy(io.Discard, c)
		}, "it sent a second OPEN"},
		"no KEEPALIVE": {func(c net.Conn) {
			if _, err := message.ReadMessage(c, make([]byte, message.MaxMessageLength)); err != nil {
				return
			}
			withoutHoldTime := message.OpenMessage{ASN: 65000, RouterID: netip.MustParseAddr("192.0.2.66")}
			_, _ = c.Write(withoutHoldTime.Encode())
			_, _ = io.Copy(io.Discard, c)
		}, "no KEEPALIVE from the router within"},
		"half an OPEN": {func(c net.Conn) { _, _ = c.Write(message.EncodeKeepalive()[:7]) }, "closed the connection"},
		"a bad OPEN": {func(c net.Conn) {
			o := message.OpenMessage{ASN: 65000, HoldSeconds: 2, RouterID: netip.MustParseAddr("192.0.2.66")}
			_, _ = c.Write(o.Encode())
			_, _ = io.Copy(io.Discard, c)
		}, "it requests a hold time of 2 s"},
		"never reads": {func(c net.Conn) { _ = sendOpenAndKeepalive(c, 0); <-t.Context().Done() }, ""},
		"floods": {func(c net.Conn) {
			if err := sendOpenAndKeepalive(c, 0); err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, c) }()
			var err error
			for i := 0; i < floodMessageCount && err == nil; i++ {
				_, err = c.Write(encodeNumberedUpdate(i*900, 900))
			}
			flooded <- err
			<-t.Context().Done()
		}, ""},
	}
}

// TestHostileRoutersAffectOnlyTheirSessions connects one speaker to
// every kind of misbehaving router at once, and to a good one.
func TestHostileRoutersAffectOnlyTheirSessions(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig)})
	flooded := make(chan error, 1)
	behaviours := newHostileBehaviours(t, flooded)
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	d := bgp.DesiredState{Peers: []intent.Peer{exampleExternalPeer()}, Routes: exampleRoutes(servicePrefix)}
	rogues := map[string]*hostileRouter{}
	port := uint16(2000)
	for name, bad := range behaviours {
		port++
		rogues[name] = startHostileRouter(t, b.NamespaceOfHost("router"), port, bad.handleConnection)
		p := exampleExternalPeer()
		p.Name, p.Port = name, port
		d.Peers = append(d.Peers, p)
		d.Routes[0].PeerNames = append(d.Routes[0].PeerNames, name)
	}
	slices.Sort(d.Routes[0].PeerNames)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s.SetDesiredState(d)
	s.waitForEstablished("tor")
	waitForFRRRoute(t, frr, servicePrefix)
	for name, bad := range behaviours {
		if bad.wantErrorText == "" {
			continue
		}
		awaitNoError(t, "the error of the hostile router \""+name+"\" is reported", func() error {
			if st := s.peerStatus(name); !strings.Contains(st.LastError.Text, bad.wantErrorText) {
				return fmt.Errorf("it is %s: %q", st.State, st.LastError.Text)
			}
			return nil
		})
	}
	select {
	case err := <-flooded:
		if err != nil {
			t.Errorf("the flood was stopped: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the flood was not read")
	}
	awaitNoError(t, "every message of the flood is counted", func() error {
		if st := s.peerStatus("floods"); st.MessageTotals.Received.Updates < floodMessageCount || st.State != bgp.Established {
			return fmt.Errorf("%d are counted, and the session is %s: %s", st.MessageTotals.Received.Updates, st.State, st.LastError.Text)
		}
		return nil
	})
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 30<<20 {
		t.Errorf("the heap grew by %d bytes for %d unwanted routes", grown, floodMessageCount*900)
	}
	if n := rogues["disconnects"].connectionCount.Load(); n < 3 || n > 40 {
		t.Errorf("the router that disconnects got %d connections, want a few with growing delays", n)
	}
	if st := s.peerStatus("tor"); st.State != bgp.Established || st.EstablishedCount != 1 {
		t.Errorf("the good router's session was affected: %+v", st)
	}
	d.Routes = append(d.Routes, exampleRoutes("198.51.100.2/32")...)
	s.SetDesiredState(d)
	waitForFRRRoute(t, frr, "198.51.100.2/32")
}

// TestSessionReconnectsAtOnce closes an established session several
// times. The speaker reconnects without a long delay.
func TestSessionReconnectsAtOnce(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	hung := make(chan net.Conn, 16)
	bad := startHostileRouter(t, b.NamespaceOfHost("router"), 2001, func(c net.Conn) {
		if sendOpenAndKeepalive(c, 90) == nil {
			hung <- c
		}
		_, err := io.Copy(io.Discard, c)
		if err != nil && !errors.Is(err, net.ErrClosed) {
			return
		}
	})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	p.Port = bad.port
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	for i := range 3 {
		c := <-hung
		awaitNoError(t, "the session is up", func() error {
			if st := s.peerStatus("tor"); st.EstablishedCount != i+1 {
				return fmt.Errorf("%+v", st)
			}
			return nil
		})
		c.Close()
	}
	s.waitForEstablished("tor")
}
