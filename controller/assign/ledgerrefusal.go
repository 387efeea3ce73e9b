package assign

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/allocate"
)

// A permanent refusal of the API server, by a policy for example, concerns the Service of one
// entry. Its answer does not say which entry. So the batch is divided into halves until the entry
// is found, and other Services do not wait.

const (
	// maxRefusedEntriesBeforeSlowdown is how many new entries in a row may be refused before the
	// writes slow down. By then the refusal probably concerns the controller and not an entry, for
	// example because its RBAC rules do not allow the write.
	maxRefusedEntriesBeforeSlowdown = 64
	// ledgerSwapAfterRefusalInterval is the shortest time between two writes of the AddressLedger
	// after that many refusals. It is also the shortest time between two writes whose entries were
	// refused before.
	ledgerSwapAfterRefusalInterval = time.Second
	// maxRefusalTextBytes bounds the quoted part of the API server's answer.
	maxRefusalTextBytes = 400
)

// isPermanentRefusal says whether the API server gives the same answer whenever the request is
// repeated.
func isPermanentRefusal(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	switch status.Status().Code {
	case http.StatusBadRequest, http.StatusForbidden, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// allStagedWritesWereRefused says whether the entries of all staged writes were refused before.
// Those are written one by one and last, so that no other Service waits for them.
func (j *ledgerWriter) allStagedWritesWereRefused() bool {
	return !slices.ContainsFunc(j.writesAwaitingLedgerEntry, func(w *serviceStatusWriteTask) bool { return !w.ledgerEntryRefused })
}

// canOnlyWriteRefused says whether no staged write can go into the AddressLedger now but those that
// were refused before. The others may wait for the room of an open one.
func (j *ledgerWriter) canOnlyWriteRefused() bool {
	if !slices.ContainsFunc(j.writesAwaitingLedgerEntry, func(w *serviceStatusWriteTask) bool { return w.ledgerEntryRefused }) {
		return false
	}
	services, bytes := j.remainingRoom()
	return !slices.ContainsFunc(j.writesAwaitingLedgerEntry, func(w *serviceStatusWriteTask) bool {
		return !w.ledgerEntryRefused && (services > 0 && bytes >= encodedSizeOfPending(w.pendingEntry()) || j.pendingWrites.AddressLedgerContainsService(w.service.Key))
	})
}

// refusalDelay is how long the next swap must wait because of refusals.
func (j *ledgerWriter) refusalDelay(now time.Time) time.Duration {
	if j.refusalsInARow <= maxRefusedEntriesBeforeSlowdown && !j.canOnlyWriteRefused() {
		return 0
	}
	return j.lastRefusalTime.Add(ledgerSwapAfterRefusalInterval).Sub(now)
}

// recordAcceptedBatch records that the API server accepted the entries of a batch.
func (r *ServiceWorker) recordAcceptedBatch(batch []*serviceStatusWriteTask) {
	j := &r.ledgerWriter
	j.refusalsInARow = 0
	if j.maxWritesWhileFindingRefused *= 2; j.maxWritesWhileFindingRefused >= maxWritesPerSwap {
		j.maxWritesWhileFindingRefused = 0
	}
	for _, w := range batch {
		r.recordByService[w.service.Key].ledgerEntryRefused = false
	}
}

// handleRefusedLedgerBatch handles a batch that the API server refused permanently. The cause can
// also be the entry of an earlier write, which was accepted at its time and whose outcome is open:
// a new policy refuses it, for example. So a single write is tried without the earlier entries
// before it is given up.
func (r *ServiceWorker) handleRefusedLedgerBatch(s *ledgerSwapTask, err error) {
	j, batch := &r.ledgerWriter, s.writes
	if n := len(batch); n > 1 {
		j.writesAwaitingLedgerEntry, j.maxWritesWhileFindingRefused = append(batch, j.writesAwaitingLedgerEntry...), n/2
		r.Log.Info("the API server refuses a batch of pending assignments; searching for the Service that causes it", "ledger", r.ledgerLogName(), "services", n, "error", err)
		return
	}
	if !s.omitsEarlierEntries && len(s.ledgerObject.Spec.Pending) > 1 {
		j.writesAwaitingLedgerEntry, j.mustOmitEarlierEntries = append(batch, j.writesAwaitingLedgerEntry...), true
		return
	}
	if j.lastRefusalTime = r.Now(); !batch[0].ledgerEntryRefused {
		j.refusalsInARow++
	}
	r.abandonWriteRefusedByLedger(batch[0], err)
}

// writeFailuresBeforeEntryOmission is after how many failures in a row an entry may be left out:
// about three seconds.
const writeFailuresBeforeEntryOmission = 6

// omitEntriesOfFailingWrites makes room in a full AddressLedger: it leaves out the entries of those
// writes that the API server answers with an internal error again and again, or late or not at all,
// because a webhook for their namespace fails or hangs, for example. It also leaves out the entries
// of Services whose status the API server refuses, while they wait for the next attempt: an earlier
// controller has recorded those. It says whether there are any.
func (r *ServiceWorker) omitEntriesOfFailingWrites() bool {
	isAny, pending := false, r.ledgerWriter.pendingWrites
	for _, w := range r.apiTaskQueue.writesAwaitingRetryTime {
		fails := w.lastAnswerWasInternalError && w.attemptsWithUnknownResult >= writeFailuresBeforeEntryOmission
		if (fails || w.lastAttemptWasSlow) && pending.OmitFromAddressLedger(w.service.Key) {
			isAny = true
		}
	}
	for k := range r.servicesWithRefusedStatus {
		if rec := r.recordByService[k]; rec != nil && !rec.requestInFlight && pending.OmitFromAddressLedger(k) {
			isAny = true
		}
	}
	return isAny
}

// logOmittedEntries logs why the AddressLedger lacks entries.
func (r *ServiceWorker) logOmittedEntries(why string) {
	r.Log.Warn(why+": these are left out until their writes are answered, and the AddressLedger is marked as incomplete",
		"ledger", r.ledgerLogName(), "omitted", r.ledgerWriter.pendingWrites.CountOmittedFromAddressLedger())
}

// abandonWriteRefusedByLedger drops the decision for a Service, because the AddressLedger does not
// accept its entry, and reports that in the Service's condition. The Service keeps what it has; the
// assignment is repeated later.
func (r *ServiceWorker) abandonWriteRefusedByLedger(w *serviceStatusWriteTask, err error) {
	rec := r.recordByService[w.service.Key]
	rec.consecutiveFailures++
	rec.ledgerEntryRefused = true
	wait := retryDelay(rec.consecutiveFailures)
	rec.refusedResourceVersion, rec.retryAt = w.serviceBefore.ResourceVersion, r.Now().Add(wait)
	r.logServiceFailure(w.service.Key, err, wait)
	r.workQueue.addChangedServiceAfter(w.service.Key, wait)
	r.waitingServices.setReason(w.service.Key, names.ReasonWriteFailed)

	text := err.Error()
	if len(text) > maxRefusalTextBytes {
		text = strings.ToValidUTF8(text[:maxRefusalTextBytes], "") + "…"
	}
	d := allocate.Decision{
		Addresses: w.service.AssignedAddresses, PoolOfFirstAddress: w.service.RecordedPool, DecideAgainWhenAddressesFree: true,
		Explanation: names.NewExplanation(names.ReasonWriteFailed, "the API server refuses the pending assignment of this Service: %s: "+
			"change the Service's request, or the policy that refuses it; the assignment is repeated later", text),
	}
	if c := meta.FindStatusCondition(w.serviceBefore.Status.Conditions, names.ConditionAllocatedFromPool); c != nil && strings.Contains(c.Message, ",") {
		d.PoolsOfAllAddressesIfSeveral = strings.Split(c.Message, ",")
	}
	failed := &serviceStatusWriteTask{service: w.service, serviceBefore: w.serviceBefore, decision: d, poolToRecord: d.PoolOfFirstAddress, assignmentBefore: w.assignmentBefore, editsBefore: w.editsBefore, ledgerBuildNumber: w.ledgerBuildNumber}
	failed.serviceAfter = withDecidedStatus(w.serviceBefore, d, d.PoolOfFirstAddress)
	if areStatusAndAnnotationsEqual(failed.serviceBefore, failed.serviceAfter) {
		r.endRequestOfService(w.service.Key)
		r.revertLedgerToServiceStatus(w, w.serviceBefore)
		return
	}
	r.apiTaskQueue.enqueueTask(failed)
}
