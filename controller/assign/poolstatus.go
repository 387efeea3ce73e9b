package assign

import (
	"context"
	"reflect"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
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
	r.poolStatusState.needsComparison = true
	if reflect.DeepEqual(before.Snapshot.Pools, now.Snapshot.Pools) && reflect.DeepEqual(before.Snapshot.Reservations, now.Snapshot.Reservations) {
		return true // for example a namespace that no pool selects
	}
	r.retryWaitingServices = true
	r.workQueue.addAffected(r.ledger.ServicesHoldingAddresses()...)
	return true
}

// poolStatusInterval bounds how often the status of a pool is written.
const poolStatusInterval = 2 * time.Second

// poolStatusState say when the status of the pools must be written.
type poolStatusState struct {
	// needsComparison says that the status of a pool may be wrong.
	needsComparison bool
	// lastComparedAt is when the statuses were last compared. writesInFlightCount counts the writes
	// since then that have not ended.
	lastComparedAt      time.Time
	writeTimerSet       bool // a timer runs
	writesInFlightCount int
}

// writeChangedPoolAndReservationStatuses writes the counters and conditions of pools and
// reservations that are wrong.
func (r *ServiceWorker) writeChangedPoolAndReservationStatuses(ctx context.Context) {
	c := &r.poolStatusState
	c.needsComparison = r.workQueue.testAndClearConfigurationStatusChanged() || c.needsComparison
	if !c.needsComparison || c.writesInFlightCount > 0 {
		return
	}
	if wait := c.lastComparedAt.Add(poolStatusInterval).Sub(r.Now()); wait > 0 {
		if !c.writeTimerSet {
			c.writeTimerSet = true
			r.workQueue.wakeWorkerAfter(wait)
		}
		return
	}
	o, err := r.API.ReadPoolsReservationsAndNamespaces(ctx)
	if err != nil {
		r.Log.Error("reading the pools", "error", err, "again", poolStatusInterval)
	}
	c.needsComparison, c.writeTimerSet, c.lastComparedAt = err != nil, false, r.Now()
	for i := range o.Pools {
		r.writePoolStatus(&o.Pools[i])
	}
	for i := range o.Reservations {
		r.applyReservationAndWriteStatus(&o.Reservations[i])
	}
}

func (r *ServiceWorker) writePoolStatus(p *v1beta1.IPAddressPool) {
	parsed := r.configuration.Snapshot.PoolByName(p.Name)
	if parsed == nil { // newer than the configuration that was read: the next one has it
		return
	}
	u := r.ledger.UsageOfPool(parsed, r.configuration.Snapshot)
	after := v1beta1.IPAddressPoolStatus{
		AssignedIPv4: u.AssignedIPv4, AssignedIPv6: u.AssignedIPv6, AvailableIPv4: u.AvailableIPv4, AvailableIPv6: u.AvailableIPv6,
		Gantry: statusWithCondition(p.Status.Gantry, configuration.NewValidCondition(snapshot.ObjectReference{Kind: "IPAddressPool", Namespace: p.Namespace, Name: p.Name}, p.Generation, r.configuration.Problems)),
	}
	if equality.Semantic.DeepEqual(p.Status, after) {
		return
	}
	p = p.DeepCopy()
	p.Status = after
	r.startStatusWrite(&configurationStatusWrite{"a pool", "pool", p.Name, func(ctx context.Context, api WorkerAPI) error { return api.UpdatePoolStatus(ctx, p) }})
}

// configurationStatusWrite writes the status of one configuration object.
type configurationStatusWrite struct {
	// For the log: an article and a noun, the log key of the name, and the name of the object.
	description, logKey, objectName string
	updateStatus                    func(ctx context.Context, api WorkerAPI) error
}

// startStatusWrite starts it.
func (r *ServiceWorker) startStatusWrite(w *configurationStatusWrite) {
	r.poolStatusState.writesInFlightCount++
	r.apiTaskQueue.enqueueTask(w)
}

// runTask implements task. After a conflict the object, which was just edited, is compared again.
func (w *configurationStatusWrite) runTask(ctx context.Context, api WorkerAPI) taskResultHandler {
	err := w.updateStatus(ctx, api)
	return func(_ context.Context, r *ServiceWorker) {
		r.poolStatusState.writesInFlightCount--
		if err == nil || apierrors.IsNotFound(err) {
			return
		}
		r.poolStatusState.needsComparison = true
		if !apierrors.IsConflict(err) {
			r.Log.Error("writing the status of "+w.description, w.logKey, w.objectName, "error", err, "reason", names.ReasonWriteFailed, "again", poolStatusInterval)
		}
	}
}

// statusWithCondition returns a status with the condition. Its transition time changes only with
// the condition's status.
func statusWithCondition(s *v1beta1.ObjectStatus, c metav1.Condition) *v1beta1.ObjectStatus {
	out := &v1beta1.ObjectStatus{}
	if s != nil {
		out.Conditions = slices.Clone(s.Conditions)
	}
	meta.SetStatusCondition(&out.Conditions, c)
	return out
}
