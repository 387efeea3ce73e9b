package reconcile

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/fence"
)

// Limits of the AddressLedger.
const (
	// swapInterval is how long writes are collected when more than one waits, unless enoughForSwap
	// wait before. It bounds the writes of the AddressLedger to five per second when few Services
	// arrive, and to one for 14 Services when many do. It delays an address by at most that long.
	swapInterval  = 200 * time.Millisecond
	enoughForSwap = 14
	// maxSwapBurst is how many single writes in a row need not wait.
	maxSwapBurst = 5
	// maxSwapBatch bounds the Services of one swap.
	maxSwapBatch = 512
	// maxPendingAssignments bounds the Services with open pending assignments, and so the size of
	// the object to about 1 MB.
	maxPendingAssignments = 4096
	// fullLedgerDelay is the time between two writes of a nearly full object.
	fullLedgerDelay = time.Second
	// enoughForTrim closed assignments in the object cause a write of their own, once nothing was
	// written for trimDelay.
	enoughForTrim = 64
	trimDelay     = 5 * time.Second
)

// startSwap writes the pending assignments of stagedWrites into the AddressLedger when that is due.
// A single Service is served at once.
func (r *ServiceWorker) startSwap(ctx context.Context) {
	j := &r.ledgerWriter
	if j.swapInFlight {
		return
	}
	if len(j.stagedWrites) == 0 {
		j.fullLogged = false
		r.trimLedger(ctx)
		return
	}
	if r.isLedgerFull(time.Now()) {
		return
	}
	isSingle := len(j.stagedWrites) == 1 && r.tasksInFlight+len(r.readyTasks) == 0 && r.queue.isEmpty()
	if wait := max(j.nextSwapDelay(time.Now(), isSingle), j.refusalDelay(time.Now())); wait > 0 {
		if now := time.Now(); !j.timerUntil.After(now) || now.Add(wait).Before(j.timerUntil) {
			j.timerUntil = now.Add(wait)
			r.wakeAfter(wait)
		}
		return
	}
	j.timerUntil = time.Time{}
	if batch := j.takeNextBatch(); len(batch) > 0 {
		r.startLedgerWrite(ctx, batch)
	}
}

// startLedgerWrite writes the AddressLedger with the pending assignments of a batch.
func (r *ServiceWorker) startLedgerWrite(ctx context.Context, batch []*serviceWrite) {
	j := &r.ledgerWriter
	j.writesInSwap = len(batch)
	s := &ledgerSwap{batch: batch, object: &v1alpha1.AddressLedger{TypeMeta: j.object.TypeMeta, ObjectMeta: *j.object.ObjectMeta.DeepCopy(), Spec: j.object.Spec}}
	s.object.Spec.Writer, s.object.Spec.Pending = r.Identity, pendingForLedger(j.fence.NextPending(pendingOfWrites(batch)))
	j.recordSwapStart(time.Now())
	r.startTask(ctx, s)
}

// isLedgerFull says whether the staged writes wait because too many assignments are open, until
// there is room for a large batch or fullLedgerDelay is over: the object is large then and must not
// be written for each Service. It logs that once until no write waits.
func (r *ServiceWorker) isLedgerFull(now time.Time) bool {
	j := &r.ledgerWriter
	room := j.maxPending - j.fence.CountPending()
	again := j.lastSwap.Add(fullLedgerDelay)
	switch {
	case j.fence.HasPending(j.stagedWrites[0].service.Key), room >= min(maxSwapBatch, len(j.stagedWrites), j.maxPending/2), room > 0 && !now.Before(again):
		return false
	case room > 0 && (!j.wakeTimerUntil.After(now) || j.wakeTimerUntil.After(again)):
		j.wakeTimerUntil = again
		r.wakeAfter(again.Sub(now))
	}
	if !j.fullLogged {
		j.fullLogged = true
		r.workerState.countLedgerFull()
		r.Log.Info("the AddressLedger is full of open pending assignments; further Services wait until some of those are written",
			"ledger", r.ledgerLogName(), "open", j.fence.CountPending(), "waiting", len(j.stagedWrites))
	}
	return true
}

// takeNextBatch removes the writes of the next swap from stagedWrites: those with a pending
// assignment in the object already, and others as long as there is room.
func (j *ledgerWriter) takeNextBatch() []*serviceWrite {
	room, most := j.maxPending-j.fence.CountPending(), maxSwapBatch
	if j.batchLimit > 0 {
		most = min(most, j.batchLimit)
	}
	again := j.hasOnlyRefused()
	if again {
		most = 1
	}
	var batch, rest []*serviceWrite
	for _, w := range j.stagedWrites {
		shown := j.fence.HasPending(w.service.Key)
		if len(batch) == most || w.entryRefused && !again || !shown && room <= 0 {
			rest = append(rest, w)
			continue
		}
		if !shown {
			room--
		}
		batch = append(batch, w)
	}
	j.stagedWrites = rest
	return batch
}

// trimLedger writes the object without closed assignments when there is no other work and the
// object has many of them, because they would mislead its readers.
func (r *ServiceWorker) trimLedger(ctx context.Context) {
	j := &r.ledgerWriter
	if len(j.object.Spec.Pending)-j.fence.CountPending() < enoughForTrim || r.tasksInFlight+len(r.readyTasks) > 0 || !r.queue.isEmpty() {
		return
	}
	now := time.Now()
	if wait := j.lastSwap.Add(max(trimDelay, retryDelay(j.failures))).Sub(now); wait > 0 {
		if !j.wakeTimerUntil.After(now) {
			j.wakeTimerUntil = now.Add(wait)
			r.wakeAfter(wait)
		}
		return
	}
	r.startLedgerWrite(ctx, nil)
}

// nextSwapDelay is how long until the next swap is due.
func (j *ledgerWriter) nextSwapDelay(now time.Time, isSingle bool) time.Duration {
	switch {
	case j.failures > 0:
		return j.lastSwap.Add(retryDelay(j.failures)).Sub(now)
	case len(j.stagedWrites) >= enoughForSwap, isSingle && j.burstUsedUntil.Sub(now) < maxSwapBurst*swapInterval:
		return 0
	}
	return j.lastSwap.Add(swapInterval).Sub(now)
}

// recordSwapStart records that a swap begins. Each uses one interval of the burst.
func (j *ledgerWriter) recordSwapStart(now time.Time) {
	j.swapInFlight, j.lastSwap = true, now
	if j.burstUsedUntil.Before(now) {
		j.burstUsedUntil = now
	}
	j.burstUsedUntil = j.burstUsedUntil.Add(swapInterval)
}

// pendingOfWrites returns the pending assignments of the writes.
func pendingOfWrites(batch []*serviceWrite) []fence.Pending {
	out := make([]fence.Pending, 0, len(batch))
	for _, w := range batch {
		out = append(out, w.pendingEntry())
	}
	return out
}

// pendingEntry is what the AddressLedger must contain before the write begins.
func (w *serviceWrite) pendingEntry() fence.Pending {
	return fence.Pending{Service: w.service.Key, Base: w.before.ResourceVersion, Addresses: w.decision.Addresses}
}

// ledgerSwap writes the AddressLedger for a batch.
type ledgerSwap struct {
	batch  []*serviceWrite
	object *v1alpha1.AddressLedger
}

// runTask implements task.
func (s *ledgerSwap) runTask(ctx context.Context, api API) taskResult {
	now, err := api.SwapLedger(ctx, s.object)
	return func(_ context.Context, r *ServiceWorker) { r.finishSwap(s, now, err) }
}

// finishSwap starts the writes of a batch whose assignments are in the AddressLedger. If another
// controller has written or deleted the AddressLedger, everything is read and decided again. A swap
// with an unknown result is repeated on the same base: if it had succeeded, that is refused. An
// entry that the API server refuses permanently is found and left out.
func (r *ServiceWorker) finishSwap(s *ledgerSwap, now *v1alpha1.AddressLedger, err error) {
	j := &r.ledgerWriter
	j.swapInFlight, j.writesInSwap = false, 0
	if err == nil {
		r.acceptBatch(s.batch)
		j.failures, j.object = 0, now
		r.workerState.recordAttempt(phaseWriting, true)
		j.fence.RecordWritten(pendingOfWrites(s.batch))
		for _, w := range s.batch {
			r.enqueueTask(w)
		}
		return
	}
	if isPermanentRefusal(err) && len(s.batch) > 0 {
		r.splitBatch(s.batch, err)
		return
	}
	j.stagedWrites = append(s.batch, j.stagedWrites...)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		r.Log.Info("another controller assigned addresses, or the AddressLedger is new", "ledger", r.ledgerLogName(), "error", err)
		for _, w := range j.stagedWrites {
			r.queue.addChanged(w.service.Key)
		}
		cause := reloadCauseLedgerChanged
		if apierrors.IsNotFound(err) {
			cause = reloadCauseLedgerDeleted
		}
		r.requireReload(cause) // loadLedger makes the staged writes be decided again
		return
	}
	j.failures++
	r.Log.Error("writing the AddressLedger failed; no new address is assigned until it succeeds", "ledger", r.ledgerLogName(), "error", err, "again", retryDelay(j.failures))
}
