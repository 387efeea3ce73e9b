package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/option"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/checkpoint"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/healthcheck"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/speaker/links"
	"github.com/gantry-lb/gantry/speaker/reconcile"
)

// handoverTimeout bounds the handover at the end. The kubelet waits 10 s for the speaker of our
// manifests.
const handoverTimeout = 3 * time.Second

// runSpeaker runs the speaker until ctx ends. It then hands over all addresses and stops its parts.
func runSpeaker(ctx context.Context, o options, log *slog.Logger) error {
	config, err := o.LoadRESTConfig()
	if err != nil {
		return err
	}
	mgr, err := newManager(config, o)
	if err != nil {
		return err
	}
	// The parts outlive ctx until the addresses are handed over, since the agent and the engines
	// are needed for that. The manager starts first, so that the health checks are answered while
	// the speaker waits for the gossip key.
	parts, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, parts := errgroup.WithContext(parts)
	feed, err := newClusterFeed(mgr, config, o, log)
	if err != nil {
		return err
	}
	g.Go(func() error { return mgr.Start(parts) })
	store := checkpoint.New(o.StateDir, log)
	gossip, err := openGossip(ctx, mgr.GetAPIReader(), o, store.LoadState(o.NodeName), log)
	if err != nil || ctx.Err() != nil {
		stop()
		return errors.Join(err, g.Wait())
	}
	watcher := links.NewWatcher(newExclusionReader(o.ExcludeInterfacesFile), log)
	engine := layer2.New(wire.Wire{}, time.Now, o.layer2Options.engineOptions(wire.Wire{})...)
	if err := metrics.Registry.Register(engine); err != nil {
		return fmt.Errorf("registering the metrics of layer 2: %w", err)
	}
	writer := newStatusWriter(mgr, o, feed, watcher, log)
	routing, err := newBGPParts(mgr, o, gossip.runNonce, writer, log)
	if err != nil {
		return err
	}
	prober := newProbeWriter(mgr, o, log)
	healthChecks := healthcheck.NewPoller(time.Now, log)
	a := agent.New(agent.Options{
		Self: o.NodeName, Nonce: gossip.runNonce, LoadBalancerClass: o.LoadBalancerClass, Timing: elect.DefaultTiming(),
		Layer2: engine, BGP: routing.bgpEngine, Members: gossip, Links: watcher.LinkSets(),
		HealthChecks: healthChecks, Now: time.Now, Log: log,
		ObserveStatus: routing.newStatusObserver(writer.ObserveStatus), ObserveProbeAnswer: prober.ObserveAnswer,
		SaveCheckpoint: gossip.newCheckpointSaver(store), RestoreFrom: gossip.restoredCheckpoint(o.ConfigurationScope()),
	})
	if err := errors.Join(metrics.Registry.Register(a), metrics.Registry.Register(writer.Metrics)); err != nil {
		return fmt.Errorf("registering the metrics of the election and of announcements: %w", err)
	}
	state := reconcile.NewConfigurationWriter(reconcile.ConfigurationWriterOptions{
		Client: mgr.GetClient(), Cache: mgr.GetCache(), Log: log,
		State: configuration.StateWriter{Component: names.ComponentSpeaker, Node: o.NodeName, Namespace: o.Namespace},
	})
	problems, err := newProblemObserver(state)
	if err != nil {
		return err
	}
	feed.Agent, feed.Seeds, feed.ObserveProblems, prober.Prober = a, gossip, problems, a
	for _, part := range append(routing.runFunctions(), engine.Run, a.Run, watcher.Run, gossip.Run, store.Run, healthChecks.Run) {
		g.Go(func() error { return part(parts) })
	}
	// The parts that use the API server start once it serves our kinds. Until then the speaker
	// serves its checkpoint.
	g.Go(func() error {
		if err := awaitCustomResourceKinds(parts, config, log); err != nil || parts.Err() != nil {
			return err
		}
		for _, part := range []func(context.Context) error{feed.Run, writer.Run, state.Run, prober.Run} {
			g.Go(func() error { return part(parts) })
		}
		return gossip.verifySavedKey(parts)
	})
	g.Go(func() error {
		defer stop()
		handOverAddressesAtExit(ctx, parts, a, routing.bgpEngine, log)
		return nil
	})
	return g.Wait()
}

// moduleVersion returns the version of the module. It includes the revision if the build had a
// repository.
func moduleVersion() string {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	return b.Main.Version
}

// newProblemObserver returns a function that passes the Problems of the configuration to
// ConfigurationState and the metrics.
func newProblemObserver(state *reconcile.ConfigurationWriter) (func([]snapshot.Problem), error) {
	gauges := &configuration.LoadMetrics{}
	if err := metrics.Registry.Register(gauges); err != nil {
		return nil, fmt.Errorf("registering the metrics of the configuration: %w", err)
	}
	return func(p []snapshot.Problem) { gauges.RecordProblems(p); state.ObserveProblems(p) }, nil
}

// newClusterFeed returns the feed that watches the cluster, and adds the health checks. Its Agent,
// Seeds and Problems are set before it runs.
func newClusterFeed(
	mgr ctrl.Manager, config *rest.Config, o options, log *slog.Logger,
) (*reconcile.ClusterFeed, error) {
	source, err := client.NewWithWatch(config, client.Options{
		HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper(),
	})
	if err != nil {
		return nil, fmt.Errorf("setting up the client for Services: %w", err)
	}
	feed := &reconcile.ClusterFeed{
		Cache: mgr.GetCache(), WatchClient: source, Log: log, Self: o.NodeName, Scope: o.ConfigurationScope(),
	}
	return feed, addHealthChecks(mgr, feed)
}

// newStatusWriter returns the writer of the status objects for layer 2 and of this node.
func newStatusWriter(
	mgr ctrl.Manager, o options, feed *reconcile.ClusterFeed, watcher *links.Watcher, log *slog.Logger,
) *reconcile.StatusWriter {
	return reconcile.NewStatusWriter(reconcile.StatusWriterOptions{
		Client: mgr.GetClient(), Cache: mgr.GetCache(), Log: log,
		Events:           mgr.GetEventRecorder(names.SpeakerEventSource),
		ServiceReference: feed.ServiceReference, SkippedLinks: watcher.SkippedLinks, Now: time.Now,
		Metrics: reconcile.NewAnnouncedMetrics(o.NodeName),
		Self:    o.NodeName, Pod: o.PodName, Namespace: o.Namespace, Version: moduleVersion(),
	})
}

// newProbeWriter returns the writer that probes addresses for the controller. Its Agent is set
// before it runs.
func newProbeWriter(mgr ctrl.Manager, o options, log *slog.Logger) *reconcile.ProbeWriter {
	return reconcile.NewProbeWriter(reconcile.ProbeWriterOptions{
		Client: mgr.GetClient(), Cache: mgr.GetCache(), Log: log, Self: o.NodeName, Namespace: o.Namespace, Now: time.Now,
	})
}

// awaitCustomResourceKinds waits until the API server serves our kinds.
func awaitCustomResourceKinds(ctx context.Context, config *rest.Config, log *slog.Logger) error {
	resources := append(configuration.RequiredResources, "servicel2statuses", "servicebgpstatuses")
	return option.AwaitResources(ctx, config, log, resources...)
}

// handOverAddressesAtExit waits until ctx ends. It then waits until other nodes hold the addresses
// of this one and the routers have got the withdrawals. It returns at once when a part failed.
func handOverAddressesAtExit(ctx, parts context.Context, a *agent.Agent, routers *bgp.Engine, log *slog.Logger) {
	select {
	case <-parts.Done():
		return
	case <-ctx.Done():
	}
	parts, cancel := context.WithTimeout(parts, handoverTimeout)
	defer cancel()
	a.RequestHandover()
	routers.Stop(parts)
	select {
	case <-a.HandoverDone():
		log.Info("all addresses are handed over")
	case <-parts.Done():
		log.Warn("stopping although no other node took some addresses", "waited", handoverTimeout.String())
	}
}

// newManager returns a manager whose cache holds only the objects that a speaker uses.
func newManager(config *rest.Config, o options) (ctrl.Manager, error) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		return nil, err
	}
	watched := o.ConfigurationScope().CacheOptionsByObject()
	speakers := labels.SelectorFromSet(labels.Set{
		names.LabelAppName: names.AppName, names.LabelComponent: names.ComponentSpeaker,
	})
	watched[&v1alpha1.AddressProbe{}] = cache.ByObject{Namespaces: map[string]cache.Config{o.Namespace: {}}}
	watched[&v1beta1.ServiceL2Status{}] = cache.ByObject{Namespaces: map[string]cache.Config{o.Namespace: {}}}
	if !o.ConfigurationScope().Layer2Only {
		thisNode := labels.SelectorFromSet(labels.Set{names.LabelNode: o.NodeName})
		own := cache.ByObject{Namespaces: map[string]cache.Config{o.Namespace: {LabelSelector: thisNode}}}
		watched[&v1beta1.ServiceBGPStatus{}], watched[&v1alpha1.BGPSession{}] = own, own
	}
	state := configuration.StateWriter{Component: names.ComponentSpeaker, Node: o.NodeName}
	watched[&v1beta1.ConfigurationState{}] = cache.ByObject{Namespaces: map[string]cache.Config{o.Namespace: {
		FieldSelector: fields.OneTermEqualSelector("metadata.name", state.ObjectName()),
	}}}
	watched[&corev1.Pod{}] = cache.ByObject{Namespaces: map[string]cache.Config{
		o.Namespace: {LabelSelector: speakers},
	}}
	grace := time.Second
	mapper := configuration.NewRESTMapper(scheme)
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                  scheme,
		MapperProvider:          func(*rest.Config, *http.Client) (meta.RESTMapper, error) { return mapper, nil },
		Metrics:                 metricsserver.Options{BindAddress: o.MetricsBindAddress},
		HealthProbeBindAddress:  o.HealthProbeBindAddress,
		GracefulShutdownTimeout: &grace,
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject:         watched,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("setting up the manager: %w", err)
	}
	return mgr, nil
}

// addHealthChecks adds the checks for liveness and readiness. A speaker is ready once it has read
// the cluster state.
func addHealthChecks(mgr ctrl.Manager, feed *reconcile.ClusterFeed) error {
	alive := func(*http.Request) error { return nil }
	ready := func(*http.Request) error {
		if !feed.HasSynced() {
			return errors.New("the speaker has not read the cluster state yet")
		}
		return nil
	}
	return errors.Join(mgr.AddHealthzCheck("alive", alive), mgr.AddReadyzCheck("synced", ready))
}
