package clusternetwork

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// serviceCIDRReader is a client.Reader with these ServiceCIDRs, or an error.
type serviceCIDRReader struct {
	items []networkingv1.ServiceCIDR
	err   error
}

// Get implements client.Reader.
func (serviceCIDRReader) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return errors.New("only lists are read")
}

// List implements client.Reader.
func (r *serviceCIDRReader) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	list.(*networkingv1.ServiceCIDRList).Items = r.items
	return r.err
}

func newNode(name string, addresses []string, podCIDRs ...string) *corev1.Node {
	n := &corev1.Node{}
	n.Name = name
	for _, a := range addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: name})
	n.Spec.PodCIDRs = podCIDRs
	return n
}

func TestClusterAddressesOfNodesAndServiceCIDRs(t *testing.T) {
	changes := 0
	api := &serviceCIDRReader{}
	known := NewKnownAddresses()
	r := NewReader(Options{KnownAddresses: known, NotifyChanged: func() { changes++ }, LiveReader: api, Log: slog.New(slog.DiscardHandler)})
	h := r.nodeEventHandler()
	check := func(wantChanges int, want ...string) {
		t.Helper()
		var got []string
		for _, a := range known.LatestClusterAddresses() {
			got = append(got, fmt.Sprintf("%s-%s is %s", a.First, a.Last, a.Use))
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) || changes != wantChanges {
			t.Errorf("after %d changes, want %d, there are %q, want %q", changes, wantChanges, got, want)
		}
	}
	compact, err := CompactNode(newNode("a", []string{"192.0.2.10", "fd00::a"}, "10.244.0.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	h.OnAdd(compact, true)
	nodeA := []string{"192.0.2.10-192.0.2.10 is the address of node a", "fd00::a-fd00::a is the address of node a", "10.244.0.0-10.244.0.255 is the Pod network of node a"}
	check(1, nodeA...)
	// A heartbeat changes nothing.
	h.OnUpdate(compact, newNode("a", []string{"192.0.2.10", "fd00::a"}, "10.244.0.0/24"))
	check(1, nodeA...)
	// An API server without ServiceCIDRs.
	for _, api.err = range []error{apierrors.NewNotFound(schema.GroupResource{Resource: "servicecidrs"}, ""), nil} {
		if err := r.readServiceNetworks(t.Context()); err != nil {
			t.Error(err)
		}
		check(1, nodeA...)
	}
	api.items = []networkingv1.ServiceCIDR{{Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16", "fd00:96::/112"}}}}
	api.items[0].Name = "kubernetes"
	for range 2 {
		if err := r.readServiceNetworks(t.Context()); err != nil {
			t.Error(err)
		}
		check(2, append(slices.Clone(nodeA), "10.96.0.0-10.96.255.255 is a Service network (ServiceCIDR kubernetes)", "fd00:96::-fd00:96::ffff is a Service network (ServiceCIDR kubernetes)")...)
	}
	// A failed reading keeps what is known.
	api.items, api.err = nil, errors.New("no answer")
	if err := r.readServiceNetworks(t.Context()); err == nil {
		t.Error("a failed reading has no error")
	}
	h.OnDelete(cache.DeletedFinalStateUnknown{Obj: compact})
	check(3, "10.96.0.0-10.96.255.255 is a Service network (ServiceCIDR kubernetes)", "fd00:96::-fd00:96::ffff is a Service network (ServiceCIDR kubernetes)")
}
