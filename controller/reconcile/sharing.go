package reconcile

import (
	"context"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/view"
)

// A Service can show an address that another one holds, as far as the Ledger knows, without a right
// to share it. Mostly its own edit broke the right: a port, the sharing key, the traffic policy. It
// can also be the Ledger that is behind. The API server knows which, and is asked for these few
// Services only: anybody who may edit a Service can break a right as often as he likes, so that it
// must not cost a reading of all Services.

// Limits of what a broken right to share may cost.
const (
	// maxSharingChecks is how many checks in a row may lead to nothing before all Services are read. With
	// the delays between them it is about six seconds.
	maxSharingChecks = 7
	// reloadInterval is the least time between two readings of all Services for that cause.
	reloadInterval = 30 * time.Second
)

// sharingCheckTask asks the API server about a Service whose status shows addresses that others hold, and
// about one of these holders for each address.
type sharingCheckTask struct {
	service     view.ObjectKey
	holders     []view.ObjectKey
	ledgerEpoch int
}

// startSharingCheck starts a check. Until it has ended nothing is decided for the Service.
func (r *ServiceWorker) startSharingCheck(v *view.Service) {
	r.records[v.Key].writeInFlight = true
	c := &sharingCheckTask{service: v.Key, ledgerEpoch: r.ledgerEpoch}
	for _, a := range v.AssignedAddresses {
		if rivals := r.ledger.ConflictingHolders(a, v); len(rivals) > 0 && !slices.Contains(c.holders, rivals[0]) {
			c.holders = append(c.holders, rivals[0])
		}
	}
	r.enqueueTask(c)
}

// runTask implements task.
func (c *sharingCheckTask) runTask(ctx context.Context, api API) taskResult {
	live := map[view.ObjectKey]*corev1.Service{}
	for _, k := range append([]view.ObjectKey{c.service}, c.holders...) {
		s, err := api.LiveService(ctx, k)
		if err != nil {
			return func(_ context.Context, r *ServiceWorker) { r.retrySharingCheck(c, err) }
		}
		live[k] = s
	}
	return func(_ context.Context, r *ServiceWorker) { r.finishSharingCheck(c, live) }
}

// retrySharingCheck has a Service looked at again whose check got no answer.
func (r *ServiceWorker) retrySharingCheck(c *sharingCheckTask, err error) {
	rec := r.unlockService(c.service)
	rec.failures++
	r.logFailure(c.service, err, retryDelay(rec.failures))
	r.enqueueAfter(c.service, retryDelay(rec.failures))
}

// finishSharingCheck takes in what the API server says of the Services of a check. An answer from before the
// Ledger was built anew counts for nothing.
func (r *ServiceWorker) finishSharingCheck(c *sharingCheckTask, live map[view.ObjectKey]*corev1.Service) {
	rec, s := r.unlockService(c.service), live[c.service]
	switch {
	case c.ledgerEpoch != r.ledgerEpoch:
		r.queue.addChanged(c.service)
		return
	case s == nil || s.UID != rec.uid:
		r.releaseService(c.service, "the Service is gone")
		return
	}
	rec.newestVersion = max(rec.newestVersion, parseResourceVersion(s.ResourceVersion))
	h := &liveService{view.FromService(s), s.ResourceVersion}
	if !r.isServed(&h.Service) { // it is dismissed when the cache shows it so
		r.queue.addChanged(c.service)
		return
	}
	holders := map[view.ObjectKey]*liveService{}
	for _, k := range c.holders {
		if other := r.refreshLiveService(k, live[k]); other != nil {
			holders[k] = other
		}
	}
	switch {
	case !r.hasSharingConflict(&h.Service):
		r.recordHoldable(h)
	case r.exchangeShares(h, holders):
	case r.hasLostRight(&h.Service, holders):
		r.Log.Info("a Service has no right any more to an address that it has", "service", h.Key.String(), "addresses", h.AssignedAddresses)
		r.recordHoldable(h)
		rec.loadedVersion = parseResourceVersion(h.version)
	default:
		r.scheduleSharingCheck(rec, h.Key)
		return
	}
	rec.sharingChecks, rec.failures = 0, 0
	r.queue.addChanged(c.service)
}

// refreshLiveService takes in what the API server says of a holder, and returns the holder as it is; nil
// when it is not ours any more, or when a write to it is under way, which says more.
func (r *ServiceWorker) refreshLiveService(k view.ObjectKey, s *corev1.Service) *liveService {
	rec := r.records[k]
	switch {
	case rec == nil || rec.writeInFlight:
		return nil
	case s == nil || s.UID != rec.uid:
		r.releaseService(k, "the Service is gone")
		r.queue.addChanged(k)
		return nil
	}
	h := &liveService{view.FromService(s), s.ResourceVersion}
	rec.newestVersion = max(rec.newestVersion, parseResourceVersion(h.version))
	r.queue.addChanged(k)
	if !r.isServed(&h.Service) {
		return nil
	}
	// One whose status somebody has wiped holds what it had until its status says so again.
	if len(h.AssignedAddresses) > 0 && !r.hasSharingConflict(&h.Service) {
		r.recordHoldable(h)
	}
	return h
}

// liveService is a Service as the API server has it.
type liveService struct {
	view.Service
	version string
}

// recordHoldable records that a Service holds what its status shows, and what a pending assignment may yet
// write there, as far as nobody else is in the way.
func (r *ServiceWorker) recordHoldable(h *liveService) {
	before, _ := r.ledger.AssignmentOf(h.Key)
	now := slices.DeleteFunc(unionAddresses(h.AssignedAddresses, r.ledgerWriter.fence.PendingAddresses(h.Key, h.version)), func(a netip.Addr) bool {
		return !r.ledger.CanHold(a, &h.Service)
	})
	r.ledger.CommitAssignment(&h.Service, now, h.RecordedPool)
	for _, a := range before.Addresses {
		switch {
		case slices.Contains(now, a):
		case len(r.ledger.HoldersOf(a)) == 0:
			r.poolCounters.stale, r.wakeWaiting = true, true
		default:
			r.wakeSharers = true
		}
	}
}

// wakePendingServices has those Services looked at that wait for what has become free: all of them, or only those that
// may share an address. Anybody can change a right to share as often as he likes, and most do not share.
func (r *ServiceWorker) wakePendingServices() {
	keys := sortedKeys(r.waitingServices.reasonByService)
	if !r.wakeWaiting {
		keys = slices.DeleteFunc(keys, func(k view.ObjectKey) bool {
			rec := r.records[k]
			return rec == nil || rec.sharing == ""
		})
	}
	r.wakeWaiting, r.wakeSharers = false, false
	r.queue.addAffected(keys...)
}

// hasLostRight says whether the Service has lost each address that others hold, as far as the Ledger knows:
// the API server shows the address with a holder that may not share it with the Service.
func (r *ServiceWorker) hasLostRight(v *view.Service, holders map[view.ObjectKey]*liveService) bool {
	for _, a := range v.AssignedAddresses {
		rivals := r.ledger.ConflictingHolders(a, v)
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

// exchangeShares records Services that were all edited so that they may share again, while the Ledger still
// has each as it was before and so in the way of the others. It returns false, and changes nothing,
// when that is not how it is.
func (r *ServiceWorker) exchangeShares(h *liveService, holders map[view.ObjectKey]*liveService) bool {
	var edited []*liveService
	for _, a := range h.AssignedAddresses {
		for _, k := range r.ledger.ConflictingHolders(a, &h.Service) {
			other := holders[k]
			if other == nil || len(other.AssignedAddresses) == 0 || !allocate.CanShareAddress(&h.Service, &other.Service) || !r.isOnlyConflict(h.Key, &other.Service) {
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
	r.recordHoldable(h)
	for _, other := range edited {
		r.recordHoldable(other)
	}
	r.recordHoldable(h)
	return true
}

// isOnlyConflict says whether nobody but the Service k is in the way of what the other Service shows.
func (r *ServiceWorker) isOnlyConflict(k view.ObjectKey, h *view.Service) bool {
	return !slices.ContainsFunc(h.AssignedAddresses, func(a netip.Addr) bool {
		return slices.ContainsFunc(r.ledger.ConflictingHolders(a, h), func(rival view.ObjectKey) bool { return rival != k })
	})
}

// scheduleSharingCheck has a Service checked again of which the API server's answers did not tell enough, and all
// Services read when that goes on. The Service keeps what it has until then.
func (r *ServiceWorker) scheduleSharingCheck(rec *serviceRecord, k view.ObjectKey) {
	rec.sharingChecks++
	if rec.sharingChecks < maxSharingChecks {
		r.enqueueAfter(k, retryDelay(rec.sharingChecks))
		return
	}
	if wait := time.Until(r.lastReload.Add(reloadInterval)); wait > 0 {
		r.enqueueAfter(k, wait)
		return
	}
	r.lastReload = time.Now()
	r.suspectServices[k] = struct{}{}
	r.requireReload(reloadCauseSharing)
}

// Causes of a reading of all Services, as the metric gantry_controller_reloads_total names them.
const (
	reloadCauseStart         = "Start"
	reloadCauseSharing       = "SharingUnclear"
	reloadCauseLedgerChanged = "LedgerChanged"
	reloadCauseLedgerDeleted = "LedgerDeleted"
)

// requireReload has all Services read before anything else is decided.
func (r *ServiceWorker) requireReload(cause string) {
	r.reloadCause = cause
	r.loaded.Store(false)
	r.queue.wakeWorker()
}
