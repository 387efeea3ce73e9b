package assign

import (
	"context"
	"log/slog"
	"reflect"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// applyConfiguration takes over a configuration that was published, and queues every Service that
// it may concern. It returns false while a change waits to be read: a decision would use a
// configuration that is known to be old. Right after it took one over, it returns true, so that
// frequent changes do not stop all decisions.
func (r *ServiceWorker) applyConfiguration() bool {
	now, changeWaits := r.ConfigurationReader.LatestConfiguration()
	before := r.configuration
	if now == before {
		return !changeWaits
	}
	r.configuration = now
	r.retirementScheduler.updateRetiringPools(now.Snapshot.Pools)
	r.poolOrReservationStatusWriter.needsComparison = true
	if reflect.DeepEqual(before.Snapshot.Pools, now.Snapshot.Pools) && reflect.DeepEqual(before.Snapshot.Reservations, now.Snapshot.Reservations) {
		return true // for example a namespace that no pool selects
	}
	r.mustQueueWaitingServices = true
	r.workQueue.addAffectedServices(r.ledger.ServicesHoldingAddresses()...)
	return true
}

// minPoolStatusWriteInterval bounds how often the status of a pool is written.
const minPoolStatusWriteInterval = 2 * time.Second

// poolOrReservationStatusWriter owns when the status of pools and reservations is compared and
// written. The worker calls it once per turn, after its decisions, and with the result of each
// write. All its methods run on the worker's goroutine.
type poolOrReservationStatusWriter struct {
	api          WorkerAPI
	log          *slog.Logger
	workQueue    *workQueue
	apiTaskQueue *apiTaskQueue

	// needsComparison says that the status of a pool may be wrong.
	needsComparison bool
	// lastComparedAt is when the statuses were last compared. writesInFlightCount counts the writes
	// since then that have not ended.
	lastComparedAt      time.Time
	writeTimerSet       bool // a timer runs
	writesInFlightCount int
}

// writeStatusesAndFreeAddresses writes the counters and conditions of pools and reservations that
// are wrong. It also carries out the annotation that ends cool-downs and quarantines, because the
// status says which value of it was carried out. It returns true when an address became free by
// that.
func (c *poolOrReservationStatusWriter) writeStatusesAndFreeAddresses(ctx context.Context, now time.Time, l *allocate.Ledger, config *configurationreader.Configuration, retiring *retirementScheduler) (freed bool) {
	c.needsComparison = c.workQueue.takePoolOrReservationChanged() || c.needsComparison
	if !c.needsComparison || c.writesInFlightCount > 0 {
		return false
	}
	if wait := c.lastComparedAt.Add(minPoolStatusWriteInterval).Sub(now); wait > 0 {
		if !c.writeTimerSet {
			c.writeTimerSet = true
			c.workQueue.wakeWorkerAfter(wait)
		}
		return false
	}
	o, err := c.api.ReadCachedPoolsAndReservations(ctx)
	if err != nil {
		c.log.Error("reading the pools", "error", err, "again", minPoolStatusWriteInterval)
	}
	c.needsComparison, c.writeTimerSet, c.lastComparedAt = err != nil, false, now
	for i := range o.Pools {
		freed = c.freeWithheldAddressesByAnnotation(&o.Pools[i], l, config.Snapshot) || freed
		c.writePoolStatus(&o.Pools[i], l, config, retiring)
	}
	for i := range o.Reservations {
		c.applyReservationAndWriteStatus(&o.Reservations[i], l, config)
	}
	return freed
}

// freeWithheldAddressesByAnnotation carries out the annotation of a pool that ends cool-downs and
// quarantines, if its value is new. It returns true when an address became free.
func (c *poolOrReservationStatusWriter) freeWithheldAddressesByAnnotation(p *v1beta1.IPAddressPool, l *allocate.Ledger, snap *snapshot.Snapshot) bool {
	parsed := snap.PoolByName(p.Name)
	if parsed == nil || parsed.LiftWithheldValue == "" || p.Status.Gantry != nil && p.Status.Gantry.LiftedWithheld == parsed.LiftWithheldValue {
		return false
	}
	freed := l.FreeWithheldAddressesNamedByPool(parsed)
	c.log.Info("the cool-down and the quarantine of addresses end by the annotation of their pool", "pool", p.Name, "value", parsed.LiftWithheldValue, "addresses", freed)
	return len(freed) > 0
}

func (c *poolOrReservationStatusWriter) writePoolStatus(p *v1beta1.IPAddressPool, l *allocate.Ledger, config *configurationreader.Configuration, retiring *retirementScheduler) {
	parsed := config.Snapshot.PoolByName(p.Name)
	if parsed == nil { // newer than the configuration that was read: the next one has it
		return
	}
	u := l.UsageOfPool(parsed, config.Snapshot)
	after := v1beta1.IPAddressPoolStatus{
		AssignedIPv4: u.AssignedIPv4, AssignedIPv6: u.AssignedIPv6, AvailableIPv4: u.AvailableIPv4, AvailableIPv6: u.AvailableIPv6,
		Gantry: &v1beta1.PoolStatusExtension{LiftedWithheld: parsed.LiftWithheldValue, Retire: retiring.retirementStatusOfPool(parsed, l, config.Snapshot)},
	}
	conditions := &after.Gantry.Conditions
	if p.Status.Gantry != nil {
		*conditions = slices.Clone(p.Status.Gantry.Conditions)
	}
	// The counts change with Services too. The conditions are about the pool that was read.
	if config.IsUpToDateWith(p) {
		meta.SetStatusCondition(conditions, configuration.NewValidCondition(snapshot.ObjectReference{Kind: "IPAddressPool", Namespace: p.Namespace, Name: p.Name}, p.Generation, config.Problems))
		setRetiredCondition(conditions, p.Generation, after.Gantry.Retire)
	}
	if equality.Semantic.DeepEqual(p.Status, after) {
		return
	}
	p = p.DeepCopy()
	p.Status = after
	c.startStatusWrite(&poolOrReservationStatusWriteTask{"a pool", "pool", p.Name, func(ctx context.Context, api WorkerAPI) error { return api.UpdatePoolStatus(ctx, p) }})
}

// poolOrReservationStatusWriteTask writes the status of one configuration object.
type poolOrReservationStatusWriteTask struct {
	// For the log: an article and a noun, the log key of the name, and the name of the object.
	objectKindForLog, logKey, objectName string
	updateStatus                         func(ctx context.Context, api WorkerAPI) error
}

// startStatusWrite starts it.
func (c *poolOrReservationStatusWriter) startStatusWrite(w *poolOrReservationStatusWriteTask) {
	c.writesInFlightCount++
	c.apiTaskQueue.enqueueTask(w)
}

// runTask implements apiRequestTask. After a conflict the object, which was just edited, is
// compared again.
func (w *poolOrReservationStatusWriteTask) runTask(ctx context.Context, api WorkerAPI) taskResultHandler {
	err := w.updateStatus(ctx, api)
	return func(_ context.Context, r *ServiceWorker) {
		r.poolOrReservationStatusWriter.handleStatusWriteResult(w, err)
	}
}

// handleStatusWriteResult handles the result of a write.
func (c *poolOrReservationStatusWriter) handleStatusWriteResult(w *poolOrReservationStatusWriteTask, err error) {
	c.writesInFlightCount--
	if err == nil || apierrors.IsNotFound(err) {
		return
	}
	c.needsComparison = true
	if !apierrors.IsConflict(err) {
		c.log.Error("writing the status of "+w.objectKindForLog, w.logKey, w.objectName, "error", err, "reason", names.ReasonWriteFailed, "again", minPoolStatusWriteInterval)
	}
}
