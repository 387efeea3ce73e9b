package reconcile

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/reconcile/memory"
	"github.com/gantry-lb/gantry/internal/view"
)

// register watches which Service has which address. It is for crowds: each look costs the same.
type register struct {
	mu     sync.Mutex // guards all that follows
	holder map[netip.Addr]string
	faults []string
}

func (g *register) check(before, after *corev1.Service) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range addresses(before) {
		delete(g.holder, a)
	}
	for _, a := range addresses(after) {
		if other := g.holder[a]; other != "" {
			g.faults = append(g.faults, fmt.Sprintf("%s was given %s, which %s has", after.Name, a, other))
		}
		g.holder[a] = after.Name
	}
}

// served counts the addresses that Services have.
func (g *register) served() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.holder)
}

// busyServer takes 40 ms for each write, as one on two cores does.
func busyServer(what string) memory.Weather {
	if what == "watch" || what == "read" {
		return memory.Weather{}
	}
	return memory.Weather{Out: 20 * time.Millisecond, Back: 20 * time.Millisecond}
}

// burst is a crowd of Services that wait when the first pool comes, and a leader that is lost meanwhile.
type burst struct {
	services, bound int
	// lost is when the leader is lost, in hundredths of the time that all take when it is not; 0 is never.
	lost   int
	killed bool
}

// run returns how long it takes until all Services have an address.
func (b burst) run(t *testing.T, undisturbed time.Duration) (took time.Duration) {
	g := &register{holder: map[netip.Addr]string{}}
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(g.check)
		for i := range b.services {
			s.Create(balanced(fmt.Sprint("s", i)))
		}
		s.Forget()
		c := runBounded(t, s, busyServer, Options{Identity: "first"}, b.bound)
		synctest.Wait()
		time.Sleep(time.Minute) // each has said by then that there is no pool
		s.SetPool("p", pool("10.0.0.0/16"))
		c.Reconfigured()
		begun := time.Now()
		if b.lost > 0 {
			time.Sleep(undisturbed * time.Duration(b.lost) / 100)
			if random := rand.New(rand.NewPCG(uint64(b.lost), 1)); b.killed {
				c.kill(func() bool { return random.IntN(2) == 0 })
			} else {
				c.end()
			}
			c = runBounded(t, s, busyServer, Options{Identity: "second"}, b.bound)
		}
		for g.served() < b.services && time.Since(begun) < time.Hour {
			time.Sleep(100 * time.Millisecond)
		}
		took = time.Since(begun)
		if n := g.served(); n < b.services {
			t.Errorf("%d of %d Services have an address", n, b.services)
		}
		c.end()
	})
	for _, f := range g.faults {
		t.Error(f)
	}
	return took
}

// TestABurstEndsWhoeverLeads ends the leader at moments that are spread over a burst, by force or in good order, when more
// Services wait than pending assignments may be open. GANTRY_BURSTS=long takes the numbers of a large cluster.
func TestABurstEndsWhoeverLeads(t *testing.T) {
	sizes, bound := []int{288, 320, 640}, 256
	if os.Getenv("GANTRY_BURSTS") == "long" {
		sizes, bound = []int{4500, 5000, 10000}, maxOpen
	}
	for _, n := range sizes {
		undisturbed := burst{services: n, bound: bound}.run(t, 0)
		for lost := 10; lost < 100; lost += 10 {
			for _, killed := range []bool{true, false} {
				took := burst{n, bound, lost, killed}.run(t, undisturbed)
				if took > undisturbed+15*time.Second {
					t.Errorf("%d Services, leader lost at %d %% (killed: %t): it took %s, without that %s", n, lost, killed, took, undisturbed)
				}
			}
		}
	}
}

// TestPendingAssignmentsOfALostLeaderAreWritten has more of them in the AddressLedger than a controller keeps open itself.
func TestPendingAssignmentsOfALostLeaderAreWritten(t *testing.T) {
	for _, n := range []int{15, 16, 17, 40} {
		bubble(t, func(t *testing.T) {
			s := memory.NewServer(nil)
			s.SetPool("p", pool("10.0.0.0/24"))
			var pending []v1alpha1.PendingAssignment
			for i := range n {
				o := balanced(fmt.Sprint("s", i))
				s.Create(o)
				pending = append(pending, pendingAssignment(o.Name, s.Service(key(o.Name)).ResourceVersion, netip.AddrFrom4([4]byte{10, 0, 0, byte(100 + i)})))
			}
			show(t, memory.NewClient(s, nil), pending...)
			c := runBounded(t, s, nil, Options{}, 16)
			defer c.end()
			s.Create(balanced("late"))
			synctest.Wait()
			time.Sleep(time.Second)
			for i := range n {
				want(t, s, fmt.Sprint("s", i), fmt.Sprintf("10.0.0.%d", 100+i), names.ReasonAssigned)
			}
			want(t, s, "late", "10.0.0.0", names.ReasonAssigned)
			if w := s.Writes("ledger"); w != 2 {
				t.Errorf("the AddressLedger was written %d times, want once for the Service that came late", w-1)
			}
			if _, open, _ := c.state.read(); open != 0 {
				t.Errorf("%d pending assignments are open at the end", open)
			}
			if err := c.Ready(time.Now()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAForeignPendingAssignmentIsEnded has one in the AddressLedger that brings what the Service is not to have any more: its pool has
// changed since. It may still be written, so that nobody else gets the address before the Service has another resourceVersion.
func TestAForeignPendingAssignmentIsEnded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		s.SetPool("p", pool("192.0.2.0/24"))
		told := &recorder{}
		c := run(t, s, nil, Options{Tell: told.tell})
		s.Create(balanced("a"))
		time.Sleep(time.Second)
		c.end()
		o := s.Service(key("a"))
		show(t, memory.NewClient(s, nil), pendingAssignment("a", o.ResourceVersion, addressesOf("192.0.2.9")...))
		var allow atomic.Bool
		s.Refuse(func(*corev1.Service) error {
			if !allow.Load() {
				return errNotNow
			}
			return nil
		})
		c = run(t, s, nil, Options{Tell: told.tell})
		defer c.end()
		time.Sleep(time.Second)
		b := balanced("b")
		b.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: "192.0.2.9"}
		s.Create(b)
		time.Sleep(time.Minute)
		if a := address(s.Service(key("b"))); a.IsValid() {
			t.Errorf("b was given %s, which may still be written to a", a)
		}
		allow.Store(true)
		time.Sleep(time.Minute)
		want(t, s, "a", "192.0.2.0", names.ReasonAssigned)
		want(t, s, "b", "192.0.2.9", names.ReasonAssigned)
		if s.Service(key("a")).ResourceVersion == o.ResourceVersion {
			t.Error("a has the resourceVersion still on which the address may be written")
		}
		if e := told.of("a"); len(e) != 1 {
			t.Errorf("the events of a are %q, want the one of its address", e)
		}
	})
}

// TestABoundThatHoldsServicesBackIsLoggedOnce has writes that take long, so that many pending assignments are open.
func TestABoundThatHoldsServicesBackIsLoggedOnce(t *testing.T) {
	said := &bytes.Buffer{}
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		s.SetPool("p", pool("10.0.0.0/16"))
		for i := range 300 {
			s.Create(balanced(fmt.Sprint("s", i)))
		}
		c := runBounded(t, s, func(what string) memory.Weather {
			if what == "service" {
				return memory.Weather{Out: 8 * time.Second}
			}
			return memory.Weather{}
		}, Options{Log: slog.New(slog.NewTextHandler(said, nil))}, 40)
		time.Sleep(20 * time.Second)
		_, open, bounded := c.state.read()
		if open != 40 || bounded != 1 {
			t.Errorf("%d pending assignments are open, and Services were held back %d times; want 40, and once", open, bounded)
		}
		time.Sleep(10 * time.Minute)
		if err := c.Ready(time.Now()); err != nil {
			t.Error(err)
		}
		c.end()
		if n := strings.Count(said.String(), "as many pending assignments are open"); n != 1 {
			t.Errorf("it was logged %d times, want once: %s", n, said)
		}
		for _, o := range s.Services() {
			if !address(o).IsValid() {
				t.Errorf("%s has no address", o.Name)
			}
		}
	})
}

// TestTheAddressLedgerIsTidiedAfterABurst counts what it shows when nothing is under way any more, and that it is not written again.
func TestTheAddressLedgerIsTidiedAfterABurst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		s.SetPool("p", pool("10.0.0.0/16"))
		for i := range 200 {
			s.Create(balanced(fmt.Sprint("s", i)))
		}
		c := run(t, s, busyServer, Options{})
		defer c.end()
		time.Sleep(2 * time.Second)
		if n := len(s.Ledger(names.AddressLedger).Spec.Pending); n < tidyEnough {
			t.Fatalf("after the burst the AddressLedger shows %d pending assignments, too few for this test", n)
		}
		time.Sleep(2 * tidyDelay)
		if n := len(s.Ledger(names.AddressLedger).Spec.Pending); n != 0 {
			t.Errorf("the AddressLedger shows %d pending assignments when none is open", n)
		}
		writes := s.Writes("ledger")
		time.Sleep(time.Hour)
		if n := s.Writes("ledger") - writes; n != 0 {
			t.Errorf("it was written %d times more when nothing happened", n)
		}
		s.Create(balanced("late"))
		time.Sleep(time.Second)
		want(t, s, "late", "10.0.0.200", names.ReasonAssigned)
	})
}

// TestALeaderThatStopsWritesWhatTheAddressLedgerShows ends it when many writes wait for their turn.
func TestALeaderThatStopsWritesWhatTheAddressLedgerShows(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		s.SetPool("p", pool("10.0.0.0/16"))
		for i := range 200 {
			s.Create(balanced(fmt.Sprint("s", i)))
		}
		c := run(t, s, busyServer, Options{})
		synctest.Wait()
		for len(s.Ledger(names.AddressLedger).Spec.Pending) < 100 {
			time.Sleep(time.Millisecond)
		}
		shown := s.Ledger(names.AddressLedger).Spec.Pending
		begun := time.Now()
		c.end()
		if took := time.Since(begun); took > drainTimeout {
			t.Errorf("it took %s, more than it may", took)
		}
		for _, p := range shown {
			if k := (view.ObjectKey{Namespace: p.Namespace, Name: p.Name}); !address(s.Service(k)).IsValid() {
				t.Errorf("Service %s has no address, though the AddressLedger showed it", k)
			}
		}
	})
}
