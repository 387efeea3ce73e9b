package layer2_test

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/speaker/links/sandbox"
)

// pinger is a client's kernel that sends pings.
type pinger struct {
	t    *testing.T
	conn *icmp.PacketConn
	six  bool
	sent int
}

func newPinger(t *testing.T, room *sandbox.Room, from netip.Addr) *pinger {
	p := &pinger{t: t, six: from.Is6()}
	room.Do(func() (err error) {
		network := "ip4:icmp"
		if p.six {
			network = "ip6:ipv6-icmp"
		}
		p.conn, err = icmp.ListenPacket(network, from.String())
		return err
	})
	t.Cleanup(func() { _ = p.conn.Close() })
	return p
}

// ping sends an echo request with that many bytes and returns whether the same come back, from the address, in time.
func (p *pinger) ping(a netip.Addr, size int, patience time.Duration) bool {
	p.t.Helper()
	p.sent++
	data := bytes.Repeat([]byte{byte(p.sent)}, size)
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: 7, Seq: p.sent, Data: data}}
	protocol := 1
	if p.six {
		m.Type, protocol = ipv6.ICMPTypeEchoRequest, 58
	}
	b, err := m.Marshal(nil)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.conn.WriteTo(b, &net.IPAddr{IP: a.AsSlice()}); err != nil {
		p.t.Fatal(err)
	}
	_ = p.conn.SetReadDeadline(time.Now().Add(patience))
	for in := make([]byte, 65536); ; {
		n, from, err := p.conn.ReadFrom(in)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false
		}
		if err != nil {
			p.t.Fatal(err)
		}
		got, err := icmp.ParseMessage(protocol, in[:n])
		if err != nil || (got.Type != ipv4.ICMPTypeEchoReply && got.Type != ipv6.ICMPTypeEchoReply) {
			continue // another's, neighbour discovery say
		}
		e, ok := got.Body.(*icmp.Echo)
		if ok && e.ID == 7 && e.Seq == p.sent && bytes.Equal(e.Data, data) && from.String() == a.String() {
			return true
		}
	}
}

func TestPings(t *testing.T) {
	for family, c := range families {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			node, client := sandbox.New(t), sandbox.New(t)
			node.Veth("eth0", client, "eth0")
			b := between(t, c, end{node, "eth0"}, end{client, "eth0"}, layer2.AnswerPings(wire.Wire{}))
			p := newPinger(t, client, c.clientIP)
			b.take(b.held)
			for _, size := range []int{0, 1, 56, 1400} {
				if !p.ping(b.held, size, 30*time.Second) {
					t.Errorf("a ping of %d bytes is not answered", size)
				}
			}
			if n := b.engine.Counters()[b.held].Pings; n != 4 {
				t.Errorf("%d pings are counted, want 4", n)
			}
			if p.ping(b.held, 4000, 300*time.Millisecond) {
				t.Error("a ping in several pieces is answered")
			}
			b.engine.Renew(time.Time{})
			if p.ping(b.held, 56, 300*time.Millisecond) {
				t.Error("a ping is answered behind the fence")
			}
			b.engine.Renew(time.Now().Add(time.Hour))
			if !p.ping(b.held, 56, 30*time.Second) {
				t.Error("a ping is not answered when the fence is open again")
			}
			b.take(b.other) // and gives the first one up; the client's kernel does not know that
			if p.ping(b.held, 56, 300*time.Millisecond) {
				t.Error("a ping of an address that was given up is answered")
			}
			if !p.ping(b.other, 56, 30*time.Second) {
				t.Error("a ping of the new address is not answered")
			}
		})
	}
}

func TestNobodyAnswersPingsUnasked(t *testing.T) {
	b := onVeth(t, cast4)
	client := b.clientRoom
	b.take(b.held)
	if newPinger(t, client, b.clientIP).ping(b.held, 56, 300*time.Millisecond) {
		t.Error("a ping is answered")
	}
}

// brokenPings fails at opening as often as it is told, then opens what ends at once, and then works.
type brokenPings struct {
	mu          sync.Mutex // guards what follows
	refuse, end int
	opened      []time.Time
	closed      int
}

func (b *brokenPings) OpenPings(facts.Link, layer2.Family) (layer2.Pings, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opened = append(b.opened, time.Now())
	if b.refuse--; b.refuse >= 0 {
		return nil, errors.New("no buffers")
	}
	p := &endingPings{owner: b, done: make(chan struct{})}
	if b.end--; b.end >= 0 {
		close(p.done)
	}
	return p, nil
}

type endingPings struct {
	owner *brokenPings
	done  chan struct{}
}

func (p *endingPings) Serve(func(netip.Addr) bool) error {
	<-p.done
	return errors.New("it ended")
}

func (p *endingPings) Close() error {
	p.owner.mu.Lock()
	defer p.owner.mu.Unlock()
	p.owner.closed++
	select {
	case <-p.done:
	default:
		close(p.done)
	}
	return nil
}

// What answers pings is opened again when it fails, at a pace, and never costs the port.
func TestPingsThatFailCostNothingElse(t *testing.T) {
	broken := &brokenPings{refuse: 2, end: 2}
	simulateCast(t, cast4, func(s simulated) {
		begun := time.Now()
		s.take(held)
		time.Sleep(time.Minute)
		broken.mu.Lock()
		var at []time.Duration
		for _, o := range broken.opened {
			at = append(at, o.Sub(begun).Round(time.Second))
		}
		want := []time.Duration{0, 10 * time.Second, 20 * time.Second, 30 * time.Second, 40 * time.Second}
		if !slices.Equal(at, want) || broken.closed != 2 {
			t.Errorf("opened after %v and closed %d times, want %v and 2", at, broken.closed, want)
		}
		broken.mu.Unlock()
		if n := len(s.engine.Reports()); n != 0 {
			t.Errorf("%d reports", n)
		}
		s.send(s.request(held))
		s.wantHeard("the port works", s.answer(held))
	}, layer2.AnswerPings(broken))
	broken.mu.Lock()
	defer broken.mu.Unlock()
	if broken.closed != 3 {
		t.Errorf("closed %d times, want 3 at the end", broken.closed)
	}
}
