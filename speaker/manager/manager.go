// Package manager connects the speaker with the API server. It makes the manager of
// controller-runtime, with a cache that holds only the objects that a speaker uses, and the health
// checks. It reads and writes no object itself.
package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/metricsaccess"
	"github.com/gantry-lb/gantry/internal/option"
	"github.com/gantry-lb/gantry/speaker/options"
)

// ControllerRuntimeManager is the manager of a speaker.
type ControllerRuntimeManager struct {
	ctrl.Manager
	config              *rest.Config
	watchClient         client.WithWatch
	isReady             atomic.Bool
	announcedRoutesFunc atomic.Pointer[func(context.Context) any]
	log                 *slog.Logger
}

// New returns a Manager. It reads the credentials, and sends no request before Start.
func New(o options.Options, log *slog.Logger) (*ControllerRuntimeManager, error) {
	config, err := o.LoadRESTConfig()
	if err != nil {
		return nil, err
	}
	metrics, err := metricsaccess.BuildServerOptions(o.CommonOptions, log)
	if err != nil {
		return nil, err
	}
	mgr, err := newControllerRuntimeManager(config, o, metrics)
	if err != nil {
		return nil, fmt.Errorf("setting up the manager: %w", err)
	}
	m := &ControllerRuntimeManager{Manager: mgr, config: config, log: log}
	m.watchClient, err = client.NewWithWatch(config, client.Options{
		HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper(),
	})
	if err != nil {
		return nil, fmt.Errorf("setting up the client for Services: %w", err)
	}
	health := newHealthHandler(map[string]healthz.Checker{"alive": healthz.Ping}, map[string]healthz.Checker{"synced": m.checkReady})
	return m, errors.Join(
		addLocalServer(mgr, "health checks", o.HealthProbeBindAddress, health),
		addLocalServer(mgr, "routes", o.RoutesBindAddress, newRoutesHandler(m.describeAnnouncedRoutes)),
	)
}

// ServeAnnouncedRoutes serves what describe returns as JSON at the address of the routes. Before
// this call the routes are unknown, which is not the same as none.
func (m *ControllerRuntimeManager) ServeAnnouncedRoutes(describe func(context.Context) any) {
	m.announcedRoutesFunc.Store(&describe)
}

// errRoutesUnknown is the error before ServeAnnouncedRoutes.
var errRoutesUnknown = errors.New("the speaker has not started BGP yet: it waits for the gossip key or for its address on the node; ask again later")

func (m *ControllerRuntimeManager) describeAnnouncedRoutes(ctx context.Context) (any, error) {
	if describe := m.announcedRoutesFunc.Load(); describe != nil {
		return (*describe)(ctx), nil
	}
	return nil, errRoutesUnknown
}

// WatchClient returns a client that reads and watches without the cache.
func (m *ControllerRuntimeManager) WatchClient() client.WithWatch { return m.watchClient }

// MarkReady makes the readiness check succeed: the speaker has read the cluster state.
func (m *ControllerRuntimeManager) MarkReady() { m.isReady.Store(true) }

func (m *ControllerRuntimeManager) checkReady(*http.Request) error {
	if !m.isReady.Load() {
		return errors.New("the speaker has not read the cluster state yet")
	}
	return nil
}

// AwaitKindsServed waits until the API server serves the kinds that a speaker uses, or ctx ends.
func (m *ControllerRuntimeManager) AwaitKindsServed(ctx context.Context) error {
	resources := append(slices.Clone(configuration.RequiredCRDResources), v1beta1.GroupVersion.WithResource("servicel2statuses"), v1beta1.GroupVersion.WithResource("servicebgpstatuses"))
	return option.AwaitCRDResourcesServed(ctx, m.config, m.log, resources...)
}

func newControllerRuntimeManager(config *rest.Config, o options.Options, metrics metricsserver.Options) (ctrl.Manager, error) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		return nil, err
	}
	grace := time.Second
	mapper := configuration.NewOfflineRESTMapper(scheme)
	return ctrl.NewManager(config, ctrl.Options{
		Scheme:                  scheme,
		MapperProvider:          func(*rest.Config, *http.Client) (meta.RESTMapper, error) { return mapper, nil },
		Metrics:                 metrics,
		HealthProbeBindAddress:  "0", // a server of our own has the health checks
		GracefulShutdownTimeout: &grace,
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject:         buildCacheSelection(o),
		},
	})
}

// buildCacheSelection returns the kinds that the cache holds, and which objects of each.
func buildCacheSelection(o options.Options) map[client.Object]cache.ByObject {
	cached := o.ConfigurationScope().CacheOptionsByObject()
	speakers := labels.SelectorFromSet(labels.Set{
		names.LabelAppName: names.AppName, names.LabelComponent: names.ComponentSpeaker,
	})
	cached[&v1alpha1.AddressProbe{}] = cache.ByObject{Namespaces: map[string]cache.Config{o.Namespace: {}}}
	cached[&v1beta1.ServiceL2Status{}] = cache.ByObject{Namespaces: map[string]cache.Config{o.Namespace: {}}}
	if !o.ConfigurationScope().WithoutBGPKinds {
		thisNode := labels.SelectorFromSet(labels.Set{names.LabelServiceStatusNode: o.NodeName})
		own := cache.ByObject{Namespaces: map[string]cache.Config{o.Namespace: {LabelSelector: thisNode}}}
		cached[&v1beta1.ServiceBGPStatus{}], cached[&v1alpha1.BGPSession{}] = own, own
	}
	state := configuration.StateWriter{ReportingComponent: names.ComponentSpeaker, Node: o.NodeName}
	cached[&v1beta1.ConfigurationState{}] = cache.ByObject{Namespaces: map[string]cache.Config{o.Namespace: {
		FieldSelector: fields.OneTermEqualSelector("metadata.name", state.ObjectName()),
	}}}
	cached[&corev1.Pod{}] = cache.ByObject{Namespaces: map[string]cache.Config{
		o.Namespace: {LabelSelector: speakers},
	}}
	return cached
}
