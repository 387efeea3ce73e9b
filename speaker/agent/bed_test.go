package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/segment"
	"github.com/gantry-lb/gantry/speaker/members/hall"
)

var (
	web    = view.Key{Namespace: "default", Name: "web"}
	four   = netip.MustParseAddr("192.168.0.201")
	six    = netip.MustParseAddr("fd00:a8::201")
	asker4 = netip.MustParseAddr("192.168.0.100")
	asker6 = netip.MustParseAddr("fd00:a8::100")
)

// nodes are those of the cluster; each has a speaker.
var nodes = []string{"node1", "node2", "node3", "node4"}

// routing throws away what it is told: what is announced by BGP is not looked at here.
type routing struct{}

func (routing) Set(bgp.Desired) {}

// cluster is nodes on a segment in memory, and a client that asks for a Service's addresses. It lives in a bubble.
type cluster struct {
	t        *testing.T
	lan      *segment.LAN
	hall     *hall.Hall
	speakers map[string]*speaker

	ports   map[layer2.Family]layer2.Port // the client's
	mu      sync.Mutex                    // guards answers and heard
	answers map[string]int                // by node, since they were last taken
	heard   []layer2.Frame                // that were sent to the client alone, since they were last taken
}

// speaker is an agent with its engine.
type speaker struct {
	*Agent
	name   string
	host   *segment.Host
	member *hall.Member
	link   facts.Link
	links  chan facts.LinkSet
	memory *Memory
	stop   func()

	mu     sync.Mutex // guards what follows
	status Status
	notes  []elect.Note
}

// play runs f with a cluster whose speakers know everything.
func play(t *testing.T, f func(c *cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{t: t, lan: segment.New(), hall: hall.New(), speakers: map[string]*speaker{}, ports: map[layer2.Family]layer2.Port{}, answers: map[string]int{}}
		c.client()
		for _, n := range nodes {
			c.start(n, nil)
			c.tell(n)
		}
		time.Sleep(15 * time.Second)
		f(c)
	})
}

// clientMAC is the client's Ethernet address.
var clientMAC = facts.MAC{2, 0, 0, 0, 0, 0x64}

func (c *cluster) client() {
	host := c.lan.Host("client")
	var read sync.WaitGroup
	for _, f := range []layer2.Family{layer2.IPv4, layer2.IPv6} {
		p, err := host.Open(facts.Link{Index: 1, Name: "eth0", MAC: clientMAC}, f)
		if err != nil {
			c.t.Fatal(err)
		}
		c.ports[f] = p
		read.Go(func() {
			_ = p.Receive(func(f layer2.Frame) (layer2.Frame, bool) {
				c.mu.Lock()
				defer c.mu.Unlock()
				if f.Operation == layer2.Reply && f.Destination == clientMAC && !f.Unsolicited {
					c.answers[c.owner(f.SenderMAC)]++
				} else if f.Destination == clientMAC {
					c.heard = append(c.heard, f)
				}
				return layer2.Frame{}, false
			})
		})
	}
	c.t.Cleanup(func() {
		for _, p := range c.ports {
			_ = p.Close()
		}
		read.Wait()
	})
}

// owner is the node with the Ethernet address.
func (c *cluster) owner(mac facts.MAC) string {
	return fmt.Sprintf("node%d", mac[5])
}

// start begins a speaker's life; memory is what an earlier one left behind.
func (c *cluster) start(name string, memory *Memory) *speaker {
	number := name[len(name)-1] - '0'
	address := netip.AddrFrom4([4]byte{192, 168, 0, 10 + number})
	s := &speaker{
		name: name, links: make(chan facts.LinkSet, 8),
		link: facts.Link{Index: 2, Name: "eth0", MAC: facts.MAC{2, 0, 0, 0, 0, number}, Prefixes: []netip.Prefix{
			netip.PrefixFrom(address, 24), netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("fd00:a8::%d", number)), 64),
		}},
	}
	if old := c.speakers[name]; old != nil {
		s.host = old.host
	} else {
		s.host = c.lan.Host(name)
	}
	c.speakers[name] = s
	nonce := uint64(time.Now().UnixNano()) + uint64(number)
	s.member = c.hall.Join(name, address, nonce)
	engine := layer2.New(s.host, time.Now)
	s.Agent = New(Options{
		Self: name, Nonce: nonce, Timing: elect.DefaultTiming(), Layer2: engine, BGP: routing{}, Members: s.member, Links: s.links,
		Now: time.Now, Log: slog.New(slog.DiscardHandler), Observe: s.observe, Remembered: memory,
		Remember: func(m Memory) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.memory = &m
		},
	})
	s.links <- facts.LinkSet{s.link}
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	for _, part := range []func(context.Context) error{engine.Run, s.Run} {
		parts.Go(func() {
			if err := part(ctx); err != nil {
				c.t.Errorf("a part of %s ended: %v", name, err)
			}
		})
	}
	s.stop = sync.OnceFunc(func() {
		cancel()
		parts.Wait()
		s.member.Go()
	})
	c.t.Cleanup(s.stop)
	return s
}

func (s *speaker) observe(status Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = status
	s.notes = append(s.notes, status.Notes...)
}

// seen returns the last Status, and every Note there was.
func (s *speaker) seen() (Status, []elect.Note) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status, slices.Clone(s.notes)
}

// config has a pool of both families that every node announces.
func config() Change {
	return SetSnapshot(&snapshot.Snapshot{
		Pools: []*snapshot.Pool{{Name: "p", Ranges: []snapshot.Range{{First: four, Last: four.Next()}, {First: six, Last: six.Next()}}}},
		L2Ads: []*snapshot.L2Ad{{Name: "ad", Pools: []string{"p"}}},
	})
}

func service() Change {
	return SetService(view.Service{Key: web, LoadBalancer: true, Assigned: []netip.Addr{four, six}})
}

func endpoints() Change {
	return SetEndpoints(view.Endpoints{Service: web, Serving: true, Nodes: []string{"node4"}, Ready: []string{"node4"}})
}

// tell posts everything that exists to a speaker.
func (c *cluster) tell(name string) {
	all := []Change{config(), service(), endpoints()}
	for _, n := range nodes {
		all = append(all, SetNode(view.Node{Name: n}))
	}
	c.speakers[name].Post(c.t.Context(), append(all, Synced())...)
}

// ask has the client ask for an address once, and returns which nodes answered within a millisecond.
func (c *cluster) ask(a netip.Addr) []string {
	c.t.Helper()
	c.mu.Lock()
	clear(c.answers)
	c.mu.Unlock()
	asker := asker4
	if a.Is6() {
		asker = asker6
	}
	err := c.ports[layer2.FamilyOf(a)].Write(layer2.Frame{
		Destination: layer2.Asked(a), Source: clientMAC, Operation: layer2.Request, SenderMAC: clientMAC, SenderIP: asker, TargetIP: a,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	time.Sleep(time.Millisecond)
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for n := range c.answers {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// asked asks again and again for so long. It returns the longest time without an answer, and who answered in what order.
func (c *cluster) asked(a netip.Addr, d time.Duration) (gap time.Duration, order []string) {
	c.t.Helper()
	last := time.Now()
	for end := last.Add(d); time.Now().Before(end); {
		who := c.ask(a)
		if text := strings.Join(who, "+"); text != "" && (len(order) == 0 || order[len(order)-1] != text) {
			order = append(order, text)
		}
		if now := time.Now(); len(who) > 0 {
			last = now
		}
		gap = max(gap, time.Since(last))
	}
	return gap, order
}

// holder is the one node that answers for the address.
func (c *cluster) holder(a netip.Addr) *speaker {
	c.t.Helper()
	who := c.ask(a)
	if len(who) != 1 {
		c.t.Fatalf("%v answer for %s, want one node\n%s%s", who, a, c.lan, c.hall)
	}
	return c.speakers[who[0]]
}

// told returns what was sent to the client alone since the last call, without answers.
func (c *cluster) told() []layer2.Frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.heard
	c.heard = nil
	return out
}

// die cuts a node off, of which nobody is told.
func (s *speaker) die() {
	s.host.Cut()
	s.member.Cut()
}

// takeovers are how many the speaker's histogram counts, and the seconds that they took together.
func (s *speaker) takeovers(t *testing.T) (count uint64, seconds float64) {
	t.Helper()
	families, err := s.registry(t).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "gantry_speaker_takeover_seconds" {
			h := f.GetMetric()[0].GetHistogram()
			return h.GetSampleCount(), h.GetSampleSum()
		}
	}
	t.Fatal("no histogram of takeovers is exported")
	return 0, 0
}

// moves is how often the speaker's counters count an event for a reason.
func (s *speaker) moves(t *testing.T, event string, reason names.Reason) float64 {
	t.Helper()
	families, err := s.registry(t).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			l := m.GetLabel()
			if f.GetName() == "gantry_speaker_moves_total" && l[0].GetValue() == event && l[1].GetValue() == string(reason) {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func (s *speaker) registry(t *testing.T) *prometheus.Registry {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(s.Agent); err != nil {
		t.Fatal(err)
	}
	return r
}
