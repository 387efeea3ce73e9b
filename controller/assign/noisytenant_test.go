package assign

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
	"github.com/gantry-lb/gantry/internal/view"
)

// noisyTenantEdits are edits of the i-th Service of a tenant, each at the n-th time.
var noisyTenantEdits = map[string]func(s *corev1.Service, i, n int){
	"other addresses": func(s *corev1.Service, i, n int) {
		s.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: fmt.Sprintf("10.0.%d.%d", 200+n%2, i)}
	},
	"sharing keys": func(s *corev1.Service, i, n int) {
		s.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: fmt.Sprintf("10.0.200.%d", i/2), names.AnnotationSharingKey: fmt.Sprint("k", i/2*1000+(n+i%2)%2)}
	},
	"ports of a shared address": func(s *corev1.Service, i, n int) {
		s.Annotations = map[string]string{names.AnnotationSharingKey: fmt.Sprint("k", i/2)}
		s.Spec.Ports[0].Port = int32(80 + n%2)
	},
	"requests that cannot be read": func(s *corev1.Service, _, n int) {
		s.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: fmt.Sprint("nonsense-", n)}
	},
	"addresses that are asked for on the network": func(s *corev1.Service, i, n int) {
		s.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: fmt.Sprintf("10.1.%d.%d", n%2, i)}
	},
	"no address for which there is one": func(s *corev1.Service, i, n int) {
		s.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: fmt.Sprintf("10.0.200.%d", (i+n)%100)}
	},
}

// measureMeanWaitOfOthers creates Services of the namespace default one after the other, and
// returns how long they wait for their addresses on average. Meanwhile a tenant with 100 Services
// edits 100 of them a second, unless edit is nil.
func measureMeanWaitOfOthers(t *testing.T, edit func(s *corev1.Service, i, n int)) time.Duration {
	const write, others, gap = 15 * time.Millisecond, 100, 100 * time.Millisecond
	var total time.Duration
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		probed, no := poolSpec("10.1.0.0/16"), false
		probed.AutoAssign, probed.Gantry.Probe = &no, &v1beta1.PoolAcquireProbe{Quarantine: &metav1.Duration{Duration: time.Hour}}
		s.SetPool("probed", probed)
		for i := range 100 {
			o := newLoadBalancer(fmt.Sprint("noisy", i))
			o.Namespace = "tenant"
			s.CreateService(o)
		}
		c := startController(t, s, deliverRequestsIn(write), ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(time.Minute)
		edits := 0
		editNext := func() {
			if i := edits % 100; edit != nil {
				s.EditService(view.ObjectKey{Namespace: "tenant", Name: fmt.Sprint("noisy", i)}, func(o *corev1.Service) { edit(o, i, edits/100) })
				edits++
			}
		}
		for range 500 { // until the edits are what the controller is used to
			editNext()
			time.Sleep(10 * time.Millisecond)
		}
		for n := range others {
			name, created := fmt.Sprint("other", n), time.Now()
			s.CreateService(newLoadBalancer(name))
			waits := true
			for step := range int(gap / time.Millisecond) {
				if step%10 == 0 {
					editNext()
				}
				time.Sleep(time.Millisecond)
				synctest.Wait()
				if waits && firstAddress(s.ServiceByKey(serviceKey(name))).IsValid() {
					waits, total = false, total+time.Since(created)
				}
			}
			if waits {
				total += gap
			}
		}
	})
	return total / others
}

// TestTenantWhoEditsManyServicesSlowsOthersByAtMostHalf compares the wait of others in the same
// run: they wait at most half as long again.
func TestTenantWhoEditsManyServicesSlowsOthersByAtMostHalf(t *testing.T) {
	quiet := measureMeanWaitOfOthers(t, nil)
	for name, edit := range noisyTenantEdits {
		busy := measureMeanWaitOfOthers(t, edit)
		t.Logf("%s: others wait %s, without the tenant %s", name, busy, quiet)
		if busy*2 > quiet*3 {
			t.Errorf("a tenant edits 100 Services a second (%s): others wait %s for an address, without it %s; want at most 1.5 times as long", name, busy, quiet)
		}
	}
}

// TestOthersTakeTurnsWithTenantWhoEditsManyServices has a tenant who edits 2,000 Services at once,
// and then one Service each of three other namespaces. The controller has given these their
// addresses when it has written only a few of the tenant's.
func TestOthersTakeTurnsWithTenantWhoEditsManyServices(t *testing.T) {
	const tenants, write = 2000, 20 * time.Millisecond
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		for i := range tenants {
			o := newLoadBalancer(fmt.Sprint("noisy", i))
			o.Namespace = "tenant"
			s.CreateService(o)
		}
		c := startController(t, s, deliverRequestsIn(write), ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(time.Minute)
		for i := range tenants {
			k := view.ObjectKey{Namespace: "tenant", Name: fmt.Sprint("noisy", i)}
			s.EditService(k, func(o *corev1.Service) {
				o.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: fmt.Sprintf("10.0.%d.%d", 200+i/250, 1+i%250)}
			})
		}
		time.Sleep(3 * write) // the first batch of the tenant is under way
		before := s.CountWriteRequestsOfKind("service")
		var others []view.ObjectKey
		for _, namespace := range []string{"one", "two", "three"} {
			o := newLoadBalancer("web")
			o.Namespace = namespace
			s.CreateService(o)
			others = append(others, view.ObjectKey{Namespace: namespace, Name: "web"})
		}
		for len(others) > 0 {
			time.Sleep(time.Millisecond)
			synctest.Wait()
			others = slices.DeleteFunc(others, func(k view.ObjectKey) bool { return firstAddress(s.ServiceByKey(k)).IsValid() })
		}
		// Those that were in flight when the others came, those that end during the swap with their
		// entries, and those that end until their statuses are written.
		if n := s.CountWriteRequestsOfKind("service") - before; n > 4*maxTasksInFlight {
			t.Errorf("the controller has written %d of %d Services of the tenant before those of others, want at most %d", n, tenants, 4*maxTasksInFlight)
		}
	})
}
