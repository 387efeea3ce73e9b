package members

import (
	"bytes"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/gantry-lb/gantry/speaker/facts"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// newTestTransport returns a transport on loopback.
func newTestTransport(t *testing.T) *guardedTransport {
	t.Helper()
	g, err := newGuardedTransport(loopback, 0, nil, log.New(io.Discard, "", 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func (t *guardedTransport) testListenAddress() string {
	return netip.AddrPortFrom(loopback, uint16(t.GetAutoBindPort())).String()
}

// isClosedByPeer reports whether the other side closes a connection at once.
func isClosedByPeer(t *testing.T, c net.Conn) bool {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(testAwaitTimeout)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Read(make([]byte, 1))
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

func TestTrafficFromUnknownSourcesIsDropped(t *testing.T) {
	g := newTestTransport(t)
	g.setAllowedSources(map[netip.Addr]struct{}{netip.MustParseAddr("127.0.0.2"): {}})
	dial := func(network, source string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(source)}
		}
		c, err := d.Dial(network, g.testListenAddress())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	if !isClosedByPeer(t, dial("tcp", "127.0.0.3")) {
		t.Error("a stranger may connect")
	}
	dial("tcp", "127.0.0.2")
	select {
	case c := <-g.StreamCh():
		_ = c.Close()
	case <-time.After(testAwaitTimeout):
		t.Error("a known speaker may not connect")
	}
	for _, source := range []string{"127.0.0.3", "127.0.0.2"} {
		if _, err := dial("udp", source).Write([]byte(source)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case p := <-g.PacketCh():
		if string(p.Buf) != "127.0.0.2" {
			t.Errorf("a packet of %q is heard", p.Buf)
		}
	case <-time.After(testAwaitTimeout):
		t.Error("a known speaker is not heard")
	}
}

func TestOpenStreamsPerSourceAreLimited(t *testing.T) {
	g := newTestTransport(t)
	var open []net.Conn
	connect := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", g.testListenAddress())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	for range maxOpenStreamsPerSource {
		connect()
		open = append(open, <-g.StreamCh())
	}
	if !isClosedByPeer(t, connect()) {
		t.Error("one source may open more connections than the limit")
	}
	if err := open[0].Close(); err != nil {
		t.Fatal(err)
	}
	connect()
	select {
	case <-g.StreamCh():
	case <-time.After(testAwaitTimeout):
		t.Error("a closed connection counts as open")
	}
}

func TestBoundedStreamFailsAfterMaxBytes(t *testing.T) {
	client, server := net.Pipe()
	s := &boundedStream{Conn: server, bytesLeft: maxStreamBytes, onClose: func() {}}
	go func() {
		for {
			if _, err := client.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	}()
	n, err := io.Copy(io.Discard, s)
	if n != maxStreamBytes || !errors.Is(err, errStreamTooLong) {
		t.Errorf("%d bytes are read, and then: %v", n, err)
	}
	_, _ = s.Close(), client.Close()
}

// TestDatagramsAreNotCompressed sends a message that compression would make short.
func TestDatagramsAreNotCompressed(t *testing.T) {
	a, _ := startMember(t, "a", "a key that all of them have")
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = packets.Close() })
	if err := a.memberlist.SendToAddress(memberlist.Address{Addr: packets.LocalAddr().String()}, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	n, _, err := packets.ReadFrom(make([]byte, 2000))
	if err != nil || n < 1000 {
		t.Errorf("the datagram of a message with 1,000 bytes has %d bytes (%v)", n, err)
	}
}

// TestKeysAreReplacedWithoutLosingMembers follows the steps of a rotation, one member after the
// other.
func TestKeysAreReplacedWithoutLosingMembers(t *testing.T) {
	first, second := []byte("the first key of 16 bytes or more"), []byte("the second key of 16 bytes or more")
	a, _ := startMember(t, "a", string(first))
	b, _ := startMember(t, "b", string(first), a.ListenAddress().String())
	both := func(set facts.MemberSet) bool { return set.HasMember("a") && set.HasMember("b") }
	awaitMemberSet(t, a, "both members", both)
	awaitMemberSet(t, b, "both members", both)
	for _, keys := range [][][]byte{{first, second}, {second, first}, {second}} {
		for _, m := range []*Members{a, b} {
			if err := m.SetGossipKeys(keys); err != nil {
				t.Fatal(err)
			}
			for sender, receiver := range map[*Members]*Members{a: b, b: a} {
				text := []byte("hello")
				sender.SendUrgentMessage(receiver.options.NodeName, text)
				select {
				case got := <-receiver.ReceivedUrgentMessages():
					if !bytes.Equal(got.Payload, text) {
						t.Errorf("%q arrives", got.Payload)
					}
				case <-time.After(testAwaitTimeout):
					t.Fatalf("no message arrives at %s", receiver.options.NodeName)
				}
			}
		}
	}
	select {
	case set := <-a.LiveMemberUpdates():
		if !both(set) {
			t.Errorf("after the rotation the members are %v", set.Members)
		}
	default: // nothing changed
	}
}

func TestSeedsOfTheOtherFamilyAreNotContacted(t *testing.T) {
	m, err := New(Options{NodeName: "a", BindAddress: loopback, GossipKeys: [][]byte{[]byte("x")}, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.memberlist.Shutdown() })
	m.SetSeeds([]string{"2001:db8::1", "192.0.2.1", "[2001:db8::2]:7946"})
	if got := m.missingSeeds(); len(got) != 1 || got[0] != netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), m.ListenAddress().Port()).String() {
		t.Errorf("the seeds are %v", got)
	}
}
