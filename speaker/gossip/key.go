package gossip

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
)

// minKeyBytes is the length of the shortest key that is used.
const minKeyBytes = 16

// apiRequestError is the error of a request to the API server.
type apiRequestError struct{ error }

// Unwrap returns the error of the client.
func (e apiRequestError) Unwrap() error { return e.error }

// readGossipKeys reads the gossip keys from their file or their Secret. The first one encrypts.
func (o *Options) readGossipKeys(ctx context.Context) ([][]byte, error) {
	if o.KeyFile != "" {
		return readKeyFile(o.KeyFile)
	}
	var s corev1.Secret
	if err := o.API.Get(ctx, client.ObjectKey{Namespace: o.Namespace, Name: names.GossipSecret}, &s); err != nil {
		return nil, fmt.Errorf("reading the gossip key, which the controller creates: %w", apiRequestError{err})
	}
	return keysOfSecret(&s)
}

// readKeyFile reads the key in a file. The next and the previous key are in files beside it.
func readKeyFile(path string) ([][]byte, error) {
	var keys [][]byte
	for _, suffix := range []string{"", "-next", "-previous"} {
		key, err := os.ReadFile(path + suffix)
		if suffix != "" && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the gossip key (--gossip-key-file): %w", err)
		}
		if len(key) < minKeyBytes {
			return nil, fmt.Errorf("the gossip key in %q (--gossip-key-file) has %d bytes: use 32 random bytes", path+suffix, len(key))
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// keysOfSecret returns the keys of the Secret. It leaves out a next or previous key that is too
// short.
func keysOfSecret(s *corev1.Secret) ([][]byte, error) {
	key := s.Data[names.GossipKeySecretEntry]
	if len(key) < minKeyBytes {
		return nil, fmt.Errorf("the Secret %s/%s has no usable entry %q: delete it, and restart the controller to create a new one",
			s.Namespace, s.Name, names.GossipKeySecretEntry)
	}
	keys := [][]byte{key}
	for _, entry := range []string{names.GossipNextKeySecretEntry, names.GossipPreviousKeySecretEntry} {
		if other := s.Data[entry]; len(other) >= minKeyBytes {
			keys = append(keys, other)
		}
	}
	return keys, nil
}

// findGossipAddress returns the address at which the other speakers reach this one.
func (o *Options) findGossipAddress(ctx context.Context) (netip.Addr, error) {
	if o.BindAddress != "" {
		return netip.ParseAddr(o.BindAddress)
	}
	var n corev1.Node
	if err := o.API.Get(ctx, client.ObjectKey{Name: o.NodeName}, &n); err != nil {
		return netip.Addr{}, fmt.Errorf("reading the address of node %q (or set --gossip-bind-address): %w",
			o.NodeName, apiRequestError{err})
	}
	if a := o.chooseGossipAddress(view.FromNode(&n).InternalAddresses); a.IsValid() {
		return a, nil
	}
	return netip.Addr{}, fmt.Errorf("node %q has no internal address: set --gossip-bind-address", o.NodeName)
}

// chooseGossipAddress returns the first internal address of the cluster's first address family, so
// that all speakers of a dual-stack cluster choose alike, in whatever order their nodes list the
// addresses. A node without an address of this family uses another one.
func (o *Options) chooseGossipAddress(internal []netip.Addr) netip.Addr {
	for _, a := range internal {
		if !o.AddressOfClusterFirstFamily.IsValid() || a.Is4() == o.AddressOfClusterFirstFamily.Is4() {
			return a
		}
	}
	if len(internal) > 0 {
		return internal[0]
	}
	return netip.Addr{}
}

// APIServerServiceAddress returns the address of the API server's Service, whose family is the
// first one of the cluster. It is invalid outside of a Pod.
func APIServerServiceAddress() netip.Addr {
	a, err := netip.ParseAddr(os.Getenv("KUBERNETES_SERVICE_HOST"))
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap()
}
