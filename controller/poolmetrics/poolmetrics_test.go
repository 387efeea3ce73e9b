package poolmetrics

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

func TestPoolMetricsPerFamily(t *testing.T) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	pool := &v1beta1.IPAddressPool{}
	pool.Namespace, pool.Name = names.DefaultNamespace, "dual"
	pool.Status.AssignedIPv4, pool.Status.AssignedIPv6, pool.Status.AvailableIPv6 = 4, 1, 1<<63-2
	other := pool.DeepCopy()
	other.Namespace = "elsewhere"
	dead, probe := &v1alpha1.SpeakerStatus{}, &v1alpha1.AddressProbe{}
	dead.Namespace, dead.Name = names.DefaultNamespace, "node1"
	dead.Status.Conditions = []metav1.Condition{{Type: names.ConditionSpeakerReady, Status: metav1.ConditionFalse}}
	alive := dead.DeepCopy()
	alive.Name, alive.Status.Conditions[0].Status = "node2", metav1.ConditionTrue
	probe.Namespace, probe.Name = names.DefaultNamespace, "192.0.2.1"
	probeOfOperator := probe.DeepCopy()
	probeOfOperator.Name, probeOfOperator.Spec.Node = "operator-1", "node1"
	registry, gauges := prometheus.NewPedanticRegistry(), &configuration.LoadMetrics{}
	m := NewCollector(Options{
		Reader: fake.NewClientBuilder().WithScheme(scheme).WithObjects(pool, other, dead, alive, probe, probeOfOperator).Build(), Namespace: names.DefaultNamespace,
		Log: slog.New(slog.DiscardHandler), Registry: registry, ExtraCollectors: []prometheus.Collector{gauges},
	})
	none := func() {
		t.Helper()
		if n, err := testutil.GatherAndCount(registry); err != nil || n > 0 {
			t.Errorf("a controller that does not lead exports %d metrics, %v", n, err)
		}
	}
	none()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Start(ctx) }()
	for deadline := time.Now().Add(time.Minute); ; {
		if n, _ := testutil.GatherAndCount(registry); n == 12 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a controller that leads does not export all metrics")
		}
		time.Sleep(time.Millisecond)
	}
	scrape := func(want ...string) {
		t.Helper()
		w := httptest.NewRecorder()
		promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		for _, line := range want {
			if !strings.Contains(w.Body.String(), "\n"+line+"\n") {
				t.Errorf("%q is not exported, but\n%s", line, w.Body)
			}
		}
	}
	scrape(`metallb_allocator_ipv4_addresses_total{pool="dual"} 4`, `metallb_allocator_ipv4_addresses_in_use_total{pool="dual"} 4`,
		`metallb_allocator_ipv6_addresses_in_use_total{pool="dual"} 1`, `metallb_allocator_addresses_in_use_total{pool="dual"} 5`,
		"metallb_k8s_client_config_loaded_bool 0", "metallb_k8s_client_config_stale_bool 0", "gantry_dead_speakers 1", "gantry_address_probes 1")
	gauges.RecordProblemsOfLoadedConfiguration([]snapshot.Problem{{Reason: names.ReasonUnknownPool}})
	scrape("metallb_k8s_client_config_loaded_bool 1", "metallb_k8s_client_config_stale_bool 0")
	gauges.RecordProblemsOfLoadedConfiguration([]snapshot.Problem{{Reason: names.ReasonOverlap}})
	scrape("metallb_k8s_client_config_stale_bool 1")
	gauges.RecordProblemsOfLoadedConfiguration(nil)
	scrape("metallb_k8s_client_config_stale_bool 0", "metallb_k8s_client_updates_total 3", "metallb_k8s_client_update_errors_total 1")
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	none()
}
