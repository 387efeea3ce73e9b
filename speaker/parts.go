package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/option"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/bfd/udp"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/gobgp"
	"github.com/gantry-lb/gantry/speaker/bgp/tcp"
	"github.com/gantry-lb/gantry/speaker/checkpoint"
	"github.com/gantry-lb/gantry/speaker/continuity"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/gossip"
	"github.com/gantry-lb/gantry/speaker/healthcheck"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/speaker/links"
	"github.com/gantry-lb/gantry/speaker/manager"
	"github.com/gantry-lb/gantry/speaker/options"
	"github.com/gantry-lb/gantry/speaker/packetrules"
	"github.com/gantry-lb/gantry/speaker/reconcile"
)

// parts are the parts of a speaker.
type parts struct {
	agent     *agent.Agent
	bgpEngine *bgp.Engine
	// Parts that need only this node, and those that need the API server.
	runFuncsWithoutAPIServer, runFuncsNeedingAPIServer []func(context.Context) error
}

// newParts creates the parts, each after those that it uses: the engines, the writers of status
// objects, the agent, and the feed.
func newParts(mgr *manager.ControllerRuntimeManager, member *gossip.LocalMember, store *checkpoint.Store, o options.Options, log *slog.Logger) (*parts, error) {
	watcher := links.NewWatcher(options.NewExcludedInterfacesReader(o.ExcludeInterfacesFile), log)
	layer2Engine, bfdRequests := newLayer2Engine(o), udp.NewBFDRequestSniffer()
	bfdEngine, err := udp.NewBFDEngine(time.Now, member.RunNonce())
	if err != nil {
		return nil, err
	}
	bgpEngine := bgp.NewEngine(bgp.Options{
		NodeName: o.NodeName, UpdateGenerator: gobgp.NewUpdateGenerator(log), Transport: tcp.Transport{}, Now: time.Now, BFDEngine: bfdEngine, BFDRequestSniffer: bfdRequests, Log: log,
		FirstRunSinceBoot: store.IsFirstRunSinceBoot(),
	})
	mgr.ServeAnnouncedRoutes(func(ctx context.Context) any { return bgpEngine.RIBs(ctx) })
	services, announced, problemGauges := reconcile.NewUIDByServiceIndex(), reconcile.NewAnnouncedMetrics(o.NodeName, bgpEngine), &configuration.LoadMetrics{}
	continuityEngine, trafficObserver, observeTraffic, connectionFaults := newContinuityEngine(o, log)
	var a *agent.Agent
	layer2Status := reconcile.NewStatusWriter(reconcile.StatusWriterOptions{
		Client: mgr.GetClient(), UncachedReader: mgr.GetAPIReader(), Cache: mgr.GetCache(), Events: mgr.GetEventRecorder(names.SpeakerEventSource), Log: log,
		ServiceReference: services.ServiceReference, SkippedLinks: watcher.SkippedLinks, GossipPathFaults: member.PathFaults, GossipAddressesWithOtherKey: member.AddressesWithUnknownGossipKey, GossipKeyFile: o.GossipKeyFile, ConnectionFaults: connectionFaults, Now: time.Now, Metrics: announced,
		Self: o.NodeName, PodName: o.PodName, Namespace: o.Namespace, Version: option.ModuleVersion(), WithoutBGPKinds: o.ConfigurationScope().WithoutBGPKinds, IsElectionLate: func() bool { return a.IsElectionLate() },
	})
	bgpStatus := reconcile.NewBGPStatusWriter(reconcile.BGPStatusWriterOptions{
		Client: mgr.GetClient(), Cache: mgr.GetCache(), Events: mgr.GetEventRecorder(names.SpeakerEventSource), Sessions: bgpEngine, Log: log, Now: time.Now, Metrics: announced,
		Self: o.NodeName, Namespace: o.Namespace, ServiceBGPStatusLimit: o.ServiceBGPStatusLimit(), ServiceReference: services.ServiceReference, PodOwnerReferences: layer2Status.PodOwnerReferences,
	})
	configurationState := reconcile.NewConfigurationStateWriter(reconcile.ConfigurationStateWriterOptions{
		Client: mgr.GetClient(), Cache: mgr.GetCache(), Log: log,
		StateWriter: configuration.StateWriter{ReportingComponent: names.ComponentSpeaker, Node: o.NodeName, Namespace: o.Namespace},
	})
	addressProbes := reconcile.NewAddressProbeWriter(reconcile.AddressProbeWriterOptions{Client: mgr.GetClient(), Cache: mgr.GetCache(), Log: log, Self: o.NodeName, Namespace: o.Namespace, Now: time.Now})
	healthChecks, proxyWatcher := healthcheck.NewPoller(time.Now, log), healthcheck.NewProxyWatcher(o.ProxyHealthAddress)
	a = agent.New(agent.Options{
		NodeName: o.NodeName, RunNonce: member.RunNonce(), LoadBalancerClass: o.LoadBalancerClass, ElectionTiming: elect.DefaultTiming(),
		Layer2Engine: layer2Engine, BGPEngine: bgpEngine, GossipMembership: member, LinkUpdates: watcher.LinkUpdates(), HealthCheckPoller: healthChecks,
		ServiceProxyHealthUpdates: proxyWatcher.HealthUpdates(), ServiceProxyOptions: o.ServiceProxyOptions(time.Now()), Now: time.Now, Log: log,
		ObserveStatus: func(s agent.Status) {
			layer2Status.ObserveStatus(s)
			bgpStatus.ObserveStatus(s)
		},
		ObserveTraffic: observeTraffic, ProbeQuestionUpdates: addressProbes.OpenQuestionUpdates(), ObserveProbeAnswer: addressProbes.ObserveAnswer,
		SaveCheckpoint: member.SaveCheckpoint, RestoreFrom: member.RestoredCheckpoint(),
	})
	feed := reconcile.NewClusterFeed(reconcile.ClusterFeedOptions{
		Cache: mgr.GetCache(), WatchClient: mgr.WatchClient(), UIDByServiceIndex: services, Agent: a, GossipSeedSetter: member, TrafficObserver: trafficObserver, Log: log,
		Self: o.NodeName, ConfigurationScope: o.ConfigurationScope(), PasswordSecrets: configuration.NewPasswordSecrets(configuration.PasswordSecretsOptions{LiveReader: mgr.GetAPIReader(), Namespace: o.Namespace, Now: time.Now, Log: log}), TreatSilentKubeletAsUnfit: o.SilentKubeletPolicy == "Leave", ObserveOwnAddresses: member.SetObservedNodeAddresses, ObserveSynced: mgr.MarkReady,
		ObserveProblems: func(p []snapshot.Problem) {
			problemGauges.RecordProblemsOfLoadedConfiguration(p)
			configurationState.ObserveProblems(p)
		},
	})
	p := &parts{
		agent: a, bgpEngine: bgpEngine,
		runFuncsWithoutAPIServer: []func(context.Context) error{
			bfdEngine.Run, bfdRequests.Run, bgpEngine.Run, layer2Engine.Run, a.Run, watcher.Run, member.Run, healthChecks.Run, proxyWatcher.Run,
		},
		runFuncsNeedingAPIServer: []func(context.Context) error{feed.Run, layer2Status.Run, configurationState.Run, addressProbes.Run},
	}
	if !o.ConfigurationScope().WithoutBGPKinds { // without BGP its engines get nothing to do
		p.runFuncsWithoutAPIServer = append(p.runFuncsWithoutAPIServer, bgpStatus.Run)
	}
	collectors := []prometheus.Collector{bfdEngine, bgpEngine, layer2Engine, member.Members, a, announced, problemGauges, option.BuildInfoMetric{}}
	if continuityEngine != nil {
		p.runFuncsWithoutAPIServer, collectors = append(p.runFuncsWithoutAPIServer, continuityEngine.Run), append(collectors, continuityEngine)
	}
	return p, registerMetrics(collectors...)
}

// newContinuityEngine returns the engine that steers and keeps connections, and what other parts
// use of it; nil if both is switched off.
func newContinuityEngine(o options.Options, log *slog.Logger) (*continuity.Engine, reconcile.TrafficObserver, func(agent.TrafficFacts), reconcile.ConnectionFaults) {
	if !o.AroundDeadNodes && !o.KeepConnections {
		return nil, nil, nil, reconcile.ConnectionFaults{}
	}
	e := continuity.NewEngine(continuity.Options{
		LoadBalancerClass: o.LoadBalancerClass, NodeName: o.NodeName, AroundDeadNodes: o.AroundDeadNodes, KeepConnections: o.KeepConnections,
		PacketRules: packetrules.NewWriter(time.Now), Now: time.Now, Log: log,
	})
	return e, e, e.ObserveTraffic, reconcile.ConnectionFaults{SteeringFault: e.SteeringFault, ForwardingFault: e.ForwardingFault, SteersAroundDeadNodes: o.AroundDeadNodes, KeepsConnections: o.KeepConnections}
}

func newLayer2Engine(o options.Options) *layer2.Engine {
	engineOptions := []layer2.Option{layer2.WithAnnouncementRefreshInterval(o.AnnouncementRefreshInterval)}
	if o.AnswerPing {
		engineOptions = append(engineOptions, layer2.WithPingResponders(wire.PacketSocketOpener{}))
	}
	return layer2.NewEngine(wire.PacketSocketOpener{}, time.Now, engineOptions...)
}

func registerMetrics(collectors ...prometheus.Collector) error {
	for _, c := range collectors {
		if err := metrics.Registry.Register(c); err != nil {
			return fmt.Errorf("registering the metrics of %T: %w", c, err)
		}
	}
	return nil
}
