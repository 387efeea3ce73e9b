package members

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// testAwaitTimeout bounds each wait of these tests.
const testAwaitTimeout = time.Minute

// startMember starts a member on loopback that knows the addresses of others.
func startMember(t *testing.T, name string, key string, seeds ...string) (*Members, context.CancelFunc) {
	t.Helper()
	m, err := New(Options{
		NodeName: name, RunNonce: uint64(name[0]), BindAddress: netip.MustParseAddr("127.0.0.1"), GossipKeys: [][]byte{[]byte(key)},
		Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	m.SetFullExchangeState([]byte("state of " + name))
	m.PublishOwnNode(facts.PublishedNode{LinkMACs: []facts.MAC{{2, 0, 0, 0, 0, name[0]}}})
	m.SetSeeds(seeds)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return m, stop
}

// awaitMemberSet reads sets until one satisfies the check.
func awaitMemberSet(t *testing.T, m *Members, what string, check func(facts.MemberSet) bool) {
	t.Helper()
	deadline := time.After(testAwaitTimeout)
	for {
		select {
		case set := <-m.LiveMemberUpdates():
			if check(set) {
				return
			}
		case <-deadline:
			t.Fatalf("waiting for %s", what)
		}
	}
}

func TestMembersJoinAndExchangeStateAndMessages(t *testing.T) {
	a, _ := startMember(t, "a", "a key that all of them have")
	seed := a.ListenAddress().String()
	b, _ := startMember(t, "b", "a key that all of them have", seed)
	c, stopC := startMember(t, "c", "a key that all of them have", seed)
	all := func(set facts.MemberSet) bool {
		for _, n := range []string{"a", "b", "c"} {
			if !set.HasMember(n) {
				return false
			}
		}
		for _, m := range set.Members {
			if m.RunNonce != uint64(m.Name[0]) || len(m.LinkMACs) != 1 || m.LinkMACs[0][5] != m.Name[0] {
				return false
			}
		}
		return true
	}
	for _, m := range []*Members{a, b, c} {
		awaitMemberSet(t, m, "all three with their nonces and Ethernet addresses", all)
	}

	select {
	case state := <-b.ReceivedFullStates():
		if string(state) != "state of a" && string(state) != "state of c" {
			t.Errorf("b got the state %q", state)
		}
	case <-time.After(testAwaitTimeout):
		t.Error("b got no state when it joined")
	}

	b.SendUrgentMessage("c", []byte("hello"))
	select {
	case msg := <-c.ReceivedUrgentMessages():
		if msg.SenderName != "b" || string(msg.Payload) != "hello" {
			t.Errorf("c got %q from %q, want hello from b", msg.Payload, msg.SenderName)
		}
	case <-time.After(testAwaitTimeout):
		t.Error("the message did not arrive")
	}

	stopC()
	for _, m := range []*Members{a, b} {
		awaitMemberSet(t, m, "c to have left", func(set facts.MemberSet) bool {
			if len(set.VanishedAtByMember) != 0 {
				t.Errorf("c left in order and counts as vanished: %v", set.VanishedAtByMember)
			}
			return !set.HasMember("c") && set.HasMember("a") && set.HasMember("b")
		})
	}
}

func TestASpeakerWithAnotherKeyIsNoMember(t *testing.T) {
	a, _ := startMember(t, "a", "the right key of 16 bytes or more")
	b, _ := startMember(t, "b", "another key of 16 bytes or more", a.ListenAddress().String())
	b.ContactMissingSeeds()
	c, _ := startMember(t, "c", "the right key of 16 bytes or more", a.ListenAddress().String())
	awaitMemberSet(t, c, "a and c to be together", func(set facts.MemberSet) bool { return set.HasMember("a") && set.HasMember("c") })
	awaitMemberSet(t, a, "a to know c and not b", func(set facts.MemberSet) bool { return set.HasMember("c") && !set.HasMember("b") })
}

func TestAPortInUseIsAnError(t *testing.T) {
	a, _ := startMember(t, "a", "any key of 16 bytes or more")
	_, err := New(Options{
		NodeName: "b", BindAddress: netip.MustParseAddr("127.0.0.1"), BindPort: int(a.ListenAddress().Port()),
		GossipKeys: [][]byte{[]byte("x")}, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	if err == nil {
		t.Fatal("two speakers share a port, want an error")
	}
}

func TestDroppedMessagesAreCounted(t *testing.T) {
	m, err := New(Options{NodeName: "a", BindAddress: netip.MustParseAddr("127.0.0.1"), GossipKeys: [][]byte{[]byte("x")}, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.memberlist.Shutdown() }()
	const lost = 3
	for range cap(m.outgoingUrgentMessages.C()) + lost {
		m.SendUrgentMessage("b", nil) // nothing reads the queue before Run
	}
	expected := `
# HELP gantry_gossip_dropped_total Messages and states that were lost because a queue was full: messages to others (sent), claims for all others (claims), messages of others (received), and full states of others (states).
# TYPE gantry_gossip_dropped_total counter
gantry_gossip_dropped_total{queue="claims"} 0
gantry_gossip_dropped_total{queue="received"} 0
gantry_gossip_dropped_total{queue="sent"} 3
gantry_gossip_dropped_total{queue="states"} 0
`
	if err := testutil.CollectAndCompare(m, strings.NewReader(expected)); err != nil {
		t.Error(err)
	}
}

// TestSpeakersWithUnknownGossipKeyAreListed has two speakers on addresses of their own, as on two
// nodes: each knows that the other one has another key, until it has the same.
func TestSpeakersWithUnknownGossipKeyAreListed(t *testing.T) {
	first, second := []byte("the first key, 16 bytes or more"), []byte("the second key, 16 bytes or more")
	addresses := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")}
	var all []*Members
	for i, key := range [][]byte{first, second} {
		m, err := New(Options{
			NodeName: []string{"a", "b"}[i], RunNonce: uint64(i + 1), BindAddress: addresses[i], GossipKeys: [][]byte{key}, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	a, b := all[0], all[1]
	a.SetSeeds([]string{b.ListenAddress().String()})
	b.SetSeeds([]string{a.ListenAddress().String()})
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, m := range all {
		running.Go(func() {
			if err := m.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	defer running.Wait()
	defer stop()
	awaitOtherKeys := func(m *Members, want ...netip.Addr) {
		t.Helper()
		for deadline := time.Now().Add(testAwaitTimeout); ; time.Sleep(20 * time.Millisecond) {
			got := m.AddressesWithUnknownGossipKey()
			if slices.Equal(got, want) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s finds another key at %v, want %v", m.options.NodeName, got, want)
			}
		}
	}
	awaitOtherKeys(a, addresses[1])
	awaitOtherKeys(b, addresses[0])
	if err := b.SetGossipKeys([][]byte{first}); err != nil {
		t.Fatal(err)
	}
	awaitMemberSet(t, a, "b", func(set facts.MemberSet) bool { return set.HasMember("b") })
	awaitOtherKeys(a)
	awaitOtherKeys(b)
}
