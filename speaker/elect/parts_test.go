package elect

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

func TestMembershipKnowsRingNeighboursAndFormerMACs(t *testing.T) {
	mac := facts.MAC{2, 0, 0, 0, 0, 1}
	s := membership{self: "a", nodesByMAC: map[facts.MAC]string{}}
	s.replaceMembers(facts.MemberSet{}, 1)
	if len(s.otherMembers) != 0 || len(s.ringNeighbours("a", 2)) != 0 {
		t.Errorf("a node without others has neighbours %v", s.ringNeighbours("a", 2))
	}
	s.replaceMembers(facts.MemberSet{Members: []facts.Member{{Name: "b", LinkMACs: []facts.MAC{mac}}, {Name: "c"}, {Name: "d"}}}, 1)
	if want := []string{"b", "c", "d"}; !slices.Equal(s.otherMembers, want) {
		t.Errorf("the other members are %v, want %v", s.otherMembers, want)
	}
	for _, n := range s.memberNames {
		for _, after := range s.ringNeighbours(n, watchersPerMember) {
			if !slices.Contains(s.ringNeighbours(after, -watchersPerMember), n) {
				t.Errorf("%s is a watcher of %s, but does not watch it", after, n)
			}
		}
	}
	old := s.replaceMembers(facts.MemberSet{}, 1)
	if _, was := old["b"]; !was {
		t.Error("the earlier members do not include one that left")
	}
	if n, known := s.nodeOfMAC(mac); !known || n != "b" {
		t.Errorf("the Ethernet address of an earlier member belongs to %q, want b", n)
	}
	if got, found := s.firstUnknownMAC([]facts.MAC{mac, {9}}); !found || got != (facts.MAC{9}) {
		t.Errorf("the first Ethernet address of no node is %v, want the second", got)
	}
}

func TestPendingProbesCountEachResultOnce(t *testing.T) {
	s := pendingProbes{probesByID: map[uint64]pendingProbe{}}
	first, second := s.registerProbe(pendingProbe{silentNode: "b"}, testStart), s.registerProbe(pendingProbe{}, testStart)
	if p, ok := s.takeProbe(first); !ok || p.silentNode != "b" || !p.sentAt.Equal(testStart) {
		t.Errorf("the result belongs to %+v, want the probe about b", p)
	}
	if _, ok := s.takeProbe(first); ok {
		t.Error("a second result of one probe counts")
	}
	if s.takeAll(); len(s.takeAll()) != 0 {
		t.Error("after all probes were taken some are left")
	}
	if _, ok := s.takeProbe(second); ok {
		t.Error("a result counts after its probe was dropped")
	}
}

func TestUnansweredSyncRequestsExpire(t *testing.T) {
	s := newSyncRequests()
	lost := s.beginRequest("b", testStart, time.Second)
	late := s.beginRequest("c", testStart.Add(2*time.Second), time.Second)
	if _, kept := s.requestsByID[lost]; kept || late <= lost {
		t.Errorf("a request without an answer is kept after its timeout, or its ID %d is used again", lost)
	}
}

func TestOutboxOrdersEffectsAndRepeatsClaims(t *testing.T) {
	ip := netip.MustParseAddr("192.0.2.1")
	a := &addressState{ip: ip, highestKnownClaim: Claim{Address: ip, Holder: "a", Epoch: 1}}
	o := outbox{claimRepeatsLeftByAddress: map[*addressState]int{}}
	members := []string{"b", "c"}
	o.emitEffect(RejoinGossip{})
	o.broadcastClaim(a)
	o.repeatNewClaims(members)
	o.emitAddressEffect(DropAddress{ip})
	got := o.orderedEffects(members)
	if len(got) != 4 {
		t.Fatalf("the step has %d effects, want the dropped address, a claim for each member and the rest", len(got))
	}
	if _, first := got[0].(DropAddress); !first {
		t.Errorf("the first effect is %T, want what this node answers for before any message", got[0])
	}
	for i, to := range members {
		if m, ok := got[i+1].(SendMessage); !ok || m.To != to {
			t.Errorf("effect %d is %+v, want the claim for %s", i+1, got[i+1], to)
		}
	}
	for beacon, want := range []int{2, 2, 0} {
		o.beginStep()
		o.repeatNewClaims(members)
		if got := len(o.orderedEffects(members)); got != want {
			t.Errorf("with beacon %d the claim is repeated to %d members, want %d", beacon+1, got, want)
		}
	}
}

func TestAddressWorkScheduleOrdersByTimeThenAddress(t *testing.T) {
	q := newAddressWorkSchedule()
	first := &addressState{ip: netip.MustParseAddr("192.0.2.1")}
	second := &addressState{ip: netip.MustParseAddr("192.0.2.2")}
	q.scheduleAddress(second, testStart.Add(time.Second))
	q.scheduleAddress(first, testStart.Add(time.Second))
	if a, _ := q.queue.First(); a != first {
		t.Error("of two addresses that are due at one time, the lower one is not first")
	}
	q.scheduleAddress(first, testStart.Add(time.Minute))
	if a, _ := q.queue.First(); a != second {
		t.Error("an address that was delayed is still first")
	}
	q.unscheduleAddress(second)
	q.unscheduleAddress(second)
	if a, _ := q.queue.First(); q.queue.Len() != 1 || a != first {
		t.Errorf("after one address was removed %d are left, want the other one", q.queue.Len())
	}
}
