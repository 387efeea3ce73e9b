package assign

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// runControllerWithoutElection runs a controller without leader election until the test ends.
func runControllerWithoutElection(t *testing.T, config *rest.Config, scheme *runtime.Scheme, identity string) {
	t.Helper()
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: scheme, Metrics: metricsserver.Options{BindAddress: "0"},
		Cache: cache.Options{ByObject: map[client.Object]cache.ByObject{&corev1.Service{}: {Transform: CompactService}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	scope := configuration.ConfigurationScope{Namespace: names.DefaultNamespace, WithoutBGPKinds: true}
	reader := configurationreader.NewReader(configurationreader.Options{
		ReadObjects: func(ctx context.Context) (snapshot.ConfigurationObjects, error) {
			return configurationreader.ReadAllObjects(ctx, mgr.GetClient(), scope)
		},
		Log: slog.New(slog.DiscardHandler),
	})
	if err := reader.RegisterReader(ctx, mgr, scope); err != nil {
		t.Fatal(err)
	}
	r := NewServiceWorker(ServiceWorkerOptions{
		ConfigurationReader: reader,
		API:                 &ClientBackedAPI{CachedClient: mgr.GetClient(), LiveReader: mgr.GetAPIReader(), Namespace: names.DefaultNamespace}, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		RecordEvent: (&eventRecorder{}).recordEvent, Namespace: names.DefaultNamespace, LedgerWriterIdentity: identity,
	})
	if err := r.RegisterWorker(ctx, mgr); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// testTwoLeadersAssignNoAddressTwice runs two controllers that both act as leader on the same
// Services: each Service gets one address, and no two get the same.
func testTwoLeadersAssignNoAddressTwice(ctx context.Context, t *testing.T, config *rest.Config, direct client.Client) {
	p := &v1beta1.IPAddressPool{Spec: poolSpec("198.18.0.0/24")}
	p.Namespace, p.Name = names.DefaultNamespace, "p"
	if err := direct.Create(ctx, p); err != nil {
		t.Fatal(err)
	}
	for _, identity := range []string{"one", "two"} {
		runControllerWithoutElection(t, config, direct.Scheme(), identity)
	}
	const n = 100
	var g errgroup.Group
	g.SetLimit(8)
	for i := range n {
		g.Go(func() error {
			o := newLoadBalancer(fmt.Sprint("both-", i))
			o.Spec.ClusterIPs = nil
			return direct.Create(ctx, o)
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		var list corev1.ServiceList
		if err := direct.List(ctx, &list, client.InNamespace("default")); err != nil {
			t.Fatal(err)
		}
		holders := map[string]string{}
		for i := range list.Items {
			o := &list.Items[i]
			if a := firstAddress(o); a.IsValid() {
				if other := holders[a.String()]; other != "" {
					t.Fatalf("Services %s and %s both have %s", other, o.Name, a)
				}
				holders[a.String()] = o.Name
			}
		}
		if len(holders) >= n {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%d of %d Services have an address", len(holders), n)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
