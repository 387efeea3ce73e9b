package assign

import (
	"context"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// advanceLedgerTime sets the Ledger's time, which ends cool-downs and reservations, and wakes the
// worker for the next deadline.
func (r *ServiceWorker) advanceLedgerTime() {
	freed, next := r.ledger.AdvanceTime(r.Now())
	if len(freed) > 0 {
		r.poolOrReservationStatusWriter.needsComparison = true
	}
	if !next.IsZero() && !next.Equal(r.nextWithheldDeadline) {
		r.nextWithheldDeadline = next
		r.workQueue.wakeWorkerAfter(next.Sub(r.Now()))
	}
}

// applyReservationAndWriteStatus keeps the addresses of a reservation and writes its status if that
// is wrong.
func (c *poolOrReservationStatusWriter) applyReservationAndWriteStatus(o *v1alpha1.AddressReservation, l *allocate.Ledger, config *configurationreader.Configuration) {
	all := config.Snapshot.Reservations
	i := slices.IndexFunc(all, func(p *snapshot.Reservation) bool { return p.Name == o.Name })
	// The reservation is invalid, or was edited after the configuration was read.
	if i < 0 || !config.IsUpToDateWith(o) {
		return
	}
	d := allocate.DecideReservation(all[i], l, config.Snapshot)
	l.WithholdReservedAddresses(all[i], d.Addresses)
	after := v1alpha1.AddressReservationStatus{Conditions: slices.Clone(o.Status.Conditions)}
	for _, a := range d.Addresses {
		after.Addresses = append(after.Addresses, a.String())
	}
	cond := metav1.Condition{
		Type: names.ConditionReservationEffective, Status: metav1.ConditionTrue, ObservedGeneration: o.Generation, Reason: string(d.Reason), Message: d.Text,
	}
	if d.Reason != names.ReasonReserved {
		cond.Status = metav1.ConditionFalse
	}
	meta.SetStatusCondition(&after.Conditions, cond)
	about := snapshot.ObjectReference{Kind: "AddressReservation", Namespace: o.Namespace, Name: o.Name}
	meta.SetStatusCondition(&after.Conditions, configuration.NewValidCondition(about, o.Generation, config.Problems))
	if equality.Semantic.DeepEqual(o.Status, after) {
		return
	}
	o = o.DeepCopy()
	o.Status = after
	c.startStatusWrite(&poolOrReservationStatusWriteTask{"an AddressReservation", "reservation", o.Name, func(ctx context.Context, api WorkerAPI) error { return api.UpdateReservationStatus(ctx, o) }})
}
