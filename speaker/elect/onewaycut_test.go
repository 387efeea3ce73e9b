package elect

import (
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// One node is deaf: it sends, and no message reaches it. All others hear each other. No living node
// is called dead, and nobody asks the segment for an address that is held.
func TestNodeReceivingNothingCausesNoDeathsOrProbes(t *testing.T) {
	for _, nodes := range []int{4, 5, 6} {
		for seed := range int64(5) {
			w := newClusterSimulation(t, seed, nodes, 40)
			w.startAllSpeakers()
			w.runThenRequireOneHolderEach(6*time.Second, "start")
			deaf := w.nodeNames[int(seed)%nodes]
			w.deafNodes = map[string]bool{deaf: true}
			w.acquireProbeCount, w.addressTakeCount = 0, 0
			w.runSimulationFor(10*time.Second, func() {
				for _, n := range w.nodeNames {
					m := w.nodesByName[n].machine
					if dead := m.DeadMembers(); n != deaf && len(dead) > 0 {
						t.Fatalf("%d nodes, seed %d: %s calls %v dead, while %s is deaf", nodes, seed, n, dead, deaf)
					}
				}
			})
			if w.acquireProbeCount > 0 || w.addressTakeCount > 0 {
				t.Errorf("%d nodes, seed %d: %d probes for held addresses and %d moves, want none", nodes, seed, w.acquireProbeCount, w.addressTakeCount)
			}
		}
	}
}

// Two adjacent nodes of the ring die at the same time.
func TestAddressesOfTwoDeadRingNeighboursAreTaken(t *testing.T) {
	for seed := range int64(5) {
		w := newClusterSimulation(t, seed, 5, 20)
		w.startAllSpeakers()
		w.runThenRequireOneHolderEach(6*time.Second, "start")
		ring := w.nodesByName[w.nodeNames[0]].machine.watchRing
		w.killSpeaker(ring[seed])
		w.killSpeaker(ring[(seed+1)%5])
		w.runThenRequireOneHolderEach(700*time.Millisecond, "two deaths")
	}
}

// A watcher gets a member to watch again that it watched a while ago.
func TestMemberWatchedAgainIsNotSilentAtOnce(t *testing.T) {
	m := NewMachine("a", 1, DefaultTiming(), testStart)
	all := []facts.Member{{Name: "a", RunNonce: 1}}
	for i, n := range []string{"b", "c", "d", "e"} {
		all = append(all, facts.Member{Name: n, RunNonce: uint64(i + 2)})
	}
	now := testStart
	setMembers := func(without string) {
		var set facts.MemberSet
		for _, p := range all {
			if p.Name != without {
				set.Members = append(set.Members, p)
			}
		}
		m.Step(now, MembersChanged{set})
	}
	setMembers("")
	next := m.ringNeighbours("a", -1)[0]
	setMembers(next)
	later := m.liveness.membersWatchedBySelf[1] // watched only while the other one is away
	m.Step(now, MessageReceived{From: later, Payload: []byte{3, kindBeacon, byte(m.membersByName[later].RunNonce), 1, 0, 0}})
	setMembers("")
	for range 600 { // a minute
		now = now.Add(100 * time.Millisecond)
		m.Step(now, TimePassed{})
	}
	setMembers(next)
	m.Step(now.Add(10*time.Millisecond), TimePassed{})
	if h := m.liveness.recordsByMember[later]; h == nil || h.isSilent {
		t.Errorf("%s is called silent at once: %+v", later, h)
	}
}
