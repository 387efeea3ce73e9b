package continuity

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/packetrules"
)

var node1Address, node2Address = netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("192.0.2.12")

// heldTraffic are the facts of node1, which holds the address after node2.
func heldTraffic() agent.TrafficFacts {
	return agent.TrafficFacts{
		HasPlan: true, MemberNames: []string{"node1", "node2"}, Members: []facts.Member{{Name: "node2", LinkMACs: []facts.MAC{{2}}}},
		UsableLinks: facts.LinkSet{{Index: 2, AddressesWithPrefixLength: []netip.Prefix{netip.PrefixFrom(node1Address, 24)}}},
		Holders:     []elect.Holder{{Address: address, Node: "node1", Epoch: 2, IsAlive: true, FormerHolders: []string{"node2"}}},
	}
}

// runForwardingEngine runs an engine of node1, which knows node2 and a Service.
func runForwardingEngine(t *testing.T, f *fakePacketRules, test func(e *Engine, stop func())) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		e := NewEngine(Options{KeepConnections: true, NodeName: "node1", PacketRules: f, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
		ended := make(chan struct{})
		go func() { defer close(ended); _ = e.Run(ctx) }()
		e.SetService(webService)
		e.SetNode("node2", []netip.Addr{node2Address})
		synctest.Wait()
		stop := func() { cancel(); <-ended }
		test(e, stop)
		stop()
	})
}

// lastNextHop returns where packets for the address went last.
func (f *fakePacketRules) lastNextHop() netip.Addr {
	if len(f.forwarding) == 0 || len(f.forwarding[len(f.forwarding)-1].Addresses) == 0 {
		return netip.Addr{}
	}
	return f.forwarding[len(f.forwarding)-1].Addresses[0].NextHop
}

func TestHolderForwardsToFormerHolderUntilItIsGone(t *testing.T) {
	f := &fakePacketRules{hasProxy: true}
	runForwardingEngine(t, f, func(e *Engine, _ func()) {
		e.ObserveTraffic(agent.TrafficFacts{})
		time.Sleep(time.Second)
		synctest.Wait()
		if len(f.forwarding) != 0 {
			t.Error("something was written before the first plan: an earlier run may have forwarded for addresses that this one does not know yet")
		}
		e.ObserveTraffic(heldTraffic())
		time.Sleep(minDecisionInterval)
		synctest.Wait()
		if got := f.lastNextHop(); got != node2Address || len(f.forwarding[0].MemberMACs) != 1 {
			t.Fatalf("packets go to %v, want %v", got, node2Address)
		}
		dead := heldTraffic()
		dead.DeclaredDeadMemberNames = []string{"node2"}
		e.ObserveTraffic(dead)
		time.Sleep(goneNodeDelay / 2)
		synctest.Wait()
		if got := f.lastNextHop(); got != node2Address {
			t.Errorf("while only the speaker of node2 may be gone, packets go to %v, want %v", got, node2Address)
		}
		time.Sleep(goneNodeDelay/2 + minDecisionInterval)
		synctest.Wait()
		if got := f.lastNextHop(); got.IsValid() {
			t.Errorf("node2 is gone, and packets go to %v", got)
		}
	})
}

// TestFormerHolderThatFlapsStaysNextHop: each silence is shorter than that of a node that is gone,
// all together are longer.
func TestFormerHolderThatFlapsStaysNextHop(t *testing.T) {
	f := &fakePacketRules{hasProxy: true}
	runForwardingEngine(t, f, func(e *Engine, _ func()) {
		dead := heldTraffic()
		dead.DeclaredDeadMemberNames = []string{"node2"}
		for range 5 {
			e.ObserveTraffic(heldTraffic())
			time.Sleep(time.Second)
			e.ObserveTraffic(dead)
			time.Sleep(goneNodeDelay * 2 / 3)
			synctest.Wait()
		}
		for i, written := range f.forwarding {
			if len(written.Addresses) == 0 || written.Addresses[0].NextHop != node2Address {
				t.Errorf("write %d: packets go to %+v, want %v", i, written.Addresses, node2Address)
			}
		}
		if len(f.forwarding) == 0 {
			t.Error("nothing was written")
		}
	})
}

func TestForwardingIsRefreshedAndLeftBehind(t *testing.T) {
	f := &fakePacketRules{hasProxy: true}
	runForwardingEngine(t, f, func(e *Engine, stop func()) {
		e.ObserveTraffic(heldTraffic())
		time.Sleep(3 * packetrules.ForwardingRefreshInterval)
		synctest.Wait()
		if n := len(f.forwarding); n < 3 || n > 4 {
			t.Errorf("in 3 intervals it was written %d times", n)
		}
		leaving := heldTraffic()
		leaving.IsHandingOver = true
		e.ObserveTraffic(leaving)
		stop()
		last := f.forwarding[len(f.forwarding)-1]
		if last.Addresses[0].NextHopOfMembers != node2Address {
			t.Errorf("what the next holder sends goes to %v, want %v", last.Addresses[0].NextHopOfMembers, node2Address)
		}
	})
}

var _ PacketRules = (*packetrules.Writer)(nil)

func TestForwardingDependsOnTheNodeAddress(t *testing.T) {
	f := &fakePacketRules{hasProxy: true}
	runForwardingEngine(t, f, func(e *Engine, _ func()) {
		e.ObserveTraffic(heldTraffic())
		e.RemoveNode("node2")
		time.Sleep(2 * minDecisionInterval)
		synctest.Wait()
		if got := f.lastNextHop(); got.IsValid() {
			t.Errorf("node2 is removed, and packets go to %v", got)
		}
		if want := (intent.ForwardedAddress{Address: address, LinkIndex: 2}); len(f.forwarding) == 0 || f.forwarding[len(f.forwarding)-1].Addresses[0] != want {
			t.Errorf("written was %+v, want %+v last", f.forwarding, want)
		}
	})
}
