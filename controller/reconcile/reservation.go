package reconcile

import (
	"context"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// advance tells the Ledger the time: cool-downs and reservations end by it. The worker is woken for the next that does.
func (r *Services) advance() {
	freed, next := r.ledger.Advance(time.Now())
	if len(freed) > 0 {
		r.counters.stale, r.wakePending = true, true
	}
	if !next.IsZero() && !next.Equal(r.nextDeadline) {
		r.nextDeadline = next
		r.pokeAfter(time.Until(next))
	}
}

// keep has the addresses of a reservation kept, and its status written where it is not what it should be.
func (r *Services) keep(o *v1alpha1.AddressReservation) {
	all := r.config.snapshot.Reservations
	i := slices.IndexFunc(all, func(p *snapshot.Reservation) bool { return p.Name == o.Name })
	if i < 0 { // younger than what we know, or unreadable
		return
	}
	d := allocate.DecideReservation(all[i], r.ledger, r.config.snapshot)
	r.ledger.Keep(all[i], d.Addresses)
	after := v1alpha1.AddressReservationStatus{Conditions: slices.Clone(o.Status.Conditions)}
	for _, a := range d.Addresses {
		after.Addresses = append(after.Addresses, a.String())
	}
	cond := metav1.Condition{
		Type: names.ConditionReserved, Status: metav1.ConditionTrue, ObservedGeneration: o.Generation, Reason: string(d.Reason), Message: d.Text,
	}
	if d.Reason != names.ReasonReserved {
		cond.Status = metav1.ConditionFalse
	}
	meta.SetStatusCondition(&after.Conditions, cond)
	about := snapshot.ObjectReference{Kind: "AddressReservation", Namespace: o.Namespace, Name: o.Name}
	meta.SetStatusCondition(&after.Conditions, valid(about, o.Generation, r.config.problems))
	if equality.Semantic.DeepEqual(o.Status, after) {
		return
	}
	o = o.DeepCopy()
	o.Status = after
	r.writeStatus(&statusWrite{"an AddressReservation", "reservation", o.Name, func(ctx context.Context, api API) error { return api.UpdateReservation(ctx, o) }})
}
