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

// TestLedgerOfOtherClusterDoesNotBlockService starts with the AddressLedger of another cluster with
// later resourceVersions: its Service is served all the same.
func TestLedgerOfOtherClusterDoesNotBlockService(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/24"))
		s.CreateService(newLoadBalancer("s"))
		writePendingAsOtherController(t, apitest.NewClient(s, nil), newPendingAssignment("s", "987654321", parseAddresses("10.0.0.7")...))
		c := startController(t, s, newPromptDelivery, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(10 * time.Minute)
		if o := s.ServiceByKey(serviceKey("s")); !firstAddress(o).IsValid() {
			t.Errorf("the Service has no address after 10 minutes: %v", o.Status.Conditions)
		}
		if n := c.ledgerWriter.fence.CountPending(); n > 0 {
			t.Errorf("%d pending assignments stay open", n)
		}
	})
}

// TestServiceWithWipedStatusKeepsAddressDespiteRefusal clears a status, and makes the API server
// refuse its repair for a while. The Service keeps the address.
func TestServiceWithWipedStatusKeepsAddressDespiteRefusal(t *testing.T) {
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
				wantAddress(t, s, "s", "10.0.0.1", names.ReasonAssigned)
				switch refused {
				case "status":
					s.RefuseServiceWrites(func(o *corev1.Service) error {
						if o.Name == "s" {
							return errRefusedByTest
						}
						return nil
					})
				case "ledger":
					s.RefuseLedgerWrites(refuseServices("s"))
				}
				s.EditService(serviceKey("s"), func(o *corev1.Service) { o.Status.LoadBalancer.Ingress = nil })
				time.Sleep(time.Minute)
				s.RefuseServiceWrites(nil)
				s.RefuseLedgerWrites(nil)
				time.Sleep(time.Minute)
				wantAddress(t, s, "s", "10.0.0.1", names.ReasonAssigned)
			})
		})
	}
}

// TestLostAddressLedgerGivesNoAddressTwice deletes the AddressLedger again and again while one
// controller works over a slow and faulty connection, and a user creates, edits and deletes
// Services.
func TestLostAddressLedgerGivesNoAddressTwice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := historyGenerator().Draw(rt, "history")
		o := newOracle()
		var leaks []string
		runWithFakeTime(t, func(t *testing.T) {
			w := &harness{t: t, server: apitest.NewServer(o.checkServiceChange), network: newRandomNetwork(h.seed), maxPending: []int{1, 3, maxPendingAssignments}[h.seed%3]}
			w.setUsualPools(assignmentOrderNames[h.seed%3])
			w.runStep(historyStep{action: "start"})
			for _, s := range h.steps {
				switch s.action {
				case "kill", "crash", "start":
					w.server.DeleteAllLedgers()
					time.Sleep(s.delayAfter)
				default:
					w.runStep(s)
				}
			}
			w.runStep(historyStep{action: "resume"})
			// A second controller cannot know what the object does not show.
			time.Sleep(time.Minute)
			w.recoverAndWait()
			leaks = w.findFinalFaults()
			for _, c := range w.controllers {
				c.stopAndWait()
				if n := c.ledgerWriter.fence.CountPending(); n > 0 {
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
