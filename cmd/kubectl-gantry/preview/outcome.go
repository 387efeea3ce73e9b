package preview

import (
	"context"
	"reflect"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/explain"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/controller/announcedcondition"
	"github.com/gantry-lb/gantry/internal/view"
)

// outcome is what the controller and the speakers arrive at in one state of the cluster.
type outcome struct {
	state *explain.ClusterState
	// settledByService has every Service that Gantry serves.
	settledByService map[view.ObjectKey]*allocate.SettledAssignment
	// expectationByService has those with an address.
	expectationByService map[view.ObjectKey]*announcedcondition.AnnouncementExpectation
	// reasonByKept has what the condition of each AddressReservation says.
	reasonByKept map[string]names.Explanation
}

// outcomePair has the outcomes before and after an edit.
type outcomePair struct {
	before, after *outcome
	// deletedServices are those that the edit deletes.
	deletedServices map[view.ObjectKey]bool
}

// decideBeforeAndAfter decides as the controller does: first about the cluster as it is, and then,
// with the same Ledger, about the cluster after the edit.
func decideBeforeAndAfter(ctx context.Context, before, after *explain.ClusterState, edited []EditedObject) (*outcomePair, error) {
	ledger, err := before.NewLedger(ctx)
	if err != nil {
		return nil, err
	}
	out := &outcomePair{deletedServices: map[view.ObjectKey]bool{}}
	editedServices := map[view.ObjectKey]bool{}
	for i := range edited {
		for _, o := range []any{edited[i].before, edited[i].after} {
			if s, ok := o.(*corev1.Service); ok && s != nil {
				editedServices[view.ObjectKey{Namespace: s.Namespace, Name: s.Name}] = true
			}
		}
		if s, ok := edited[i].before.(*corev1.Service); ok && edited[i].Action == ActionDeleted {
			out.deletedServices[view.ObjectKey{Namespace: s.Namespace, Name: s.Name}] = true
		}
	}
	services := before.ServicesInOrderOfTurn(func(view.ObjectKey) bool { return false })
	if out.before, err = newOutcome(ctx, before, services, ledger); err != nil {
		return nil, err
	}
	services = after.ServicesInOrderOfTurn(func(k view.ObjectKey) bool { return editedServices[k] })
	isServed := map[view.ObjectKey]bool{}
	for i := range services {
		s := &services[i]
		isServed[s.Key] = true
		if settled := out.before.settledByService[s.Key]; settled != nil {
			s.AssignedAddresses, s.RecordedPool = settled.Service.AssignedAddresses, settled.Service.RecordedPool
		}
	}
	for _, k := range ledger.ServicesHoldingAddresses() {
		if !isServed[k] {
			ledger.ReleaseService(k)
		}
	}
	ledger.UseSnapshot(after.Configuration.Snapshot)
	for _, p := range after.Configuration.Snapshot.Pools {
		if was := before.Configuration.Snapshot.PoolByName(p.Name); p.LiftWithheldValue != "" && (was == nil || was.LiftWithheldValue != p.LiftWithheldValue) {
			ledger.FreeWithheldAddressesNamedByPool(p)
		}
	}
	out.after, err = newOutcome(ctx, after, services, ledger)
	return out, err
}

func newOutcome(ctx context.Context, state *explain.ClusterState, services []view.Service, ledger *allocate.Ledger) (*outcome, error) {
	out := &outcome{
		state: state, settledByService: map[view.ObjectKey]*allocate.SettledAssignment{}, reasonByKept: map[string]names.Explanation{},
		expectationByService: map[view.ObjectKey]*announcedcondition.AnnouncementExpectation{},
	}
	settled := allocate.SettleAssignments(services, ledger, state.Configuration.Snapshot)
	for _, r := range state.Configuration.Snapshot.Reservations {
		d := allocate.DecideReservation(r, ledger, state.Configuration.Snapshot)
		ledger.WithholdReservedAddresses(r, d.Addresses)
		out.reasonByKept[r.Name] = d.Explanation
	}
	for i := range settled {
		s := &settled[i]
		out.settledByService[s.Service.Key] = s
		if len(s.Service.AssignedAddresses) == 0 {
			continue
		}
		expected, err := state.Announcements.ExpectAnnouncement(ctx, state.Configuration, &s.Service)
		if err != nil {
			return nil, err
		}
		out.expectationByService[s.Service.Key] = expected
	}
	return out, nil
}

// editsOfSpeakerStatuses are what speakers report after an edit of their Nodes: whether the node is
// leaving.
func editsOfSpeakerStatuses(before *explain.ClusterState, edited []EditedObject) []objects.ObjectEdit {
	var out []objects.ObjectEdit
	for i := range edited {
		node, ok := edited[i].after.(*corev1.Node)
		if !ok || node == nil {
			continue
		}
		s := before.SpeakerStatusByNode[node.Name]
		if s == nil {
			continue
		}
		changed := &v1alpha1.SpeakerStatus{Status: *s.DeepCopy()}
		changed.Name, changed.Namespace = node.Name, before.Configuration.Snapshot.Namespace
		switch v := view.FromNode(node); {
		case v.IsLeaving:
			changed.Status.Unavailable = string(names.ReasonNodeLeaving)
		case s.Unavailable == string(names.ReasonNodeLeaving) || s.Unavailable == string(names.ReasonNodeExcluded):
			changed.Status.Unavailable = ""
		}
		if !reflect.DeepEqual(changed.Status, *s) {
			out = append(out, objects.ObjectEdit{Object: changed})
		}
	}
	return out
}

// servicesWithOtherPods are the Services that are new, or that select other Pods.
func servicesWithOtherPods(edited []EditedObject) []*corev1.Service {
	var out []*corev1.Service
	for i := range edited {
		after, ok := edited[i].after.(*corev1.Service)
		if !ok || after == nil || len(after.Spec.Selector) == 0 {
			continue
		}
		before, existed := edited[i].before.(*corev1.Service)
		if !existed || before == nil || !reflect.DeepEqual(before.Spec.Selector, after.Spec.Selector) {
			out = append(out, after)
		}
	}
	return out
}
