// Package announcedcondition writes the condition gantry.dev/Announced on Services, and repeats the
// Warning about a Service while its fault lasts. Package advertise has the rules that say why no
// node announces a Service.
package announcedcondition

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/controller/events"
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
	// RecordSeriesEvent creates an event about a Service, or counts it once more if it exists. kind
	// is Normal or Warning. It reports whether the API server has taken it.
	RecordSeriesEvent func(ctx context.Context, about *corev1.Service, kind, reason, text string) bool
}

// ConditionWriter writes the condition gantry.dev/Announced on Services. It is True while each
// address of the Service is announced: by a living node that answers for it, or over an established
// session. Its reason differs while a foreign host claims an address. It is Unknown while no
// speaker runs that could tell. Otherwise it is False with the most telling reason. A Service is
// written when the status or the Reason changes. A text that changes under one Reason is written
// too, but only 5 texts about faults and 5 others in a second over all Services. Use
// NewConditionWriter to create it.
type ConditionWriter struct {
	Options

	announcementStateReader announcementStateReader
	unannouncedFaults       *faultMemory // of Services that are not announced
	// faultsDespiteAnnouncement are Services that are announced, and that some clients do not
	// reach.
	faultsDespiteAnnouncement *faultMemory
	// missingAddressFaults are Services that get no address, refusedRequestFaults those that keep
	// an address and do not get the one that they ask for.
	missingAddressFaults, refusedRequestFaults *faultMemory
	// faultTextChanges and healthyTextChanges are Services whose text is to be written: the text of
	// a fault, and that of a Service without one.
	faultTextChanges, healthyTextChanges *faultMemory
	// dueEvents are the events about Services whose condition has just been written.
	dueEvents *dueEventMemory
	// firstReconcileAt is when the first Service was looked at; nil before.
	firstReconcileAt atomic.Pointer[time.Time]
	// unannouncedEventLimiter bounds the events about new Services that are not announced yet.
	unannouncedEventLimiter *rate.Limiter
}

const (
	// missingReportTimeout is how long a report may be missing before the condition becomes False:
	// a report that is replaced is missing for an instant.
	missingReportTimeout = 1200 * time.Millisecond
	// deadSpeakerTimeout is the same if the speakers of all nodes that announced the Service are
	// dead, and no other node can take over. A speaker that lives and was only cut off from the
	// gossip corrects its status meanwhile.
	deadSpeakerTimeout = 250 * time.Millisecond
	// maxUnannouncedRecheckInterval is how often the reason is determined again while no node
	// announces. It is shorter at first, while a manifest may still be in the process of being
	// applied.
	maxUnannouncedRecheckInterval = 30 * time.Second
	// startTimeout is within how long after its start a controller has looked at all Services. A
	// request that is found refused by then has mostly been refused for long.
	startTimeout = 30 * time.Second
)

// NewConditionWriter returns a ConditionWriter to register with a manager.
func NewConditionWriter(o Options) *ConditionWriter {
	// Reminders and texts have slots of their own, so that none of them delays another kind: the
	// text of a fault does not wait behind thousands of texts about lost sessions.
	var reminders, faultTexts, healthyTexts writeSlotPacer
	return &ConditionWriter{
		Options: o, unannouncedFaults: newFaultMemory(&reminders), faultsDespiteAnnouncement: newFaultMemory(&reminders), missingAddressFaults: newFaultMemory(&reminders), refusedRequestFaults: newFaultMemory(&reminders),
		faultTextChanges: newFaultMemory(&faultTexts), healthyTextChanges: newFaultMemory(&healthyTexts), dueEvents: newDueEventMemory(),
		unannouncedEventLimiter: rate.NewLimiter(unannouncedEventsPerSecond, unannouncedEventBurst),
		announcementStateReader: announcementStateReader{client: o.Client, namespace: o.Scope.Namespace, withoutBGPKinds: o.Scope.WithoutBGPKinds, readAllSpeakersAbsence: func(ctx context.Context) allSpeakersAbsence {
			return readAllSpeakersAbsence(ctx, o.Client, o.Scope.Namespace, o.Now())
		}},
	}
}

// Reconcile brings the condition of one Service in line with what is known.
func (r *ConditionWriter) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var s corev1.Service
	if err := r.Client.Get(ctx, req.NamespacedName, &s); err != nil {
		r.forgetService(req.NamespacedName)
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	now := r.Now()
	r.firstReconcileAt.CompareAndSwap(nil, &now)
	var events ctrl.Result
	if send := r.dueEvents.takeEvents(req.NamespacedName); send != nil {
		events = send(ctx)
	}
	result, err := r.reconcileService(ctx, &s)
	return limitRequeueDelay(result, events.RequeueAfter), err
}

// reconcileService brings the conditions of a Service in line with what is known.
func (r *ConditionWriter) reconcileService(ctx context.Context, s *corev1.Service) (ctrl.Result, error) {
	key, v := client.ObjectKeyFromObject(s), view.FromService(s)
	if !v.IsLoadBalancer || v.LoadBalancerClass != r.LoadBalancerClass {
		r.forgetService(key)
		return ctrl.Result{}, nil // the worker removes the condition together with the addresses
	}
	if len(v.AssignedAddresses) == 0 {
		r.unannouncedFaults.forgetFault(key)
		r.refusedRequestFaults.forgetFault(key)
		return r.remindOfMissingAddress(ctx, s), nil
	}
	r.missingAddressFaults.forgetFault(key)
	result, err := r.reconcileAnnouncement(ctx, s, &v)
	if err != nil {
		return ctrl.Result{}, err
	}
	return limitRequeueDelay(result, r.remindOfRefusedRequest(ctx, s)), nil
}

// reconcileAnnouncement brings the condition of a Service with addresses in line with what is
// known.
func (r *ConditionWriter) reconcileAnnouncement(ctx context.Context, s *corev1.Service, v *view.Service) (ctrl.Result, error) {
	key := client.ObjectKeyFromObject(s)
	config, _ := r.ConfigurationReader.LatestConfiguration()
	if config == nil {
		return ctrl.Result{}, errors.New("the configuration has not been read yet")
	}
	endpoints, reports, err := r.announcementStateReader.readEndpointsAndReports(ctx, config, v)
	if err != nil {
		return ctrl.Result{}, err
	}
	found := reports.summarizeAnnouncement(v.AssignedAddresses)
	c := metav1.Condition{Type: names.ConditionAnnounced, ObservedGeneration: s.Generation}
	silence := r.announcementStateReader.readAllSpeakersAbsence(ctx)
	if len(found.announcedAddresses) > 0 && silence.IsSet() {
		r.unannouncedFaults.recordFault(key, r.Now())
		c.Status, c.Reason, c.Message = metav1.ConditionUnknown, string(silence.Reason), silence.Text
		return r.writeAnnouncedCondition(ctx, s, c)
	}
	if len(found.unannouncedAddresses) == 0 {
		before := meta.FindStatusCondition(s.Status.Conditions, c.Type)
		recovers := before != nil && before.Reason == string(names.ReasonNoSession)
		reason, text := reports.describeAnnouncement(&found, !recovers)
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, string(reason), text
		if recovers {
			// the text about the sessions follows
			r.healthyTextChanges.recordWarning(key, r.Now())
			result, err := r.writeAnnouncedCondition(ctx, s, c)
			return limitRequeueDelay(result, minTextChangeInterval), err
		}
		result, err := r.writeAnnouncedCondition(ctx, s, c)
		return limitRequeueDelay(result, silence.lookAgainDelay), err
	}
	since := r.unannouncedFaults.recordFault(key, r.Now())
	age := r.Now().Sub(since)
	wait := missingReportTimeout - age
	if mayBeOver := meta.IsStatusConditionTrue(s.Status.Conditions, c.Type) && reports.areAllAnnouncingSpeakersDead(); wait > 0 && !mayBeOver {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	why, isByEveryNode, err := r.announcementStateReader.explainUnannounced(ctx, config, v, &found, endpoints, reports)
	if err != nil {
		return ctrl.Result{}, err
	}
	if isByEveryNode { // no other node can take over from the dead one
		wait = min(wait, deadSpeakerTimeout-age)
	}
	if wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	c.Status, c.Reason, c.Message = metav1.ConditionFalse, string(why.Reason), describeUnannouncedAddresses(&found, why)
	again, err := r.writeAnnouncedCondition(ctx, s, c)
	recheck := min(max(r.Now().Sub(since), missingReportTimeout), maxUnannouncedRecheckInterval)
	again = limitRequeueDelay(again, recheck)
	return again, err
}

// remindOfMissingAddress repeats the Warning about a Service that gets no address.
func (r *ConditionWriter) remindOfMissingAddress(ctx context.Context, s *corev1.Service) ctrl.Result {
	key := client.ObjectKeyFromObject(s)
	c := meta.FindStatusCondition(s.Status.Conditions, names.ConditionAddressAssigned)
	if c == nil || c.Status != metav1.ConditionFalse || c.Reason == string(names.ReasonProbing) {
		r.missingAddressFaults.forgetFault(key)
		return ctrl.Result{}
	}
	if isConditionFresh(c, r.Now()) { // the worker has sent the Warning
		r.missingAddressFaults.recordWarning(key, r.Now())
	}
	again := r.repeatWarningIfDue(ctx, s, r.missingAddressFaults, names.EventAllocationFailed, c)
	r.missingAddressFaults.recordReason(key, c.Reason)
	return ctrl.Result{RequeueAfter: again}
}

// repeatWarningIfDue repeats the Warning with the text of the condition when the next reminder is
// due. It returns when to look again.
func (r *ConditionWriter) repeatWarningIfDue(ctx context.Context, s *corev1.Service, m *faultMemory, event string, c *metav1.Condition) time.Duration {
	if wait := m.delayUntilReminder(client.ObjectKeyFromObject(s), r.Now()); wait > 0 {
		return wait
	}
	return r.sendWarningEvent(ctx, s, m, event, c)
}

// sendWarningEvent sends the Warning with the text of the condition. It returns when to look again.
func (r *ConditionWriter) sendWarningEvent(ctx context.Context, s *corev1.Service, m *faultMemory, event string, c *metav1.Condition) time.Duration {
	if !r.sendEventOfCondition(ctx, s, corev1.EventTypeWarning, event, c) {
		m.recordFailedWarning(client.ObjectKeyFromObject(s), r.Now())
		return failedWarningRetryInterval
	}
	m.recordWarning(client.ObjectKeyFromObject(s), r.Now())
	return faultWarningRepeatInterval
}

// remindOfRefusedRequest repeats the Warning about a Service that keeps its addresses, and does not
// get those that it asks for. It returns when to look again, or 0.
func (r *ConditionWriter) remindOfRefusedRequest(ctx context.Context, s *corev1.Service) time.Duration {
	key := client.ObjectKeyFromObject(s)
	c := meta.FindStatusCondition(s.Status.Conditions, names.ConditionAddressAssigned)
	if c == nil || !isRequestRefused(names.Reason(c.Reason)) {
		r.refusedRequestFaults.forgetFault(key)
		return 0
	}
	if !r.refusedRequestFaults.hasFault(key) && !r.isStarting() { // the worker has sent the Warning
		r.refusedRequestFaults.recordWarning(key, r.Now())
	}
	return r.repeatWarningIfDue(ctx, s, r.refusedRequestFaults, names.EventAllocationFailed, c)
}

// isStarting reports whether the controller has just begun to look at the Services.
func (r *ConditionWriter) isStarting() bool {
	first := r.firstReconcileAt.Load()
	return first != nil && r.Now().Sub(*first) < startTimeout
}

// isRequestRefused reports whether the Reason of a Service with addresses is a Warning.
func isRequestRefused(reason names.Reason) bool {
	switch reason {
	// with the last two, another address is under way
	case names.ReasonAssigned, names.ReasonProbing, names.ReasonAddressRetired:
		return false
	}
	return true
}

// forgetService removes a Service that is not served any more.
func (r *ConditionWriter) forgetService(key client.ObjectKey) {
	for _, m := range []*faultMemory{r.unannouncedFaults, r.faultsDespiteAnnouncement, r.missingAddressFaults, r.refusedRequestFaults, r.faultTextChanges, r.healthyTextChanges} {
		m.forgetFault(key)
	}
	r.dueEvents.takeEvents(key)
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

// writeAnnouncedCondition writes the condition if it has to change, and sends the events. It
// returns when to look again.
func (r *ConditionWriter) writeAnnouncedCondition(ctx context.Context, s *corev1.Service, c metav1.Condition) (ctrl.Result, error) {
	key, now := client.ObjectKeyFromObject(s), r.Now()
	before := meta.FindStatusCondition(s.Status.Conditions, c.Type)
	sameWord := before != nil && before.Status == c.Status && before.Reason == c.Reason
	texts, otherTexts := r.faultTextChanges, r.healthyTextChanges
	if c.Reason == string(names.ReasonAnnounced) {
		texts, otherTexts = otherTexts, texts
	}
	otherTexts.cancelTextChange(key)
	if sameWord && before.Message != c.Message {
		if wait := texts.delayOrRecordTextChange(key, now); wait > 0 {
			return ctrl.Result{RequeueAfter: wait}, nil
		}
	} else {
		texts.cancelTextChange(key)
	}
	after := s.DeepCopy()
	isChanged := meta.SetStatusCondition(&after.Status.Conditions, c)
	if isChanged {
		base := client.MergeFromWithOptions(s, client.MergeFromWithOptimisticLock{})
		err := r.Client.Status().Patch(ctx, after, base)
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
			return ctrl.Result{}, nil // the newer object causes its own request
		}
		if err != nil {
			return ctrl.Result{}, fmt.Errorf("writing the condition %s of Service %s: %w", c.Type, key, err)
		}
	}
	written := meta.FindStatusCondition(after.Status.Conditions, c.Type)
	if c.Status == metav1.ConditionTrue {
		r.unannouncedFaults.forgetFault(key)
	} else {
		r.faultsDespiteAnnouncement.forgetFault(key)
	}
	if !isChanged {
		return r.sendEventsOfCondition(ctx, s, before, written), nil
	}
	// The conditions of other Services that wait come first.
	r.dueEvents.addEvents(key, func(ctx context.Context) ctrl.Result { return r.sendEventsOfCondition(ctx, s, before, written) })
	return ctrl.Result{RequeueAfter: dueEventDelay}, nil
}

// sendEventsOfCondition sends the events about a condition that is written, given the condition
// before. It returns when to look again.
func (r *ConditionWriter) sendEventsOfCondition(ctx context.Context, s *corev1.Service, before, written *metav1.Condition) ctrl.Result {
	if written.Status == metav1.ConditionTrue {
		if before != nil && before.Status != metav1.ConditionTrue {
			r.sendRecoveryEvent(ctx, s, before, written)
		}
		return r.warnOrRemindDespiteAnnouncement(ctx, s, before, written)
	}
	return r.warnOrRemindOfUnannounced(ctx, s, before, written)
}

// limitRequeueDelay makes the result look at the Service again after d or earlier. A d of 0 changes
// nothing.
func limitRequeueDelay(result ctrl.Result, d time.Duration) ctrl.Result {
	if d > 0 && (result.RequeueAfter == 0 || d < result.RequeueAfter) {
		result.RequeueAfter = d
	}
	return result
}

// sendRecoveryEvent sends the event that the Service is announced again.
func (r *ConditionWriter) sendRecoveryEvent(ctx context.Context, s *corev1.Service, before, after *metav1.Condition) {
	lasted := r.Now().Sub(before.LastTransitionTime.Time).Round(time.Second)
	text := fmt.Sprintf("%s: %s; for %s it was not (%s)", after.Reason, after.Message, lasted, before.Reason)
	r.RecordSeriesEvent(ctx, s, corev1.EventTypeNormal, names.EventAnnounced, events.TruncateNote(text))
}

// warnOrRemindDespiteAnnouncement sends the Warnings about a Service that is announced, and that
// some clients do not reach: the Reason is not Announced. It sends an event when that is over.
func (r *ConditionWriter) warnOrRemindDespiteAnnouncement(ctx context.Context, s *corev1.Service, before, after *metav1.Condition) ctrl.Result {
	key := client.ObjectKeyFromObject(s)
	if after.Reason == string(names.ReasonAnnounced) {
		if before != nil && before.Status == metav1.ConditionTrue && before.Reason != after.Reason {
			text := fmt.Sprintf("%s: %s; %s is over", after.Reason, after.Message, before.Reason)
			r.RecordSeriesEvent(ctx, s, corev1.EventTypeNormal, names.EventAnnounced, events.TruncateNote(text))
		}
		r.faultsDespiteAnnouncement.forgetFault(key)
		return ctrl.Result{}
	}
	isNew := before == nil || before.Reason != after.Reason
	switch {
	case isNew && after.Reason == string(names.ReasonForeignClaim):
		// The speaker that hears the foreign host sends the first Warning, with what it heard.
		r.faultsDespiteAnnouncement.recordWarning(key, r.Now())
		return ctrl.Result{RequeueAfter: faultWarningRepeatInterval}
	case isNew:
		return ctrl.Result{RequeueAfter: r.sendWarningEvent(ctx, s, r.faultsDespiteAnnouncement, names.EventAnnounceFailed, after)}
	}
	return ctrl.Result{RequeueAfter: r.repeatWarningIfDue(ctx, s, r.faultsDespiteAnnouncement, names.EventAnnounceFailed, after)}
}

// warnOrRemindOfUnannounced sends the Warning about a fault: at once if it is new or says something
// new, otherwise when the next reminder is due.
func (r *ConditionWriter) warnOrRemindOfUnannounced(ctx context.Context, s *corev1.Service, before, after *metav1.Condition) ctrl.Result {
	key, now := client.ObjectKeyFromObject(s), r.Now()
	r.unannouncedFaults.recordReason(key, after.Reason)
	isNew := before == nil || before.Status != after.Status || before.Reason != after.Reason || before.Message != after.Message
	if !isNew {
		wait := r.unannouncedFaults.delayUntilReminder(key, now)
		// A condition that was written with the first address has no Warning yet.
		isBorn := isConditionFresh(after, now) && !r.unannouncedFaults.hasReportedFault(key)
		if wait > 0 && !isBorn {
			return ctrl.Result{RequeueAfter: wait}
		}
	}
	if kind := eventKindForUnannounced(before, names.Reason(after.Reason)); kind == corev1.EventTypeNormal && (isNew || isConditionFresh(after, now)) {
		r.unannouncedFaults.recordNormalEvent(key, now)
		if r.unannouncedEventLimiter.AllowN(now, 1) {
			r.sendEventOfCondition(ctx, s, kind, names.EventAnnounceFailed, after)
		}
		return ctrl.Result{RequeueAfter: freshFaultAge}
	}
	return ctrl.Result{RequeueAfter: r.sendWarningEvent(ctx, s, r.unannouncedFaults, names.EventAnnounceFailed, after)}
}

// isConditionFresh reports whether the condition has just got its status.
func isConditionFresh(c *metav1.Condition, now time.Time) bool {
	return now.Sub(c.LastTransitionTime.Time) < freshFaultAge
}

// sendEventOfCondition sends an event with the Reason and the text of a condition. It reports
// whether the API server has taken it.
func (r *ConditionWriter) sendEventOfCondition(ctx context.Context, s *corev1.Service, kind, reason string, c *metav1.Condition) bool {
	return r.RecordSeriesEvent(ctx, s, kind, reason, events.TruncateNote(c.Reason+": "+c.Message))
}
