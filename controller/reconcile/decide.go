package reconcile

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/view"
)

// decideService decides about one Service. While a write of it is in flight, it is decided when the
// write has ended.
func (r *ServiceWorker) decideService(ctx context.Context, l workItem) {
	rec := r.records[l.ObjectKey]
	if rec != nil && rec.writeInFlight {
		rec.changedMeanwhile = true
		return
	}
	s, err := r.API.CachedService(ctx, l.ObjectKey)
	if err != nil {
		r.logFailure(l.ObjectKey, err, maxRetryDelay)
		r.enqueueAfter(l.ObjectKey, maxRetryDelay)
		return
	}
	switch {
	case s == nil && rec == nil:
		return
	case s == nil && l.deletedUID == rec.uid:
		r.releaseService(l.ObjectKey, "the Service was deleted")
		return
	case s == nil:
		r.confirmService(l.ObjectKey, rec)
		return
	case rec != nil && parseResourceVersion(s.ResourceVersion) < rec.newestVersion:
		// The cache is behind; its next event queues the Service again. Or the AddressLedger is from a
		// backup, with a resourceVersion that this API server has never issued: ask the API server.
		if r.ledgerWriter.fence.HasLaterBase(l.ObjectKey, s.ResourceVersion) {
			r.confirmService(l.ObjectKey, rec)
		}
		return
	case rec != nil && rec.uid != s.UID:
		r.releaseService(l.ObjectKey, "the Service was deleted and created again with the same name")
		rec = nil
	}
	if rec != nil && rec.refusedVersion == s.ResourceVersion && time.Now().Before(rec.retryAt) {
		return // a timer runs
	}
	v := view.FromService(s)
	if !r.isServed(&v) {
		r.clearServiceStatus(s, &v)
		return
	}
	if rec == nil {
		rec = &serviceRecord{uid: s.UID, newestVersion: parseResourceVersion(s.ResourceVersion), waitingSince: waitingStart(s, time.Now())}
		r.records[l.ObjectKey] = rec
	}
	r.ledgerWriter.fence.DropSuperseded(l.ObjectKey, s.ResourceVersion)
	// Services that wait to share with it may try again.
	if now := sharingText(&v); now != rec.sharing {
		rec.sharing, r.wakeSharers = now, r.wakeSharers || rec.sharing != ""
	}
	if !r.observeStatus(&v, rec, s.ResourceVersion) {
		r.startSharingCheck(&v)
		return
	}
	r.carryOutDecision(ctx, s, &v, allocate.Decide(&v, r.ledger, r.configuration.snapshot))
}

// sharingText is what decides with which Services this one may share, as one text; empty when it
// does not want to share.
func sharingText(v *view.Service) string {
	if v.SharingKey == "" {
		return ""
	}
	return fmt.Sprint(v.SharingKey, v.Ports, v.LocalTrafficPolicy, v.PodSelector)
}

// enqueueAfter queues a Service after d.
func (r *ServiceWorker) enqueueAfter(k view.ObjectKey, d time.Duration) {
	time.AfterFunc(d, func() { r.queue.addChanged(k) })
}

// confirmService asks the API server itself about a Service before its addresses are released.
func (r *ServiceWorker) confirmService(k view.ObjectKey, rec *serviceRecord) {
	rec.writeInFlight = true
	r.enqueueTask(&confirmTask{key: k, ledgerEpoch: r.ledgerEpoch})
}

// finishConfirm handles the answer. An answer from before the Ledger was rebuilt is ignored.
func (r *ServiceWorker) finishConfirm(c *confirmTask, now *corev1.Service, err error) {
	rec := r.unlockService(c.key)
	switch {
	case err != nil:
		rec.failures++
		r.logFailure(c.key, err, retryDelay(rec.failures))
		r.enqueueAfter(c.key, retryDelay(rec.failures))
		return
	case c.ledgerEpoch != r.ledgerEpoch:
		r.queue.addChanged(c.key)
		return
	case now == nil || now.UID != rec.uid:
		r.releaseService(c.key, "the Service was deleted")
		return
	}
	rec.failures = 0
	rec.newestVersion = max(rec.newestVersion, parseResourceVersion(now.ResourceVersion))
	if r.ledgerWriter.fence.HasLaterBase(c.key, now.ResourceVersion) {
		r.Log.Warn("the AddressLedger shows a resourceVersion that the Service has never had; is it from a backup? The entry is passed over", "ledger", r.ledgerLogName(), "service", c.key.String())
		r.ledgerWriter.fence.ClosePending(c.key, "")
		rec.newestVersion = parseResourceVersion(now.ResourceVersion)
		r.queue.addChanged(c.key)
	}
	if v := view.FromService(now); !r.isServed(&v) && !hasOurMarks(now) {
		r.releaseService(c.key, "the Service is no longer a LoadBalancer of this class")
	}
}

// unlockService ends a write in flight. If the Service has changed meanwhile, it is queued again.
func (r *ServiceWorker) unlockService(k view.ObjectKey) *serviceRecord {
	rec := r.records[k]
	rec.writeInFlight = false
	if rec.changedMeanwhile {
		rec.changedMeanwhile = false
		r.queue.addChanged(k)
	}
	return rec
}

// observeStatus handles a status that differs from the Ledger: another controller wrote it, it came
// with the object (from a backup, for example), or a user edited it. The Service gets the addresses
// as far as no other Service holds them, and also those of a pending assignment. It returns false
// when the Ledger has another holder and so may be wrong: the API server is read before any Service
// loses an address. A status for which the Ledger was built or checked is right.
func (r *ServiceWorker) observeStatus(v *view.Service, rec *serviceRecord, baseVersion string) bool {
	if r.hasSharingConflict(v) && parseResourceVersion(baseVersion) > rec.loadedVersion {
		return false
	}
	held, _ := r.ledger.AssignmentOf(v.Key)
	addresses := v.AssignedAddresses
	if len(addresses) == 0 { // a Service whose status was cleared keeps its addresses
		addresses = held.Addresses
	}
	addresses = unionAddresses(addresses, r.ledgerWriter.fence.PendingAddresses(v.Key, baseVersion))
	// If no pool has the addresses any more, only the annotation says from which pool they are.
	if !slices.Equal(addresses, held.Addresses) || len(v.AssignedAddresses) > 0 && v.RecordedPool != "" && v.RecordedPool != held.Pool {
		r.recordStatusAddresses(v, addresses)
		if slices.ContainsFunc(held.Addresses, func(a netip.Addr) bool { return !slices.Contains(addresses, a) }) {
			r.poolCounters.stale, r.wakeWaiting = true, true // a waiting Service may get it
		}
	}
	return true
}

// hasSharingConflict says whether the status has an address that another Service holds without a
// right to share.
func (r *ServiceWorker) hasSharingConflict(v *view.Service) bool {
	return slices.ContainsFunc(v.AssignedAddresses, func(a netip.Addr) bool { return !r.ledger.CanHold(a, v) })
}

// carryOutDecision commits a Decision and starts its write. The Ledger comes first, so that no
// other Service gets the addresses. The Service keeps its old addresses until the new ones are
// written (make before break).
func (r *ServiceWorker) carryOutDecision(ctx context.Context, s *corev1.Service, v *view.Service, d allocate.Decision) {
	if d.Reason == names.ReasonAssigned && !d.WantsMore {
		r.waitingServices.removeService(v.Key)
	} else {
		r.waitingServices.setReason(v.Key, d.Reason)
	}
	w := &serviceWrite{service: *v, before: s, decision: d, pool: d.Pool, ledgerEpoch: r.ledgerEpoch}
	w.heldBefore, _ = r.ledger.AssignmentOf(v.Key)
	w.after = desiredService(s, d, w.pool)
	if len(d.Proposed) > 0 {
		r.ledger.ProposeAddresses(v.Key, d.Proposed)
	}
	if isUnchanged(s, w.after) {
		if !r.hasForeignWriteInFlight(w) {
			r.ledgerWriter.fence.ClosePending(v.Key, s.ResourceVersion)
			r.commitWrite(w)
			return
		}
		touchStatus(w.after)
		w.touchesStatus = true
	}
	if r.records[v.Key].isContended(time.Now()) {
		r.Log.Warn("another writer changes this Service's status again and again; is a second controller running?", "service", v.Key.String(), "reason", names.ReasonWriteFailed)
		r.enqueueAfter(v.Key, contendedDelay)
		return
	}
	if len(d.Addresses) > 0 && r.ForecastAnnounced != nil {
		if c, sure := r.ForecastAnnounced(ctx, s, d.Addresses); sure {
			meta.SetStatusCondition(&w.after.Status.Conditions, c)
		}
	}
	if len(d.Proposed) == 0 {
		r.ledger.CommitAssignment(v, unionAddresses(w.heldBefore.Addresses, d.Addresses), w.pool)
	}
	r.records[v.Key].writeInFlight = true
	if len(unionAddresses(v.AssignedAddresses, d.Addresses)) > len(v.AssignedAddresses) && !r.ledgerWriter.fence.CoversPending(w.pendingEntry()) {
		r.stageWrite(w)
		return
	}
	r.enqueueTask(w)
}

// stageWrite makes a write wait for the AddressLedger. Services with an assignment in the object
// come first, because they take no more room.
func (r *ServiceWorker) stageWrite(w *serviceWrite) {
	j := &r.ledgerWriter
	w.entryRefused = r.records[w.service.Key].entryRefused
	if j.fence.HasPending(w.service.Key) {
		j.stagedWrites = slices.Insert(j.stagedWrites, 0, w)
		return
	}
	j.stagedWrites = append(j.stagedWrites, w)
}

// hasForeignWriteInFlight says whether a write of another controller may still bring the Service an
// address that its status does not show. Any write of ours prevents that.
func (r *ServiceWorker) hasForeignWriteInFlight(w *serviceWrite) bool {
	pending := r.ledgerWriter.fence.PendingAddresses(w.service.Key, w.before.ResourceVersion)
	return len(unionAddresses(w.service.AssignedAddresses, pending)) > len(w.service.AssignedAddresses)
}

// A Service that must be written more often than this is contended: another writer undoes our
// writes within milliseconds, which would load the API server.
const (
	maxContendedWrites = 20
	contendedInterval  = 10 * time.Second
	contendedDelay     = 2 * time.Second
)

// isContended counts a write, and says whether it must wait.
func (r *serviceRecord) isContended(now time.Time) bool {
	if now.Sub(r.recentSince) > contendedInterval {
		r.recentSince, r.recentWrites = now, 0
	}
	r.recentWrites++
	return r.recentWrites > maxContendedWrites
}

// commitWrite records that a Service holds exactly what was decided.
func (r *ServiceWorker) commitWrite(w *serviceWrite) {
	if len(w.decision.Proposed) > 0 { // nothing is assigned yet
		return
	}
	if len(w.decision.Addresses) == 0 && w.decision.Reason == names.ReasonWriteFailed { // its status was wiped
		r.ledger.CommitAssignment(&w.service, w.heldBefore.Addresses, w.heldBefore.Pool)
		return
	}
	r.ledger.CommitAssignment(&w.service, w.decision.Addresses, w.pool)
	if slices.Equal(w.heldBefore.Addresses, w.decision.Addresses) {
		return
	}
	r.poolCounters.stale = true
	if slices.ContainsFunc(w.heldBefore.Addresses, func(a netip.Addr) bool { return !slices.Contains(w.decision.Addresses, a) }) {
		r.wakeWaiting = true
	}
}

// finishWrite handles the result of a write.
func (r *ServiceWorker) finishWrite(_ context.Context, w *serviceWrite, o writeOutcome, now *corev1.Service, err error) {
	k, base := w.service.Key, w.before.ResourceVersion
	rec := r.records[k]
	r.Metrics.statusWrites.WithLabelValues(o.String()).Inc()
	// The write stays in flight and its assignment pending until the result is known.
	if o == outcomeUnknown {
		w.maybeWritten = true
		rec.failures++
		r.logFailure(k, err, retryDelay(rec.failures))
		r.retryWriteAfter(w, retryDelay(rec.failures))
		return
	}
	r.workerState.recordAttempt(phaseWriting, true)
	if o == outcomeRejected {
		r.ledgerWriter.fence.RecordRefused(k, base)
	} else {
		r.ledgerWriter.fence.ClosePending(k, base)
	}
	r.unlockService(k)
	if now != nil {
		rec.newestVersion = max(rec.newestVersion, parseResourceVersion(now.ResourceVersion))
	}
	if o == outcomeWritten && !w.clearsStatus {
		r.measureWaiting(w, rec)
	}
	if o == outcomeWritten && !w.clearsStatus && !w.touchesStatus {
		r.reportDecision(w)
	}
	if w.ledgerEpoch != r.ledgerEpoch { // the Ledger has been rebuilt since
		r.queue.addChanged(k)
		return
	}
	switch o {
	case outcomeWritten:
		if w.clearsStatus {
			r.releaseService(k, "the Service is no longer a LoadBalancer of this class")
			return
		}
		r.commitWrite(w)
		// The status reports the failure, and the assignment is repeated.
		if w.decision.Reason == names.ReasonWriteFailed {
			rec.refusedVersion = now.ResourceVersion
			return
		}
		rec.failures = 0
	case outcomeGone:
		r.releaseService(k, "the Service was deleted")
	case outcomeConflict: // another writer changed the Service: its current content counts
		r.revertToStatus(w, now)
		r.queue.addChanged(k)
	case outcomeRejected:
		rec.failures++
		rec.refusedVersion, rec.retryAt = base, time.Now().Add(retryDelay(rec.failures))
		r.logFailure(k, err, retryDelay(rec.failures))
		r.revertToStatus(w, w.before)
		r.enqueueAfter(k, retryDelay(rec.failures))
	}
}

// retryWriteAfter repeats a write after d.
func (r *ServiceWorker) retryWriteAfter(w *serviceWrite, d time.Duration) {
	w.retryAt = time.Now().Add(d)
	r.sleepingWrites = append(r.sleepingWrites, w)
	r.wakeAfter(d)
}

// revertToStatus records that a Service holds what its status says and what another controller's
// write may still bring, and nothing that was decided for it.
func (r *ServiceWorker) revertToStatus(w *serviceWrite, now *corev1.Service) {
	if w.clearsStatus { // nothing was decided
		return
	}
	v := view.FromService(now)
	if r.hasSharingConflict(&v) {
		r.startSharingCheck(&v)
		return
	}
	before, _ := r.ledger.AssignmentOf(v.Key)
	after := unionAddresses(v.AssignedAddresses, r.ledgerWriter.fence.PendingAddresses(v.Key, now.ResourceVersion))
	pool := v.RecordedPool
	if len(v.AssignedAddresses) == 0 { // what it had before somebody wiped the status is its own still
		after, pool = unionAddresses(w.heldBefore.Addresses, after), w.heldBefore.Pool
	}
	r.ledger.CommitAssignment(&v, after, pool)
	if len(before.Addresses) > len(after) {
		r.wakeWaiting = true
	}
	r.waitingServices.setReason(w.service.Key, names.ReasonWriteFailed)
}

// releaseService releases what a Service held, and lets waiting Services try again.
func (r *ServiceWorker) releaseService(k view.ObjectKey, why string) {
	r.waitingServices.removeService(k)
	delete(r.records, k)
	r.ledgerWriter.fence.ClosePending(k, "")
	if freed := r.ledger.ReleaseService(k); len(freed) > 0 {
		r.Log.Info("addresses released", "service", k.String(), "addresses", freed, "why", why)
		r.poolCounters.stale, r.wakeWaiting = true, true
	}
}

// clearServiceStatus removes our status from a Service that this controller does not serve. If the
// Service has another class, only what it held from us is removed. One that never was ours is not
// touched.
func (r *ServiceWorker) clearServiceStatus(s *corev1.Service, v *view.Service) {
	rec := r.records[v.Key]
	if rec == nil && (v.IsLoadBalancer || !hasOurMarks(s)) {
		return
	}
	w := &serviceWrite{service: *v, before: s, ledgerEpoch: r.ledgerEpoch, clearsStatus: true}
	w.heldBefore, _ = r.ledger.AssignmentOf(v.Key)
	w.after = clearedService(s, w.heldBefore.Addresses)
	switch {
	case rec == nil:
		rec = &serviceRecord{uid: s.UID, newestVersion: parseResourceVersion(s.ResourceVersion)}
		r.records[v.Key] = rec
	case isUnchanged(s, w.after): // there is nothing to write that would confirm it
		r.confirmService(v.Key, rec)
		return
	}
	rec.writeInFlight = true
	r.enqueueTask(w)
}

// sortedKeys returns the keys in order.
func sortedKeys[V any](keys map[view.ObjectKey]V) []view.ObjectKey {
	return slices.SortedFunc(maps.Keys(keys), view.ObjectKey.Compare)
}

// unionAddresses returns the addresses of both, each once, those of a first.
func unionAddresses(a, b []netip.Addr) []netip.Addr {
	out := slices.Clone(a)
	for _, x := range b {
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}
