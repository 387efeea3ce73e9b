package assign

import (
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
)

// probingPoolSpec returns a pool with acquire probes.
func probingPoolSpec(addresses ...string) v1beta1.IPAddressPoolSpec {
	p := poolSpec(addresses...)
	p.Gantry = &v1beta1.PoolExtension{MaxPerService: 16, Probe: &v1beta1.PoolAcquireProbe{Quarantine: &metav1.Duration{Duration: time.Hour}}}
	return p
}

// wantOpenProbes checks which addresses have an AddressProbe.
func wantOpenProbes(t *testing.T, s *apitest.Server, want ...string) {
	t.Helper()
	var got []string
	for _, p := range s.AllProbes() {
		got = append(got, p.Name)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("the speakers are asked for %v, want %v", got, want)
	}
}

func TestAddressIsProbedBeforeItIsAssigned(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", probingPoolSpec("192.0.2.0/30"))
		recorder := &eventRecorder{}
		c := startController(t, s, nil, ServiceWorkerOptions{RecordEvent: recorder.recordEvent})
		s.CreateService(newLoadBalancer("a"))
		time.Sleep(time.Second)
		wantAddressAndReason(t, s, "a", "", names.ReasonProbing)
		wantOpenProbes(t, s, "192.0.2.0")
		if p := s.AllProbes()[0].Spec; p.Pool != "p" || p.Service.Name != "a" || p.Address != "192.0.2.0" {
			t.Errorf("the question is %+v", p)
		}
		s.WriteProbeResultAsSpeaker("192.0.2.0", v1alpha1.ProbeOutcomeAnswered, "02:00:00:00:00:01")
		c.NotifyProbesChanged()
		time.Sleep(time.Second)
		wantAddressAndReason(t, s, "a", "", names.ReasonProbing)
		wantOpenProbes(t, s, "192.0.2.1")
		s.WriteProbeResultAsSpeaker("192.0.2.1", v1alpha1.ProbeOutcomeSilent, "")
		c.NotifyProbesChanged()
		time.Sleep(time.Second)
		wantAddressAndReason(t, s, "a", "192.0.2.1", names.ReasonAssigned)
		wantOpenProbes(t, s)
		events := recorder.eventsOf("a")
		if len(events) != 2 || !strings.Contains(events[0], "Quarantined: host 02:00:00:00:00:01 answered for 192.0.2.0") || !strings.Contains(events[1], "Assigned") {
			t.Errorf("the events are %q", events)
		}
		if w := s.CountWriteRequestsOfKind("service"); w != 3 {
			t.Errorf("%d writes of the Service, want two that report the probe and one with the address", w)
		}
		time.Sleep(2 * time.Second)
		c.stopAndWait()

		// The quarantine survives a restart of the controller; its AddressProbes do not.
		s.CreateService(newLoadBalancer("b"))
		c = startController(t, s, nil, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(time.Second)
		wantOpenProbes(t, s, "192.0.2.2")
		s.DeleteService(serviceKey("b"))
		time.Sleep(time.Second)
		wantOpenProbes(t, s)
		time.Sleep(time.Hour)
		s.CreateService(newLoadBalancer("b"))
		time.Sleep(time.Second)
		wantOpenProbes(t, s, "192.0.2.0")
	})
}

func TestProbesFromBeforeRestartAreDeleted(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", probingPoolSpec("192.0.2.0/30"))
		c := startController(t, s, nil, ServiceWorkerOptions{})
		s.CreateService(newLoadBalancer("a"))
		s.CreateService(newLoadBalancer("b"))
		time.Sleep(time.Second)
		wantOpenProbes(t, s, "192.0.2.0", "192.0.2.1")
		c.stopAndWait()
		s.WriteProbeResultAsSpeaker("192.0.2.0", v1alpha1.ProbeOutcomeSilent, "")
		s.DeleteService(serviceKey("b"))
		time.Sleep(time.Hour)
		c = startController(t, s, nil, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(time.Second)
		wantAddressAndReason(t, s, "a", "", names.ReasonProbing)
		wantOpenProbes(t, s, "192.0.2.0")
		// No speaker answers, and a user deletes the AddressProbe: it is created again.
		if err := c.client.DeleteProbe(t.Context(), "192.0.2.0"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		wantOpenProbes(t, s, "192.0.2.0")
		s.WriteProbeResultAsSpeaker("192.0.2.0", v1alpha1.ProbeOutcomeSilent, "")
		c.NotifyProbesChanged()
		time.Sleep(time.Second)
		wantAddressAndReason(t, s, "a", "192.0.2.0", names.ReasonAssigned)
	})
}

// TestAbandonedProbesOfOperatorsAreDeleted: kubectl gantry probe deletes its AddressProbe, unless
// it is killed. Nobody else waits for the answer.
func TestAbandonedProbesOfOperatorsAreDeleted(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.CreateProbeAsUser("operator-before", "192.0.2.9", "node1", time.Now())
		s.CreateProbeAsUser("own-question", "192.0.2.9", "node1", time.Now())
		var isUnreachable atomic.Bool
		isUnreachable.Store(true)
		c := startController(t, s, func(what string) apitest.Delivery {
			return apitest.Delivery{RequestLost: what == "probe" && isUnreachable.Load()}
		}, ServiceWorkerOptions{})
		defer c.stopAndWait()
		c.NotifyProbesChanged()
		time.Sleep(5 * time.Minute)
		s.CreateProbeAsUser("operator-later", "192.0.2.9", "node1", time.Now())
		c.NotifyProbesChanged()
		time.Sleep(abandonedProbeAge - 5*time.Minute - time.Second)
		wantOpenProbes(t, s, "operator-before", "operator-later", "own-question")
		time.Sleep(2 * time.Minute)
		wantOpenProbes(t, s, "operator-before", "operator-later", "own-question")
		isUnreachable.Store(false)
		time.Sleep(2 * time.Minute)
		wantOpenProbes(t, s, "operator-later", "own-question")
		time.Sleep(5 * time.Minute)
		wantOpenProbes(t, s, "own-question")
		before := s.CountWriteRequestsOfKind("probe")
		c.NotifyProbesChanged()
		time.Sleep(time.Hour)
		if n := s.CountWriteRequestsOfKind("probe"); n != before {
			t.Errorf("%d writes of AddressProbes follow, want none", n-before)
		}
		wantOpenProbes(t, s, "own-question")
	})
}

func TestManyAddressesAreProbedInParallel(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		const n = 500
		s := apitest.NewServer(nil)
		s.SetPool("p", probingPoolSpec("10.0.0.0/16"))
		c := startController(t, s, func(what string) apitest.Delivery {
			if what == "probe" && time.Now().UnixNano()%7 == 0 {
				return apitest.Delivery{RequestDelay: time.Millisecond, AnswerLost: true}
			}
			return apitest.Delivery{RequestDelay: time.Millisecond}
		}, ServiceWorkerOptions{})
		defer c.stopAndWait()
		for i := range n {
			s.CreateService(newLoadBalancer("s" + strconv.Itoa(i)))
		}
		for range 60 {
			time.Sleep(time.Second)
			for _, p := range s.AllProbes() {
				outcome := v1alpha1.ProbeOutcomeSilent
				if strings.HasSuffix(p.Name, "7") {
					outcome = v1alpha1.ProbeOutcomeAnswered
				}
				s.WriteProbeResultAsSpeaker(p.Name, outcome, "somebody")
			}
			c.NotifyProbesChanged()
		}
		given := map[string]bool{}
		for i := range n {
			a := firstAddress(s.ServiceByKey(serviceKey("s" + strconv.Itoa(i))))
			if !a.IsValid() || given[a.String()] || strings.HasSuffix(a.String(), "7") {
				t.Errorf("s%d has %v", i, a)
			}
			given[a.String()] = true
		}
		wantOpenProbes(t, s)
	})
}
