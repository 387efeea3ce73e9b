package assign

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
	"github.com/gantry-lb/gantry/controller/configurationreader"
)

// TestEachServiceGetsOneWriteAndOneEvent counts the writes for many Services at once.
func TestEachServiceGetsOneWriteAndOneEvent(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		const n = 2000
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		recorder := &eventRecorder{}
		c := startController(t, s, deliverRequestsIn(4*time.Millisecond), ServiceWorkerOptions{RecordEvent: recorder.recordEvent})
		defer c.stopAndWait()
		time.Sleep(time.Second)
		for i := range n {
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
			if i%2 == 0 { // 2,000 a second
				time.Sleep(time.Millisecond)
			}
		}
		time.Sleep(3 * time.Second) // events come after the addresses
		for i := range n {
			name := fmt.Sprint("s", i)
			wantAddressAndReason(t, s, name, fmt.Sprintf("10.0.%d.%d", i/256, i%256), names.ReasonAssigned)
			if e := recorder.eventsOf(name); len(e) != 1 || !strings.HasPrefix(e[0], "Normal IPAllocated Assigned: ") {
				t.Errorf("the events of %s are %q", name, e)
			}
		}
		if w := s.CountWriteRequestsOfKind("service"); w != n {
			t.Errorf("%d status writes for %d Services", w, n)
		}
		if w := s.CountWriteRequestsOfKind("ledger") + s.CountWriteRequestsOfKind("pool"); w > n/10 {
			t.Errorf("%d writes of the AddressLedger and %d of the pool's status for %d Services", s.CountWriteRequestsOfKind("ledger"), s.CountWriteRequestsOfKind("pool"), n)
		}
		if p := s.PoolByName("p").Status; p.AssignedIPv4 != n || p.AvailableIPv4 != 65536-n {
			t.Errorf("the pool's status is %+v", p)
		}
	})
}

// TestPredictedConditionIsPartOfFirstWrite lets the prediction about one Service take a second. The
// Service gets its address and the condition in one write, and no other Service waits for that.
func TestPredictedConditionIsPartOfFirstWrite(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/24"))
		predict := func(_ context.Context, s *corev1.Service, assigned []netip.Addr) (metav1.Condition, bool) {
			if s.Name != "unsure" {
				return metav1.Condition{}, false
			}
			time.Sleep(time.Second)
			return metav1.Condition{Type: names.ConditionAnnounced, Status: metav1.ConditionFalse, Reason: string(names.ReasonNoEndpoints), Message: assigned[0].String()}, true
		}
		c := startController(t, s, nil, ServiceWorkerOptions{PredictUnannouncedCondition: predict})
		defer c.stopAndWait()
		time.Sleep(time.Minute)
		s.CreateService(newLoadBalancer("unsure"))
		time.Sleep(100 * time.Millisecond)
		s.CreateService(newLoadBalancer("other"))
		time.Sleep(100 * time.Millisecond)
		wantAddressAndReason(t, s, "other", "10.0.0.1", names.ReasonAssigned)
		time.Sleep(time.Minute)
		wantAddressAndReason(t, s, "unsure", "10.0.0.0", names.ReasonAssigned)
		if c := meta.FindStatusCondition(s.ServiceByKey(serviceKey("unsure")).Status.Conditions, names.ConditionAnnounced); c == nil || c.Message != "10.0.0.0" {
			t.Errorf("the predicted condition is %+v, want one about 10.0.0.0", c)
		}
		if n := s.CountWriteRequestsOfKind("service"); n != 2 {
			t.Errorf("%d status writes for two Services", n)
		}
	})
}

// TestHangingWritesDelayNoOtherService has status writes of 20 Services that get no answer, and
// creates others one after the other.
func TestHangingWritesDelayNoOtherService(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		var created atomic.Int32
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/24"))
		c := startController(t, s, func(what string) apitest.Delivery {
			if what == "service" && created.Load() <= 20 {
				return apitest.Delivery{RequestDelay: 9 * time.Second}
			}
			return apitest.Delivery{}
		}, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(time.Minute)
		for i := range 23 {
			name := fmt.Sprint("s", i)
			created.Add(1)
			s.CreateService(newLoadBalancer(name))
			time.Sleep(300 * time.Millisecond)
			if has := firstAddress(s.ServiceByKey(serviceKey(name))).IsValid(); i >= 20 && !has {
				t.Errorf("Service %s has no address after 300 ms, because others wait for an answer", name)
			}
		}
		time.Sleep(time.Minute)
		for _, o := range s.AllServices() {
			if !firstAddress(o).IsValid() {
				t.Errorf("Service %s has no address a minute later", o.Name)
			}
		}
	})
}

// TestUnansweredWritesOfManyServicesDelayNoOther has status writes of 300 Services that get no
// answer, because a webhook for their namespace hangs. Others are served all the same, also after a
// change of leaders, and these too once the webhook answers.
func TestUnansweredWritesOfManyServicesDelayNoOther(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		s.LetServiceWritesHang(func(o *corev1.Service) bool { return strings.HasPrefix(o.Name, "hung") })
		for i := range 300 {
			s.CreateService(newLoadBalancer(fmt.Sprint("hung", i)))
		}
		for life := range 2 {
			c := startController(t, s, nil, ServiceWorkerOptions{LedgerWriterIdentity: fmt.Sprint(life)})
			// Each is tried once.
			time.Sleep(300/maxTasksInFlight*requestTimeout + time.Minute)
			for i := range 20 {
				name := fmt.Sprint("s", life, "-", i)
				s.CreateService(newLoadBalancer(name))
				time.Sleep(3 * time.Second)
				if o := s.ServiceByKey(serviceKey(name)); !firstAddress(o).IsValid() {
					t.Errorf("Service %s has no address after 3 s, because others wait for an answer", name)
				}
			}
			if life == 1 {
				s.LetServiceWritesHang(nil)
				time.Sleep(2 * maxRetryDelay)
				for _, o := range s.AllServices() {
					if !firstAddress(o).IsValid() {
						t.Errorf("Service %s has no address when its write is answered", o.Name)
					}
				}
			}
			c.stopAndWait()
		}
	})
}

// TestHangingWebhookOfNamespaceDelaysNoOtherFromTheStart creates more Services in one namespace
// than the AddressLedger has room for. Their status writes get no answer. Those of another
// namespace are served meanwhile, and these too once the webhook answers.
func TestHangingWebhookOfNamespaceDelaysNoOtherFromTheStart(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		s.LetServiceWritesHang(func(o *corev1.Service) bool { return o.Namespace == "hung" })
		c := startController(t, s, nil, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(time.Second)
		for i := range 2 * maxPendingAssignments {
			o := newLoadBalancer(fmt.Sprint("s", i))
			o.Namespace = "hung"
			s.CreateService(o)
		}
		for i := range 200 {
			name := fmt.Sprint("s", i)
			s.CreateService(newLoadBalancer(name))
			time.Sleep(3 * time.Second)
			if o := s.ServiceByKey(serviceKey(name)); !firstAddress(o).IsValid() {
				t.Errorf("Service %s has no address after 3 s, because those of another namespace wait for an answer", name)
			}
		}
		s.LetServiceWritesHang(nil)
		time.Sleep(2 * maxRetryDelay)
		for _, o := range s.AllServices() {
			if !firstAddress(o).IsValid() {
				t.Errorf("Service %s/%s has no address when its write is answered", o.Namespace, o.Name)
			}
		}
	})
}

func TestRestartWritesNoUnchangedService(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.0/29"))
		c := startController(t, s, nil, ServiceWorkerOptions{})
		for _, name := range []string{"a", "b", "c"} {
			s.CreateService(newLoadBalancer(name))
			synctest.Wait()
		}
		time.Sleep(3 * time.Second)
		c.stopAndWait()
		s.DeleteService(serviceKey("a"))
		s.CreateService(newLoadBalancer("d"))
		before := s.CountWriteRequestsOfKind("service")
		recorder := &eventRecorder{}
		c = startController(t, s, nil, ServiceWorkerOptions{RecordEvent: recorder.recordEvent})
		time.Sleep(3 * time.Second)
		wantAddressAndReason(t, s, "b", "192.0.2.1", names.ReasonAssigned)
		wantAddressAndReason(t, s, "c", "192.0.2.2", names.ReasonAssigned)
		wantAddressAndReason(t, s, "d", "192.0.2.0", names.ReasonAssigned)
		if w := s.CountWriteRequestsOfKind("service") - before; w != 1 || len(recorder.eventsOf("b"))+len(recorder.eventsOf("c")) != 0 {
			t.Errorf("a restart wrote %d Services, and recorded the event %q of b", w, recorder.eventsOf("b"))
		}
		c.stopAndWait()
	})
}

func TestServiceEditsChangeOrFreeAddress(t *testing.T) {
	edit := func(f func(*corev1.Service)) func(*apitest.Server) {
		return func(s *apitest.Server) { s.EditService(serviceKey("a"), f) }
	}
	tests := map[string]struct {
		do   func(*apitest.Server)
		want string
		why  names.Reason
		next string // the address of the next new Service
	}{
		"one that is no longer a LoadBalancer loses all that we wrote": {
			do: edit(func(o *corev1.Service) { o.Spec.Type = corev1.ServiceTypeClusterIP }), next: "192.0.2.0",
		},
		"one that went to another class loses all that we wrote": {
			do: edit(func(o *corev1.Service) {
				class := "example.com/other"
				o.Spec.LoadBalancerClass = &class
			}), next: "192.0.2.0",
		},
		"a status that a user cleared is written again": {
			do: edit(func(o *corev1.Service) { o.Status = corev1.ServiceStatus{} }), want: "192.0.2.0", why: names.ReasonAssigned, next: "192.0.2.1",
		},
		"a status that a user edited counts": {
			do: edit(func(o *corev1.Service) { o.Status.LoadBalancer.Ingress[0].IP = "192.0.2.3" }), want: "192.0.2.3", why: names.ReasonAssigned, next: "192.0.2.0",
		},
		"an address on wish is moved to, and the old one is free": {
			do: edit(func(o *corev1.Service) {
				o.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: "192.0.2.3"}
			}), want: "192.0.2.3", why: names.ReasonAssigned, next: "192.0.2.0",
		},
		"created again with its name": {
			do:   func(s *apitest.Server) { s.DeleteService(serviceKey("a")); s.CreateService(newLoadBalancer("a")) },
			want: "192.0.2.0", why: names.ReasonAssigned, next: "192.0.2.1",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			runWithFakeTime(t, func(t *testing.T) {
				s := apitest.NewServer(nil)
				s.SetPool("p", poolSpec("192.0.2.0/30"))
				c := startController(t, s, nil, ServiceWorkerOptions{})
				defer c.stopAndWait()
				s.CreateService(newLoadBalancer("a"))
				time.Sleep(time.Second)
				wantAddressAndReason(t, s, "a", "192.0.2.0", names.ReasonAssigned)
				tc.do(s)
				time.Sleep(time.Second)
				wantAddressAndReason(t, s, "a", tc.want, tc.why)
				if o := s.ServiceByKey(serviceKey("a")); tc.want == "" && (hasOurStatusOrAnnotations(o) || len(o.Status.Conditions) > 0) {
					t.Errorf("it still carries %v %v", o.Annotations, o.Status.Conditions)
				}
				s.CreateService(newLoadBalancer("b"))
				time.Sleep(time.Second)
				wantAddressAndReason(t, s, "b", tc.next, names.ReasonAssigned)
			})
		})
	}
}

func TestServicesOfAnotherClassAreNotTouched(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.0/30"))
		class := "example.com/other"
		other := newLoadBalancer("other")
		other.Spec.LoadBalancerClass = &class
		other.Annotations = map[string]string{names.AnnotationAllocatedFromPool: "theirs"}
		other.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.1"}}
		s.CreateService(other)
		c := startController(t, s, nil, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(time.Second)
		s.EditService(serviceKey("other"), func(o *corev1.Service) { o.Labels = map[string]string{"a": "b"} })
		time.Sleep(time.Second)
		if n := s.CountWriteRequestsOfKind("service"); n != 0 {
			t.Errorf("a Service of another class was written %d times", n)
		}
	})
}

func TestWaitingServiceIsServedWhenAnAddressIsFreed(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		recorder := &eventRecorder{}
		c := startController(t, s, nil, ServiceWorkerOptions{RecordEvent: recorder.recordEvent})
		defer c.stopAndWait()
		s.CreateService(newLoadBalancer("a"))
		time.Sleep(time.Second)
		wantAddressAndReason(t, s, "a", "", names.ReasonNoPools)
		s.SetPool("p", poolSpec("192.0.2.1/32"))
		c.ConfigurationReader.NotifyAllocationObjectChanged()
		s.CreateService(newLoadBalancer("b"))
		time.Sleep(time.Second)
		holder, waits := "a", "b"
		if !firstAddress(s.ServiceByKey(serviceKey("a"))).IsValid() {
			holder, waits = "b", "a"
		}
		wantAddressAndReason(t, s, waits, "", names.ReasonPoolExhausted)
		s.DeleteService(serviceKey(holder))
		time.Sleep(time.Second)
		wantAddressAndReason(t, s, waits, "192.0.2.1", names.ReasonAssigned)
		s.SetPool("p", poolSpec("192.0.2.9/32"))
		c.ConfigurationReader.NotifyAllocationObjectChanged()
		time.Sleep(3 * time.Second)
		wantAddressAndReason(t, s, waits, "192.0.2.1", names.ReasonAddressNotInPool)
		if e := recorder.eventsOf("a"); !strings.HasPrefix(e[0], "Warning AllocationFailed NoPools: ") {
			t.Errorf("the events of a are %q", e)
		}
	})
}

// TestRefusedWriteDelaysNoOtherService makes the API server refuse the writes of one Service, as an
// admission webhook may. The others are not affected. The write is repeated with growing delays,
// and the Service is served once it is allowed.
func TestRefusedWriteDelaysNoOtherService(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.0/28"))
		s.RefuseServiceWrites(func(o *corev1.Service) error {
			if o.Name == "refused" {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, o.Name, errors.New("no"))
			}
			return nil
		})
		recorder := &eventRecorder{}
		c := startController(t, s, nil, ServiceWorkerOptions{RecordEvent: recorder.recordEvent})
		defer c.stopAndWait()
		s.CreateService(newLoadBalancer("refused"))
		time.Sleep(time.Second)
		for i := range 15 {
			name := fmt.Sprint("s", i)
			s.CreateService(newLoadBalancer(name))
			time.Sleep(time.Second)
			if !firstAddress(s.ServiceByKey(serviceKey(name))).IsValid() {
				t.Errorf("Service %s has no address after a second", name)
			}
		}
		time.Sleep(10 * time.Minute)
		if n := s.CountRefusedWrites(); n > 40 {
			t.Errorf("what is refused was tried %d times in 10 minutes", n)
		}
		if e := recorder.eventsOf("refused"); len(e) > 0 {
			t.Errorf("it has the events %q", e)
		}
		s.RefuseServiceWrites(nil)
		time.Sleep(maxRetryDelay + time.Second)
		if !firstAddress(s.ServiceByKey(serviceKey("refused"))).IsValid() {
			t.Error("it is not served when it is allowed")
		}
	})
}

// TestPoolsAppliedWithAServiceAreUsed applies two pools and a Service at short intervals, as from
// one manifest. The Service is served from the pool that ranks first.
func TestPoolsAppliedWithAServiceAreUsed(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		for gap := time.Duration(0); gap < configurationreader.EditCollectDelay; gap += 5 * time.Millisecond {
			s := apitest.NewServer(nil)
			c := startController(t, s, nil, ServiceWorkerOptions{})
			time.Sleep(time.Second)
			for i, name := range []string{"second", "first"} {
				p := poolSpec(fmt.Sprintf("192.0.2.%d/32", i))
				p.AllocateTo = &v1beta1.ServiceAllocation{Priority: 2 - i}
				s.SetPool(name, p)
				c.ConfigurationReader.NotifyAllocationObjectChanged()
				time.Sleep(gap)
			}
			s.CreateService(newLoadBalancer("a"))
			time.Sleep(time.Second)
			wantAddressAndReason(t, s, "a", "192.0.2.1", names.ReasonAssigned)
			c.stopAndWait()
		}
	})
}
