package bgp_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/udp"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/gobgp"
	"github.com/gantry-lb/gantry/speaker/bgp/tcp"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// netnsTransport is the tcp.Transport in the network namespace of a lab host.
type netnsTransport struct{ netns.Path }

func (n netnsTransport) Dial(ctx context.Context, t bgp.DialOptions) (c bgp.Conn, err error) {
	err = n.RunInside(func() (err error) {
		// The runtime caches the links of another namespace by name.
		if zone := t.RouterAddress.Addr().Zone(); zone != "" {
			link, err := net.InterfaceByName(zone)
			if err != nil {
				return err
			}
			t.RouterAddress = netip.AddrPortFrom(t.RouterAddress.Addr().WithZone(strconv.Itoa(link.Index)), t.RouterAddress.Port())
		}
		c, err = tcp.Transport{}.Dial(ctx, t)
		return err
	})
	return c, err
}

func (n netnsTransport) Listen(ctx context.Context, o bgp.ListenOptions) (l bgp.Listener, err error) {
	err = n.RunInside(func() (err error) {
		l, err = tcp.Transport{}.Listen(ctx, o)
		return err
	})
	return l, err
}

func (n netnsTransport) WatchRouterAndAdvertiseNode(ctx context.Context, device string, report func(netip.Addr, error)) {
	_ = n.RunInside(func() error {
		tcp.Transport{}.WatchRouterAndAdvertiseNode(ctx, device, report)
		return nil
	})
}

func (n netnsTransport) ReadNodeAddresses() (out []bgp.NodeAddress, err error) {
	err = n.RunInside(func() (err error) {
		out, err = tcp.Transport{}.ReadNodeAddresses()
		return err
	})
	return out, err
}

func (n netnsTransport) WatchNodeAddresses(ctx context.Context, changed func()) {
	_ = n.RunInside(func() error {
		tcp.Transport{}.WatchNodeAddresses(ctx, changed)
		return nil
	})
}

// newLabNetwork creates the lab network. It skips the test where the machine lacks something.
func newLabNetwork(t *testing.T, o router.RoutedLANOptions) *router.RoutedLAN {
	t.Helper()
	if testing.Short() {
		t.Skip("a real router takes seconds")
	}
	for _, k := range []router.Kind{router.FRR, router.BIRD} {
		if m := router.DescribeMissingPrerequisite(k); m != "" {
			t.Skip(m)
		}
	}
	b, err := router.NewRoutedLAN(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.DeleteNamespaces)
	return b
}

func startRouter(t *testing.T, c router.Config) *router.Router {
	t.Helper()
	r, err := router.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.StopDaemonsInOrder)
	return r
}

// testSpeaker is an Engine on a lab host.
type testSpeaker struct {
	*bgp.Engine
	t                     testing.TB
	endEnginesWithoutStop func() // ends the engines without Stop
	crashEngines          func() // ends them without a last BFD packet, as SIGKILL does
}

// killableBFDTransport is the BFD transport of a speaker that may crash.
type killableBFDTransport struct {
	bfd.Transport
	isKilled atomic.Bool
}

type killableBFDSender struct {
	bfd.Sender
	transport *killableBFDTransport
}

func (m *killableBFDTransport) OpenSender(k bfd.SessionKey, discriminator uint32) bfd.Sender {
	return killableBFDSender{m.Transport.OpenSender(k, discriminator), m}
}

func (p killableBFDSender) SendControl(packet []byte) error {
	if p.transport.isKilled.Load() {
		return nil
	}
	return p.Sender.SendControl(packet)
}

func startSpeaker(t *testing.T, host netns.Path) *testSpeaker {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	bfdTransport, err := udp.NewTransport()
	if err != nil {
		t.Fatal(err)
	}
	transport := &killableBFDTransport{Transport: bfdTransport}
	bfdEngine := bfd.NewEngine(transport, time.Now, 1)
	e := bgp.NewEngine(bgp.Options{NodeName: "node1", UpdateGenerator: gobgp.NewUpdateGenerator(log), Transport: netnsTransport{host}, Now: time.Now, BFDEngine: bfdEngine, Log: log})
	ctx, cancel := context.WithCancel(t.Context())
	bfdDone, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(bfdDone)
		if err := host.RunInside(func() error { return bfdEngine.Run(ctx) }); err != nil {
			t.Errorf("the BFD engine ended: %v", err)
		}
	}()
	go func() {
		defer close(done)
		if err := e.Run(ctx); err != nil {
			t.Errorf("the engine ended: %v", err)
		}
	}()
	exit := func() { cancel(); <-done; <-bfdDone }
	t.Cleanup(exit)
	return &testSpeaker{e, t, exit, func() { transport.isKilled.Store(true); exit() }}
}

// peerStatus returns the Status of a peer.
func (s *testSpeaker) peerStatus(peer string) bgp.PeerSessionStatus {
	for _, st := range s.SessionStatuses() {
		if st.PeerName == peer {
			return st
		}
	}
	return bgp.PeerSessionStatus{}
}

// waitForEstablished waits until the session with a peer is established.
func (s *testSpeaker) waitForEstablished(peer string) bgp.PeerSessionStatus {
	s.t.Helper()
	awaitNoError(s.t, "the session with "+peer+" is established", func() error {
		if st := s.peerStatus(peer); st.State != bgp.Established {
			return fmt.Errorf("it is %s: %s", st.State, st.LastError.Text)
		}
		return nil
	})
	return s.peerStatus(peer)
}

// waitForError waits until a peer has no session and its last error contains text.
func (s *testSpeaker) waitForError(peer, text string) {
	s.t.Helper()
	awaitNoError(s.t, fmt.Sprintf("the peer %s fails with %q", peer, text), func() error {
		if st := s.peerStatus(peer); !strings.Contains(st.LastError.Text, text) || st.State == bgp.Established {
			return fmt.Errorf("it is %s: %s", st.State, st.LastError.Text)
		}
		return nil
	})
}

// awaitNoError waits until check succeeds.
func awaitNoError(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.After(90 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("waiting until %s: %v", what, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// exampleExternalPeer is the peer of an ordinary external session.
func exampleExternalPeer() intent.Peer {
	return intent.Peer{
		Name: "tor", Address: netip.MustParseAddr("192.168.0.1"), Port: 179, LocalASN: 64512, PeerASN: 65000,
		HoldTime: 90 * time.Second, CarriesIPv4Routes: true,
	}
}

func exampleRoutes(prefixes ...string) []*intent.Route {
	var out []*intent.Route
	for _, p := range prefixes {
		out = append(out, &intent.Route{Prefix: netip.MustParsePrefix(p), PeerNames: []string{"tor"}})
	}
	return out
}

// buildFRRConfig configures FRR with a neighbour, in the
// section router bgp, and with its address families.
func buildFRRConfig(neighbour string, families ...string) string {
	return `router bgp 65000
 bgp router-id 192.168.0.1
 no bgp ebgp-requires-policy
 no bgp network import-check
 timers bgp 3 9
 ` + neighbour + "\n" + strings.Join(families, "\n") + "\n"
}

// frrPath is the part of FRR's path to a route that the tests check.
type frrPath struct {
	Valid     bool
	Stale     bool
	Peer      struct{ RouterID string }
	LocalPref int                     `json:"locPrf"`
	MED       *int                    `json:"metric"`
	ASPath    struct{ String string } `json:"asPath"`
	Community struct{ String string }
	Large     struct{ String string } `json:"largeCommunity"`
	Extended  struct{ String string } `json:"extendedCommunity"`
	NextHops  []struct {
		IP   string
		Used bool
	}
}

// frrPaths returns FRR's paths to a prefix.
func frrPaths(t *testing.T, r *router.Router, prefix string) []frrPath {
	t.Helper()
	family := "ipv4"
	if strings.Contains(prefix, ":") {
		family = "ipv6"
	}
	out, err := r.RunShowCommand(t.Context(), fmt.Sprintf("show bgp %s unicast %s json", family, prefix))
	if err != nil {
		t.Fatal(err)
	}
	var table struct{ Paths []frrPath }
	if err := json.Unmarshal(out, &table); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	return table.Paths
}

// waitForFRRRoute waits until FRR has exactly one valid path to the prefix, and returns it.
func waitForFRRRoute(t *testing.T, r *router.Router, prefix string) frrPath {
	t.Helper()
	var p frrPath
	awaitNoError(t, "the router has "+prefix, func() error {
		all := frrPaths(t, r, prefix)
		if len(all) != 1 || !all[0].Valid {
			return fmt.Errorf("it has %+v", all)
		}
		p = all[0]
		return nil
	})
	return p
}

// waitForNoFRRRoute waits until FRR has no path to the prefix.
func waitForNoFRRRoute(t *testing.T, r *router.Router, prefix string) {
	t.Helper()
	awaitNoError(t, "the router has no "+prefix, func() error {
		if all := frrPaths(t, r, prefix); len(all) > 0 {
			return fmt.Errorf("it has %+v", all)
		}
		return nil
	})
}

// redirectPort1179To179 makes the router accept BGP on port 1179 as well.
func redirectPort1179To179(t *testing.T, b *router.RoutedLAN) {
	t.Helper()
	err := b.NamespaceOfHost("router").RunInside(func() error {
		out, err := exec.Command("nft", "add table ip t; add chain ip t c { type nat hook prerouting priority -100; }; add rule ip t c tcp dport 1179 redirect to :179").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
