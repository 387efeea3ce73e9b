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
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/members"
	"github.com/gantry-lb/gantry/speaker/status"
)

// StatusWriter writes what this node announces: ServiceL2Status objects, its SpeakerStatus and
// events. It writes the latest status as fast as the API server accepts it.
type StatusWriter struct {
	options StatusWriterOptions

	latestStatus                 *latest.Value[agent.Status]
	serviceL2StatusChangedSignal *latest.Wake // appeared, changed or vanished
	recentWrites                 recentWrites

	// Run owns the fields below.
	heldAddressConflicts          status.Conflicts // about held addresses
	acquireConflicts              status.Conflicts // about addresses that this node wants to take
	moves                         status.Moves
	hasEarlierMoves               bool // moves has those of an earlier speaker of this node
	missingNodes                  missingNodes
	declaredDeadMembers           declaredDeadMembers
	servicesAwaitingProxySince    map[view.ObjectKey]time.Time
	speakerStatusWrittenAt        time.Time
	ownStatusCheckedAt            time.Time                 // for what another speaker wrote
	reportedRequestedHolderFaults map[view.ObjectKey]string // the last text for each Service
	lastReportedSocketDenial      string                    // the last message about raw sockets
	// about blocked gossip; empty if it works
	lastReportedGossipFault string
	writtenSpeakerStatus    *v1alpha1.SpeakerStatusStatus
}

// StatusWriterOptions are what a StatusWriter needs.
type StatusWriterOptions struct {
	Client client.Client
	// UncachedReader reads without a cache.
	UncachedReader client.Reader
	Cache          cache.Cache
	Events         events.EventRecorder
	Log            *slog.Logger
	// ServiceReference returns the Service for an event, or nil if there is no such Service.
	ServiceReference func(view.ObjectKey) *corev1.Service
	// SkippedLinks returns the links that are not usable, with the reasons.
	SkippedLinks func() []facts.SkippedLink
	// IsElectionLate reports whether the election of this node runs late.
	IsElectionLate func() bool
	// GossipPathFaults returns the members with which gossip is blocked; it may be nil.
	GossipPathFaults func() []members.PathFault
	// GossipAddressesWithOtherKey returns the addresses of speakers with another gossip key; it may
	// be nil. GossipKeyFile is the file with the key of this one; empty for the Secret.
	GossipAddressesWithOtherKey func() []netip.Addr
	GossipKeyFile               string
	// ConnectionFaults say why connections would be neither steered nor kept.
	ConnectionFaults ConnectionFaults
	// Now is the clock.
	Now func() time.Time
	// Metrics gets what this node announces.
	Metrics *AnnouncedMetrics
	// Self is this node, PodName is this speaker's Pod or empty, Namespace is that of the objects,
	// and Version is that of the speaker.
	Self, PodName, Namespace, Version string
	// WithoutBGPKinds means that the kinds of BGP are not read or written.
	WithoutBGPKinds bool
}

const (
	// writeRetryDelay is the delay after a failed write.
	writeRetryDelay = time.Second
	// statusRecheckWithoutEventInterval is how often Run checks what changes without an event:
	// skipped links and conflicts that are over.
	statusRecheckWithoutEventInterval = 5 * time.Second
	// concurrentWritesLimit bounds how many objects are written at once. A node that takes over
	// thousands of addresses would need minutes to write them one by one.
	concurrentWritesLimit = 16
	// concurrentWritesLimitWhenBusy is the limit while the election runs late: signs of life go
	// before statuses.
	concurrentWritesLimitWhenBusy = 1
	// serviceL2StatusCompareDelay is how long after a change of a ServiceL2Status Run compares all
	// of them with what this node holds. A takeover changes hundreds, and every speaker sees each
	// change.
	serviceL2StatusCompareDelay = 300 * time.Millisecond
	// slowProxyReportDelay is how long kube-proxy may take before its delay is reported.
	slowProxyReportDelay = 3 * time.Second
)

// NewStatusWriter returns a StatusWriter that writes nothing before Run.
func NewStatusWriter(o StatusWriterOptions) *StatusWriter {
	return &StatusWriter{
		options: o, declaredDeadMembers: declaredDeadMembers{}, latestStatus: latest.NewMergedValue(mergeEventsIntoNewerStatus), serviceL2StatusChangedSignal: latest.NewWake(),
	}
}

// mergeEventsIntoNewerStatus returns the newer Status with the events of both.
func mergeEventsIntoNewerStatus(older, newer agent.Status) agent.Status {
	events := older.NewElectionEvents
	for _, e := range newer.NewElectionEvents {
		events = agent.AppendEventBoundingConflicts(events, e)
	}
	newer.NewElectionEvents = events
	return newer
}

// watchServiceL2Statuses wakes the writer when a ServiceL2Status changes: another speaker may have
// removed one of ours by mistake.
func (w *StatusWriter) watchServiceL2Statuses(ctx context.Context) error {
	informer, err := w.options.Cache.GetInformer(ctx, &v1beta1.ServiceL2Status{})
	if err != nil {
		return fmt.Errorf("watching ServiceL2Statuses: %w", err)
	}
	observe := func(object any) {
		if o, ok := object.(*v1beta1.ServiceL2Status); ok {
			w.recentWrites.forgetWriteIfCacheShows(o)
		}
		w.serviceL2StatusChangedSignal.Signal()
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: observe, UpdateFunc: func(_, o any) { observe(o) },
		DeleteFunc: func(object any) {
			if name, err := toolscache.DeletionHandlingObjectToName(object); err == nil {
				w.recentWrites.forgetWrite(name.Name)
			}
			w.serviceL2StatusChangedSignal.Signal()
		},
	})
	return err
}

// ObserveStatus takes the agent's Status and returns at once. Events of a Status that was
// not written yet are kept.
func (w *StatusWriter) ObserveStatus(s agent.Status) {
	w.options.Metrics.observeStatus(s)
	w.latestStatus.Put(s)
}

// Run writes until ctx ends.
func (w *StatusWriter) Run(ctx context.Context) error {
	if err := w.watchServiceL2Statuses(ctx); err != nil {
		return err
	}
	var s agent.Status
	observed := false
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	look := time.NewTicker(statusRecheckWithoutEventInterval)
	defer look.Stop()
	ownCheck := time.NewTimer(time.Hour)
	ownCheck.Stop()
	isOwnCheckEarly := false
	silentCheck := time.NewTimer(time.Hour)
	silentCheck.Stop()
	comparison := time.NewTimer(time.Hour)
	comparison.Stop()
	isComparisonDue := false
	observeMembers := func() {
		living, nextCheckIn := w.declaredDeadMembers.livingMembers(s, w.options.Now())
		if w.observeMembersAndMarkDead(ctx, living) {
			ownCheck.Reset(earlyOwnStatusCheckDelay)
			isOwnCheckEarly = true
		}
		if nextCheckIn > 0 {
			silentCheck.Reset(nextCheckIn)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case s = <-w.latestStatus.C():
			observed = true
			observeMembers()
			w.recordServicesAwaitingProxy(s)
			w.reportElectionEvents(s)
			w.sendRawSocketDenialEvent(ctx, s)
			w.reportRequestedNodeFaults(s)
		case <-w.serviceL2StatusChangedSignal.C():
			if !isComparisonDue {
				isComparisonDue = true
				comparison.Reset(serviceL2StatusCompareDelay)
			}
			continue
		case <-comparison.C:
			isComparisonDue = false
		case <-silentCheck.C:
			observeMembers()
		case <-retry.C:
		case <-ownCheck.C:
			w.forgetWrittenStatusIfMarkedDead(ctx)
			if isOwnCheckEarly {
				ownCheck.Reset(ownStatusMarkedDeadCheckDelay - earlyOwnStatusCheckDelay)
				isOwnCheckEarly = false
			}
		case <-look.C:
			if !observed || !w.recheckWithoutEvent(ctx, s) {
				continue
			}
		}
		if !observed {
			continue
		}
		if err := w.writeStatus(ctx, w.collectStatusInputs(s)); err != nil && ctx.Err() == nil {
			w.options.Log.Warn("writing the status; trying again", "error", err)
			retry.Reset(writeRetryDelay)
		}
	}
}

// recheckWithoutEvent looks at what changes without an event. It reports whether something has to
// be written.
func (w *StatusWriter) recheckWithoutEvent(ctx context.Context, s agent.Status) bool {
	now := w.options.Now()
	changed := w.heldAddressConflicts.ForgetExpired(now)
	w.recordServicesAwaitingProxy(s)
	w.missingNodes.observeNodes(w.nodesWithSpeakerPod(ctx), now)
	w.retryPendingDeadMarks(ctx)
	w.correctStatusesOfDeadNodes(ctx)
	w.checkOwnStatusIfDue(ctx, now)
	changed = w.checkMissingNodes(ctx) || changed
	own := status.BuildSpeakerStatus(w.collectStatusInputs(s))
	return changed || w.hasStatusesOfMissingNodes(ctx) || w.isSpeakerStatusWriteDue(&own)
}

// recordServicesAwaitingProxy records since when Services wait for kube-proxy of this node.
func (w *StatusWriter) recordServicesAwaitingProxy(s agent.Status) {
	waiting := map[view.ObjectKey]time.Time{}
	record := func(k view.ObjectKey, reason names.Reason) {
		if reason != names.ReasonServiceProxyNotReady {
			return
		}
		since, known := w.servicesAwaitingProxySince[k]
		if !known {
			since = w.options.Now()
		}
		waiting[k] = since
	}
	for v := range s.Plan.Layer2Verdicts.All() {
		record(v.Service, v.Reason)
	}
	for v := range s.Plan.BGPVerdicts.All() {
		record(v.Service, v.Reason)
	}
	w.servicesAwaitingProxySince = waiting
}

func (w *StatusWriter) collectStatusInputs(s agent.Status) status.StatusInputs {
	in := status.StatusInputs{
		Self: w.options.Self, Plan: s.Plan, HeldBindings: s.HeldBindings, UsableLinks: s.UsableLinks, DownLinks: s.DownLinks, SkippedLinks: w.options.SkippedLinks(), SendFaultByLinkIndex: s.SendFaultByLinkIndex, RawSocketDenialText: s.RawSocketDenialText,
		HeldAddressConflicts: &w.heldAddressConflicts, AcquireConflicts: &w.acquireConflicts, Version: w.options.Version,
	}
	in.GossipFaults = w.collectGossipFaults()
	w.options.ConnectionFaults.addTo(&in)
	for k, since := range w.servicesAwaitingProxySince {
		if w.options.Now().Sub(since) >= slowProxyReportDelay {
			in.ServicesAwaitingProxy = append(in.ServicesAwaitingProxy, k)
		}
	}
	slices.SortFunc(in.ServicesAwaitingProxy, view.ObjectKey.Compare)
	return in
}

// sendRawSocketDenialEvent sends an event about the node, once for each change, if layer 2 does not
// work on it.
func (w *StatusWriter) sendRawSocketDenialEvent(ctx context.Context, s agent.Status) {
	if s.RawSocketDenialText != "" && s.RawSocketDenialText != w.lastReportedSocketDenial {
		node := &corev1.Node{}
		if err := w.options.Client.Get(ctx, client.ObjectKey{Name: w.options.Self}, node); err == nil {
			w.options.Events.Eventf(node, nil, corev1.EventTypeWarning, names.EventAnnounceFailed, "Announce",
				"%s: node %q announces nothing by layer 2: %s", names.ReasonRawSocketDenied, w.options.Self, s.RawSocketDenialText)
		}
	}
	w.lastReportedSocketDenial = s.RawSocketDenialText
}

// reportElectionEvents sends an event about each Service whose address this node took, or which a
// foreign host claims. It reports a continuing claim once.
func (w *StatusWriter) reportElectionEvents(s agent.Status) {
	held := make(map[netip.Addr]bool, len(s.HeldAddresses))
	for _, a := range s.HeldAddresses {
		held[a] = true
	}
	w.heldAddressConflicts.ForgetOtherAddresses(held)
	wanted := w.unheldAddressesNodeMayHold(s)
	w.acquireConflicts.ForgetOtherAddresses(wanted)
	if len(s.NewElectionEvents) == 0 {
		return
	}
	services := map[netip.Addr][]view.ObjectKey{}
	for v := range s.Plan.Layer2Verdicts.All() {
		for _, a := range v.Addresses {
			services[a] = append(services[a], v.Service)
		}
	}
	for _, n := range s.NewElectionEvents {
		w.moves.RecordMove(n, w.options.Self, services[n.Address], w.options.Now())
		if n.IsAnswerOfAnotherHost() && held[n.Address] && !w.heldAddressConflicts.RecordConflict(n.Address, n.AnsweringMAC, w.options.Now()) {
			continue
		}
		if n.Kind == elect.EventForeignHostAnswers && wanted[n.Address] && !w.acquireConflicts.RecordConflict(n.Address, n.AnsweringMAC, w.options.Now()) {
			continue
		}
		for _, k := range services[n.Address] {
			w.sendElectionEventOfService(k, n)
		}
	}
}

// unheldAddressesNodeMayHold returns the addresses that this node may hold and that no node holds.
// It returns none if there is no conflict that could be about one.
func (w *StatusWriter) unheldAddressesNodeMayHold(s agent.Status) map[netip.Addr]bool {
	isConflict := func(n elect.Event) bool { return n.Kind == elect.EventForeignHostAnswers }
	if len(w.acquireConflicts.All()) == 0 && !slices.ContainsFunc(s.NewElectionEvents, isConflict) {
		return nil
	}
	wanted := map[netip.Addr]bool{}
	for v := range s.Plan.Layer2Verdicts.All() {
		for _, a := range v.Addresses {
			wanted[a] = wanted[a] || v.IsSelfCandidate
		}
	}
	for _, h := range s.Holders {
		if h.IsAlive {
			delete(wanted, h.Address)
		}
	}
	for _, a := range s.HeldAddresses {
		delete(wanted, a)
	}
	return wanted
}

func (w *StatusWriter) sendElectionEventOfService(k view.ObjectKey, n elect.Event) {
	svc := w.options.ServiceReference(k)
	if svc == nil {
		return // the Service is gone
	}
	// The actions differ with the address and the reason, since the API shows only the first of
	// similar events. They do not differ with the rest of the text: a foreign host that changes its
	// Ethernet address in each frame causes no event each time.
	switch n.Kind {
	case elect.EventAddressTaken:
		w.options.Events.Eventf(svc, nil, corev1.EventTypeNormal, names.EventNodeAssigned, fmt.Sprintf("Announce %s %s", n.Address, n.Reason),
			"announcing from node %q with protocol %q: %s", w.options.Self, protocolLayer2, n.Text)
	case elect.EventForeignHostAnswers:
		w.options.Events.Eventf(svc, nil, corev1.EventTypeWarning, names.EventAnnounceFailed, n.Kind+" "+n.Address.String(), "%s: %s", names.ReasonForeignClaim, n.Text)
	case elect.EventAnswerWithoutClaim:
		w.options.Events.Eventf(svc, nil, corev1.EventTypeWarning, names.EventAnnounceFailed, n.Kind+" "+n.Address.String(), "%s: %s", names.ReasonStrayAnswer, n.Text)
	}
}

// writeStatus writes and removes objects as this node's held addresses are.
func (w *StatusWriter) writeStatus(ctx context.Context, in status.StatusInputs) error {
	want := status.BuildHeldServices(in)
	w.options.Metrics.memberCount.Store(int64(len(w.missingNodes.lastObservedMembers)))
	w.options.Metrics.unreachableCount.Store(int64(len(in.GossipFaults.UnreachableNodes)))
	w.options.Metrics.conflictCount.Store(int64(len(w.heldAddressConflicts.All()) + len(w.acquireConflicts.All())))
	have, err := w.listServiceL2Statuses(ctx)
	if err != nil {
		return err
	}
	have = w.recentWrites.overlayOnCachedStatuses(have, w.options.Now())
	write, remove := status.DiffServiceL2Statuses(w.options.Self, want, have)
	remove = append(remove, w.serviceL2StatusesToCleanUp(ctx, have)...)
	slices.Sort(remove)
	remove = slices.Compact(remove)
	var writes []func() error
	if len(write) > 0 {
		owner := w.PodOwnerReferences(ctx)
		for _, a := range write {
			writes = append(writes, func() error { return w.writeServiceL2Status(ctx, a, owner) })
		}
	}
	for _, name := range remove {
		writes = append(writes, func() error { return w.removeServiceL2Status(ctx, name) })
	}
	return errors.Join(w.performWrites(writes), w.writeSpeakerStatus(ctx, status.BuildSpeakerStatus(in)))
}

// performWrites performs writes, some at once, and one after the other while the node is busy. It
// leaves the rest to a newer Status that waits: that one may not need them any more.
func (w *StatusWriter) performWrites(writes []func() error) error {
	var errs []error
	for chunk := range slices.Chunk(writes, concurrentWritesLimit) {
		var g errgroup.Group // continues after an error: a refused object must not block others
		if g.SetLimit(concurrentWritesLimit); w.options.IsElectionLate != nil && w.options.IsElectionLate() {
			g.SetLimit(concurrentWritesLimitWhenBusy)
		}
		for _, write := range chunk {
			g.Go(write)
		}
		errs = append(errs, g.Wait())
		if len(w.latestStatus.C()) > 0 && errors.Join(errs...) == nil {
			break
		}
	}
	return errors.Join(errs...)
}

// removeServiceL2Status removes the object with the name.
func (w *StatusWriter) removeServiceL2Status(ctx context.Context, name string) error {
	w.recentWrites.recordWrite(recentWrite{
		serviceL2Status: status.ExistingServiceL2Status{ExistingObjectName: name}, isRemoval: true, writtenAt: w.options.Now(),
	})
	o := &v1beta1.ServiceL2Status{ObjectMeta: metav1.ObjectMeta{Namespace: w.options.Namespace, Name: name}}
	err := w.options.Client.Delete(ctx, o)
	if err != nil {
		w.recentWrites.forgetWrite(name)
	}
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("removing ServiceL2Status %q: %w", name, err)
	}
	return nil
}

// listServiceL2Statuses returns every existing entry.
func (w *StatusWriter) listServiceL2Statuses(ctx context.Context) ([]status.ExistingServiceL2Status, error) {
	var list v1beta1.ServiceL2StatusList
	if err := w.options.Client.List(ctx, &list, client.InNamespace(w.options.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("listing ServiceL2Statuses: %w", err)
	}
	out := make([]status.ExistingServiceL2Status, 0, len(list.Items))
	for i := range list.Items {
		o := &list.Items[i]
		// The labels exist before the status does, but they truncate long names.
		e := status.ServiceL2StatusKey{Service: view.ObjectKey{Namespace: o.Labels[names.LabelServiceNamespace], Name: o.Labels[names.LabelServiceName]}, Node: o.Labels[names.LabelServiceStatusNode]}
		if o.Status.ServiceName != "" {
			e = status.ServiceL2StatusKey{Service: view.ObjectKey{Namespace: o.Status.ServiceNamespace, Name: o.Status.ServiceName}, Node: o.Status.Node}
		}
		out = append(out, status.ExistingServiceL2Status{ServiceL2StatusKey: e, ExistingObjectName: o.Name, Status: o.Status})
	}
	return out, nil
}

// writeServiceL2Status writes an entry.
func (w *StatusWriter) writeServiceL2Status(ctx context.Context, a status.HeldService, owner []metav1.OwnerReference) error {
	o := &v1beta1.ServiceL2Status{
		TypeMeta: metav1.TypeMeta{APIVersion: v1beta1.GroupVersion.String(), Kind: "ServiceL2Status"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: w.options.Namespace, Name: a.ObjectName(), OwnerReferences: owner,
			Labels: map[string]string{
				names.LabelServiceStatusNode: a.Node, names.LabelServiceName: truncateLabelValue(a.Service.Name), names.LabelServiceNamespace: a.Service.Namespace,
			},
		},
		Status: a.ToServiceL2Status(),
	}
	w.recentWrites.recordWrite(recentWrite{writtenAt: w.options.Now(), serviceL2Status: status.ExistingServiceL2Status{
		ServiceL2StatusKey: a.ServiceL2StatusKey, ExistingObjectName: o.Name, Status: o.Status,
	}})
	err := applyObjectAndStatus(ctx, w.options.Client, o)
	if err != nil {
		w.recentWrites.forgetWrite(o.Name)
	}
	return err
}

// truncateLabelValue shortens a name to the limit of a label value, 63 characters. Service names
// are shorter in practice.
func truncateLabelValue(s string) string { return strings.TrimRight(s[:min(len(s), 63)], "-.") }

// PodOwnerReferences returns the speaker's Pod as the owner of objects, so that they vanish with
// it. It returns none if the speaker does not run in a Pod.
func (w *StatusWriter) PodOwnerReferences(ctx context.Context) []metav1.OwnerReference {
	if w.options.PodName == "" {
		return nil
	}
	var p corev1.Pod
	if err := w.options.Client.Get(ctx, client.ObjectKey{Namespace: w.options.Namespace, Name: w.options.PodName}, &p); err != nil {
		return nil
	}
	return []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID}}
}
