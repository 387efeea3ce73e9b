package elect

import (
	"encoding/binary"
	"testing"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// encodeSuspicionMessage is the message of a member that hears nothing from a node.
func encodeSuspicionMessage(node string, nonce uint64, said byte) []byte {
	return append(binary.AppendUvarint(appendString(encodeMessageHeader(NewestMessageFormat, kindSuspicion), node), nonce), said, 100, 0)
}

func TestTwoWitnessesDeclareANodeDead(t *testing.T) {
	all := []facts.Member{{Name: "a", RunNonce: 1}, {Name: "b", RunNonce: 2}, {Name: "c", RunNonce: 3}, {Name: "d", RunNonce: 4}}
	tests := map[string]struct {
		nonces [2]uint64 // of d, as reported by b and c
		after  []facts.Member
		dead   bool
	}{
		"two witnesses agree":                         {[2]uint64{4, 4}, all, true},
		"a witness that reports an earlier run":       {[2]uint64{4, 9}, all, false},
		"witnesses that left cannot keep a node dead": {[2]uint64{4, 4}, []facts.Member{all[0], all[3]}, false},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			m := NewMachine("a", 1, DefaultTiming(), testStart)
			m.Step(testStart, MembersChanged{facts.MemberSet{Members: all, HasExchangedFullState: true}})
			for i, witness := range []string{"b", "c"} {
				report := encodeSuspicionMessage("d", c.nonces[i], suspicionFromUncheckedWitness)
				m.Step(testStart, MessageReceived{From: witness, Payload: report})
			}
			m.Step(testStart, MembersChanged{facts.MemberSet{Members: c.after, HasExchangedFullState: true}})
			if got := !m.isAlive("d"); got != c.dead {
				t.Errorf("the node is declared dead: %v, want %v", got, c.dead)
			}
		})
	}
}

// TestOneWitnessIsEnoughWhenTheOtherWatcherIsDead: the witness must also have an answer from a
// gateway or another node.
func TestOneWitnessIsEnoughWhenTheOtherWatcherIsDead(t *testing.T) {
	var all []facts.Member
	for i, n := range []string{"a", "b", "c", "d", "e", "f"} {
		all = append(all, facts.Member{Name: n, RunNonce: uint64(i + 1)})
	}
	for name, c := range map[string]struct {
		said            byte
		otherDies, dead bool
	}{
		"the other watcher hears the node":                        {suspicionFromConnectedWitness, false, false},
		"the witness may be cut off":                              {suspicionFromUncheckedWitness, true, false},
		"the witness has an answer and the other watcher is dead": {suspicionFromConnectedWitness, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			m := NewMachine("a", 1, DefaultTiming(), testStart)
			m.Step(testStart, MembersChanged{facts.MemberSet{Members: all, HasExchangedFullState: true}})
			// d is watched by the other two, and none of them is this node
			var d, first, second string
			for _, n := range m.watchRing {
				if w := m.ringNeighbours(n, watchersPerMember); n != "a" && w[0] != "a" && w[1] != "a" {
					d, first, second = n, w[0], w[1]
				}
			}
			say := func(from, of string, said byte) {
				report := encodeSuspicionMessage(of, m.membersByName[of].RunNonce, said)
				m.Step(testStart, MessageReceived{From: from, Payload: report})
			}
			if c.otherDies {
				for _, w := range all[1:] {
					if w.Name != second {
						say(w.Name, second, suspicionFromUncheckedWitness)
					}
				}
			}
			say(first, d, c.said)
			if got := !m.isAlive(d); got != c.dead {
				t.Errorf("the node is declared dead: %v, want %v", got, c.dead)
			}
		})
	}
}
