package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	workers "sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// AnnouncedCondition writes the condition gantry.dev/Announced on Services: True while a speaker reports that it announces them (with
// another reason while a foreign host claims an address, too), otherwise False with the reason. It speaks of the protocols, not of the nodes, so that a failover writes nothing.
type AnnouncedCondition struct {
	Client client.Client
	Log    *slog.Logger
	// Scope is where the speakers' reports and the configuration are, and whether BGP is among them.
	Scope configuration.Scope
	// LoadBalancerClass is the load balancer class that is served.
	LoadBalancerClass string
	// Now gives the time.
	Now func() time.Time
	// RecordEvent makes an event about a Service; kind is Normal or Warning.
	RecordEvent func(about *corev1.Service, kind, reason, text string)

	mu sync.Mutex // guards all that follows
	// unannouncedSince are the Services that nobody announces, with the time since when.
	unannouncedSince map[client.ObjectKey]time.Time
	// lastSnapshot is the configuration as last read, with the nodes; it counts until fresh.
	lastSnapshot *snapshot.Snapshot
	lastNodes    []snapshot.Node
	freshUntil   time.Time
}

const (
	// announceTimeout is how long speakers may take before it is said that nobody announces.
	announceTimeout = 3 * time.Second
	// reportsByServiceIndex finds the speakers' reports about a Service, and slicesByServiceIndex its EndpointSlices.
	reportsByServiceIndex = "service"
	slicesByServiceIndex  = "endpoints"
	// The configuration is read anew after this time at the earliest, and only so often that it takes a twentieth of a core at most; but
	// the first time waits for caches to fill, and is no measure.
	minReadInterval, readCostFactor, maxReadInterval = 100 * time.Millisecond, 20, 3 * time.Second
	// maxRecheckInterval is how often the reason is looked for anew while nobody announces; more often in the beginning, when a manifest
	// is still being applied.
	maxRecheckInterval = 30 * time.Second
)

// RegisterController registers the reconciler.
func (r *AnnouncedCondition) RegisterController(ctx context.Context, mgr ctrl.Manager) error {
	reported := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []ctrl.Request {
		return []ctrl.Request{{NamespacedName: reportedService(o)}}
	})
	b := ctrl.NewControllerManagedBy(mgr).Named("announced").For(&corev1.Service{}).
		WithOptions(workers.Options{MaxConcurrentReconciles: 4})
	for _, report := range r.Scope.StatusKinds() {
		err := mgr.GetFieldIndexer().IndexField(ctx, report, reportsByServiceIndex, func(o client.Object) []string {
			return []string{reportedService(o).String()}
		})
		if err != nil {
			return fmt.Errorf("indexing the speakers' reports: %w", err)
		}
		b = b.Watches(report, reported)
	}
	err := mgr.GetFieldIndexer().IndexField(ctx, &discoveryv1.EndpointSlice{}, slicesByServiceIndex, func(o client.Object) []string {
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

// reportedService names the Service that a speaker's report is about.
func reportedService(o client.Object) client.ObjectKey {
	l := o.GetLabels()
	return client.ObjectKey{Namespace: l[names.LabelServiceNamespace], Name: l[names.LabelServiceName]}
}

// Reconcile brings one Service's condition in line with the reports.
func (r *AnnouncedCondition) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var s corev1.Service
	if err := r.Client.Get(ctx, req.NamespacedName, &s); err != nil {
		r.forgetUnannounced(req.NamespacedName)
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	v := view.FromService(&s)
	if !v.IsLoadBalancer || v.Class != r.LoadBalancerClass || len(v.AssignedAddresses) == 0 {
		r.forgetUnannounced(req.NamespacedName)
		return ctrl.Result{}, nil // the worker that gives addresses takes the condition away with them
	}
	reported, err := r.readReports(ctx, req.NamespacedName)
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
		wait := r.remainingTimeout(req.NamespacedName)
		if wait > 0 {
			return ctrl.Result{RequeueAfter: wait}, nil
		}
		reason, text, err := r.explainUnannounced(ctx, &s, &v)
		if err != nil {
			return ctrl.Result{}, err
		}
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, string(reason), text
		again = min(announceTimeout-wait, maxRecheckInterval)
	}
	return ctrl.Result{RequeueAfter: again}, r.writeCondition(ctx, &s, c)
}

// remainingTimeout is how long to wait yet before it is said that nobody announces. A report that is replaced is gone for an instant.
func (r *AnnouncedCondition) remainingTimeout(key client.ObjectKey) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	since, known := r.unannouncedSince[key]
	if !known {
		since = r.Now()
		if r.unannouncedSince == nil {
			r.unannouncedSince = map[client.ObjectKey]time.Time{}
		}
		r.unannouncedSince[key] = since
	}
	return announceTimeout - r.Now().Sub(since)
}

// forgetUnannounced forgets that a Service was not announced.
func (r *AnnouncedCondition) forgetUnannounced(key client.ObjectKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.unannouncedSince, key)
}

// readReports reads what the speakers say of the Service.
func (r *AnnouncedCondition) readReports(ctx context.Context, key client.ObjectKey) (speakerReports, error) {
	var l2 v1beta1.ServiceL2StatusList
	var bgp v1beta1.ServiceBGPStatusList
	match := []client.ListOption{client.InNamespace(r.Scope.Namespace), client.MatchingFields{reportsByServiceIndex: key.String()}}
	lists := []client.ObjectList{&l2}
	if !r.Scope.Layer2Only {
		lists = append(lists, &bgp)
	}
	for _, list := range lists {
		if err := r.Client.List(ctx, list, match...); err != nil {
			return speakerReports{}, fmt.Errorf("reading the speakers' reports about Service %s: %w", key, err)
		}
	}
	return speakerReports{l2.Items, bgp.Items}, nil
}

// ForecastCondition is the condition of a Service that is about to have its first addresses, where it can be seen that nobody will announce
// them. It is written together with the addresses, so that a Service that waits for an advertisement or for Pods costs one write
// and not two. What was forecast and comes otherwise is put right like any other change.
func (r *AnnouncedCondition) ForecastCondition(ctx context.Context, s *corev1.Service, assigned []netip.Addr) (metav1.Condition, bool) {
	var none metav1.Condition
	if meta.FindStatusCondition(s.Status.Conditions, names.ConditionAnnounced) != nil {
		return none, false
	}
	v := view.FromService(s)
	v.AssignedAddresses = assigned
	if reported, err := r.readReports(ctx, client.ObjectKeyFromObject(s)); err != nil || reported.isAnnounced() {
		return none, false
	}
	reason, text, err := r.explainUnannounced(ctx, s, &v)
	if err != nil || reason == names.ReasonNotAnnounced || reason == names.ReasonAddressOutsidePools { // the pool is newer than what was read
		return none, false
	}
	return metav1.Condition{
		Type: names.ConditionAnnounced, Status: metav1.ConditionFalse, Reason: string(reason), Message: text, ObservedGeneration: s.Generation,
	}, true
}

// readConfiguration returns what is configured, and the nodes.
func (r *AnnouncedCondition) readConfiguration(ctx context.Context) (*snapshot.Snapshot, []snapshot.Node, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	begun := r.Now()
	if begun.Before(r.freshUntil) {
		return r.lastSnapshot, r.lastNodes, nil
	}
	o, err := r.Scope.ReadObjects(ctx, r.Client)
	if err != nil {
		return nil, nil, err
	}
	if o.Nodes, err = configuration.ReadNodes(ctx, r.Client); err != nil {
		return nil, nil, err
	}
	o.Previous = r.lastSnapshot // what an edit broke is announced on, as it last was
	r.lastSnapshot, _ = snapshot.Build(o)
	r.lastNodes = o.Nodes
	now := r.Now()
	r.freshUntil = now.Add(min(max(minReadInterval, readCostFactor*now.Sub(begun)), maxReadInterval))
	return r.lastSnapshot, r.lastNodes, nil
}

// explainUnannounced says why nobody announces the Service, as far as it can be seen from here.
func (r *AnnouncedCondition) explainUnannounced(ctx context.Context, s *corev1.Service, v *view.Service) (names.Reason, string, error) {
	snap, nodes, err := r.readConfiguration(ctx)
	if err != nil {
		return "", "", err
	}
	if reason, text := findAdvertisementFault(snap, v, nodes); reason != "" {
		return reason, text, nil
	}
	var endpoints discoveryv1.EndpointSliceList
	match := client.MatchingFields{slicesByServiceIndex: s.Name}
	if err := r.Client.List(ctx, &endpoints, client.InNamespace(s.Namespace), match); err != nil {
		return "", "", fmt.Errorf("reading the endpoints of Service %s: %w", v.Key, err)
	}
	e := view.FromEndpointSlices(v.Key, endpoints.Items)
	if !e.AnyServing {
		return names.ReasonNoEndpoints, "no endpoint of the Service can serve: check its selector and whether its Pods are ready", nil
	}
	text := fmt.Sprintf("no speaker reports that it announces the Service: check that speakers run on the selected nodes (kubectl get pods,speakerstatuses -n %s), that no NetworkUnavailable is among the conditions of those nodes", r.Scope.Namespace)
	if links := limitingInterfaces(snap, v); len(links) > 0 {
		text += ", that one of the interfaces " + strings.Join(links, ", ") + " is there and usable (the links of the SpeakerStatus), spelled exactly so"
	}
	return names.ReasonNotAnnounced, text + ", and what the speakers' logs say", nil
}

// limitingInterfaces returns the interfaces that the advertisements limit the Service to; none when one of them does not.
func limitingInterfaces(s *snapshot.Snapshot, v *view.Service) []string {
	var links []string
	pools := s.PoolsOfAddresses(v.RecordedPool, v.AssignedAddresses...)
	selects := func(names []string, services []labels.Selector) bool {
		return snapshot.SelectorsMatch(services, v.Labels) && slices.ContainsFunc(pools, func(p *snapshot.Pool) bool { return slices.Contains(names, p.Name) })
	}
	for _, ad := range s.BGPAdvertisements {
		if selects(ad.Pools, ad.ServiceSelectors) {
			return nil
		}
	}
	for _, ad := range s.L2Advertisements {
		if !selects(ad.Pools, ad.ServiceSelectors) {
			continue
		}
		if len(ad.Interfaces) == 0 {
			return nil
		}
		links = append(links, ad.Interfaces...)
	}
	slices.Sort(links)
	return slices.Compact(links)
}

// findAdvertisementFault says which selector keeps every node from announcing the Service; empty when an advertisement fits.
func findAdvertisementFault(s *snapshot.Snapshot, v *view.Service, nodes []snapshot.Node) (names.Reason, string) {
	var own []string
	for _, a := range v.AssignedAddresses {
		pools := s.PoolsOfAddresses(v.RecordedPool, a)
		if pools == nil {
			return names.ReasonAddressOutsidePools, fmt.Sprintf("the address %s is in no IPAddressPool any more: add it to one, or give it back", a)
		}
		if !slices.Contains(own, pools[0].Name) {
			own = append(own, pools[0].Name)
		}
	}
	covered, onNode, excluded := false, false, false
	look := func(pools []string, services, selectors []labels.Selector) (selected bool) {
		if !slices.ContainsFunc(own, func(name string) bool { return slices.Contains(pools, name) }) || !snapshot.SelectorsMatch(services, v.Labels) {
			return false
		}
		covered = true
		for _, n := range nodes {
			if !snapshot.SelectorsMatch(selectors, n.Labels) {
				continue
			}
			if _, out := n.Labels[names.LabelExcludeNode]; out {
				excluded = true
				continue
			}
			onNode = true
		}
		return true
	}
	heard := false // by anybody
	for _, ad := range s.L2Advertisements {
		heard = look(ad.Pools, ad.ServiceSelectors, ad.NodeSelectors) || heard
	}
	routedAlone := !covered
	var ads []*snapshot.BGPAdvertisement // that select it
	for _, ad := range s.BGPAdvertisements {
		to := slices.ContainsFunc(s.Peers, func(p *snapshot.Peer) bool { return len(ad.Peers) == 0 || slices.Contains(ad.Peers, p.Name) })
		if look(ad.Pools, ad.ServiceSelectors, ad.NodeSelectors) {
			ads = append(ads, ad)
			heard = heard || to
		}
	}
	switch {
	case !covered:
		return names.ReasonNoAdvertisement, fmt.Sprintf("no L2Advertisement or BGPAdvertisement selects pool %s and this Service: create one", quotePools(own))
	case !onNode && excluded:
		return names.ReasonNodeExcluded, "every node that the advertisements select has the label " + names.LabelExcludeNode + ": take it off one of them"
	case !onNode:
		return names.ReasonNoAdvertisement, "the nodeSelectors of the advertisements match no node: correct them, or label a node"
	case !heard:
		return names.ReasonNoPeers, "the BGPAdvertisements that select the Service have no BGPPeer to announce it to: create one, or correct their spec.peers"
	case routedAlone:
		return snapshot.FindAdvertisementConflict(ads, v.AssignedAddresses, nodes)
	}
	return "", ""
}

// quotePools lists pools for people.
func quotePools(pools []string) string {
	out := make([]string, len(pools))
	for i, p := range pools {
		out[i] = strconv.Quote(p)
	}
	return strings.Join(out, " or ")
}

func (r *AnnouncedCondition) writeCondition(ctx context.Context, s *corev1.Service, c metav1.Condition) error {
	after, before := s.DeepCopy(), meta.FindStatusCondition(s.Status.Conditions, c.Type)
	if !meta.SetStatusCondition(&after.Status.Conditions, c) {
		return nil
	}
	base := client.MergeFromWithOptions(s, client.MergeFromWithOptimisticLock{})
	err := r.Client.Status().Patch(ctx, after, base)
	if err == nil && c.Status == metav1.ConditionFalse && (before == nil || before.Reason != c.Reason) {
		r.RecordEvent(s, corev1.EventTypeWarning, names.EventAnnounceFailed, truncateNote(c.Reason+": "+c.Message))
	}
	if apierrors.IsConflict(err) || client.IgnoreNotFound(err) == nil {
		return nil // the newer object brings its own request
	}
	return fmt.Errorf("writing the condition %s of Service %s/%s: %w", names.ConditionAnnounced, s.Namespace, s.Name, err)
}
