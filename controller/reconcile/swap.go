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
	// maxOpen bounds the Services with Intents that are not settled, and so the size of the object to about 1 MB.
	maxOpen = 4096
	// boundDelay is between the writes of an object that is nearly full.
	boundDelay = time.Second
	// tidyEnough settled Intents that the object still shows are worth a write of their own, once nothing was written for a tidyDelay.
	tidyEnough = 64
	tidyDelay  = 5 * time.Second
)

// swap writes the Intents of the staged writes into the AddressLedger, when it is time to. A Service that comes alone is served
// at once.
func (r *Services) swap(ctx context.Context) {
	j := &r.journal
	if j.swapping {
		return
	}
	if len(j.staged) == 0 {
		j.bounded = false
		r.tidy(ctx)
		return
	}
	if r.heldBack(time.Now()) {
		return
	}
	alone := len(j.staged) == 1 && r.inFlight+len(r.ready) == 0 && r.inbox.empty()
	if wait := max(j.wait(time.Now(), alone), j.refusalWait(time.Now())); wait > 0 {
		if now := time.Now(); !j.due.After(now) || now.Add(wait).Before(j.due) {
			j.due = now.Add(wait)
			r.pokeAfter(wait)
		}
		return
	}
	j.due = time.Time{}
	if batch := j.takeBatch(); len(batch) > 0 {
		r.writeLedger(ctx, batch)
	}
}

// writeLedger has the AddressLedger written with the Intents of a batch.
func (r *Services) writeLedger(ctx context.Context, batch []*write) {
	j := &r.journal
	j.inSwap = len(batch)
	s := &swap{batch: batch, object: &v1alpha1.AddressLedger{TypeMeta: j.object.TypeMeta, ObjectMeta: *j.object.ObjectMeta.DeepCopy(), Spec: j.object.Spec}}
	s.object.Spec.Writer, s.object.Spec.Pending = r.Identity, pendingOf(j.fence.Next(intents(batch)))
	j.began(time.Now())
	r.perform(ctx, s)
}

// heldBack says whether the staged writes wait because as many Intents are open as may be, until there is room for a large batch
// or boundDelay is over: the object is large then, and not to be written for each Service. It is logged once until nothing waits.
func (r *Services) heldBack(now time.Time) bool {
	j := &r.journal
	room := j.bound - j.fence.Open()
	again := j.last.Add(boundDelay)
	switch {
	case j.fence.Shows(j.staged[0].v.Key), room >= min(swapBatch, len(j.staged), j.bound/2), room > 0 && !now.Before(again):
		return false
	case room > 0 && (!j.wakeAt.After(now) || j.wakeAt.After(again)):
		j.wakeAt = again
		r.pokeAfter(again.Sub(now))
	}
	if !j.bounded {
		j.bounded = true
		r.state.countBounded()
		r.Log.Info("as many pending assignments are open as the AddressLedger may hold; further Services wait until some of those are written",
			"ledger", r.ledgerName(), "open", j.fence.Open(), "waiting", len(j.staged))
	}
	return true
}

// takeBatch takes the writes of the next swap out of the staged ones: those of which the object shows a pending assignment, and others
// as far as there is room.
func (j *journal) takeBatch() []*write {
	room, most := j.bound-j.fence.Open(), swapBatch
	if j.limit > 0 {
		most = min(most, j.limit)
	}
	again := j.onlyRefused()
	if again {
		most = 1
	}
	var batch, rest []*write
	for _, w := range j.staged {
		shown := j.fence.Shows(w.v.Key)
		if len(batch) == most || w.refused && !again || !shown && room <= 0 {
			rest = append(rest, w)
			continue
		}
		if !shown {
			room--
		}
		batch = append(batch, w)
	}
	j.staged = rest
	return batch
}

// tidy has the object written without what is settled, when there is nothing else to do and it shows much of that: it would mislead
// everybody who looks.
func (r *Services) tidy(ctx context.Context) {
	j := &r.journal
	if len(j.object.Spec.Pending)-j.fence.Open() < tidyEnough || r.inFlight+len(r.ready) > 0 || !r.inbox.empty() {
		return
	}
	now := time.Now()
	if wait := j.last.Add(max(tidyDelay, delay(j.failures))).Sub(now); wait > 0 {
		if !j.wakeAt.After(now) {
			j.wakeAt = now.Add(wait)
			r.pokeAfter(wait)
		}
		return
	}
	r.writeLedger(ctx, nil)
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
		out = append(out, w.intent())
	}
	return out
}

// intent is what the AddressLedger has to show before the write begins.
func (w *write) intent() fence.Intent {
	return fence.Intent{Service: w.v.Key, Base: w.before.ResourceVersion, Addresses: w.decision.Addresses}
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
// again on the same base: if it was, that is refused. What the API server will never take is found and left out.
func (r *Services) swapped(s *swap, now *v1alpha1.AddressLedger, err error) {
	j := &r.journal
	j.swapping, j.inSwap = false, 0
	if err == nil {
		r.acceptBatch(s.batch)
		j.failures, j.object = 0, now
		r.state.attempt(writing, true)
		j.fence.Wrote(intents(s.batch))
		for _, w := range s.batch {
			r.start(w)
		}
		return
	}
	if isPermanentRefusal(err) && len(s.batch) > 0 {
		r.splitBatch(s.batch, err)
		return
	}
	j.staged = append(s.batch, j.staged...)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		r.Log.Info("another controller gave addresses, or the AddressLedger is new", "ledger", r.ledgerName(), "error", err)
		for _, w := range j.staged {
			r.inbox.add(w.v.Key)
		}
		cause := causeLedgerChanged
		if apierrors.IsNotFound(err) {
			cause = causeLedgerDeleted
		}
		r.requireReload(cause) // load has the staged writes decided again
		return
	}
	j.failures++
	r.Log.Error("writing the AddressLedger; no new address is given before that", "ledger", r.ledgerName(), "error", err, "again", delay(j.failures))
}
