package elect

import (
	"net/netip"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// TestSpeakersWithoutCommonGossipNeverAnswerTogether: speakers on one segment want the same
// addresses and never exchange a message, because they have different keys or belong to different
// clusters. Each address has one holder, and another one after that dies.
func TestSpeakersWithoutCommonGossipNeverAnswerTogether(t *testing.T) {
	for seed := range seedCountPerTest() {
		w := newClusterSimulation(t, seed, 2+int(seed%3), 1+int(seed%5))
		w.gossipPartitionByNode[w.nodeNames[0]] = 1 // from the beginning
		w.startAllSpeakers()
		w.runSimulationFor(20*time.Second, w.newTwoHoldersCheck(0))
		holder := w.runThenRequireOneHolderEach(time.Millisecond, "start")
		w.killSpeaker(holder)
		w.runSimulationFor(20*time.Second, w.newTwoHoldersCheck(0))
		w.runThenRequireOneHolderEach(time.Millisecond, "the death of "+holder)
		w.addresses = append(w.addresses, netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("192.0.2.201"))
		w.deliverBids() // all learn of a Service at once
		w.runSimulationFor(20*time.Second, w.newTwoHoldersCheck(0))
		w.runThenRequireOneHolderEach(time.Millisecond, "new addresses")
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// TestAMemberThatAnswersWithoutAClaimIsReported: the kernel of a node answers for an address that
// another node holds. The holder reports the node and stays the holder.
func TestAMemberThatAnswersWithoutAClaimIsReported(t *testing.T) {
	for seed := range seedCountPerTest() {
		w := newClusterSimulation(t, seed, 3, 1)
		w.startAllSpeakers()
		holder := w.runThenRequireOneHolderEach(6*time.Second, "start")
		taken := w.addressTakeCount
		for i := range 5 {
			for _, n := range w.nodeNames {
				if n != holder {
					c := facts.Conflict{Address: w.addresses[0], ForeignMAC: w.nodesByName[n].mac, LinkIndex: 1}
					w.stepNode(w.nodesByName[holder], ConflictDetected{c})
				}
			}
			w.runSimulationFor(time.Second, w.newTwoHoldersCheck(0))
			if reported := w.eventCountByKind[EventAnswerWithoutClaim] > 0; reported != (i > 0) {
				t.Fatalf("seed %d: after %d answers the node is reported: %v", seed, i+1, reported)
			}
		}
		if now := w.runThenRequireOneHolderEach(time.Millisecond, "claims"); now != holder || w.addressTakeCount != taken {
			t.Errorf("seed %d: the address moved from %s to %s", seed, holder, now)
		}
		if n := w.eventCountByKind[EventForeignHostAnswers]; n > 0 {
			t.Errorf("seed %d: a member is reported as a foreign host %d times", seed, n)
		}
	}
}

// TestARemovedNodeThatStillAnswersIsReported: a removed node answers for an address. The holder
// cannot reach it by gossip, reports it and stays the holder.
func TestARemovedNodeThatStillAnswersIsReported(t *testing.T) {
	w := newClusterSimulation(t, 1, 4, 1)
	w.startAllSpeakers()
	holder := w.runThenRequireOneHolderEach(6*time.Second, "start")
	gone := w.nodeNames[0]
	if gone == holder {
		gone = w.nodeNames[1]
	}
	mac := w.nodesByName[gone].mac
	w.nodesByName[gone].hasServingEndpoint = false
	w.killSpeaker(gone)
	w.deliverBids()
	w.runSimulationFor(10*time.Second, nil)
	w.removedHostMAC = mac
	w.stepNode(w.nodesByName[holder], ConflictDetected{facts.Conflict{Address: w.addresses[0], ForeignMAC: mac, LinkIndex: 1}})
	w.runSimulationFor(100*time.Millisecond, nil) // the holder asks the host alone
	if w.eventCountByKind[EventForeignHostAnswers] != 1 {
		t.Errorf("the other host is reported %d times, want once", w.eventCountByKind[EventForeignHostAnswers])
	}
	if now := w.runThenRequireOneHolderEach(time.Second, "the claim"); now != holder {
		t.Errorf("the address moved from %s to %s", holder, now)
	}
}

// TestAHigherClaimWinsOnlyIfItsHolderLives: a claim above the holder's own arrives before its
// holder is a member.
func TestAHigherClaimWinsOnlyIfItsHolderLives(t *testing.T) {
	for name, lives := range map[string]bool{"its holder lives": true, "its holder is gone": false} {
		t.Run(name, func(t *testing.T) {
			w := newClusterSimulation(t, 1, 3, 1)
			w.startAllSpeakers()
			holder := w.runThenRequireOneHolderEach(6*time.Second, "start")
			w.gossipPartitionByNode["other"] = 1
			w.nodesByName["other"] = &simNode{name: "other", mac: facts.MAC{2, 0, 0, 0, 1, 1}, hasServingEndpoint: true}
			w.nodeNames = append(w.nodeNames, "other")
			w.startProcessOutsideGossip("other")
			w.deliverBids()
			w.deliverMembers()
			w.runSimulationFor(2*time.Second, nil) // its probe is answered by the holder
			claim := Claim{Address: w.addresses[0], Holder: "other", Nonce: w.nodesByName["other"].nonce, Epoch: 7}
			state := appendClaims(encodeMessageHeader(NewestMessageFormat, kindClaims), []Claim{claim})
			w.stepNode(w.nodesByName[holder], RemoteStateReceived{state})
			w.runSimulationFor(orphanClaimHolderTimeout/2, w.newTwoHoldersCheck(0))
			if !lives {
				w.nodesByName["other"].machine = nil
				w.runSimulationFor(orphanClaimHolderTimeout, w.newTwoHoldersCheck(0))
				if now := w.runThenRequireOneHolderEach(time.Millisecond, "the end of the timeout"); now != holder {
					t.Errorf("%s holds the address, want %s to keep it", now, holder)
				}
				if c := w.nodesByName[holder].machine.addressesByIP[w.addresses[0]].highestKnownClaim; c.Epoch <= claim.Epoch {
					t.Errorf("the holder's claim has epoch %d, want one above %d", c.Epoch, claim.Epoch)
				}
				return
			}
			m := w.nodesByName["other"].machine
			m.outbox.beginStep()
			m.takeAddress(m.ensureAddressState(claim.Address), claim.Epoch, reasonUnheld)
			for _, e := range m.outbox.orderedEffects(m.otherMembers) {
				w.performEffect(w.nodesByName["other"], e)
			}
			w.gossipPartitionByNode["other"] = 0
			w.deliverMembers()
			if now := w.runThenRequireOneHolderEach(100*time.Millisecond, "the end of the cut"); now != "other" {
				t.Errorf("%s holds the address, want the node with the higher claim", now)
			}
		})
	}
}
