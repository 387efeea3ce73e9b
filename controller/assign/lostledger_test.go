package assign

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
)

// TestDeletedAddressLedgerInBurstGivesNoAddressTwice deletes the AddressLedger while writes of
// addresses are in flight. No other Service gets these addresses, although the new object does not
// list them.
func TestDeletedAddressLedgerInBurstGivesNoAddressTwice(t *testing.T) {
	g := &doubleAssignmentDetector{serviceNameByAddress: map[netip.Addr]string{}}
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(g.recordServiceChange)
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		c := startController(t, s, func(what string) apitest.Delivery {
			if what == "service" {
				return apitest.Delivery{RequestDelay: 2 * time.Second}
			}
			return apitest.Delivery{}
		}, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(time.Second)
		for i := range 100 {
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
		}
		time.Sleep(time.Second)
		s.DeleteAllLedgers()
		for i := range 100 {
			s.CreateService(newLoadBalancer(fmt.Sprint("late", i)))
		}
		time.Sleep(2 * time.Minute)
		for _, f := range g.doubleAssignmentTexts {
			t.Error(f)
		}
		if n := g.countAssignedAddresses(); n != 200 {
			t.Errorf("%d of 200 Services have an address of their own", n)
		}
	})
}

// TestDeletedAddressLedgerOfDeadLeaderGivesNoAddressTwice deletes the AddressLedger after the
// leader was killed, while its writes have not arrived. The next leader gives none of their
// addresses to another Service before these writes cannot succeed any more, even if it is killed
// too before it has assigned one.
func TestDeletedAddressLedgerOfDeadLeaderGivesNoAddressTwice(t *testing.T) {
	for name, nextLife := range map[string]time.Duration{"the next leader lives": 0, "the next leader is killed at once": 20 * time.Millisecond, "the next leader is killed later": time.Second} {
		t.Run(name, func(t *testing.T) {
			g := &doubleAssignmentDetector{serviceNameByAddress: map[netip.Addr]string{}}
			runWithFakeTime(t, func(t *testing.T) {
				testDeletedLedgerOfKilledLeader(t, apitest.NewServer(g.recordServiceChange), nextLife)
			})
			for _, f := range g.doubleAssignmentTexts {
				t.Error(f)
			}
		})
	}
}

func testDeletedLedgerOfKilledLeader(t *testing.T, s *apitest.Server, nextLife time.Duration) {
	t.Helper()
	setAutoAssign := func(is bool) {
		spec := poolSpec("10.0.0.0/24")
		spec.AutoAssign = &is
		s.SetPool("p", spec)
	}
	setAutoAssign(false)
	for i := range 20 {
		s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
	}
	c := startController(t, s, nil, ServiceWorkerOptions{LedgerWriterIdentity: "first"})
	time.Sleep(time.Second)
	c.stopAndWait()
	setAutoAssign(true)
	c = startController(t, s, func(what string) apitest.Delivery {
		if what == "service" {
			return apitest.Delivery{RequestDelay: 8 * time.Second}
		}
		return apitest.Delivery{}
	}, ServiceWorkerOptions{LedgerWriterIdentity: "second"})
	time.Sleep(time.Second)
	c.killAndWait(func() bool { return true })
	s.DeleteAllLedgers()
	setAutoAssign(false)
	if nextLife > 0 {
		c = startController(t, s, newSlowAPIServerDelivery, ServiceWorkerOptions{LedgerWriterIdentity: "third"})
		time.Sleep(nextLife)
		c.killAndWait(func() bool { return false })
	}
	for i := range 20 {
		o := newLoadBalancer(fmt.Sprint("late", i))
		o.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: fmt.Sprint("10.0.0.", i)}
		s.CreateService(o)
	}
	c = startController(t, s, newSlowAPIServerDelivery, ServiceWorkerOptions{LedgerWriterIdentity: "fourth"})
	time.Sleep(time.Minute)
	for i := range 20 {
		wantAddressAndReason(t, s, fmt.Sprint("late", i), fmt.Sprint("10.0.0.", i), names.ReasonAssigned)
		if a := firstAddress(s.ServiceByKey(serviceKey(fmt.Sprint("s", i)))); a.IsValid() {
			t.Errorf("s%d was given %s by a write of the dead leader", i, a)
		}
	}
	if s.LedgerByName(names.PendingAssignmentsLedger).Spec.Incomplete {
		t.Error("the AddressLedger stays incomplete")
	}
	c.stopAndWait()
}

// TestNewAddressLedgerIsCompleteWithoutWrites starts in a cluster in which no controller has ever
// worked: nothing is written to a Service only because the AddressLedger is new, and not at the
// next start either.
func TestNewAddressLedgerIsCompleteWithoutWrites(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		for i := range 20 {
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
		}
		for range 2 {
			c := startController(t, s, nil, ServiceWorkerOptions{})
			time.Sleep(time.Minute)
			c.stopAndWait()
			if n := s.CountWriteRequestsOfKind("service"); n != 20 {
				t.Errorf("%d status writes for 20 Services without a pool", n)
			}
		}
	})
}

// TestLedgerOfOtherClusterDoesNotBlockService starts with the AddressLedger of another cluster with
// later resourceVersions: its Service is served all the same.
func TestLedgerOfOtherClusterDoesNotBlockService(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/24"))
		s.CreateService(newLoadBalancer("s"))
		writePendingAsOtherController(t, apitest.NewClient(s, nil), newPendingAssignment("s", "987654321", parseAddresses("10.0.0.7")...))
		c := startController(t, s, newFastAPIServerDelivery, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(10 * time.Minute)
		if o := s.ServiceByKey(serviceKey("s")); !firstAddress(o).IsValid() {
			t.Errorf("the Service has no address after 10 minutes: %v", o.Status.Conditions)
		}
		if n := c.ledgerWriter.pendingWrites.CountPending(); n > 0 {
			t.Errorf("%d pending assignments stay open", n)
		}
	})
}

// TestServiceWithWipedStatusKeepsAddressWhileRepairIsRefused clears a status, and makes the API
// server refuse its repair for a while. The Service keeps the address.
func TestServiceWithWipedStatusKeepsAddressWhileRepairIsRefused(t *testing.T) {
	for _, refused := range []string{"status", "ledger"} {
		t.Run(refused, func(t *testing.T) {
			runWithFakeTime(t, func(t *testing.T) {
				s := apitest.NewServer(nil)
				s.SetPool("p", poolSpec("10.0.0.1/32"))
				s.CreateService(newLoadBalancer("s"))
				c := startController(t, s, nil, ServiceWorkerOptions{})
				defer c.stopAndWait()
				time.Sleep(time.Second)
				s.CreateService(newLoadBalancer("other"))
				time.Sleep(time.Second)
				wantAddressAndReason(t, s, "s", "10.0.0.1", names.ReasonAssigned)
				switch refused {
				case "status":
					s.RefuseServiceWrites(func(o *corev1.Service) error {
						if o.Name == "s" {
							return errRefusedByTest
						}
						return nil
					})
				case "ledger":
					s.RefuseLedgerWrites(refuseLedgerEntriesOfServices("s"))
				}
				s.EditService(serviceKey("s"), func(o *corev1.Service) { o.Status.LoadBalancer.Ingress = nil })
				time.Sleep(time.Minute)
				s.RefuseServiceWrites(nil)
				s.RefuseLedgerWrites(nil)
				time.Sleep(time.Minute)
				wantAddressAndReason(t, s, "s", "10.0.0.1", names.ReasonAssigned)
			})
		})
	}
}

// TestLostAddressLedgerGivesNoAddressTwice deletes the AddressLedger again and again while two
// controllers work over slow and faulty connections, pause and are killed, and a user creates,
// edits and deletes Services.
func TestLostAddressLedgerGivesNoAddressTwice(t *testing.T) {
	setDefaultRapidCheckCount(t, "200")
	rapid.Check(t, func(rt *rapid.T) {
		h := userHistoryGenerator().Draw(rt, "history")
		o := newAssignmentOracle()
		var leaks []string
		runWithFakeTime(t, func(t *testing.T) {
			w := newTwoControllerHarness(t, o, h.seed)
			// Its status shows that a controller has worked here.
			w.server.CreateService(newLoadBalancer("first"))
			for s := w.server.ServiceByKey(serviceKey("first")); !hasOurStatusOrAnnotations(s); s = w.server.ServiceByKey(serviceKey("first")) {
				time.Sleep(100 * time.Millisecond)
			}
			for i, s := range h.steps {
				if i%4 == 3 {
					w.server.DeleteAllLedgers()
				}
				w.runHistoryStep(s)
			}
			w.repairFaultsAndAwaitQuiet()
			leaks = w.findFinalFaults()
			for _, c := range w.controllers {
				c.stopAndWait()
				if n := c.ledgerWriter.pendingWrites.CountPending(); n > 0 {
					leaks = append(leaks, fmt.Sprintf("%d pending assignments stay open when nothing happens", n))
				}
			}
			time.Sleep(time.Minute) // whatever is out arrives
		})
		for _, f := range append(o.faults, leaks...) {
			rt.Error(f)
		}
	})
}

// TestAddressLedgerDeletedAgainAndAgainCausesFewReloads deletes the AddressLedger ten times a
// second while Services are created. All Services are read a few times only, and all are served.
func TestAddressLedgerDeletedAgainAndAgainCausesFewReloads(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		c := startController(t, s, nil, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(time.Second)
		const duration = 2 * time.Minute
		before := s.CountServiceReads("list")
		for i := range int(duration / (100 * time.Millisecond)) {
			s.DeleteAllLedgers()
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
			time.Sleep(100 * time.Millisecond)
		}
		// A new AddressLedger costs one more reading, which makes writes fail that it does not
		// list.
		most := 2 * maxImmediateReloads * (1 + int(duration/reloadCountInterval))
		if n := s.CountServiceReads("list") - before; n > most {
			t.Errorf("all Services were read %d times in %s, want at most %d", n, duration, most)
		}
		time.Sleep(time.Minute)
		for _, o := range s.AllServices() {
			if len(o.Status.LoadBalancer.Ingress) == 0 {
				t.Errorf("Service %s has no address", o.Name)
			}
		}
	})
}
