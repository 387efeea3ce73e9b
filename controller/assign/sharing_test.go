package assign

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
	"github.com/gantry-lb/gantry/controller/assign/apitest"
)

// newSharer returns a Service that requests the addresses and may share them.
func newSharer(name string, port int32, addresses string) *corev1.Service {
	s := newLoadBalancer(name)
	s.Annotations = map[string]string{names.AnnotationSharingKey: "k", names.AnnotationLoadBalancerIPs: addresses}
	s.Spec.Ports[0].Port = port
	s.Spec.Selector = map[string]string{"app": "web"}
	return s
}

// newDualStackSharer returns such a Service with both families.
func newDualStackSharer(name string, port int32, addresses string) *corev1.Service {
	s := newSharer(name, port, addresses)
	policy := corev1.IPFamilyPolicyRequireDualStack
	s.Spec.IPFamilyPolicy = &policy
	s.Spec.ClusterIPs = []string{"10.96.0.1", "fd00:96::1"}
	s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	return s
}

// withLocalTrafficPolicy sets externalTrafficPolicy Local.
func withLocalTrafficPolicy(s *corev1.Service) *corev1.Service {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	return s
}

// sharingBreach is an edit that breaks the right to share an address, and one that restores it.
type sharingBreach struct {
	services                 []*corev1.Service
	editedService            string // the Service that is edited
	breakRight, restoreRight func(*corev1.Service)
	wantReason               names.Reason // the edited Service's reason while the right is broken
}

func editToChangePort(n int32) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Ports[0].Port = n }
}

func editToChangeAnnotation(key, value string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Annotations[key] = value }
}

func editToRequestTwoAddresses(addresses string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Annotations[names.AnnotationAddressesPerFamily] = "2"
		s.Annotations[names.AnnotationLoadBalancerIPs] = addresses
	}
}

// sharingBreaches are all ways in which a user's edit can break a right to share.
func sharingBreaches() map[string]sharingBreach {
	const one, two, dual = "192.0.2.1", "192.0.2.1,192.0.2.2", "192.0.2.1,fd00::1"
	twice := func(s *corev1.Service) *corev1.Service { editToRequestTwoAddresses(two)(s); return s }
	policyEdit := func(p corev1.ServiceExternalTrafficPolicy) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = p }
	}
	selectorEdit := func(app string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": app} }
	}
	var crowd []*corev1.Service
	for i := range 12 {
		crowd = append(crowd, newSharer(fmt.Sprintf("s%02d", i), int32(80+i), one))
	}
	return map[string]sharingBreach{
		"a port": {
			[]*corev1.Service{newSharer("a", 80, one), newSharer("b", 81, one)}, "b", editToChangePort(80), editToChangePort(81), names.ReasonPortConflict,
		},
		"a port of the Service that was first": {
			[]*corev1.Service{newSharer("a", 80, one), newSharer("b", 81, one)}, "a", editToChangePort(81), editToChangePort(80), names.ReasonPortConflict,
		},
		"the sharing key": {
			[]*corev1.Service{newSharer("a", 80, one), newSharer("b", 81, one)}, "b",
			editToChangeAnnotation(names.AnnotationSharingKey, "other"), editToChangeAnnotation(names.AnnotationSharingKey, "k"), names.ReasonSharingKeyDiffers,
		},
		"no sharing key": {
			[]*corev1.Service{newSharer("a", 80, one), newSharer("b", 81, one)}, "b",
			func(s *corev1.Service) { delete(s.Annotations, names.AnnotationSharingKey) }, editToChangeAnnotation(names.AnnotationSharingKey, "k"), names.ReasonAddressInUse,
		},
		"the traffic policy": {
			[]*corev1.Service{newSharer("a", 80, one), newSharer("b", 81, one)}, "b",
			policyEdit(corev1.ServiceExternalTrafficPolicyLocal), policyEdit(corev1.ServiceExternalTrafficPolicyCluster), names.ReasonTrafficPolicyConflict,
		},
		"the selector": {
			[]*corev1.Service{withLocalTrafficPolicy(newSharer("a", 80, one)), withLocalTrafficPolicy(newSharer("b", 81, one))}, "b",
			selectorEdit("db"), selectorEdit("web"), names.ReasonTrafficPolicyConflict,
		},
		"a port among many on the address": {
			crowd, "s07", editToChangePort(83), editToChangePort(87), names.ReasonPortConflict,
		},
		"the key among many on the address": {
			crowd, "s07", editToChangeAnnotation(names.AnnotationSharingKey, "other"), editToChangeAnnotation(names.AnnotationSharingKey, "k"), names.ReasonSharingKeyDiffers,
		},
		"a port on both families": {
			[]*corev1.Service{newDualStackSharer("a", 80, dual), newDualStackSharer("b", 81, dual)}, "b", editToChangePort(80), editToChangePort(81), names.ReasonPortConflict,
		},
		"a port on two addresses of two holders": {
			[]*corev1.Service{newSharer("a", 80, one), newSharer("c", 80, "192.0.2.2"), twice(newSharer("b", 81, two))}, "b",
			editToChangePort(80), editToChangePort(81), names.ReasonPortConflict,
		},
	}
}

// TestBrokenSharingRightDoesNotListAllServices edits a Service again and again so that it may not
// share its address, and back. The edited Service loses the address, the others keep theirs, it has
// the address again in the end, and the controller never lists all Services.
func TestBrokenSharingRightDoesNotListAllServices(t *testing.T) {
	for name, tc := range sharingBreaches() {
		t.Run(name, func(t *testing.T) {
			runWithFakeTime(t, func(t *testing.T) {
				s := apitest.NewServer(newAssignmentOracle().checkServiceChange)
				s.SetPool("p", poolSpec("192.0.2.0/28", "fd00::/120"))
				c := startController(t, s, newFastAPIServerDelivery, ServiceWorkerOptions{})
				defer c.stopAndWait()
				time.Sleep(5 * time.Second)
				for _, o := range tc.services {
					s.CreateService(o)
					time.Sleep(time.Second)
				}
				before := s.CountServiceReads("list")
				want := map[string]string{}
				for _, o := range tc.services {
					want[o.Name] = fmt.Sprint(ingressAddresses(s.ServiceByKey(serviceKey(o.Name))))
				}
				for range 3 {
					s.EditService(serviceKey(tc.editedService), tc.breakRight)
					time.Sleep(3 * time.Second)
					if e := s.ServiceByKey(serviceKey(tc.editedService)); firstAddress(e).IsValid() || addressAssignedConditionReason(e) != tc.wantReason {
						t.Errorf("%s has %v for the reason %q, want none for %q", e.Name, ingressAddresses(e), addressAssignedConditionReason(e), tc.wantReason)
					}
					checkServiceAddressesExcept(t, s, want, tc.editedService)
					s.EditService(serviceKey(tc.editedService), tc.restoreRight)
					time.Sleep(3 * time.Second)
					checkServiceAddressesExcept(t, s, want, "")
				}
				for range 50 { // faster than the controller can follow
					s.EditService(serviceKey(tc.editedService), tc.breakRight)
					time.Sleep(7 * time.Millisecond)
					s.EditService(serviceKey(tc.editedService), tc.restoreRight)
					time.Sleep(7 * time.Millisecond)
				}
				time.Sleep(10 * time.Second)
				checkServiceAddressesExcept(t, s, want, "")
				if n := s.CountServiceReads("list") - before; n > 0 {
					t.Errorf("all Services were read %d times", n)
				}
			})
		})
	}
}

// newFastAPIServerDelivery is the delivery of a nearby API server.
func newFastAPIServerDelivery(what string) apitest.Delivery {
	switch what {
	case "list": // it has many Services
		return apitest.Delivery{RequestDelay: time.Millisecond, AnswerDelay: 2 * time.Second}
	case "watch":
		return apitest.Delivery{}
	}
	return apitest.Delivery{RequestDelay: 2 * time.Millisecond, AnswerDelay: 2 * time.Millisecond}
}

// checkServiceAddressesExcept checks the addresses of all Services but one.
func checkServiceAddressesExcept(t *testing.T, s *apitest.Server, want map[string]string, but string) {
	t.Helper()
	for name, addrs := range want {
		if got := fmt.Sprint(ingressAddresses(s.ServiceByKey(serviceKey(name)))); name != but && got != addrs {
			t.Errorf("%s has %s, want %s: %v", name, got, addrs, s.ServiceByKey(serviceKey(name)).Status.Conditions)
		}
	}
}

// TestRepeatedSharingEditsDelayNoOtherService measures how long a new Service waits for its address
// among 20,000, without and with a user who breaks and restores a right to share ten times per
// second.
func TestRepeatedSharingEditsDelayNoOtherService(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		s.CreateService(newSharer("a", 80, "10.0.255.1"))
		s.CreateService(newSharer("b", 81, "10.0.255.1"))
		for i := range 20_000 {
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
		}
		c := startController(t, s, newFastAPIServerDelivery, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(2 * time.Minute)
		if n := s.CountServiceReads("list"); n != 2 { // once because the AddressLedger is new
			t.Fatalf("all Services were read %d times at the start", n)
		}
		calm := measureMedianAssignmentDelay(t, s, "calm")
		toggling := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for port := int32(80); ; port = 161 - port {
				select {
				case <-toggling:
					return
				case <-time.After(100 * time.Millisecond):
					s.EditService(serviceKey("b"), editToChangePort(port))
				}
			}
		}()
		busy := measureMedianAssignmentDelay(t, s, "busy")
		close(toggling)
		<-done
		if 2*busy > 3*calm {
			t.Errorf("a new Service waits %s for its address while a user toggles a port, and %s without that", busy, calm)
		}
		if n := s.CountServiceReads("list"); n != 2 {
			t.Errorf("all Services were read %d times while a user toggled a port", n-2)
		}
	})
}

// measureMedianAssignmentDelay creates Services one after the other, and returns the median time
// until one has its address.
func measureMedianAssignmentDelay(t *testing.T, s *apitest.Server, what string) time.Duration {
	t.Helper()
	var all []time.Duration
	for i := range 101 {
		name, begun := fmt.Sprint(what, i), time.Now()
		s.CreateService(newLoadBalancer(name))
		for synctest.Wait(); !firstAddress(s.ServiceByKey(serviceKey(name))).IsValid(); synctest.Wait() {
			time.Sleep(time.Millisecond)
		}
		all = append(all, time.Since(begun))
		time.Sleep(333 * time.Millisecond)
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// TestSharersThatExchangePortsKeepSharedAddress exchanges the ports of two Services that share an
// address while the controller's cache is behind. Neither loses the address, and the controller
// does not list all Services.
func TestSharersThatExchangePortsKeepSharedAddress(t *testing.T) {
	for _, first := range []string{"a", "b"} {
		t.Run(first+" first", func(t *testing.T) {
			runWithFakeTime(t, func(t *testing.T) {
				s := apitest.NewServer(newAssignmentOracle().checkServiceChange)
				s.SetPool("p", poolSpec("192.0.2.0/28"))
				c := startController(t, s, newFastAPIServerDelivery, ServiceWorkerOptions{})
				defer c.stopAndWait()
				time.Sleep(5 * time.Second)
				ports := map[string]int32{"a": 80, "b": 81}
				for name, port := range ports {
					s.CreateService(newSharer(name, port, "192.0.2.1"))
				}
				time.Sleep(time.Second)
				lists, writes := s.CountServiceReads("list"), s.CountWriteRequestsOfKind("service")
				second := map[string]string{"a": "b", "b": "a"}[first]
				for range 5 {
					ports[first], ports[second] = ports[second], ports[first]
					s.EditService(serviceKey(first), editToChangePort(ports[first]))
					s.EditService(serviceKey(second), editToChangePort(ports[second]))
					time.Sleep(5 * time.Second)
				}
				checkServiceAddressesExcept(t, s, map[string]string{"a": "[192.0.2.1]", "b": "[192.0.2.1]"}, "")
				if l, w := s.CountServiceReads("list")-lists, s.CountWriteRequestsOfKind("service")-writes; l+w > 0 {
					t.Errorf("all Services were read %d times, and %d statuses written", l, w)
				}
			})
		})
	}
}

// TestAddressWrittenToStatusIsKeptThoughCacheIsBehind writes an address into a Service's status
// right after another Service lost it: the controller's cache is behind, and it believes the API
// server.
func TestAddressWrittenToStatusIsKeptThoughCacheIsBehind(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.0/28"))
		var slow atomic.Bool
		c := startController(t, s, func(what string) apitest.Delivery {
			if what == "watch" && slow.Load() {
				return apitest.Delivery{AnswerDelay: 300 * time.Millisecond}
			}
			return newFastAPIServerDelivery(what)
		}, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(5 * time.Second)
		s.CreateService(newLoadBalancer("had"))
		time.Sleep(time.Second)
		s.CreateService(newLoadBalancer("has"))
		time.Sleep(time.Second)
		lists := s.CountServiceReads("list")
		slow.Store(true)
		show := func(address string) func(*corev1.Service) {
			return func(o *corev1.Service) { o.Status.LoadBalancer.Ingress[0].IP = address }
		}
		s.EditService(serviceKey("has"), show("192.0.2.0")) // the first event for the controller
		s.EditService(serviceKey("had"), show("192.0.2.9"))
		time.Sleep(10 * time.Second)
		checkServiceAddressesExcept(t, s, map[string]string{"had": "[192.0.2.9]", "has": "[192.0.2.0]"}, "")
		if n := s.CountServiceReads("list") - lists; n > 0 {
			t.Errorf("all Services were read %d times", n)
		}
	})
}

// TestUnclearSharingReloadsAtMostEvery30Seconds has Services that show addresses of others, and
// answers of the API server that are not sufficient: the others are no longer LoadBalancers, and a
// webhook prevents the controller from clearing their status. All Services are read then, at most
// every 30 seconds. Meanwhile the Services keep what they show, and others are served.
func TestUnclearSharingReloadsAtMostEvery30Seconds(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		const pairs = 4
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.0/24"))
		c := startController(t, s, newFastAPIServerDelivery, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(5 * time.Second)
		for i := range pairs {
			s.CreateService(newLoadBalancer(fmt.Sprint("old", i)))
			time.Sleep(time.Second)
			s.CreateService(newLoadBalancer(fmt.Sprint("new", i)))
			time.Sleep(time.Second)
		}
		s.RefuseServiceWrites(func(o *corev1.Service) error {
			if o.Spec.Type != corev1.ServiceTypeLoadBalancer {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, o.Name, errors.New("no"))
			}
			return nil
		})
		lists := s.CountServiceReads("list")
		want := map[string]string{}
		for i := range pairs {
			had := firstAddress(s.ServiceByKey(serviceKey(fmt.Sprint("old", i)))).String()
			s.EditService(serviceKey(fmt.Sprint("old", i)), func(o *corev1.Service) { o.Spec.Type = corev1.ServiceTypeClusterIP })
			s.EditService(serviceKey(fmt.Sprint("new", i)), func(o *corev1.Service) { o.Status.LoadBalancer.Ingress[0].IP = had })
			want[fmt.Sprint("new", i)] = "[" + had + "]"
			for j := range 10 {
				time.Sleep(time.Second)
				checkServiceAddressesExcept(t, s, want, "")
				if j == 5 {
					name := fmt.Sprint("other", i)
					s.CreateService(newLoadBalancer(name))
					time.Sleep(4 * time.Second)
					if !firstAddress(s.ServiceByKey(serviceKey(name))).IsValid() {
						t.Errorf("Service %s has no address after four seconds", name)
					}
				}
			}
		}
		time.Sleep(2 * time.Minute)
		checkServiceAddressesExcept(t, s, want, "")
		if n := s.CountServiceReads("list") - lists; n < 1 || n > 1+int((pairs*14*time.Second+2*time.Minute)/minSharingReloadInterval) || n > pairs {
			t.Errorf("all Services were read %d times", n)
		}
		if n := gatherMetrics(t, c.ServiceWorker)[`gantry_controller_reloads_total{cause="SharingUnclear"}`]; int(n) != s.CountServiceReads("list")-lists {
			t.Errorf("%v readings are counted of %d", n, s.CountServiceReads("list")-lists)
		}
	})
}

// TestAddressInStatusIsNotFree breaks the right of a Service to share its address while its status
// cannot be written, and deletes the Service that keeps the address. No third Service gets the
// address as long as a status shows it.
func TestAddressInStatusIsNotFree(t *testing.T) {
	for name, startsAnew := range map[string]bool{"the controller runs on": false, "a controller starts anew": true} {
		t.Run(name, func(t *testing.T) {
			runWithFakeTime(t, func(t *testing.T) {
				o := newAssignmentOracle()
				s := apitest.NewServer(o.checkServiceChange)
				s.SetPool("p", poolSpec("192.0.2.1/32"))
				c := startController(t, s, nil, ServiceWorkerOptions{})
				awaitQuiet := func() { time.Sleep(time.Second); synctest.Wait() }
				for i, name := range []string{"older", "younger"} {
					s.CreateService(newSharer(name, int32(80+i), ""))
					awaitQuiet()
				}
				s.RefuseServiceWrites(func(o *corev1.Service) error {
					if o.Name == "younger" {
						return apierrors.NewInternalError(errors.New("a webhook failed"))
					}
					return nil
				})
				if startsAnew {
					c.stopAndWait()
				}
				s.EditService(serviceKey("younger"), editToChangePort(80))
				if startsAnew {
					c = startController(t, s, nil, ServiceWorkerOptions{})
				}
				awaitQuiet()
				s.DeleteService(serviceKey("older"))
				s.CreateService(newLoadBalancer("third"))
				awaitQuiet()
				wantAddressAndReason(t, s, "third", "", names.ReasonPoolExhausted)
				s.RefuseServiceWrites(nil)
				time.Sleep(2 * maxRetryDelay)
				c.stopAndWait()
				holders := 0
				for _, o := range s.AllServices() {
					holders += len(ingressAddresses(o))
				}
				if holders != 1 || len(o.faults) > 0 {
					t.Errorf("%d Services have the address, want 1: %v", holders, o.faults)
				}
			})
		})
	}
}
