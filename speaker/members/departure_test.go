package members

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/gantry-lb/gantry/speaker/facts"
)

func TestMemberThatGoesWithoutAWordHasVanished(t *testing.T) {
	now := time.Unix(1000, 0)
	m, err := New(Options{
		NodeName: "a", RunNonce: 1, BindAddress: netip.MustParseAddr("127.0.0.1"), GossipKeys: [][]byte{[]byte("any key of 16 bytes or more")},
		Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.memberlist.Shutdown() }()
	events, messages := (*eventDelegate)(m), (*messageDelegate)(m)
	for name, tc := range map[string]struct {
		version         byte
		departures      []departure
		laterDepartures []departure // come after it is gone
		wantVanished    bool
	}{
		"it says nothing":                        {departureVersion, nil, nil, true},
		"it says that it leaves":                 {departureVersion, []departure{{nonce: 2, sender: "b"}}, nil, false},
		"it said so, which comes late":           {departureVersion, nil, []departure{{nonce: 2, sender: "b"}}, false},
		"its earlier run left":                   {departureVersion, []departure{{nonce: 1, sender: "b"}}, nil, true},
		"its earlier run left, which comes late": {departureVersion, nil, []departure{{nonce: 1, sender: "b"}}, true},
		"another member leaves":                  {departureVersion, []departure{{nonce: 2, sender: "c"}}, nil, true},
		"its version does not say that it does":  {pathCheckVersion, nil, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			node := &memberlist.Node{Name: "b", Meta: append(EncodeMetadata(2, facts.PublishedNode{LinkMACs: []facts.MAC{{2}}}), tc.version)}
			events.NotifyJoin(node)
			for _, d := range tc.departures {
				messages.NotifyMsg(d.encode())
			}
			events.NotifyLeave(node)
			if set := <-m.LiveMemberUpdates(); len(set.VanishedAtByMember) != 0 {
				t.Errorf("it may have said so, and has vanished: %v", set.VanishedAtByMember)
			}
			now = now.Add(departureTimeout)
			for _, d := range tc.laterDepartures {
				messages.NotifyMsg(d.encode())
			}
			events.NotifyUpdate(&memberlist.Node{Name: "c"})
			set := <-m.LiveMemberUpdates()
			if _, vanished := set.VanishedAtByMember["b"]; vanished != tc.wantVanished || set.HasMember("b") {
				t.Errorf("vanished: %t, want %t; it is a member: %t", vanished, tc.wantVanished, set.HasMember("b"))
			}
			events.NotifyJoin(node)
			if set := <-m.LiveMemberUpdates(); len(set.VanishedAtByMember) != 0 {
				t.Errorf("it is back, and has vanished: %v", set.VanishedAtByMember)
			}
			events.NotifyLeave(node)
			now = now.Add(2 * forgetVanishedMemberDelay)
			events.NotifyUpdate(&memberlist.Node{Name: "c"})
			if set := <-m.LiveMemberUpdates(); len(set.VanishedAtByMember) != 0 {
				t.Errorf("it vanished long ago, and is still listed: %v", set.VanishedAtByMember)
			}
		})
	}
}

// TestDeadMemberHasVanished: memberlist removes a member that dies, and the set says that it
// vanished.
func TestDeadMemberHasVanished(t *testing.T) {
	a, _ := startMember(t, "a", "a key that all of them have")
	dead, err := New(Options{
		NodeName: "b", RunNonce: 2, BindAddress: netip.MustParseAddr("127.0.0.1"), GossipKeys: [][]byte{[]byte("a key that all of them have")},
		Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dead.memberlist.Join([]string{a.ListenAddress().String()}); err != nil {
		t.Error(err)
	}
	awaitMemberSet(t, a, "b to be a member", func(set facts.MemberSet) bool { return set.HasMember("b") })
	if err := dead.memberlist.Shutdown(); err != nil {
		t.Fatal(err)
	}
	awaitMemberSet(t, a, "b to have vanished", func(set facts.MemberSet) bool {
		_, vanished := set.VanishedAtByMember["b"]
		return vanished && !set.HasMember("b")
	})
}
