package assign

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
)

// The conditions of a pool and a reservation say which generation they are about. Until an edit is
// read, they are about the one before, also when the counts are written meanwhile.
func TestPoolConditionsHaveObservedGenerationThatWasRead(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.0/30"))
		s.SetReservation("r", v1alpha1.AddressReservationSpec{Service: v1alpha1.ServiceReference{Namespace: "default", Name: "other"}, Addresses: []string{"192.0.2.3"}})
		c := startController(t, s, nil, ServiceWorkerOptions{})
		defer c.stopAndWait()
		check := func(generation, assigned int64) {
			t.Helper()
			p := s.PoolByName("p")
			if got := meta.FindStatusCondition(p.Status.Gantry.Conditions, names.ConditionValid); got == nil || got.ObservedGeneration != generation || p.Status.AssignedIPv4 != assigned {
				t.Errorf("the condition is %+v with %d addresses assigned, want generation %d and %d", got, p.Status.AssignedIPv4, generation, assigned)
			}
			for _, kind := range []string{names.ConditionValid, names.ConditionReservationEffective} {
				if got := meta.FindStatusCondition(s.ReservationByName("r").Status.Conditions, kind); got == nil || got.ObservedGeneration != generation {
					t.Errorf("the reservation's condition is %+v, want generation %d", got, generation)
				}
			}
		}
		time.Sleep(5 * time.Second)
		check(1, 0)
		s.SetPool("p", poolSpec("192.0.2.0/29"))
		s.SetReservation("r", v1alpha1.AddressReservationSpec{Service: v1alpha1.ServiceReference{Namespace: "default", Name: "other"}, Addresses: []string{"192.0.2.2"}})
		s.CreateService(newLoadBalancer("a"))
		time.Sleep(5 * time.Second)
		check(1, 1)
		c.ConfigurationReader.NotifyAllocationObjectChanged()
		time.Sleep(5 * time.Second)
		check(2, 1)
	})
}
