package assign

import (
	"fmt"
	"slices"
	"sync"
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
	"annotations of the controller": func(s *corev1.Service, _, n int) {
		s.Annotations = map[string]string{names.AnnotationAllocatedFromPool: fmt.Sprint("pool-", n)}
	},
	"annotations that nobody knows": func(s *corev1.Service, _, n int) {
		s.Annotations = map[string]string{fmt.Sprint("metallb.io/misspelt-", n): "x"}
	},
	"the type, to and fro": func(s *corev1.Service, _, n int) {
		s.Spec.Type = corev1.ServiceTypeClusterIP
		if n%2 == 1 {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
		}
	},
	"no address for which there is one": func(s *corev1.Service, i, n int) {
		s.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: fmt.Sprintf("10.0.200.%d", (i+n)%100)}
	},
}

// twoCoreAPIServer delivers requests like an API server that does two at a time. The others wait,
// in their order.
type twoCoreAPIServer struct {
	mu     sync.Mutex // guards freeAt
	freeAt [2]time.Time
}

// requestDuration is what one request costs a core of a twoCoreAPIServer.
const requestDuration = 5 * time.Millisecond

// acceptRequest returns how long the server takes for a request that arrives now.
func (s *twoCoreAPIServer) acceptRequest() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	core, now := 0, time.Now()
	if s.freeAt[1].Before(s.freeAt[0]) {
		core = 1
	}
	if s.freeAt[core].Before(now) {
		s.freeAt[core] = now
	}
	s.freeAt[core] = s.freeAt[core].Add(requestDuration)
	return s.freeAt[core].Sub(now)
}

// deliverRequest says how long a request of the controller takes. Changes in the watch take no
// time.
func (s *twoCoreAPIServer) deliverRequest(what string) apitest.Delivery {
	if what == "watch" {
		return apitest.Delivery{}
	}
	return apitest.Delivery{RequestDelay: s.acceptRequest()}
}

// runUserRequest runs a request of a user once the server comes to it.
func (s *twoCoreAPIServer) runUserRequest(request func()) { time.AfterFunc(s.acceptRequest(), request) }

// recordEvent takes the time of the server for an event.
func (s *twoCoreAPIServer) recordEvent(*corev1.Service, string, string, string) { s.acceptRequest() }

// noisyTenant edits its Services one after the other, 100 of them a second, until it has ended. It
// sends no more requests while maxUnansweredEdits have no answer.
type noisyTenant struct {
	server *apitest.Server
	cores  *twoCoreAPIServer
	edit   func(s *corev1.Service, i, n int)
	ended  chan struct{}
}

const (
	noisyServiceCount  = 100
	maxUnansweredEdits = 8
)

// createServices creates the Services that are edited.
func (n *noisyTenant) createServices() {
	for i := range noisyServiceCount {
		o := newLoadBalancer(fmt.Sprint("noisy", i))
		o.Namespace = "tenant"
		n.server.CreateService(o)
	}
}

func (n *noisyTenant) editUntilEnded() {
	unanswered := make(chan struct{}, maxUnansweredEdits)
	for edits := 0; ; edits++ {
		select {
		case <-n.ended:
			return
		case <-time.After(10 * time.Millisecond):
		}
		unanswered <- struct{}{}
		n.cores.runUserRequest(func() {
			i := edits % noisyServiceCount
			n.server.EditService(view.ObjectKey{Namespace: "tenant", Name: fmt.Sprint("noisy", i)}, func(o *corev1.Service) { n.edit(o, i, edits/noisyServiceCount) })
			<-unanswered
		})
	}
}

// measureMeanWaitOfOthers creates Services of the namespace default one after the other, and
// returns how long they wait for their addresses on average. Meanwhile a tenant with 100 Services
// edits 100 of them a second, unless edit is nil.
func measureMeanWaitOfOthers(t *testing.T, edit func(s *corev1.Service, i, n int)) time.Duration {
	const others, pause = 60, 100 * time.Millisecond
	var total time.Duration
	runWithFakeTime(t, func(t *testing.T) {
		served := make(chan string, others)
		s := apitest.NewServer(func(before, after *corev1.Service) {
			if after != nil && after.Namespace == "default" && firstAddress(after).IsValid() && !firstAddress(before).IsValid() {
				served <- after.Name
			}
		})
		cores := &twoCoreAPIServer{}
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		probed, no := poolSpec("10.1.0.0/16"), false
		probed.AutoAssign, probed.Gantry.Probe = &no, &v1beta1.PoolAcquireProbe{Quarantine: &metav1.Duration{Duration: time.Hour}}
		s.SetPool("probed", probed)
		tenant := &noisyTenant{server: s, cores: cores, edit: edit, ended: make(chan struct{})}
		tenant.createServices()
		c := startController(t, s, cores.deliverRequest, ServiceWorkerOptions{RecordEvent: cores.recordEvent})
		defer c.stopAndWait()
		time.Sleep(time.Minute)
		if edit != nil {
			go tenant.editUntilEnded()
		}
		for n := range others {
			name, sent := fmt.Sprint("other", n), time.Now()
			cores.runUserRequest(func() { s.CreateService(newLoadBalancer(name)) })
			if got := <-served; got != name {
				t.Errorf("Service %s got an address, want %s", got, name)
			}
			total += time.Since(sent)
			time.Sleep(pause)
		}
		close(tenant.ended)
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
