package elect

import (
	"net/netip"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// answerAllAddressesWithMACOf lets the network answer for all addresses with the Ethernet address
// of a node.
func (w *clusterSimulation) answerAllAddressesWithMACOf(node string) {
	w.fabricAnswerMACByAddress = map[netip.Addr]facts.MAC{}
	for _, a := range w.addresses {
		w.fabricAnswerMACByAddress[a] = w.nodesByName[node].mac
	}
}

// The network goes on to answer for a dead holder.
func TestProxyARPForDeadHolderPreventsNoTakeover(t *testing.T) {
	for seed := range int64(5) {
		w := newClusterSimulation(t, seed, 5, 10)
		w.startAllSpeakers()
		old := w.runThenRequireOneHolderEach(6*time.Second, "start")
		w.answerAllAddressesWithMACOf(old)
		w.killSpeaker(old)
		w.runThenRequireOneHolderEach(700*time.Millisecond, "the death of "+old)
		if w.eventCountByKind[EventAnswerWithoutClaim] == 0 {
			t.Error("nobody says that the network answers for the dead node")
		}
		w.runThenRequireOneHolderEach(20*time.Second, "the gossip gave it up")
	}
}

// The network answers with the Ethernet address of a dead node, and the living holder sees that.
func TestHolderKeepsAddressIfNetworkAnswersForDeadNode(t *testing.T) {
	for seed := range int64(5) {
		w := newClusterSimulation(t, seed, 5, 10)
		w.startAllSpeakers()
		holder := w.runThenRequireOneHolderEach(6*time.Second, "start")
		dead := w.nodeNames[0]
		if dead == holder {
			dead = w.nodeNames[1]
		}
		w.killSpeaker(dead)
		w.runSimulationFor(time.Second, nil)
		w.answerAllAddressesWithMACOf(dead)
		w.addressTakeCount = 0
		for range 40 {
			for _, n := range w.nodesByName {
				for a := range n.heldAddresses {
					w.stepNode(n, ConflictDetected{facts.Conflict{Address: a, ForeignMAC: w.nodesByName[dead].mac, LinkIndex: 1}})
				}
			}
			w.runSimulationFor(500*time.Millisecond, nil)
		}
		w.runThenRequireOneHolderEach(time.Millisecond, "20 s of answers")
		if w.addressTakeCount > 0 {
			t.Errorf("%d addresses moved", w.addressTakeCount)
		}
	}
}

// A host outside of the cluster answers for an address that no node holds. With Warn it matters
// whether a node has held the address before.
func TestWireCheckModeDecidesOnForeignHost(t *testing.T) {
	for name, c := range map[string]struct {
		check   intent.WireCheckMode
		wasHeld bool
		taken   bool
		events  int
	}{
		"Enforce":                               {intent.WireCheckEnforce, false, false, 1},
		"Enforce, an address that was held":     {intent.WireCheckEnforce, true, false, 1},
		"Warn, an address that nobody has held": {intent.WireCheckWarn, false, false, 1},
		"Warn, an address that was held":        {intent.WireCheckWarn, true, true, 1},
		"Off":                                   {intent.WireCheckOff, false, true, 0},
		"Off, an address that was held":         {intent.WireCheckOff, true, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := NewMachine("a", 1, DefaultTiming(), testStart)
			ip := netip.MustParseAddr("192.0.2.1")
			bid := intent.Bid{Address: ip, OwnLinkIndexes: []int{1}, Candidates: intent.NewCandidates(map[string]int{"a": 0}), WireCheck: c.check}
			inputs, events, taken := []Input{BidsChanged{Bids: []intent.Bid{bid}}}, 0, false
			if c.wasHeld {
				inputs = append(inputs, ClaimsRestored{[]Claim{{Address: ip, Holder: "gone", Nonce: 9, Epoch: 4}}})
			}
			for now := testStart; now.Before(testStart.Add(4 * time.Second)); now = now.Add(50 * time.Millisecond) {
				effects := m.Step(now, append(inputs, TimePassed{})...)
				inputs = nil
				for _, e := range effects {
					switch e := e.(type) {
					case AcquireProbe:
						inputs = append(inputs, ProbeFinished{facts.ProbeResult{ID: e.ID, Address: ip, AnsweringMACs: []facts.MAC{{2, 0, 0, 0, 0, 0x99}}}})
					case HoldAddress:
						taken = true
					case DropAddress:
						taken = false
					case Event:
						if e.IsAnswerOfAnotherHost() {
							events++
						}
					}
				}
			}
			if taken != c.taken || events != c.events {
				t.Errorf("the address is taken: %v, with %d events about the host; want %v and %d", taken, events, c.taken, c.events)
			}
		})
	}
}
