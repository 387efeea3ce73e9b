package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/plan"
	"github.com/gantry-lb/gantry/speaker/status"
)

// SessionSource has the states of the BGP sessions; *bgp.Engine is one.
type SessionSource interface {
	SessionStatuses() []bgp.PeerSessionStatus
	StatusChanged() <-chan struct{}
}

// BGPStatusWriter writes what this node announces to routers (ServiceBGPStatus) and the states of
// its sessions (BGPSession). It writes the latest state as fast as the API server accepts it.
type BGPStatusWriter struct {
	options BGPStatusWriterOptions

	latestPlan *latest.Value[plan.Plan]
	// ownObjectChangedSignal wakes the writer when another speaker wrote that this one is dead, or
	// when somebody deleted an object of this node.
	ownObjectChangedSignal *latest.Wake

	// Run owns the fields below.
	isServiceLimitLogged bool // that the limit is exceeded
	sessionFlapDamper    status.SessionFlapDamper
	// sessionWrittenAtByObjectName has when each BGPSession was last written.
	sessionWrittenAtByObjectName map[string]time.Time
}

// BGPStatusWriterOptions are what a BGPStatusWriter needs.
type BGPStatusWriterOptions struct {
	Client client.Client
	// Cache may be nil. Without it the writer does not notice what others write.
	Cache    cache.Cache
	Events   events.EventRecorder
	Sessions SessionSource
	Log      *slog.Logger
	Now      func() time.Time
	// Metrics gets the sessions that do not count yet; it may be nil.
	Metrics *AnnouncedMetrics
	// ServiceReference returns the Service for an event, or nil if there is no such Service.
	ServiceReference func(view.ObjectKey) *corev1.Service
	// Self is this node, Namespace is that of the objects. PodOwnerReferences returns the owner
	// with which the objects vanish.
	Self, Namespace    string
	PodOwnerReferences func(ctx context.Context) []metav1.OwnerReference
	// ServiceBGPStatusLimit is the number of Services up to which a node writes ServiceBGPStatus
	// objects. Above it the node writes none.
	ServiceBGPStatusLimit int
}

// sessionChangeCoalesceDelay gathers changes that come together, such as the steps to an
// established session.
const sessionChangeCoalesceDelay = 200 * time.Millisecond

// NewBGPStatusWriter returns a BGPStatusWriter that writes nothing before Run.
func NewBGPStatusWriter(o BGPStatusWriterOptions) *BGPStatusWriter {
	return &BGPStatusWriter{options: o, latestPlan: latest.NewValue[plan.Plan](), ownObjectChangedSignal: latest.NewWake(), sessionWrittenAtByObjectName: map[string]time.Time{}}
}

// ObserveStatus takes the agent's Status and returns at once.
func (w *BGPStatusWriter) ObserveStatus(s agent.Status) { w.latestPlan.Put(s.Plan) }

// watchOwnObjects wakes the writer when another speaker wrote into a BGPSession of this node that
// this speaker is dead, and when an object of this node is deleted. It does not wait for the API
// server.
func (w *BGPStatusWriter) watchOwnObjects(ctx context.Context) error {
	if w.options.Cache == nil {
		return nil
	}
	deleted := func(object any) {
		if o, ok := unwrapDeletedObject(object).(client.Object); ok && o.GetLabels()[names.LabelServiceStatusNode] == w.options.Self {
			w.ownObjectChangedSignal.Signal()
		}
	}
	updated := func(_, object any) {
		s, ok := object.(*v1alpha1.BGPSession)
		if ok && s.Status.Node == w.options.Self && meta.IsStatusConditionPresentAndEqual(s.Status.Conditions, names.ConditionEstablished, metav1.ConditionUnknown) {
			w.ownObjectChangedSignal.Signal()
		}
	}
	for _, kind := range []client.Object{&v1alpha1.BGPSession{}, &v1beta1.ServiceBGPStatus{}} {
		informer, err := w.options.Cache.GetInformer(ctx, kind, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watching %T: %w", kind, err)
		}
		if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{UpdateFunc: updated, DeleteFunc: deleted}); err != nil {
			return fmt.Errorf("watching %T: %w", kind, err)
		}
	}
	return nil
}

// Run writes until ctx ends.
func (w *BGPStatusWriter) Run(ctx context.Context) error {
	if err := w.watchOwnObjects(ctx); err != nil {
		return err
	}
	var p plan.Plan
	var known bool // a Plan came: without one, nothing may be removed
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	var isWriteDue bool // the timer is set for a change: a further one does not put it off
	scheduleWrite := func() {
		if !isWriteDue {
			isWriteDue = true
			timer.Reset(sessionChangeCoalesceDelay)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case p = <-w.latestPlan.C():
			known = true
			scheduleWrite()
		case <-w.options.Sessions.StatusChanged():
			scheduleWrite()
		case <-w.ownObjectChangedSignal.C():
			scheduleWrite()
		case <-timer.C:
			isWriteDue = false
			if !known {
				continue
			}
			lookAgain, err := w.writeStatus(ctx, p)
			if err != nil && ctx.Err() == nil {
				w.options.Log.Warn("writing the BGP status; trying again", "error", err)
				timer.Reset(writeRetryDelay)
			} else if lookAgain > 0 {
				timer.Reset(lookAgain)
			}
		}
	}
}

// writeStatus writes the sessions first: there are few of them, and they say what routers have. An
// object that the API server refuses does not keep it from the others. It returns when to look
// again although nothing changed, or 0.
func (w *BGPStatusWriter) writeStatus(ctx context.Context, p plan.Plan) (lookAgain time.Duration, err error) {
	sessions := w.options.Sessions.SessionStatuses()
	heldBack, lookAgain := w.explainFlapHeldBackSessions(sessions)
	carried := carriedRoutesOfEstablishedSessions(sessions)
	for peer := range heldBack {
		delete(carried, peer)
	}
	w.options.Metrics.observeHeldBackSessions(heldBack)
	lookAgainForState, err := w.writeBGPSessions(ctx, sessions, heldBack)
	return shorterNonZeroDelay(lookAgain, lookAgainForState), errors.Join(err, w.writeServiceBGPStatuses(ctx, p, carried))
}

// shorterNonZeroDelay returns the shorter one of two delays, of which 0 stands for none.
func shorterNonZeroDelay(x, y time.Duration) time.Duration {
	if x == 0 || y > 0 && y < x {
		return y
	}
	return x
}

// explainFlapHeldBackSessions returns why established sessions do not count yet, by peer, and
// when to look again.
func (w *BGPStatusWriter) explainFlapHeldBackSessions(sessions []bgp.PeerSessionStatus) (heldBack map[string]names.Explanation, lookAgain time.Duration) {
	heldBack = map[string]names.Explanation{}
	var peers []string
	for i := range sessions {
		s := &sessions[i]
		peers = append(peers, s.PeerName)
		observed := status.ObservedSession{Peer: s.PeerName, EstablishedCount: s.EstablishedCount, ConfiguredAt: s.SessionConfigChangedAt}
		if s.State == bgp.Established {
			observed.EstablishedSince = s.UpOrDownSince
		}
		why, wait := w.sessionFlapDamper.ObserveSession(observed, w.options.Now())
		if lookAgain = shorterNonZeroDelay(lookAgain, wait); why.IsSet() {
			heldBack[s.PeerName] = why
		}
	}
	w.sessionFlapDamper.ForgetOtherPeers(peers)
	return heldBack, lookAgain
}

// carriedRoutesOfEstablishedSessions returns what the established sessions carry.
func carriedRoutesOfEstablishedSessions(sessions []bgp.PeerSessionStatus) map[string]status.CarriedRoutes {
	out := make(map[string]status.CarriedRoutes, len(sessions))
	for i := range sessions {
		s := &sessions[i]
		if f := s.AnnounceableFamilies; len(f) > 0 {
			out[s.PeerName] = status.CarriedRoutes{
				CarriesIPv4: slices.Contains(f, message.FamilyIPv4), CarriesIPv6: slices.Contains(f, message.FamilyIPv6), DrainingPrefixes: s.DrainingPrefixes, DrainedPrefixes: s.DrainedPrefixes,
			}
		}
	}
	return out
}

// writeServiceBGPStatuses writes and removes ServiceBGPStatus objects of this node, so that they
// say which routers have the Services of the Plan.
func (w *BGPStatusWriter) writeServiceBGPStatuses(ctx context.Context, p plan.Plan, carriedByPeer map[string]status.CarriedRoutes) error {
	want, all := status.ListBGPAnnouncements(p, carriedByPeer, w.options.ServiceBGPStatusLimit)
	if all > w.options.ServiceBGPStatusLimit {
		if !w.isServiceLimitLogged && w.options.ServiceBGPStatusLimit > 0 {
			w.options.Log.Warn("this node announces too many Services to write ServiceBGPStatus objects; see --service-bgp-status", "services", all, "limit", w.options.ServiceBGPStatusLimit)
		}
		w.isServiceLimitLogged = true
	} else {
		w.isServiceLimitLogged = false
	}
	var list v1beta1.ServiceBGPStatusList
	if err := w.options.Client.List(ctx, &list, client.InNamespace(w.options.Namespace), client.MatchingLabels{names.LabelServiceStatusNode: w.options.Self}); err != nil {
		return fmt.Errorf("listing ServiceBGPStatuses: %w", err)
	}
	var have []status.BGPAnnouncement
	var obsolete []string // of an earlier version, with another name
	for i := range list.Items {
		s := &list.Items[i].Status
		k := view.ObjectKey{Namespace: s.ServiceNamespace, Name: s.ServiceName}
		if list.Items[i].Name != status.ServiceBGPStatusName(w.options.Self, k) {
			obsolete = append(obsolete, list.Items[i].Name)
			continue
		}
		a := status.BGPAnnouncement{Service: k, Peers: s.Peers}
		if s.Gantry != nil {
			a.DrainingPeers = s.Gantry.DrainingPeers
		}
		have = append(have, a)
	}
	write, remove := status.DiffBGPAnnouncements(want, have)
	for _, k := range remove {
		obsolete = append(obsolete, status.ServiceBGPStatusName(w.options.Self, k))
	}
	var g errgroup.Group // continues after an error: a refused object must not block others
	g.SetLimit(concurrentWritesLimit)
	for _, name := range obsolete {
		g.Go(func() error {
			o := &v1beta1.ServiceBGPStatus{}
			o.Namespace, o.Name = w.options.Namespace, name
			if err := w.options.Client.Delete(ctx, o); client.IgnoreNotFound(err) != nil {
				return fmt.Errorf("removing ServiceBGPStatus %q: %w", name, err)
			}
			return nil
		})
	}
	for _, a := range write {
		created := !slices.ContainsFunc(have, func(h status.BGPAnnouncement) bool { return h.Service == a.Service })
		g.Go(func() error {
			err := w.writeServiceBGPStatus(ctx, a)
			if err == nil && created {
				w.sendAnnouncedEvent(a)
			}
			return err
		})
	}
	return g.Wait()
}

func (w *BGPStatusWriter) writeServiceBGPStatus(ctx context.Context, a status.BGPAnnouncement) error {
	o := &v1beta1.ServiceBGPStatus{}
	o.Namespace, o.Name = w.options.Namespace, status.ServiceBGPStatusName(w.options.Self, a.Service)
	o.Labels = map[string]string{
		names.LabelServiceStatusNode: w.options.Self, names.LabelServiceName: truncateLabelValue(a.Service.Name), names.LabelServiceNamespace: a.Service.Namespace,
	}
	o.OwnerReferences = w.options.PodOwnerReferences(ctx)
	if err := w.options.Client.Create(ctx, o); client.IgnoreAlreadyExists(err) != nil {
		return fmt.Errorf("creating ServiceBGPStatus %q: %w", o.Name, err)
	}
	// A created object has no status, one that exists may have a list that is to be removed.
	base := o.DeepCopy()
	base.Status.Gantry = &v1beta1.ServiceBGPStatusGantry{}
	o.Status = v1beta1.ServiceBGPStatusStatus{Node: w.options.Self, ServiceName: a.Service.Name, ServiceNamespace: a.Service.Namespace, Peers: a.Peers}
	if len(a.DrainingPeers) > 0 {
		o.Status.Gantry = &v1beta1.ServiceBGPStatusGantry{DrainingPeers: a.DrainingPeers}
	}
	if err := w.options.Client.Status().Patch(ctx, o, client.MergeFrom(base)); err != nil {
		return fmt.Errorf("writing ServiceBGPStatus %q: %w", o.Name, err)
	}
	return nil
}

// sendAnnouncedEvent sends the event that existing tools look for.
func (w *BGPStatusWriter) sendAnnouncedEvent(a status.BGPAnnouncement) {
	svc := w.options.ServiceReference(a.Service)
	if svc == nil {
		return // the Service is gone
	}
	w.options.Events.Eventf(svc, nil, corev1.EventTypeNormal, names.EventNodeAssigned, "Announce bgp",
		"announcing from node %q with protocol %q", w.options.Self, "bgp")
}

// writeBGPSessions makes the BGPSession objects of this node agree with its sessions. heldBack has
// the sessions that flap and do not count yet. A change of state is written only after it has
// lasted for some time: lookAgain is when that time is over for the next session, or 0.
func (w *BGPStatusWriter) writeBGPSessions(ctx context.Context, sessions []bgp.PeerSessionStatus, heldBack map[string]names.Explanation) (lookAgain time.Duration, err error) {
	var list v1alpha1.BGPSessionList
	if err := w.options.Client.List(ctx, &list, client.InNamespace(w.options.Namespace), client.MatchingLabels{names.LabelServiceStatusNode: w.options.Self}); err != nil {
		return 0, fmt.Errorf("listing BGPSessions: %w", err)
	}
	stale := map[string]*v1alpha1.BGPSession{}
	for i := range list.Items {
		stale[list.Items[i].Name] = &list.Items[i]
	}
	var errs []error
	for _, s := range sessions {
		name := status.BGPSessionName(w.options.Self, s.PeerName)
		o := stale[name]
		delete(stale, name)
		wait, err := w.writeBGPSession(ctx, o, s, heldBack[s.PeerName])
		errs = append(errs, err)
		lookAgain = shorterNonZeroDelay(lookAgain, wait)
	}
	for _, o := range stale {
		delete(w.sessionWrittenAtByObjectName, o.Name)
		if err := w.options.Client.Delete(ctx, o); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("removing BGPSession %q: %w", o.Name, err))
		}
	}
	return lookAgain, errors.Join(errs...)
}

// writeBGPSession writes one session. o is the object as it is; nil if there is none.
func (w *BGPStatusWriter) writeBGPSession(ctx context.Context, o *v1alpha1.BGPSession, s bgp.PeerSessionStatus, heldBack names.Explanation) (lookAgain time.Duration, err error) {
	name := status.BGPSessionName(w.options.Self, s.PeerName)
	if o == nil {
		o = &v1alpha1.BGPSession{}
		o.Namespace, o.Name = w.options.Namespace, name
		o.Labels = map[string]string{names.LabelServiceStatusNode: w.options.Self, names.LabelBGPPeerOfSession: truncateLabelValue(s.PeerName)}
		o.OwnerReferences = w.options.PodOwnerReferences(ctx)
		if err := w.options.Client.Create(ctx, o); client.IgnoreAlreadyExists(err) != nil {
			return 0, fmt.Errorf("creating BGPSession %q: %w", name, err)
		}
	}
	o = o.DeepCopy()
	base := client.MergeFrom(o.DeepCopy())
	since := metav1.NewTime(s.UpOrDownSince.Truncate(time.Second))
	shown, lookAgain := status.ShownSessionState(o.Status.State, string(s.State), s.StateSince, w.options.Now())
	want := v1alpha1.BGPSessionStatus{
		Node: w.options.Self, Peer: s.PeerName, State: shown, Since: &since,
		Prefixes: int32(s.AnnouncedRouteCount), BFD: s.BFDState, LastError: s.LastError.Text, Conditions: slices.Clone(o.Status.Conditions),
	}
	if s.RouterAddress.IsValid() {
		want.Address = s.RouterAddress.String()
	}
	if s.LastError.Text != "" && !s.LastErrorTime.IsZero() {
		at := metav1.NewTime(s.LastErrorTime.Truncate(time.Second))
		want.LastErrorTime, want.LastErrorIsOver = &at, s.State == bgp.Established
	}
	state := status.BGPSessionState{
		Established: s.State == bgp.Established, NotConnectingReason: s.NotConnectingReason, LastError: s.LastError, WithheldRoutesExplanation: s.WithheldRouteReason, FlapHoldBackExplanation: heldBack,
	}
	meta.SetStatusCondition(&want.Conditions, status.BuildEstablishedCondition(state))
	if c, ok := status.BuildRoutesAnnouncedCondition(state); ok {
		meta.SetStatusCondition(&want.Conditions, c)
	} else {
		meta.RemoveStatusCondition(&want.Conditions, names.ConditionRoutesAnnounced)
	}
	if s.State == bgp.Established {
		for _, f := range s.AnnounceableFamilies {
			want.Families = append(want.Families, f.String())
		}
	}
	if c, ok := status.BuildPathWatchedCondition(status.BFDPathState{Router: s.RouterAddress.Addr(), State: s.BFDState, Fault: s.BFDFault}); ok {
		meta.SetStatusCondition(&want.Conditions, c)
	} else {
		meta.RemoveStatusCondition(&want.Conditions, names.ConditionBFDWatchesPath)
	}
	if apiequality.Semantic.DeepEqual(o.Status, want) {
		return lookAgain, nil
	}
	if wait := minCountChangeInterval - w.options.Now().Sub(w.sessionWrittenAtByObjectName[name]); wait > 0 && hasOnlyRouteCountChanged(o.Status, want) {
		return shorterNonZeroDelay(lookAgain, wait), nil
	}
	o.Status = want
	if err := w.options.Client.Status().Patch(ctx, o, base); err != nil {
		return 0, fmt.Errorf("writing BGPSession %q: %w", name, err)
	}
	w.sessionWrittenAtByObjectName[name] = w.options.Now()
	return lookAgain, nil
}

// hasOnlyRouteCountChanged reports whether two statuses of a session differ in how many routes the
// router has, and in nothing else. To have a route or none is another difference.
func hasOnlyRouteCountChanged(before, after v1alpha1.BGPSessionStatus) bool {
	before.Prefixes, after.Prefixes = min(before.Prefixes, 1), min(after.Prefixes, 1)
	return apiequality.Semantic.DeepEqual(before, after)
}
