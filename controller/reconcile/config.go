package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// configurationState is the configuration objects as last read, with what Build made of them.
type configurationState struct {
	objects  snapshot.Objects
	snapshot *snapshot.Snapshot
	problems []snapshot.Problem
}

// readConfiguration reads every configuration object from the cache. What an edit broke stays as it was in last.
func readConfiguration(ctx context.Context, c client.Reader, namespace string, last *snapshot.Snapshot) (configurationState, error) {
	o, err := configuration.Read(ctx, c, namespace)
	if err != nil {
		return configurationState{}, err
	}
	if o.Namespaces, err = configuration.Namespaces(ctx, c); err != nil {
		return configurationState{}, err
	}
	o.Last = last
	s, problems := snapshot.Build(o)
	o.Last = nil
	return configurationState{objects: o, snapshot: s, problems: problems}, nil
}

// valid returns the condition that says whether an object has Problems.
func valid(o snapshot.Object, generation int64, problems []snapshot.Problem) metav1.Condition {
	cond := metav1.Condition{
		Type: names.ConditionValid, Status: metav1.ConditionTrue, ObservedGeneration: generation,
		Reason: string(names.ReasonValid), Message: "the object is understood as it stands",
	}
	var texts []string
	for _, p := range problems {
		if p.Object != o {
			continue
		}
		if len(texts) == 0 {
			cond.Status, cond.Reason = metav1.ConditionFalse, string(p.Reason)
		}
		texts = append(texts, p.Text)
	}
	if len(texts) > 0 {
		cond.Message = strings.Join(texts, "; ")
	}
	return cond
}

// writeConfigStatus writes the counters and the conditions of the pools, where they are not what they should be. Every
// pool is tried; the errors are joined by the caller's retry.
func (r *Services) writeConfigStatus(ctx context.Context) error {
	var first error
	keep := func(err error) {
		if err != nil && client.IgnoreNotFound(err) != nil && first == nil {
			first = err
		}
	}
	for i := range r.config.objects.Pools {
		keep(r.writePoolStatus(ctx, r.config.objects.Pools[i].Name))
	}
	return first
}

func (r *Services) writePoolStatus(ctx context.Context, name string) error {
	var p v1beta1.IPAddressPool
	if err := r.Client.Get(ctx, client.ObjectKey{Namespace: r.Namespace, Name: name}, &p); err != nil {
		return fmt.Errorf("reading pool %q: %w", name, err)
	}
	parsed := r.config.snapshot.Pool(name)
	if parsed == nil {
		return nil
	}
	before := p.DeepCopy()
	size4, size6 := parsed.Size()
	used4, used6 := r.ledger.InUse(parsed)
	p.Status.AssignedIPv4, p.Status.AssignedIPv6 = used4, used6
	p.Status.AvailableIPv4, p.Status.AvailableIPv6 = size4-used4, size6-used6
	p.Status.Gantry = setCondition(p.Status.Gantry, valid(snapshot.Object{Kind: "IPAddressPool", Namespace: p.Namespace, Name: name}, p.Generation, r.config.problems))
	if equality.Semantic.DeepEqual(before.Status, p.Status) {
		return nil
	}
	// The counters are required fields, so that the whole status is written: a merge patch would leave out what
	// is zero on both sides.
	if err := r.Client.Status().Update(ctx, &p); err != nil {
		return fmt.Errorf("writing the status of pool %q: %w", name, err)
	}
	return nil
}

// setCondition returns a status with the condition in it; the time of the last transition changes with the status of
// the condition alone.
func setCondition(s *v1beta1.ObjectStatus, c metav1.Condition) *v1beta1.ObjectStatus {
	out := &v1beta1.ObjectStatus{}
	if s != nil {
		out.Conditions = slices.Clone(s.Conditions)
	}
	meta.SetStatusCondition(&out.Conditions, c)
	return out
}
