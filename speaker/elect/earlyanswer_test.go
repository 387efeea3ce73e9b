package elect

import (
	"net/netip"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// longestProbe is how long an acquire probe takes that nobody answers.
const longestProbe = 60 * time.Millisecond

// firstAnswerDelays adds addresses that nobody has held, and returns how long each of them is
// without an answer.
func (w *clusterSimulation) firstAnswerDelays(fresh []netip.Addr, check func()) map[netip.Addr]time.Duration {
	w.addresses = append(w.addresses, fresh...)
	begun, delays := w.now, map[netip.Addr]time.Duration{}
	w.deliverBids() // to all nodes at once
	observe := func() {
		check()
		for _, a := range fresh {
			if _, known := delays[a]; !known && len(w.answeringNodes(a)) > 0 {
				delays[a] = w.now.Sub(begun)
			}
		}
	}
	observe()
	w.runSimulationFor(time.Second, observe)
	return delays
}

// With wireCheck Warn and Off the first candidate answers for a new address at once. With Enforce
// it asks first. In no case two nodes answer.
func TestNewAddressIsAnsweredEarlyUnlessEnforced(t *testing.T) {
	for name, c := range map[string]struct {
		check   intent.WireCheckMode
		isEarly bool
	}{"Enforce": {intent.WireCheckEnforce, false}, "Warn": {intent.WireCheckWarn, true}, "Off": {intent.WireCheckOff, true}} {
		t.Run(name, func(t *testing.T) {
			for seed := range seedCountPerTest() {
				w := newClusterSimulation(t, seed, 3+int(seed%4), 3)
				w.wireCheck, w.addressesPerService = c.check, []int{0, 1, 3}[seed%3]
				w.startAllSpeakers()
				w.runThenRequireOneHolderEach(6*time.Second, "start")
				fresh := []netip.Addr{netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("192.0.2.201"), netip.MustParseAddr("192.0.2.202")}
				delays := w.firstAnswerDelays(fresh, w.newTwoHoldersCheck(0))
				for _, a := range fresh {
					d, answered := delays[a]
					if !answered || (d < longestProbe) != c.isEarly || d > 2*longestProbe {
						t.Fatalf("seed %d: %s has its first answer after %v (%v)", seed, a, d, answered)
					}
				}
				w.runThenRequireOneHolderEach(time.Millisecond, "the new addresses")
			}
		})
	}
}

// foreignMACForTest is the Ethernet address of a host that runs no speaker.
var foreignMACForTest = facts.MAC{2, 0, 0, 0, 0, 0x99}

// A host that runs no speaker uses the new address. The node that answered early leaves it to that
// host, says which host it is, and neither claims nor announces the address.
func TestEarlyAnswerYieldsToForeignHost(t *testing.T) {
	for seed := range seedCountPerTest() {
		w := newClusterSimulation(t, seed, 3, 3)
		w.wireCheck = intent.WireCheckWarn
		w.startAllSpeakers()
		w.runThenRequireOneHolderEach(6*time.Second, "start")
		used := netip.MustParseAddr("192.0.2.200")
		w.fabricAnswerMACByAddress = map[netip.Addr]facts.MAC{used: foreignMACForTest}
		var answered, lastAnswered time.Time
		delays := w.firstAnswerDelays([]netip.Addr{used}, func() {
			if len(w.answeringNodes(used)) == 0 {
				return
			}
			if lastAnswered = w.now; answered.IsZero() {
				answered = w.now
			}
		})
		if d := lastAnswered.Sub(answered); len(delays) != 1 || d > longestProbe {
			t.Fatalf("seed %d: %d nodes answer early, the last one for %v", seed, len(delays), d)
		}
		w.runSimulationFor(10*time.Second, func() {
			if h := w.answeringNodes(used); len(h) > 0 {
				t.Fatalf("seed %d: %v took the address from the other host", seed, h)
			}
		})
		if n := w.eventCountByKind[EventForeignHostAnswers]; n != 1 {
			t.Errorf("seed %d: the other host is reported %d times, want once", seed, n)
		}
		for _, n := range w.nodesByName {
			if n.machine.IsClaimed(used) {
				t.Errorf("seed %d: %s knows a claim to the address of the other host", seed, n.name)
			}
		}
		delete(w.fabricAnswerMACByAddress, used) // the host is gone
		w.runSimulationFor(maxProbeRetryDelay+time.Second, nil)
		w.runThenRequireOneHolderEach(time.Millisecond, "the host is gone")
	}
}

// Two groups of speakers do not know each other. An early answer of both lasts no longer than a
// probe.
func TestEarlyAnswersOfSpeakersWithoutCommonGossipEnd(t *testing.T) {
	for seed := range seedCountPerTest() {
		w := newClusterSimulation(t, seed, 4, 2)
		for _, n := range w.nodeNames[:2] {
			w.gossipPartitionByNode[n] = 1 // from the beginning
		}
		w.wireCheck = intent.WireCheckEnforce
		w.startAllSpeakers()
		w.runThenRequireOneHolderEach(20*time.Second, "start")
		w.wireCheck = intent.WireCheckWarn
		w.firstAnswerDelays([]netip.Addr{netip.MustParseAddr("192.0.2.200")}, w.newTwoHoldersCheck(longestProbe))
		w.runSimulationFor(20*time.Second, w.newTwoHoldersCheck(longestProbe))
		w.runThenRequireOneHolderEach(time.Millisecond, "the new address")
	}
}

// newMachineWithFreshAddress returns node a of the members a and b, which know each other's claims
// and a new address that nobody has held.
func newMachineWithFreshAddress(check intent.WireCheckMode, known ...Claim) (*Machine, []Effect) {
	m := NewMachine("a", 1, DefaultTiming(), testStart)
	m.Step(testStart, BidsChanged{}, MembersChanged{facts.MemberSet{Members: []facts.Member{{Name: "a", RunNonce: 1}, {Name: "b", RunNonce: 2}}}},
		RemoteStateReceived{appendClaims(encodeMessageHeader(NewestMessageFormat, kindClaims), known)})
	bid := intent.Bid{Address: firstIP, OwnLinkIndexes: []int{1}, Candidates: intent.NewCandidates(map[string]int{"a": 10, "b": 0}), WireCheck: check}
	return m, m.Step(testStart.Add(10*time.Millisecond), BidsChanged{Bids: []intent.Bid{bid}})
}

// findBindings returns the bindings and the number of removed ones.
func findBindings(effects []Effect) (held []intent.Binding, dropped int) {
	for _, e := range effects {
		switch e := e.(type) {
		case HoldAddress:
			held = append(held, e.Binding)
		case DropAddress:
			dropped++
		}
	}
	return held, dropped
}

func TestAddressThatWasHeldIsNotAnsweredEarly(t *testing.T) {
	for name, known := range map[string]Claim{
		"of a dead node": {Address: firstIP, Holder: "z", Nonce: 9, Epoch: 3},
		"released":       {Address: firstIP, Holder: "b", Nonce: 2, Epoch: 3, Released: true},
	} {
		if _, effects := newMachineWithFreshAddress(intent.WireCheckWarn, known); len(effects) == 0 {
			t.Errorf("%s: nothing happens", name)
		} else if held, _ := findBindings(effects); len(held) > 0 {
			t.Errorf("an address with a claim %s is answered for before the probe: %+v", name, held)
		}
	}
}

// The process is paused while it answers early. Another node may have taken the address meanwhile.
func TestEarlyAnswerEndsAtAPause(t *testing.T) {
	m, effects := newMachineWithFreshAddress(intent.WireCheckWarn)
	held, _ := findBindings(effects)
	if len(held) != 1 || !held[0].IsUnannounced {
		t.Fatalf("the address is not answered for early: %+v", effects)
	}
	now := testStart.Add(10 * time.Millisecond)
	if end := m.LeaseDeadline(now); end.After(now.Add(m.timing.LeaseAfterOwnBeaconTimeout)) {
		t.Errorf("this node may answer for %v without a step", end.Sub(now))
	}
	if _, dropped := findBindings(m.Step(now.Add(time.Second), TimePassed{})); dropped != 1 {
		t.Errorf("after a pause of a second %d addresses are given up, want 1", dropped)
	}
}

// A claim that arrives while this node answers early is that of the holder.
func TestEarlyAnswerEndsAtAClaim(t *testing.T) {
	m, _ := newMachineWithFreshAddress(intent.WireCheckWarn)
	claim := Claim{Address: firstIP, Holder: "b", Nonce: 2, Epoch: 1}
	payload := appendClaims(encodeMessageHeader(NewestMessageFormat, kindClaims), []Claim{claim})
	if _, dropped := findBindings(m.Step(testStart.Add(20*time.Millisecond), MessageReceived{From: "b", Payload: payload})); dropped != 1 {
		t.Errorf("%d addresses are given up, want 1", dropped)
	}
}
