package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// otherSpeakers are all speakers but one.
func (c *harness) otherSpeakers(not *speaker) []*speaker {
	var out []*speaker
	for _, n := range nodeNames {
		if s := c.speakers[n]; s != not {
			out = append(out, s)
		}
	}
	return out
}

// TestATakeoverDoesNotWaitForPlanning has the planning of every other node be stuck when the holder dies.
func TestATakeoverDoesNotWaitForPlanning(t *testing.T) {
	withHarness(t, func(c *harness) {
		dead := c.wantHolder(ipv4Address)
		stuck := make(chan struct{})
		for _, s := range c.otherSpeakers(dead) {
			s.PostChanges(c.t.Context(), func(*planEditor) { <-stuck })
		}
		synctest.Wait()
		dead.cutOff()
		gap, order := c.askRepeatedly(ipv4Address, time.Second)
		if gap > 600*time.Millisecond || len(order) != 1 || order[0] == dead.name {
			t.Errorf("for %v nobody answered, and then %v: want one other than %s within 600 ms", gap, order, dead.name)
		}
		next := c.wantHolder(ipv4Address)
		n, seconds := next.takeoverMetrics(t)
		if n == 0 || seconds/float64(n) < 0.2 || seconds/float64(n) > 0.6 {
			t.Errorf("%d takeovers in %v s together are counted, want each to take 0.2 to 0.6 s", n, seconds)
		}
		if got := next.moveCount(t, elect.EventTaken, names.ReasonHolderGone); got == 0 {
			t.Error("no move for the reason HolderGone is counted")
		}
		close(stuck)
	})
}

// TestNothingIsWithdrawnWithoutWatchEvents: a watch that is lost brings no news, and so changes nothing.
func TestNothingIsWithdrawnWithoutWatchEvents(t *testing.T) {
	withHarness(t, func(c *harness) {
		before := map[netip.Addr]string{ipv4Address: c.wantHolder(ipv4Address).name, ipv6Address: c.wantHolder(ipv6Address).name}
		for range 40 {
			time.Sleep(5 * time.Second)
			for a, n := range before {
				if now := c.wantHolder(a).name; now != n {
					t.Fatalf("%s went from %s to %s though nothing happened", a, n, now)
				}
			}
		}
		for _, s := range c.speakers {
			if _, notes := s.lastStatus(); slices.ContainsFunc(notes, func(n elect.Event) bool { return n.Kind == elect.EventGivenUp }) {
				t.Errorf("%s gave something up: %v", s.name, notes)
			}
		}
	})
}

// TestARestartedSpeakerKeepsItsAddressesWhileItReadsTheCluster: a speaker that is started again knows its memory, and sees the cluster bit by bit. What it has
// not seen yet takes no address from it.
func TestARestartedSpeakerKeepsItsAddressesWhileItReadsTheCluster(t *testing.T) {
	withHarness(t, func(c *harness) {
		// Nobody else may hold the addresses: the others' speakers are gone.
		only := c.wantHolder(ipv4Address)
		for _, s := range c.otherSpeakers(only) {
			s.stop()
		}
		time.Sleep(5 * time.Second)
		for _, a := range []netip.Addr{ipv4Address, ipv6Address} {
			if h := c.wantHolder(a); h != only {
				t.Fatalf("%s is held by %s, want the last speaker", a, h.name)
			}
		}
		only.stop()
		only.mu.Lock()
		memory := only.checkpoint
		only.mu.Unlock()
		if memory == nil || len(memory.Bids) != 2 || len(memory.Claims) != 2 {
			t.Fatalf("what is remembered is %+v, want two bids and two claims", memory)
		}
		again := c.startSpeaker(only.name, memory)
		time.Sleep(5 * time.Second) // the API server is away
		if h := c.wantHolder(ipv4Address); h != again {
			t.Fatalf("%s holds the address, want the speaker that remembers", h.name)
		}
		for _, part := range []Change{snapshotChange(), serviceChange(), SetNode(view.Node{Name: "node1"})} { // no endpoints yet
			again.PostChanges(c.t.Context(), part)
			if gap, order := c.askRepeatedly(ipv4Address, time.Second); gap > 2*time.Millisecond || !slices.Equal(order, []string{again.name}) {
				t.Errorf("while the cluster is read nobody answers for %v, and then %v", gap, order)
			}
		}
		c.postEverything(again.name)
		if gap, order := c.askRepeatedly(ipv6Address, time.Second); gap > 2*time.Millisecond || !slices.Equal(order, []string{again.name}) {
			t.Errorf("when it is read nobody answers for %v, and then %v", gap, order)
		}
		// Now what is gone is gone.
		again.PostChanges(c.t.Context(), RemoveService(serviceKey))
		time.Sleep(time.Second)
		if who := c.askOnce(ipv4Address); len(who) > 0 {
			t.Errorf("%v answer for a Service that is gone", who)
		}
	})
}

// TestAStoppingSpeakerHandsOverWithoutAGap asks each millisecond while a speaker hands over and stops: there is an answer to every question.
func TestAStoppingSpeakerHandsOverWithoutAGap(t *testing.T) {
	for name, a := range map[string]netip.Addr{"IPv4": ipv4Address, "IPv6": ipv6Address} {
		t.Run(name, func(t *testing.T) {
			withHarness(t, func(c *harness) {
				old := c.wantHolder(a)
				old.RequestHandover()
				synctest.Wait()
				gap, order := c.askRepeatedly(a, time.Second)
				select {
				case <-old.HandedOver():
				default:
					t.Fatal("the speaker is not drained after a second")
				}
				if status, _ := old.lastStatus(); len(status.HeldAddresses) > 0 {
					t.Errorf("drained, it holds %v", status.HeldAddresses)
				}
				old.stop()
				after, last := c.askRepeatedly(a, time.Second)
				if max(gap, after) > 2*time.Millisecond {
					t.Errorf("for %v nobody answered", max(gap, after))
				}
				if n := c.wantHolder(a); n == old || len(last) != 1 || order[len(order)-1] != n.name {
					t.Errorf("%v and then %v answered, want another node than %s from the hand-over on", order, last, old.name)
				}
				if got := c.wantHolder(a).moveCount(t, elect.EventTaken, names.ReasonHandedOver); got == 0 {
					t.Error("no move for the reason HandedOver is counted")
				}
			})
		})
	}
}

// TestTheLastSpeakerKeepsItsAddresses: who is asked to leave and finds nobody to take over serves on, and is not drained.
func TestTheLastSpeakerKeepsItsAddresses(t *testing.T) {
	withHarness(t, func(c *harness) {
		only := c.wantHolder(ipv4Address)
		for _, s := range c.otherSpeakers(only) {
			s.stop()
		}
		time.Sleep(5 * time.Second)
		only.RequestHandover()
		if gap, order := c.askRepeatedly(ipv4Address, 10*time.Second); gap > 2*time.Millisecond || !slices.Equal(order, []string{only.name}) {
			t.Errorf("nobody answered for %v, and then %v", gap, order)
		}
		select {
		case <-only.HandedOver():
			t.Error("it says that it is drained")
		default:
		}
	})
}

// TestAnExcludedNodeHandsOverWithoutAGap: a plan that leaves this node out is a move, and no gap.
func TestAnExcludedNodeHandsOverWithoutAGap(t *testing.T) {
	withHarness(t, func(c *harness) {
		old := c.wantHolder(ipv4Address)
		for _, s := range c.speakers {
			s.PostChanges(c.t.Context(), SetNode(view.Node{Name: old.name, Excluded: true}))
		}
		gap, order := c.askRepeatedly(ipv4Address, time.Second)
		if gap > 2*time.Millisecond || order[len(order)-1] == old.name {
			t.Errorf("nobody answered for %v, and then %v: want a move from %s without a gap", gap, order, old.name)
		}
		next := c.wantHolder(ipv4Address)
		for _, s := range c.speakers {
			s.PostChanges(c.t.Context(), SetNode(view.Node{Name: old.name}))
		}
		if _, order := c.askRepeatedly(ipv4Address, 5*time.Second); !slices.Equal(order, []string{next.name}) {
			t.Errorf("the node may hold it again, and %v answered: want %s to keep it", order, next.name)
		}
	})
}

// TestAForeignHostIsReportedAndTheAddressDefended: somebody else claims an address.
func TestAForeignHostIsReportedAndTheAddressDefended(t *testing.T) {
	withHarness(t, func(c *harness) {
		holder := c.wantHolder(ipv4Address)
		time.Sleep(10 * time.Second) // its own announcements are over
		c.segment.TakeSentFrames()
		stranger := facts.MAC{2, 0, 0, 0, 0, 0x99}
		all := layer2.AnnouncementMAC(ipv4Address)
		err := c.clientPorts[layer2.IPv4].Write(layer2.Frame{
			Destination: all, Source: stranger, Operation: layer2.Reply, SenderMAC: stranger, SenderIP: ipv4Address, TargetMAC: all, TargetIP: ipv4Address,
		})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		defended := 0
		for _, f := range c.segment.TakeSentFrames() {
			if f.From == holder.name && f.Frame.SenderIP == ipv4Address && f.Frame.TargetIP == ipv4Address {
				defended++
			}
		}
		if defended != 2 {
			t.Errorf("the address is defended by %d frames, want one announcement of two forms", defended)
		}
		_, notes := holder.lastStatus()
		if n := len(notes); n == 0 || notes[n-1].Kind != elect.EventConflict || notes[n-1].ForeignMAC != stranger || notes[n-1].Address != ipv4Address {
			t.Errorf("the notes are %+v, want the conflict last", notes)
		}
		if now := c.wantHolder(ipv4Address); now != holder {
			t.Errorf("the address went from %s to %s", holder.name, now.name)
		}
	})
}

// TestANodeWithoutRawSocketsHoldsNothingAndSaysWhy: the node stands back, and says why.
func TestANodeWithoutRawSocketsHoldsNothingAndSaysWhy(t *testing.T) {
	withHarness(t, func(c *harness) {
		refused := c.wantHolder(ipv4Address)
		refused.host.SetOpenError(layer2.ErrDenied)
		refused.host.FailPorts(layer2.ErrLinkGone)
		time.Sleep(2 * time.Second)
		next := c.wantHolder(ipv4Address)
		status, _ := refused.lastStatus()
		if next == refused || !strings.Contains(status.RawSocketsDenied, "NET_RAW") || len(status.FaultsByLink) != 1 {
			t.Errorf("%s holds the address, and %s says %q, %v", next.name, refused.name, status.RawSocketsDenied, status.FaultsByLink)
		}
		refused.host.SetOpenError(nil)
		time.Sleep(time.Minute)
		if status, _ := refused.lastStatus(); status.RawSocketsDenied != "" || len(status.FaultsByLink) != 0 || c.wantHolder(ipv4Address) != next {
			t.Errorf("when sockets are granted %s says %q, %v, and %s holds the address", refused.name, status.RawSocketsDenied, status.FaultsByLink, c.wantHolder(ipv4Address).name)
		}
	})
}

// TestTheNewHolderUpdatesTheClientsOfTheDeadOne: the client asked the holder that dies, and is told by the next one alone.
func TestTheNewHolderUpdatesTheClientsOfTheDeadOne(t *testing.T) {
	for name, a := range map[string]netip.Addr{"IPv4": ipv4Address, "IPv6": ipv6Address} {
		t.Run(name, func(t *testing.T) {
			withHarness(t, func(c *harness) {
				dead := c.wantHolder(a) // which is to ask
				c.takeClientFrames()
				dead.cutOff()
				time.Sleep(5 * time.Second)
				next, told := "", 0
				for _, f := range c.takeClientFrames() {
					if f.SenderIP == a {
						next = c.nodeOfMAC(f.SenderMAC)
						told++
					}
				}
				if told != 2 || next != c.wantHolder(a).name {
					t.Errorf("the client is told %d times by %q, want twice by the new holder", told, next)
				}
			})
		})
	}
}

// TestALinkThatComesBackMakesTheNodeACandidate: a link that goes takes the address elsewhere, and one that comes makes the node a candidate.
func TestALinkThatComesBackMakesTheNodeACandidate(t *testing.T) {
	withHarness(t, func(c *harness) {
		old := c.wantHolder(ipv4Address)
		old.host.Disconnect()
		old.links <- nil
		gap, order := c.askRepeatedly(ipv4Address, 2*time.Second)
		if gap > 600*time.Millisecond || order[len(order)-1] == old.name {
			t.Errorf("for %v nobody answered, and then %v", gap, order)
		}
		old.host.Reconnect()
		renamed := old.link
		renamed.Name = "lan0"
		old.links <- facts.LinkSet{renamed}
		for _, s := range c.otherSpeakers(old) {
			s.RequestHandover()
		}
		time.Sleep(2 * time.Second)
		if h := c.wantHolder(ipv4Address); h != old {
			t.Errorf("%s holds the address, want the node whose link came back", h.name)
		}
	})
}
