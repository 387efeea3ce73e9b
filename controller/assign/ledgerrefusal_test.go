package assign

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
)

// refuseLedgerEntriesOfServices refuses an AddressLedger with an entry of one of the Services.
func refuseLedgerEntriesOfServices(services ...string) func(*v1alpha1.AddressLedger) error {
	return func(l *v1alpha1.AddressLedger) error {
		for _, p := range l.Spec.Pending {
			if len(services) == 0 || slices.Contains(services, p.Name) {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "addressledgers"}, l.Name, errors.New("a policy does not want it"))
			}
		}
		return nil
	}
}

// TestRefusedPendingAssignmentDelaysNoOtherService makes the API server refuse every AddressLedger
// with an entry of one of three Services. The others are served. The three report the reason, and
// are served once it is allowed.
func TestRefusedPendingAssignmentDelaysNoOtherService(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		bad := []string{"s17", "s18", "s150"}
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		s.RefuseLedgerWrites(refuseLedgerEntriesOfServices(bad...))
		recorder := &eventRecorder{}
		for i := range 200 {
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
		}
		c := startController(t, s, newFastAPIServerDelivery, ServiceWorkerOptions{RecordEvent: recorder.recordEvent})
		defer c.stopAndWait()
		time.Sleep(10 * time.Second)
		for i := range 200 {
			name := fmt.Sprint("s", i)
			o := s.ServiceByKey(serviceKey(name))
			switch {
			case !slices.Contains(bad, name):
				if !firstAddress(o).IsValid() {
					t.Errorf("Service %s has no address: %v", name, o.Status.Conditions)
				}
			case firstAddress(o).IsValid() || addressAssignedConditionReason(o) != names.ReasonWriteFailed:
				t.Errorf("Service %s has %v for the reason %q, want none for WriteFailed", name, ingressAddresses(o), addressAssignedConditionReason(o))
			case len(recorder.eventsOf(name)) != 1 || !strings.Contains(recorder.eventsOf(name)[0], "Warning AllocationFailed WriteFailed: "):
				t.Errorf("the events of %s are %q", name, recorder.eventsOf(name))
			}
		}
		before := s.CountWriteRequestsOfKind("service")
		for i := range 20 { // later Services do not wait for them either
			name, begun := fmt.Sprint("late", i), time.Now()
			s.CreateService(newLoadBalancer(name))
			time.Sleep(500 * time.Millisecond)
			if !firstAddress(s.ServiceByKey(serviceKey(name))).IsValid() {
				t.Errorf("Service %s has no address after %s", name, time.Since(begun))
			}
		}
		refused := s.CountRefusedWrites()
		time.Sleep(10 * time.Minute)
		if n := s.CountRefusedWrites() - refused; n > 3*25 {
			t.Errorf("what is refused was tried %d times in 10 minutes", n)
		}
		if n := s.CountWriteRequestsOfKind("service") - before; n > 20 {
			t.Errorf("%d status writes for 20 Services", n)
		}
		s.RefuseLedgerWrites(nil)
		time.Sleep(maxRetryDelay + time.Second)
		for _, name := range bad {
			if o := s.ServiceByKey(serviceKey(name)); !firstAddress(o).IsValid() || addressAssignedConditionReason(o) != names.ReasonAssigned {
				t.Errorf("Service %s is not served when it is allowed: %v", name, o.Status.Conditions)
			}
		}
	})
}

// TestRefusedEarlierEntryDelaysNoOtherService lets a new policy refuse each AddressLedger with the
// entry of a Service whose write has no answer. The other Services are served, also by the next
// leader, and never with the address of that write.
func TestRefusedEarlierEntryDelaysNoOtherService(t *testing.T) {
	for _, isLeaderLost := range []bool{false, true} {
		t.Run(fmt.Sprint("leader lost: ", isLeaderLost), func(t *testing.T) {
			o := newAssignmentOracle()
			runWithFakeTime(t, func(t *testing.T) {
				s := apitest.NewServer(o.checkServiceChange)
				s.SetPool("p", poolSpec("10.0.0.0/24"))
				c := startController(t, s, newFastAPIServerDelivery, ServiceWorkerOptions{LedgerWriterIdentity: "first"})
				s.CreateService(newLoadBalancer("before"))
				time.Sleep(10 * time.Second)
				s.RefuseServiceWrites(func(o *corev1.Service) error {
					if o.Name == "x" {
						return apierrors.NewInternalError(errors.New("a webhook failed"))
					}
					return nil
				})
				s.CreateService(newLoadBalancer("x"))
				time.Sleep(time.Second)
				s.RefuseLedgerWrites(refuseLedgerEntriesOfServices("x"))
				wantServed := func(name string, within time.Duration) {
					t.Helper()
					s.CreateService(newLoadBalancer(name))
					time.Sleep(within)
					if o := s.ServiceByKey(serviceKey(name)); !firstAddress(o).IsValid() {
						t.Errorf("Service %s has no address after %s: %v", name, within, o.Status.Conditions)
					}
				}
				for i := range 20 {
					wantServed(fmt.Sprint("s", i), 2*time.Second)
				}
				if isLeaderLost {
					c.killAndWait(func() bool { return true })
					c = startController(t, s, newFastAPIServerDelivery, ServiceWorkerOptions{LedgerWriterIdentity: "second"})
					wantServed("next", 2*invalidateUnrecordedWritesTimeout)
				}
				wantServed("last", 2*time.Second)
				s.RefuseServiceWrites(nil)
				time.Sleep(time.Minute)
				s.RefuseLedgerWrites(nil)
				time.Sleep(time.Minute)
				if o := s.ServiceByKey(serviceKey("x")); !firstAddress(o).IsValid() {
					t.Errorf("the refused Service is not served in the end: %v", o.Status.Conditions)
				}
				wantServed("after", 2*time.Second)
				if l := s.LedgerByName(names.PendingAssignmentsLedger); l.Spec.Incomplete {
					t.Error("the AddressLedger stays incomplete when all writes are answered")
				}
				c.stopAndWait()
			})
			for _, f := range o.faults {
				t.Error(f)
			}
		})
	}
}

// TestFailingWritesDoNotFillTheAddressLedger makes the API server answer each write to many
// Services with an internal error, because a webhook for their namespace fails. Their pending
// assignments stay open, and would fill the AddressLedger. Other Services are served all the same.
func TestFailingWritesDoNotFillTheAddressLedger(t *testing.T) {
	o := newAssignmentOracle()
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(o.checkServiceChange)
		s.SetPool("p", poolSpec("10.0.0.0/24"))
		s.RefuseServiceWrites(func(o *corev1.Service) error {
			if strings.HasPrefix(o.Name, "bad") {
				return apierrors.NewInternalError(errors.New("a webhook failed"))
			}
			return nil
		})
		c := startTestControllerWithMaxPending(t, s, newFastAPIServerDelivery, ServiceWorkerOptions{}, 8)
		defer c.stopAndWait()
		time.Sleep(10 * time.Second)
		for i := range 40 {
			s.CreateService(newLoadBalancer(fmt.Sprint("bad", i)))
		}
		time.Sleep(time.Minute)
		for i := range 40 {
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
		}
		time.Sleep(10 * time.Second)
		for i := range 40 {
			if o := s.ServiceByKey(serviceKey(fmt.Sprint("s", i))); !firstAddress(o).IsValid() {
				t.Errorf("Service %s has no address after 10 s: %v", o.Name, o.Status.Conditions)
			}
		}
		if n := len(s.LedgerByName(names.PendingAssignmentsLedger).Spec.Pending); n > 8 {
			t.Errorf("the AddressLedger has %d entries, more than 8", n)
		}
		s.RefuseServiceWrites(nil)
		time.Sleep(time.Minute)
		if s.LedgerByName(names.PendingAssignmentsLedger).Spec.Incomplete {
			t.Error("the AddressLedger stays incomplete when nothing is left out, until another Service comes")
		}
		s.CreateService(newLoadBalancer("last"))
		time.Sleep(time.Second)
		for _, o := range s.AllServices() {
			if !firstAddress(o).IsValid() {
				t.Errorf("Service %s has no address in the end: %v", o.Name, o.Status.Conditions)
			}
		}
		if s.LedgerByName(names.PendingAssignmentsLedger).Spec.Incomplete {
			t.Error("the AddressLedger stays incomplete when all writes are answered")
		}
	})
	for _, f := range o.faults {
		t.Error(f)
	}
}

// TestOnceRefusedForeignAssignmentIsWrittenToFreeRoom has room for one open assignment, which
// another controller has recorded for a Service whose entry was refused before. It is written all
// the same, so that other Services get room.
func TestOnceRefusedForeignAssignmentIsWrittenToFreeRoom(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/24"))
		s.RefuseLedgerWrites(refuseLedgerEntriesOfServices("x"))
		c := startTestControllerWithMaxPending(t, s, newFastAPIServerDelivery, ServiceWorkerOptions{}, 1)
		defer c.stopAndWait()
		s.CreateService(newLoadBalancer("x"))
		time.Sleep(10 * time.Second)
		wantAddressAndReason(t, s, "x", "", names.ReasonWriteFailed)
		s.RefuseLedgerWrites(nil)
		writePendingAsOtherController(t, apitest.NewClient(s, nil), newPendingAssignment("x", s.ServiceByKey(serviceKey("x")).ResourceVersion, parseAddresses("10.0.0.0")...))
		s.CreateService(newLoadBalancer("y"))
		s.CreateService(newLoadBalancer("z"))
		time.Sleep(time.Minute)
		for _, name := range []string{"x", "y", "z"} {
			if o := s.ServiceByKey(serviceKey(name)); !firstAddress(o).IsValid() {
				t.Errorf("Service %s has no address: %v", name, o.Status.Conditions)
			}
		}
	})
}

// TestRefusedLedgerWritesSlowDownAndRecover makes the API server refuse every pending assignment,
// as for a controller without the permission. The controller tries at most once per second in the
// long run, and serves all Services once it is allowed.
func TestRefusedLedgerWritesSlowDownAndRecover(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		s.RefuseLedgerWrites(refuseLedgerEntriesOfServices())
		for i := range 100 {
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
		}
		c := startController(t, s, newFastAPIServerDelivery, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(5 * time.Minute)
		// the first term is the search for each entry
		if n := s.CountRefusedWrites(); n > 2*100+5*60 {
			t.Errorf("the AddressLedger was written %d times in 5 minutes", n)
		}
		if c.CheckReady(time.Now()) == nil {
			t.Error("it is ready, although it may assign no address")
		}
		s.RefuseLedgerWrites(nil)
		time.Sleep(2 * time.Minute)
		for _, o := range s.AllServices() {
			if !firstAddress(o).IsValid() {
				t.Errorf("Service %s has no address: %v", o.Name, o.Status.Conditions)
			}
		}
	})
}

// TestRefusedServicesDoNotFillTheAddressLedger has as many Services as the AddressLedger has room
// for. An earlier controller has recorded an assignment for each, and the API server refuses their
// status. Another Service gets its address all the same, also after a change of leaders.
func TestRefusedServicesDoNotFillTheAddressLedger(t *testing.T) {
	o := newAssignmentOracle()
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(o.checkServiceChange)
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		var pending []v1alpha1.PendingAssignment
		for i := range maxPendingAssignments {
			name := fmt.Sprint("bad", i)
			s.CreateService(newLoadBalancer(name))
			a := netip.AddrFrom4([4]byte{10, 0, byte(100 + i/256), byte(i)})
			pending = append(pending, newPendingAssignment(name, s.ServiceByKey(serviceKey(name)).ResourceVersion, a))
		}
		writePendingAsOtherController(t, apitest.NewClient(s, nil), pending...)
		s.RefuseServiceWrites(func(o *corev1.Service) error {
			if strings.HasPrefix(o.Name, "bad") {
				return errRefusedByTest
			}
			return nil
		})
		wantServed := func(name string) {
			t.Helper()
			s.CreateService(newLoadBalancer(name))
			time.Sleep(2 * time.Second)
			if o := s.ServiceByKey(serviceKey(name)); !firstAddress(o).IsValid() {
				t.Errorf("Service %s has no address after 2 s: %v", name, o.Status.Conditions)
			}
			if n := len(s.LedgerByName(names.PendingAssignmentsLedger).Spec.Pending); n > maxPendingAssignments {
				t.Errorf("the AddressLedger has %d entries, more than %d", n, maxPendingAssignments)
			}
		}
		c := startController(t, s, newFastAPIServerDelivery, ServiceWorkerOptions{LedgerWriterIdentity: "first"})
		time.Sleep(time.Minute)
		for i := range 10 {
			wantServed(fmt.Sprint("s", i))
		}
		c.stopAndWait()
		c = startController(t, s, newFastAPIServerDelivery, ServiceWorkerOptions{LedgerWriterIdentity: "second"})
		time.Sleep(2 * invalidateUnrecordedWritesTimeout)
		for i := range 10 {
			wantServed(fmt.Sprint("next", i))
		}
		s.RefuseServiceWrites(nil)
		time.Sleep(time.Minute)
		s.CreateService(newLoadBalancer("last"))
		time.Sleep(10 * time.Second)
		for _, o := range s.AllServices() {
			if !firstAddress(o).IsValid() {
				t.Errorf("Service %s has no address in the end: %v", o.Name, o.Status.Conditions)
			}
		}
		if l := s.LedgerByName(names.PendingAssignmentsLedger); l.Spec.Incomplete {
			t.Error("the AddressLedger stays incomplete when all writes are answered")
		}
		c.stopAndWait()
	})
	for _, f := range o.faults {
		t.Error(f)
	}
}
