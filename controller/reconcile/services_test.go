package reconcile

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/reconcile/memory"
)

// TestOneWriteAndOneEventForEach counts what a crowd of Services costs.
func TestOneWriteAndOneEventForEach(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const n = 2000
		s := memory.NewServer(nil)
		s.SetPool("p", pool("10.0.0.0/16"))
		told := &recorder{}
		c := run(t, s, func(what string) memory.Weather {
			if what == "watch" {
				return memory.Weather{}
			}
			return memory.Weather{Out: 2 * time.Millisecond, Back: 2 * time.Millisecond}
		}, Options{Tell: told.tell})
		defer c.end()
		time.Sleep(time.Second)
		for i := range n {
			s.Create(balanced(fmt.Sprint("s", i)))
			if i%2 == 0 { // 2,000 a second
				time.Sleep(time.Millisecond)
			}
		}
		time.Sleep(time.Second)
		for i := range n {
			name := fmt.Sprint("s", i)
			want(t, s, name, fmt.Sprintf("10.0.%d.%d", i/256, i%256), names.ReasonAssigned)
			if e := told.of(name); len(e) != 1 || !strings.HasPrefix(e[0], "Normal IPAllocated Assigned: ") {
				t.Errorf("the events of %s are %q", name, e)
			}
		}
		if w := s.Writes("service"); w != n {
			t.Errorf("%d status writes for %d Services", w, n)
		}
		if w := s.Writes("ledger") + s.Writes("pool"); w > n/10 {
			t.Errorf("%d writes of the AddressLedger and %d of the pool's status for %d Services", s.Writes("ledger"), s.Writes("pool"), n)
		}
		if p := s.Pool("p").Status; p.AssignedIPv4 != n || p.AvailableIPv4 != 65536-n {
			t.Errorf("the pool's status is %+v", p)
		}
	})
}

// TestServicesOneAfterTheOtherDoNotWait creates each Service when the one before has its address, as a person does or a script: the
// first few are served at once, and the AddressLedger is not written more often than it may.
func TestServicesOneAfterTheOtherDoNotWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		s.SetPool("p", pool("10.0.0.0/24"))
		c := run(t, s, nil, Options{})
		defer c.end()
		time.Sleep(time.Second)
		begun := time.Now()
		for i := range 100 {
			s.Create(balanced(fmt.Sprint("s", i)))
			for synctest.Wait(); !address(s.Service(key(fmt.Sprint("s", i)))).IsValid(); synctest.Wait() {
				time.Sleep(time.Millisecond)
			}
			if i == swapBurst-1 && time.Since(begun) > 0 {
				t.Errorf("the first %d Services took %s", swapBurst, time.Since(begun))
			}
		}
		if w, most := s.Writes("ledger"), swapBurst+int(time.Since(begun)/swapInterval)+1; w > most {
			t.Errorf("%d writes of the AddressLedger in %s, want at most %d", w, time.Since(begun), most)
		}
	})
}

func TestARestartWritesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		s.SetPool("p", pool("192.0.2.0/29"))
		c := run(t, s, nil, Options{})
		for _, name := range []string{"a", "b", "c"} {
			s.Create(balanced(name))
			synctest.Wait()
		}
		time.Sleep(3 * time.Second)
		c.end()
		s.Delete(key("a"))
		s.Create(balanced("d"))
		before := s.Writes("service")
		told := &recorder{}
		c = run(t, s, nil, Options{Tell: told.tell})
		time.Sleep(3 * time.Second)
		want(t, s, "b", "192.0.2.1", names.ReasonAssigned)
		want(t, s, "c", "192.0.2.2", names.ReasonAssigned)
		want(t, s, "d", "192.0.2.0", names.ReasonAssigned)
		if w := s.Writes("service") - before; w != 1 || len(told.of("b"))+len(told.of("c")) != 0 {
			t.Errorf("a restart wrote %d Services, and told %q of b", w, told.of("b"))
		}
		c.end()
	})
}

func TestEditsOfAService(t *testing.T) {
	edit := func(f func(*corev1.Service)) func(*memory.Server) {
		return func(s *memory.Server) { s.Edit(key("a"), f) }
	}
	tests := map[string]struct {
		do   func(*memory.Server)
		want string
		why  names.Reason
		next string // what a Service that comes then gets
	}{
		"one that is no LoadBalancer any more loses all that we wrote": {
			do: edit(func(o *corev1.Service) { o.Spec.Type = corev1.ServiceTypeClusterIP }), next: "192.0.2.0",
		},
		"one that went to another class loses all that we wrote": {
			do: edit(func(o *corev1.Service) {
				class := "example.com/other"
				o.Spec.LoadBalancerClass = &class
			}), next: "192.0.2.0",
		},
		"a status that somebody wiped is written again": {
			do: edit(func(o *corev1.Service) { o.Status = corev1.ServiceStatus{} }), want: "192.0.2.0", why: names.ReasonAssigned, next: "192.0.2.1",
		},
		"a status that somebody edited is a claim": {
			do: edit(func(o *corev1.Service) { o.Status.LoadBalancer.Ingress[0].IP = "192.0.2.3" }), want: "192.0.2.3", why: names.ReasonAssigned, next: "192.0.2.0",
		},
		"an address on wish is moved to, and the old one is free": {
			do: edit(func(o *corev1.Service) {
				o.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: "192.0.2.3"}
			}), want: "192.0.2.3", why: names.ReasonAssigned, next: "192.0.2.0",
		},
		"made anew under its name": {
			do:   func(s *memory.Server) { s.Delete(key("a")); s.Create(balanced("a")) },
			want: "192.0.2.0", why: names.ReasonAssigned, next: "192.0.2.1",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := memory.NewServer(nil)
				s.SetPool("p", pool("192.0.2.0/30"))
				c := run(t, s, nil, Options{})
				defer c.end()
				s.Create(balanced("a"))
				time.Sleep(time.Second)
				want(t, s, "a", "192.0.2.0", names.ReasonAssigned)
				tc.do(s)
				time.Sleep(time.Second)
				want(t, s, "a", tc.want, tc.why)
				if o := s.Service(key("a")); tc.want == "" && (marked(o) || len(o.Status.Conditions) > 0) {
					t.Errorf("it still carries %v %v", o.Annotations, o.Status.Conditions)
				}
				s.Create(balanced("b"))
				time.Sleep(time.Second)
				want(t, s, "b", tc.next, names.ReasonAssigned)
			})
		})
	}
}

func TestServicesOfAnotherClassAreNotTouched(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		s.SetPool("p", pool("192.0.2.0/30"))
		class := "example.com/other"
		other := balanced("other")
		other.Spec.LoadBalancerClass = &class
		other.Annotations = map[string]string{names.AnnotationFromPool: "theirs"}
		other.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.1"}}
		s.Create(other)
		c := run(t, s, nil, Options{})
		defer c.end()
		time.Sleep(time.Second)
		s.Edit(key("other"), func(o *corev1.Service) { o.Labels = map[string]string{"a": "b"} })
		time.Sleep(time.Second)
		if n := s.Writes("service"); n != 0 {
			t.Errorf("a Service of another class was written %d times", n)
		}
	})
}

func TestWhoWaitsIsServedWhenThereIsRoom(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		told := &recorder{}
		c := run(t, s, nil, Options{Tell: told.tell})
		defer c.end()
		s.Create(balanced("a"))
		time.Sleep(time.Second)
		want(t, s, "a", "", names.ReasonNoPools)
		s.SetPool("p", pool("192.0.2.1/32"))
		c.Reconfigured()
		s.Create(balanced("b"))
		time.Sleep(time.Second)
		holder, waits := "a", "b"
		if !address(s.Service(key("a"))).IsValid() {
			holder, waits = "b", "a"
		}
		want(t, s, waits, "", names.ReasonPoolExhausted)
		s.Delete(key(holder))
		time.Sleep(time.Second)
		want(t, s, waits, "192.0.2.1", names.ReasonAssigned)
		s.SetPool("p", pool("192.0.2.9/32"))
		c.Reconfigured()
		time.Sleep(3 * time.Second)
		want(t, s, waits, "192.0.2.1", names.ReasonAddressNotInPool)
		if e := told.of("a"); !strings.HasPrefix(e[0], "Warning AllocationFailed NoPools: ") {
			t.Errorf("the events of a are %q", e)
		}
	})
}

// TestAWriteThatIsRefusedHoldsUpNobody has the API server refuse what is written of one Service, as somebody's admission webhook may: the others
// are served as if it were not there, it is tried again less and less often, and it is served once it is allowed.
func TestAWriteThatIsRefusedHoldsUpNobody(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		s.SetPool("p", pool("192.0.2.0/28"))
		s.Refuse(func(o *corev1.Service) error {
			if o.Name == "refused" {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, o.Name, errors.New("no"))
			}
			return nil
		})
		told := &recorder{}
		c := run(t, s, nil, Options{Tell: told.tell})
		defer c.end()
		s.Create(balanced("refused"))
		time.Sleep(time.Second)
		for i := range 15 {
			name := fmt.Sprint("s", i)
			s.Create(balanced(name))
			time.Sleep(time.Second)
			if !address(s.Service(key(name))).IsValid() {
				t.Errorf("Service %s has no address after a second", name)
			}
		}
		time.Sleep(10 * time.Minute)
		if n := s.Refused(); n > 40 {
			t.Errorf("what is refused was tried %d times in 10 minutes", n)
		}
		if e := told.of("refused"); len(e) > 0 {
			t.Errorf("it was told %q", e)
		}
		s.Refuse(nil)
		time.Sleep(lastDelay + time.Second)
		if !address(s.Service(key("refused"))).IsValid() {
			t.Error("it is not served when it is allowed")
		}
	})
}

// TestPoolsThatComeWithAServiceAreKnown has two pools and a Service come at short intervals, as from one manifest: it is served from the
// pool that goes first.
func TestPoolsThatComeWithAServiceAreKnown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for gap := time.Duration(0); gap < configInterval; gap += 5 * time.Millisecond {
			s := memory.NewServer(nil)
			c := run(t, s, nil, Options{})
			time.Sleep(time.Second)
			for i, name := range []string{"second", "first"} {
				p := pool(fmt.Sprintf("192.0.2.%d/32", i))
				p.AllocateTo = &v1beta1.ServiceAllocation{Priority: 2 - i}
				s.SetPool(name, p)
				c.Reconfigured()
				time.Sleep(gap)
			}
			s.Create(balanced("a"))
			time.Sleep(time.Second)
			want(t, s, "a", "192.0.2.1", names.ReasonAssigned)
			c.end()
		}
	})
}
