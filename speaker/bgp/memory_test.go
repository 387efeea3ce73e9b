package bgp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	packet "github.com/osrg/gobgp/v3/pkg/packet/bgp"

	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/gobgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// loopbackTransport connects an Engine to routers of the test, over TCP on the loopback. The engine
// sees the addresses that the test gives both ends.
type loopbackTransport struct {
	localIP netip.Addr // of the node, on every session

	mu                    sync.Mutex
	routers               map[netip.Addr]*scriptedRouter
	nodeAddresses         []bgp.NodeAddress
	addressesChanged      func()
	listeners             map[string]*loopbackListener // by device
	routerByLink          map[string]netip.Addr
	passwordErrorByRouter map[netip.Addr]error
}

// loopbackConn is a connection with the addresses of the test.
type loopbackConn struct {
	*net.TCPConn
	local, remote netip.Addr
}

func (loopbackConn) SetPassword(string) error                   { return nil }
func (loopbackConn) SetTTLAndMinReceivedTTL(uint8, uint8) error { return nil }
func (c loopbackConn) RemoteIP() netip.Addr                     { return c.remote }
func (c loopbackConn) LocalIP() netip.Addr                      { return c.local }

func (m *loopbackTransport) Dial(ctx context.Context, o bgp.DialOptions) (bgp.Conn, error) {
	m.mu.Lock()
	r := m.routers[o.RouterAddress.Addr()]
	m.mu.Unlock()
	if r == nil {
		return nil, fmt.Errorf("there is no router %s", o.RouterAddress)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", r.listener.Addr().String())
	if err != nil {
		return nil, err
	}
	local := m.localIP
	if o.LocalAddress.IsValid() {
		local = o.LocalAddress
	}
	return loopbackConn{c.(*net.TCPConn), local, o.RouterAddress.Addr()}, nil
}

func (m *loopbackTransport) ReadNodeAddresses() ([]bgp.NodeAddress, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.nodeAddresses), nil
}

func (m *loopbackTransport) WatchNodeAddresses(ctx context.Context, changed func()) {
	m.mu.Lock()
	m.addressesChanged = changed
	m.mu.Unlock()
	<-ctx.Done()
}

// setNodeAddresses replaces the node's addresses. Each text is an address with its prefix length
// and a link, such as "192.0.2.11/24 eth0".
func (m *loopbackTransport) setNodeAddresses(texts ...string) {
	var out []bgp.NodeAddress
	for _, text := range texts {
		out = append(out, parseNodeAddress(text))
	}
	m.mu.Lock()
	m.nodeAddresses = out
	changed := m.addressesChanged
	m.mu.Unlock()
	if changed != nil {
		changed()
	}
}

func parseNodeAddress(text string) bgp.NodeAddress {
	fields := strings.Fields(text)
	a := bgp.NodeAddress{AddressWithPrefixLength: netip.MustParsePrefix(fields[0]), LinkName: fields[1]}
	for _, f := range fields[2:] {
		if vrf, ok := strings.CutPrefix(f, "vrf="); ok {
			a.VRFName = vrf
		}
		a.IsTentative = a.IsTentative || f == "tentative"
		a.IsDuplicate = a.IsDuplicate || f == "duplicate"
		a.IsDeprecated = a.IsDeprecated || f == "deprecated"
		a.IsTemporary = a.IsTemporary || f == "temporary"
	}
	return a
}

// loopbackListener accepts connections of the test.
type loopbackListener struct {
	transport           *loopbackTransport
	acceptedConnections chan bgp.Conn
}

func (l *loopbackListener) AcceptedConnections() <-chan bgp.Conn { return l.acceptedConnections }
func (l *loopbackListener) Close()                               {}
func (l *loopbackListener) SetRouterPassword(router netip.Addr, password string) error {
	l.transport.mu.Lock()
	defer l.transport.mu.Unlock()
	if password == "" {
		return nil
	}
	return l.transport.passwordErrorByRouter[router]
}

func (m *loopbackTransport) Listen(_ context.Context, o bgp.ListenOptions) (bgp.Listener, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := &loopbackListener{m, make(chan bgp.Conn)}
	m.listeners[o.BindDevice] = l
	return l, nil
}

func (m *loopbackTransport) WatchRouterAndAdvertiseNode(ctx context.Context, device string, report func(netip.Addr, error)) {
	m.mu.Lock()
	a := m.routerByLink[device]
	m.mu.Unlock()
	if a.IsValid() {
		report(a, nil)
	} else {
		report(a, errors.New("no router"))
	}
	<-ctx.Done()
}

// scriptedRouter is a router that a test controls. It records what the speaker sends.
type scriptedRouter struct {
	listener net.Listener
	// answerOpen returns the answer to an OPEN; the router then closes the connection unless keep.
	answerOpen func(received message.OpenMessage) (answerOpen []byte, keep bool)

	// readsNothingUntil, if not nil, makes the router read nothing after the OPEN until it is
	// closed.
	readsNothingUntil <-chan struct{}

	mu                   sync.Mutex
	opens                []message.OpenMessage
	routeEvents          []string // routes and withdrawals in their order
	notifications        []*message.Notification
	lastUpdateWithRoutes []byte            // the latest UPDATE with routes
	attributesByPrefix   map[string]string // attributes by prefix
	conn                 net.Conn          // the latest
}

// loopbackSpeaker is an Engine with a loopbackTransport.
type loopbackSpeaker struct {
	*testSpeaker
	transport *loopbackTransport
	bfd       *fakeBFDEngine
	endEngine func()
}

// fakeBFDEngine is a BFD engine whose events the test makes.
type fakeBFDEngine struct {
	mu            sync.Mutex
	sessions      []bfd.SessionConfig
	state         session.State
	events        chan bfd.Event
	statusChanged chan struct{}
}

func (m *fakeBFDEngine) SetSessions(s []bfd.SessionConfig) {
	m.mu.Lock()
	m.sessions = s
	m.mu.Unlock()
}
func (m *fakeBFDEngine) Events() <-chan bfd.Event       { return m.events }
func (m *fakeBFDEngine) StatusChanged() <-chan struct{} { return m.statusChanged }
func (m *fakeBFDEngine) SessionStatuses() []bfd.SessionStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []bfd.SessionStatus
	for _, s := range m.sessions {
		out = append(out, bfd.SessionStatus{SessionConfig: s, MachineStatus: session.MachineStatus{State: m.state}})
	}
	return out
}

func newLoopbackTransport() *loopbackTransport {
	m := &loopbackTransport{
		localIP: netip.MustParseAddr("192.0.2.11"), routers: map[netip.Addr]*scriptedRouter{}, listeners: map[string]*loopbackListener{},
		routerByLink: map[string]netip.Addr{}, passwordErrorByRouter: map[netip.Addr]error{},
	}
	m.nodeAddresses = []bgp.NodeAddress{parseNodeAddress("192.0.2.11/24 eth0"), parseNodeAddress("127.0.0.1/8 lo"), parseNodeAddress("::1/128 lo")}
	return m
}

func startLoopbackSpeaker(t testing.TB, m *loopbackTransport, edits ...func(*bgp.Options)) *loopbackSpeaker {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	b := &fakeBFDEngine{events: make(chan bfd.Event), statusChanged: make(chan struct{})}
	o := bgp.Options{NodeName: "node1", UpdateGenerator: gobgp.NewUpdateGenerator(log), Transport: m, Now: time.Now, BFDEngine: b, Log: log}
	for _, edit := range edits {
		edit(&o)
	}
	e := bgp.NewEngine(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = e.Run(ctx)
	}()
	end := func() { cancel(); <-done }
	t.Cleanup(end)
	return &loopbackSpeaker{&testSpeaker{Engine: e, t: t}, m, b, end}
}

// newScriptedRouter returns a router that accepts the speaker's OPEN with an OPEN of its own.
func newScriptedRouter(edit func(*message.OpenMessage)) *scriptedRouter {
	open := message.OpenMessage{
		ASN: 65000, HoldSeconds: 90, RouterID: netip.MustParseAddr("203.0.113.1"), SupportsFourOctetASN: true, SupportsRouteRefresh: true,
		Families: []message.AFI{message.FamilyIPv4, message.FamilyIPv6},
	}
	if edit != nil {
		edit(&open)
	}
	r := &scriptedRouter{attributesByPrefix: map[string]string{}}
	r.answerOpen = func(message.OpenMessage) ([]byte, bool) {
		return append(open.Encode(), message.EncodeKeepalive()...), true
	}
	return r
}

// addRouter starts a scripted router on a TCP port of the loopback.
func (m *loopbackTransport) addRouter(t testing.TB, address string, edit func(*message.OpenMessage)) *scriptedRouter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := newScriptedRouter(edit)
	r.listener = l
	t.Cleanup(func() { l.Close(); r.closeConnection() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.serveConnection(c)
		}
	}()
	m.mu.Lock()
	m.routers[netip.MustParseAddr(address)] = r
	m.mu.Unlock()
	return r
}

func (r *scriptedRouter) serveConnection(c net.Conn) {
	defer c.Close()
	r.mu.Lock()
	r.conn, r.attributesByPrefix = c, map[string]string{}
	r.mu.Unlock()
	buf := make([]byte, message.MaxMessageLength)
	for {
		m, err := message.ReadMessage(c, buf)
		if err != nil {
			return
		}
		switch message.TypeOf(m) {
		case message.TypeOpen:
			o, _ := message.DecodeOpen(message.BodyOf(m))
			r.mu.Lock()
			r.opens = append(r.opens, o)
			answer := r.answerOpen
			r.mu.Unlock()
			b, keep := answer(o)
			if _, err := c.Write(b); err != nil || !keep {
				return
			}
			if r.readsNothingUntil != nil {
				<-r.readsNothingUntil
				return
			}
		case message.TypeUpdate:
			r.recordUpdate(m)
		case message.TypeNotification:
			r.mu.Lock()
			r.notifications = append(r.notifications, message.DecodeNotification(message.BodyOf(m)))
			r.mu.Unlock()
		}
	}
}

func (r *scriptedRouter) recordUpdate(m []byte) {
	parsed, err := packet.ParseBGPMessage(m, &packet.MarshallingOption{})
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.routeEvents = append(r.routeEvents, "unreadable: "+err.Error())
		return
	}
	u := parsed.Body.(*packet.BGPUpdate)
	var words, reached, gone []string
	for _, p := range u.NLRI {
		reached = append(reached, p.String())
	}
	for _, p := range u.WithdrawnRoutes {
		gone = append(gone, p.String())
	}
	for _, a := range u.PathAttributes {
		switch a := a.(type) {
		case *packet.PathAttributeMpReachNLRI:
			text := "{Nexthop: " + a.Nexthop.String()
			if a.LinkLocalNexthop != nil {
				text += " " + a.LinkLocalNexthop.String()
			}
			words = append(words, text+"}")
			for _, p := range a.Value {
				reached = append(reached, p.String())
			}
		case *packet.PathAttributeMpUnreachNLRI:
			for _, p := range a.Value {
				gone = append(gone, p.String())
			}
		default:
			words = append(words, a.String())
		}
	}
	slices.Sort(words)
	if len(reached) > 0 {
		r.lastUpdateWithRoutes = slices.Clone(m)
	}
	for _, p := range gone {
		r.routeEvents = append(r.routeEvents, "-"+p)
		delete(r.attributesByPrefix, p)
	}
	for _, p := range reached {
		r.routeEvents = append(r.routeEvents, "+"+p)
		r.attributesByPrefix[p] = strings.Join(words, " ")
	}
}

func (r *scriptedRouter) closeConnection() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != nil {
		r.conn.Close()
	}
}

// sendToSpeaker sends bytes to the speaker.
func (r *scriptedRouter) sendToSpeaker(t *testing.T, b []byte) {
	t.Helper()
	r.mu.Lock()
	c := r.conn
	r.mu.Unlock()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

func (r *scriptedRouter) recordedRouteEvents() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.routeEvents)
}

func (r *scriptedRouter) routeEventCount() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.routeEvents)
}

// attributesOfRoute returns the attributes of a prefix that the router has, or an empty text.
func (r *scriptedRouter) attributesOfRoute(prefix string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.attributesByPrefix[prefix]
}

func (r *scriptedRouter) receivedOpens() []message.OpenMessage {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.opens)
}

func (r *scriptedRouter) receivedNotifications() []*message.Notification {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.notifications)
}

// awaitRoute waits until the router has a route with this text among its attributes.
func (r *scriptedRouter) awaitRoute(t testing.TB, prefix, text string) {
	t.Helper()
	awaitNoError(t, "the router has "+prefix+" with "+text, func() error {
		if got := r.attributesOfRoute(prefix); got == "" || !strings.Contains(got, text) {
			return fmt.Errorf("it has %q", got)
		}
		return nil
	})
}

// checkASNLengthAsOffered checks the AS path of the latest routes, which has one number: it has
// four octets only if the speaker's OPEN offered them, and two otherwise.
func (r *scriptedRouter) checkASNLengthAsOffered(t *testing.T, o message.OpenMessage) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	const typeASPath, sequence, segmentHeader = 2, 2, 2
	_, rest, found := bytes.Cut(r.lastUpdateWithRoutes, []byte{0x40, typeASPath})
	if !found || rest[1] != sequence || rest[2] != 1 {
		t.Fatalf("the UPDATE %x has no AS path with one number", r.lastUpdateWithRoutes)
	}
	if octets := int(rest[0]) - segmentHeader; (octets == 4) != o.SupportsFourOctetASN {
		t.Errorf("the AS path has a number of %d octets after an OPEN with %v", octets, o.Capabilities())
	}
}

func (r *scriptedRouter) awaitNoRoute(t *testing.T, prefix string) {
	t.Helper()
	awaitNoError(t, "the router has no "+prefix, func() error {
		if got := r.attributesOfRoute(prefix); got != "" {
			return fmt.Errorf("it has %q", got)
		}
		return nil
	})
}

// scriptedRouterPeer is the peer of a scripted router at 192.0.2.1.
func scriptedRouterPeer(edits ...func(*intent.Peer)) intent.Peer {
	p := exampleExternalPeer()
	p.Address = netip.MustParseAddr("192.0.2.1")
	for _, edit := range edits {
		edit(&p)
	}
	return p
}

// addressOfRouter returns the address of a router.
func (m *loopbackTransport) addressOfRouter(r *scriptedRouter) netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	for a, other := range m.routers {
		if other == r {
			return a
		}
	}
	return netip.Addr{}
}
