package assign

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
	// withheldSaveInterval bounds how often it is written. A cool-down that began less than this
	// before a crash is lost.
	withheldSaveInterval = time.Second
)

// withheldCheckpoint is the state of the AddressLedger that stores withheld addresses.
type withheldCheckpoint struct {
	ledgerObject *v1alpha1.AddressLedger
	// writtenVersion is the Ledger's CheckpointVersion that the object has.
	writtenVersion uint64
	lastWrite      time.Time
	writeInFlight  bool
	saveTimerSet   bool // a timer runs
}

// restoreWithheldAddresses creates an empty Ledger with the withheld addresses: those in the
// object, and those of the previous Ledger, which may be newer. An invalid entry is ignored,
// because it only withholds an address.
func (r *ServiceWorker) restoreWithheldAddresses(object *v1alpha1.AddressLedger) {
	before := r.ledger
	r.ledger = allocate.NewLedger()
	r.ledger.AdvanceTime(r.Now())
	for _, w := range object.Spec.Withheld {
		a, err := netip.ParseAddr(w.Address)
		if err != nil {
			r.Log.Error("an entry of a withheld address is invalid and ignored", "ledger", r.Namespace+"/"+names.WithheldLedger, "error", err)
			continue
		}
		r.ledger.WithholdAddress(allocate.WithheldAddress{
			Address: a, Reason: names.Reason(w.Reason), ServiceThatMayHoldIt: view.ObjectKey{Namespace: w.Namespace, Name: w.Name}, WithheldUntil: w.Until.Time, ReservationOrForeignHost: w.By,
		})
	}
	r.withheldCheckpoint.ledgerObject, r.withheldCheckpoint.writtenVersion = object, r.ledger.CheckpointVersion()
	if before != nil {
		for _, w := range before.CheckpointEntries(maxWithheldEntries) {
			r.ledger.WithholdAddress(w)
		}
	}
}

// saveWithheldAddresses writes the withheld addresses if they have changed.
func (r *ServiceWorker) saveWithheldAddresses(_ context.Context) {
	m := &r.withheldCheckpoint
	if m.writeInFlight || m.writtenVersion == r.ledger.CheckpointVersion() {
		return
	}
	if wait := m.lastWrite.Add(withheldSaveInterval).Sub(r.Now()); wait > 0 {
		if !m.saveTimerSet {
			m.saveTimerSet = true
			r.workQueue.wakeWorkerAfter(wait)
		}
		return
	}
	w := &withheldWrite{ledgerObject: m.ledgerObject.DeepCopy(), checkpointVersion: r.ledger.CheckpointVersion(), ledgerBuildNumber: r.ledgerBuildNumber}
	w.ledgerObject.Spec.Writer, w.ledgerObject.Spec.Withheld = r.LedgerWriterIdentity, nil
	for _, e := range r.ledger.CheckpointEntries(maxWithheldEntries) {
		w.ledgerObject.Spec.Withheld = append(w.ledgerObject.Spec.Withheld, v1alpha1.WithheldAddress{
			Address: e.Address.String(), Reason: string(e.Reason), Namespace: e.ServiceThatMayHoldIt.Namespace, Name: e.ServiceThatMayHoldIt.Name,
			// The API has no fractions of a second.
			Until: metav1.NewTime(e.WithheldUntil.Add(time.Second - 1).Truncate(time.Second)), By: e.ReservationOrForeignHost,
		})
	}
	m.saveTimerSet, m.writeInFlight, m.lastWrite = false, true, r.Now()
	r.apiTaskQueue.enqueueTask(w)
}

// withheldWrite writes the withheld addresses.
type withheldWrite struct {
	ledgerObject      *v1alpha1.AddressLedger
	checkpointVersion uint64
	ledgerBuildNumber int
}

// runTask implements task. After a conflict the next attempt overwrites the newest object: the
// current leader knows more than the previous one.
func (w *withheldWrite) runTask(ctx context.Context, api WorkerAPI) taskResultHandler {
	now, err := api.CompareAndSwapLedger(ctx, w.ledgerObject)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		if read, again := api.ReadOrCreateLedger(ctx, names.WithheldLedger); again == nil {
			now = read
		}
	}
	return func(_ context.Context, r *ServiceWorker) {
		m := &r.withheldCheckpoint
		m.writeInFlight = false
		if now != nil {
			m.ledgerObject = now
		}
		if err == nil && w.ledgerBuildNumber == r.ledgerBuildNumber {
			m.writtenVersion = w.checkpointVersion
		}
		if err != nil {
			r.Log.Error("writing the withheld addresses failed", "ledger", r.Namespace+"/"+names.WithheldLedger, "error", err, "reason", names.ReasonWriteFailed, "again", withheldSaveInterval)
			r.workQueue.wakeWorkerAfter(withheldSaveInterval)
		}
	}
}
