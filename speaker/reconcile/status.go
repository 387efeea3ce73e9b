package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/status"
)

// StatusWriter writes what this node announces: ServiceL2Status objects, its SpeakerStatus and events. It is behind the
// agent by as much as the API server is slow, and always writes the latest.
type StatusWriter struct {
	Client client.Client
	Cache  cache.Cache
	Events events.EventRecorder
	Log    *slog.Logger
	// Service returns what an event about a Service names, nil when there is no such Service.
	Service func(view.Key) *corev1.Service
	// Skipped returns the links that are left out, and why.
	Skipped func() []facts.SkippedLink
	// Announced is told what this node announces, for the metrics.
	Announced *Announced
	// Self is this node, Pod this speaker's Pod if there is one, Namespace where the objects go, Version the speaker's.
	Self, Pod, Namespace, Version string

	latest chan agent.Status
	// stale asks for another look: an object appeared, changed or vanished.
	stale chan struct{}

	// Run owns what follows.
	conflicts status.Conflicts
	told      string // what was last said about raw sockets
	speaker   *v1alpha1.SpeakerStatusStatus
}

const (
	// retryDelay is the pause after a write that failed.
	retryDelay = time.Second
	// lookAgain is how often is looked at what nobody tells: links that are left out, conflicts that are over.
	lookAgain = 5 * time.Second
	// inFlight bounds how many objects are written at once: a node that takes over thousands of addresses would need
	// minutes one by one.
	inFlight = 16
)

// Init makes the writer ready to observe.
func (w *StatusWriter) Init() {
	w.latest, w.stale = make(chan agent.Status, 1), make(chan struct{}, 1)
}

// watch asks for another look whenever an object changes: another speaker may have removed ours on old knowledge.
func (w *StatusWriter) watch(ctx context.Context) error {
	informer, err := w.Cache.GetInformer(ctx, &v1beta1.ServiceL2Status{})
	if err != nil {
		return fmt.Errorf("watching ServiceL2Statuses: %w", err)
	}
	poke := func(any) {
		select {
		case w.stale <- struct{}{}:
		default:
		}
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: poke, UpdateFunc: func(_, o any) { poke(o) }, DeleteFunc: poke,
	})
	return err
}

// Observe takes the agent's Status and returns at once. Notes of a Status that was not written yet are kept.
func (w *StatusWriter) Observe(s agent.Status) {
	for {
		select {
		case w.latest <- s:
			return
		default:
		}
		select {
		case old := <-w.latest:
			s.Notes = append(slices.Clone(old.Notes), s.Notes...)
		default:
		}
	}
}

// Run writes until ctx ends.
func (w *StatusWriter) Run(ctx context.Context) error {
	if err := w.watch(ctx); err != nil {
		return err
	}
	var s agent.Status
	observed := false
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	look := time.NewTicker(lookAgain)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case s = <-w.latest:
			observed = true
			w.tell(s)
			w.denied(ctx, s)
		case <-w.stale:
		case <-retry.C:
		case now := <-look.C:
			if !w.conflicts.Expire(now) && w.speaker != nil && slices.Equal(w.speaker.Links, status.Speaker(w.inputs(s)).Links) {
				continue
			}
		}
		if !observed {
			continue
		}
		if err := w.write(ctx, w.inputs(s)); err != nil && ctx.Err() == nil {
			w.Log.Warn("writing the status; trying again", "error", err)
			retry.Reset(retryDelay)
		}
	}
}

func (w *StatusWriter) inputs(s agent.Status) status.Inputs {
	return status.Inputs{
		Self: w.Self, Plan: s.Plan, Claims: s.Claims, Links: s.Links, Skipped: w.Skipped(), Members: s.Members, Faults: s.Faults, Denied: s.Denied,
		Conflicts: &w.conflicts, Version: w.Version,
	}
}

// denied says on the node, once for each change, that layer 2 does not work on it.
func (w *StatusWriter) denied(ctx context.Context, s agent.Status) {
	if s.Denied != "" && s.Denied != w.told {
		node := &corev1.Node{}
		if err := w.Client.Get(ctx, client.ObjectKey{Name: w.Self}, node); err == nil {
			w.Events.Eventf(node, nil, corev1.EventTypeWarning, names.EventAnnounceFailed, "Announce",
				"%s: node %q announces nothing by layer 2: %s", names.ReasonRawSocketDenied, w.Self, s.Denied)
		}
	}
	w.told = s.Denied
}

// tell writes an event on each Service whose address this node took, or that somebody else claims. A claim that goes on
// is told once.
func (w *StatusWriter) tell(s agent.Status) {
	held := make(map[netip.Addr]bool, len(s.Held))
	for _, a := range s.Held {
		held[a] = true
	}
	w.conflicts.Keep(held)
	if len(s.Notes) == 0 {
		return
	}
	services := map[netip.Addr][]view.Key{}
	for v := range s.Plan.Verdicts.All() {
		for _, a := range v.Addresses {
			services[a] = append(services[a], v.Service)
		}
	}
	for _, n := range s.Notes {
		if n.Foreign() && held[n.Address] && !w.conflicts.Note(n.Address, n.MAC, time.Now()) {
			continue
		}
		for _, k := range services[n.Address] {
			w.event(k, n)
		}
	}
}

func (w *StatusWriter) event(k view.Key, n elect.Note) {
	svc := w.Service(k)
	if svc == nil {
		return // the Service is gone: nobody is left to tell
	}
	switch n.Kind {
	case elect.NoteTaken:
		w.Events.Eventf(svc, nil, corev1.EventTypeNormal, names.EventNodeAssigned, "Announce",
			"announcing from node %q with protocol %q: %s", w.Self, protocolLayer2, n.Text)
	case elect.NoteConflict, elect.NoteStray: // the action keeps them apart: of several events alike only the first is shown
		w.Events.Eventf(svc, nil, corev1.EventTypeWarning, names.EventAnnounceFailed, n.Kind, "%s: %s", n.Kind, n.Text)
	}
}

// write brings the objects in line with what this node holds.
func (w *StatusWriter) write(ctx context.Context, in status.Inputs) error {
	want := status.Build(in)
	w.Announced.set(want, in.Plan)
	have, err := w.written(ctx)
	if err != nil {
		return err
	}
	write, remove := status.Diff(w.Self, want, have)
	var g errgroup.Group // that goes on after an error: one object that is refused keeps no other from being written
	g.SetLimit(inFlight)
	if len(write) > 0 {
		owner := w.Owner(ctx)
		for _, a := range write {
			g.Go(func() error { return w.apply(ctx, a, owner) })
		}
	}
	for _, name := range remove {
		g.Go(func() error {
			o := &v1beta1.ServiceL2Status{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}}
			if err := w.Client.Delete(ctx, o); client.IgnoreNotFound(err) != nil {
				return fmt.Errorf("removing ServiceL2Status %q: %w", name, err)
			}
			return nil
		})
	}
	return errors.Join(g.Wait(), w.writeSpeaker(ctx, status.Speaker(in)))
}

// written returns every entry that exists.
func (w *StatusWriter) written(ctx context.Context) ([]status.Written, error) {
	var list v1beta1.ServiceL2StatusList
	if err := w.Client.List(ctx, &list, client.InNamespace(w.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("listing ServiceL2Statuses: %w", err)
	}
	out := make([]status.Written, 0, len(list.Items))
	for i := range list.Items {
		o := &list.Items[i]
		// The labels are there before the status is, but cut what is long.
		e := status.Entry{Service: view.Key{Namespace: o.Labels[names.LabelServiceNamespace], Name: o.Labels[names.LabelServiceName]}, Node: o.Labels[names.LabelNode]}
		if o.Status.ServiceName != "" {
			e = status.Entry{Service: view.Key{Namespace: o.Status.ServiceNamespace, Name: o.Status.ServiceName}, Node: o.Status.Node}
		}
		out = append(out, status.Written{Entry: e, Object: o.Name, Status: o.Status})
	}
	return out, nil
}

// apply writes an entry.
func (w *StatusWriter) apply(ctx context.Context, a status.Held, owner []metav1.OwnerReference) error {
	o := &v1beta1.ServiceL2Status{
		TypeMeta: metav1.TypeMeta{APIVersion: v1beta1.GroupVersion.String(), Kind: "ServiceL2Status"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: w.Namespace, Name: a.Name(), OwnerReferences: owner,
			Labels: map[string]string{
				names.LabelNode: a.Node, names.LabelServiceName: label(a.Service.Name), names.LabelServiceNamespace: a.Service.Namespace,
			},
		},
		Status: a.Object(),
	}
	return apply(ctx, w.Client, o)
}

// label cuts a name to what a label's value may have; Service names are shorter in practice.
func label(s string) string { return strings.TrimRight(s[:min(len(s), 63)], "-.") }

// Owner makes the objects vanish with the speaker's Pod, if the speaker runs in one.
func (w *StatusWriter) Owner(ctx context.Context) []metav1.OwnerReference {
	if w.Pod == "" {
		return nil
	}
	var p corev1.Pod
	if err := w.Client.Get(ctx, client.ObjectKey{Namespace: w.Namespace, Name: w.Pod}, &p); err != nil {
		return nil
	}
	return []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID}}
}
