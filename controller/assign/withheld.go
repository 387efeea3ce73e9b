package assign

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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
	// before a crash is lost. With many entries the interval is longer: see
	// minWithheldSaveInterval.
	withheldSaveInterval = time.Second
	// withheldEntriesPerExtraInterval is how many entries make the interval longer by
	// withheldSaveInterval: about 32 KB, so that the AddressLedger costs etcd at most 32 KB a
	// second.
	withheldEntriesPerExtraInterval = 128
)

// withheldCheckpoint owns the AddressLedger object that stores the withheld addresses. The worker
// restores the Ledger from it at each load, saves it once per turn, and passes the result of each
// write. All its methods run on the worker's goroutine.
type withheldCheckpoint struct {
	log          *slog.Logger
	workQueue    *workQueue
	apiTaskQueue *apiTaskQueue
	// namespace has the object. writerIdentity names this process in it.
	namespace, writerIdentity string

	ledgerObject *v1alpha1.AddressLedger
	// writtenCheckpointVersion is the Ledger's WithheldCheckpointVersion that the object has.
	writtenCheckpointVersion uint64
	lastWrite                time.Time
	writeInFlight            bool
	saveTimerSet             bool // a timer runs
	// countByReason is the metric of the withheld addresses.
	countByReason *prometheus.GaugeVec
}

// countWithheldAddresses sets the metric to the entries of the object.
func (m *withheldCheckpoint) countWithheldAddresses(entries []v1alpha1.WithheldAddress) {
	m.countByReason.Reset()
	for _, e := range entries {
		m.countByReason.WithLabelValues(e.Reason).Inc()
	}
}

// newLedgerWithWithheldAddresses returns a new Ledger that has only the withheld addresses: those
// in the object, and those of the Ledger before, which may be newer, unless it is nil. An invalid
// entry is ignored, because it only withholds an address.
func (m *withheldCheckpoint) newLedgerWithWithheldAddresses(object *v1alpha1.AddressLedger, before *allocate.Ledger, now time.Time) *allocate.Ledger {
	l := allocate.NewLedger()
	l.AdvanceTime(now)
	for _, w := range object.Spec.Withheld {
		a, err := netip.ParseAddr(w.Address)
		if err != nil {
			m.log.Error("an entry of a withheld address is invalid and ignored", "ledger", m.namespace+"/"+names.WithheldAddressesLedger, "error", err)
			continue
		}
		l.WithholdAddress(allocate.WithheldAddress{
			Address: a, Reason: names.Reason(w.Reason), ServiceThatMayHoldIt: view.ObjectKey{Namespace: w.Namespace, Name: w.Name}, WithheldUntil: w.Until.Time, ReservationOrForeignHost: w.By,
		})
	}
	m.countWithheldAddresses(object.Spec.Withheld)
	m.ledgerObject, m.writtenCheckpointVersion = object, l.WithheldCheckpointVersion()
	if before != nil {
		for _, w := range before.WithheldCheckpointEntries(maxWithheldEntries) {
			l.WithholdAddress(w)
		}
	}
	return l
}

// minWithheldSaveInterval is the shortest time between two writes of an object with this many
// entries.
func minWithheldSaveInterval(entries int) time.Duration {
	return withheldSaveInterval * time.Duration(max(1, entries/withheldEntriesPerExtraInterval))
}

// saveIfChanged writes the withheld addresses of a Ledger if they have changed. ledgerBuildNumber
// is that of the Ledger.
func (m *withheldCheckpoint) saveIfChanged(now time.Time, l *allocate.Ledger, ledgerBuildNumber int) {
	if m.writeInFlight || m.writtenCheckpointVersion == l.WithheldCheckpointVersion() {
		return
	}
	if wait := m.lastWrite.Add(minWithheldSaveInterval(len(m.ledgerObject.Spec.Withheld))).Sub(now); wait > 0 {
		if !m.saveTimerSet {
			m.saveTimerSet = true
			m.workQueue.wakeWorkerAfter(wait)
		}
		return
	}
	w := &withheldAddressesWriteTask{ledgerObject: m.ledgerObject.DeepCopy(), checkpointVersion: l.WithheldCheckpointVersion(), ledgerBuildNumber: ledgerBuildNumber}
	w.ledgerObject.Spec.Writer, w.ledgerObject.Spec.Withheld = m.writerIdentity, nil
	for _, e := range l.WithheldCheckpointEntries(maxWithheldEntries) {
		w.ledgerObject.Spec.Withheld = append(w.ledgerObject.Spec.Withheld, v1alpha1.WithheldAddress{
			Address: e.Address.String(), Reason: string(e.Reason), Namespace: e.ServiceThatMayHoldIt.Namespace, Name: e.ServiceThatMayHoldIt.Name,
			// The API has no fractions of a second.
			Until: metav1.NewTime(e.WithheldUntil.Add(time.Second - 1).Truncate(time.Second)), By: e.ReservationOrForeignHost,
		})
	}
	m.countWithheldAddresses(w.ledgerObject.Spec.Withheld)
	m.saveTimerSet, m.writeInFlight, m.lastWrite = false, true, now
	m.apiTaskQueue.enqueueTask(w)
}

// withheldAddressesWriteTask writes the withheld addresses.
type withheldAddressesWriteTask struct {
	ledgerObject      *v1alpha1.AddressLedger
	checkpointVersion uint64
	ledgerBuildNumber int
}

// runTask implements apiRequestTask. After a conflict the next attempt overwrites the newest
// object: the current leader knows more than the previous one.
func (w *withheldAddressesWriteTask) runTask(ctx context.Context, api WorkerAPI) taskResultHandler {
	now, err := api.CompareAndSwapLedger(ctx, w.ledgerObject)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		if read, again := api.ReadOrCreateLedger(ctx, names.WithheldAddressesLedger); again == nil {
			now = read
		}
	}
	return func(_ context.Context, r *ServiceWorker) {
		r.withheldCheckpoint.handleSaveResult(w, now, r.ledgerBuildNumber, err)
	}
}

// handleSaveResult handles the result of a write. object is the newest known one, or nil.
// ledgerBuildNumber is that of the current Ledger: if it was rebuilt since, its
// WithheldCheckpointVersion cannot be compared with the one that was written.
func (m *withheldCheckpoint) handleSaveResult(w *withheldAddressesWriteTask, object *v1alpha1.AddressLedger, ledgerBuildNumber int, err error) {
	m.writeInFlight = false
	if object != nil {
		m.ledgerObject = object
	}
	if err == nil && w.ledgerBuildNumber == ledgerBuildNumber {
		m.writtenCheckpointVersion = w.checkpointVersion
	}
	if err != nil {
		m.log.Error("writing the withheld addresses failed", "ledger", m.namespace+"/"+names.WithheldAddressesLedger, "error", err, "reason", names.ReasonWriteFailed, "again", withheldSaveInterval)
		m.workQueue.wakeWorkerAfter(withheldSaveInterval)
	}
}
