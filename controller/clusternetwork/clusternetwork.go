// Package clusternetwork reads which addresses the cluster itself uses: those of the nodes, the Pod
// networks of the nodes, and the Service networks. Package snapshot reports pools that have such
// addresses.
package clusternetwork

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	ctrlcache "sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/gantry-lb/gantry/internal/snapshot"
)

const (
	// serviceCIDRReadInterval is how often the ServiceCIDRs are read. They hardly ever change.
	serviceCIDRReadInterval = 5 * time.Minute
	// failedReadRetryDelay is how long to wait after a failed reading.
	failedReadRetryDelay = 10 * time.Second
)

// Options are the settings of a Reader.
type Options struct {
	// KnownAddresses gets what the Reader reads.
	KnownAddresses *KnownAddresses
	// NotifyChanged is called when the addresses have changed.
	NotifyChanged func()
	// LiveReader reads from the API server itself. API servers before 1.33 have no ServiceCIDRs, so
	// that no cache can watch them.
	LiveReader client.Reader
	Log        *slog.Logger
}

// KnownAddresses are the addresses that the cluster uses, as far as they are known. Any goroutine
// may call the methods. Use NewKnownAddresses to create it.
type KnownAddresses struct {
	mu                            sync.Mutex // guards all that follows
	addressesAndPodNetworksByNode map[string][]snapshot.ClusterAddressRange
	serviceNetworks               []snapshot.ClusterAddressRange
}

// NewKnownAddresses returns KnownAddresses without an address.
func NewKnownAddresses() *KnownAddresses {
	return &KnownAddresses{addressesAndPodNetworksByNode: map[string][]snapshot.ClusterAddressRange{}}
}

// LatestClusterAddresses returns the addresses that are known now.
func (k *KnownAddresses) LatestClusterAddresses() []snapshot.ClusterAddressRange {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := slices.Clone(k.serviceNetworks)
	for _, a := range k.addressesAndPodNetworksByNode {
		out = append(out, a...)
	}
	return out
}

// WrapReadWithClusterAddresses returns a function that reads the same objects and adds the
// addresses.
func (k *KnownAddresses) WrapReadWithClusterAddresses(read func(context.Context) (snapshot.ConfigurationObjects, error)) func(context.Context) (snapshot.ConfigurationObjects, error) {
	return func(ctx context.Context) (snapshot.ConfigurationObjects, error) {
		o, err := read(ctx)
		o.ClusterAddresses = k.LatestClusterAddresses()
		return o, err
	}
}

// setOfNode sets the addresses and Pod networks of a node, and reports whether that is a change.
func (k *KnownAddresses) setOfNode(name string, now []snapshot.ClusterAddressRange) (changed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	changed = !slices.Equal(k.addressesAndPodNetworksByNode[name], now)
	if k.addressesAndPodNetworksByNode[name] = now; len(now) == 0 {
		delete(k.addressesAndPodNetworksByNode, name)
	}
	return changed
}

// setServiceNetworks sets the Service networks, and reports whether that is a change.
func (k *KnownAddresses) setServiceNetworks(now []snapshot.ClusterAddressRange) (changed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	changed = !slices.Equal(k.serviceNetworks, now)
	k.serviceNetworks = now
	return changed
}

// Reader reads the addresses that the cluster uses. Use NewReader to create it.
type Reader struct{ Options }

// NewReader returns a Reader that has read nothing.
func NewReader(o Options) *Reader { return &Reader{o} }

// RegisterReader watches the nodes in mgr's cache, and reads the ServiceCIDRs while mgr runs.
func (r *Reader) RegisterReader(ctx context.Context, mgr manager.Manager) error {
	informer, err := mgr.GetCache().GetInformer(ctx, &corev1.Node{}, ctrlcache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watching the nodes: %w", err)
	}
	if _, err := informer.AddEventHandler(r.nodeEventHandler()); err != nil {
		return fmt.Errorf("watching the nodes: %w", err)
	}
	if err := mgr.Add(r); err != nil {
		return fmt.Errorf("setting up the reading of the Service networks: %w", err)
	}
	return nil
}

// CompactNode removes from a Node in the cache what this package does not read.
func CompactNode(o any) (any, error) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return o, nil
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion},
		Spec:       corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs},
		Status:     corev1.NodeStatus{Addresses: n.Status.Addresses},
	}, nil
}

func (r *Reader) nodeEventHandler() cache.ResourceEventHandler {
	set := func(o any) {
		if n, ok := o.(*corev1.Node); ok {
			r.setAddressesAndPodNetworksOfNode(n.Name, AddressesAndPodNetworksOfNode(n))
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: set, UpdateFunc: func(_, o any) { set(o) },
		DeleteFunc: func(o any) {
			if unknown, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = unknown.Obj
			}
			if n, ok := o.(*corev1.Node); ok {
				r.setAddressesAndPodNetworksOfNode(n.Name, nil)
			}
		},
	}
}

func (r *Reader) setAddressesAndPodNetworksOfNode(name string, now []snapshot.ClusterAddressRange) {
	if r.KnownAddresses.setOfNode(name, now) {
		r.NotifyChanged()
	}
}

// AddressesAndPodNetworksOfNode returns the addresses of a node and its Pod networks.
func AddressesAndPodNetworksOfNode(n *corev1.Node) []snapshot.ClusterAddressRange {
	var out []snapshot.ClusterAddressRange
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
			out = appendParsedNetwork(out, a.Address, "the address of node "+n.Name)
		}
	}
	networks := n.Spec.PodCIDRs
	if len(networks) == 0 && n.Spec.PodCIDR != "" {
		networks = []string{n.Spec.PodCIDR}
	}
	for _, text := range networks {
		out = appendParsedNetwork(out, text, "the Pod network of node "+n.Name)
	}
	return out
}

// appendParsedNetwork appends an address or CIDR. A text that is neither is left out.
func appendParsedNetwork(to []snapshot.ClusterAddressRange, text, use string) []snapshot.ClusterAddressRange {
	parsed, err := snapshot.ParseRange(text)
	a := snapshot.ClusterAddressRange{Range: parsed, Use: use}
	if err != nil || slices.Contains(to, a) { // many nodes list one address twice
		return to
	}
	return append(to, a)
}

// NeedLeaderElection is part of manager.LeaderElectionRunnable. A controller that does not lead
// reads too, so that it can begin at once.
func (*Reader) NeedLeaderElection() bool { return false }

// Start reads the ServiceCIDRs until ctx ends.
func (r *Reader) Start(ctx context.Context) error {
	for {
		wait := serviceCIDRReadInterval
		if err := r.readServiceNetworks(ctx); err != nil && ctx.Err() == nil {
			r.Log.Info("reading the Service networks; pools with their addresses are not reported meanwhile", "error", err, "again", failedReadRetryDelay)
			wait = failedReadRetryDelay
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// readServiceNetworks reads the ServiceCIDRs once. It is no error that the API server has none.
func (r *Reader) readServiceNetworks(ctx context.Context) error {
	var list networkingv1.ServiceCIDRList
	err := r.LiveReader.List(ctx, &list)
	if err != nil && !meta.IsNoMatchError(err) && !apierrors.IsNotFound(err) {
		return err
	}
	var now []snapshot.ClusterAddressRange
	for i := range list.Items {
		for _, text := range list.Items[i].Spec.CIDRs {
			if _, err := netip.ParsePrefix(text); err == nil {
				now = appendParsedNetwork(now, text, "a Service network (ServiceCIDR "+list.Items[i].Name+")")
			}
		}
	}
	if r.KnownAddresses.setServiceNetworks(now) {
		r.NotifyChanged()
	}
	return nil
}
