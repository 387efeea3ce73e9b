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

// Limits of the stored entries of withheld addresses.
const (
	// maxWithheldEntries bounds the entries of the object, and so its size to about 1 MB.
	maxWithheldEntries = 4096
	// withheldInterval bounds how often it is written. A cool-down that began less than this before
	// a crash is lost.
	withheldInterval = time.Second
)

// withheldCheckpoint is the state of the AddressLedger that stores withheld addresses.
type withheldCheckpoint struct {
	object *v1alpha1.AddressLedger
	// writtenVersion is the Ledger's CheckpointVersion that the object has.
	writtenVersion uint64
	lastWrite      time.Time
	writeInFlight  bool
	timerSet       bool // a timer runs
}

// restoreWithheld creates an empty Ledger with the withheld addresses: those in the object, and
// those of the previous Ledger, which may be newer. An invalid entry is ignored, because it only
// withholds an address.
func (r *ServiceWorker) restoreWithheld(object *v1alpha1.AddressLedger) {
	before := r.ledger
	r.ledger = allocate.NewLedger()
	r.ledger.AdvanceTime(time.Now())
	for _, w := range object.Spec.Withheld {
		a, err := netip.ParseAddr(w.Address)
		if err != nil {
			r.Log.Error("an entry of a withheld address is invalid and ignored", "ledger", r.Namespace+"/"+names.WithheldLedger, "error", err)
			continue
		}
		r.ledger.WithholdAddress(allocate.WithheldAddress{
			Address: a, Reason: names.Reason(w.Reason), Service: view.ObjectKey{Namespace: w.Namespace, Name: w.Name}, Until: w.Until.Time, By: w.By,
		})
	}
	r.withheldCheckpoint.object, r.withheldCheckpoint.writtenVersion = object, r.ledger.CheckpointVersion()
	if before != nil {
		for _, w := range before.CheckpointEntries(maxWithheldEntries) {
			r.ledger.WithholdAddress(w)
		}
	}
}

// saveWithheld writes the withheld addresses if they have changed.
func (r *ServiceWorker) saveWithheld(_ context.Context) {
	m := &r.withheldCheckpoint
	if m.writeInFlight || m.writtenVersion == r.ledger.CheckpointVersion() {
		return
	}
	if wait := time.Until(m.lastWrite.Add(withheldInterval)); wait > 0 {
		if !m.timerSet {
			m.timerSet = true
			r.wakeAfter(wait)
		}
		return
	}
	w := &withheldWrite{object: m.object.DeepCopy(), version: r.ledger.CheckpointVersion(), ledgerEpoch: r.ledgerEpoch}
	w.object.Spec.Writer, w.object.Spec.Withheld = r.Identity, nil
	for _, e := range r.ledger.CheckpointEntries(maxWithheldEntries) {
		w.object.Spec.Withheld = append(w.object.Spec.Withheld, v1alpha1.WithheldAddress{
			Address: e.Address.String(), Reason: string(e.Reason), Namespace: e.Service.Namespace, Name: e.Service.Name,
			// The API has no fractions of a second.
			Until: metav1.NewTime(e.Until.Add(time.Second - 1).Truncate(time.Second)), By: e.By,
		})
	}
	m.timerSet, m.writeInFlight, m.lastWrite = false, true, time.Now()
	r.enqueueTask(w)
}

// withheldWrite writes the withheld addresses.
type withheldWrite struct {
	object      *v1alpha1.AddressLedger
	version     uint64
	ledgerEpoch int
}

// runTask implements task. After a conflict the next attempt overwrites the newest object: the
// current leader knows more than the previous one.
func (w *withheldWrite) runTask(ctx context.Context, api API) taskResult {
	now, err := api.SwapLedger(ctx, w.object)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		if read, again := api.ReadLedger(ctx, names.WithheldLedger); again == nil {
			now = read
		}
	}
	return func(_ context.Context, r *ServiceWorker) {
		m := &r.withheldCheckpoint
		m.writeInFlight = false
		if now != nil {
			m.object = now
		}
		if err == nil && w.ledgerEpoch == r.ledgerEpoch {
			m.writtenVersion = w.version
		}
		if err != nil {
			r.Log.Error("writing the withheld addresses failed", "ledger", r.Namespace+"/"+names.WithheldLedger, "error", err, "reason", names.ReasonWriteFailed, "again", withheldInterval)
			r.wakeAfter(withheldInterval)
		}
	}
}
