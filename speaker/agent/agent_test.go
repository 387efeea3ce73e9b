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

// others are all speakers but one.
func (c *cluster) others(not *speaker) []*speaker {
	var out []*speaker
	for _, n := range nodes {
		if s := c.speakers[n]; s != not {
			out = append(out, s)
		}
	}
	return out
}

// TestATakeoverDoesNotWaitForPlanning has the planning of every other node be stuck when the holder dies.
func TestATakeoverDoesNotWaitForPlanning(t *testing.T) {
	play(t, func(c *cluster) {
		dead := c.holder(four)
		stuck := make(chan struct{})
		for _, s := range c.others(dead) {
			s.Post(c.t.Context(), func(*planning) { <-stuck })
		}
		synctest.Wait()
		dead.die()
		gap, order := c.asked(four, time.Second)
		if gap > 600*time.Millisecond || len(order) != 1 || order[0] == dead.name {
			t.Errorf("for %v nobody answered, and then %v: want one other than %s within 600 ms", gap, order, dead.name)
		}
		next := c.holder(four)
		n, seconds := next.takeovers(t)
		if n == 0 || seconds/float64(n) < 0.2 || seconds/float64(n) > 0.6 {
			t.Errorf("%d takeovers in %v s together are counted, want each to take 0.2 to 0.6 s", n, seconds)
		}
		if got := next.moves(t, elect.NoteTaken, names.ReasonHolderGone); got == 0 {
			t.Error("no move for the reason HolderGone is counted")
		}
		close(stuck)
	})
}

// TestNothingIsWithdrawnForWantOfNews: a watch that is lost brings no news, and so changes nothing.
func TestNothingIsWithdrawnForWantOfNews(t *testing.T) {
	play(t, func(c *cluster) {
		before := map[netip.Addr]string{four: c.holder(four).name, six: c.holder(six).name}
		for range 40 {
			time.Sleep(5 * time.Second)
			for a, n := range before {
				if now := c.holder(a).name; now != n {
					t.Fatalf("%s went from %s to %s though nothing happened", a, n, now)
				}
			}
		}
		for _, s := range c.speakers {
			if _, notes := s.seen(); slices.ContainsFunc(notes, func(n elect.Note) bool { return n.Kind == elect.NoteGiven }) {
				t.Errorf("%s gave something up: %v", s.name, notes)
			}
		}
	})
}

// TestHalfOfTheClusterIsNoReason: a speaker that is started again knows its memory, and sees the cluster bit by bit. What it has
// not seen yet takes no address from it.
func TestHalfOfTheClusterIsNoReason(t *testing.T) {
	play(t, func(c *cluster) {
		// Nobody else may hold the addresses: the others' speakers are gone.
		only := c.holder(four)
		for _, s := range c.others(only) {
			s.stop()
		}
		time.Sleep(5 * time.Second)
		for _, a := range []netip.Addr{four, six} {
			if h := c.holder(a); h != only {
				t.Fatalf("%s is held by %s, want the last speaker", a, h.name)
			}
		}
		only.stop()
		only.mu.Lock()
		memory := only.memory
		only.mu.Unlock()
		if memory == nil || len(memory.Bids) != 2 || len(memory.Claims) != 2 {
			t.Fatalf("what is remembered is %+v, want two bids and two claims", memory)
		}
		again := c.start(only.name, memory)
		time.Sleep(5 * time.Second) // the API server is away
		if h := c.holder(four); h != again {
			t.Fatalf("%s holds the address, want the speaker that remembers", h.name)
		}
		for _, part := range []Change{config(), service(), SetNode(view.Node{Name: "node1"})} { // no endpoints yet
			again.Post(c.t.Context(), part)
			if gap, order := c.asked(four, time.Second); gap > 2*time.Millisecond || !slices.Equal(order, []string{again.name}) {
				t.Errorf("while the cluster is read nobody answers for %v, and then %v", gap, order)
			}
		}
		c.tell(again.name)
		if gap, order := c.asked(six, time.Second); gap > 2*time.Millisecond || !slices.Equal(order, []string{again.name}) {
			t.Errorf("when it is read nobody answers for %v, and then %v", gap, order)
		}
		// Now what is gone is gone.
		again.Post(c.t.Context(), RemoveService(web))
		time.Sleep(time.Second)
		if who := c.ask(four); len(who) > 0 {
			t.Errorf("%v answer for a Service that is gone", who)
		}
	})
}

// TestStoppingHandsOverFirst asks each millisecond while a speaker hands over and stops: there is an answer to every question.
func TestStoppingHandsOverFirst(t *testing.T) {
	for name, a := range map[string]netip.Addr{"IPv4": four, "IPv6": six} {
		t.Run(name, func(t *testing.T) {
			play(t, func(c *cluster) {
				old := c.holder(a)
				old.Leave()
				synctest.Wait()
				gap, order := c.asked(a, time.Second)
				select {
				case <-old.Drained():
				default:
					t.Fatal("the speaker is not drained after a second")
				}
				if status, _ := old.seen(); len(status.Held) > 0 {
					t.Errorf("drained, it holds %v", status.Held)
				}
				old.stop()
				after, last := c.asked(a, time.Second)
				if max(gap, after) > 2*time.Millisecond {
					t.Errorf("for %v nobody answered", max(gap, after))
				}
				if n := c.holder(a); n == old || len(last) != 1 || order[len(order)-1] != n.name {
					t.Errorf("%v and then %v answered, want another node than %s from the hand-over on", order, last, old.name)
				}
				if got := c.holder(a).moves(t, elect.NoteTaken, names.ReasonHandedOver); got == 0 {
					t.Error("no move for the reason HandedOver is counted")
				}
			})
		})
	}
}

// TestTheLastOneKeepsItsAddresses: who is asked to leave and finds nobody to take over serves on, and is not drained.
func TestTheLastOneKeepsItsAddresses(t *testing.T) {
	play(t, func(c *cluster) {
		only := c.holder(four)
		for _, s := range c.others(only) {
			s.stop()
		}
		time.Sleep(5 * time.Second)
		only.Leave()
		if gap, order := c.asked(four, 10*time.Second); gap > 2*time.Millisecond || !slices.Equal(order, []string{only.name}) {
			t.Errorf("nobody answered for %v, and then %v", gap, order)
		}
		select {
		case <-only.Drained():
			t.Error("it says that it is drained")
		default:
		}
	})
}

// TestAPlanThatLeavesTheNodeOutIsAMove: a plan that leaves this node out is a move, and no gap.
func TestAPlanThatLeavesTheNodeOutIsAMove(t *testing.T) {
	play(t, func(c *cluster) {
		old := c.holder(four)
		for _, s := range c.speakers {
			s.Post(c.t.Context(), SetNode(view.Node{Name: old.name, Excluded: true}))
		}
		gap, order := c.asked(four, time.Second)
		if gap > 2*time.Millisecond || order[len(order)-1] == old.name {
			t.Errorf("nobody answered for %v, and then %v: want a move from %s without a gap", gap, order, old.name)
		}
		next := c.holder(four)
		for _, s := range c.speakers {
			s.Post(c.t.Context(), SetNode(view.Node{Name: old.name}))
		}
		if _, order := c.asked(four, 5*time.Second); !slices.Equal(order, []string{next.name}) {
			t.Errorf("the node may hold it again, and %v answered: want %s to keep it", order, next.name)
		}
	})
}

// TestAForeignHostIsToldAndMet: somebody else claims an address.
func TestAForeignHostIsToldAndMet(t *testing.T) {
	play(t, func(c *cluster) {
		holder := c.holder(four)
		time.Sleep(10 * time.Second) // its own announcements are over
		c.lan.Frames()
		stranger := facts.MAC{2, 0, 0, 0, 0, 0x99}
		all := layer2.Everybody(four)
		err := c.ports[layer2.IPv4].Write(layer2.Frame{
			Destination: all, Source: stranger, Operation: layer2.Reply, SenderMAC: stranger, SenderIP: four, TargetMAC: all, TargetIP: four,
		})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		defended := 0
		for _, f := range c.lan.Frames() {
			if f.From == holder.name && f.Frame.SenderIP == four && f.Frame.TargetIP == four {
				defended++
			}
		}
		if defended != 2 {
			t.Errorf("the address is defended by %d frames, want one announcement of two forms", defended)
		}
		_, notes := holder.seen()
		if n := len(notes); n == 0 || notes[n-1].Kind != elect.NoteConflict || notes[n-1].MAC != stranger || notes[n-1].Address != four {
			t.Errorf("the notes are %+v, want the conflict last", notes)
		}
		if now := c.holder(four); now != holder {
			t.Errorf("the address went from %s to %s", holder.name, now.name)
		}
	})
}

// TestWhereSocketsAreRefused: the node stands back, and says why.
func TestWhereSocketsAreRefused(t *testing.T) {
	play(t, func(c *cluster) {
		refused := c.holder(four)
		refused.host.Refuse(layer2.ErrDenied)
		refused.host.Break(layer2.ErrLinkGone)
		time.Sleep(2 * time.Second)
		next := c.holder(four)
		status, _ := refused.seen()
		if next == refused || !strings.Contains(status.Denied, "NET_RAW") || len(status.Faults) != 1 {
			t.Errorf("%s holds the address, and %s says %q, %v", next.name, refused.name, status.Denied, status.Faults)
		}
		refused.host.Refuse(nil)
		time.Sleep(time.Minute)
		if status, _ := refused.seen(); status.Denied != "" || len(status.Faults) != 0 || c.holder(four) != next {
			t.Errorf("when sockets are granted %s says %q, %v, and %s holds the address", refused.name, status.Denied, status.Faults, c.holder(four).name)
		}
	})
}

// TestWhoAskedIsToldByTheSuccessor: the client asked the holder that dies, and is told by the next one alone.
func TestWhoAskedIsToldByTheSuccessor(t *testing.T) {
	for name, a := range map[string]netip.Addr{"IPv4": four, "IPv6": six} {
		t.Run(name, func(t *testing.T) {
			play(t, func(c *cluster) {
				dead := c.holder(a) // which is to ask
				c.told()
				dead.die()
				time.Sleep(5 * time.Second)
				next, told := "", 0
				for _, f := range c.told() {
					if f.SenderIP == a {
						next = c.owner(f.SenderMAC)
						told++
					}
				}
				if told != 2 || next != c.holder(a).name {
					t.Errorf("the client is told %d times by %q, want twice by the new holder", told, next)
				}
			})
		})
	}
}

// TestALinkThatComesBack: a link that goes takes the address elsewhere, and one that comes makes the node a candidate.
func TestALinkThatComesBack(t *testing.T) {
	play(t, func(c *cluster) {
		old := c.holder(four)
		old.host.Cut()
		old.links <- nil
		gap, order := c.asked(four, 2*time.Second)
		if gap > 600*time.Millisecond || order[len(order)-1] == old.name {
			t.Errorf("for %v nobody answered, and then %v", gap, order)
		}
		old.host.Mend()
		renamed := old.link
		renamed.Name = "lan0"
		old.links <- facts.LinkSet{renamed}
		for _, s := range c.others(old) {
			s.Leave()
		}
		time.Sleep(2 * time.Second)
		if h := c.holder(four); h != old {
			t.Errorf("%s holds the address, want the node whose link came back", h.name)
		}
	})
}
