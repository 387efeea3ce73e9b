package assign

import (
	"strconv"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
)

// cooldownPoolSpec returns a pool with a cool-down of an hour.
func cooldownPoolSpec(addresses ...string) v1beta1.IPAddressPoolSpec {
	p := poolSpec(addresses...)
	p.Gantry = &v1beta1.PoolExtension{MaxPerService: 16, Cooldown: &metav1.Duration{Duration: time.Hour}}
	return p
}

func TestCooldownSurvivesARestart(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", cooldownPoolSpec("192.0.2.0/30"))
		c := startController(t, s, nil, ServiceWorkerOptions{})
		for _, name := range []string{"a", "b"} {
			s.CreateService(newLoadBalancer(name))
			time.Sleep(time.Second)
		}
		s.DeleteService(serviceKey("a"))
		time.Sleep(2 * time.Second)
		c.stopAndWait()
		l := s.LedgerByName(names.WithheldAddressesLedger)
		if l == nil || len(l.Spec.Withheld) != 1 || l.Spec.Withheld[0].Address != "192.0.2.0" || l.Spec.Withheld[0].Name != "a" {
			t.Fatalf("the object says %+v", l)
		}
		s.DeleteService(serviceKey("b")) // no controller runs
		c = startController(t, s, nil, ServiceWorkerOptions{})
		time.Sleep(time.Second)
		s.CreateService(newLoadBalancer("c"))
		time.Sleep(time.Second)
		wantAddressAndReason(t, s, "c", "192.0.2.1", names.ReasonAssigned)
		s.CreateService(newLoadBalancer("a"))
		time.Sleep(time.Second)
		wantAddressAndReason(t, s, "a", "192.0.2.0", names.ReasonAssigned)
		s.DeleteService(serviceKey("a"))
		time.Sleep(time.Second)
		for _, name := range []string{"d", "e", "f"} {
			s.CreateService(newLoadBalancer(name))
			time.Sleep(time.Second)
		}
		wantAddressAndReason(t, s, "e", "192.0.2.3", names.ReasonAssigned)
		wantAddressAndReason(t, s, "f", "", names.ReasonPoolExhausted)
		time.Sleep(time.Hour)
		wantAddressAndReason(t, s, "f", "192.0.2.0", names.ReasonAssigned)
		if l := s.LedgerByName(names.WithheldAddressesLedger); len(l.Spec.Withheld) != 0 {
			t.Errorf("after it is over the object says %+v", l.Spec.Withheld)
		}
		c.stopAndWait()
	})
}

// startControllerWithCooldownPool starts a controller whose pool has a cool-down, and waits until
// n Services have addresses.
func startControllerWithCooldownPool(t *testing.T, n int) (*apitest.Server, *runningController) {
	t.Helper()
	s := apitest.NewServer(nil)
	s.SetPool("p", cooldownPoolSpec("10.0.0.0/16"))
	c := startController(t, s, nil, ServiceWorkerOptions{})
	for i := range n {
		s.CreateService(newLoadBalancer("s" + strconv.Itoa(i)))
	}
	time.Sleep(5 * time.Second)
	return s, c
}

// TestManyCooldownsAreSavedInFewWrites deletes a thousand Services, so that a thousand addresses
// cool down.
func TestManyCooldownsAreSavedInFewWrites(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		const n = 1000
		s, c := startControllerWithCooldownPool(t, n)
		defer c.stopAndWait()
		for i := range n {
			s.DeleteService(serviceKey("s" + strconv.Itoa(i)))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		if l := s.LedgerByName(names.WithheldAddressesLedger); len(l.Spec.Withheld) != n {
			t.Errorf("%d addresses are remembered, want %d", len(l.Spec.Withheld), n)
		}
		if w := s.CountWriteRequestsOfKind("withheld"); w > 4 {
			t.Errorf("%d writes within 6 s, want one a second at most", w)
		}
	})
}

// With thousands of cool-downs each write has up to a megabyte, so that Services that come and go
// must not cause one each second.
func TestLargeWithheldLedgerIsWrittenLessOften(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		const n = 2048
		s, c := startControllerWithCooldownPool(t, n)
		defer c.stopAndWait()
		for i := range n {
			s.DeleteService(serviceKey("s" + strconv.Itoa(i)))
		}
		time.Sleep(time.Minute)
		before := s.CountWriteRequestsOfKind("withheld")
		for i := range 160 {
			s.CreateService(newLoadBalancer("ci" + strconv.Itoa(i)))
			time.Sleep(500 * time.Millisecond)
			s.DeleteService(serviceKey("ci" + strconv.Itoa(i)))
			time.Sleep(500 * time.Millisecond)
		}
		if w := s.CountWriteRequestsOfKind("withheld") - before; w < 5 || w > 11 {
			t.Errorf("%d writes of 2,048 entries within 160 s, want one in 16 s", w)
		}
		time.Sleep(time.Minute)
		if l := s.LedgerByName(names.WithheldAddressesLedger); len(l.Spec.Withheld) != n+160 {
			t.Errorf("%d addresses are remembered, want %d", len(l.Spec.Withheld), n+160)
		}
	})
}

// TestLostWithheldLedgerLosesOnlyItsEntries checks that only the entries of the object are lost.
func TestLostWithheldLedgerLosesOnlyItsEntries(t *testing.T) {
	for name, harm := range map[string]func(*apitest.Server){
		"lost": (*apitest.Server).DeleteAllLedgers,
		"wrong": func(s *apitest.Server) {
			s.OverwriteWithheldLedger(v1alpha1.WithheldAddress{Address: "here", Reason: "CoolingDown"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			runWithFakeTime(t, func(t *testing.T) {
				s := apitest.NewServer(nil)
				s.SetPool("p", cooldownPoolSpec("192.0.2.0/30"))
				c := startController(t, s, nil, ServiceWorkerOptions{})
				defer c.stopAndWait()
				for _, name := range []string{"a", "b"} {
					s.CreateService(newLoadBalancer(name))
					time.Sleep(time.Second)
				}
				s.DeleteService(serviceKey("a"))
				time.Sleep(2 * time.Second)
				harm(s)
				s.DeleteService(serviceKey("b"))
				time.Sleep(5 * time.Second)
				s.CreateService(newLoadBalancer("c"))
				time.Sleep(5 * time.Second)
				wantAddressAndReason(t, s, "c", "192.0.2.2", names.ReasonAssigned)
				if l := s.LedgerByName(names.WithheldAddressesLedger); l == nil || len(l.Spec.Withheld) != 2 {
					t.Errorf("the object says %+v", l)
				}
			})
		})
	}
}
