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
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/speaker/links"
	"github.com/gantry-lb/gantry/speaker/recall"
	"github.com/gantry-lb/gantry/speaker/reconcile"
)

// drainTime bounds the hand-over at the end: the kubelet waits 10 s for the speaker of our manifests.
const drainTime = 3 * time.Second

// run serves until ctx ends, then hands over what it holds, and only then stops its parts.
func run(ctx context.Context, o options, log *slog.Logger) error {
	config, err := o.RESTConfig()
	if err != nil {
		return err
	}
	mgr, err := newManager(config, o)
	if err != nil {
		return err
	}
	// The parts outlive ctx until the addresses are handed over: the agent and the engine have to go on meanwhile. The
	// manager is the first to start, so that the probes are answered while the speaker waits for the gossip key.
	parts, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, parts := errgroup.WithContext(parts)
	feed, err := newFeed(mgr, config, o, log)
	if err != nil {
		return err
	}
	g.Go(func() error { return mgr.Start(parts) })
	store := recall.New(o.StateDir, log)
	gossip, err := newMembers(ctx, mgr.GetAPIReader(), o, store.Load(o.NodeName), log)
	if err != nil || ctx.Err() != nil {
		stop()
		return errors.Join(err, g.Wait())
	}
	watcher := links.New(excludeFrom(o.ExcludeInterfacesFile), log)
	engine := layer2.New(wire.Wire{}, time.Now, o.layer2Options.engine(wire.Wire{})...)
	if err := metrics.Registry.Register(engine); err != nil {
		return fmt.Errorf("registering the metrics of layer 2: %w", err)
	}
	routing, err := newRouters(mgr, o, gossip.nonce, log)
	if err != nil {
		return err
	}
	writer := &reconcile.StatusWriter{
		Client: mgr.GetClient(), Cache: mgr.GetCache(), Events: mgr.GetEventRecorder(names.SpeakerEvents), Log: log,
		Service: feed.Service, Skipped: watcher.Skipped, Announced: reconcile.NewAnnounced(o.NodeName),
		Self: o.NodeName, Pod: o.PodName, Namespace: o.Namespace, Version: version(),
	}
	writer.Init()
	routing.status.Owner, routing.status.Service = writer.Owner, feed.Service
	prober := newProber(mgr, o, log)
	a := agent.New(agent.Options{
		Self: o.NodeName, Nonce: gossip.nonce, Class: o.LoadBalancerClass, Timing: elect.DefaultTiming(),
		Layer2: engine, BGP: routing.engine, Members: gossip, Links: watcher.Sets(), Now: time.Now, Log: log,
		Observe: routing.observe(writer.Observe), Surveyed: prober.Observe, Remember: gossip.remember(store), Remembered: gossip.memory(o.scope()),
	})
	if err := errors.Join(metrics.Registry.Register(a), metrics.Registry.Register(writer.Announced)); err != nil {
		return fmt.Errorf("registering the metrics of the election and of what is announced: %w", err)
	}
	state := &reconcile.ConfigurationWriter{
		Client: mgr.GetClient(), Cache: mgr.GetCache(), Log: log,
		State: configuration.State{Component: names.ComponentSpeaker, Node: o.NodeName, Namespace: o.Namespace},
	}
	state.Init()
	problems, err := observed(state)
	if err != nil {
		return err
	}
	feed.Agent, feed.Seeds, feed.Problems, prober.Agent = a, gossip, problems, a
	for _, part := range append(routing.runs(), engine.Run, a.Run, watcher.Run, gossip.Run, store.Run) {
		g.Go(func() error { return part(parts) })
	}
	// What rests on the API server begins once it serves our kinds. What was kept is served until then.
	g.Go(func() error {
		if err := awaitKinds(parts, config, log); err != nil || parts.Err() != nil {
			return err
		}
		for _, part := range []func(context.Context) error{feed.Run, writer.Run, state.Run, prober.Run} {
			g.Go(func() error { return part(parts) })
		}
		return gossip.confirm(parts)
	})
	g.Go(func() error {
		defer stop()
		handOver(ctx, parts, a, routing.engine, log)
		return nil
	})
	return g.Wait()
}

// version is the module's as the build knows it, with the revision where that was built from a repository.
func version() string {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	return b.Main.Version
}

// observed returns what the Problems of the configuration are told to: the ConfigurationState, and the metrics.
func observed(state *reconcile.ConfigurationWriter) (func([]snapshot.Problem), error) {
	gauges := &configuration.Gauges{}
	if err := metrics.Registry.Register(gauges); err != nil {
		return nil, fmt.Errorf("registering the metrics of the configuration: %w", err)
	}
	return func(p []snapshot.Problem) { gauges.Set(p); state.Observe(p) }, nil
}

// newFeed returns what watches the cluster, with the probes that ask it; its Agent, Seeds and Problems are set before it runs.
func newFeed(mgr ctrl.Manager, config *rest.Config, o options, log *slog.Logger) (*reconcile.Feed, error) {
	source, err := client.NewWithWatch(config, client.Options{HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper()})
	if err != nil {
		return nil, fmt.Errorf("setting up the reading of Services: %w", err)
	}
	feed := &reconcile.Feed{Cache: mgr.GetCache(), Source: source, Log: log, Self: o.NodeName, Scope: o.scope()}
	return feed, probes(mgr, feed)
}

// newProber returns what asks the segment for addresses on behalf of the controller; its Agent is set before it runs.
func newProber(mgr ctrl.Manager, o options, log *slog.Logger) *reconcile.ProbeWriter {
	w := &reconcile.ProbeWriter{Client: mgr.GetClient(), Cache: mgr.GetCache(), Log: log, Self: o.NodeName, Namespace: o.Namespace}
	w.Init()
	return w
}

// awaitKinds waits until the API server serves our kinds.
func awaitKinds(ctx context.Context, config *rest.Config, log *slog.Logger) error {
	return option.AwaitKinds(ctx, config, log, append(configuration.Resources, "servicel2statuses", "servicebgpstatuses")...)
}

// handOver waits until ctx ends, and then until other nodes hold what this one held, and the routers know of its going.
// It returns at once when one of the parts failed.
func handOver(ctx, parts context.Context, a *agent.Agent, routing *bgp.Engine, log *slog.Logger) {
	select {
	case <-parts.Done():
		return
	case <-ctx.Done():
	}
	parts, cancel := context.WithTimeout(parts, drainTime)
	defer cancel()
	a.Leave()
	routing.Stop(parts)
	select {
	case <-a.Drained():
		log.Info("every address is handed over")
	case <-parts.Done():
		log.Warn("stopping with addresses that no other node took", "waited", drainTime.String())
	}
}

// scope is what of the configuration is read.
func (o *options) scope() configuration.Scope {
	return configuration.Scope{Namespace: o.Namespace, Layer2Alone: o.BGP == "disabled"}
}

// newManager returns a manager whose cache holds what a speaker looks at, and nothing else.
func newManager(config *rest.Config, o options) (ctrl.Manager, error) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		return nil, err
	}
	watched := o.scope().ByObject()
	speakers := labels.SelectorFromSet(labels.Set{names.LabelAppName: names.AppName, names.LabelComponent: names.ComponentSpeaker})
	watched[&v1alpha1.AddressProbe{}] = cache.ByObject{Namespaces: map[string]cache.Config{o.Namespace: {}}}
	watched[&v1beta1.ServiceL2Status{}] = cache.ByObject{Namespaces: map[string]cache.Config{o.Namespace: {}}}
	if !o.scope().Layer2Alone {
		own := cache.ByObject{Namespaces: map[string]cache.Config{o.Namespace: {LabelSelector: labels.SelectorFromSet(labels.Set{names.LabelNode: o.NodeName})}}}
		watched[&v1beta1.ServiceBGPStatus{}], watched[&v1alpha1.BGPSession{}] = own, own
	}
	watched[&v1beta1.ConfigurationState{}] = cache.ByObject{Namespaces: map[string]cache.Config{o.Namespace: {
		FieldSelector: fields.OneTermEqualSelector("metadata.name", configuration.State{Component: names.ComponentSpeaker, Node: o.NodeName}.Name()),
	}}}
	watched[&corev1.Pod{}] = cache.ByObject{Namespaces: map[string]cache.Config{o.Namespace: {LabelSelector: speakers}}}
	grace := time.Second
	mapper := configuration.Mapper(scheme)
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
		return nil, fmt.Errorf("setting up: %w", err)
	}
	return mgr, nil
}

// probes serve liveness, and readiness: a speaker is ready once it has read the cluster's state.
func probes(mgr ctrl.Manager, feed *reconcile.Feed) error {
	alive := func(*http.Request) error { return nil }
	ready := func(*http.Request) error {
		if !feed.Synced() {
			return errors.New("the cluster's state is not read yet")
		}
		return nil
	}
	return errors.Join(mgr.AddHealthzCheck("alive", alive), mgr.AddReadyzCheck("synced", ready))
}
