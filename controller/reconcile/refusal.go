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
	// refusalsBurst is how many new entries in a row may be refused before the writes slow down: then it
	// is not an entry that is refused but the controller, which its RBAC does not allow to write, say.
	refusalsBurst = 64
	// refusalsInterval is the least time between two writes then, and between two of entries that were
	// refused before.
	refusalsInterval = time.Second
	// refusalText bounds what is quoted of the API server's answer, in bytes.
	refusalText = 400
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

// onlyRefused says whether all staged writes are of Services whose entries were refused before. Those go
// alone and last, so that nobody waits for them.
func (j *journal) onlyRefused() bool {
	return !slices.ContainsFunc(j.staged, func(w *write) bool { return !w.refused })
}

// refusalWait is how long the next swap has to wait because of what was refused.
func (j *journal) refusalWait(now time.Time) time.Duration {
	if j.refusals <= refusalsBurst && !j.onlyRefused() {
		return 0
	}
	return j.lastRefusal.Add(refusalsInterval).Sub(now)
}

// acceptBatch notes that the API server has taken the entries of a batch.
func (r *Services) acceptBatch(batch []*write) {
	j := &r.journal
	j.refusals = 0
	if j.limit *= 2; j.limit >= swapBatch {
		j.limit = 0
	}
	for _, w := range batch {
		r.records[w.v.Key].entryRefused = false
	}
}

// splitBatch goes on after the API server has refused a batch for good.
func (r *Services) splitBatch(batch []*write, err error) {
	j := &r.journal
	if n := len(batch); n > 1 {
		j.staged, j.limit = append(batch, j.staged...), n/2
		r.Log.Info("the API server refuses pending assignments; looking for the Service", "ledger", r.ledgerName(), "services", n, "error", err)
		return
	}
	if j.lastRefusal = time.Now(); !batch[0].refused {
		j.refusals++
	}
	r.failAssignment(batch[0], err)
}

// failAssignment gives up for a while what was decided for a Service, since the AddressLedger cannot show
// it, and has the Service say so. It keeps what it has.
func (r *Services) failAssignment(w *write, err error) {
	rec := r.records[w.v.Key]
	rec.failures++
	rec.entryRefused = true
	wait := delay(rec.failures)
	rec.refused, rec.retry = w.before.ResourceVersion, time.Now().Add(wait)
	r.problem(w.v.Key, err, wait)
	r.lookAfter(w.v.Key, wait)
	r.pending.put(w.v.Key, names.ReasonWriteFailed)

	text := err.Error()
	if len(text) > refusalText {
		text = strings.ToValidUTF8(text[:refusalText], "") + "…"
	}
	d := allocate.Decision{
		Addresses: w.v.AssignedAddresses, Pool: w.v.RecordedPool, Reason: names.ReasonWriteFailed, Waiting: true,
		Text: "the API server refuses the pending assignment of this Service: " + text +
			": change what the Service asks for, or what refuses it; it is tried again by and by",
	}
	if all := w.before.Annotations[names.AnnotationFromPools]; all != "" {
		d.Pools = strings.Split(all, ",")
	}
	failed := &write{v: w.v, before: w.before, decision: d, pool: d.Pool, held: w.held, epoch: w.epoch}
	failed.after = desired(w.before, d, d.Pool)
	if same(failed.before, failed.after) {
		r.free(w.v.Key)
		r.revert(w, w.before)
		return
	}
	r.start(failed)
}
