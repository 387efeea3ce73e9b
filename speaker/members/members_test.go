package members

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// testAwaitTimeout bounds each wait of these tests.
const testAwaitTimeout = 20 * time.Second

// startMember starts a member on loopback that knows the addresses of others.
func startMember(t *testing.T, name string, key string, seeds ...string) (*Members, context.CancelFunc) {
	t.Helper()
	m, err := New(Options{
		NodeName: name, RunNonce: uint64(name[0]), BindAddress: netip.MustParseAddr("127.0.0.1"), GossipKey: []byte(key),
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	m.SetFullExchangeState([]byte("state of " + name))
	m.PublishOwnMACs([]facts.MAC{{2, 0, 0, 0, 0, name[0]}})
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

// awaitMembers reads sets until one satisfies the check.
func awaitMembers(t *testing.T, m *Members, what string, check func(facts.MemberSet) bool) {
	t.Helper()
	deadline := time.After(testAwaitTimeout)
	for {
		select {
		case set := <-m.MemberSets():
			if check(set) {
				return
			}
		case <-deadline:
			t.Fatalf("waiting for %s", what)
		}
	}
}

func TestSpeakersFindEachOtherAndTalk(t *testing.T) {
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
		awaitMembers(t, m, "all three with their nonces and Ethernet addresses", all)
	}

	select {
	case state := <-b.ReceivedFullStates():
		if string(state) != "state of a" && string(state) != "state of c" {
			t.Errorf("b got the state %q", state)
		}
	case <-time.After(testAwaitTimeout):
		t.Error("b got no state when it joined")
	}

	b.SendMessage("c", []byte("hello"))
	select {
	case msg := <-c.ReceivedMessages():
		if msg.SenderName != "b" || string(msg.Payload) != "hello" {
			t.Errorf("c got %q from %q, want hello from b", msg.Payload, msg.SenderName)
		}
	case <-time.After(testAwaitTimeout):
		t.Error("the message did not arrive")
	}

	stopC()
	awaitMembers(t, a, "c to have left", func(set facts.MemberSet) bool { return !set.HasMember("c") && set.HasMember("b") })
}

func TestASpeakerWithAnotherKeyIsNoMember(t *testing.T) {
	a, _ := startMember(t, "a", "the right key of 16 bytes or more")
	b, _ := startMember(t, "b", "another key of 16 bytes or more", a.ListenAddress().String())
	b.ContactMissingSeeds()
	c, _ := startMember(t, "c", "the right key of 16 bytes or more", a.ListenAddress().String())
	awaitMembers(t, c, "a and c to be together", func(set facts.MemberSet) bool { return set.HasMember("a") && set.HasMember("c") })
	awaitMembers(t, a, "a to know c and not b", func(set facts.MemberSet) bool { return set.HasMember("c") && !set.HasMember("b") })
}

func TestAPortInUseIsAnError(t *testing.T) {
	a, _ := startMember(t, "a", "any key of 16 bytes or more")
	_, err := New(Options{
		NodeName: "b", BindAddress: netip.MustParseAddr("127.0.0.1"), BindPort: int(a.ListenAddress().Port()),
		GossipKey: []byte("x"), Log: slog.New(slog.DiscardHandler),
	})
	if err == nil {
		t.Fatal("two speakers share a port, want an error")
	}
}
