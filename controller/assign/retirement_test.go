package assign

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
)

// lostAddressDetector records each Service that has no address after it had one.
type lostAddressDetector struct{ servicesThatLostAddress []string }

func (d *lostAddressDetector) recordServiceChange(before, after *corev1.Service) {
	if before != nil && after != nil && len(ingressAddresses(before)) > 0 && len(ingressAddresses(after)) == 0 {
		d.servicesThatLostAddress = append(d.servicesThatLostAddress, after.Name)
	}
}

// setPoolRetirement edits what a pool retires; nil ends it.
func setPoolRetirement(s *apitest.Server, c *runningController, pool string, r *v1beta1.PoolRetirement) {
	spec := s.PoolByName(pool).Spec
	spec.Gantry = &v1beta1.PoolExtension{MaxPerService: 16, Retire: r}
	s.SetPool(pool, spec)
	c.ConfigurationReader.NotifyAllocationObjectChanged()
}

func countServicesWithAddressIn(s *apitest.Server, prefix string) int {
	n := 0
	for _, o := range s.AllServices() {
		if strings.HasPrefix(firstAddress(o).String(), prefix) {
			n++
		}
	}
	return n
}

// checkRetirementStatusOfPool checks the progress in the status of a pool.
func checkRetirementStatusOfPool(t *testing.T, p *v1beta1.IPAddressPool, left, without int32) {
	t.Helper()
	g, pool, condition := p.Status.Gantry, p.Name, metav1.ConditionFalse
	if left == 0 {
		condition = metav1.ConditionTrue
	}
	if g == nil || g.Retire == nil {
		t.Fatalf("the status of pool %s has no progress: %+v", pool, g)
	}
	if g.Retire.ServicesLeft != left || g.Retire.ServicesWithoutOtherAddress != without {
		t.Errorf("pool %s has the progress %+v, want %d left, %d of them without another address", pool, *g.Retire, left, without)
	}
	if c := meta.FindStatusCondition(g.Conditions, names.ConditionPoolRetirementDone); c == nil || c.Status != condition {
		t.Errorf("pool %s has the condition %+v, want %s", pool, c, condition)
	}
}

// TestRetiredPoolGivesItsServicesOtherAddresses retires a whole pool at six Services a minute, with
// a change of the leader in between. Each Service gets an address of the other pool at its turn,
// and none is without an address meanwhile.
func TestRetiredPoolGivesItsServicesOtherAddresses(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		d := &lostAddressDetector{}
		s := apitest.NewServer(d.recordServiceChange)
		s.SetPool("old", poolSpec("192.0.2.0/28"))
		recorder := &eventRecorder{}
		c := startController(t, s, nil, ServiceWorkerOptions{RecordEvent: recorder.recordEvent})
		for i := range 6 {
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
		}
		time.Sleep(time.Minute)
		s.SetPool("young", poolSpec("198.51.100.0/28"))
		c.ConfigurationReader.NotifyAllocationObjectChanged()
		time.Sleep(time.Minute)
		if n := countServicesWithAddressIn(s, "192.0.2."); n != 6 {
			t.Fatalf("%d Services have an address of the old pool before it is retired, want 6", n)
		}
		setPoolRetirement(s, c, "old", &v1beta1.PoolRetirement{ServicesPerMinute: 6})
		time.Sleep(5 * time.Second)
		checkRetirementStatusOfPool(t, s.PoolByName("old"), 5, 0)
		for moved := 1; moved <= 3; moved++ {
			if n := countServicesWithAddressIn(s, "198.51.100."); n != moved {
				t.Errorf("%d Services have moved after %d turns", n, moved)
			}
			time.Sleep(10 * time.Second)
		}
		s.CreateService(newLoadBalancer("late"))
		synctest.Wait()
		time.Sleep(time.Second)
		if a := firstAddress(s.ServiceByKey(serviceKey("late"))).String(); !strings.HasPrefix(a, "198.51.100.") {
			t.Errorf("a new Service has %s, which is retired", a)
		}
		c.stopAndWait()
		c = startController(t, s, nil, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(2 * time.Minute)
		if n := countServicesWithAddressIn(s, "198.51.100."); n != 7 {
			t.Errorf("%d of 7 Services have an address of the other pool at the end", n)
		}
		checkRetirementStatusOfPool(t, s.PoolByName("old"), 0, 0)
		writes := s.CountWriteRequestsOfKind("service") + s.CountWriteRequestsOfKind("pool")
		time.Sleep(time.Hour)
		if n := s.CountWriteRequestsOfKind("service") + s.CountWriteRequestsOfKind("pool") - writes; n != 0 {
			t.Errorf("%d writes when all is done", n)
		}
		if len(d.servicesThatLostAddress) > 0 {
			t.Errorf("without an address meanwhile: %v", d.servicesThatLostAddress)
		}
		// What is under way is no Warning.
		if e := strings.Join(recorder.eventsOf("s5"), "; "); strings.Contains(e, "Warning") || !strings.Contains(e, "Normal addressRetired AddressRetired: ") {
			t.Errorf("the events of s5 are %q", e)
		}
	})
}

// TestServicesKeepRetiredAddressWithoutReplacement retires a range of the only pool. There is one
// other address for three Services, and one Service requests its own.
func TestServicesKeepRetiredAddressWithoutReplacement(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		d := &lostAddressDetector{}
		s := apitest.NewServer(d.recordServiceChange)
		s.SetPool("p", poolSpec("192.0.2.0/30"))
		c := startController(t, s, nil, ServiceWorkerOptions{})
		defer c.stopAndWait()
		for i := range 3 {
			o := newLoadBalancer(fmt.Sprint("s", i))
			if i == 0 {
				o.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: "192.0.2.0"}
			}
			s.CreateService(o)
			synctest.Wait()
		}
		time.Sleep(time.Minute)
		setPoolRetirement(s, c, "p", &v1beta1.PoolRetirement{Addresses: []string{"192.0.2.0-192.0.2.2"}})
		time.Sleep(2 * time.Minute)
		wantAddressAndReason(t, s, "s0", "192.0.2.0", names.ReasonAddressRetired)
		wantAddressAndReason(t, s, "s1", "192.0.2.3", names.ReasonAssigned)
		wantAddressAndReason(t, s, "s2", "192.0.2.2", names.ReasonAddressRetired)
		checkRetirementStatusOfPool(t, s.PoolByName("p"), 2, 2)
		writes := s.CountWriteRequestsOfKind("service") + s.CountWriteRequestsOfKind("pool")
		time.Sleep(time.Hour)
		if n := s.CountWriteRequestsOfKind("service") + s.CountWriteRequestsOfKind("pool") - writes; n != 0 {
			t.Errorf("%d writes in an hour in which no address becomes free", n)
		}
		s.DeleteService(serviceKey("s1"))
		time.Sleep(2 * time.Minute)
		wantAddressAndReason(t, s, "s2", "192.0.2.3", names.ReasonAssigned)
		checkRetirementStatusOfPool(t, s.PoolByName("p"), 1, 1)
		if len(d.servicesThatLostAddress) > 0 {
			t.Errorf("without an address meanwhile: %v", d.servicesThatLostAddress)
		}
	})
}

// TestEndedRetirementChangesNoFurtherService ends it after the first Service.
func TestEndedRetirementChangesNoFurtherService(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("old", poolSpec("192.0.2.0/28"))
		c := startController(t, s, nil, ServiceWorkerOptions{})
		defer c.stopAndWait()
		for i := range 4 {
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
		}
		time.Sleep(time.Minute)
		s.SetPool("young", poolSpec("198.51.100.0/28"))
		setPoolRetirement(s, c, "old", &v1beta1.PoolRetirement{ServicesPerMinute: 1})
		time.Sleep(10 * time.Second)
		setPoolRetirement(s, c, "old", nil)
		time.Sleep(time.Hour)
		if n := countServicesWithAddressIn(s, "198.51.100."); n != 1 {
			t.Errorf("%d Services have moved, want one", n)
		}
		for _, o := range s.AllServices() {
			if r := addressAssignedConditionReason(o); r != names.ReasonAssigned {
				t.Errorf("Service %s has the reason %s", o.Name, r)
			}
		}
		if g := s.PoolByName("old").Status.Gantry; g.Retire != nil || meta.FindStatusCondition(g.Conditions, names.ConditionPoolRetirementDone) != nil {
			t.Errorf("the status of the pool has progress still: %+v", g)
		}
	})
}

// TestAnnotationOfAPoolEndsItsCooldowns has a Service that waits for an address that cools down.
func TestAnnotationOfAPoolEndsItsCooldowns(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		spec := poolSpec("192.0.2.0/31")
		spec.Gantry = &v1beta1.PoolExtension{MaxPerService: 16, Cooldown: &metav1.Duration{Duration: 24 * time.Hour}}
		s.SetPool("p", spec)
		c := startController(t, s, nil, ServiceWorkerOptions{})
		defer func() { c.stopAndWait() }()
		fillAndEmpty := func(round string) {
			for _, name := range []string{"a", "b"} {
				s.CreateService(newLoadBalancer(name + round))
				synctest.Wait()
			}
			time.Sleep(10 * time.Second)
			for _, name := range []string{"a", "b"} {
				s.DeleteService(serviceKey(name + round))
			}
			time.Sleep(10 * time.Second)
		}
		fillAndEmpty("1")
		s.CreateService(newLoadBalancer("waits"))
		time.Sleep(10 * time.Second)
		wantAddressAndReason(t, s, "waits", "", names.ReasonPoolExhausted)
		annotate := func(value string) {
			s.AnnotatePool("p", names.AnnotationLiftWithheld, value)
			c.ConfigurationReader.NotifyAllocationObjectChanged()
			time.Sleep(10 * time.Second)
		}
		annotate("192.0.2.1, 203.0.113.0/24")
		wantAddressAndReason(t, s, "waits", "192.0.2.1", names.ReasonAssigned)
		s.DeleteService(serviceKey("waits"))
		time.Sleep(10 * time.Second)
		// The annotation is still there, and counts once: also for the next leader.
		c.stopAndWait()
		c = startController(t, s, nil, ServiceWorkerOptions{})
		s.CreateService(newLoadBalancer("waits2"))
		time.Sleep(time.Minute)
		wantAddressAndReason(t, s, "waits2", "", names.ReasonPoolExhausted)
		annotate("all")
		wantAddressAndReason(t, s, "waits2", "192.0.2.0", names.ReasonAssigned)
		annotate("192.0.2.x")
		if cond := meta.FindStatusCondition(s.PoolByName("p").Status.Gantry.Conditions, names.ConditionValid); cond.Status != metav1.ConditionFalse || !strings.Contains(cond.Message, names.AnnotationLiftWithheld) {
			t.Errorf("a value that cannot be read leaves the condition %+v", cond)
		}
	})
}
