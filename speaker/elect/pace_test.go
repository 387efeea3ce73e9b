package elect

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// TestRebalanceLimitAppliesToAllGroupsTogether: each address has candidates of its own, as with
// externalTrafficPolicy Local, and a preferred node is back.
func TestRebalanceLimitAppliesToAllGroupsTogether(t *testing.T) {
	start := time.Unix(1e9, 0)
	m := NewMachine("a", 1, DefaultTiming(), start)
	m.outbox.beginStep()
	m.applyMembers(facts.MemberSet{Members: []facts.Member{{Name: "a", RunNonce: 1}, {Name: "b", RunNonce: 2}}})
	m.acquisitionsAllowed = true
	const count = 200
	ip := netip.MustParseAddr("192.0.2.1")
	for i := range count {
		a := m.ensureAddressState(ip)
		a.bid = intent.Bid{Address: ip, OwnLinkIndexes: []int{2}, MayRebalance: true, Candidates: intent.NewCandidates(map[string]int{"a": 0, "b": 10, fmt.Sprint("other-", i): 0})}
		m.takeAddress(a, 1, reasonUnheld)
		ip = ip.Next()
	}
	m.now = start.Add(m.timing.RebalanceAfterMemberChangeDelay + time.Second)
	m.rebalanceHeldAddresses()
	moving := 0
	for a := range m.addressesHeldBySelf {
		if a.move != nil {
			moving++
		}
	}
	if most := 1 + count/50; moving == 0 || moving > most {
		t.Errorf("%d of %d addresses move in one second, want 1 to %d", moving, count, most)
	}
}
