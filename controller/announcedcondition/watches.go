package announcedcondition

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	workers "sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
)

// requestQueue has the Services to look at.
type requestQueue = workqueue.TypedRateLimitingInterface[ctrl.Request]

// stateChangeCollectDelay gathers changes of sessions and speakers that come together: a router
// that dies ends a session on each node.
const stateChangeCollectDelay = 300 * time.Millisecond

// maxConcurrentReconciles is how many Services are looked at in parallel. When the only router
// dies, the conditions of all Services change. With 32 writes at once an API server on two cores is
// busy; more would only wait in its queues.
const maxConcurrentReconciles = 32

// RegisterController registers the reconciler.
func (r *ConditionWriter) RegisterController(ctx context.Context, mgr ctrl.Manager) error {
	if err := RegisterIndexes(ctx, mgr.GetFieldIndexer(), r.Scope); err != nil {
		return err
	}
	reported := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []ctrl.Request {
		return []ctrl.Request{{NamespacedName: serviceOfSpeakerReport(o)}}
	})
	b := ctrl.NewControllerManagedBy(mgr).Named("announced").For(&corev1.Service{}).
		WithOptions(workers.Options{MaxConcurrentReconciles: maxConcurrentReconciles}).
		Watches(&v1alpha1.SpeakerStatus{}, r.speakerOrSessionEventHandler(isSpeakerChangeRelevant)).
		Watches(&corev1.Pod{}, r.speakerPodHandler()).
		Watches(&discoveryv1.EndpointSlice{}, handler.EnqueueRequestsFromMapFunc(r.unannouncedServiceOfSlice)).
		WatchesRawSource(source.Func(r.enqueueFaultyOnConfigurationRead))
	if !r.Scope.WithoutBGPKinds {
		b = b.Watches(&v1alpha1.BGPSession{}, r.speakerOrSessionEventHandler(isSessionChangeRelevant))
	}
	for _, report := range r.Scope.SpeakerReportKinds() {
		b = b.Watches(report, reported)
	}
	if err := b.Complete(r); err != nil {
		return fmt.Errorf("setting up the condition %s: %w", names.ConditionAnnounced, err)
	}
	return nil
}

// RegisterIndexes adds the indexes by which a ConditionWriter and an Explainer read.
func RegisterIndexes(ctx context.Context, indexer client.FieldIndexer, scope configuration.ConfigurationScope) error {
	for _, report := range scope.SpeakerReportKinds() {
		byService := func(o client.Object) []string { return []string{serviceOfSpeakerReport(o).String()} }
		if err := indexer.IndexField(ctx, report, ReportsByServiceIndex, byService); err != nil {
			return fmt.Errorf("indexing the speakers' reports: %w", err)
		}
		byNode := func(o client.Object) []string { return []string{o.GetLabels()[names.LabelServiceStatusNode]} }
		if err := indexer.IndexField(ctx, report, ReportsByNodeIndex, byNode); err != nil {
			return fmt.Errorf("indexing the speakers' reports: %w", err)
		}
	}
	byName := func(o client.Object) []string { return []string{o.GetLabels()[discoveryv1.LabelServiceName]} }
	if err := indexer.IndexField(ctx, &discoveryv1.EndpointSlice{}, EndpointSlicesByServiceIndex, byName); err != nil {
		return fmt.Errorf("indexing the endpoints: %w", err)
	}
	if scope.WithoutBGPKinds {
		return nil
	}
	byPeer := func(o client.Object) []string {
		s, ok := o.(*v1alpha1.BGPSession)
		if !ok {
			return nil
		}
		return []string{sessionIndexValue(s.Status.Node, s.Status.Peer)}
	}
	if err := indexer.IndexField(ctx, &v1alpha1.BGPSession{}, SessionsByNodeAndPeerIndex, byPeer); err != nil {
		return fmt.Errorf("indexing the BGP sessions: %w", err)
	}
	return nil
}

// CacheKinds are the kinds in Gantry's namespace that a ConditionWriter reads, besides the Pods of
// the speakers.
func CacheKinds(scope configuration.ConfigurationScope) []client.Object {
	out := append(scope.SpeakerReportKinds(), &v1alpha1.SpeakerStatus{})
	if !scope.WithoutBGPKinds {
		out = append(out, &v1alpha1.BGPSession{})
	}
	return out
}

// serviceOfSpeakerReport returns the Service that a speaker's report is about.
func serviceOfSpeakerReport(o client.Object) client.ObjectKey {
	l := o.GetLabels()
	return client.ObjectKey{Namespace: l[names.LabelServiceNamespace], Name: l[names.LabelServiceName]}
}

// unannouncedServiceOfSlice returns the Service of an EndpointSlice if the Service has a fault.
// Others follow the speakers' reports.
func (r *ConditionWriter) unannouncedServiceOfSlice(_ context.Context, o client.Object) []ctrl.Request {
	key := client.ObjectKey{Namespace: o.GetNamespace(), Name: o.GetLabels()[discoveryv1.LabelServiceName]}
	if !r.unannouncedFaults.hasFault(key) {
		return nil
	}
	return []ctrl.Request{{NamespacedName: key}}
}

// enqueueFaultyOnConfigurationRead looks at the Services with a fault after each reading of the
// configuration.
func (r *ConditionWriter) enqueueFaultyOnConfigurationRead(ctx context.Context, queue requestQueue) error {
	published := r.ConfigurationReader.Subscribe()
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-published:
				r.enqueueUnannouncedServices(queue)
			}
		}
	}()
	return nil
}

func (r *ConditionWriter) enqueueUnannouncedServices(queue requestQueue) {
	for _, k := range r.unannouncedFaults.servicesWithFault() {
		queue.AddAfter(ctrl.Request{NamespacedName: k}, stateChangeCollectDelay)
	}
}

// speakerOrSessionEventHandler looks at the Services of a node after a change of its speaker or one
// of its sessions, and at the Services with a fault.
func (r *ConditionWriter) speakerOrSessionEventHandler(isRelevant func(before, after client.Object) bool) handler.EventHandler {
	look := func(ctx context.Context, o client.Object, queue requestQueue) {
		r.enqueueUnannouncedServices(queue)
		for _, k := range r.servicesPossiblyAnnouncedByNode(ctx, nodeOfSpeakerOrSession(o)) {
			queue.AddAfter(ctrl.Request{NamespacedName: k}, stateChangeCollectDelay)
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q requestQueue) {
			if !e.IsInInitialList { // each Service has its own request at the start
				look(ctx, e.Object, q)
			}
		},
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q requestQueue) { look(ctx, e.Object, q) },
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q requestQueue) {
			if isRelevant(e.ObjectOld, e.ObjectNew) {
				look(ctx, e.ObjectNew, q)
			}
		},
	}
}

// nodeOfSpeakerOrSession returns the node of a SpeakerStatus or BGPSession.
func nodeOfSpeakerOrSession(o client.Object) string {
	if s, ok := o.(*v1alpha1.BGPSession); ok {
		return s.Status.Node
	}
	return o.GetName()
}

// servicesPossiblyAnnouncedByNode returns the Services that the node reports to announce. A node
// with very many Services reports none by BGP: then it returns all Services.
func (r *ConditionWriter) servicesPossiblyAnnouncedByNode(ctx context.Context, node string) []client.ObjectKey {
	var out []client.ObjectKey
	match := []client.ListOption{client.InNamespace(r.Scope.Namespace), client.MatchingFields{ReportsByNodeIndex: node}}
	var l2 v1beta1.ServiceL2StatusList
	if err := r.Client.List(ctx, &l2, match...); err == nil {
		for i := range l2.Items {
			out = append(out, serviceOfSpeakerReport(&l2.Items[i]))
		}
	}
	if r.Scope.WithoutBGPKinds {
		return out
	}
	var bgp v1beta1.ServiceBGPStatusList
	if err := r.Client.List(ctx, &bgp, match...); err == nil {
		for i := range bgp.Items {
			out = append(out, serviceOfSpeakerReport(&bgp.Items[i]))
		}
	}
	if len(bgp.Items) > 0 {
		return out
	}
	return append(out, r.allLoadBalancerServices(ctx)...)
}

// allLoadBalancerServices returns all Services of type LoadBalancer.
func (r *ConditionWriter) allLoadBalancerServices(ctx context.Context) []client.ObjectKey {
	var out []client.ObjectKey
	var all corev1.ServiceList
	if err := r.Client.List(ctx, &all); err != nil {
		return nil
	}
	for i := range all.Items {
		if all.Items[i].Spec.Type == corev1.ServiceTypeLoadBalancer {
			out = append(out, client.ObjectKeyFromObject(&all.Items[i]))
		}
	}
	return out
}

// isSpeakerChangeRelevant reports whether a SpeakerStatus changed in what decides about Services.
func isSpeakerChangeRelevant(before, after client.Object) bool {
	x, ok1 := before.(*v1alpha1.SpeakerStatus)
	y, ok2 := after.(*v1alpha1.SpeakerStatus)
	if !ok1 || !ok2 {
		return true
	}
	a, b := &x.Status, &y.Status
	return a.Unavailable != b.Unavailable || (a.Routes == 0) != (b.Routes == 0) || !equality.Semantic.DeepEqual(a.Links, b.Links) || !slices.Equal(a.Conflicts, b.Conflicts) ||
		!slices.Equal(a.AwaitingProxy, b.AwaitingProxy) ||
		conditionFingerprint(a.Conditions, names.ConditionSpeakerReady) != conditionFingerprint(b.Conditions, names.ConditionSpeakerReady) ||
		conditionFingerprint(a.Conditions, names.ConditionNodeFit) != conditionFingerprint(b.Conditions, names.ConditionNodeFit) ||
		conditionFingerprint(a.Conditions, names.ConditionLayer2Usable) != conditionFingerprint(b.Conditions, names.ConditionLayer2Usable)
}

// isSessionChangeRelevant reports whether a BGPSession changed in what decides about Services.
func isSessionChangeRelevant(before, after client.Object) bool {
	x, ok1 := before.(*v1alpha1.BGPSession)
	y, ok2 := after.(*v1alpha1.BGPSession)
	if !ok1 || !ok2 {
		return true
	}
	a, b := &x.Status, &y.Status
	return !slices.Equal(a.Families, b.Families) ||
		conditionFingerprint(a.Conditions, names.ConditionEstablished) != conditionFingerprint(b.Conditions, names.ConditionEstablished) ||
		conditionFingerprint(a.Conditions, names.ConditionRoutesAnnounced) != conditionFingerprint(b.Conditions, names.ConditionRoutesAnnounced)
}

// conditionFingerprint returns the status, the Reason and the text of a condition.
func conditionFingerprint(all []metav1.Condition, kind string) string {
	c := meta.FindStatusCondition(all, kind)
	if c == nil {
		return ""
	}
	return string(c.Status) + c.Reason + c.Message
}
