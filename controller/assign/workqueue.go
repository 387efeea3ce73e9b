package assign

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/internal/view"
)

// workQueue collects what the worker has to do, each Service once however often it changed. It may
// be used from any goroutine. It accepts Services only after startAcceptingServices, because a
// controller that is not the leader has nothing to do.
type workQueue struct {
	wakeSignal *latest.Wake // of the worker

	mu                  sync.Mutex // guards all that follows
	isAcceptingServices bool
	// changedServices have changed. affectedServices may be affected by a change elsewhere. Changed
	// ones come first, so that a new Service does not wait behind all the others.
	changedServices, affectedServices serviceQueue
	// deletedUIDs are the UIDs of Services that were deleted and have not been taken yet.
	deletedUIDs map[view.ObjectKey]types.UID
	// poolOrReservationChanged says that the status of a pool or reservation was written.
	poolOrReservationChanged bool
	// probesChanged says that AddressProbes changed.
	probesChanged bool
}

// serviceQueue has Services, each once. Their namespaces take turns.
type serviceQueue struct {
	keys   namespaceTurns[view.ObjectKey]
	queued map[view.ObjectKey]struct{}
}

func (q *serviceQueue) addKey(k view.ObjectKey) {
	if _, double := q.queued[k]; double {
		return
	}
	if q.queued == nil {
		q.queued = map[view.ObjectKey]struct{}{}
	}
	q.queued[k] = struct{}{}
	q.keys.addItem(k.Namespace, k)
}

func (q *serviceQueue) takeKeys(n int) []view.ObjectKey {
	out := make([]view.ObjectKey, 0, min(n, q.keys.itemCount))
	for len(out) < cap(out) {
		k := q.keys.takeItem()
		delete(q.queued, k)
		out = append(out, k)
	}
	return out
}

func newWorkQueue() *workQueue {
	return &workQueue{wakeSignal: latest.NewWake(), deletedUIDs: map[view.ObjectKey]types.UID{}}
}

func (b *workQueue) startAcceptingServices() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.isAcceptingServices = true
}

// wakeWorker makes the worker check for work.
func (b *workQueue) wakeWorker() { b.wakeSignal.Signal() }

// wakeWorkerAfter makes it check for work after d.
func (b *workQueue) wakeWorkerAfter(d time.Duration) { time.AfterFunc(d, b.wakeWorker) }

// wakeTimer is when the last timer of one part of the worker ends. The zero value is none.
type wakeTimer struct{ firesAt time.Time }

// wakeWorkerAt makes the worker check for work at due, unless a timer of the part ends before.
func (t *wakeTimer) wakeWorkerAt(due, now time.Time, b *workQueue) {
	if !t.firesAt.After(now) || due.Before(t.firesAt) {
		t.firesAt = due
		b.wakeWorkerAfter(due.Sub(now))
	}
}

// addChangedServiceAfter adds a Service after d, as one that changed.
func (b *workQueue) addChangedServiceAfter(k view.ObjectKey, d time.Duration) {
	time.AfterFunc(d, func() { b.addChangedServices(k) })
}

// addChangedServices adds Services that changed.
func (b *workQueue) addChangedServices(keys ...view.ObjectKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.isAcceptingServices {
		return
	}
	for _, k := range keys {
		b.changedServices.addKey(k)
	}
	b.wakeWorker()
}

// addAffectedServices adds Services that may be affected by a change elsewhere.
func (b *workQueue) addAffectedServices(keys ...view.ObjectKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range keys {
		b.affectedServices.addKey(k)
	}
	b.wakeWorker()
}

// addDeletedService adds a deleted Service by its UID: another Service may already have its name.
func (b *workQueue) addDeletedService(k view.ObjectKey, uid types.UID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.isAcceptingServices {
		return
	}
	b.deletedUIDs[k] = uid
	b.changedServices.addKey(k)
	b.wakeWorker()
}

// markPoolOrReservationChanged records that the status of a pool or reservation was written.
func (b *workQueue) markPoolOrReservationChanged() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.poolOrReservationChanged = true
	b.wakeWorker()
}

// markProbesChanged records that AddressProbes changed.
func (b *workQueue) markProbesChanged() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probesChanged = true
	b.wakeWorker()
}

// takeProbesChanged says whether AddressProbes changed since it was last asked.
func (b *workQueue) takeProbesChanged() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.probesChanged
	b.probesChanged = false
	return a
}

// takePoolOrReservationChanged says whether the status of a configuration object was
// written since it was last asked.
func (b *workQueue) takePoolOrReservationChanged() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.poolOrReservationChanged
	b.poolOrReservationChanged = false
	return s
}

// serviceToDecide is a Service to decide. deletedUID is the UID of the deleted Service, if there is
// one.
type serviceToDecide struct {
	view.ObjectKey
	deletedUID types.UID
}

// takeItems removes and returns at most n Services.
func (b *workQueue) takeItems(n int) []serviceToDecide {
	b.mu.Lock()
	defer b.mu.Unlock()
	keys := b.changedServices.takeKeys(n)
	keys = append(keys, b.affectedServices.takeKeys(n-len(keys))...)
	out := make([]serviceToDecide, 0, len(keys))
	for _, k := range keys {
		out = append(out, serviceToDecide{k, b.deletedUIDs[k]})
		delete(b.deletedUIDs, k)
	}
	return out
}

// putBackItem puts back an item that was taken and not handled.
func (b *workQueue) putBackItem(l serviceToDecide) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, newer := b.deletedUIDs[l.ObjectKey]; l.deletedUID != "" && !newer {
		b.deletedUIDs[l.ObjectKey] = l.deletedUID
	}
	b.changedServices.addKey(l.ObjectKey)
	b.wakeWorker()
}

// hasNoQueuedServices says whether no Service waits.
func (b *workQueue) hasNoQueuedServices() bool { return b.countQueuedServices() == 0 }

// countQueuedServices counts the waiting Services.
func (b *workQueue) countQueuedServices() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changedServices.keys.itemCount + b.affectedServices.keys.itemCount
}
