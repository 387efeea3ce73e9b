package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// TestOtherNodesAreAskedInTurn: a rack of dead nodes with low names, or a crowd of nodes that were removed, keeps nobody from finding
// a node that answers.
func TestOtherNodesAreAskedInTurn(t *testing.T) {
	a := &Agent{o: Options{Self: "node3"}, peers: map[string]netip.Addr{}}
	for i := range 10 {
		name := fmt.Sprintf("node%d", i)
		a.peers[name] = netip.AddrFrom4([4]byte{192, 168, 0, byte(i)})
		if i >= 2 {
			a.members = append(a.members, name)
		}
	}
	asked := map[string]int{}
	for range len(a.members) {
		order := a.inTurn()
		if len(order) != 9 || slices.Contains(order, "node3") || !slices.Equal(order[7:], []string{"node0", "node1"}) {
			t.Fatalf("the order is %v, want the seven other members and then who was one", order)
		}
		for _, name := range order[:most] {
			asked[name]++
		}
	}
	if len(asked) != 7 {
		t.Errorf("in turn these were asked: %v, want every other member", asked)
	}
}
