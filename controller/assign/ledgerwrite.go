package assign

import (
	"context"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/pendingwrites"
)

// Limits of the AddressLedger.
const (
	// maxWritesPerSwap bounds the Services of one swap.
	maxWritesPerSwap = 256
	// maxQueuedTasksToStartSwap is how many writes may be ready when a swap begins. These keep the
	// API server busy meanwhile. With more, the object only grows: each swap costs the API server
	// the whole object, and the next leader finds more pending assignments.
	maxQueuedTasksToStartSwap = maxTasksInFlight
	// minWritesToSwapWithoutWaiting is how many writes a batch needs so that its swap does not wait
	// for the status writes of the last batch: with so many, the swap is less than a tenth of what
	// the API server has to do for them. maxUnfinishedTasksPerBatchedWrite is how many requests may
	// be unfinished then for each write of the batch.
	minWritesToSwapWithoutWaiting     = 16
	maxUnfinishedTasksPerBatchedWrite = 2
	// minWritesToStartBatchingSwaps is how many Services must come during one swap before the next
	// swap waits for the status writes of the last batch. If fewer than
	// minWritesToKeepBatchingSwaps come until these are answered, no swap waits any more.
	minWritesToStartBatchingSwaps = 2
	minWritesToKeepBatchingSwaps  = 3
	// lastBatchAnswerTimeout is when unfinished requests count as stuck.
	lastBatchAnswerTimeout = 200 * time.Millisecond
	// maxPendingAssignments and maxPendingBytes bound the open pending assignments, so that one
	// write of the object has less than 128 KB.
	maxPendingAssignments = 1024
	maxPendingBytes       = 120 << 10
	// closedEntriesForLedgerTrim closed assignments in the object cause a write of their own, once
	// nothing was written for ledgerTrimDelay.
	closedEntriesForLedgerTrim = 64
	ledgerTrimDelay            = 5 * time.Second
)

// startLedgerSwapIfDue writes the pending assignments of writesAwaitingLedgerEntry into the
// AddressLedger. A batch is what was staged while the last swap was under way, and also the status
// writes of its batch if Services come fast. So a Service that comes alone is served at once, and
// those that come faster than they can be written share a swap. No swap waits for a clock unless
// the API server refused a request or does not answer.
func (r *ServiceWorker) startLedgerSwapIfDue(ctx context.Context) {
	j := &r.ledgerWriter
	if j.swapInFlight {
		return
	}
	if len(j.writesAwaitingLedgerEntry) == 0 {
		j.fullLedgerLogged = false
		r.removeClosedEntriesWhenIdle(ctx)
		return
	}
	// the result of each write wakes the worker
	mayTake := func(*serviceStatusWriteTask) bool { return true }
	if r.apiTaskQueue.countTasksAwaitingFreeSlot() > maxQueuedTasksToStartSwap {
		if j.isFindingRefusedEntry() || !slices.ContainsFunc(j.writesAwaitingLedgerEntry, isWriteOfQuietNamespace) {
			return
		}
		mayTake = isWriteOfQuietNamespace // the writes of the busy ones are ready
	}
	now := r.Now()
	j.updateIsBatchingSwaps()
	if wait := max(j.failureDelay(now), j.refusalDelay(now), j.largerBatchDelay(now, r.apiTaskQueue)); wait > 0 {
		j.swapTimer.wakeWorkerAt(now.Add(wait), now, r.workQueue)
		return
	}
	j.swapTimer = wakeTimer{}
	if j.isFull(&r.apiTaskQueue.slowWriteTracker) && r.omitEntriesOfFailingWrites() {
		r.logOmittedEntries("the AddressLedger is full of pending assignments whose writes fail")
	}
	batch := j.takeNextBatch(&r.apiTaskQueue.slowWriteTracker, mayTake)
	if len(batch) == 0 {
		if j.isFull(&r.apiTaskQueue.slowWriteTracker) {
			r.reportLedgerFull()
		}
		return
	}
	r.startLedgerSwap(ctx, batch)
}

// updateIsBatchingSwaps decides by the writes that wait now whether Services come so fast that
// several should share a swap.
func (j *ledgerWriter) updateIsBatchingSwaps() {
	staged := len(j.writesAwaitingLedgerEntry)
	if j.unansweredWritesOfLastBatch == 0 {
		j.isBatchingSwaps = staged >= minWritesToKeepBatchingSwaps
	} else if staged >= minWritesToStartBatchingSwaps {
		j.isBatchingSwaps = true
	}
}

// largerBatchDelay is how long the next swap may wait because status writes of the last batch have
// no answer yet. A swap costs the API server as much as the write of a status, so more Services
// should share it. The result of each write wakes the worker. Services that come one by one do not
// wait. A batch that is large already starts at once, and so does any batch when the last one makes
// no progress. A Service of a namespace with few writes does not wait while those of another one
// come fast.
func (j *ledgerWriter) largerBatchDelay(now time.Time, q *apiTaskQueue) time.Duration {
	staged := min(len(j.writesAwaitingLedgerEntry), maxWritesPerSwap)
	mustBeSmall := j.isFindingRefusedEntry() || j.canOnlyWriteRefused()
	isLarge := staged >= minWritesToSwapWithoutWaiting && staged*maxUnfinishedTasksPerBatchedWrite >= q.countUnfinishedTasks()
	if mustBeSmall || isLarge || !j.isBatchingSwaps || j.unansweredWritesOfLastBatch == 0 || slices.ContainsFunc(j.writesAwaitingLedgerEntry, isWriteOfQuietNamespace) {
		return 0
	}
	return j.lastBatchAnswerTime.Add(lastBatchAnswerTimeout).Sub(now)
}

func isWriteOfQuietNamespace(w *serviceStatusWriteTask) bool {
	return w.isOfQuietNamespace && !w.ledgerEntryRefused
}

// isFindingRefusedEntry says whether the next swaps find the entry that the API server refuses.
func (j *ledgerWriter) isFindingRefusedEntry() bool {
	return j.maxWritesWhileFindingRefused > 0 || j.mustOmitEarlierEntries
}

// recordStatusWriteAnswer counts the first answer, or the lack of one, to a status write.
func (j *ledgerWriter) recordStatusWriteAnswer(w *serviceStatusWriteTask, now time.Time) {
	if w.batchNumberUntilFirstAnswer != 0 && w.batchNumberUntilFirstAnswer == j.batchNumber {
		j.unansweredWritesOfLastBatch--
		j.lastBatchAnswerTime = now
	}
	w.batchNumberUntilFirstAnswer = 0
}

// startStatusWritesOfBatch makes the writes of a batch begin, whose assignments are in the object.
func (j *ledgerWriter) startStatusWritesOfBatch(batch []*serviceStatusWriteTask, q *apiTaskQueue, now time.Time) {
	j.batchNumber++
	j.unansweredWritesOfLastBatch, j.lastBatchAnswerTime = len(batch), now
	for _, w := range batch {
		w.batchNumberUntilFirstAnswer = j.batchNumber
		q.enqueueTask(w)
	}
}

// startLedgerSwap writes the AddressLedger with the pending assignments of a batch.
func (r *ServiceWorker) startLedgerSwap(ctx context.Context, batch []*serviceStatusWriteTask) {
	j := &r.ledgerWriter
	j.writesInSwap = len(batch)
	s := &ledgerSwapTask{writes: batch, ledgerObject: &v1alpha1.AddressLedger{TypeMeta: j.ledgerObject.TypeMeta, ObjectMeta: *j.ledgerObject.ObjectMeta.DeepCopy(), Spec: j.ledgerObject.Spec}}
	entries, all := pendingEntriesOfWrites(batch), j.pendingWrites.ListPendingMergedWithBatch
	if s.omitsEarlierEntries = j.mustOmitEarlierEntries && len(batch) > 0; s.omitsEarlierEntries {
		all, j.mustOmitEarlierEntries = j.pendingWrites.ListPendingOfBatchOnly, false
	}
	spec := &s.ledgerObject.Spec
	spec.Writer, spec.Pending, spec.Incomplete = r.LedgerWriterIdentity, encodePendingEntries(all(entries)), s.omitsEarlierEntries || j.pendingWrites.CountOmittedFromAddressLedger() > 0
	j.swapInFlight, j.lastSwapStart = true, r.Now()
	r.apiTaskQueue.startTask(ctx, s)
}

// reportLedgerFull logs and counts that the staged writes wait because too many assignments are
// open, once until no write waits. The result of each open write wakes the worker.
func (r *ServiceWorker) reportLedgerFull() {
	j := &r.ledgerWriter
	if j.fullLedgerLogged {
		return
	}
	j.fullLedgerLogged = true
	r.workerState.incrementLedgerFullCount()
	r.Log.Info("the AddressLedger is full of open pending assignments; further Services wait until some of those are written",
		"ledger", r.ledgerLogName(), "pending", j.pendingWrites.CountPending(), "waiting", len(j.writesAwaitingLedgerEntry))
}

// takeNextBatch removes the writes of the next swap from writesAwaitingLedgerEntry, among those
// that it may take: those with a pending assignment in the object already, and others as long as
// there is room. Namespaces take turns. Those of slow namespaces wait: their entries would fill the
// object.
func (j *ledgerWriter) takeNextBatch(slow *slowWriteTracker, mayTake func(*serviceStatusWriteTask) bool) []*serviceStatusWriteTask {
	most := maxWritesPerSwap
	if j.maxWritesWhileFindingRefused > 0 {
		most = min(most, j.maxWritesWhileFindingRefused)
	}
	again := j.canOnlyWriteRefused()
	if again || j.mustOmitEarlierEntries {
		most = 1
	}
	room, bytesLeft := j.remainingRoom()
	var batch []*serviceStatusWriteTask
	isInBatch := map[*serviceStatusWriteTask]bool{}
	for _, w := range orderByNamespaceTurns(j.writesAwaitingLedgerEntry) {
		if len(batch) == most {
			break
		}
		shown, size := j.pendingWrites.AddressLedgerContainsService(w.service.Key), encodedSizeOfPending(w.pendingEntry())
		if !mayTake(w) || w.ledgerEntryRefused && !again || !shown && (room <= 0 || bytesLeft < size || slow.isNamespaceSlow(w.service.Key.Namespace)) {
			continue
		}
		if !shown {
			room, bytesLeft = room-1, bytesLeft-size
		}
		batch = append(batch, w)
		isInBatch[w] = true
	}
	j.writesAwaitingLedgerEntry = slices.DeleteFunc(j.writesAwaitingLedgerEntry, func(w *serviceStatusWriteTask) bool { return isInBatch[w] })
	return batch
}

// orderByNamespaceTurns returns the writes in the order in which namespaces take turns.
func orderByNamespaceTurns(writes []*serviceStatusWriteTask) []*serviceStatusWriteTask {
	isOfOtherNamespace := func(w *serviceStatusWriteTask) bool {
		return w.service.Key.Namespace != writes[0].service.Key.Namespace
	}
	if !slices.ContainsFunc(writes, isOfOtherNamespace) {
		return writes
	}
	var turns namespaceTurns[*serviceStatusWriteTask]
	for _, w := range writes {
		turns.addItem(w.service.Key.Namespace, w)
	}
	out := make([]*serviceStatusWriteTask, 0, len(writes))
	for turns.itemCount > 0 {
		out = append(out, turns.takeItem())
	}
	return out
}

// isFull says whether staged writes need room in the object, and none of them fits.
func (j *ledgerWriter) isFull(slow *slowWriteTracker) bool {
	room, bytesLeft := j.remainingRoom()
	isAny := false
	for _, w := range j.writesAwaitingLedgerEntry {
		if j.pendingWrites.AddressLedgerContainsService(w.service.Key) || slow.isNamespaceSlow(w.service.Key.Namespace) {
			continue
		}
		if isAny = true; room > 0 && bytesLeft >= encodedSizeOfPending(w.pendingEntry()) {
			return false
		}
	}
	return isAny
}

// remainingRoom returns how many more Services the object may have, and how many more bytes.
func (j *ledgerWriter) remainingRoom() (services, bytes int) {
	services, bytes = j.maxPendingServices+j.pendingWrites.CountOmittedFromAddressLedger()-j.pendingWrites.CountPending(), maxPendingBytes
	for _, i := range j.pendingWrites.ListPendingMergedWithBatch(nil) {
		bytes -= encodedSizeOfPending(i)
	}
	return services, bytes
}

// encodedSizeOfPending returns how many bytes a pending assignment has in the object.
func encodedSizeOfPending(i pendingwrites.PendingStatusWrite) int {
	n := len(`{"namespace":"","name":"","base":"","addresses":[]},`) + len(i.Service.Namespace) + len(i.Service.Name) + len(i.BaseResourceVersion)
	for _, a := range i.Addresses {
		n += len(`"",`) + len(a.String())
	}
	return n
}

// removeClosedEntriesWhenIdle writes the object without closed assignments when there is no other
// work and the object has many of them, because they would mislead its readers. It also writes an
// object that says that it is incomplete, and is not any more: the next leader would change every
// Service.
func (r *ServiceWorker) removeClosedEntriesWhenIdle(ctx context.Context) {
	j := &r.ledgerWriter
	isCompleteAgain := j.ledgerObject.Spec.Incomplete && j.pendingWrites.CountOmittedFromAddressLedger() == 0
	hasManyClosed := len(j.ledgerObject.Spec.Pending)-j.pendingWrites.CountPending() >= closedEntriesForLedgerTrim
	if !isCompleteAgain && !hasManyClosed || r.apiTaskQueue.countUnfinishedTasks() > 0 || !r.workQueue.hasNoQueuedServices() {
		return
	}
	now := r.Now()
	if due := j.lastSwapStart.Add(max(ledgerTrimDelay, retryDelay(j.trimFailures))); due.After(now) {
		j.trimTimer.wakeWorkerAt(due, now, r.workQueue)
		return
	}
	r.startLedgerSwap(ctx, nil)
}

// failureDelay is how long the next swap must wait because the last ones failed.
func (j *ledgerWriter) failureDelay(now time.Time) time.Duration {
	if j.consecutiveFailures == 0 {
		return 0
	}
	return j.lastSwapStart.Add(retryDelay(j.consecutiveFailures)).Sub(now)
}

// pendingEntriesOfWrites returns the pending assignments of the writes.
func pendingEntriesOfWrites(batch []*serviceStatusWriteTask) []pendingwrites.PendingStatusWrite {
	out := make([]pendingwrites.PendingStatusWrite, 0, len(batch))
	for _, w := range batch {
		out = append(out, w.pendingEntry())
	}
	return out
}

// pendingEntry is what the AddressLedger must contain before the write begins.
func (w *serviceStatusWriteTask) pendingEntry() pendingwrites.PendingStatusWrite {
	return pendingwrites.PendingStatusWrite{Service: w.service.Key, BaseResourceVersion: w.serviceBefore.ResourceVersion, Addresses: w.decision.Addresses}
}

// ledgerSwapTask writes the AddressLedger for a batch.
type ledgerSwapTask struct {
	writes       []*serviceStatusWriteTask
	ledgerObject *v1alpha1.AddressLedger
	// omitsEarlierEntries says that the object has the entries of the batch only.
	omitsEarlierEntries bool
}

// runTask implements apiRequestTask.
func (s *ledgerSwapTask) runTask(ctx context.Context, api WorkerAPI) taskResultHandler {
	now, err := api.CompareAndSwapLedger(ctx, s.ledgerObject)
	return func(_ context.Context, r *ServiceWorker) { r.handleLedgerSwapResult(s, now, err) }
}

// handleLedgerSwapResult starts the writes of a batch whose assignments are in the AddressLedger.
// If another controller has written or deleted the AddressLedger, everything is read and decided
// again. A swap with an unknown result is repeated on the same base: if it had succeeded, that is
// refused. An entry that the API server refuses permanently is found and left out.
func (r *ServiceWorker) handleLedgerSwapResult(s *ledgerSwapTask, now *v1alpha1.AddressLedger, err error) {
	j := &r.ledgerWriter
	j.swapInFlight, j.writesInSwap = false, 0
	if err == nil {
		r.recordAcceptedBatch(s.writes)
		j.consecutiveFailures, j.trimFailures, j.ledgerObject = 0, 0, now
		r.workerState.recordAttempt(r.Now(), phaseWriting, !r.servicesWithRefusedStatus.indicateControllerFault())
		if s.omitsEarlierEntries {
			j.pendingWrites.OmitAllFromAddressLedgerExcept(pendingEntriesOfWrites(s.writes))
			r.logOmittedEntries("the API server refuses the AddressLedger with entries that it has already")
		}
		j.pendingWrites.RecordBatchInAddressLedger(pendingEntriesOfWrites(s.writes))
		j.startStatusWritesOfBatch(s.writes, r.apiTaskQueue, r.Now())
		return
	}
	isLost := apierrors.IsConflict(err) || apierrors.IsNotFound(err)
	switch {
	case len(s.writes) == 0 && !isLost: // no Service waits for it
		j.trimFailures++
		r.Log.Warn("writing the AddressLedger without closed assignments failed", "ledger", r.ledgerLogName(), "error", err, "again", max(ledgerTrimDelay, retryDelay(j.trimFailures)))
		return
	case isPermanentRefusal(err) && !isLost:
		r.handleRefusedLedgerBatch(s, err)
		return
	}
	j.writesAwaitingLedgerEntry = append(s.writes, j.writesAwaitingLedgerEntry...)
	if isLost {
		r.Log.Info("another controller assigned addresses, or the AddressLedger is new", "ledger", r.ledgerLogName(), "error", err)
		for _, w := range j.writesAwaitingLedgerEntry {
			r.workQueue.addChangedServices(w.service.Key)
		}
		cause := reloadCauseLedgerChanged
		if apierrors.IsNotFound(err) {
			cause = reloadCauseLedgerDeleted
		}
		r.requireReload(cause) // loadLedger makes the staged writes be decided again
		return
	}
	j.consecutiveFailures++
	r.Log.Error("writing the AddressLedger failed; no new address is assigned until it succeeds", "ledger", r.ledgerLogName(), "error", err, "again", retryDelay(j.consecutiveFailures))
}
