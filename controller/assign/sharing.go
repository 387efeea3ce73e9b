package assign

import (
	"context"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/controller/pendingwrites"
	"github.com/gantry-lb/gantry/internal/view"
)

// A Service's status can show an address that another Service holds in the Ledger, without a right
// to share it. Usually its own edit removed the right: a port, the sharing key or the traffic
// policy. But the Ledger may also be out of date. The API server knows, and only these few Services
// are read: every user who may edit a Service can break the right at any rate, so that
// this must not cause a reading of all Services.

// Limits of the cost of a broken right to share.
const (
	// maxInconclusiveSharingChecks is how many checks in a row may have no result before all
	// Services are read. With the delays between them that takes about six seconds.
	maxInconclusiveSharingChecks = 7
	// minSharingReloadInterval is the shortest time between two readings of all Services for this
	// cause.
	minSharingReloadInterval = 30 * time.Second
)

// sharingCheckTask reads a Service whose status shows addresses of other holders, and one of the
// conflicting holders for each address.
type sharingCheckTask struct {
	service             view.ObjectKey
	conflictingServices []view.ObjectKey
	ledgerBuildNumber   int
}

// startSharingCheck starts a check. Until it has ended, nothing is decided for the Service.
func (r *ServiceWorker) startSharingCheck(v *view.Service) {
	r.recordByService[v.Key].requestInFlight = true
	held, _ := r.ledger.AssignmentOf(v.Key)
	withholdLostAddresses(r.ledger, v, r.ledgerWriter.pendingWrites.PendingAddressesOfService(v.Key, ""), held.Addresses)
	c := &sharingCheckTask{service: v.Key, ledgerBuildNumber: r.ledgerBuildNumber}
	for _, a := range v.AssignedAddresses {
		if rivals := r.ledger.ConflictingHolders(a, v); len(rivals) > 0 && !slices.Contains(c.conflictingServices, rivals[0]) {
			c.conflictingServices = append(c.conflictingServices, rivals[0])
		}
	}
	r.apiTaskQueue.enqueueTask(c)
}

// runTask implements apiRequestTask.
func (c *sharingCheckTask) runTask(ctx context.Context, api WorkerAPI) taskResultHandler {
	live := map[view.ObjectKey]*corev1.Service{}
	for _, k := range append([]view.ObjectKey{c.service}, c.conflictingServices...) {
		s, err := api.ReadLiveService(ctx, k)
		if err != nil {
			return func(_ context.Context, r *ServiceWorker) { r.retrySharingCheck(c, err) }
		}
		live[k] = s
	}
	return func(_ context.Context, r *ServiceWorker) { r.handleSharingCheckResult(c, live) }
}

// retrySharingCheck queues a Service again after a check without an answer.
func (r *ServiceWorker) retrySharingCheck(c *sharingCheckTask, err error) {
	rec := r.endRequestOfService(c.service)
	rec.consecutiveFailures++
	r.logServiceFailure(c.service, err, retryDelay(rec.consecutiveFailures))
	r.workQueue.addChangedServiceAfter(c.service, retryDelay(rec.consecutiveFailures))
}

// handleSharingCheckResult handles the answers of a check. An answer from before the Ledger was
// rebuilt is ignored.
func (r *ServiceWorker) handleSharingCheckResult(c *sharingCheckTask, live map[view.ObjectKey]*corev1.Service) {
	rec, s := r.endRequestOfService(c.service), live[c.service]
	switch {
	case c.ledgerBuildNumber != r.ledgerBuildNumber:
		r.workQueue.addChangedServices(c.service)
		return
	case s == nil || s.UID != rec.uid:
		r.releaseService(c.service, "the Service is gone")
		return
	}
	rec.newestResourceVersion = max(rec.newestResourceVersion, pendingwrites.ParseResourceVersion(s.ResourceVersion))
	h := &liveServiceView{view.FromService(s), s.ResourceVersion}
	if !r.isServiceOurs(&h.Service) { // its status is cleared when the cache shows the same
		r.workQueue.addChangedServices(c.service)
		return
	}
	holders := map[view.ObjectKey]*liveServiceView{}
	for _, k := range c.conflictingServices {
		if other := r.recordLiveServiceUnlessBusy(k, live[k]); other != nil {
			holders[k] = other
		}
	}
	switch {
	case !hasSharingConflict(r.ledger, &h.Service):
		r.recordStatusAndPendingAddresses(h)
	case r.recordJointlyEditedSharers(h, holders):
	case hasLostAllContestedAddresses(r.ledger, &h.Service, holders):
		r.Log.Info("a Service may no longer share an address that it has", "service", h.Key.String(), "addresses", h.AssignedAddresses)
		r.recordStatusAndPendingAddresses(h)
		rec.resourceVersionMatchingLedger = pendingwrites.ParseResourceVersion(h.resourceVersion)
	default:
		r.scheduleSharingCheckOrReload(rec, h.Key)
		return
	}
	rec.inconclusiveSharingChecks, rec.consecutiveFailures = 0, 0
	r.workQueue.addChangedServices(c.service)
}

// recordLiveServiceUnlessBusy updates a holder from the API server and returns it. It returns nil
// when this controller does not serve it any more, or when a write to it is in flight, whose result
// is newer.
func (r *ServiceWorker) recordLiveServiceUnlessBusy(k view.ObjectKey, s *corev1.Service) *liveServiceView {
	rec := r.recordByService[k]
	switch {
	case rec == nil || rec.requestInFlight:
		return nil
	case s == nil || s.UID != rec.uid:
		r.releaseService(k, "the Service is gone")
		r.workQueue.addChangedServices(k)
		return nil
	}
	h := &liveServiceView{view.FromService(s), s.ResourceVersion}
	rec.newestResourceVersion = max(rec.newestResourceVersion, pendingwrites.ParseResourceVersion(h.resourceVersion))
	r.workQueue.addChangedServices(k)
	if !r.isServiceOurs(&h.Service) {
		return nil
	}
	// A holder with an empty status keeps what it had until its status shows it again.
	if len(h.AssignedAddresses) > 0 && !hasSharingConflict(r.ledger, &h.Service) {
		r.recordStatusAndPendingAddresses(h)
	}
	return h
}

// liveServiceView is a Service as the API server has it.
type liveServiceView struct {
	view.Service
	resourceVersion string
}

// recordStatusAndPendingAddresses records that a Service holds what its status shows and what a
// pending assignment may still bring, except for addresses with conflicting holders.
func (r *ServiceWorker) recordStatusAndPendingAddresses(h *liveServiceView) {
	before, _ := r.ledger.AssignmentOf(h.Key)
	pending := r.ledgerWriter.pendingWrites.PendingAddressesOfService(h.Key, h.resourceVersion)
	now := filterHoldableAddresses(r.ledger, &h.Service, allocate.UnionAddresses(h.AssignedAddresses, pending))
	r.ledger.CommitAssignment(&h.Service, now, h.RecordedPool)
	withholdLostAddresses(r.ledger, &h.Service, pending, now)
	for _, a := range before.Addresses {
		switch {
		case slices.Contains(now, a):
		case len(r.ledger.HoldersOfAddress(a)) == 0:
			r.poolOrReservationStatusWriter.needsComparison = true
		}
	}
}

// queueServicesWaitingForAddress queues the Services that wait for what has changed in the Ledger
// since the last call: all of them, or only those that may share an address. Users can change a
// right to share as often as they like, and most Services do not share.
func (r *ServiceWorker) queueServicesWaitingForAddress() {
	freed, sharing := r.ledger.FreedAddressesVersion(), r.ledger.ShareableAddressesVersion()
	all := r.mustQueueWaitingServices || freed != r.seenFreedAddressesVersion
	if !all && sharing == r.seenShareableAddressesVersion {
		return
	}
	r.mustQueueWaitingServices, r.seenFreedAddressesVersion, r.seenShareableAddressesVersion = false, freed, sharing
	keys := sortedKeys(r.waitingServices.reasonByService)
	if !all {
		keys = slices.DeleteFunc(keys, func(k view.ObjectKey) bool {
			rec := r.recordByService[k]
			return rec == nil || !rec.wantsToShare
		})
	}
	r.workQueue.addAffectedServices(keys...)
}

// hasLostAllContestedAddresses says whether the Service has lost each address with conflicting
// holders: the API server shows the address with a holder that may not share it with the Service.
func hasLostAllContestedAddresses(l *allocate.Ledger, v *view.Service, holders map[view.ObjectKey]*liveServiceView) bool {
	for _, a := range v.AssignedAddresses {
		rivals := l.ConflictingHolders(a, v)
		proof := func(k view.ObjectKey) bool {
			h := holders[k]
			return h != nil && slices.Contains(h.AssignedAddresses, a) && !allocate.CanShareAddress(v, &h.Service)
		}
		if len(rivals) > 0 && !slices.ContainsFunc(rivals, proof) {
			return false
		}
	}
	return true
}

// recordJointlyEditedSharers handles Services that were all edited so that they may share again,
// while the Ledger still has the previous state of each, which conflicts with the others. It
// returns false and changes nothing in other cases.
func (r *ServiceWorker) recordJointlyEditedSharers(h *liveServiceView, holders map[view.ObjectKey]*liveServiceView) bool {
	var edited []*liveServiceView
	for _, a := range h.AssignedAddresses {
		for _, k := range r.ledger.ConflictingHolders(a, &h.Service) {
			other := holders[k]
			if other == nil || len(other.AssignedAddresses) == 0 || !allocate.CanShareAddress(&h.Service, &other.Service) || !isOnlyConflictingService(r.ledger, h.Key, &other.Service) {
				return false
			}
			edited = append(edited, other)
		}
	}
	for i, x := range edited {
		for _, y := range edited[:i] {
			if x != y && !allocate.CanShareAddress(&x.Service, &y.Service) {
				return false
			}
		}
	}
	r.recordStatusAndPendingAddresses(h)
	for _, other := range edited {
		r.recordStatusAndPendingAddresses(other)
	}
	r.recordStatusAndPendingAddresses(h)
	return true
}

// isOnlyConflictingService says whether no other Service than k conflicts with what the Service
// shows.
func isOnlyConflictingService(l *allocate.Ledger, k view.ObjectKey, h *view.Service) bool {
	return !slices.ContainsFunc(h.AssignedAddresses, func(a netip.Addr) bool {
		return slices.ContainsFunc(l.ConflictingHolders(a, h), func(rival view.ObjectKey) bool { return rival != k })
	})
}

// scheduleSharingCheckOrReload checks a Service again if the answers were not sufficient, and reads
// all Services if that happens too often. Until then the Service keeps what it has.
func (r *ServiceWorker) scheduleSharingCheckOrReload(rec *serviceRecord, k view.ObjectKey) {
	rec.inconclusiveSharingChecks++
	if rec.inconclusiveSharingChecks < maxInconclusiveSharingChecks {
		r.workQueue.addChangedServiceAfter(k, retryDelay(rec.inconclusiveSharingChecks))
		return
	}
	if wait := r.lastSharingReload.Add(minSharingReloadInterval).Sub(r.Now()); wait > 0 {
		r.workQueue.addChangedServiceAfter(k, wait)
		return
	}
	r.lastSharingReload = r.Now()
	r.servicesWithContestedAddresses[k] = struct{}{}
	r.requireReload(reloadCauseSharingUnclear)
}

// Causes of a reading of all Services, as in the metric gantry_controller_reloads_total.
const (
	reloadCauseStart          = "Start"
	reloadCauseSharingUnclear = "SharingUnclear"
	reloadCauseLedgerChanged  = "LedgerChanged"
	reloadCauseLedgerDeleted  = "LedgerDeleted"
)

// requireReload makes the worker read all Services before it decides anything else.
func (r *ServiceWorker) requireReload(cause string) {
	r.reloadCause = cause
	if r.ledgerLoaded.Load() {
		r.reloadSchedule.addReload(r.Now())
	}
	r.ledgerLoaded.Store(false)
	r.workQueue.wakeWorker()
}
