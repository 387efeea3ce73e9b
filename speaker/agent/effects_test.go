package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// TestReachabilityProbesReachEveryMemberInTurn: dead nodes with low names, or many removed nodes,
// do not keep this node from finding one that answers.
func TestReachabilityProbesReachEveryMemberInTurn(t *testing.T) {
	a := &Agent{options: Options{NodeName: "node3"}, addressByKnownMember: map[string]netip.Addr{}}
	for i := range 10 {
		name := fmt.Sprintf("node%d", i)
		a.addressByKnownMember[name] = netip.AddrFrom4([4]byte{192, 168, 0, byte(i)})
		if i >= 2 {
			a.liveMemberNames = append(a.liveMemberNames, name)
		}
	}
	asked := map[string]int{}
	for range len(a.liveMemberNames) {
		order := a.otherNodesInReachabilityProbeOrder()
		if len(order) != 9 || slices.Contains(order, "node3") || !slices.Equal(order[7:], []string{"node0", "node1"}) {
			t.Fatalf("the order is %v, want the seven other members, then the earlier ones", order)
		}
		for _, name := range order[:maxTargetsOfEachKindPerReachabilityProbe] {
			asked[name]++
		}
	}
	if len(asked) != 7 {
		t.Errorf("%v were probed, want every other member", asked)
	}
}
