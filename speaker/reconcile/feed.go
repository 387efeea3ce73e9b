// Package reconcile connects the speaker with the Kubernetes API. A ClusterFeed turns
// the objects of the API server into changes for the agent. The writers write what the
// agent reports. None of them decides anything. Failed writes are retried with the
// latest state. A slow API server delays only the writes.
package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
)

// ChangePoster takes changes; *agent.Agent is one.
type ChangePoster interface {
	PostChanges(ctx context.Context, changes ...agent.PlannerInputChange)
}

// GossipSeedSetter takes the addresses at which other speakers may be reached; *members.Members is
// one.
type GossipSeedSetter interface {
	SetSeeds(addresses []string)
}

// ClusterFeedOptions are what a ClusterFeed needs.
type ClusterFeedOptions struct {
	Cache cache.Cache
	// WatchClient reads the Services and EndpointSlices.
	WatchClient client.WithWatch
	// UIDByServiceIndex gets the Services of type LoadBalancer.
	UIDByServiceIndex *UIDByServiceIndex
	Agent             ChangePoster
	GossipSeedSetter  GossipSeedSetter
	Log               *slog.Logger
	// Self is this node's name: its own Pod is no seed.
	Self string
	// ConfigurationScope is the part of the configuration to read.
	ConfigurationScope configuration.ConfigurationScope
	// PasswordSecrets reads the Secrets of the BGPPeers.
	PasswordSecrets *configuration.PasswordSecrets
	// TreatSilentKubeletAsUnfit makes nodes unfit whose kubelet is silent.
	TreatSilentKubeletAsUnfit bool
	// TrafficObserver gets the Services and EndpointSlices with what a service proxy needs of them;
	// nil if nobody needs it.
	TrafficObserver TrafficObserver
	// ObserveOwnAddresses gets the internal addresses of this node; it is optional.
	ObserveOwnAddresses func([]netip.Addr)
	// ObserveProblems gets the Problems of the configuration each time it is read.
	ObserveProblems func([]snapshot.Problem)
	// ObserveSynced is called once, after everything that exists has been posted.
	ObserveSynced func()
}

// ClusterFeed watches the cluster for one agent. It stores no Service and no EndpointSlice object.
type ClusterFeed struct {
	options ClusterFeedOptions

	// allObjectsSeen means that all existing objects have been seen, so that the
	// configuration may be read.
	allObjectsSeen atomic.Bool
	// snapshotBuildMutex guards lastSnapshot, from which snapshot.Build keeps the parts that an
	// edit broke.
	snapshotBuildMutex sync.Mutex
	lastSnapshot       *snapshot.Snapshot

	// endpointSlicesByService belongs to the goroutine that follows the EndpointSlices. The slices
	// of a Service are sorted by name.
	endpointSlicesByService map[view.ObjectKey][]view.EndpointSlice

	// guards all fields below; each informer has its own goroutine
	mu              sync.Mutex
	addressesByPod  map[string]addressesOfSpeakerPod
	addressesByNode map[string][]string
	labelsByNode    map[string]map[string]string // of nodes
}

// freeMemoryDelay is how long after the start unused memory is returned to the system. The start
// reads several times as much as the feed stores, and the runtime would keep the rest for minutes.
const freeMemoryDelay = 5 * time.Second

// watchedKind is a kind and the handlers of its objects.
type watchedKind struct {
	objectOfKind client.Object
	setObject    func(ctx context.Context, o any)
	removeObject func(ctx context.Context, o any)
}

// addressesOfSpeakerPod has the addresses of a speaker's Pod.
type addressesOfSpeakerPod struct {
	node      string
	addresses []string
}

// NewClusterFeed returns a ClusterFeed that watches nothing before Run.
func NewClusterFeed(o ClusterFeedOptions) *ClusterFeed {
	return &ClusterFeed{
		options:                 o,
		endpointSlicesByService: map[view.ObjectKey][]view.EndpointSlice{},
		addressesByPod:          map[string]addressesOfSpeakerPod{},
		addressesByNode:         map[string][]string{},
		labelsByNode:            map[string]map[string]string{},
	}
}

// Run registers the handlers, and posts the change of NewClusterSyncedChange once everything that
// exists has been posted. It returns when ctx ends.
func (f *ClusterFeed) Run(ctx context.Context) error {
	watched := []watchedKind{
		{&corev1.Node{}, f.setNode, f.removeNode},
		{&corev1.Pod{}, f.storeSpeakerPodAddresses, f.removeSpeakerPodAddresses},
	}
	for _, k := range f.options.ConfigurationScope.WatchedKinds() {
		watched = append(watched, watchedKind{k, f.rebuildSnapshot, f.rebuildSnapshot})
	}
	var synced []toolscache.InformerSynced
	for _, w := range watched {
		informer, err := f.options.Cache.GetInformer(ctx, w.objectOfKind)
		if err != nil {
			return fmt.Errorf("watching %T: %w", w.objectOfKind, err)
		}
		reg, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { w.setObject(ctx, o) },
			UpdateFunc: func(_, o any) { w.setObject(ctx, o) },
			DeleteFunc: func(o any) { w.removeObject(ctx, unwrapDeletedObject(o)) },
		})
		if err != nil {
			return fmt.Errorf("watching %T: %w", w.objectOfKind, err)
		}
		synced = append(synced, reg.HasSynced)
	}
	services, endpoints := f.newServiceFollower(ctx), f.newEndpointSliceFollower(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() {
		services.followObjects(ctx, f.options.WatchClient, &corev1.Service{}, func() client.ObjectList { return &corev1.ServiceList{} })
	})
	following.Go(func() {
		endpoints.followObjects(ctx, f.options.WatchClient, &discoveryv1.EndpointSlice{}, func() client.ObjectList { return &discoveryv1.EndpointSliceList{} })
	})
	following.Go(func() {
		f.options.PasswordSecrets.Run(ctx, func() { f.rebuildSnapshot(ctx, nil) })
	})
	if !toolscache.WaitForCacheSync(ctx.Done(), append(synced, services.hasSynced, endpoints.hasSynced)...) {
		return nil
	}
	f.allObjectsSeen.Store(true)
	f.rebuildSnapshot(ctx, nil)
	f.options.Agent.PostChanges(ctx, agent.NewClusterSyncedChange())
	f.options.ObserveSynced()
	f.options.Log.Info("the state of the cluster has been read")
	select {
	case <-time.After(freeMemoryDelay):
		debug.FreeOSMemory()
		<-ctx.Done()
	case <-ctx.Done():
	}
	return nil
}

// unwrapDeletedObject returns the last known state of an object whose deletion event was missed.
func unwrapDeletedObject(o any) any {
	if gone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
		return gone.Obj
	}
	return o
}

func (f *ClusterFeed) setNode(ctx context.Context, o any) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return
	}
	v := view.FromNode(n)
	f.observeNode(&v)
	v.IsKubeletSilent = v.IsKubeletSilent && f.options.TreatSilentKubeletAsUnfit
	v.IsExcluded = v.IsExcluded && !f.options.ConfigurationScope.IgnoreExcludeLabel
	if observe := f.options.ObserveOwnAddresses; observe != nil && n.Name == f.options.Self {
		observe(v.InternalAddresses)
	}
	f.mu.Lock()
	f.addressesByNode[n.Name] = nil
	for _, a := range v.InternalAddresses {
		f.addressesByNode[n.Name] = append(f.addressesByNode[n.Name], a.String())
	}
	before, known := f.labelsByNode[n.Name]
	f.labelsByNode[n.Name] = n.Labels
	f.mu.Unlock()
	f.updateGossipSeeds()
	f.options.Agent.PostChanges(ctx, agent.NewNodeUpsertedChange(v))
	if !known || !maps.Equal(before, n.Labels) {
		f.rebuildSnapshot(ctx, nil)
	}
}

func (f *ClusterFeed) removeNode(ctx context.Context, o any) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return
	}
	f.mu.Lock()
	delete(f.addressesByNode, n.Name)
	delete(f.labelsByNode, n.Name)
	f.mu.Unlock()
	f.updateGossipSeeds()
	f.observeRemovedNode(n.Name)
	f.options.Agent.PostChanges(ctx, agent.NewNodeRemovedChange(n.Name))
}

func (f *ClusterFeed) storeSpeakerPodAddresses(_ context.Context, o any) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return
	}
	s := addressesOfSpeakerPod{node: p.Spec.NodeName}
	for _, ip := range p.Status.PodIPs {
		s.addresses = append(s.addresses, ip.IP)
	}
	f.mu.Lock()
	f.addressesByPod[p.Name] = s
	f.mu.Unlock()
	f.updateGossipSeeds()
}

func (f *ClusterFeed) removeSpeakerPodAddresses(_ context.Context, o any) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return
	}
	f.mu.Lock()
	delete(f.addressesByPod, p.Name)
	f.mu.Unlock()
	f.updateGossipSeeds()
}

// updateGossipSeeds sets the addresses at which other speakers may be reached: those of
// their Pods. If there are no other Pods, it uses the nodes, so that speakers that run
// as plain processes find each other too.
func (f *ClusterFeed) updateGossipSeeds() {
	f.mu.Lock()
	var out []string
	for _, p := range f.addressesByPod {
		if p.node != f.options.Self {
			out = append(out, p.addresses...)
		}
	}
	if len(out) == 0 {
		for name, addresses := range f.addressesByNode {
			if name != f.options.Self {
				out = append(out, addresses...)
			}
		}
	}
	f.mu.Unlock()
	slices.Sort(out)
	f.options.GossipSeedSetter.SetSeeds(slices.Compact(out))
}

// rebuildSnapshot reads the configuration objects from the cache and posts their Snapshot. It does
// nothing until everything has been seen once.
func (f *ClusterFeed) rebuildSnapshot(ctx context.Context, _ any) {
	if !f.allObjectsSeen.Load() {
		return
	}
	read, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	f.snapshotBuildMutex.Lock()
	defer f.snapshotBuildMutex.Unlock()
	o, err := f.options.ConfigurationScope.ReadObjects(read, f.options.Cache)
	if err != nil {
		f.options.Log.Error("reading the configuration from the cache", "error", err)
		return
	}
	o.Secrets = f.options.PasswordSecrets.SecretsOfPeers(read, o.BGPPeers)
	f.mu.Lock()
	for name, set := range f.labelsByNode {
		o.Nodes = append(o.Nodes, snapshot.NodeLabels{Name: name, Labels: set})
	}
	f.mu.Unlock()
	o.PreviousSnapshot = f.lastSnapshot
	s, problems := snapshot.BuildSnapshot(o)
	f.lastSnapshot = s
	f.options.Agent.PostChanges(ctx, agent.NewSnapshotReplacedChange(s))
	f.options.ObserveProblems(problems)
}
