package elect

import (
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// captureFirstBeacon returns the first beacon that a run of a node sends to another one.
func captureFirstBeacon(t *testing.T, node string, nonce uint64, to string, at time.Time) []byte {
	t.Helper()
	m := NewMachine(node, nonce, DefaultTiming(), at)
	m.Step(at, MembersChanged{facts.MemberSet{Members: []facts.Member{{Name: node, RunNonce: nonce}, {Name: to, RunNonce: 9}}}})
	for _, e := range m.Step(at.Add(time.Second), TimePassed{}) {
		if s, ok := e.(SendMessage); ok && s.To == to && len(s.Payload) > 1 && s.Payload[1] == kindBeacon {
			return s.Payload
		}
	}
	t.Fatalf("%s sends no beacon", node)
	return nil
}

// TestBeaconOfFormerRunIsNoSignOfLife: whoever recorded the beacons of former runs of a dead node
// must not keep it alive.
func TestBeaconOfFormerRunIsNoSignOfLife(t *testing.T) {
	start := time.Unix(1e9, 0)
	former, present := captureFirstBeacon(t, "a", 1, "b", start), captureFirstBeacon(t, "a", 2, "b", start)
	b := NewMachine("b", 9, DefaultTiming(), start)
	b.Step(start, MembersChanged{facts.MemberSet{Members: []facts.Member{{Name: "a", RunNonce: 2}, {Name: "b", RunNonce: 9}}}}, MessageReceived{From: "a", Payload: present})
	heardAt := func() time.Time { return b.liveness.recordsByMember["a"].lastSignOfLifeAt }
	first := heardAt()
	for i := range 4 {
		at := start.Add(time.Duration(i+1) * 50 * time.Millisecond)
		for _, replayed := range [][]byte{former, present} {
			b.Step(at, MessageReceived{From: "a", Payload: replayed})
		}
		if heardAt() != first {
			t.Fatalf("a replayed beacon counts as a sign of life after %s", at.Sub(start))
		}
	}
}
