package gossip

import (
	"context"
	"fmt"
	"net/netip"
	"os"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
)

// readKey reads the gossip key from its file or its Secret.
func (o *Options) readKey(ctx context.Context) ([]byte, error) {
	if o.KeyFile != "" {
		key, err := os.ReadFile(o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("reading the gossip key (--gossip-key-file): %w", err)
		}
		if len(key) < 16 {
			return nil, fmt.Errorf("the gossip key in %q (--gossip-key-file) has %d bytes: use 32 random bytes",
				o.KeyFile, len(key))
		}
		return key, nil
	}
	var s corev1.Secret
	if err := o.API.Get(ctx, client.ObjectKey{Namespace: o.Namespace, Name: names.GossipSecret}, &s); err != nil {
		return nil, fmt.Errorf("reading the gossip key, which the controller creates: %w", err)
	}
	if len(s.Data[names.GossipKeySecretEntry]) < 16 {
		return nil, fmt.Errorf("the Secret %s/%s has no usable entry %q: "+
			"delete it, and restart the controller to create a new one",
			o.Namespace, names.GossipSecret, names.GossipKeySecretEntry)
	}
	return s.Data[names.GossipKeySecretEntry], nil
}

// findAddress returns the address at which the other speakers reach this one.
func (o *Options) findAddress(ctx context.Context) (netip.Addr, error) {
	if o.BindAddress != "" {
		return netip.ParseAddr(o.BindAddress)
	}
	var n corev1.Node
	if err := o.API.Get(ctx, client.ObjectKey{Name: o.NodeName}, &n); err != nil {
		return netip.Addr{}, fmt.Errorf("reading the address of node %q (or set --gossip-bind-address): %w",
			o.NodeName, err)
	}
	if v := view.FromNode(&n); len(v.InternalAddresses) > 0 {
		return v.InternalAddresses[0], nil
	}
	return netip.Addr{}, fmt.Errorf("node %q has no internal address: set --gossip-bind-address", o.NodeName)
}
