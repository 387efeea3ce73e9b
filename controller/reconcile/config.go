package reconcile

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// configuration is the configuration objects as last read, with what Build made of them.
type configuration struct {
	objects  snapshot.Objects
	snapshot *snapshot.Snapshot
	problems []snapshot.Problem
}

// readConfiguration reads every configuration object from the cache.
func readConfiguration(ctx context.Context, c client.Reader) (configuration, error) {
	var pools v1beta1.IPAddressPoolList
	var ads v1beta1.L2AdvertisementList
	var namespaces corev1.NamespaceList
	for _, list := range []client.ObjectList{&pools, &ads, &namespaces} {
		if err := c.List(ctx, list); err != nil {
			return configuration{}, fmt.Errorf("reading the configuration: %w", err)
		}
	}
	o := snapshot.Objects{Pools: pools.Items, L2Advertisements: ads.Items}
	for i := range namespaces.Items {
		o.Namespaces = append(o.Namespaces, snapshot.Namespace{Name: namespaces.Items[i].Name, Labels: namespaces.Items[i].Labels})
	}
	s, problems := snapshot.Build(o)
	return configuration{objects: o, snapshot: s, problems: problems}, nil
}

// valid returns the condition that says whether an object has Problems.
func (c *configuration) valid(o snapshot.Object, generation int64) metav1.Condition {
	cond := metav1.Condition{
		Type: names.ConditionValid, Status: metav1.ConditionTrue, ObservedGeneration: generation,
		Reason: string(names.ReasonValid), Message: "the object is understood as it stands",
	}
	var texts []string
	for _, p := range c.problems {
		if p.Object != o {
			continue
		}
		if len(texts) == 0 {
			cond.Status, cond.Reason = metav1.ConditionFalse, string(p.Reason)
		}
		texts = append(texts, p.Text)
	}
	for i, t := range texts {
		if i == 0 {
			cond.Message = t
			continue
		}
		cond.Message += "; " + t
	}
	return cond
}

// writeConfigStatus writes the counters of the pools and the conditions of all configuration objects, where they are
// not what they should be. Every object is tried; the errors are joined by the caller's retry.
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
	for i := range r.config.objects.L2Advertisements {
		keep(r.writeAdStatus(ctx, r.config.objects.L2Advertisements[i].Name))
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
	p.Status.Gantry = setCondition(p.Status.Gantry, r.config.valid(snapshot.Object{Kind: "IPAddressPool", Namespace: p.Namespace, Name: name}, p.Generation))
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

func (r *Services) writeAdStatus(ctx context.Context, name string) error {
	var ad v1beta1.L2Advertisement
	if err := r.Client.Get(ctx, client.ObjectKey{Namespace: r.Namespace, Name: name}, &ad); err != nil {
		return fmt.Errorf("reading L2Advertisement %q: %w", name, err)
	}
	before := ad.DeepCopy()
	ad.Status.Gantry = setCondition(ad.Status.Gantry, r.config.valid(snapshot.Object{Kind: "L2Advertisement", Namespace: ad.Namespace, Name: name}, ad.Generation))
	if equality.Semantic.DeepEqual(before.Status, ad.Status) {
		return nil
	}
	if err := r.Client.Status().Update(ctx, &ad); err != nil {
		return fmt.Errorf("writing the status of L2Advertisement %q: %w", name, err)
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
