package reconcile

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/allocate"
)

// What the API server refuses for good concerns the Service whose entry it does not take, a policy say,
// and nobody else. It does not say which entry, so that the batch is written in halves until it is found.

const (
	// maxRefusalsBurst is how many new entries in a row may be refused before the writes slow down: then it
	// is not an entry that is refused but the controller, which its RBAC does not allow to write, say.
	maxRefusalsBurst = 64
	// refusalInterval is the least time between two writes then, and between two of entries that were
	// refused before.
	refusalInterval = time.Second
	// maxRefusalTextBytes bounds what is quoted of the API server's answer, in bytes.
	maxRefusalTextBytes = 400
)

// isPermanentRefusal says whether the API server answers so whenever it is asked the same.
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

// hasOnlyRefused says whether all staged writes are of Services whose entries were refused before. Those go
// alone and last, so that nobody waits for them.
func (j *ledgerWriter) hasOnlyRefused() bool {
	return !slices.ContainsFunc(j.stagedWrites, func(w *serviceWrite) bool { return !w.entryRefused })
}

// refusalDelay is how long the next swap has to wait because of what was refused.
func (j *ledgerWriter) refusalDelay(now time.Time) time.Duration {
	if j.refusalsInARow <= maxRefusalsBurst && !j.hasOnlyRefused() {
		return 0
	}
	return j.lastRefusal.Add(refusalInterval).Sub(now)
}

// acceptBatch notes that the API server has taken the entries of a batch.
func (r *ServiceWorker) acceptBatch(batch []*serviceWrite) {
	j := &r.ledgerWriter
	j.refusalsInARow = 0
	if j.batchLimit *= 2; j.batchLimit >= maxSwapBatch {
		j.batchLimit = 0
	}
	for _, w := range batch {
		r.records[w.service.Key].entryRefused = false
	}
}

// splitBatch goes on after the API server has refused a batch for good.
func (r *ServiceWorker) splitBatch(batch []*serviceWrite, err error) {
	j := &r.ledgerWriter
	if n := len(batch); n > 1 {
		j.stagedWrites, j.batchLimit = append(batch, j.stagedWrites...), n/2
		r.Log.Info("the API server refuses pending assignments; looking for the Service", "ledger", r.ledgerLogName(), "services", n, "error", err)
		return
	}
	if j.lastRefusal = time.Now(); !batch[0].entryRefused {
		j.refusalsInARow++
	}
	r.failRefusedWrite(batch[0], err)
}

// failRefusedWrite gives up for a while what was decided for a Service, since the AddressLedger cannot show
// it, and has the Service say so. It keeps what it has.
func (r *ServiceWorker) failRefusedWrite(w *serviceWrite, err error) {
	rec := r.records[w.service.Key]
	rec.failures++
	rec.entryRefused = true
	wait := retryDelay(rec.failures)
	rec.refusedVersion, rec.retryAt = w.before.ResourceVersion, time.Now().Add(wait)
	r.logFailure(w.service.Key, err, wait)
	r.enqueueAfter(w.service.Key, wait)
	r.waitingServices.setReason(w.service.Key, names.ReasonWriteFailed)

	text := err.Error()
	if len(text) > maxRefusalTextBytes {
		text = strings.ToValidUTF8(text[:maxRefusalTextBytes], "") + "…"
	}
	d := allocate.Decision{
		Addresses: w.service.AssignedAddresses, Pool: w.service.RecordedPool, Reason: names.ReasonWriteFailed, WantsMore: true,
		Text: "the API server refuses the pending assignment of this Service: " + text +
			": change what the Service asks for, or what refuses it; it is tried again by and by",
	}
	if all := w.before.Annotations[names.AnnotationFromPools]; all != "" {
		d.Pools = strings.Split(all, ",")
	}
	failed := &serviceWrite{service: w.service, before: w.before, decision: d, pool: d.Pool, heldBefore: w.heldBefore, ledgerEpoch: w.ledgerEpoch}
	failed.after = desiredService(w.before, d, d.Pool)
	if isUnchanged(failed.before, failed.after) {
		r.unlockService(w.service.Key)
		r.revertToStatus(w, w.before)
		return
	}
	r.enqueueTask(failed)
}
