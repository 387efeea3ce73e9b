package assign

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/api/names"
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
		for i := range 100 {
			o := newLoadBalancer(fmt.Sprint("noisy", i))
			o.Namespace = "tenant"
			s.CreateService(o)
		}
		c := startController(t, s, func(what string) apitest.Delivery {
			if what == "watch" {
				return apitest.Delivery{}
			}
			return apitest.Delivery{RequestDelay: write / 2, AnswerDelay: write / 2}
		}, ServiceWorkerOptions{})
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
// run: their addresses come at least half as fast.
func TestTenantWhoEditsManyServicesSlowsOthersByAtMostHalf(t *testing.T) {
	quiet := measureMeanWaitOfOthers(t, nil)
	for name, edit := range noisyTenantEdits {
		busy := measureMeanWaitOfOthers(t, edit)
		t.Logf("%s: others wait %s, without the tenant %s", name, busy, quiet)
		if busy > quiet*2 {
			t.Errorf("a tenant edits 100 Services a second (%s): others wait %s for an address, without it %s; want at most twice as long", name, busy, quiet)
		}
	}
}
