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
	// swapInterval is how long the Services of a batch gather when more than one wait, unless they are swapEnough before. It bounds
	// the writes of the AddressLedger to five a second when few come, and to one for 14 Services when many do, and adds that
	// much at most to an address that comes in a crowd.
	swapInterval = 200 * time.Millisecond
	swapEnough   = 14
	// swapBurst is how often in a row a Service that comes alone need not wait.
	swapBurst = 5
	// swapBatch bounds the Services of one write.
	swapBatch = 512
	// maxOpen bounds the Intents that are not settled, and so the size of the object to about 1 MB.
	maxOpen = 4096
)

// swap writes the Intents of the staged writes into the AddressLedger, when it is time to. A Service that comes alone is served
// at once.
func (r *Services) swap(ctx context.Context) {
	j := &r.journal
	if j.swapping || len(j.staged) == 0 || j.fence.Open() >= maxOpen {
		return
	}
	alone := len(j.staged) == 1 && r.inFlight+len(r.ready) == 0 && r.inbox.empty()
	if wait := j.wait(time.Now(), alone); wait > 0 {
		if !j.due {
			j.due = true
			r.pokeAfter(wait)
		}
		return
	}
	j.due = false
	n := min(len(j.staged), swapBatch)
	s := &swap{batch: j.staged[:n:n], object: j.object.DeepCopy()}
	j.staged = j.staged[n:]
	s.object.Spec.Writer, s.object.Spec.Pending = r.Identity, pendingOf(j.fence.Next(intents(s.batch)))
	j.began(time.Now())
	r.perform(ctx, s)
}

// wait is how long until the next swap is due.
func (j *journal) wait(now time.Time, alone bool) time.Duration {
	switch {
	case j.failures > 0:
		return j.last.Add(delay(j.failures)).Sub(now)
	case len(j.staged) >= swapEnough, alone && j.spent.Sub(now) < swapBurst*swapInterval:
		return 0
	}
	return j.last.Add(swapInterval).Sub(now)
}

// began records that a swap begins. Each spends an interval of those that a burst may.
func (j *journal) began(now time.Time) {
	j.swapping, j.last = true, now
	if j.spent.Before(now) {
		j.spent = now
	}
	j.spent = j.spent.Add(swapInterval)
}

// intents are those of the writes.
func intents(batch []*write) []fence.Intent {
	out := make([]fence.Intent, 0, len(batch))
	for _, w := range batch {
		out = append(out, fence.Intent{Service: w.v.Key, Base: w.before.ResourceVersion, Addresses: w.decision.Addresses})
	}
	return out
}

// swap writes the AddressLedger for a batch.
type swap struct {
	batch  []*write
	object *v1alpha1.AddressLedger
}

// run implements task.
func (s *swap) run(ctx context.Context, api API) result {
	now, err := api.SwapLedger(ctx, s.object)
	return func(_ context.Context, r *Services) { r.swapped(s, now, err) }
}

// swapped goes on with the writes of a batch whose Intents are in the AddressLedger. When somebody else has written it, or took
// it away, everything is read again and the batch decided anew. A swap of which it is not known whether it was written is tried
// again on the same base: if it was, that is refused.
func (r *Services) swapped(s *swap, now *v1alpha1.AddressLedger, err error) {
	j := &r.journal
	j.swapping = false
	if err == nil {
		j.failures, j.object = 0, now
		j.fence.Wrote(intents(s.batch))
		for _, w := range s.batch {
			r.start(w)
		}
		return
	}
	j.staged = append(s.batch, j.staged...)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		r.Log.Info("another controller gave addresses, or the AddressLedger is new; reading everything again", "ledger", r.ledgerName())
		for _, w := range j.staged {
			r.inbox.add(w.v.Key)
		}
		r.loaded.Store(false) // load has the staged writes decided again
		r.inbox.poke()
		return
	}
	j.failures++
	r.Log.Error("writing the AddressLedger; no new address is given before that", "ledger", r.ledgerName(), "error", err, "again", delay(j.failures))
}
