package reconcile

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

	"github.com/gantry-lb/gantry/controller/reconcile/memory"
)

// gather reads the metrics of a worker, by name and label as they are scraped.
func gather(t *testing.T, r *Services) map[string]float64 {
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

// checkMetrics compares some of the metrics of a worker.
func checkMetrics(t *testing.T, r *Services, when string, want map[string]float64) {
	t.Helper()
	got := gather(t, r)
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s: %s is %v, want %v", when, name, got[name], v)
		}
	}
}

// TestMetricsOfTheWorker follows them through a time without a pool, an AddressLedger that is lost, and a write that is refused.
func TestMetricsOfTheWorker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		c := run(t, s, nil, Options{})
		defer c.end()
		for i := range 10 {
			s.Create(balanced(fmt.Sprint("s", i)))
		}
		time.Sleep(time.Minute)
		checkMetrics(t, c.Services, "without a pool", map[string]float64{
			`gantry_controller_pending_services{reason="NoPools"}`: 10, `gantry_controller_reloads_total{cause="Start"}`: 1,
			"gantry_controller_assignment_seconds_count": 0, `gantry_controller_status_writes_total{outcome="Written"}`: 10,
			`gantry_controller_work{state="Staged"}`: 0, `gantry_controller_work{state="Running"}`: 0, "gantry_controller_unseen_services": 0,
		})
		s.SetPool("p", pool("10.0.0.0/24"))
		c.Reconfigured()
		time.Sleep(time.Minute)
		checkMetrics(t, c.Services, "with a pool", map[string]float64{
			`gantry_controller_pending_services{reason="NoPools"}`: 0, "gantry_controller_assignment_seconds_count": 10, `gantry_controller_work{state="Staged"}`: 0,
		})
		s.LoseLedger()
		s.Create(balanced("after"))
		time.Sleep(time.Minute)
		checkMetrics(t, c.Services, "after the AddressLedger was deleted", map[string]float64{
			`gantry_controller_reloads_total{cause="LedgerDeleted"}`: 1, "gantry_controller_assignment_seconds_count": 11,
		})
		s.Refuse(func(*corev1.Service) error {
			return apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "refused", errors.New("no"))
		})
		s.Create(balanced("refused"))
		time.Sleep(100 * time.Millisecond)
		checkMetrics(t, c.Services, "after a refusal", map[string]float64{`gantry_controller_pending_services{reason="WriteFailed"}`: 1})
		if n := gather(t, c.Services)[`gantry_controller_status_writes_total{outcome="Refused"}`]; n < 1 {
			t.Errorf("%v writes are counted as refused", n)
		}
		s.Refuse(nil)
		time.Sleep(time.Minute)
		checkMetrics(t, c.Services, "when it is allowed", map[string]float64{`gantry_controller_pending_services{reason="WriteFailed"}`: 0})
	})
}

// TestMetricsShowAWorkerThatIsStuck has the API server give no answer to what is written: the work that is not done shows.
func TestMetricsShowAWorkerThatIsStuck(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		s.SetPool("p", pool("10.0.0.0/24"))
		var lost atomic.Bool
		c := run(t, s, func(what string) memory.Weather {
			if lost.Load() && what == "ledger" {
				return memory.Weather{Out: time.Hour}
			}
			return memory.Weather{}
		}, Options{})
		defer time.Sleep(2 * time.Hour) // whatever is out arrives
		defer c.end()
		time.Sleep(time.Second)
		lost.Store(true)
		for i := range 5 {
			s.Create(balanced(fmt.Sprint("s", i)))
		}
		time.Sleep(time.Second)
		checkMetrics(t, c.Services, "while nothing is answered", map[string]float64{
			`gantry_controller_work{state="Staged"}`: 5, `gantry_controller_work{state="Running"}`: 1, `gantry_controller_status_writes_total{outcome="Written"}`: 0,
		})
	})
}

// TestTheWaitOfAServiceIsMeasured has Services wait for a while that is known.
func TestTheWaitOfAServiceIsMeasured(t *testing.T) {
	now := time.Unix(1_700_000_000, 500)
	for name, tc := range map[string]struct {
		age  time.Duration // of the object when it is seen first
		want time.Duration // since when it waits
	}{
		"created in this second":                   {age: 700 * time.Millisecond},
		"created before a busy controller saw it":  {age: 5 * time.Second, want: 5 * time.Second},
		"a LoadBalancer long after it was created": {age: time.Hour},
		"created by a clock that is ahead":         {age: -time.Minute},
	} {
		o := balanced("s")
		o.CreationTimestamp.Time = now.Add(-tc.age)
		if got := now.Sub(waitingSince(o, now)); got != tc.want {
			t.Errorf("%s: it waits since %s before, want %s", name, got, tc.want)
		}
	}
	o := balanced("s")
	o.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
	if got := waitingSince(o, now); !got.IsZero() {
		t.Errorf("one that has an address waits since %s", got)
	}
}

// TestAlertsAskForMetricsThatExist looks up each metric of the worker that an alert asks for.
func TestAlertsAskForMetricsThatExist(t *testing.T) {
	rules, err := os.ReadFile("../../config/components/prometheus/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	described := make(chan *prometheus.Desc, 100)
	for _, c := range New(Options{}).Collectors() {
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
