package assign

import (
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// retirementRoundInterval is how long Services that got no other address wait for their next turn.
const retirementRoundInterval = 30 * time.Second

// retirementScheduler decides whose turn it is to give up retired addresses. Each pool has its own
// pace. The worker calls it once per turn. All its methods run on the worker's goroutine.
type retirementScheduler struct {
	workQueue *workQueue
	// stateByPool has the pools that retire addresses.
	stateByPool map[string]*poolRetirement
	// servicesToGiveUpRetired may give up their retired addresses now.
	servicesToGiveUpRetired map[view.ObjectKey]struct{}
	timer                   wakeTimer
}

// poolRetirement is the progress of one pool.
type poolRetirement struct {
	pool *snapshot.Pool
	// servicesAwaitingTurn of this round, in the order of their turns.
	servicesAwaitingTurn []view.ObjectKey
	// servicesWithoutOtherAddress got no other address at their last turn. Some of them may have
	// given the retired address up since.
	servicesWithoutOtherAddress map[view.ObjectKey]struct{}
	nextTurn, nextRound         time.Time
	// isDone says that no Service held a retired address in the last round.
	isDone bool
}

// updateRetiringPools takes over the pools of a new configuration. Each pool keeps its pace.
func (r *retirementScheduler) updateRetiringPools(pools []*snapshot.Pool) {
	before := r.stateByPool
	r.stateByPool = map[string]*poolRetirement{}
	for _, p := range pools {
		if p.Retirement == nil {
			continue
		}
		state := before[p.Name]
		if state == nil {
			state = &poolRetirement{servicesWithoutOtherAddress: map[view.ObjectKey]struct{}{}}
		}
		// The pool has changed, so decide about all Services again: the edit may have retired more
		// addresses, or added addresses that are not retired.
		state.pool, state.isDone, state.nextRound = p, false, time.Time{}
		r.stateByPool[p.Name] = state
	}
	if len(r.stateByPool) == 0 {
		r.servicesToGiveUpRetired = nil
	}
}

// startDueTurns gives each Service whose turn has come to the worker.
func (r *retirementScheduler) startDueTurns(now time.Time, l *allocate.Ledger, snap *snapshot.Snapshot) {
	for _, state := range r.stateByPool {
		r.startDueTurnOfPool(state, now, l, snap)
	}
}

func (r *retirementScheduler) startDueTurnOfPool(state *poolRetirement, now time.Time, l *allocate.Ledger, snap *snapshot.Snapshot) {
	if state.isDone {
		return
	}
	if len(state.servicesAwaitingTurn) == 0 && !now.Before(state.nextRound) {
		state.servicesAwaitingTurn = l.ServicesHoldingRetiredAddresses(state.pool, snap)
		state.nextRound = now.Add(retirementRoundInterval)
		if state.isDone = len(state.servicesAwaitingTurn) == 0; state.isDone {
			return
		}
	}
	for len(state.servicesAwaitingTurn) > 0 && !now.Before(state.nextTurn) {
		k := state.servicesAwaitingTurn[0]
		state.servicesAwaitingTurn = state.servicesAwaitingTurn[1:]
		held, _ := l.AssignmentOf(k)
		if len(l.FilterRetiredAddresses(held.Addresses, snap)) == 0 {
			continue // it was deleted, or its owner was faster
		}
		if r.servicesToGiveUpRetired == nil {
			r.servicesToGiveUpRetired = map[view.ObjectKey]struct{}{}
		}
		r.servicesToGiveUpRetired[k] = struct{}{}
		r.workQueue.addAffectedServices(k)
		state.nextTurn = now.Add(state.pool.Retirement.ServiceReassignInterval)
	}
	next := state.nextTurn
	if len(state.servicesAwaitingTurn) == 0 {
		next = state.nextRound
	}
	r.timer.wakeWorkerAt(next, now, r.workQueue)
}

// decideConsideringRetirement decides about a Service. If it is the Service's turn to give up its
// retired addresses, the Service gets other addresses, provided that enough are free. The turn
// lasts until these are written.
func (r *ServiceWorker) decideConsideringRetirement(v *view.Service) allocate.Decision {
	snap := r.configuration.Snapshot
	if _, onTurn := r.retirementScheduler.servicesToGiveUpRetired[v.Key]; !onTurn {
		return allocate.DecideAssignment(v, r.ledger, snap)
	}
	held, _ := r.ledger.AssignmentOf(v.Key)
	retired := r.ledger.FilterRetiredAddresses(held.Addresses, snap)
	d, moved := allocate.DecideAssignmentWithoutRetired(v, r.ledger, snap)
	if !moved {
		delete(r.retirementScheduler.servicesToGiveUpRetired, v.Key)
		r.poolOrReservationStatusWriter.needsComparison = true
	}
	for _, p := range snap.PoolOfEachAddress(held.PoolOfFirstAddress, retired...) {
		switch state := r.retirementScheduler.stateByPool[p.Name]; {
		case state == nil:
		case moved:
			delete(state.servicesWithoutOtherAddress, v.Key)
		default:
			state.servicesWithoutOtherAddress[v.Key] = struct{}{}
		}
	}
	return d
}

// retirementStatusOfPool returns the progress of a pool; nil when it retires nothing.
func (r *retirementScheduler) retirementStatusOfPool(p *snapshot.Pool, l *allocate.Ledger, snap *snapshot.Snapshot) *v1beta1.PoolRetirementStatus {
	if p.Retirement == nil {
		return nil
	}
	out := &v1beta1.PoolRetirementStatus{}
	state := r.stateByPool[p.Name]
	for _, k := range l.ServicesHoldingRetiredAddresses(p, snap) {
		out.ServicesLeft++
		if state != nil {
			if _, without := state.servicesWithoutOtherAddress[k]; without {
				out.ServicesWithoutOtherAddress++
			}
		}
	}
	return out
}

// setRetiredCondition sets the condition for the progress of a pool, and removes it when the pool
// retires nothing.
func setRetiredCondition(conditions *[]metav1.Condition, generation int64, s *v1beta1.PoolRetirementStatus) {
	if s == nil {
		meta.RemoveStatusCondition(conditions, names.ConditionPoolRetirementDone)
		return
	}
	c := metav1.Condition{
		Type: names.ConditionPoolRetirementDone, Status: metav1.ConditionTrue, ObservedGeneration: generation,
		Reason: string(names.ReasonRetired), Message: "no Service holds a retired address",
	}
	if s.ServicesLeft > 0 {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, string(names.ReasonRetiring), "Services hold retired addresses: see status.gantry.retire, and the condition AddressAssigned of each Service"
	}
	meta.SetStatusCondition(conditions, c)
}
