package assign

import (
	"bytes"
	"encoding/json"
	"errors"
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
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
	"github.com/gantry-lb/gantry/internal/view"
)

// doubleAssignmentDetector checks which Service has which address, at the same cost for any number
// of Services.
type doubleAssignmentDetector struct {
	mu                    sync.Mutex // guards all that follows
	serviceNameByAddress  map[netip.Addr]string
	doubleAssignmentTexts []string
}

func (g *doubleAssignmentDetector) recordServiceChange(before, after *corev1.Service) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range ingressAddresses(before) {
		delete(g.serviceNameByAddress, a)
	}
	for _, a := range ingressAddresses(after) {
		if other := g.serviceNameByAddress[a]; other != "" {
			g.doubleAssignmentTexts = append(g.doubleAssignmentTexts, fmt.Sprintf("%s was given %s, which %s has", after.Name, a, other))
		}
		g.serviceNameByAddress[a] = after.Name
	}
}

// countAssignedAddresses counts the addresses that Services have.
func (g *doubleAssignmentDetector) countAssignedAddresses() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.serviceNameByAddress)
}

// newSlowAPIServerDelivery delivers each write in 40 ms, like an API server on two cores.
func newSlowAPIServerDelivery(what string) apitest.Delivery {
	if what == "watch" || what == "read" {
		return apitest.Delivery{}
	}
	return apitest.Delivery{RequestDelay: 20 * time.Millisecond, AnswerDelay: 20 * time.Millisecond}
}

// burstScenario: many Services wait when the first pool comes, and the leader is lost meanwhile.
type burstScenario struct {
	serviceCount, maxPending int
	// leaderLostAtPercentOfBurst is when the leader is lost, in percent of the time that all
	// Services take without a loss; 0 is never.
	leaderLostAtPercentOfBurst int
	leaderKilled               bool
}

// runBurstAndMeasure returns how long it takes until all Services have an address.
func (b burstScenario) runBurstAndMeasure(t *testing.T, undisturbed time.Duration) (took time.Duration) {
	g := &doubleAssignmentDetector{serviceNameByAddress: map[netip.Addr]string{}}
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(g.recordServiceChange)
		for i := range b.serviceCount {
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
		}
		s.DropServiceChangesBeforeFirstClient()
		c := startTestControllerWithMaxPending(t, s, newSlowAPIServerDelivery, ServiceWorkerOptions{LedgerWriterIdentity: "first"}, b.maxPending)
		synctest.Wait()
		time.Sleep(time.Minute) // each has said by then that there is no pool
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		c.ConfigurationReader.NotifyAllocationObjectChanged()
		begun := time.Now()
		if b.leaderLostAtPercentOfBurst > 0 {
			time.Sleep(undisturbed * time.Duration(b.leaderLostAtPercentOfBurst) / 100)
			if random := rand.New(rand.NewPCG(uint64(b.leaderLostAtPercentOfBurst), 1)); b.leaderKilled {
				c.killAndWait(func() bool { return random.IntN(2) == 0 })
			} else {
				c.stopAndWait()
			}
			c = startTestControllerWithMaxPending(t, s, newSlowAPIServerDelivery, ServiceWorkerOptions{LedgerWriterIdentity: "second"}, b.maxPending)
		}
		for g.countAssignedAddresses() < b.serviceCount && time.Since(begun) < time.Hour {
			time.Sleep(100 * time.Millisecond)
		}
		took = time.Since(begun)
		if n := g.countAssignedAddresses(); n < b.serviceCount {
			t.Errorf("%d of %d Services have an address", n, b.serviceCount)
		}
		c.stopAndWait()
	})
	for _, f := range g.doubleAssignmentTexts {
		t.Error(f)
	}
	return took
}

// TestAllServicesAreServedAfterLeaderLossInBurst kills or stops the leader at different moments of
// a burst, while more Services wait than pending assignments may be open. GANTRY_BURSTS=long uses
// the numbers of a large cluster.
func TestAllServicesAreServedAfterLeaderLossInBurst(t *testing.T) {
	sizes, bound := []int{288, 320, 640}, 256
	if os.Getenv("GANTRY_BURSTS") == "long" {
		sizes, bound = []int{4500, 5000, 10000}, maxPendingAssignments
	}
	for _, n := range sizes {
		undisturbed := burstScenario{serviceCount: n, maxPending: bound}.runBurstAndMeasure(t, 0)
		for lost := 10; lost < 100; lost += 10 {
			for _, killed := range []bool{true, false} {
				took := burstScenario{n, bound, lost, killed}.runBurstAndMeasure(t, undisturbed)
				if took > undisturbed+15*time.Second {
					t.Errorf("%d Services, leader lost at %d %% (killed: %t): it took %s, without that %s", n, lost, killed, took, undisturbed)
				}
			}
		}
	}
}

// TestNextLeaderWritesPendingAssignments has more pending assignments in the AddressLedger
// than a controller keeps open itself.
func TestNextLeaderWritesPendingAssignments(t *testing.T) {
	for _, n := range []int{15, 16, 17, 40} {
		runWithFakeTime(t, func(t *testing.T) {
			s := apitest.NewServer(nil)
			s.SetPool("p", poolSpec("10.0.0.0/24"))
			var pending []v1alpha1.PendingAssignment
			for i := range n {
				o := newLoadBalancer(fmt.Sprint("s", i))
				s.CreateService(o)
				pending = append(pending, newPendingAssignment(o.Name, s.ServiceByKey(serviceKey(o.Name)).ResourceVersion, netip.AddrFrom4([4]byte{10, 0, 0, byte(100 + i)})))
			}
			writePendingAsOtherController(t, apitest.NewClient(s, nil), pending...)
			c := startTestControllerWithMaxPending(t, s, nil, ServiceWorkerOptions{}, 16)
			defer c.stopAndWait()
			s.CreateService(newLoadBalancer("late"))
			synctest.Wait()
			time.Sleep(time.Second)
			for i := range n {
				wantAddressAndReason(t, s, fmt.Sprint("s", i), fmt.Sprintf("10.0.0.%d", 100+i), names.ReasonAssigned)
			}
			wantAddressAndReason(t, s, "late", "10.0.0.0", names.ReasonAssigned)
			if w := s.CountWriteRequestsOfKind("ledger"); w > 3 {
				t.Errorf("the AddressLedger was written %d times, want once for what is pending and once for the Service that came late", w-1)
			}
			if _, open, _ := c.workerState.readState(); open != 0 {
				t.Errorf("%d pending assignments are open at the end", open)
			}
			if err := c.CheckReady(time.Now()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPendingAssignmentOfLostPoolIsClosed has a pending assignment with an address that the Service
// should not get any more, because its pool has changed since. The write may still arrive, so that
// no other Service gets the address before this one has another resourceVersion.
func TestPendingAssignmentOfLostPoolIsClosed(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.0/24"))
		recorder := &eventRecorder{}
		c := startController(t, s, nil, ServiceWorkerOptions{RecordEvent: recorder.recordEvent})
		s.CreateService(newLoadBalancer("a"))
		time.Sleep(time.Second)
		c.stopAndWait()
		o := s.ServiceByKey(serviceKey("a"))
		writePendingAsOtherController(t, apitest.NewClient(s, nil), newPendingAssignment("a", o.ResourceVersion, parseAddresses("192.0.2.9")...))
		var allow atomic.Bool
		s.RefuseServiceWrites(func(*corev1.Service) error {
			if !allow.Load() {
				return errRefusedByTest
			}
			return nil
		})
		c = startController(t, s, nil, ServiceWorkerOptions{RecordEvent: recorder.recordEvent})
		defer c.stopAndWait()
		time.Sleep(time.Second)
		b := newLoadBalancer("b")
		b.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: "192.0.2.9"}
		s.CreateService(b)
		time.Sleep(time.Minute)
		if a := firstAddress(s.ServiceByKey(serviceKey("b"))); a.IsValid() {
			t.Errorf("b was given %s, which may still be written to a", a)
		}
		allow.Store(true)
		time.Sleep(time.Minute)
		wantAddressAndReason(t, s, "a", "192.0.2.0", names.ReasonAssigned)
		wantAddressAndReason(t, s, "b", "192.0.2.9", names.ReasonAssigned)
		if s.ServiceByKey(serviceKey("a")).ResourceVersion == o.ResourceVersion {
			t.Error("a has the resourceVersion still on which the address may be written")
		}
		if e := recorder.eventsOf("a"); len(e) != 1 {
			t.Errorf("the events of a are %q, want the one of its address", e)
		}
	})
}

// TestFullAddressLedgerIsLoggedOnce has slow writes, so that many pending assignments are open.
func TestFullAddressLedgerIsLoggedOnce(t *testing.T) {
	said := &bytes.Buffer{}
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		for i := range 300 {
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
		}
		c := startTestControllerWithMaxPending(t, s, func(what string) apitest.Delivery {
			if what == "service" {
				return apitest.Delivery{RequestDelay: 8 * time.Second}
			}
			return apitest.Delivery{}
		}, ServiceWorkerOptions{Log: slog.New(slog.NewTextHandler(said, nil))}, 40)
		time.Sleep(20 * time.Second)
		_, open, bounded := c.workerState.readState()
		if open != 40 || bounded != 1 {
			t.Errorf("%d pending assignments are open, and Services were held back %d times; want 40, and once", open, bounded)
		}
		time.Sleep(10 * time.Minute)
		if err := c.CheckReady(time.Now()); err != nil {
			t.Error(err)
		}
		c.stopAndWait()
		if n := strings.Count(said.String(), "the AddressLedger is full of open pending assignments"); n != 1 {
			t.Errorf("it was logged %d times, want once: %s", n, said)
		}
		for _, o := range s.AllServices() {
			if !firstAddress(o).IsValid() {
				t.Errorf("%s has no address", o.Name)
			}
		}
	})
}

// startControllerWithWaitingServices starts a controller when a number of Services wait for a busy
// API server.
func startControllerWithWaitingServices(t *testing.T, serviceCount int) (*apitest.Server, *runningController) {
	t.Helper()
	s := apitest.NewServer(nil)
	s.SetPool("p", poolSpec("10.0.0.0/16"))
	for i := range serviceCount {
		s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
	}
	return s, startController(t, s, newSlowAPIServerDelivery, ServiceWorkerOptions{})
}

// TestAddressLedgerStaysSmallInABurst has many more Services than are written in a second. The
// AddressLedger shows the next ones only, since each of its writes costs as much as it is large.
func TestAddressLedgerStaysSmallInABurst(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s, c := startControllerWithWaitingServices(t, 4000)
		defer c.stopAndWait()
		most := 0
		for range 60 {
			time.Sleep(100 * time.Millisecond)
			if l := s.LedgerByName(names.PendingAssignmentsLedger); l != nil {
				most = max(most, len(l.Spec.Pending))
			}
		}
		if limit := maxQueuedTasksToStartSwap + maxWritesPerSwap + 2*maxTasksInFlight; most > limit {
			t.Errorf("the AddressLedger shows %d pending assignments, want at most %d", most, limit)
		}
		for _, o := range s.AllServices() {
			if !firstAddress(o).IsValid() {
				t.Fatalf("%s has no address after 6 s", o.Name)
			}
		}
	})
}

// TestEachWriteOfTheAddressLedgerIsBelow128KB has Services with the longest names and many
// addresses each, and writes of them that take long.
func TestEachWriteOfTheAddressLedgerIsBelow128KB(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		const limit = 128 << 10
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		largest := 0
		s.RefuseLedgerWrites(func(l *v1alpha1.AddressLedger) error {
			encoded, err := json.Marshal(l)
			largest = max(largest, len(encoded))
			return err
		})
		for i := range 600 {
			o := newLoadBalancer(fmt.Sprintf("s%062d", i))
			o.Annotations = map[string]string{names.AnnotationAddressesPerFamily: "16"}
			s.CreateService(o)
		}
		c := startController(t, s, func(what string) apitest.Delivery {
			if what == "service" {
				return apitest.Delivery{RequestDelay: 8 * time.Second}
			}
			return apitest.Delivery{}
		}, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(10 * time.Minute)
		if largest >= limit || largest < limit/4 {
			t.Errorf("the largest AddressLedger has %d bytes, want less than %d, and enough for this test to count", largest, limit)
		}
		for _, o := range s.AllServices() {
			if !firstAddress(o).IsValid() {
				t.Fatalf("%s has no address: %v", o.Name, o.Status.Conditions)
			}
		}
	})
}

// TestFailingLedgerTrimDelaysNoAddress makes the API server fail at every write of the
// AddressLedger that brings no pending assignment.
func TestFailingLedgerTrimDelaysNoAddress(t *testing.T) {
	for name, err := range map[string]error{"failed": apierrors.NewInternalError(errors.New("no")), "refused": errRefusedByTest} {
		t.Run(name, func(t *testing.T) {
			runWithFakeTime(t, func(t *testing.T) {
				s, c := startControllerWithWaitingServices(t, 200)
				defer c.stopAndWait()
				for !c.IsLedgerLoaded() {
					time.Sleep(time.Millisecond)
				}
				s.RefuseLedgerWrites(func(l *v1alpha1.AddressLedger) error {
					if len(l.Spec.Pending) == 0 {
						return err
					}
					return nil
				})
				time.Sleep(10*time.Minute + time.Second)
				if n := s.CountRefusedWrites(); n < 2 || n > 60 {
					t.Errorf("it was tried %d times in 10 minutes", n)
				}
				s.CreateService(newLoadBalancer("late"))
				time.Sleep(time.Second)
				wantAddressAndReason(t, s, "late", "10.0.0.200", names.ReasonAssigned)
			})
		})
	}
}

// TestAddressLedgerIsTrimmedAfterABurst checks its entries when no work is left, and that it is not
// written again.
func TestAddressLedgerIsTrimmedAfterABurst(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s, c := startControllerWithWaitingServices(t, 200)
		defer c.stopAndWait()
		time.Sleep(2 * time.Second)
		if n := len(s.LedgerByName(names.PendingAssignmentsLedger).Spec.Pending); n < closedEntriesForLedgerTrim {
			t.Fatalf("after the burst the AddressLedger shows %d pending assignments, too few for this test", n)
		}
		time.Sleep(2 * ledgerTrimDelay)
		if n := len(s.LedgerByName(names.PendingAssignmentsLedger).Spec.Pending); n != 0 {
			t.Errorf("the AddressLedger shows %d pending assignments when none is open", n)
		}
		writes := s.CountWriteRequestsOfKind("ledger")
		time.Sleep(time.Hour)
		if n := s.CountWriteRequestsOfKind("ledger") - writes; n != 0 {
			t.Errorf("it was written %d times more when nothing happened", n)
		}
		s.CreateService(newLoadBalancer("late"))
		time.Sleep(time.Second)
		wantAddressAndReason(t, s, "late", "10.0.0.200", names.ReasonAssigned)
	})
}

// TestStoppingLeaderFinishesPendingAssignments stops the leader while many writes wait.
func TestStoppingLeaderFinishesPendingAssignments(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s, c := startControllerWithWaitingServices(t, 200)
		synctest.Wait()
		for len(s.LedgerByName(names.PendingAssignmentsLedger).Spec.Pending) < 100 {
			time.Sleep(time.Millisecond)
		}
		shown := s.LedgerByName(names.PendingAssignmentsLedger).Spec.Pending
		begun := time.Now()
		c.stopAndWait()
		if took := time.Since(begun); took > drainTasksTimeout {
			t.Errorf("it took %s, more than it may", took)
		}
		for _, p := range shown {
			if k := (view.ObjectKey{Namespace: p.Namespace, Name: p.Name}); !firstAddress(s.ServiceByKey(k)).IsValid() {
				t.Errorf("Service %s has no address, though the AddressLedger showed it", k)
			}
		}
	})
}
