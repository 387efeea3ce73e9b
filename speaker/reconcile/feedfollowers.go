package reconcile

import (
	"context"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
)

// maxChangesPerPost bounds how many changes are posted together when all objects are read again.
const maxChangesPerPost = 500

// newServiceFollower follows the Services. It ignores those that are not of type LoadBalancer.
func (f *ClusterFeed) newServiceFollower(ctx context.Context) *objectFollower[*view.Service] {
	set := func(v *view.Service) {
		f.observeService(v)
		f.postChanges(ctx, f.appendServiceChange(nil, v))
	}
	return &objectFollower[*view.Service]{
		reduceObject: func(o any) (*view.Service, bool) {
			s, ok := o.(*corev1.Service)
			if !ok {
				return nil, false
			}
			v := view.FromService(s)
			if f.options.TrafficObserver != nil {
				v.Traffic = view.TrafficOfService(s)
			}
			v.Key.Namespace = view.InternString(v.Key.Namespace)
			return &v, true
		},
		onAdd:    set,
		onUpdate: set,
		onDelete: func(v *view.Service) {
			f.observeRemovedService(v.Key)
			f.postChanges(ctx, f.appendServiceRemoval(nil, v.Key))
		},
		onReplace:    func(all []*view.Service) { f.postReplacedServices(ctx, all) },
		syncedSignal: make(chan struct{}),
	}
}

// appendServiceChange appends the change for a Service, if there is one.
func (f *ClusterFeed) appendServiceChange(out []agent.PlannerInputChange, v *view.Service) []agent.PlannerInputChange {
	if !v.IsLoadBalancer {
		return f.appendServiceRemoval(out, v.Key)
	}
	f.options.UIDByServiceIndex.setServiceUID(v.Key, types.UID(v.UID))
	return append(out, agent.NewServiceUpsertedChange(*v))
}

func (f *ClusterFeed) appendServiceRemoval(out []agent.PlannerInputChange, k view.ObjectKey) []agent.PlannerInputChange {
	if !f.options.UIDByServiceIndex.removeService(k) {
		return out
	}
	return append(out, agent.NewServiceRemovedChange(k))
}

// postReplacedServices posts all existing Services, and removes those that were deleted
// without an event.
func (f *ClusterFeed) postReplacedServices(ctx context.Context, all []*view.Service) {
	gone := f.options.UIDByServiceIndex.copyUIDs()
	var out []agent.PlannerInputChange
	for i, v := range all {
		delete(gone, v.Key)
		f.observeService(v)
		if out, all[i] = f.appendServiceChange(out, v), nil; len(out) >= maxChangesPerPost {
			f.options.Agent.PostChanges(ctx, out...)
			out = nil
		}
	}
	for k := range gone {
		f.observeRemovedService(k)
		out = f.appendServiceRemoval(out, k)
	}
	f.postChanges(ctx, out)
}

// postChanges posts changes, if there are any.
func (f *ClusterFeed) postChanges(ctx context.Context, out []agent.PlannerInputChange) {
	if len(out) > 0 {
		f.options.Agent.PostChanges(ctx, out...)
	}
}

// newEndpointSliceFollower follows the EndpointSlices.
func (f *ClusterFeed) newEndpointSliceFollower(ctx context.Context) *objectFollower[*view.EndpointSlice] {
	return &objectFollower[*view.EndpointSlice]{
		reduceObject: func(o any) (*view.EndpointSlice, bool) {
			s, ok := o.(*discoveryv1.EndpointSlice)
			if !ok {
				return nil, false
			}
			v := view.FromEndpointSlice(s)
			if f.options.TrafficObserver != nil {
				v.WithAddresses = view.EndpointsOfSlice(s)
			}
			return &v, true
		},
		onAdd: func(v *view.EndpointSlice) { f.postEndpointChanges(ctx, f.storeEndpointSlice(v)) },
		onUpdate: func(v *view.EndpointSlice) {
			before := f.deleteStoredEndpointSlice(v)
			f.postEndpointChanges(ctx, before, f.storeEndpointSlice(v))
		},
		onDelete:     func(v *view.EndpointSlice) { f.postEndpointChanges(ctx, f.deleteStoredEndpointSlice(v)) },
		onReplace:    func(all []*view.EndpointSlice) { f.replaceEndpointSlices(ctx, all) },
		syncedSignal: make(chan struct{}),
	}
}

// storeEndpointSlice stores a slice and returns its Service, which has no name if the slice has
// none.
func (f *ClusterFeed) storeEndpointSlice(v *view.EndpointSlice) view.ObjectKey {
	if v.Service.Name == "" {
		return view.ObjectKey{}
	}
	all := f.endpointSlicesByService[v.Service]
	i, found := findEndpointSlice(all, v.Name)
	if found {
		all[i] = *v
	} else {
		f.endpointSlicesByService[v.Service] = slices.Insert(slices.Clip(all), i, *v)
	}
	return v.Service
}

// deleteStoredEndpointSlice removes a slice and returns the Service that it belonged to. The slice
// may name another Service by now.
func (f *ClusterFeed) deleteStoredEndpointSlice(v *view.EndpointSlice) view.ObjectKey {
	of := v.Service
	if _, found := findEndpointSlice(f.endpointSlicesByService[of], v.Name); !found {
		of = view.ObjectKey{}
		for k, all := range f.endpointSlicesByService {
			if _, found := findEndpointSlice(all, v.Name); found && k.Namespace == v.Service.Namespace {
				of = k
				break
			}
		}
	}
	all := f.endpointSlicesByService[of]
	i, found := findEndpointSlice(all, v.Name)
	if !found {
		return view.ObjectKey{}
	}
	if len(all) == 1 {
		delete(f.endpointSlicesByService, of)
	} else {
		f.endpointSlicesByService[of] = slices.Delete(all, i, i+1)
	}
	return of
}

func findEndpointSlice(all []view.EndpointSlice, name string) (int, bool) {
	return slices.BinarySearchFunc(all, name, func(s view.EndpointSlice, name string) int { return strings.Compare(s.Name, name) })
}

// postEndpointChanges posts the changes for the endpoints of the Services. It skips Services
// without a name.
func (f *ClusterFeed) postEndpointChanges(ctx context.Context, services ...view.ObjectKey) {
	var out []agent.PlannerInputChange
	for i, k := range services {
		if k.Name != "" && !slices.Contains(services[:i], k) {
			f.observeEndpointSlices(k)
			out = append(out, agent.NewEndpointsReplacedChange(view.MergeEndpointSliceViews(k, f.endpointSlicesByService[k])))
		}
	}
	f.postChanges(ctx, out)
}

// replaceEndpointSlices posts the endpoints of all Services.
func (f *ClusterFeed) replaceEndpointSlices(ctx context.Context, all []*view.EndpointSlice) {
	before := f.endpointSlicesByService
	f.endpointSlicesByService = make(map[view.ObjectKey][]view.EndpointSlice, len(all))
	for _, v := range all {
		f.storeEndpointSlice(v)
	}
	for k := range before {
		if _, still := f.endpointSlicesByService[k]; !still {
			f.postEndpointChanges(ctx, k)
		}
	}
	for chunk := range slices.Chunk(slices.Collect(maps.Keys(f.endpointSlicesByService)), maxChangesPerPost) {
		f.postEndpointChanges(ctx, chunk...)
	}
}
