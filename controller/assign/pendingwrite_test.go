package assign

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
)

// TestAddressesOfAPendingWriteAreNotGivenAway kills a leader whose write of a second address has
// not arrived. The next leader decides differently, and its own write takes longer. Meanwhile a new
// Service could get the address.
func TestAddressesOfAPendingWriteAreNotGivenAway(t *testing.T) {
	o := newAssignmentOracle()
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(o.checkServiceChange)
		s.SetPool("p4", poolSpec("192.0.2.0/30"))
		s.SetPool("p6", poolSpec("fd00:1::/126"))
		w := &twoControllerHarness{server: s}
		d := w.newService(1)
		d.Name = "d"
		d.Status.LoadBalancer.Ingress = ingressEntriesOfAddresses("192.0.2.0")
		s.CreateService(d)
		d = s.ServiceByKey(serviceKey("d"))
		lost := apitest.NewClient(s, func(what string) apitest.Delivery {
			if what == "service" {
				return apitest.Delivery{RequestDelay: 8 * time.Second}
			}
			return apitest.Delivery{}
		})
		assigned := parseAddresses("192.0.2.0", "fd00:1::1")
		writePendingAsOtherController(t, lost, newPendingAssignment("d", d.ResourceVersion, assigned...))
		after := d.DeepCopy()
		after.Status.LoadBalancer.Ingress = ingressEntriesOfAddresses("192.0.2.0", "fd00:1::1")
		go func() { _, _ = lost.PatchStatusAndAnnotations(context.Background(), d, after) }()
		time.Sleep(time.Second)
		var written atomic.Bool
		c := startController(t, s, func(what string) apitest.Delivery {
			if what == "service" && !written.Swap(true) {
				return apitest.Delivery{RequestDelay: 9 * time.Second}
			}
			return apitest.Delivery{}
		}, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(time.Second)
		e := w.newService(3)
		e.Name = "e"
		s.CreateService(e)
		time.Sleep(time.Minute)
		if got := ingressAddresses(s.ServiceByKey(serviceKey("d"))); len(got) != 2 {
			t.Errorf("d has %v, want one address of each family", got)
		}
		if got := ingressAddresses(s.ServiceByKey(serviceKey("e"))); len(got) != 1 {
			t.Errorf("e has %v, want one address", got)
		}
	})
	for _, f := range o.faults {
		t.Error(f)
	}
}

// TestRefusedWriteTakesNoAddressFromItsHolder has a pending assignment of another controller, which
// removed it and gave the address to a younger Service. The API server refuses the status of the
// older Service. The younger one keeps the address.
func TestRefusedWriteTakesNoAddressFromItsHolder(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.0/30"))
		s.CreateService(newLoadBalancer("old"))
		old := s.ServiceByKey(serviceKey("old"))
		young := newLoadBalancer("young")
		young.Status.LoadBalancer.Ingress = ingressEntriesOfAddresses("192.0.2.1")
		s.CreateService(young)
		writePendingAsOtherController(t, apitest.NewClient(s, nil), newPendingAssignment("old", old.ResourceVersion, parseAddresses("192.0.2.1")...))
		s.RefuseServiceWrites(func(o *corev1.Service) error {
			if o.Name == "old" {
				return errRefusedByTest
			}
			return nil
		})
		c := startController(t, s, nil, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(time.Minute)
		s.SetPool("p", poolSpec("192.0.2.0/29")) // each Service is decided again
		c.ConfigurationReader.NotifyAllocationObjectChanged()
		time.Sleep(time.Minute)
		wantAddressAndReason(t, s, "young", "192.0.2.1", names.ReasonAssigned)
		s.RefuseServiceWrites(nil)
		time.Sleep(time.Minute)
		wantAddressAndReason(t, s, "old", "192.0.2.0", names.ReasonAssigned)
		wantAddressAndReason(t, s, "young", "192.0.2.1", names.ReasonAssigned)
	})
}

// TestAddressDroppedFromAStatusGoesToAWaitingService overwrites an address in a status with another
// one; it is the only address of the pool.
func TestAddressDroppedFromAStatusGoesToAWaitingService(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.0/32"))
		c := startController(t, s, nil, ServiceWorkerOptions{})
		defer c.stopAndWait()
		s.CreateService(newLoadBalancer("a"))
		time.Sleep(time.Second)
		s.CreateService(newLoadBalancer("b"))
		time.Sleep(time.Second)
		wantAddressAndReason(t, s, "b", "", names.ReasonPoolExhausted)
		s.EditService(serviceKey("a"), func(o *corev1.Service) { o.Status.LoadBalancer.Ingress[0].IP = "198.51.100.1" })
		time.Sleep(time.Minute)
		wantAddressAndReason(t, s, "b", "192.0.2.0", names.ReasonAssigned)
	})
}

// TestNoWriteReliesOnPendingAssignmentOfOtherController has a pending assignment of another
// controller that still works. When the API server refuses its write, that one removes the
// assignment and gives the address to another Service. It must not be able to do so once a write of
// this controller, for which the assignment would do as well, has begun.
func TestNoWriteReliesOnPendingAssignmentOfOtherController(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(newAssignmentOracle().checkServiceChange)
		s.SetPool("p", poolSpec("192.0.2.0/31"))
		s.CreateService(newLoadBalancer("d"))
		other := apitest.NewClient(s, nil)
		writePendingAsOtherController(t, other, newPendingAssignment("d", s.ServiceByKey(serviceKey("d")).ResourceVersion, parseAddresses("192.0.2.0")...))
		known, err := other.ReadOrCreateLedger(t.Context(), names.PendingAssignmentsLedger)
		if err != nil {
			t.Fatal(err)
		}
		var isSent atomic.Bool
		c := startController(t, s, func(what string) apitest.Delivery {
			if what == "service" {
				isSent.Store(true)
				return apitest.Delivery{RequestDelay: 5 * time.Second}
			}
			return apitest.Delivery{}
		}, ServiceWorkerOptions{})
		defer c.stopAndWait()
		for !isSent.Load() {
			time.Sleep(time.Millisecond)
		}
		known = known.DeepCopy()
		known.Spec.Pending = nil
		if _, err := other.CompareAndSwapLedger(t.Context(), known); !apierrors.IsConflict(err) {
			t.Errorf("the other controller can remove the assignment while a write relies on it: %v", err)
		}
		time.Sleep(10 * time.Second)
		wantAddressAndReason(t, s, "d", "192.0.2.0", names.ReasonAssigned)
	})
}

// TestAddressPendingForOtherClassIsNotGivenAway changes the class that the controllers serve while
// a write for a Service of the previous class has not arrived. No Service of the new class gets the
// address before that write is settled. Afterwards the Service of the previous class has nothing of
// ours, and the address is free.
func TestAddressPendingForOtherClassIsNotGivenAway(t *testing.T) {
	for name, delay := range map[string]time.Duration{"the write comes early": 100 * time.Millisecond, "the write comes late": 8 * time.Second} {
		t.Run(name, func(t *testing.T) {
			o := newAssignmentOracle()
			runWithFakeTime(t, func(t *testing.T) {
				s := apitest.NewServer(o.checkServiceChange)
				s.SetPool("p", poolSpec("192.0.2.0/31"))
				class := "example.com/previous"
				d := newLoadBalancer("d")
				d.Spec.LoadBalancerClass = &class
				s.CreateService(d)
				d = s.ServiceByKey(serviceKey("d"))
				lost := apitest.NewClient(s, func(what string) apitest.Delivery {
					if what == "service" {
						return apitest.Delivery{RequestDelay: delay}
					}
					return apitest.Delivery{}
				})
				writePendingAsOtherController(t, lost, newPendingAssignment("d", d.ResourceVersion, parseAddresses("192.0.2.0")...))
				o.isAddressChangeAllowed[serviceKey("d")] = true
				after := d.DeepCopy()
				after.Status.LoadBalancer.Ingress = ingressEntriesOfAddresses("192.0.2.0")
				go func() { _, _ = lost.PatchStatusAndAnnotations(context.Background(), d, after) }()
				c := startController(t, s, func(what string) apitest.Delivery {
					if what == "service" {
						return apitest.Delivery{RequestDelay: 500 * time.Millisecond}
					}
					return apitest.Delivery{}
				}, ServiceWorkerOptions{})
				defer c.stopAndWait()
				s.CreateService(newLoadBalancer("e"))
				s.CreateService(newLoadBalancer("f"))
				time.Sleep(time.Minute)
				if now := s.ServiceByKey(serviceKey("d")); len(ingressAddresses(now)) > 0 || hasOurStatusOrAnnotations(now) {
					t.Errorf("the Service of another class has %+v", now.Status)
				}
				for _, name := range []string{"e", "f"} {
					if a := firstAddress(s.ServiceByKey(serviceKey(name))); !a.IsValid() {
						t.Errorf("%s has no address", name)
					}
				}
				if n := c.ledgerWriter.pendingWrites.CountPending(); n > 0 {
					t.Errorf("%d pending assignments stay open", n)
				}
			})
			for _, f := range o.faults {
				t.Error(f)
			}
		})
	}
}

// TestLostAddressOfAPendingWriteIsNotGivenAway deletes the holder with which the Service of a
// pending write may not share any more. The write still arrives, so that no third Service may have
// the address before.
func TestLostAddressOfAPendingWriteIsNotGivenAway(t *testing.T) {
	o := newAssignmentOracle()
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(o.checkServiceChange)
		s.SetPool("p", poolSpec("192.0.2.1/32"))
		s.CreateService(newSharer("holder", 81, ""))
		before := startController(t, s, nil, ServiceWorkerOptions{})
		time.Sleep(time.Second)
		before.stopAndWait()
		s.CreateService(newSharer("sharer", 80, ""))
		d := s.ServiceByKey(serviceKey("sharer"))
		late := apitest.NewClient(s, func(what string) apitest.Delivery {
			if what == "service" {
				return apitest.Delivery{RequestDelay: 8 * time.Second}
			}
			return apitest.Delivery{}
		})
		writePendingAsOtherController(t, late, newPendingAssignment("sharer", d.ResourceVersion, parseAddresses("192.0.2.1")...))
		after := d.DeepCopy()
		after.Status.LoadBalancer.Ingress = ingressEntriesOfAddresses("192.0.2.1")
		go func() { _, _ = late.PatchStatusAndAnnotations(context.Background(), d, after) }()
		s.EditService(serviceKey("holder"), editToChangePort(80))
		start := time.Now()
		c := startController(t, s, func(what string) apitest.Delivery {
			if what == "service" && time.Since(start) < time.Second {
				return apitest.Delivery{RequestDelay: 9 * time.Second}
			}
			return apitest.Delivery{}
		}, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(time.Second)
		s.DeleteService(serviceKey("holder"))
		s.CreateService(newLoadBalancer("third"))
		time.Sleep(5 * time.Minute)
		got := append(ingressAddresses(s.ServiceByKey(serviceKey("sharer"))), ingressAddresses(s.ServiceByKey(serviceKey("third")))...)
		if len(got) != 1 {
			t.Errorf("the two Services have %v, want the address once", got)
		}
	})
	for _, f := range o.faults {
		t.Error(f)
	}
}
