package assign

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/controller/pendingwrites"
	"github.com/gantry-lb/gantry/internal/view"
)

// decideService decides about one Service. While a write of it is in flight, it is decided when the
// write has ended.
func (r *ServiceWorker) decideService(ctx context.Context, l serviceToDecide) {
	rec := r.recordByService[l.ObjectKey]
	if rec != nil && rec.requestInFlight {
		rec.changedDuringRequest = true
		return
	}
	s, err := r.API.ReadCachedService(ctx, l.ObjectKey)
	if err != nil {
		r.logServiceFailure(l.ObjectKey, err, maxRetryDelay)
		r.workQueue.addChangedServiceAfter(l.ObjectKey, maxRetryDelay)
		return
	}
	switch {
	case s == nil && rec == nil:
		return
	case s == nil && l.deletedUID == rec.uid:
		r.releaseService(l.ObjectKey, "the Service was deleted")
		return
	case s == nil:
		r.startGoneOrUnservedCheck(l.ObjectKey, rec)
		return
	case rec != nil && pendingwrites.ParseResourceVersion(s.ResourceVersion) < rec.newestResourceVersion:
		// The cache is behind; its next event queues the Service again. Or the AddressLedger is
		// from a backup, with a resourceVersion that this API server has never issued: ask the API
		// server.
		if r.ledgerWriter.pendingWrites.HasPendingOnLaterResourceVersion(l.ObjectKey, s.ResourceVersion) {
			r.startGoneOrUnservedCheck(l.ObjectKey, rec)
		}
		return
	case rec != nil && rec.uid != s.UID:
		r.releaseService(l.ObjectKey, "the Service was deleted and created again with the same name")
		rec = nil
	}
	if rec != nil && rec.refusedResourceVersion == s.ResourceVersion && r.Now().Before(rec.retryAt) {
		return // a timer runs
	}
	r.ledgerWriter.pendingWrites.ClosePendingWithOlderBase(l.ObjectKey, s.ResourceVersion)
	v := view.FromService(s)
	if !r.isServiceOurs(&v) {
		r.clearStatusOfUnservedService(s, &v)
		return
	}
	if rec == nil {
		rec = &serviceRecord{uid: s.UID, newestResourceVersion: pendingwrites.ParseResourceVersion(s.ResourceVersion), waitingSince: firstAddressWaitStart(s, r.Now()), edits: r.editTurns.editsOfNewRecord(s.UID)}
		r.recordByService[l.ObjectKey] = rec
	}
	if len(v.AssignedAddresses) > 0 { // by a write with an unknown result, for example
		rec.waitingSince = time.Time{}
	}
	rec.wantsToShare = v.SharingKey != ""
	if !r.adoptStatusOfOtherWriterIntoLedger(&v, rec, s.ResourceVersion) {
		r.startSharingCheck(&v)
		return
	}
	r.carryOutDecision(s, &v, r.decideConsideringRetirement(&v))
}

// startGoneOrUnservedCheck asks the API server itself about a Service before its addresses are
// released.
func (r *ServiceWorker) startGoneOrUnservedCheck(k view.ObjectKey, rec *serviceRecord) {
	rec.requestInFlight = true
	r.apiTaskQueue.enqueueTask(&goneOrUnservedCheckTask{service: k, ledgerBuildNumber: r.ledgerBuildNumber})
}

// handleGoneOrUnservedAnswer handles the answer. An answer from before the Ledger was rebuilt is
// ignored.
func (r *ServiceWorker) handleGoneOrUnservedAnswer(c *goneOrUnservedCheckTask, now *corev1.Service, err error) {
	rec := r.endRequestOfService(c.service)
	switch {
	case err != nil:
		rec.consecutiveFailures++
		r.logServiceFailure(c.service, err, retryDelay(rec.consecutiveFailures))
		r.workQueue.addChangedServiceAfter(c.service, retryDelay(rec.consecutiveFailures))
		return
	case c.ledgerBuildNumber != r.ledgerBuildNumber:
		r.workQueue.addChangedServices(c.service)
		return
	case now == nil || now.UID != rec.uid:
		r.releaseService(c.service, "the Service was deleted")
		return
	}
	rec.consecutiveFailures = 0
	rec.newestResourceVersion = max(rec.newestResourceVersion, pendingwrites.ParseResourceVersion(now.ResourceVersion))
	if r.ledgerWriter.pendingWrites.HasPendingOnLaterResourceVersion(c.service, now.ResourceVersion) {
		r.Log.Warn("the AddressLedger has a resourceVersion that the Service never had; is it from a backup? The entry is ignored", "ledger", r.ledgerLogName(), "service", c.service.String())
		r.ledgerWriter.pendingWrites.ClosePendingWithBase(c.service, "")
		rec.newestResourceVersion = pendingwrites.ParseResourceVersion(now.ResourceVersion)
		r.workQueue.addChangedServices(c.service)
	}
	v := view.FromService(now)
	switch {
	case r.isServiceOurs(&v) || hasOurStatusOrAnnotations(now):
	case len(r.ledgerWriter.pendingWrites.PendingAddressesOfService(c.service, now.ResourceVersion)) > 0:
		r.workQueue.addChangedServiceAfter(c.service, firstRetryDelay) // a write may still arrive
	default:
		r.releaseService(c.service, "the Service is no longer a LoadBalancer of this class")
	}
}

// endRequestOfService ends a write in flight. If the Service has changed meanwhile, it is
// queued again.
func (r *ServiceWorker) endRequestOfService(k view.ObjectKey) *serviceRecord {
	rec := r.recordByService[k]
	rec.requestInFlight = false
	if rec.changedDuringRequest {
		rec.changedDuringRequest = false
		r.workQueue.addChangedServices(k)
	}
	return rec
}

// adoptStatusOfOtherWriterIntoLedger handles a status that differs from the Ledger: another
// controller wrote it, it came with the object (from a backup, for example), or a user edited it.
// The Service gets the addresses as far as no other Service holds them, and also those of a pending
// assignment. It returns false when the Ledger has another holder and so may be wrong: the API
// server is read before any Service loses an address. A status for which the Ledger was built or
// checked is right.
func (r *ServiceWorker) adoptStatusOfOtherWriterIntoLedger(v *view.Service, rec *serviceRecord, baseVersion string) bool {
	if hasSharingConflict(r.ledger, v) && pendingwrites.ParseResourceVersion(baseVersion) > rec.resourceVersionMatchingLedger {
		return false
	}
	held, _ := r.ledger.AssignmentOf(v.Key)
	addresses := v.AssignedAddresses
	if len(addresses) == 0 { // a Service whose status was cleared keeps its addresses
		addresses = held.Addresses
	}
	addresses = allocate.UnionAddresses(addresses, r.ledgerWriter.pendingWrites.PendingAddressesOfService(v.Key, baseVersion))
	// If no pool has the addresses any more, only the Service says from which pool they are.
	if len(held.Addresses) > 0 && len(v.AssignedAddresses) > 0 && !slices.Equal(v.AssignedAddresses, held.Addresses) {
		startRivalCheck(r, v.Key, rec)
	}
	if !slices.Equal(addresses, held.Addresses) || len(v.AssignedAddresses) > 0 && v.RecordedPool != "" && v.RecordedPool != held.PoolOfFirstAddress {
		commitHoldableAddresses(r.ledger, v, addresses)
		if slices.ContainsFunc(held.Addresses, func(a netip.Addr) bool { return !slices.Contains(addresses, a) }) {
			r.poolOrReservationStatusWriter.needsComparison = true
		}
		return true
	}
	r.ledger.WithholdAddressesUntilStatusWritten(v.Key, nil)
	return true
}

// hasSharingConflict says whether the status has an address that another Service holds without a
// right to share.
func hasSharingConflict(l *allocate.Ledger, v *view.Service) bool {
	return slices.ContainsFunc(v.AssignedAddresses, func(a netip.Addr) bool { return !l.CanShareWithHolders(a, v) })
}

// carryOutDecision commits a Decision and starts its write. The Ledger comes first, so that no
// other Service gets the addresses. The Service keeps its old addresses until the new ones are
// written (make before break).
func (r *ServiceWorker) carryOutDecision(s *corev1.Service, v *view.Service, d allocate.Decision) {
	for _, text := range view.ExplainUnknownAnnotations(s) {
		d.Text += "; " + text
	}
	d.Text = keepPublishedWaitForLeaderText(s, d.Reason, d.Text)
	if r.LeaderAbsence != nil {
		d.Text += r.LeaderAbsence().describeWaitOfService(s)
	}
	if rec := r.recordByService[v.Key]; rec != nil {
		d.Text += rec.rivalText(r.Now())
	}
	if d.Reason == names.ReasonAssigned && !d.DecideAgainWhenAddressesFree {
		r.waitingServices.removeService(v.Key)
	} else {
		r.waitingServices.setReason(v.Key, d.Reason)
	}
	w := &serviceStatusWriteTask{service: *v, serviceBefore: s, decision: d, poolToRecord: d.PoolOfFirstAddress, ledgerBuildNumber: r.ledgerBuildNumber}
	w.assignmentBefore, _ = r.ledger.AssignmentOf(v.Key)
	w.serviceAfter = withDecidedStatus(s, d, w.poolToRecord)
	isWritten, edits := areStatusAndAnnotationsEqual(s, w.serviceAfter), &r.recordByService[v.Key].edits
	if !isWritten && !r.editTurns.mayWriteNow(w, edits, r.Now()) {
		return
	}
	if len(d.AddressesToProbe) > 0 {
		r.ledger.WithholdAddressesUntilProbed(v, d.AddressesToProbe)
	}
	if isWritten {
		r.editTurns.recordEditWithoutEffect(w, edits)
		if !r.mayWriteOfOtherControllerStillArrive(w) {
			r.ledgerWriter.pendingWrites.ClosePendingWithBase(v.Key, s.ResourceVersion)
			r.servicesWithRefusedStatus.setIsRefused(v.Key, false)
			r.commitDecidedWriteToLedger(w)
			return
		}
		changeStatusToBumpResourceVersion(w.serviceAfter, r.Now())
		w.onlyChangesResourceVersion, w.editsBefore = true, *edits
	}
	if rec := r.recordByService[v.Key]; rec.countWriteAndCheckContended(r.Now()) {
		// It is logged once in each contentionDetectionInterval.
		if rec.recentWriteCount == maxWritesBeforeContended+1 {
			r.Log.Warn("another writer changes this Service's status again and again; is a second controller running?", "service", v.Key.String(), "reason", names.ReasonWriteFailed)
			startRivalCheck(r, v.Key, rec)
		}
		*edits = w.editsBefore
		r.workQueue.addChangedServiceAfter(v.Key, contendedWriteDelay)
		return
	}
	if len(d.Addresses) > 0 && r.PredictUnannouncedCondition != nil {
		w.predictUnannouncedCondition = func(ctx context.Context) (metav1.Condition, bool) {
			return r.PredictUnannouncedCondition(ctx, s, d.Addresses)
		}
	}
	if len(d.AddressesToProbe) == 0 {
		r.ledger.CommitOldAndNewAddresses(v, d)
	}
	r.recordByService[v.Key].requestInFlight = true
	if len(allocate.UnionAddresses(v.AssignedAddresses, d.Addresses)) > len(v.AssignedAddresses) && !r.ledgerWriter.pendingWrites.AddressLedgerContainsPending(w.pendingEntry()) {
		r.stageWriteUntilInAddressLedger(w)
		return
	}
	r.apiTaskQueue.enqueueTask(w)
}

// stageWriteUntilInAddressLedger makes a write wait for the AddressLedger. Services with an
// assignment in the object come first, because they take no more room.
func (r *ServiceWorker) stageWriteUntilInAddressLedger(w *serviceStatusWriteTask) {
	j := &r.ledgerWriter
	w.ledgerEntryRefused = r.recordByService[w.service.Key].ledgerEntryRefused
	j.recentWriters.recordWrite(w.service.Key.Namespace)
	w.isOfQuietNamespace = j.recentWriters.isQuietBesideBusy(w.service.Key.Namespace)
	if j.pendingWrites.AddressLedgerContainsService(w.service.Key) {
		j.writesAwaitingLedgerEntry = slices.Insert(j.writesAwaitingLedgerEntry, 0, w)
		return
	}
	j.writesAwaitingLedgerEntry = append(j.writesAwaitingLedgerEntry, w)
}

// mayWriteOfOtherControllerStillArrive says whether a write of another controller may still bring
// the Service an address that its status does not show. Any write of ours prevents that.
func (r *ServiceWorker) mayWriteOfOtherControllerStillArrive(w *serviceStatusWriteTask) bool {
	pending := r.ledgerWriter.pendingWrites.PendingAddressesOfService(w.service.Key, w.serviceBefore.ResourceVersion)
	return len(allocate.UnionAddresses(w.service.AssignedAddresses, pending)) > len(w.service.AssignedAddresses)
}

// A Service that must be written more often than this is contended: another writer undoes our
// writes within milliseconds, which would load the API server.
const (
	maxWritesBeforeContended    = 20
	contentionDetectionInterval = 10 * time.Second
	contendedWriteDelay         = 2 * time.Second
)

// countWriteAndCheckContended counts a write, and says whether it must wait.
func (r *serviceRecord) countWriteAndCheckContended(now time.Time) bool {
	if now.Sub(r.recentWritesSince) > contentionDetectionInterval {
		r.recentWritesSince, r.recentWriteCount = now, 0
	}
	r.recentWriteCount++
	return r.recentWriteCount > maxWritesBeforeContended
}

// releaseService releases what a Service held, and lets waiting Services try again.
func (r *ServiceWorker) releaseService(k view.ObjectKey, why string) {
	r.waitingServices.removeService(k)
	r.servicesWithRefusedStatus.setIsRefused(k, false)
	delete(r.recordByService, k)
	delete(r.retirementScheduler.servicesToGiveUpRetired, k)
	r.ledgerWriter.pendingWrites.ClosePendingWithBase(k, "")
	r.ledger.WithholdAddressesUntilStatusWritten(k, nil)
	if freed := r.ledger.ReleaseService(k); len(freed) > 0 {
		r.Log.Info("addresses released", "service", k.String(), "addresses", freed, "cause", why)
		r.poolOrReservationStatusWriter.needsComparison = true
	}
}

// clearStatusOfUnservedService removes our status from a Service that this controller does not
// serve. If the Service has another class, only what it held from us is removed. One that never was
// ours is not touched. While a write of another controller may still arrive, the first write only
// prevents that.
func (r *ServiceWorker) clearStatusOfUnservedService(s *corev1.Service, v *view.Service) {
	rec := r.recordByService[v.Key]
	if rec == nil && (v.IsLoadBalancer || !hasOurStatusOrAnnotations(s)) {
		return
	}
	w := &serviceStatusWriteTask{service: *v, serviceBefore: s, ledgerBuildNumber: r.ledgerBuildNumber, clearsStatusOfUnservedService: true}
	w.assignmentBefore, _ = r.ledger.AssignmentOf(v.Key)
	w.serviceAfter = withoutOurStatus(s, w.assignmentBefore.Addresses)
	if rec == nil {
		rec = &serviceRecord{uid: s.UID, newestResourceVersion: pendingwrites.ParseResourceVersion(s.ResourceVersion)}
		r.recordByService[v.Key] = rec
	}
	switch {
	case r.mayWriteOfOtherControllerStillArrive(w):
		w.serviceAfter, w.onlyChangesResourceVersion = withBumpedCondition(s, names.ReasonNotLoadBalancer, r.Now()), true
	case areStatusAndAnnotationsEqual(s, w.serviceAfter):
		// There is nothing to write that would confirm it.
		r.startGoneOrUnservedCheck(v.Key, rec)
		return
	}
	r.editTurns.recordReleasingWrite(w, &rec.edits, r.Now())
	rec.requestInFlight = true
	r.apiTaskQueue.enqueueTask(w)
}

// sortedKeys returns the keys in order.
func sortedKeys[V any](keys map[view.ObjectKey]V) []view.ObjectKey {
	return slices.SortedFunc(maps.Keys(keys), view.ObjectKey.Compare)
}
