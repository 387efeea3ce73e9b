package reconcile

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/reconcile/memory"
)

// sharer is a Service that asks for the addresses and may share them.
func sharer(name string, port int32, addresses string) *corev1.Service {
	s := balanced(name)
	s.Annotations = map[string]string{names.AnnotationSharing: "k", names.AnnotationLoadBalancerIPs: addresses}
	s.Spec.Ports[0].Port = port
	s.Spec.Selector = map[string]string{"app": "web"}
	return s
}

// dualSharer is a sharer of both families.
func dualSharer(name string, port int32, addresses string) *corev1.Service {
	s := sharer(name, port, addresses)
	policy := corev1.IPFamilyPolicyRequireDualStack
	s.Spec.IPFamilyPolicy = &policy
	s.Spec.ClusterIPs = []string{"10.96.0.1", "fd00:96::1"}
	s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	return s
}

// local has the traffic of a Service stay on the node where it arrives.
func local(s *corev1.Service) *corev1.Service {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	return s
}

// breach is a way in which a user breaks the right to share an address, and mends it again.
type breach struct {
	services      []*corev1.Service
	editor        string // the Service that is edited
	breaks, mends func(*corev1.Service)
	why           names.Reason // what the editor is told while the right is broken
}

func portEdit(n int32) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Ports[0].Port = n }
}

func annotationEdit(key, value string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Annotations[key] = value }
}

func countEdit(addresses string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Annotations[names.AnnotationAddressCount] = "2"
		s.Annotations[names.AnnotationLoadBalancerIPs] = addresses
	}
}

// breaches are all ways in which a tenant's edit can break a right to share.
func breaches() map[string]breach {
	const one, two, dual = "192.0.2.1", "192.0.2.1,192.0.2.2", "192.0.2.1,fd00::1"
	twice := func(s *corev1.Service) *corev1.Service { countEdit(two)(s); return s }
	policyEdit := func(p corev1.ServiceExternalTrafficPolicy) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = p }
	}
	selectorEdit := func(app string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": app} }
	}
	var crowd []*corev1.Service
	for i := range 12 {
		crowd = append(crowd, sharer(fmt.Sprintf("s%02d", i), int32(80+i), one))
	}
	return map[string]breach{
		"a port": {
			[]*corev1.Service{sharer("a", 80, one), sharer("b", 81, one)}, "b", portEdit(80), portEdit(81), names.ReasonPortConflict,
		},
		"a port of the Service that was first": {
			[]*corev1.Service{sharer("a", 80, one), sharer("b", 81, one)}, "a", portEdit(81), portEdit(80), names.ReasonPortConflict,
		},
		"the sharing key": {
			[]*corev1.Service{sharer("a", 80, one), sharer("b", 81, one)}, "b",
			annotationEdit(names.AnnotationSharing, "other"), annotationEdit(names.AnnotationSharing, "k"), names.ReasonSharingKeyDiffers,
		},
		"no sharing key": {
			[]*corev1.Service{sharer("a", 80, one), sharer("b", 81, one)}, "b",
			func(s *corev1.Service) { delete(s.Annotations, names.AnnotationSharing) }, annotationEdit(names.AnnotationSharing, "k"), names.ReasonAddressInUse,
		},
		"the traffic policy": {
			[]*corev1.Service{sharer("a", 80, one), sharer("b", 81, one)}, "b",
			policyEdit(corev1.ServiceExternalTrafficPolicyLocal), policyEdit(corev1.ServiceExternalTrafficPolicyCluster), names.ReasonTrafficPolicyConflict,
		},
		"the selector": {
			[]*corev1.Service{local(sharer("a", 80, one)), local(sharer("b", 81, one))}, "b",
			selectorEdit("db"), selectorEdit("web"), names.ReasonTrafficPolicyConflict,
		},
		"a port among many on the address": {
			crowd, "s07", portEdit(83), portEdit(87), names.ReasonPortConflict,
		},
		"the key among many on the address": {
			crowd, "s07", annotationEdit(names.AnnotationSharing, "other"), annotationEdit(names.AnnotationSharing, "k"), names.ReasonSharingKeyDiffers,
		},
		"a port on both families": {
			[]*corev1.Service{dualSharer("a", 80, dual), dualSharer("b", 81, dual)}, "b", portEdit(80), portEdit(81), names.ReasonPortConflict,
		},
		"a port on two addresses of two holders": {
			[]*corev1.Service{sharer("a", 80, one), sharer("c", 80, "192.0.2.2"), twice(sharer("b", 81, two))}, "b",
			portEdit(80), portEdit(81), names.ReasonPortConflict,
		},
	}
}

// TestABrokenRightToShareCostsNoList edits a Service so that it may not share its address any more, and back, again and again: the
// Service that was edited loses the address, the others keep theirs, it has the address again in the end, and the API server is never
// asked for all Services.
func TestABrokenRightToShareCostsNoList(t *testing.T) {
	for name, tc := range breaches() {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := memory.NewServer(newOracle().check)
				s.SetPool("p", pool("192.0.2.0/28", "fd00::/120"))
				c := run(t, s, briskly, Options{})
				defer c.end()
				time.Sleep(5 * time.Second)
				for _, o := range tc.services {
					s.Create(o)
					time.Sleep(time.Second)
				}
				before := s.Reads("list")
				want := map[string]string{}
				for _, o := range tc.services {
					want[o.Name] = fmt.Sprint(addresses(s.Service(key(o.Name))))
				}
				for range 3 {
					s.Edit(key(tc.editor), tc.breaks)
					time.Sleep(3 * time.Second)
					if e := s.Service(key(tc.editor)); address(e).IsValid() || reason(e) != tc.why {
						t.Errorf("%s has %v for the reason %q, want none for %q", e.Name, addresses(e), reason(e), tc.why)
					}
					checkAddresses(t, s, want, tc.editor)
					s.Edit(key(tc.editor), tc.mends)
					time.Sleep(3 * time.Second)
					checkAddresses(t, s, want, "")
				}
				for range 50 { // faster than anybody can follow
					s.Edit(key(tc.editor), tc.breaks)
					time.Sleep(7 * time.Millisecond)
					s.Edit(key(tc.editor), tc.mends)
					time.Sleep(7 * time.Millisecond)
				}
				time.Sleep(10 * time.Second)
				checkAddresses(t, s, want, "")
				if n := s.Reads("list") - before; n > 0 {
					t.Errorf("all Services were read %d times", n)
				}
			})
		})
	}
}

// briskly is the way to an API server that is near.
func briskly(what string) memory.Weather {
	switch what {
	case "list": // with many Services
		return memory.Weather{Out: time.Millisecond, Back: 2 * time.Second}
	case "watch":
		return memory.Weather{}
	}
	return memory.Weather{Out: 2 * time.Millisecond, Back: 2 * time.Millisecond}
}

// checkAddresses compares what the Services have with what they had, but for one.
func checkAddresses(t *testing.T, s *memory.Server, want map[string]string, but string) {
	t.Helper()
	for name, addrs := range want {
		if got := fmt.Sprint(addresses(s.Service(key(name)))); name != but && got != addrs {
			t.Errorf("%s has %s, want %s: %v", name, got, addrs, s.Service(key(name)).Status.Conditions)
		}
	}
}

// TestTogglesHoldUpNobody measures how long a new Service waits for its address among 20,000, without and with a tenant who breaks
// and mends a right to share ten times a second.
func TestTogglesHoldUpNobody(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		s.SetPool("p", pool("10.0.0.0/16"))
		s.Create(sharer("a", 80, "10.0.255.1"))
		s.Create(sharer("b", 81, "10.0.255.1"))
		for i := range 20_000 {
			s.Create(balanced(fmt.Sprint("s", i)))
		}
		c := run(t, s, briskly, Options{})
		defer c.end()
		time.Sleep(2 * time.Minute)
		if n := s.Reads("list"); n != 1 {
			t.Fatalf("all Services were read %d times at the start", n)
		}
		calm := medianWait(t, s, "calm")
		toggling := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for port := int32(80); ; port = 161 - port {
				select {
				case <-toggling:
					return
				case <-time.After(100 * time.Millisecond):
					s.Edit(key("b"), portEdit(port))
				}
			}
		}()
		busy := medianWait(t, s, "busy")
		close(toggling)
		<-done
		if 2*busy > 3*calm {
			t.Errorf("a new Service waits %s for its address while somebody toggles a port, and %s without", busy, calm)
		}
		if n := s.Reads("list"); n != 1 {
			t.Errorf("all Services were read %d times while somebody toggled a port", n-1)
		}
	})
}

// medianWait creates Services one after the other, and returns how long one waits for its address in the median.
func medianWait(t *testing.T, s *memory.Server, what string) time.Duration {
	t.Helper()
	var all []time.Duration
	for i := range 101 {
		name, begun := fmt.Sprint(what, i), time.Now()
		s.Create(balanced(name))
		for synctest.Wait(); !address(s.Service(key(name))).IsValid(); synctest.Wait() {
			time.Sleep(time.Millisecond)
		}
		all = append(all, time.Since(begun))
		time.Sleep(333 * time.Millisecond)
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// TestBothWhoShareAreEditedAtOnce has two Services that share an address exchange their ports while the controller's cache lags: neither
// loses the address, and nobody reads all Services.
func TestBothWhoShareAreEditedAtOnce(t *testing.T) {
	for _, first := range []string{"a", "b"} {
		t.Run(first+" first", func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := memory.NewServer(newOracle().check)
				s.SetPool("p", pool("192.0.2.0/28"))
				c := run(t, s, briskly, Options{})
				defer c.end()
				time.Sleep(5 * time.Second)
				ports := map[string]int32{"a": 80, "b": 81}
				for name, port := range ports {
					s.Create(sharer(name, port, "192.0.2.1"))
				}
				time.Sleep(time.Second)
				lists, writes := s.Reads("list"), s.Writes("service")
				second := map[string]string{"a": "b", "b": "a"}[first]
				for range 5 {
					ports[first], ports[second] = ports[second], ports[first]
					s.Edit(key(first), portEdit(ports[first]))
					s.Edit(key(second), portEdit(ports[second]))
					time.Sleep(5 * time.Second)
				}
				checkAddresses(t, s, map[string]string{"a": "[192.0.2.1]", "b": "[192.0.2.1]"}, "")
				if l, w := s.Reads("list")-lists, s.Writes("service")-writes; l+w > 0 {
					t.Errorf("all Services were read %d times, and %d statuses written", l, w)
				}
			})
		})
	}
}

// TestAnAddressThatItsHolderHasLost has somebody write an address into a Service's status that another Service had until a moment ago: the
// controller has not heard of that yet, and believes the API server.
func TestAnAddressThatItsHolderHasLost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		s.SetPool("p", pool("192.0.2.0/28"))
		var slow atomic.Bool
		c := run(t, s, func(what string) memory.Weather {
			if what == "watch" && slow.Load() {
				return memory.Weather{Back: 300 * time.Millisecond}
			}
			return briskly(what)
		}, Options{})
		defer c.end()
		time.Sleep(5 * time.Second)
		s.Create(balanced("had"))
		time.Sleep(time.Second)
		s.Create(balanced("has"))
		time.Sleep(time.Second)
		lists := s.Reads("list")
		slow.Store(true)
		show := func(address string) func(*corev1.Service) {
			return func(o *corev1.Service) { o.Status.LoadBalancer.Ingress[0].IP = address }
		}
		s.Edit(key("has"), show("192.0.2.0")) // what the controller hears first
		s.Edit(key("had"), show("192.0.2.9"))
		time.Sleep(10 * time.Second)
		checkAddresses(t, s, map[string]string{"had": "[192.0.2.9]", "has": "[192.0.2.0]"}, "")
		if n := s.Reads("list") - lists; n > 0 {
			t.Errorf("all Services were read %d times", n)
		}
	})
}

// TestAReadingOfAllServicesIsRare has Services show addresses of others of which the API server's answers do not tell enough: those are
// no LoadBalancers any more, and a webhook keeps the controller from taking back what it wrote on them. All Services are read then,
// and at most every 30 seconds; meanwhile the Services keep what they show, and others are served.
func TestAReadingOfAllServicesIsRare(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const pairs = 4
		s := memory.NewServer(nil)
		s.SetPool("p", pool("192.0.2.0/24"))
		c := run(t, s, briskly, Options{})
		defer c.end()
		time.Sleep(5 * time.Second)
		for i := range pairs {
			s.Create(balanced(fmt.Sprint("old", i)))
			time.Sleep(time.Second)
			s.Create(balanced(fmt.Sprint("new", i)))
			time.Sleep(time.Second)
		}
		s.Refuse(func(o *corev1.Service) error {
			if o.Spec.Type != corev1.ServiceTypeLoadBalancer {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, o.Name, errors.New("no"))
			}
			return nil
		})
		lists := s.Reads("list")
		want := map[string]string{}
		for i := range pairs {
			had := address(s.Service(key(fmt.Sprint("old", i)))).String()
			s.Edit(key(fmt.Sprint("old", i)), func(o *corev1.Service) { o.Spec.Type = corev1.ServiceTypeClusterIP })
			s.Edit(key(fmt.Sprint("new", i)), func(o *corev1.Service) { o.Status.LoadBalancer.Ingress[0].IP = had })
			want[fmt.Sprint("new", i)] = "[" + had + "]"
			for j := range 10 {
				time.Sleep(time.Second)
				checkAddresses(t, s, want, "")
				if j == 5 {
					name := fmt.Sprint("other", i)
					s.Create(balanced(name))
					time.Sleep(4 * time.Second)
					if !address(s.Service(key(name))).IsValid() {
						t.Errorf("Service %s has no address after four seconds", name)
					}
				}
			}
		}
		time.Sleep(2 * time.Minute)
		checkAddresses(t, s, want, "")
		if n := s.Reads("list") - lists; n < 1 || n > 1+int((pairs*14*time.Second+2*time.Minute)/reloadInterval) || n > pairs {
			t.Errorf("all Services were read %d times", n)
		}
		if n := gather(t, c.Services)[`gantry_controller_reloads_total{cause="SharingUnclear"}`]; int(n) != s.Reads("list")-lists {
			t.Errorf("%v readings are counted of %d", n, s.Reads("list")-lists)
		}
	})
}
