package reconcile

import (
	"context"
	"slices"

	"github.com/gantry-lb/gantry/internal/view"
)

// TrafficObserver takes Services and EndpointSlices with what a service proxy needs of them;
// *continuity.Engine is one. The methods may block until ctx ends.
type TrafficObserver interface {
	SetService(ctx context.Context, s view.Service)
	RemoveService(ctx context.Context, k view.ObjectKey)
	// SetEndpointSlices replaces the EndpointSlices of a Service.
	SetEndpointSlices(ctx context.Context, k view.ObjectKey, all []view.EndpointSlice)
}

func (f *ClusterFeed) observeService(ctx context.Context, v *view.Service) {
	if f.options.TrafficObserver != nil {
		f.options.TrafficObserver.SetService(ctx, *v)
	}
}

func (f *ClusterFeed) observeRemovedService(ctx context.Context, k view.ObjectKey) {
	if f.options.TrafficObserver != nil {
		f.options.TrafficObserver.RemoveService(ctx, k)
	}
}

// observeEndpointSlices passes the slices of a Service on. The list is a copy, since the feed edits
// its own.
func (f *ClusterFeed) observeEndpointSlices(ctx context.Context, k view.ObjectKey) {
	if f.options.TrafficObserver != nil {
		f.options.TrafficObserver.SetEndpointSlices(ctx, k, slices.Clone(f.endpointSlicesByService[k]))
	}
}
