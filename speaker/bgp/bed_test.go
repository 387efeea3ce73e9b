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
	"github.com/gantry-lb/gantry/speaker/bgp/wire"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// inside is the network of one host of the bed.
type inside struct{ netns.Handle }

func (n inside) Dial(ctx context.Context, t bgp.Target) (c bgp.Conn, err error) {
	err = n.Do(func() (err error) {
		if zone := t.Remote.Addr().Zone(); zone != "" { // the runtime remembers the links of another namespace by name
			link, err := net.InterfaceByName(zone)
			if err != nil {
				return err
			}
			t.Remote = netip.AddrPortFrom(t.Remote.Addr().WithZone(strconv.Itoa(link.Index)), t.Remote.Port())
		}
		c, err = wire.Wire{}.Dial(ctx, t)
		return err
	})
	return c, err
}

func (n inside) Listen(ctx context.Context, port uint16) (l bgp.Listener, err error) {
	err = n.Do(func() (err error) {
		l, err = wire.Wire{}.Listen(ctx, port)
		return err
	})
	return l, err
}

func (n inside) Find(ctx context.Context, device string, tell func(netip.Addr, error)) {
	_ = n.Do(func() error {
		wire.Wire{}.Find(ctx, device, tell)
		return nil
	})
}

func (n inside) OnLink(a netip.Addr) (on bool) {
	_ = n.Do(func() error {
		on = wire.Wire{}.OnLink(a)
		return nil
	})
	return on
}

// lay makes a bed, and skips the test where the machine lacks something.
func lay(t *testing.T, o router.BedOptions) *router.Bed {
	t.Helper()
	for _, k := range []router.Kind{router.FRR, router.BIRD} {
		if m := router.Missing(k); m != "" {
			t.Skip(m)
		}
	}
	b, err := router.NewBed(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func start(t *testing.T, c router.Config) *router.Router {
	t.Helper()
	r, err := router.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Stop)
	return r
}

// speaker is an Engine on a host of the bed.
type speaker struct {
	*bgp.Engine
	t    *testing.T
	kill func() // as a process that is told to end
	die  func() // as one that is killed: nobody is told
}

// mortal is the BFD transport of a speaker that may die.
type mortal struct {
	bfd.Wire
	dead atomic.Bool
}

type mortalPort struct {
	bfd.Port
	of *mortal
}

func (m *mortal) Open(k bfd.Key, discriminator uint32) bfd.Port {
	return mortalPort{m.Wire.Open(k, discriminator), m}
}

func (p mortalPort) Send(packet []byte) error {
	if p.of.dead.Load() {
		return nil
	}
	return p.Port.Send(packet)
}

func speak(t *testing.T, host netns.Handle) *speaker {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	transport := &mortal{Wire: udp.New()}
	paths := bfd.New(transport, time.Now, 1)
	e := bgp.New(bgp.Options{Node: "node1", Library: gobgp.New(log), Transport: inside{host}, BFD: paths, Log: log})
	ctx, cancel := context.WithCancel(t.Context())
	watching, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watching)
		if err := host.Do(func() error { return paths.Run(ctx) }); err != nil {
			t.Errorf("the BFD engine ended: %v", err)
		}
	}()
	go func() {
		defer close(done)
		if err := e.Run(ctx); err != nil {
			t.Errorf("the engine ended: %v", err)
		}
	}()
	kill := func() { cancel(); <-done; <-watching }
	t.Cleanup(kill)
	return &speaker{e, t, kill, func() { transport.dead.Store(true); kill() }}
}

// state returns what is seen of a peer.
func (s *speaker) state(peer string) bgp.State {
	for _, st := range s.States() {
		if st.Peer == peer {
			return st
		}
	}
	return bgp.State{}
}

// established waits for a session.
func (s *speaker) established(peer string) bgp.State {
	s.t.Helper()
	eventually(s.t, "the session with "+peer+" is established", func() error {
		if st := s.state(peer); st.Phase != bgp.Established {
			return fmt.Errorf("it is %s: %s", st.Phase, st.LastError)
		}
		return nil
	})
	return s.state(peer)
}

// fails waits until the last error of a peer contains a text.
func (s *speaker) fails(peer, text string) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("the peer %s fails with %q", peer, text), func() error {
		if st := s.state(peer); !strings.Contains(st.LastError, text) || st.Phase == bgp.Established {
			return fmt.Errorf("it is %s: %s", st.Phase, st.LastError)
		}
		return nil
	})
}

// eventually waits until check succeeds.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.After(40 * time.Second)
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

// tor is the router's side of an ordinary external session.
func tor() intent.Peer {
	return intent.Peer{
		Name: "tor", Address: netip.MustParseAddr("192.168.0.1"), Port: 179, LocalASN: 64512, PeerASN: 65000,
		Hold: 90 * time.Second, IPv4: true,
	}
}

func routes(prefixes ...string) []*intent.Route {
	var out []*intent.Route
	for _, p := range prefixes {
		out = append(out, &intent.Route{Prefix: netip.MustParsePrefix(p), Peers: []string{"tor"}})
	}
	return out
}

// frrText is an FRR that peers with the first node; more lines go into its router bgp section, others after it.
func frrText(neighbour string, families ...string) string {
	return `router bgp 65000
 bgp router-id 192.168.0.1
 no bgp ebgp-requires-policy
 no bgp network import-check
 timers bgp 3 9
 ` + neighbour + "\n" + strings.Join(families, "\n") + "\n"
}

// path is what FRR knows of a route, as far as tests look at it.
type path struct {
	Valid     bool
	Stale     bool
	Peer      struct{ RouterID string }
	LocPrf    int
	Med       *int `json:"metric"`
	AsPath    struct{ String string }
	Community struct{ String string }
	Large     struct{ String string } `json:"largeCommunity"`
	Extended  struct{ String string } `json:"extendedCommunity"`
	NextHops  []struct {
		IP   string
		Used bool
	}
}

// shown returns FRR's paths to a prefix.
func shown(t *testing.T, r *router.Router, prefix string) []path {
	t.Helper()
	family := "ipv4"
	if strings.Contains(prefix, ":") {
		family = "ipv6"
	}
	out, err := r.Show(t.Context(), fmt.Sprintf("show bgp %s unicast %s json", family, prefix))
	if err != nil {
		t.Fatal(err)
	}
	var table struct{ Paths []path }
	if err := json.Unmarshal(out, &table); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	return table.Paths
}

// arrives waits until FRR has one valid path to the prefix, and returns it.
func arrives(t *testing.T, r *router.Router, prefix string) path {
	t.Helper()
	var p path
	eventually(t, "the router has "+prefix, func() error {
		all := shown(t, r, prefix)
		if len(all) != 1 || !all[0].Valid {
			return fmt.Errorf("it has %+v", all)
		}
		p = all[0]
		return nil
	})
	return p
}

// goes waits until FRR has no path to the prefix.
func goes(t *testing.T, r *router.Router, prefix string) {
	t.Helper()
	eventually(t, "the router has no "+prefix, func() error {
		if all := shown(t, r, prefix); len(all) > 0 {
			return fmt.Errorf("it has %+v", all)
		}
		return nil
	})
}

// redirect has the router take BGP on port 1179 too.
func redirect(t *testing.T, b *router.Bed) {
	t.Helper()
	err := b.Host("router").Do(func() error {
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
