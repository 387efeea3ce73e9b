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
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/probing"
)

// AddressProbeWriter publishes the open AddressProbes as questions, and writes the answers.
type AddressProbeWriter struct {
	options AddressProbeWriterOptions

	openQuestionUpdates *latest.Value[[]probing.Question]
	answers             *latest.BoundedQueue[probing.Answer]
	probesChangedSignal *latest.Wake
}

// AddressProbeWriterOptions are what an AddressProbeWriter needs.
type AddressProbeWriterOptions struct {
	Client client.Client
	Cache  cache.Cache
	Log    *slog.Logger
	// Self is this node, Namespace is that of the objects.
	Self, Namespace string
	// Now is the clock.
	Now func() time.Time
}

// NewAddressProbeWriter returns an AddressProbeWriter that does nothing before Run.
func NewAddressProbeWriter(o AddressProbeWriterOptions) *AddressProbeWriter {
	return &AddressProbeWriter{
		options: o, openQuestionUpdates: latest.NewValue[[]probing.Question](), answers: latest.NewBoundedQueue[probing.Answer](1024),
		probesChangedSignal: latest.NewWake(),
	}
}

// OpenQuestionUpdates delivers the open questions. Each set replaces the one before it.
func (w *AddressProbeWriter) OpenQuestionUpdates() <-chan []probing.Question {
	return w.openQuestionUpdates.C()
}

// ObserveAnswer queues an answer and returns at once. If the queue is full, the answer is dropped:
// the controller asks again.
func (w *AddressProbeWriter) ObserveAnswer(a probing.Answer) {
	if !w.answers.PutIfRoom(a) {
		w.options.Log.Warn("dropping the answer to an AddressProbe: too many wait to be written", "address", a.Address)
	}
}

// watchProbes wakes the writer when an AddressProbe changes.
func (w *AddressProbeWriter) watchProbes(ctx context.Context) error {
	informer, err := w.options.Cache.GetInformer(ctx, &v1alpha1.AddressProbe{})
	if err != nil {
		return fmt.Errorf("watching AddressProbes: %w", err)
	}
	wake := func(any) { w.probesChangedSignal.Signal() }
	if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: wake, UpdateFunc: func(_, o any) { wake(o) }, DeleteFunc: wake,
	}); err != nil {
		return fmt.Errorf("watching AddressProbes: %w", err)
	}
	return nil
}

// missingAddressProbeKindRetryDelay is the delay before the next attempt while the API server does
// not serve AddressProbes. Everything else works meanwhile.
const missingAddressProbeKindRetryDelay = 10 * time.Second

// Run works until ctx ends.
func (w *AddressProbeWriter) Run(ctx context.Context) error {
	for logged := false; ; logged = true {
		err := w.watchProbes(ctx)
		if err == nil {
			break
		}
		if !logged && ctx.Err() == nil {
			w.options.Log.Error("this node answers no AddressProbe until it can watch them; are the CRDs of this version installed?", "error", err, "again", missingAddressProbeKindRetryDelay)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(missingAddressProbeKindRetryDelay):
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.probesChangedSignal.C():
			w.passOpenQuestionsToProber(ctx)
		case a := <-w.answers.C():
			if err := w.writeAnswer(ctx, a); err != nil && ctx.Err() == nil {
				w.options.Log.Warn("writing the answer to an AddressProbe; trying again", "address", a.Address, "error", err)
				time.AfterFunc(writeRetryDelay, func() { w.ObserveAnswer(a) })
			}
		}
	}
}

// passOpenQuestionsToProber publishes the open questions.
func (w *AddressProbeWriter) passOpenQuestionsToProber(ctx context.Context) {
	var list v1alpha1.AddressProbeList
	if err := w.options.Client.List(ctx, &list, client.InNamespace(w.options.Namespace)); err != nil {
		w.options.Log.Warn("listing AddressProbes", "error", err)
		return
	}
	var open []probing.Question
	for i := range list.Items {
		p := &list.Items[i]
		a, err := netip.ParseAddr(p.Spec.Address)
		isForOtherNode := p.Spec.Node != "" && p.Spec.Node != w.options.Self
		if err != nil || p.Status.Outcome != "" || isForOtherNode {
			continue
		}
		open = append(open, probing.Question{ID: p.Name + "/" + string(p.UID), Address: a.Unmap(), Pool: p.Spec.Pool, IsForThisNode: p.Spec.Node != ""})
	}
	w.openQuestionUpdates.Put(open)
}

// writeAnswer writes an answer, unless the AddressProbe is gone or has an answer already.
func (w *AddressProbeWriter) writeAnswer(ctx context.Context, a probing.Answer) error {
	name, uid, _ := strings.Cut(a.ID, "/")
	var p v1alpha1.AddressProbe
	err := w.options.Client.Get(ctx, client.ObjectKey{Namespace: w.options.Namespace, Name: name}, &p)
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("reading AddressProbe %q: %w", name, err)
	case p.UID != types.UID(uid) || p.Status.Outcome != "":
		return nil
	}
	before := p.DeepCopy()
	now := metav1.NewTime(w.options.Now())
	p.Status = v1alpha1.AddressProbeStatus{Outcome: v1alpha1.ProbeOutcomeSilent, By: a.AnsweringMACs, Node: w.options.Self, Time: &now}
	switch {
	case a.IsNotSent:
		p.Status.Outcome = v1alpha1.ProbeOutcomeNotSent
	case a.AnsweringMACs != "":
		p.Status.Outcome = v1alpha1.ProbeOutcomeAnswered
	}
	if a.AnsweringMACs != "" && !a.IsForThisNode {
		w.options.Log.Warn("another host uses an address that was about to be assigned", "address", a.Address, "pool", a.Pool, "mac", a.AnsweringMACs)
	}
	err = w.options.Client.Status().Patch(ctx, &p, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		return fmt.Errorf("writing the status of AddressProbe %q: %w", p.Name, err)
	}
	return nil
}
