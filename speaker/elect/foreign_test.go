package elect

import (
	"net/netip"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// TestStrangersShareASegment: speakers that never hear of each other, because one has another key, say, or is of another
// cluster, want the same addresses. One of them gets each, and another one when it dies.
func TestStrangersShareASegment(t *testing.T) {
	for seed := range int64(seeds) {
		w := newWorld(t, seed, 2+int(seed%3), 1+int(seed%5))
		w.gossip[w.names[0]] = 1 // from the beginning
		w.startAll()
		w.run(20*time.Second, w.one(0))
		holder := w.settle(time.Millisecond, "start")
		w.stop(holder)
		w.run(20*time.Second, w.one(0))
		w.settle(time.Millisecond, "the death of "+holder)
		w.addresses = append(w.addresses, netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("192.0.2.201"))
		w.bids() // all hear of a Service at once
		w.run(20*time.Second, w.one(0))
		w.settle(time.Millisecond, "new addresses")
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
}

// TestAMemberThatAnswersWithoutAClaim: the kernel of a node speaks for an address that another node holds, which that node
// cannot help. It is told, and the holder stays.
func TestAMemberThatAnswersWithoutAClaim(t *testing.T) {
	for seed := range int64(seeds) {
		w := newWorld(t, seed, 3, 1)
		w.startAll()
		holder := w.settle(6*time.Second, "start")
		taken := w.taken
		for i := range 5 {
			for _, n := range w.names {
				if n != holder {
					w.step(w.nodes[holder], Foreign{facts.ForeignClaim{Address: w.addresses[0], MAC: w.nodes[n].mac, Link: 1}})
				}
			}
			w.run(time.Second, w.one(0))
			if told := w.notes[NoteStray] > 0; told != (i > 0) {
				t.Fatalf("with seed %d, after %d claims it is told: %v", seed, i+1, told)
			}
		}
		if now := w.settle(time.Millisecond, "claims"); now != holder || w.taken != taken {
			t.Errorf("with seed %d the address moved from %s to %s", seed, holder, now)
		}
		if n := w.notes[NoteConflict]; n > 0 {
			t.Errorf("with seed %d a member was called a foreign host %d times", seed, n)
		}
	}
}

// TestANodeThatWasRemoved speaks for an address that it may not hold any more, and no member can tell it so.
func TestANodeThatWasRemoved(t *testing.T) {
	w := newWorld(t, 1, 4, 1)
	w.startAll()
	holder := w.settle(6*time.Second, "start")
	gone := w.names[0]
	if gone == holder {
		gone = w.names[1]
	}
	mac := w.nodes[gone].mac
	w.nodes[gone].able = false
	w.stop(gone)
	w.bids()
	w.run(10*time.Second, nil)
	w.step(w.nodes[holder], Foreign{facts.ForeignClaim{Address: w.addresses[0], MAC: mac, Link: 1}})
	if w.notes[NoteConflict] != 1 {
		t.Errorf("it is told %d times that another host claims the address, want once", w.notes[NoteConflict])
	}
	if now := w.settle(time.Second, "the claim"); now != holder {
		t.Errorf("the address moved from %s to %s", holder, now)
	}
}
