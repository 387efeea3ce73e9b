package operate

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/view"
)

// MoveService asks for the node that should answer for the addresses of a Service.
func (o *Operator) MoveService(ctx context.Context, key client.ObjectKey, node string) (*Operation, error) {
	if _, err := o.readNode(ctx, node); err != nil {
		return nil, err
	}
	s := &corev1.Service{}
	if err := o.API.Get(ctx, key, s); err != nil {
		return nil, fmt.Errorf("reading the Service: %w", err)
	}
	if len(view.FromService(s).AssignedAddresses) == 0 {
		return nil, fmt.Errorf("there is no address of Service %s that could move: kubectl gantry explain service %s", key, key)
	}
	return &Operation{
		Title: fmt.Sprintf("moving Service %s to %s", key, node), Changes: []ObjectChange{{s, setAnnotation(names.AnnotationRequestedHolder, node)}},
		ReadProgress: func(ctx context.Context) (Progress, error) { return o.readMoveProgress(ctx, key, node) },
	}, nil
}

// readMoveProgress says which node answers for each address of the Service.
func (o *Operator) readMoveProgress(ctx context.Context, key client.ObjectKey, node string) (Progress, error) {
	var s corev1.Service
	if err := o.API.Get(ctx, key, &s); err != nil {
		return Progress{}, fmt.Errorf("reading the Service: %w", err)
	}
	var reports v1beta1.ServiceL2StatusList
	ofService := client.MatchingLabels{names.LabelServiceNamespace: key.Namespace, names.LabelServiceName: key.Name}
	if err := o.API.List(ctx, &reports, client.InNamespace(o.GantryNamespace), ofService); err != nil {
		return Progress{}, fmt.Errorf("reading which node answers: %w", err)
	}
	out := Progress{IsDone: true}
	var places []string
	for _, a := range view.FromService(&s).AssignedAddresses {
		var on []string
		for i := range reports.Items {
			if r := &reports.Items[i].Status; r.Node != "" && r.Gantry != nil && slices.Contains(r.Gantry.Addresses, a.String()) {
				on = append(on, r.Node)
			}
		}
		place := fmt.Sprintf("%s is on no node", a)
		if len(on) > 0 {
			place = fmt.Sprintf("%s is on %s", a, joinSorted(on))
		}
		places = append(places, place)
		if len(on) != 1 || on[0] != node {
			out.IsDone, out.Left = false, append(out.Left, place+fmt.Sprintf(": the events of the Service say what keeps %s from it", node))
		}
	}
	out.Text = joinSorted(places)
	return out, nil
}

// ReleaseAddress makes every Service that has an address exchange it for another one.
func (o *Operator) ReleaseAddress(ctx context.Context, address netip.Addr) (*Operation, error) {
	holders, err := o.readServicesWithAddress(ctx, address)
	if err != nil {
		return nil, err
	}
	if len(holders) == 0 {
		return nil, fmt.Errorf("no Service has %s: kubectl gantry explain address %s", address, address)
	}
	op := &Operation{Title: fmt.Sprintf("releasing %s", address), ReadProgress: func(ctx context.Context) (Progress, error) { return o.readReleaseProgress(ctx, address) }}
	for i := range holders {
		// Those that it gave back before need not stay in the list.
		v := view.FromService(&holders[i])
		exchanged := slices.DeleteFunc(slices.Clone(v.AddressesToExchange), func(a netip.Addr) bool { return a == address || !slices.Contains(v.AssignedAddresses, a) })
		op.Changes = append(op.Changes, ObjectChange{&holders[i], setAnnotation(names.AnnotationAddressesToExchange, view.JoinAddresses(append(exchanged, address)))})
	}
	return op, nil
}

func (o *Operator) readServicesWithAddress(ctx context.Context, address netip.Addr) ([]corev1.Service, error) {
	var all corev1.ServiceList
	if err := o.API.List(ctx, &all); err != nil {
		return nil, fmt.Errorf("reading the Services: %w", err)
	}
	return slices.DeleteFunc(all.Items, func(s corev1.Service) bool {
		v := view.FromService(&s)
		return !v.IsLoadBalancer || !slices.Contains(v.AssignedAddresses, address)
	}), nil
}

func (o *Operator) readReleaseProgress(ctx context.Context, address netip.Addr) (Progress, error) {
	holders, err := o.readServicesWithAddress(ctx, address)
	if err != nil {
		return Progress{}, err
	}
	out := Progress{IsDone: len(holders) == 0, Text: fmt.Sprintf("no Service has %s", address)}
	if !out.IsDone {
		out.Text = fmt.Sprintf("%d Services have %s", len(holders), address)
	}
	for i := range holders {
		out.Left = append(out.Left, describeKeptAddress(&holders[i]))
	}
	return out, nil
}

// describeKeptAddress says why a Service keeps an address, by its condition.
func describeKeptAddress(s *corev1.Service) string {
	c := meta.FindStatusCondition(s.Status.Conditions, names.ConditionAddressAssigned)
	if c == nil {
		return fmt.Sprintf("Service %s/%s keeps it", s.Namespace, s.Name)
	}
	return fmt.Sprintf("Service %s/%s keeps it: %s (%s)", s.Namespace, s.Name, c.Message, c.Reason)
}

// RetirementSettings say which addresses of a pool are retired.
type RetirementSettings struct {
	// Addresses are CIDRs, ranges and single addresses; without any, the whole pool is retired.
	Addresses []string
	// ServicesPerMinute is how many Services get other addresses in a minute; 0 for the default.
	ServicesPerMinute int32
}

// RetirePool makes the Services of a pool leave its addresses.
func (o *Operator) RetirePool(ctx context.Context, name string, settings RetirementSettings) (*Operation, error) {
	p := &v1beta1.IPAddressPool{}
	if err := o.API.Get(ctx, client.ObjectKey{Namespace: o.GantryNamespace, Name: name}, p); err != nil {
		return nil, fmt.Errorf("reading the pool: %w", err)
	}
	retire := func(object client.Object) {
		changed, ok := object.(*v1beta1.IPAddressPool)
		if !ok {
			return
		}
		if changed.Spec.Gantry == nil {
			changed.Spec.Gantry = &v1beta1.PoolExtension{}
		}
		changed.Spec.Gantry.Retire = &v1beta1.PoolRetirement{Addresses: settings.Addresses, ServicesPerMinute: settings.ServicesPerMinute}
	}
	return &Operation{
		Title: "retiring pool " + name, Changes: []ObjectChange{{p, retire}},
		ReadProgress: func(ctx context.Context) (Progress, error) { return o.readRetirementProgress(ctx, name) },
	}, nil
}

// readRetirementProgress says how many Services have retired addresses. It is done too if each of
// them had its turn and got no other address.
func (o *Operator) readRetirementProgress(ctx context.Context, name string) (Progress, error) {
	var p v1beta1.IPAddressPool
	if err := o.API.Get(ctx, client.ObjectKey{Namespace: o.GantryNamespace, Name: name}, &p); err != nil {
		return Progress{}, fmt.Errorf("reading the pool: %w", err)
	}
	if p.Status.Gantry == nil || p.Status.Gantry.Retire == nil {
		return Progress{Text: "the controller has not seen it yet", Left: []string{"the controller does not report the retirement: kubectl gantry explain pool " + name}}, nil
	}
	seen := meta.FindStatusCondition(p.Status.Gantry.Conditions, names.ConditionPoolRetirementDone)
	if seen == nil || seen.ObservedGeneration != p.Generation {
		return Progress{Text: "the controller has not seen it yet", Left: []string{"the controller reports about an older pool: kubectl gantry explain pool " + name}}, nil
	}
	left, without := p.Status.Gantry.Retire.ServicesLeft, p.Status.Gantry.Retire.ServicesWithoutOtherAddress
	if left == 0 {
		return Progress{IsDone: true, Text: "no Service has a retired address of pool " + name}, nil
	}
	out := Progress{IsDone: left == without, Text: fmt.Sprintf("%d Services have retired addresses; %d of them got no other one at their turn", left, without)}
	var all corev1.ServiceList
	if err := o.API.List(ctx, &all); err != nil {
		return Progress{}, fmt.Errorf("reading the Services: %w", err)
	}
	for i := range all.Items {
		c := meta.FindStatusCondition(all.Items[i].Status.Conditions, names.ConditionAddressAssigned)
		if c != nil && c.Reason == string(names.ReasonAddressRetired) {
			out.Left = append(out.Left, describeKeptAddress(&all.Items[i]))
		}
	}
	slices.Sort(out.Left)
	return out, nil
}
