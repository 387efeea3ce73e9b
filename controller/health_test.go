package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/healthz"

	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/option"
	"github.com/gantry-lb/gantry/test/apiserver"
)

// findFreeListenAddress returns an address on which no process listens.
func findFreeListenAddress(t *testing.T) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", apiserver.FindFreeTCPPort(t))
}

// getHealthStatusCodeOrZero returns the status code of a health check; 0 without an answer.
func getHealthStatusCodeOrZero(address, path string) int {
	r, err := http.Get(fmt.Sprintf("http://%s/%s", address, path))
	if err != nil {
		return 0
	}
	defer r.Body.Close()
	_, _ = io.Copy(io.Discard, r.Body)
	return r.StatusCode
}

// awaitHealthStatusCode waits for a status code of a health check.
func awaitHealthStatusCode(t *testing.T, address, path string, want int) {
	t.Helper()
	got := 0
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if got = getHealthStatusCodeOrZero(address, path); got == want {
			return
		}
	}
	t.Fatalf("/%s is answered with %d, want %d", path, got, want)
}

// TestControllerWaitingForCRDsIsAliveNotReady starts a controller without an API server, and then
// with one without the CRDs. It is alive and not ready, and closes the port of its health checks
// once the CRDs are there.
func TestControllerWaitingForCRDsIsAliveNotReady(t *testing.T) {
	api, health := findFreeListenAddress(t), findFreeListenAddress(t)
	done := make(chan error, 1)
	go func() {
		done <- awaitCRDsWhileServingHealth(t.Context(), &rest.Config{Host: "http://" + api}, slog.New(slog.DiscardHandler), health)
	}()
	check := func() {
		t.Helper()
		awaitHealthStatusCode(t, health, "healthz", http.StatusOK)
		awaitHealthStatusCode(t, health, "readyz", http.StatusServiceUnavailable)
	}
	check()
	asked := make(chan struct{})
	kinds := make(chan []schema.GroupVersionResource, 1)
	kinds <- nil
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served := <-kinds
		kinds <- served
		if served == nil {
			http.NotFound(w, nil)
			select {
			case asked <- struct{}{}:
			default:
			}
			return
		}
		list := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: strings.TrimPrefix(r.URL.Path, "/apis/")}
		for _, s := range served {
			if s.GroupVersion().String() == list.GroupVersion {
				list.APIResources = append(list.APIResources, metav1.APIResource{Name: s.Resource})
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(list)
	}))
	l, err := net.Listen("tcp", api)
	if err != nil {
		t.Fatal(err)
	}
	_ = server.Listener.Close()
	server.Listener = l
	server.Start()
	defer server.Close()
	<-asked
	check()
	<-kinds
	kinds <- requiredCRDResources
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if l, err := net.Listen("tcp", health); err != nil {
		t.Errorf("the manager could not take over the health checks: %v", err)
	} else {
		_ = l.Close()
	}
}

// The port of the health checks tells nothing about the cluster, neither while the controller waits
// for the CRDs nor afterwards.
func TestHealthPortOfControllerServesOnlyHealthChecks(t *testing.T) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	waiting, running := findFreeListenAddress(t), findFreeListenAddress(t)
	stop, err := serveAliveButNotReady(t.Context(), waiting)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	o := newManagerOptions(&options{CommonOptions: option.CommonOptions{HealthProbeBindAddress: running}}, scheme)
	o.Metrics.BindAddress = "0"
	o.MapperProvider = func(*rest.Config, *http.Client) (meta.RESTMapper, error) {
		return configuration.NewOfflineRESTMapper(scheme), nil
	}
	mgr, err := ctrl.NewManager(&rest.Config{Host: "http://" + findFreeListenAddress(t)}, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := mgr.AddHealthzCheck("alive", healthz.Ping); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	for _, address := range []string{waiting, running} {
		awaitHealthStatusCode(t, address, "healthz", http.StatusOK)
		for _, path := range []string{"", "metrics", "debug/pprof/", "other"} {
			if got := getHealthStatusCodeOrZero(address, path); got != http.StatusNotFound {
				t.Errorf("/%s of the port of the health checks gives %d, want 404", path, got)
			}
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestControllerAwaitsAllKindsThatItUses looks up each kind of an API group of its own that the
// controller watches or writes.
func TestControllerAwaitsAllKindsThatItUses(t *testing.T) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	mapper := configuration.NewOfflineRESTMapper(scheme)
	used := []client.Object{&v1alpha1.AddressLedger{}}
	for o := range newManagerOptions(&options{}, scheme).Cache.ByObject {
		used = append(used, o)
	}
	for _, o := range used {
		kind, err := apiutil.GVKForObject(o, scheme)
		if err != nil {
			t.Fatal(err)
		}
		if kind.Group != v1alpha1.GroupVersion.Group && kind.Group != v1beta1.GroupVersion.Group {
			continue
		}
		m, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(requiredCRDResources, m.Resource) {
			t.Errorf("the controller uses %s, and does not wait for it", m.Resource)
		}
	}
}

func TestNoHealthListenerWhenAddressIsOff(t *testing.T) {
	for _, address := range []string{"", "0"} {
		stop, err := serveAliveButNotReady(context.Background(), address)
		if err != nil {
			t.Fatal(err)
		}
		stop()
	}
}

func TestHealthCheckAddressInUseIsAnError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := awaitCRDsWhileServingHealth(t.Context(), &rest.Config{}, slog.New(slog.DiscardHandler), l.Addr().String()); err == nil {
		t.Error("a controller that cannot answer its health checks says nothing of it")
	}
}
