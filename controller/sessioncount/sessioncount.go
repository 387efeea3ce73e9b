// Package sessioncount writes into the status of each BGPPeer how many of its sessions are
// established.
package sessioncount

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/internal/configuration"
)

// sessionChangeCollectDelay gathers changes that come together: a router that dies ends a session
// on each node, and costs one write.
const sessionChangeCollectDelay = time.Second

// SessionCounter writes the counts. Use NewSessionCounter to create it.
type SessionCounter struct {
	client client.Client
	scope  configuration.ConfigurationScope
}

// NewSessionCounter returns a SessionCounter for the BGPPeers of a scope.
func NewSessionCounter(c client.Client, scope configuration.ConfigurationScope) *SessionCounter {
	return &SessionCounter{c, scope}
}

// RegisterController registers the reconciler, unless BGP is not served.
func (r *SessionCounter) RegisterController(mgr ctrl.Manager) error {
	if r.scope.WithoutBGPKinds {
		return nil
	}
	type queue = workqueue.TypedRateLimitingInterface[ctrl.Request]
	add := func(o client.Object, q queue) {
		if s, ok := o.(*v1alpha1.BGPSession); ok && s.Status.Peer != "" {
			q.AddAfter(ctrl.Request{NamespacedName: client.ObjectKey{Namespace: r.scope.Namespace, Name: s.Status.Peer}}, sessionChangeCollectDelay)
		}
	}
	addSessionsOfNode := func(ctx context.Context, node string, q queue) {
		var sessions v1alpha1.BGPSessionList
		if err := r.client.List(ctx, &sessions, client.InNamespace(r.scope.Namespace)); err != nil {
			return
		}
		for i := range sessions.Items {
			if sessions.Items[i].Status.Node == node {
				add(&sessions.Items[i], q)
			}
		}
	}
	err := ctrl.NewControllerManagedBy(mgr).Named("sessioncount").For(&v1beta2.BGPPeer{}).
		Watches(&v1alpha1.BGPSession{}, handler.Funcs{
			CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) { add(e.Object, q) },
			UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) { add(e.ObjectNew, q) },
			DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) { add(e.Object, q) },
		}).
		Watches(&v1alpha1.SpeakerStatus{}, handler.Funcs{
			UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) {
				before, ok1 := e.ObjectOld.(*v1alpha1.SpeakerStatus)
				after, ok2 := e.ObjectNew.(*v1alpha1.SpeakerStatus)
				if ok1 && ok2 && before.Status.WasFoundDead() != after.Status.WasFoundDead() {
					addSessionsOfNode(ctx, e.ObjectNew.GetName(), q)
				}
			},
		}).Complete(r)
	if err != nil {
		return fmt.Errorf("setting up the counts of sessions: %w", err)
	}
	return nil
}

// Reconcile writes the count of one BGPPeer if it changed.
func (r *SessionCounter) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var p v1beta2.BGPPeer
	if err := r.client.Get(ctx, req.NamespacedName, &p); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	var sessions v1alpha1.BGPSessionList
	if err := r.client.List(ctx, &sessions, client.InNamespace(r.scope.Namespace)); err != nil {
		return ctrl.Result{}, fmt.Errorf("reading the sessions: %w", err)
	}
	var speakers v1alpha1.SpeakerStatusList
	if err := r.client.List(ctx, &speakers, client.InNamespace(r.scope.Namespace)); err != nil {
		return ctrl.Result{}, fmt.Errorf("reading the state of the speakers: %w", err)
	}
	deadNodes := map[string]bool{}
	for i := range speakers.Items {
		deadNodes[speakers.Items[i].Name] = speakers.Items[i].Status.WasFoundDead()
	}
	count := formatEstablishedSessionCount(sessions.Items, p.Name, deadNodes)
	if p.Status.Gantry != nil && p.Status.Gantry.Sessions == count {
		return ctrl.Result{}, nil
	}
	after := p.DeepCopy()
	if after.Status.Gantry == nil {
		after.Status.Gantry = &v1beta2.ObjectStatus{}
	}
	after.Status.Gantry.Sessions = count
	if err := r.client.Status().Patch(ctx, after, client.MergeFrom(&p)); client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, fmt.Errorf("writing the count of sessions of BGPPeer %q: %w", p.Name, err)
	}
	return ctrl.Result{}, nil
}

// formatEstablishedSessionCount returns how many sessions of the peer are established, of how many.
// Those of dead nodes are not, whatever their speakers wrote last.
func formatEstablishedSessionCount(sessions []v1alpha1.BGPSession, peer string, deadNodes map[string]bool) string {
	established, all := 0, 0
	for i := range sessions {
		if sessions[i].Status.Peer != peer {
			continue
		}
		all++
		if meta.IsStatusConditionTrue(sessions[i].Status.Conditions, names.ConditionEstablished) && !deadNodes[sessions[i].Status.Node] {
			established++
		}
	}
	return fmt.Sprintf("%d/%d", established, all)
}
