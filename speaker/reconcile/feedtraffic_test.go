package reconcile

import (
	"net/netip"
	"testing"

	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// recordingTrafficObserver has what a ClusterFeed passed to it last.
type recordingTrafficObserver struct {
	services map[view.ObjectKey]view.Service
	slices   map[view.ObjectKey][]view.EndpointSlice
	nodes    map[string][]netip.Addr
}

func (o *recordingTrafficObserver) SetService(s view.Service) {
	o.services[s.Key] = s
}
func (o *recordingTrafficObserver) RemoveService(k view.ObjectKey) {
	delete(o.services, k)
}
func (o *recordingTrafficObserver) SetEndpointSlices(k view.ObjectKey, all []view.EndpointSlice) {
	o.slices[k] = all
}

func (o *recordingTrafficObserver) SetNode(name string, addresses []netip.Addr) {
	o.nodes[name] = addresses
}
func (o *recordingTrafficObserver) RemoveNode(name string) { delete(o.nodes, name) }

func TestAddressesOfEndpointsAreKeptOnlyForAnObserver(t *testing.T) {
	k := view.ObjectKey{Namespace: "default", Name: "web"}
	a := netip.MustParseAddr("192.0.2.1")
	_, services, endpoints, f := newFeedWithFollowers(t, plan.Inputs{})
	passToFollower(t, services.Add, exampleService("web", a))
	passToFollower(t, endpoints.Add, exampleEndpointSlice("web-1", "web", "node1"))
	if s := f.endpointSlicesByService[k]; len(s) != 1 || s[0].WithAddresses != nil {
		t.Errorf("without an observer the feed keeps %v, want no addresses", s)
	}

	o := &recordingTrafficObserver{map[view.ObjectKey]view.Service{}, map[view.ObjectKey][]view.EndpointSlice{}, map[string][]netip.Addr{}}
	_, services, endpoints, f = newFeedWithFollowers(t, plan.Inputs{})
	f.options.TrafficObserver = o
	passToFollower(t, services.Add, exampleService("web", a))
	passToFollower(t, endpoints.Add, exampleEndpointSlice("web-1", "web", "node1", "node2"), exampleEndpointSlice("web-2", "web", "node3"))
	if s := o.services[k]; s.Traffic == nil || len(s.Traffic.Ports) != 1 || len(s.AssignedAddresses) != 1 {
		t.Errorf("the observer has the Service %v, want its port and its address", s)
	}
	before := o.slices[k]
	if len(before) != 2 || len(before[0].WithAddresses.Endpoints) != 2 || before[0].WithAddresses.Endpoints[1].Node != "node2" {
		t.Fatalf("the observer has the slices %v, want two with all endpoints", before)
	}
	passToFollower(t, endpoints.Update, exampleEndpointSlice("web-1", "web", "node4"))
	if got := o.slices[k]; got[0].WithAddresses.Endpoints[0].Node != "node4" || len(before[0].WithAddresses.Endpoints) != 2 {
		t.Errorf("after an update the observer has %v, and the list before it is %v: want only the new one to change", got, before)
	}
	passToFollower(t, endpoints.Delete, exampleEndpointSlice("web-1", "web", "node4"), exampleEndpointSlice("web-2", "web", "node3"))
	passToFollower(t, services.Delete, exampleService("web", a))
	if len(o.slices[k]) != 0 || len(o.services) != 0 {
		t.Errorf("after the deletion the observer has %v and %v", o.services, o.slices)
	}
}
