package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// otherSpeakers returns all speakers but one.
func (c *clusterOnLAN) otherSpeakers(not *testSpeaker) []*testSpeaker {
	var out []*testSpeaker
	for _, n := range nodeNames {
		if s := c.speakerByName[n]; s != not {
			out = append(out, s)
		}
	}
	return out
}

// TestATakeoverDoesNotWaitForPlanning: the planner of each other node is blocked when the holder
// dies.
func TestATakeoverDoesNotWaitForPlanning(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		dead := c.requireOneAnsweringSpeaker(serviceIPv4)
		stuck := make(chan struct{})
		for _, s := range c.otherSpeakers(dead) {
			s.PostChanges(c.t.Context(), func(*plannerEditor) { <-stuck })
		}
		synctest.Wait()
		dead.disconnectNode()
		gap, order := c.measureLongestAnswerGap(serviceIPv4, time.Second)
		if gap > 600*time.Millisecond || len(order) != 1 || order[0] == dead.name {
			t.Errorf("no node answered for %v, then %v did; want one node other than %s within 600 ms", gap, order, dead.name)
		}
		next := c.requireOneAnsweringSpeaker(serviceIPv4)
		n, seconds := next.takeoverCountAndSeconds(t)
		if n == 0 || seconds/float64(n) < 0.2 || seconds/float64(n) > 0.6 {
			t.Errorf("the metrics count %d takeovers of %v s in total, want 0.2 to 0.6 s each", n, seconds)
		}
		if got := next.electionEventCount(t, elect.EventAddressTaken, names.ReasonHolderGone); got == 0 {
			t.Error("the metrics count no move for the reason HolderGone")
		}
		close(stuck)
	})
}

// TestAMoveWaitsForTheServiceProxy moves the endpoints of a Service with policy Local. The service
// proxy of the next node learns of the new endpoint seconds later.
func TestAMoveWaitsForTheServiceProxy(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		post := func(change PlannerInputChange) {
			for _, n := range nodeNames {
				c.speakerByName[n].PostChanges(c.t.Context(), change)
			}
		}
		post(NewServiceUpsertedChange(view.Service{
			Key: serviceKey, IsLoadBalancer: true, AssignedAddresses: []netip.Addr{serviceIPv4, serviceIPv6},
			HasLocalTrafficPolicy: true, HealthCheckNodePort: 30000,
		}))
		time.Sleep(5 * time.Second)
		if s := c.requireOneAnsweringSpeaker(serviceIPv4); s.name != "node4" {
			t.Fatalf("%s holds the address, want node4, which has the only endpoint", s.name)
		}
		next := c.speakerByName["node1"]
		for _, change := range []PlannerInputChange{
			NewEndpointsReplacedChange(view.Endpoints{
				Service: serviceKey, AnyServing: true, ServingNodes: []string{"node1", "node4"}, ReadyNodes: []string{"node1", "node4"},
			}),
			NewEndpointsReplacedChange(view.Endpoints{ // the Pod on node4 ends
				Service: serviceKey, AnyServing: true, ServingNodes: []string{"node1", "node4"}, ReadyNodes: []string{"node1"},
			}),
		} {
			post(change)
			for range 3 {
				if gap, order := c.measureLongestAnswerGap(serviceIPv4, time.Second); gap > 2*time.Millisecond || !slices.Equal(order, []string{"node4"}) {
					t.Errorf("%v answered with a gap of %v, want only node4", order, gap)
				}
				next.proxy.answerChecks(facts.ProxyLacksEndpoints)
			}
		}
		if got := next.proxy.answerChecks(facts.ProxyKnowsEndpoints); got != 1 {
			t.Errorf("node1 asks its proxy about %d Services, want 1", got)
		}
		gap, order := c.measureLongestAnswerGap(serviceIPv4, time.Second)
		if gap > 2*time.Millisecond || order[len(order)-1] != "node1" {
			t.Errorf("%v answered with a gap of %v, want node1 at the end without a gap", order, gap)
		}
		if got := next.proxy.answerChecks(facts.ProxyKnowsEndpoints); got != 0 {
			t.Errorf("node1 still asks its proxy about %d Services", got)
		}
	})
}

// TestALostWatchWithdrawsNothing: a lost watch delivers no events and therefore changes
// nothing.
func TestALostWatchWithdrawsNothing(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		before := map[netip.Addr]string{
			serviceIPv4: c.requireOneAnsweringSpeaker(serviceIPv4).name, serviceIPv6: c.requireOneAnsweringSpeaker(serviceIPv6).name,
		}
		for range 40 {
			time.Sleep(5 * time.Second)
			for a, n := range before {
				if now := c.requireOneAnsweringSpeaker(a).name; now != n {
					t.Fatalf("%s moved from %s to %s although nothing happened", a, n, now)
				}
			}
		}
		for _, s := range c.speakerByName {
			_, events := s.lastStatusAndAllEvents()
			if slices.ContainsFunc(events, func(e elect.Event) bool { return e.Kind == elect.EventAddressGivenUp }) {
				t.Errorf("%s gave an address up: %v", s.name, events)
			}
		}
	})
}

// TestARestartedSpeakerKeepsItsAddressesWhileItReadsTheCluster: a restarted speaker has its
// checkpoint and reads the cluster in parts. The missing parts take no address from it.
func TestARestartedSpeakerKeepsItsAddressesWhileItReadsTheCluster(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		// Stop the other speakers, so that no other node can hold the addresses.
		last := c.requireOneAnsweringSpeaker(serviceIPv4)
		for _, s := range c.otherSpeakers(last) {
			s.stop()
		}
		time.Sleep(5 * time.Second)
		for _, a := range []netip.Addr{serviceIPv4, serviceIPv6} {
			if h := c.requireOneAnsweringSpeaker(a); h != last {
				t.Fatalf("%s is held by %s, want the only running speaker", a, h.name)
			}
		}
		last.stop()
		last.mu.Lock()
		saved := last.lastSavedCheckpoint
		last.mu.Unlock()
		if saved == nil || len(saved.BidsOfLastPlan) != 2 || len(saved.Claims) != 2 {
			t.Fatalf("the checkpoint is %+v, want two bids and two claims", saved)
		}
		again := c.startSpeaker(last.name, saved)
		time.Sleep(5 * time.Second) // the API server is unreachable
		if h := c.requireOneAnsweringSpeaker(serviceIPv4); h != again {
			t.Fatalf("%s holds the address, want the speaker with the checkpoint", h.name)
		}
		for _, part := range []PlannerInputChange{exampleSnapshotChange(), exampleServiceChange(), NewNodeUpsertedChange(view.Node{Name: "node1"})} {
			// no endpoints yet
			again.PostChanges(c.t.Context(), part)
			gap, order := c.measureLongestAnswerGap(serviceIPv4, time.Second)
			if gap > 2*time.Millisecond || !slices.Equal(order, []string{again.name}) {
				t.Errorf("while the speaker reads the cluster, no node answers for %v, then %v", gap, order)
			}
		}
		c.postClusterState(again.name)
		gap, order := c.measureLongestAnswerGap(serviceIPv6, time.Second)
		if gap > 2*time.Millisecond || !slices.Equal(order, []string{again.name}) {
			t.Errorf("after the speaker read the cluster, no node answers for %v, then %v", gap, order)
		}
		// From now on a deleted Service loses its address.
		again.PostChanges(c.t.Context(), NewServiceRemovedChange(serviceKey))
		time.Sleep(time.Second)
		if who := c.requestOnceAndListAnswerers(serviceIPv4); len(who) > 0 {
			t.Errorf("%v answer for a deleted Service", who)
		}
	})
}

// TestAStoppingSpeakerHandsOverWithoutAGap sends a request every millisecond while a speaker hands
// over and stops. Each request gets an answer.
func TestAStoppingSpeakerHandsOverWithoutAGap(t *testing.T) {
	for name, a := range map[string]netip.Addr{"IPv4": serviceIPv4, "IPv6": serviceIPv6} {
		t.Run(name, func(t *testing.T) {
			runInSyncedCluster(t, func(c *clusterOnLAN) {
				old := c.requireOneAnsweringSpeaker(a)
				old.RequestHandover()
				synctest.Wait()
				gap, order := c.measureLongestAnswerGap(a, time.Second)
				select {
				case <-old.HandoverDoneSignal():
				default:
					t.Fatal("the handover is not done after a second")
				}
				if status, _ := old.lastStatusAndAllEvents(); len(status.HeldAddresses) > 0 {
					t.Errorf("after the handover the speaker still holds %v", status.HeldAddresses)
				}
				old.stop()
				after, last := c.measureLongestAnswerGap(a, time.Second)
				if max(gap, after) > 2*time.Millisecond {
					t.Errorf("no node answered for %v", max(gap, after))
				}
				if n := c.requireOneAnsweringSpeaker(a); n == old || len(last) != 1 || order[len(order)-1] != n.name {
					t.Errorf("%v and then %v answered, want a node other than %s after the handover", order, last, old.name)
				}
				if got := c.requireOneAnsweringSpeaker(a).electionEventCount(t, elect.EventAddressTaken, names.ReasonHandedOver); got == 0 {
					t.Error("the metrics count no move for the reason HandedOver")
				}
			})
		})
	}
}

// TestTheLastSpeakerKeepsItsAddresses: a speaker without a successor still answers after
// RequestHandover.
func TestTheLastSpeakerKeepsItsAddresses(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		last := c.requireOneAnsweringSpeaker(serviceIPv4)
		for _, s := range c.otherSpeakers(last) {
			s.stop()
		}
		time.Sleep(5 * time.Second)
		last.RequestHandover()
		gap, order := c.measureLongestAnswerGap(serviceIPv4, 10*time.Second)
		if gap > 2*time.Millisecond || !slices.Equal(order, []string{last.name}) {
			t.Errorf("no node answered for %v, then %v did", gap, order)
		}
		select {
		case <-last.HandoverDoneSignal():
			t.Error("the speaker reports a handover that did not happen")
		default:
		}
	})
}

// TestAnExcludedNodeHandsOverWithoutAGap: a plan that excludes the holder moves its addresses.
func TestAnExcludedNodeHandsOverWithoutAGap(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		old := c.requireOneAnsweringSpeaker(serviceIPv4)
		for _, s := range c.speakerByName {
			s.PostChanges(c.t.Context(), NewNodeUpsertedChange(view.Node{Name: old.name, IsExcluded: true}))
		}
		gap, order := c.measureLongestAnswerGap(serviceIPv4, time.Second)
		if gap > 2*time.Millisecond || order[len(order)-1] == old.name {
			t.Errorf("no node answered for %v, then %v did; want a move from %s without a gap", gap, order, old.name)
		}
		next := c.requireOneAnsweringSpeaker(serviceIPv4)
		for _, s := range c.speakerByName {
			s.PostChanges(c.t.Context(), NewNodeUpsertedChange(view.Node{Name: old.name}))
		}
		if _, order := c.measureLongestAnswerGap(serviceIPv4, 5*time.Second); !slices.Equal(order, []string{next.name}) {
			t.Errorf("%v answered after the node was included again, want %s to keep the address", order, next.name)
		}
	})
}

// TestAForeignHostIsReportedAndTheAddressDefended: a host outside of the cluster answers for an
// address.
func TestAForeignHostIsReportedAndTheAddressDefended(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		holder := c.requireOneAnsweringSpeaker(serviceIPv4)
		time.Sleep(10 * time.Second) // its own announcements are over
		c.segment.TakeSentFrames()
		stranger := facts.MAC{2, 0, 0, 0, 0, 0x99}
		all := layer2.AnnouncementDestinationMAC(serviceIPv4)
		err := c.clientPortByFamily[ipfamily.IPv4].WriteFrame(layer2.ARPOrNDPFrame{
			EthernetDestination: all, EthernetSource: stranger, Operation: layer2.Reply,
			SenderMAC: stranger, SenderIP: serviceIPv4, TargetMAC: all, TargetIP: serviceIPv4,
		})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		defended := 0
		for _, f := range c.segment.TakeSentFrames() {
			if f.SenderName == holder.name && f.Frame.SenderIP == serviceIPv4 && f.Frame.TargetIP == serviceIPv4 {
				defended++
			}
		}
		if defended != 2 {
			t.Errorf("the holder defends the address with %d frames, want one announcement of two frames", defended)
		}
		_, events := holder.lastStatusAndAllEvents()
		if len(events) == 0 {
			t.Fatal("there are no events, want a conflict")
		}
		e := events[len(events)-1]
		if e.Kind != elect.EventForeignHostAnswers || e.AnsweringMAC != stranger || e.Address != serviceIPv4 {
			t.Errorf("the events are %+v, want the conflict last", events)
		}
		if now := c.requireOneAnsweringSpeaker(serviceIPv4); now != holder {
			t.Errorf("the address moved from %s to %s", holder.name, now.name)
		}
	})
}

// TestANodeWithoutRawSocketsHoldsNothingAndSaysWhy: another node takes over when sockets fail for
// lack of permission.
func TestANodeWithoutRawSocketsHoldsNothingAndSaysWhy(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		denied := c.requireOneAnsweringSpeaker(serviceIPv4)
		denied.lanHost.SetErrorOfOpenPort(layer2.ErrRawSocketsDenied)
		denied.lanHost.CloseOpenPortsWithError(layer2.ErrLinkDownOrGone)
		time.Sleep(2 * time.Second)
		next := c.requireOneAnsweringSpeaker(serviceIPv4)
		status, _ := denied.lastStatusAndAllEvents()
		if next == denied || !strings.Contains(status.RawSocketDenialText, "NET_RAW") || len(status.SendFaultByLinkIndex) != 1 {
			t.Errorf("%s holds the address, %s reports %q and %v",
				next.name, denied.name, status.RawSocketDenialText, status.SendFaultByLinkIndex)
		}
		denied.lanHost.SetErrorOfOpenPort(nil)
		time.Sleep(time.Minute)
		status, _ = denied.lastStatusAndAllEvents()
		if status.RawSocketDenialText != "" || len(status.SendFaultByLinkIndex) != 0 || c.requireOneAnsweringSpeaker(serviceIPv4) != next {
			t.Errorf("when sockets are permitted, %s reports %q and %v, and %s holds the address",
				denied.name, status.RawSocketDenialText, status.SendFaultByLinkIndex, c.requireOneAnsweringSpeaker(serviceIPv4).name)
		}
	})
}

// TestNewHolderSendsItsMACToClientsOfDeadHolder: a client asked the dead holder. Only the new
// holder sends it the new Ethernet address.
func TestNewHolderSendsItsMACToClientsOfDeadHolder(t *testing.T) {
	for name, a := range map[string]netip.Addr{"IPv4": serviceIPv4, "IPv6": serviceIPv6} {
		t.Run(name, func(t *testing.T) {
			runInSyncedCluster(t, func(c *clusterOnLAN) {
				dead := c.requireOneAnsweringSpeaker(a) // sends the client's request
				c.takeUnsolicitedFramesToClient()
				dead.disconnectNode()
				time.Sleep(5 * time.Second)
				next, count := "", 0
				for _, f := range c.takeUnsolicitedFramesToClient() {
					if f.SenderIP == a {
						next = c.nodeOfMAC(f.SenderMAC)
						count++
					}
				}
				if count != 2 || next != c.requireOneAnsweringSpeaker(a).name {
					t.Errorf("the client gets %d frames from %q, want two from the new holder", count, next)
				}
			})
		})
	}
}

// TestALinkThatComesBackMakesTheNodeACandidate: without its link the node loses the address. With
// the link it is a candidate again.
func TestALinkThatComesBackMakesTheNodeACandidate(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		old := c.requireOneAnsweringSpeaker(serviceIPv4)
		old.lanHost.Disconnect()
		old.linkSetsToAgent <- nil
		gap, order := c.measureLongestAnswerGap(serviceIPv4, 2*time.Second)
		if gap > 600*time.Millisecond || order[len(order)-1] == old.name {
			t.Errorf("no node answered for %v, then %v did", gap, order)
		}
		old.lanHost.Reconnect()
		renamed := old.link
		renamed.Name = "lan0"
		old.linkSetsToAgent <- facts.LinkSet{renamed}
		for _, s := range c.otherSpeakers(old) {
			s.RequestHandover()
		}
		time.Sleep(2 * time.Second)
		if h := c.requireOneAnsweringSpeaker(serviceIPv4); h != old {
			t.Errorf("%s holds the address, want the node with the restored link", h.name)
		}
	})
}
