// Package announced writes the condition gantry.dev/Announced on Services. Package advertise has
// the rule that says why no speaker announces a Service.
package announced

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	workers "sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/controller/events"
	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/view"
)

// Options are the settings of a ConditionWriter.
type Options struct {
	Client client.Client
	// Scope says where the speakers' reports are, and whether BGP is part of them.
	Scope configuration.ConfigurationScope
	// ConfigurationReader publishes the configuration.
	ConfigurationReader *configurationreader.Reader
	// LoadBalancerClass is the class that is served.
	LoadBalancerClass string
	// Now returns the time.
	Now func() time.Time
	// RecordEvent creates an event about a Service; kind is Normal or Warning.
	RecordEvent func(about *corev1.Service, kind, reason, text string)
}

// ConditionWriter writes the condition gantry.dev/Announced on Services. It is True while a
// speaker reports that it announces the Service, with another reason while a foreign host claims an
// address; otherwise it is False with the reason. It names the protocols and no node, so that a
// failover causes no write. Use NewConditionWriter to create it.
type ConditionWriter struct {
	Options

	mu sync.Mutex // guards all that follows
	// unannouncedSinceByService are the Services that no speaker announces, with the time since
	// when.
	unannouncedSinceByService map[client.ObjectKey]time.Time
}

const (
	// missingSpeakerReportTimeout is how long speakers may take before the condition becomes False.
	missingSpeakerReportTimeout = 3 * time.Second
	// speakerReportsByServiceIndexName finds the speakers' reports about a Service,
	// endpointSlicesByServiceIndexName its EndpointSlices.
	speakerReportsByServiceIndexName = "service"
	endpointSlicesByServiceIndexName = "endpoints"
	// maxUnannouncedRecheckInterval is how often the reason is determined again while no speaker
	// announces. It is shorter at first, while a manifest may still be in the process of being
	// applied.
	maxUnannouncedRecheckInterval = 30 * time.Second
)

// NewConditionWriter returns a ConditionWriter to register with a manager.
func NewConditionWriter(o Options) *ConditionWriter {
	return &ConditionWriter{Options: o, unannouncedSinceByService: map[client.ObjectKey]time.Time{}}
}

// RegisterController registers the reconciler.
func (r *ConditionWriter) RegisterController(ctx context.Context, mgr ctrl.Manager) error {
	reported := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []ctrl.Request {
		return []ctrl.Request{{NamespacedName: serviceOfSpeakerReport(o)}}
	})
	b := ctrl.NewControllerManagedBy(mgr).Named("announced").For(&corev1.Service{}).
		WithOptions(workers.Options{MaxConcurrentReconciles: 4})
	for _, report := range r.Scope.SpeakerReportKinds() {
		err := mgr.GetFieldIndexer().IndexField(ctx, report, speakerReportsByServiceIndexName, func(o client.Object) []string {
			return []string{serviceOfSpeakerReport(o).String()}
		})
		if err != nil {
			return fmt.Errorf("indexing the speakers' reports: %w", err)
		}
		b = b.Watches(report, reported)
	}
	err := mgr.GetFieldIndexer().IndexField(ctx, &discoveryv1.EndpointSlice{}, endpointSlicesByServiceIndexName, func(o client.Object) []string {
		return []string{o.GetLabels()[discoveryv1.LabelServiceName]}
	})
	if err != nil {
		return fmt.Errorf("indexing the endpoints: %w", err)
	}
	if err := b.Complete(r); err != nil {
		return fmt.Errorf("setting up the condition %s: %w", names.ConditionAnnounced, err)
	}
	return nil
}

// serviceOfSpeakerReport returns the Service that a speaker's report is about.
func serviceOfSpeakerReport(o client.Object) client.ObjectKey {
	l := o.GetLabels()
	return client.ObjectKey{Namespace: l[names.LabelServiceNamespace], Name: l[names.LabelServiceName]}
}

// Reconcile brings the condition of one Service in line with the reports.
func (r *ConditionWriter) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var s corev1.Service
	if err := r.Client.Get(ctx, req.NamespacedName, &s); err != nil {
		r.forgetUnannounced(req.NamespacedName)
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	v := view.FromService(&s)
	if !v.IsLoadBalancer || v.LoadBalancerClass != r.LoadBalancerClass || len(v.AssignedAddresses) == 0 {
		r.forgetUnannounced(req.NamespacedName)
		return ctrl.Result{}, nil // the worker removes the condition together with the addresses
	}
	reported, err := r.readSpeakerReports(ctx, req.NamespacedName)
	if err != nil {
		return ctrl.Result{}, err
	}
	c := metav1.Condition{Type: names.ConditionAnnounced, ObservedGeneration: s.Generation}
	var again time.Duration
	if reported.isAnnounced() {
		r.forgetUnannounced(req.NamespacedName)
		reason, text := reported.describeAnnouncement()
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, string(reason), text
	} else {
		wait := r.remainingReportTimeout(req.NamespacedName)
		if wait > 0 {
			return ctrl.Result{RequeueAfter: wait}, nil
		}
		reason, text, err := r.explainUnannounced(ctx, &s, &v)
		if err != nil {
			return ctrl.Result{}, err
		}
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, string(reason), text
		again = min(missingSpeakerReportTimeout-wait, maxUnannouncedRecheckInterval)
	}
	return ctrl.Result{RequeueAfter: again}, r.writeAnnouncedCondition(ctx, &s, c)
}

// remainingReportTimeout is how long to wait before the condition becomes False. A report that is
// replaced is missing for an instant.
func (r *ConditionWriter) remainingReportTimeout(key client.ObjectKey) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	since, known := r.unannouncedSinceByService[key]
	if !known {
		since = r.Now()
		r.unannouncedSinceByService[key] = since
	}
	return missingSpeakerReportTimeout - r.Now().Sub(since)
}

// forgetUnannounced removes the Service from unannouncedSinceByService.
func (r *ConditionWriter) forgetUnannounced(key client.ObjectKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.unannouncedSinceByService, key)
}

// readSpeakerReports reads the speakers' reports about the Service.
func (r *ConditionWriter) readSpeakerReports(ctx context.Context, key client.ObjectKey) (speakerReports, error) {
	var l2 v1beta1.ServiceL2StatusList
	var bgp v1beta1.ServiceBGPStatusList
	match := []client.ListOption{client.InNamespace(r.Scope.Namespace), client.MatchingFields{speakerReportsByServiceIndexName: key.String()}}
	lists := []client.ObjectList{&l2}
	if !r.Scope.WithoutBGPKinds {
		lists = append(lists, &bgp)
	}
	for _, list := range lists {
		if err := r.Client.List(ctx, list, match...); err != nil {
			return speakerReports{}, fmt.Errorf("reading the speakers' reports about Service %s: %w", key, err)
		}
	}
	return speakerReports{l2.Items, bgp.Items}, nil
}

// ForecastUnannouncedCondition returns the condition of a Service that is about to get its first
// addresses, if it is certain that no speaker will announce them. It is written together with the
// addresses, so that a Service that waits for an advertisement or for Pods costs one write instead
// of two. A wrong forecast is corrected like any other change.
func (r *ConditionWriter) ForecastUnannouncedCondition(ctx context.Context, s *corev1.Service, assigned []netip.Addr) (metav1.Condition, bool) {
	var none metav1.Condition
	// A change may bring the advertisement: it may have been applied together with the Service.
	if r.ConfigurationReader.HasUnreadChange() {
		return none, false
	}
	if meta.FindStatusCondition(s.Status.Conditions, names.ConditionAnnounced) != nil {
		return none, false
	}
	v := view.FromService(s)
	v.AssignedAddresses = assigned
	if reported, err := r.readSpeakerReports(ctx, client.ObjectKeyFromObject(s)); err != nil || reported.isAnnounced() {
		return none, false
	}
	reason, text, err := r.explainUnannounced(ctx, s, &v)
	// The pool may be newer than the snapshot.
	if err != nil || reason == names.ReasonNotAnnounced || reason == names.ReasonAddressOutsidePools {
		return none, false
	}
	return metav1.Condition{
		Type: names.ConditionAnnounced, Status: metav1.ConditionFalse, Reason: string(reason), Message: text, ObservedGeneration: s.Generation,
	}, true
}

// explainUnannounced says why no speaker announces the Service, as far as the controller can see.
func (r *ConditionWriter) explainUnannounced(ctx context.Context, s *corev1.Service, v *view.Service) (names.Reason, string, error) {
	config, _ := r.ConfigurationReader.LatestConfiguration()
	if config == nil {
		return "", "", errors.New("the configuration has not been read yet")
	}
	svc := advertise.FromView(v)
	if why := advertise.Explain(config.Snapshot, &svc, config.Nodes); why.IsSet() {
		return why.Reason, why.Text, nil
	}
	var endpoints discoveryv1.EndpointSliceList
	match := client.MatchingFields{endpointSlicesByServiceIndexName: s.Name}
	if err := r.Client.List(ctx, &endpoints, client.InNamespace(s.Namespace), match); err != nil {
		return "", "", fmt.Errorf("reading the endpoints of Service %s: %w", v.Key, err)
	}
	e := view.MergedEndpointsOfSlices(v.Key, endpoints.Items)
	if !e.AnyServing {
		return names.ReasonNoEndpoints, "no endpoint of the Service can serve: check its selector and whether its Pods are ready", nil
	}
	text := fmt.Sprintf("no speaker reports that it announces the Service: check that speakers run on the selected nodes (kubectl get pods,speakerstatuses -n %s), that those nodes do not have the condition NetworkUnavailable", r.Scope.Namespace)
	if links := advertise.LimitingInterfaces(config.Snapshot, &svc); len(links) > 0 {
		text += ", that one of the interfaces " + strings.Join(links, ", ") + " exists with exactly this name and is usable (see links in the SpeakerStatus)"
	}
	return names.ReasonNotAnnounced, text + ", and what the speakers' logs say", nil
}

// eventKindForUnannounced returns the type of the event, given the condition before. A Service that
// was not announced before may still be on its way: its Pods start, and then the speakers announce.
func eventKindForUnannounced(before *metav1.Condition, reason names.Reason) string {
	isFirst := before == nil || before.Status == metav1.ConditionFalse
	if isFirst && (reason == names.ReasonNoEndpoints || reason == names.ReasonNotAnnounced) {
		return corev1.EventTypeNormal
	}
	return corev1.EventTypeWarning
}

func (r *ConditionWriter) writeAnnouncedCondition(ctx context.Context, s *corev1.Service, c metav1.Condition) error {
	after, before := s.DeepCopy(), meta.FindStatusCondition(s.Status.Conditions, c.Type)
	if !meta.SetStatusCondition(&after.Status.Conditions, c) {
		return nil
	}
	base := client.MergeFromWithOptions(s, client.MergeFromWithOptimisticLock{})
	err := r.Client.Status().Patch(ctx, after, base)
	if err == nil && c.Status == metav1.ConditionFalse && (before == nil || before.Reason != c.Reason) {
		r.RecordEvent(s, eventKindForUnannounced(before, names.Reason(c.Reason)), names.EventAnnounceFailed, events.TruncateNote(c.Reason+": "+c.Message))
	}
	if apierrors.IsConflict(err) || client.IgnoreNotFound(err) == nil {
		return nil // the newer object causes its own request
	}
	return fmt.Errorf("writing the condition %s of Service %s/%s: %w", names.ConditionAnnounced, s.Namespace, s.Name, err)
}
