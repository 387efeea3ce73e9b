package reconcile

import (
	"context"
	"net/netip"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/view"
)

// Limits of what is remembered of addresses that are withheld.
const (
	// maxWithheld bounds the entries of the object, and so its size to about 1 MB.
	maxWithheld = 4096
	// withheldInterval bounds how often it is written. A cool-down that began less than this before a crash is lost.
	withheldInterval = time.Second
)

// keepsake is the worker's side of the AddressLedger that remembers what is withheld.
type keepsake struct {
	object *v1alpha1.AddressLedger
	// written is the Ledger's count of changes that the object shows.
	written uint64
	last    time.Time
	writing bool
	due     bool // a timer runs
}

// recall makes an empty Ledger that knows what is withheld: by the object, and by the Ledger before, which may know what is not
// written yet. An entry that cannot be read is left out: it withholds an address and no more.
func (r *Services) recall(object *v1alpha1.AddressLedger) {
	before := r.ledger
	r.ledger = allocate.NewLedger()
	r.ledger.Advance(time.Now())
	for _, w := range object.Spec.Withheld {
		a, err := netip.ParseAddr(w.Address)
		if err != nil {
			r.Log.Error("reading what is withheld; the entry is passed over", "ledger", r.Namespace+"/"+names.WithheldLedger, "error", err)
			continue
		}
		r.ledger.Withhold(allocate.Withheld{
			Address: a, Reason: names.Reason(w.Reason), Service: view.ObjectKey{Namespace: w.Namespace, Name: w.Name}, Until: w.Until.Time, By: w.By,
		})
	}
	r.kept.object, r.kept.written = object, r.ledger.Lasting()
	if before != nil {
		for _, w := range before.Remember(maxWithheld) {
			r.ledger.Withhold(w)
		}
	}
}

// remember has what is withheld written, where that has changed.
func (r *Services) remember(_ context.Context) {
	m := &r.kept
	if m.writing || m.written == r.ledger.Lasting() {
		return
	}
	if wait := time.Until(m.last.Add(withheldInterval)); wait > 0 {
		if !m.due {
			m.due = true
			r.pokeAfter(wait)
		}
		return
	}
	w := &withheldWrite{object: m.object.DeepCopy(), count: r.ledger.Lasting(), epoch: r.epoch}
	w.object.Spec.Writer, w.object.Spec.Withheld = r.Identity, nil
	for _, e := range r.ledger.Remember(maxWithheld) {
		w.object.Spec.Withheld = append(w.object.Spec.Withheld, v1alpha1.WithheldAddress{
			Address: e.Address.String(), Reason: string(e.Reason), Namespace: e.Service.Namespace, Name: e.Service.Name,
			Until: metav1.NewTime(e.Until.Add(time.Second - 1).Truncate(time.Second)), By: e.By, // the API knows no parts of a second
		})
	}
	m.due, m.writing, m.last = false, true, time.Now()
	r.start(w)
}

// withheldWrite writes what is withheld.
type withheldWrite struct {
	object *v1alpha1.AddressLedger
	count  uint64
	epoch  int
}

// run implements task. When the object is not the one that was read, the newest is the base of the next attempt: who leads knows better
// than who led before.
func (w *withheldWrite) run(ctx context.Context, api API) result {
	now, err := api.SwapLedger(ctx, w.object)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		if read, again := api.Ledger(ctx, names.WithheldLedger); again == nil {
			now = read
		}
	}
	return func(_ context.Context, r *Services) {
		m := &r.kept
		m.writing = false
		if now != nil {
			m.object = now
		}
		if err == nil && w.epoch == r.epoch {
			m.written = w.count
		}
		if err != nil {
			r.Log.Error("writing what is withheld", "ledger", r.Namespace+"/"+names.WithheldLedger, "error", err, "reason", names.ReasonWriteFailed, "again", withheldInterval)
			r.pokeAfter(withheldInterval)
		}
	}
}
