package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/speaker/survey"
)

// Surveyor asks the segment; *agent.Agent is one.
type Surveyor interface {
	Survey(questions []survey.Question)
}

// ProbeWriter hands the open AddressProbes to the agent, and writes what it found.
type ProbeWriter struct {
	Client client.Client
	Cache  cache.Cache
	Agent  Surveyor
	Log    *slog.Logger
	// Self is this node, Namespace where the objects are.
	Self, Namespace string

	answers chan survey.Answer
	// stale asks for another look at the objects.
	stale chan struct{}
}

// Init makes the writer ready to observe.
func (w *ProbeWriter) Init() {
	w.answers, w.stale = make(chan survey.Answer, 1024), make(chan struct{}, 1)
}

// Observe takes an answer and returns at once. One too many is dropped: the controller asks again.
func (w *ProbeWriter) Observe(a survey.Answer) {
	select {
	case w.answers <- a:
	default:
		w.Log.Warn("more answers about addresses than can be written", "address", a.Address)
	}
}

// watch has the writer look at the objects whenever one changes.
func (w *ProbeWriter) watch(ctx context.Context) error {
	informer, err := w.Cache.GetInformer(ctx, &v1alpha1.AddressProbe{})
	if err != nil {
		return fmt.Errorf("watching AddressProbes: %w", err)
	}
	poke := func(any) {
		select {
		case w.stale <- struct{}{}:
		default:
		}
	}
	if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: poke, UpdateFunc: func(_, o any) { poke(o) }, DeleteFunc: poke,
	}); err != nil {
		return fmt.Errorf("watching AddressProbes: %w", err)
	}
	return nil
}

// kindDelay is how long it waits for a kind that the API server does not serve: everything else goes on without it.
const kindDelay = 10 * time.Second

// Run works until ctx ends.
func (w *ProbeWriter) Run(ctx context.Context) error {
	for told := false; ; told = true {
		err := w.watch(ctx)
		if err == nil {
			break
		}
		if !told && ctx.Err() == nil {
			w.Log.Error("this node asks the segment for no addresses until that works; are the CRDs of this version installed?", "error", err, "again", kindDelay)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(kindDelay):
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.stale:
			w.ask(ctx)
		case a := <-w.answers:
			if err := w.write(ctx, a); err != nil && ctx.Err() == nil {
				w.Log.Warn("writing what the segment said about an address; trying again", "address", a.Address, "error", err)
				time.AfterFunc(retryDelay, func() { w.Observe(a) })
			}
		}
	}
}

// ask hands the open questions to the agent.
func (w *ProbeWriter) ask(ctx context.Context) {
	var list v1alpha1.AddressProbeList
	if err := w.Client.List(ctx, &list, client.InNamespace(w.Namespace)); err != nil {
		w.Log.Warn("listing AddressProbes", "error", err)
		return
	}
	var open []survey.Question
	for i := range list.Items {
		p := &list.Items[i]
		a, err := netip.ParseAddr(p.Spec.Address)
		if err != nil || p.Status.Outcome != "" {
			continue
		}
		open = append(open, survey.Question{ID: p.Name + "/" + string(p.UID), Address: a.Unmap(), Pool: p.Spec.Pool})
	}
	w.Agent.Survey(open)
}

// write writes an answer, unless somebody else has or nobody asks any more.
func (w *ProbeWriter) write(ctx context.Context, a survey.Answer) error {
	name, uid, _ := strings.Cut(a.ID, "/")
	var p v1alpha1.AddressProbe
	err := w.Client.Get(ctx, client.ObjectKey{Namespace: w.Namespace, Name: name}, &p)
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("reading AddressProbe %q: %w", name, err)
	case p.UID != types.UID(uid) || p.Status.Outcome != "":
		return nil
	}
	before := p.DeepCopy()
	now := metav1.Now()
	p.Status = v1alpha1.AddressProbeStatus{Outcome: v1alpha1.OutcomeSilent, By: a.By, Node: w.Self, Time: &now}
	if a.By != "" {
		p.Status.Outcome = v1alpha1.OutcomeAnswered
		w.Log.Warn("somebody uses an address that was about to be given", "address", a.Address, "pool", a.Pool, "by", a.By)
	}
	err = w.Client.Status().Patch(ctx, &p, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		return fmt.Errorf("writing the status of AddressProbe %q: %w", p.Name, err)
	}
	return nil
}
