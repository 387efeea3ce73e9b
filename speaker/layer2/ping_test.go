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

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/speaker/links/netnstest"
)

// pingClient sends pings from the client's kernel.
type pingClient struct {
	t         *testing.T
	conn      *icmp.PacketConn
	isIPv6    bool
	sentCount int
}

func newPingClient(t *testing.T, room *netnstest.Namespace, from netip.Addr) *pingClient {
	p := &pingClient{t: t, isIPv6: from.Is6()}
	room.MustRunInside(func() (err error) {
		network := "ip4:icmp"
		if p.isIPv6 {
			network = "ip6:ipv6-icmp"
		}
		p.conn, err = icmp.ListenPacket(network, from.String())
		return err
	})
	t.Cleanup(func() { _ = p.conn.Close() })
	return p
}

// sendsPingAndReceivesReply sends an echo request with size bytes and says whether the reply with
// the same bytes comes from the address before the timeout.
func (p *pingClient) sendsPingAndReceivesReply(a netip.Addr, size int, timeout time.Duration) bool {
	p.t.Helper()
	p.sentCount++
	data := bytes.Repeat([]byte{byte(p.sentCount)}, size)
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: 7, Seq: p.sentCount, Data: data}}
	protocol := 1
	if p.isIPv6 {
		m.Type, protocol = ipv6.ICMPTypeEchoRequest, 58
	}
	b, err := m.Marshal(nil)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.conn.WriteTo(b, &net.IPAddr{IP: a.AsSlice()}); err != nil {
		p.t.Fatal(err)
	}
	_ = p.conn.SetReadDeadline(time.Now().Add(timeout))
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
			continue // another packet, such as neighbour discovery
		}
		e, ok := got.Body.(*icmp.Echo)
		if ok && e.ID == 7 && e.Seq == p.sentCount && bytes.Equal(e.Data, data) && from.String() == a.String() {
			return true
		}
	}
}

func TestPingsAreAnswered(t *testing.T) {
	for family, c := range addressesByFamily {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			node, client := netnstest.NewNamespace(t), netnstest.NewNamespace(t)
			node.AddVethPair("eth0", client, "eth0")
			b := newEngineWithClientOnLinks(t, c, linkInNamespace{node, "eth0"}, linkInNamespace{client, "eth0"}, layer2.WithPingResponders(wire.PacketSocketOpener{}))
			p := newPingClient(t, client, c.clientIP)
			b.holdAddressAndAwaitAnnouncement(b.heldIP)
			for _, size := range []int{0, 1, 56, 1400} {
				if !p.sendsPingAndReceivesReply(b.heldIP, size, 30*time.Second) {
					t.Errorf("a ping of %d bytes is not answered", size)
				}
			}
			if n := b.engine.CountersByAddress()[b.heldIP].PingsAnswered; n != 4 {
				t.Errorf("%d pings are counted, want 4", n)
			}
			if p.sendsPingAndReceivesReply(b.heldIP, 4000, 300*time.Millisecond) {
				t.Error("a fragmented ping is answered")
			}
			b.engine.SetSendDeadline(time.Time{})
			if p.sendsPingAndReceivesReply(b.heldIP, 56, 300*time.Millisecond) {
				t.Error("a ping is answered after the send deadline")
			}
			b.engine.SetSendDeadline(time.Now().Add(time.Hour))
			if !p.sendsPingAndReceivesReply(b.heldIP, 56, 30*time.Second) {
				t.Error("a ping is not answered after the send deadline was extended")
			}
			// the first address is not held any more, which the client's kernel does not know
			b.holdAddressAndAwaitAnnouncement(b.unheldIP)
			if p.sendsPingAndReceivesReply(b.heldIP, 56, 300*time.Millisecond) {
				t.Error("a ping of an address that was given up is answered")
			}
			if !p.sendsPingAndReceivesReply(b.unheldIP, 56, 30*time.Second) {
				t.Error("a ping of the new address is not answered")
			}
		})
	}
}

func TestPingsAreNotAnsweredByDefault(t *testing.T) {
	b := newEngineWithClientOnVeth(t, ipv4TestAddresses)
	client := b.clientNamespace
	b.holdAddressAndAwaitAnnouncement(b.heldIP)
	if newPingClient(t, client, b.clientIP).sendsPingAndReceivesReply(b.heldIP, 56, 300*time.Millisecond) {
		t.Error("a ping is answered")
	}
}

// failingPingOpener fails to open openFailures times, then opens respondersThatEndAtOnce responders
// that end at once, and then works.
type failingPingOpener struct {
	mu                                    sync.Mutex // guards the fields below
	openFailures, respondersThatEndAtOnce int
	openAttemptTimes                      []time.Time
	closedResponderCount                  int
}

func (b *failingPingOpener) OpenPingResponder(facts.Link, ipfamily.Family) (layer2.PingResponder, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.openAttemptTimes = append(b.openAttemptTimes, time.Now())
	if b.openFailures--; b.openFailures >= 0 {
		return nil, errors.New("no buffers")
	}
	p := &failingPingResponder{opener: b, endSignal: make(chan struct{})}
	if b.respondersThatEndAtOnce--; b.respondersThatEndAtOnce >= 0 {
		close(p.endSignal)
	}
	return p, nil
}

type failingPingResponder struct {
	opener    *failingPingOpener
	endSignal chan struct{}
}

func (p *failingPingResponder) AnswerPings(func(netip.Addr) bool) error {
	<-p.endSignal
	return errors.New("it ended")
}

func (p *failingPingResponder) Close() error {
	p.opener.mu.Lock()
	defer p.opener.mu.Unlock()
	p.opener.closedResponderCount++
	select {
	case <-p.endSignal:
	default:
		close(p.endSignal)
	}
	return nil
}

// A failed ping responder is opened again, at a pace, and the port still works.
func TestPingResponderFailureDoesNotAffectThePort(t *testing.T) {
	broken := &failingPingOpener{openFailures: 2, respondersThatEndAtOnce: 2}
	simulateWithOptions(t, ipv4TestAddresses, func(s engineWithClientInMemory) {
		begun := time.Now()
		s.holdAddressAndAwaitAnnouncement(heldIPv4)
		time.Sleep(time.Minute)
		broken.mu.Lock()
		var at []time.Duration
		for _, o := range broken.openAttemptTimes {
			at = append(at, o.Sub(begun).Round(time.Second))
		}
		want := []time.Duration{0, 10 * time.Second, 20 * time.Second, 30 * time.Second, 40 * time.Second}
		if !slices.Equal(at, want) || broken.closedResponderCount != 2 {
			t.Errorf("opened after %v and closed %d times, want %v and 2", at, broken.closedResponderCount, want)
		}
		broken.mu.Unlock()
		if n := len(s.engine.Reports()); n != 0 {
			t.Errorf("%d reports", n)
		}
		s.sendFrame(s.newClientRequest(heldIPv4))
		s.awaitClientFrame("the port works", s.expectedReplyToClient(heldIPv4))
	}, layer2.WithPingResponders(broken))
	broken.mu.Lock()
	defer broken.mu.Unlock()
	if broken.closedResponderCount != 3 {
		t.Errorf("closed %d times, want 3 at the end", broken.closedResponderCount)
	}
}
