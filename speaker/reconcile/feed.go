// Package reconcile is the speaker's side towards the Kubernetes API: a Feed turns what the informers see into changes
// for the agent, and a StatusWriter writes what the agent reports. Neither decides anything. Writes are
// level-triggered and retried; a slow API server delays them and nothing else.
package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
)

// Poster takes changes; *agent.Agent is one.
type Poster interface {
	Post(ctx context.Context, changes ...agent.Change)
}

// Seeder takes the addresses at which other speakers may be found; *members.Members is one.
type Seeder interface {
	SetSeeds(addresses []string)
}

// Feed watches the cluster for one agent. Of Services and EndpointSlices it keeps no objects.
type Feed struct {
	Cache cache.Cache
	// Source reads the Services and EndpointSlices.
	Source client.WithWatch
	Agent  Poster
	Seeds  Seeder
	Log    *slog.Logger
	// Self is this node's name: its own Pod is no seed.
	Self string
	// Scope is what of the configuration is read.
	Scope configuration.Scope
	// Problems takes the Problems of the configuration each time it is read; nil is allowed.
	Problems func([]snapshot.Problem)

	synced atomic.Bool
	// complete says that everything that exists has been seen, so that the configuration may be read.
	complete atomic.Bool
	// building guards last: the Snapshot before, whose sound parts outlive a broken edit.
	building sync.Mutex
	last     *snapshot.Snapshot

	// slices belong to the goroutine that follows the EndpointSlices; those of each Service are sorted by name.
	slices map[view.Key][]view.Slice

	mu       sync.Mutex             // guards all that follows; informers call from goroutines of their own
	services map[view.Key]types.UID // those of type LoadBalancer
	pods     map[string]seed
	nodes    map[string][]string
	labels   map[string]map[string]string // of nodes
}

// calm is how long after the start the memory is given back that only the start needed: what was read is several times what is
// kept of it, and the runtime would hold on to the rest for minutes.
const calm = 5 * time.Second

// watch is a kind with what to do about its objects.
type watch struct {
	object  client.Object
	set     func(ctx context.Context, o any)
	removed func(ctx context.Context, o any)
}

// seed is where a speaker's Pod can be reached.
type seed struct {
	node      string
	addresses []string
}

// Run registers the handlers and tells the agent once everything that exists has been posted. It returns when ctx ends.
func (f *Feed) Run(ctx context.Context) error {
	f.slices = map[view.Key][]view.Slice{}
	f.mu.Lock()
	f.services, f.pods, f.nodes, f.labels = map[view.Key]types.UID{}, map[string]seed{}, map[string][]string{}, map[string]map[string]string{}
	f.mu.Unlock()
	watched := []watch{
		{&corev1.Node{}, f.setNode, f.removeNode},
		{&corev1.Pod{}, f.setPod, f.removePod},
	}
	for _, k := range f.Scope.Kinds() {
		watched = append(watched, watch{k, f.rebuild, f.rebuild})
	}
	var synced []toolscache.InformerSynced
	for _, w := range watched {
		informer, err := f.Cache.GetInformer(ctx, w.object)
		if err != nil {
			return fmt.Errorf("watching %T: %w", w.object, err)
		}
		reg, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { w.set(ctx, o) },
			UpdateFunc: func(_, o any) { w.set(ctx, o) },
			DeleteFunc: func(o any) { w.removed(ctx, last(o)) },
		})
		if err != nil {
			return fmt.Errorf("watching %T: %w", w.object, err)
		}
		synced = append(synced, reg.HasSynced)
	}
	services, endpoints := f.serviceMirror(ctx), f.sliceMirror(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() {
		services.follow(ctx, f.Source, &corev1.Service{}, func() client.ObjectList { return &corev1.ServiceList{} })
	})
	following.Go(func() {
		endpoints.follow(ctx, f.Source, &discoveryv1.EndpointSlice{}, func() client.ObjectList { return &discoveryv1.EndpointSliceList{} })
	})
	if !toolscache.WaitForCacheSync(ctx.Done(), append(synced, services.synced, endpoints.synced)...) {
		return nil
	}
	f.complete.Store(true)
	f.rebuild(ctx, nil)
	f.Agent.Post(ctx, agent.Synced())
	f.synced.Store(true)
	f.Log.Info("the cluster's state is read")
	select {
	case <-time.After(calm):
		debug.FreeOSMemory()
		<-ctx.Done()
	case <-ctx.Done():
	}
	return nil
}

// Synced says whether everything that exists has been posted once.
func (f *Feed) Synced() bool { return f.synced.Load() }

// last unwraps the last known state of an object whose deletion was not seen itself.
func last(o any) any {
	if gone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
		return gone.Obj
	}
	return o
}

func (f *Feed) setNode(ctx context.Context, o any) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return
	}
	v := view.FromNode(n)
	f.mu.Lock()
	f.nodes[n.Name] = nil
	for _, a := range v.Addresses {
		f.nodes[n.Name] = append(f.nodes[n.Name], a.String())
	}
	before, known := f.labels[n.Name]
	f.labels[n.Name] = n.Labels
	f.mu.Unlock()
	f.seed()
	f.Agent.Post(ctx, agent.SetNode(v))
	if !known || !maps.Equal(before, n.Labels) {
		f.rebuild(ctx, nil)
	}
}

func (f *Feed) removeNode(ctx context.Context, o any) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return
	}
	f.mu.Lock()
	delete(f.nodes, n.Name)
	delete(f.labels, n.Name)
	f.mu.Unlock()
	f.seed()
	f.Agent.Post(ctx, agent.RemoveNode(n.Name))
}

func (f *Feed) setPod(_ context.Context, o any) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return
	}
	s := seed{node: p.Spec.NodeName}
	for _, ip := range p.Status.PodIPs {
		s.addresses = append(s.addresses, ip.IP)
	}
	f.mu.Lock()
	f.pods[p.Name] = s
	f.mu.Unlock()
	f.seed()
}

func (f *Feed) removePod(_ context.Context, o any) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return
	}
	f.mu.Lock()
	delete(f.pods, p.Name)
	f.mu.Unlock()
	f.seed()
}

// seed hands over where other speakers may be: their Pods, or, when there are none but perhaps our own, the nodes
// themselves, so that speakers that run as plain processes find each other too.
func (f *Feed) seed() {
	f.mu.Lock()
	var out []string
	for _, p := range f.pods {
		if p.node != f.Self {
			out = append(out, p.addresses...)
		}
	}
	if len(out) == 0 {
		for name, addresses := range f.nodes {
			if name != f.Self {
				out = append(out, addresses...)
			}
		}
	}
	f.mu.Unlock()
	slices.Sort(out)
	f.Seeds.SetSeeds(slices.Compact(out))
}

// rebuild reads the configuration objects from the cache and posts the Snapshot of them. What it reads is not complete
// before everything has been seen once.
func (f *Feed) rebuild(ctx context.Context, _ any) {
	if !f.complete.Load() {
		return
	}
	read, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	f.building.Lock()
	defer f.building.Unlock()
	o, err := f.Scope.Read(read, f.Cache)
	if err != nil {
		f.Log.Error("reading the configuration from the cache", "error", err)
		return
	}
	f.mu.Lock()
	for name, set := range f.labels {
		o.Nodes = append(o.Nodes, snapshot.Node{Name: name, Labels: set})
	}
	f.mu.Unlock()
	o.Last = f.last
	s, problems := snapshot.Build(o)
	f.last = s
	f.Agent.Post(ctx, agent.SetSnapshot(s))
	if f.Problems != nil {
		f.Problems(problems)
	}
}
