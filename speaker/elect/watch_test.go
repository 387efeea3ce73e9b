package elect

import (
	"encoding/binary"
	"testing"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// suspicion is the message of a member that heard nothing from a node.
func suspicion(node string, nonce uint64) []byte {
	return append(appendBool(binary.AppendUvarint(appendString(header(kindSuspect), node), nonce), true), 100)
}

func TestWitnessesOfADeath(t *testing.T) {
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
			m := New("a", 1, DefaultTiming(), epoch0)
			m.Step(epoch0, Members{facts.MemberSet{Members: all, Synced: true}})
			m.Step(epoch0, Received{From: "b", Payload: suspicion("d", c.nonces[0])})
			m.Step(epoch0, Received{From: "c", Payload: suspicion("d", c.nonces[1])})
			m.Step(epoch0, Members{facts.MemberSet{Members: c.after, Synced: true}})
			if got := !m.alive("d"); got != c.dead {
				t.Errorf("dead: %v, want %v", got, c.dead)
			}
		})
	}
}
