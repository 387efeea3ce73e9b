package elect

import (
	"encoding/binary"
	"testing"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// suspicionMessage is the message of a member that heard nothing from a node.
func suspicionMessage(node string, nonce uint64, said byte) []byte {
	return append(binary.AppendUvarint(appendString(messageHeader(kindSuspect), node), nonce), said, 100)
}

func TestTwoWitnessesDeclareANodeDead(t *testing.T) {
	all := []facts.Member{{Name: "a", Nonce: 1}, {Name: "b", Nonce: 2}, {Name: "c", Nonce: 3}, {Name: "d", Nonce: 4}}
	tests := map[string]struct {
		nonces [2]uint64 // of d, as b and c witness its silence
		after  []facts.Member
		dead   bool
	}{
		"two witnesses agree":                         {[2]uint64{4, 4}, all, true},
		"a witness that speaks of a former life":      {[2]uint64{4, 9}, all, false},
		"witnesses that left cannot keep a node dead": {[2]uint64{4, 4}, []facts.Member{all[0], all[3]}, false},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			m := New("a", 1, DefaultTiming(), testStart)
			m.Step(testStart, MembersChanged{facts.MemberSet{Members: all, Synced: true}})
			m.Step(testStart, MessageReceived{From: "b", Payload: suspicionMessage("d", c.nonces[0], suspicionUnverified)})
			m.Step(testStart, MessageReceived{From: "c", Payload: suspicionMessage("d", c.nonces[1], suspicionUnverified)})
			m.Step(testStart, MembersChanged{facts.MemberSet{Members: c.after, Synced: true}})
			if got := !m.isAlive("d"); got != c.dead {
				t.Errorf("dead: %v, want %v", got, c.dead)
			}
		})
	}
}

// TestOneWitnessIsEnoughWhenTheOtherWatcherIsDead: the word of one counts when a gateway answers it, and the node's other watcher is dead.
func TestOneWitnessIsEnoughWhenTheOtherWatcherIsDead(t *testing.T) {
	var all []facts.Member
	for i, n := range []string{"a", "b", "c", "d", "e", "f"} {
		all = append(all, facts.Member{Name: n, Nonce: uint64(i + 1)})
	}
	for name, c := range map[string]struct {
		said            byte
		otherDies, dead bool
	}{
		"the other watcher hears the node":                   {suspicionVerified, false, false},
		"the witness may be cut off":                         {suspicionUnverified, true, false},
		"a gateway answers it and the other watcher is dead": {suspicionVerified, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			m := New("a", 1, DefaultTiming(), testStart)
			m.Step(testStart, MembersChanged{facts.MemberSet{Members: all, Synced: true}})
			var d, first, second string // d is watched by the other two, and none of them is this node
			for _, n := range m.watchRing {
				if w := m.ringNeighbours(n, watcherCount); n != "a" && w[0] != "a" && w[1] != "a" {
					d, first, second = n, w[0], w[1]
				}
			}
			say := func(from, of string, said byte) {
				m.Step(testStart, MessageReceived{From: from, Payload: suspicionMessage(of, m.membersByName[of].Nonce, said)})
			}
			if c.otherDies {
				for _, w := range all[1:] {
					if w.Name != second {
						say(w.Name, second, suspicionUnverified)
					}
				}
			}
			say(first, d, c.said)
			if got := !m.isAlive(d); got != c.dead {
				t.Errorf("dead: %v, want %v", got, c.dead)
			}
		})
	}
}
