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

// TestAClaimOfWhoSeemsGone is higher than the holder's, and comes before its own holder is a member again, or never is.
func TestAClaimOfWhoSeemsGone(t *testing.T) {
	for name, lives := range map[string]bool{"it lives": true, "it is gone": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1, 3, 1)
			w.startAll()
			holder := w.settle(6*time.Second, "start")
			w.gossip["other"] = 1
			w.nodes["other"] = &simNode{name: "other", mac: facts.MAC{2, 0, 0, 0, 1, 1}, able: true}
			w.names = append(w.names, "other")
			w.on("other")
			w.bids()
			w.members()
			w.run(2*time.Second, nil) // it asks the wire, where the holder answers
			claim := Claim{Address: w.addresses[0], Holder: "other", Nonce: w.nodes["other"].nonce, Epoch: 7}
			w.step(w.nodes[holder], RemoteState{appendClaims(header(kindClaims), []Claim{claim})})
			w.run(hearsayTime/2, w.one(0))
			if !lives {
				w.nodes["other"].m = nil
				w.run(hearsayTime, w.one(0))
				if now := w.settle(time.Millisecond, "the end of the rumour"); now != holder {
					t.Errorf("%s holds the address, want %s to go on", now, holder)
				}
				if c := w.nodes[holder].m.addresses[w.addresses[0]].claim; c.Epoch <= claim.Epoch {
					t.Errorf("the holder's claim has epoch %d, which is not above %d", c.Epoch, claim.Epoch)
				}
				return
			}
			m := w.nodes["other"].m
			m.out = turn{}
			m.take(m.at(claim.Address), claim.Epoch, reasonUnheld)
			for _, e := range m.finish() {
				w.perform(w.nodes["other"], e)
			}
			w.gossip["other"] = 0
			w.members()
			if now := w.settle(100*time.Millisecond, "the cut is over"); now != "other" {
				t.Errorf("%s holds the address, want the one whose claim is higher", now)
			}
		})
	}
}
