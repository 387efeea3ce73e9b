package assign

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/gantry-lb/gantry/controller/assign/apitest"
)

// gatherMetrics returns the metrics of a worker, by name and label as they are scraped.
func gatherMetrics(t *testing.T, r *ServiceWorker) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(r.Collectors()...)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	out := map[string]float64{}
	for _, line := range strings.Split(w.Body.String(), "\n") {
		if name, value, ok := strings.Cut(line, "} "); ok {
			out[name+"}"], _ = strconv.ParseFloat(value, 64)
		} else if name, value, ok := strings.Cut(line, " "); ok && !strings.HasPrefix(line, "#") {
			out[name], _ = strconv.ParseFloat(value, 64)
		}
	}
	return out
}

// wantMetrics checks some of the metrics of a worker.
func wantMetrics(t *testing.T, r *ServiceWorker, when string, want map[string]float64) {
	t.Helper()
	got := gatherMetrics(t, r)
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s: %s is %v, want %v", when, name, got[name], v)
		}
	}
}

// TestServiceWorkerMetrics checks them without a pool, after a deleted AddressLedger, and after a
// refused write.
func TestServiceWorkerMetrics(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		c := startController(t, s, nil, ServiceWorkerOptions{})
		defer c.stopAndWait()
		for i := range 10 {
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
		}
		time.Sleep(time.Minute)
		wantMetrics(t, c.ServiceWorker, "without a pool", map[string]float64{
			`gantry_controller_pending_services{reason="NoPools"}`: 10, `gantry_controller_reloads_total{cause="Start"}`: 1,
			"gantry_controller_assignment_seconds_count": 0, `gantry_controller_status_writes_total{outcome="Written"}`: 10,
			`gantry_controller_work{state="Staged"}`: 0, `gantry_controller_work{state="Running"}`: 0, "gantry_controller_unseen_services": 0,
		})
		s.SetPool("p", poolSpec("10.0.0.0/24"))
		c.ConfigurationReader.NotifyAllocationObjectChanged()
		time.Sleep(time.Minute)
		wantMetrics(t, c.ServiceWorker, "with a pool", map[string]float64{
			`gantry_controller_pending_services{reason="NoPools"}`: 0, "gantry_controller_assignment_seconds_count": 10, `gantry_controller_work{state="Staged"}`: 0,
		})
		s.DeleteAllLedgers()
		s.CreateService(newLoadBalancer("after"))
		time.Sleep(time.Minute)
		wantMetrics(t, c.ServiceWorker, "after the AddressLedger was deleted", map[string]float64{
			`gantry_controller_reloads_total{cause="LedgerDeleted"}`: 1, "gantry_controller_assignment_seconds_count": 11,
		})
		s.RefuseServiceWrites(func(*corev1.Service) error {
			return apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "refused", errors.New("no"))
		})
		s.CreateService(newLoadBalancer("refused"))
		time.Sleep(100 * time.Millisecond)
		wantMetrics(t, c.ServiceWorker, "after a refusal", map[string]float64{`gantry_controller_pending_services{reason="WriteFailed"}`: 1})
		if n := gatherMetrics(t, c.ServiceWorker)[`gantry_controller_status_writes_total{outcome="Refused"}`]; n < 1 {
			t.Errorf("%v writes are counted as refused", n)
		}
		s.RefuseServiceWrites(nil)
		time.Sleep(time.Minute)
		wantMetrics(t, c.ServiceWorker, "when it is allowed", map[string]float64{`gantry_controller_pending_services{reason="WriteFailed"}`: 0})
	})
}

// TestMetricsShowAStuckWorker makes the API server answer no write: the metrics show the unfinished
// work.
func TestMetricsShowAStuckWorker(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/24"))
		var lost atomic.Bool
		c := startController(t, s, func(what string) apitest.Delivery {
			if lost.Load() && what == "ledger" {
				return apitest.Delivery{RequestDelay: time.Hour}
			}
			return apitest.Delivery{}
		}, ServiceWorkerOptions{})
		defer time.Sleep(2 * time.Hour) // until all sent requests have arrived
		defer c.stopAndWait()
		time.Sleep(time.Second)
		lost.Store(true)
		for i := range 5 {
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
		}
		time.Sleep(time.Second)
		wantMetrics(t, c.ServiceWorker, "while nothing is answered", map[string]float64{
			`gantry_controller_work{state="Staged"}`: 5, `gantry_controller_work{state="Running"}`: 1, `gantry_controller_status_writes_total{outcome="Written"}`: 0,
		})
		time.Sleep(5 * time.Minute)
		if n := gatherMetrics(t, c.ServiceWorker)["gantry_controller_no_progress_seconds"]; n < 290 {
			t.Errorf("after 5 minutes without an answer the worker has been without progress for %v s", n)
		}
	})
}

// TestFailedLoadIsNotCountedAsReload fails to read all Services for a while.
func TestFailedLoadIsNotCountedAsReload(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		var away atomic.Bool
		away.Store(true)
		c := startController(t, s, func(what string) apitest.Delivery {
			return apitest.Delivery{RequestLost: away.Load() && what == "list"}
		}, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(5 * time.Minute)
		const reloads = `gantry_controller_reloads_total{cause="Start"}`
		wantMetrics(t, c.ServiceWorker, "while the reading fails", map[string]float64{reloads: 0})
		failed := gatherMetrics(t, c.ServiceWorker)[`gantry_controller_failed_reloads_total{cause="Start"}`]
		if failed < 5 {
			t.Errorf("%v failed readings are counted in five minutes", failed)
		}
		away.Store(false)
		time.Sleep(time.Minute)
		wantMetrics(t, c.ServiceWorker, "when it works again", map[string]float64{reloads: 1})
	})
}

// TestLostAnswerDoesNotProlongMeasuredAssignmentDelay loses the answer of the first write of an
// address. Much later a user clears the status, and the address is written again.
func TestLostAnswerDoesNotProlongMeasuredAssignmentDelay(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/24"))
		var answered atomic.Bool
		c := startController(t, s, func(what string) apitest.Delivery {
			return apitest.Delivery{AnswerLost: what == "service" && !answered.Swap(true)}
		}, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(time.Second)
		answered.Store(false)
		s.CreateService(newLoadBalancer("s"))
		time.Sleep(time.Hour)
		s.EditService(serviceKey("s"), func(o *corev1.Service) { o.Status.LoadBalancer.Ingress = nil })
		time.Sleep(time.Minute)
		if !firstAddress(s.ServiceByKey(serviceKey("s"))).IsValid() {
			t.Error("the Service has no address")
		}
		if sum := gatherMetrics(t, c.ServiceWorker)["gantry_controller_assignment_seconds_sum"]; sum > 60 {
			t.Errorf("the Service is said to have waited %v s", sum)
		}
	})
}

// TestAssignmentDelayIsMeasured makes Services wait for a known time.
func TestAssignmentDelayIsMeasured(t *testing.T) {
	now := time.Unix(1_700_000_000, 500)
	for name, tc := range map[string]struct {
		age  time.Duration // of the object when the controller first sees it
		want time.Duration // how long it has waited
	}{
		"created in this second":                   {age: 700 * time.Millisecond},
		"created before a busy controller saw it":  {age: 5 * time.Second, want: 5 * time.Second},
		"a LoadBalancer long after it was created": {age: time.Hour},
		"created by a clock that is ahead":         {age: -time.Minute},
	} {
		o := newLoadBalancer("s")
		o.CreationTimestamp.Time = now.Add(-tc.age)
		if got := now.Sub(firstAddressWaitStart(o, now)); got != tc.want {
			t.Errorf("%s: it has waited for %s, want %s", name, got, tc.want)
		}
	}
	o := newLoadBalancer("s")
	o.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
	if got := firstAddressWaitStart(o, now); !got.IsZero() {
		t.Errorf("one with an address has waited since %s", got)
	}
}

// TestRestartDoesNotProlongMeasuredAssignment has a Service that was created years ago and became a
// LoadBalancer while no controller ran, and another one that waits for a pool during a restart.
func TestRestartDoesNotProlongMeasuredAssignment(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.CreateService(newLoadBalancer("old"))
		c := startController(t, s, nil, ServiceWorkerOptions{})
		time.Sleep(time.Hour)
		c.stopAndWait()
		s.CreateService(newLoadBalancer("new"))
		s.SetPool("p", poolSpec("10.0.0.0/24"))
		c = startController(t, s, nil, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(time.Second)
		m := gatherMetrics(t, c.ServiceWorker)
		if n, sum := m["gantry_controller_assignment_seconds_count"], m["gantry_controller_assignment_seconds_sum"]; n != 2 || sum < 3600 || sum > 3660 {
			t.Errorf("%v assignments took %v s, want 2 and an hour", n, sum)
		}
	})
}

// TestAlertsUseExistingMetrics looks up each metric of the worker in the alerts.
func TestAlertsUseExistingMetrics(t *testing.T) {
	rules, err := os.ReadFile("../../config/components/prometheus/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	described := make(chan *prometheus.Desc, 100)
	for _, c := range NewServiceWorker(ServiceWorkerOptions{}).Collectors() {
		c.Describe(described)
	}
	close(described)
	var all strings.Builder
	for d := range described {
		all.WriteString(d.String())
	}
	asked := regexp.MustCompile(`gantry_controller_\w+`).FindAllString(string(rules), -1)
	if len(asked) == 0 {
		t.Fatal("no alert asks for a metric of the worker")
	}
	for _, name := range asked {
		if !strings.Contains(all.String(), `"`+name+`"`) {
			t.Errorf("an alert asks for %s, which the controller does not have", name)
		}
	}
}
