package reconcile

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/internal/view"
)

// TrafficObserver takes Services and EndpointSlices with what a service proxy needs of them, and
// nodes; *continuity.Engine is one. The methods do not block.
type TrafficObserver interface {
	SetService(s view.Service)
	RemoveService(k view.ObjectKey)
	// SetEndpointSlices replaces the EndpointSlices of a Service.
	SetEndpointSlices(k view.ObjectKey, all []view.EndpointSlice)
	// SetNode adds or replaces a node with its internal addresses.
	SetNode(name string, addresses []netip.Addr)
	// RemoveNode removes a node that is gone, or whose kubelet is silent.
	RemoveNode(name string)
}

func (f *ClusterFeed) observeNode(n *view.Node) {
	switch {
	case f.options.TrafficObserver == nil:
	case n.IsKubeletSilent:
		f.options.TrafficObserver.RemoveNode(n.Name)
	default:
		f.options.TrafficObserver.SetNode(n.Name, n.InternalAddresses)
	}
}

func (f *ClusterFeed) observeRemovedNode(name string) {
	if f.options.TrafficObserver != nil {
		f.options.TrafficObserver.RemoveNode(name)
	}
}

func (f *ClusterFeed) observeService(v *view.Service) {
	if f.options.TrafficObserver != nil {
		f.options.TrafficObserver.SetService(*v)
	}
}

func (f *ClusterFeed) observeRemovedService(k view.ObjectKey) {
	if f.options.TrafficObserver != nil {
		f.options.TrafficObserver.RemoveService(k)
	}
}

// observeEndpointSlices passes the slices of a Service on. The list is a copy, since the feed edits
// its own.
func (f *ClusterFeed) observeEndpointSlices(k view.ObjectKey) {
	if f.options.TrafficObserver != nil {
		f.options.TrafficObserver.SetEndpointSlices(k, slices.Clone(f.endpointSlicesByService[k]))
	}
}
