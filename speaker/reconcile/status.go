package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/status"
)

// StatusWriter writes what this node announces: ServiceL2Status objects and events. It is behind the agent by as much as
// the API server is slow, and always writes the latest.
type StatusWriter struct {
	Client client.Client
	Cache  cache.Cache
	Events events.EventRecorder
	Log    *slog.Logger
	// Self is this node, Pod this speaker's Pod if there is one, Namespace where the objects go.
	Self, Pod, Namespace string

	latest chan agent.Status
	// stale asks for another look: an object appeared, changed or vanished.
	stale chan struct{}
}

// retryDelay is the pause after a write that failed.
const retryDelay = time.Second

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
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	told := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case s = <-w.latest:
			w.tell(ctx, s)
			told = w.denied(ctx, s, told)
		case <-w.stale:
		case <-retry.C:
		}
		if err := w.write(ctx, s); err != nil && ctx.Err() == nil {
			w.Log.Warn("writing the status; trying again", "error", err)
			retry.Reset(retryDelay)
		}
	}
}

// denied says on the node, once for each change, that layer 2 does not work on it.
func (w *StatusWriter) denied(ctx context.Context, s agent.Status, told string) string {
	if s.Denied != "" && s.Denied != told {
		node := &corev1.Node{}
		if err := w.Client.Get(ctx, client.ObjectKey{Name: w.Self}, node); err == nil {
			w.Events.Eventf(node, nil, corev1.EventTypeWarning, names.EventAnnounceFailed, "Announce",
				"%s: node %q announces nothing by layer 2: %s", names.ReasonRawSocketDenied, w.Self, s.Denied)
		}
	}
	return s.Denied
}

// tell writes an event on each Service whose address this node took.
func (w *StatusWriter) tell(ctx context.Context, s agent.Status) {
	for _, n := range s.Notes {
		for _, v := range s.Plan.Verdicts {
			if !slices.Contains(v.Addresses, n.Address) {
				continue
			}
			svc := &corev1.Service{}
			if err := w.Client.Get(ctx, client.ObjectKey{Namespace: v.Service.Namespace, Name: v.Service.Name}, svc); err != nil {
				continue // the Service is gone: nobody is left to tell
			}
			switch n.Kind {
			case elect.NoteTaken:
				w.Events.Eventf(svc, nil, corev1.EventTypeNormal, names.EventNodeAssigned, "Announce",
					"announcing from node %q with protocol %q: %s", w.Self, "layer2", n.Text)
			case elect.NoteConflict, elect.NoteStray:
				w.Events.Eventf(svc, nil, corev1.EventTypeWarning, names.EventAnnounceFailed, "Announce", "%s: %s", n.Kind, n.Text)
			}
		}
	}
}

// write brings the ServiceL2Status objects in line with what this node holds.
func (w *StatusWriter) write(ctx context.Context, s agent.Status) error {
	var list v1beta1.ServiceL2StatusList
	if err := w.Client.List(ctx, &list, client.InNamespace(w.Namespace)); err != nil {
		return fmt.Errorf("listing ServiceL2Statuses: %w", err)
	}
	var have []status.Entry
	for i := range list.Items {
		l := list.Items[i].Labels
		have = append(have, status.Entry{
			Service: view.Key{Namespace: l[names.LabelServiceNamespace], Name: l[names.LabelServiceName]}, Node: l[names.LabelNode],
		})
	}
	want := status.Build(w.Self, s.Plan, s.Held)
	create, remove := status.Diff(w.Self, want, have, func(k view.Key) bool { return status.Whole(s.Plan, s.Held, k) })
	for _, e := range create {
		if err := w.create(ctx, e); err != nil {
			return err
		}
	}
	for _, e := range remove {
		o := &v1beta1.ServiceL2Status{}
		o.Namespace, o.Name = w.Namespace, e.Name()
		if err := w.Client.Delete(ctx, o); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("removing ServiceL2Status %q: %w", o.Name, err)
		}
	}
	return nil
}

func (w *StatusWriter) create(ctx context.Context, e status.Entry) error {
	o := &v1beta1.ServiceL2Status{}
	o.Namespace, o.Name = w.Namespace, e.Name()
	o.Labels = map[string]string{
		names.LabelNode: e.Node, names.LabelServiceName: label(e.Service.Name), names.LabelServiceNamespace: e.Service.Namespace,
	}
	o.OwnerReferences = w.Owner(ctx)
	if err := w.Client.Create(ctx, o); client.IgnoreAlreadyExists(err) != nil {
		return fmt.Errorf("creating ServiceL2Status %q: %w", o.Name, err)
	}
	base := client.MergeFrom(o.DeepCopy())
	o.Status.Node, o.Status.ServiceName, o.Status.ServiceNamespace = e.Node, e.Service.Name, e.Service.Namespace
	if err := w.Client.Status().Patch(ctx, o, base); err != nil {
		return fmt.Errorf("writing ServiceL2Status %q: %w", o.Name, err)
	}
	return nil
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
