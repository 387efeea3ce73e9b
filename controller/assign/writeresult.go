package assign

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/controller/pendingwrites"
	"github.com/gantry-lb/gantry/internal/view"
)

// commitDecidedWriteToLedger records that a Service holds exactly what was decided.
func (r *ServiceWorker) commitDecidedWriteToLedger(w *serviceStatusWriteTask) {
	r.ledger.WithholdAddressesUntilStatusWritten(w.service.Key, nil)
	if len(w.decision.AddressesToProbe) > 0 { // nothing is assigned yet
		return
	}
	// its status was wiped
	if len(w.decision.Addresses) == 0 && w.decision.Reason == names.ReasonWriteFailed {
		r.ledger.CommitAssignment(&w.service, w.assignmentBefore.Addresses, w.assignmentBefore.PoolOfFirstAddress)
		return
	}
	r.ledger.CommitAssignment(&w.service, w.decision.Addresses, w.poolToRecord)
	if slices.Equal(w.assignmentBefore.Addresses, w.decision.Addresses) {
		return
	}
	r.poolOrReservationStatusWriter.needsComparison = true
}

// handleServiceWriteResult handles the result of a write.
func (r *ServiceWorker) handleServiceWriteResult(_ context.Context, w *serviceStatusWriteTask, o writeOutcome, now *corev1.Service, err error) {
	k, base := w.service.Key, w.serviceBefore.ResourceVersion
	rec := r.recordByService[k]
	r.Metrics.statusWritesByOutcome.WithLabelValues(o.String()).Inc()
	r.ledgerWriter.recordStatusWriteAnswer(w, r.Now())
	r.apiTaskQueue.recordEndOfAttempt(w, r.Now())
	// The write stays in flight and its assignment pending until the result is known.
	if o == outcomeMaybeWritten {
		w.mayBeWrittenByEarlierAttempt, w.lastAnswerWasInternalError = true, apierrors.IsInternalError(err)
		r.ledger.AssumeAddressesWritten(k)
		rec.consecutiveFailures++
		w.attemptsWithUnknownResult++
		r.logServiceFailure(k, err, retryDelay(rec.consecutiveFailures))
		r.apiTaskQueue.enqueueWriteAt(w, r.Now().Add(retryDelay(rec.consecutiveFailures)))
		r.workQueue.wakeWorkerAfter(retryDelay(rec.consecutiveFailures))
		return
	}
	r.servicesWithRefusedStatus.setIsRefused(k, o == outcomeRefused)
	r.workerState.recordAttempt(r.Now(), phaseWriting, o != outcomeRefused || !r.servicesWithRefusedStatus.indicateControllerFault())
	if o == outcomeRefused || o == outcomeConflict { // nothing was written
		rec.edits = w.editsBefore
	}
	if o == outcomeRefused {
		r.ledgerWriter.pendingWrites.ClosePendingOfRefusedStatusWrite(k, base)
	} else {
		r.ledgerWriter.pendingWrites.ClosePendingWithBase(k, base)
	}
	r.endRequestOfService(k)
	if now != nil {
		rec.newestResourceVersion = max(rec.newestResourceVersion, pendingwrites.ParseResourceVersion(now.ResourceVersion))
	}
	if o == outcomeWritten && !w.clearsStatusOfUnservedService {
		rec.trackFirstAddressWait(w.decision.Addresses, r.Now(), r.Metrics.firstAssignmentDelayHistogram)
	}
	if o == outcomeWritten && !w.clearsStatusOfUnservedService && !w.onlyChangesResourceVersion {
		r.reportDecision(w)
	}
	if w.ledgerBuildNumber != r.ledgerBuildNumber { // the Ledger has been rebuilt since
		r.workQueue.addChangedServices(k)
		return
	}
	switch o {
	case outcomeWritten:
		if w.clearsStatusOfUnservedService && w.onlyChangesResourceVersion {
			r.workQueue.addChangedServices(k)
			return
		}
		if w.clearsStatusOfUnservedService {
			r.editTurns.recordRelease(w.serviceBefore.UID, r.Now())
			r.releaseService(k, "the Service is no longer a LoadBalancer of this class")
			return
		}
		r.commitDecidedWriteToLedger(w)
		// The status reports the failure, and the assignment is repeated.
		if w.decision.Reason == names.ReasonWriteFailed {
			rec.refusedResourceVersion = now.ResourceVersion
			return
		}
		rec.consecutiveFailures = 0
	case outcomeServiceGone:
		r.releaseService(k, "the Service was deleted")
	case outcomeConflict: // another writer changed the Service: its current content counts
		r.revertLedgerToServiceStatus(w, now)
		r.workQueue.addChangedServices(k)
	case outcomeRefused:
		rec.consecutiveFailures++
		rec.refusedResourceVersion, rec.retryAt = base, r.Now().Add(retryDelay(rec.consecutiveFailures))
		r.logServiceFailure(k, err, retryDelay(rec.consecutiveFailures))
		r.revertLedgerToServiceStatus(w, w.serviceBefore)
		r.workQueue.addChangedServiceAfter(k, retryDelay(rec.consecutiveFailures))
	}
}

// revertLedgerToServiceStatus records that a Service holds what its status says and what another
// controller's write may still bring, and nothing that was decided for it. What another Service
// holds meanwhile stays with that one: its status shows the address.
func (r *ServiceWorker) revertLedgerToServiceStatus(w *serviceStatusWriteTask, now *corev1.Service) {
	if w.clearsStatusOfUnservedService { // nothing was decided
		return
	}
	v := view.FromService(now)
	if hasSharingConflict(r.ledger, &v) {
		r.startSharingCheck(&v)
		return
	}
	pending := r.ledgerWriter.pendingWrites.PendingAddressesOfService(v.Key, now.ResourceVersion)
	after := allocate.UnionAddresses(v.AssignedAddresses, pending)
	pool := v.RecordedPool
	// A Service whose status was cleared keeps its addresses.
	if len(v.AssignedAddresses) == 0 {
		after, pool = allocate.UnionAddresses(w.assignmentBefore.Addresses, after), w.assignmentBefore.PoolOfFirstAddress
	}
	holdable := filterHoldableAddresses(r.ledger, &v, after)
	r.ledger.CommitAssignment(&v, holdable, pool)
	withholdLostAddresses(r.ledger, &v, pending, holdable)
	r.waitingServices.setReason(w.service.Key, names.ReasonWriteFailed)
}
