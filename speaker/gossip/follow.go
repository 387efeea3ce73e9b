package gossip

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
)

// SetObservedNodeAddresses takes the internal addresses of this node in the Kubernetes API. It does
// not block.
func (m *LocalMember) SetObservedNodeAddresses(internal []netip.Addr) {
	m.nodeInternalAddressUpdates.Put(internal)
}

// FollowKeysAndNodeAddress follows the gossip keys and the address of this node until ctx ends. It
// fails if the address changes: the speaker has to start again to bind its sockets to the other
// one.
func (m *LocalMember) FollowKeysAndNodeAddress(ctx context.Context) error {
	keys := make(chan [][]byte)
	go m.watchKeys(ctx, keys)
	for {
		select {
		case <-ctx.Done():
			return nil
		case k := <-keys:
			m.applyAndSaveKeys(k)
		case internal := <-m.nodeInternalAddressUpdates.C():
			if err := m.errorIfNodeAddressChanged(internal); err != nil {
				return err
			}
		}
	}
}

// errorIfNodeAddressChanged says whether the gossip address is still that of the node.
func (m *LocalMember) errorIfNodeAddressChanged(internal []netip.Addr) error {
	now := m.options.chooseGossipAddress(internal)
	if m.options.BindAddress != "" || !now.IsValid() || now == m.ListenAddress().Addr() {
		return nil
	}
	return fmt.Errorf("the internal address of node %q changed from %s to %s: restarting with the new one", m.options.NodeName, m.ListenAddress().Addr(), now)
}

// applyAndSaveKeys uses the keys from now on, and saves them for the next run.
func (m *LocalMember) applyAndSaveKeys(keys [][]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.EqualFunc(keys, m.nodeStateToSave.GossipKeys, bytes.Equal) {
		return
	}
	if err := m.SetGossipKeys(keys); err != nil {
		m.options.Log.Error("using other gossip keys", "error", err)
		return
	}
	m.nodeStateToSave.GossipKeys = keys
	m.options.Log.Info("the gossip keys changed", "keys", len(keys))
	if m.agentHasMadeCheckpoint {
		m.options.CheckpointStore.ReplaceStateToWrite(m.nodeStateToSave)
	}
}

const (
	// keyFileReadInterval is how often a key file is read. A mounted Secret changes after about a
	// minute.
	keyFileReadInterval = 10 * time.Second
	// keyWatchRetryDelay is the delay after a watch of the Secret ended.
	keyWatchRetryDelay = 5 * time.Second
)

// watchKeys sends the keys at the start and after each change.
func (m *LocalMember) watchKeys(ctx context.Context, keys chan<- [][]byte) {
	lastError := ""
	for ctx.Err() == nil {
		delay := keyWatchRetryDelay
		var err error
		if m.options.KeyFile != "" {
			delay = keyFileReadInterval
			err = m.readKeysIntoChannel(ctx, keys, func() ([][]byte, error) { return readKeyFile(m.options.KeyFile) })
		} else {
			err = m.watchSecret(ctx, keys)
		}
		if err != nil && err.Error() != lastError && ctx.Err() == nil {
			lastError = err.Error()
			m.options.Log.Warn("following the gossip keys; the last ones stay in use", "error", lastError)
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
}

// watchSecret sends the keys until the watch of the Secret ends.
func (m *LocalMember) watchSecret(ctx context.Context, keys chan<- [][]byte) error {
	// the watch begins with the Secret as it is
	w, err := m.options.API.Watch(ctx, &corev1.SecretList{}, client.InNamespace(m.options.Namespace), client.MatchingFields{"metadata.name": names.GossipSecret})
	if err != nil {
		return fmt.Errorf("watching the Secret %s: %w", names.GossipSecret, err)
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, open := <-w.ResultChan():
			if !open {
				return nil
			}
			s, ok := e.Object.(*corev1.Secret)
			if !ok || e.Type == watch.Deleted { // without the Secret the last keys stay in use
				continue
			}
			if err := m.readKeysIntoChannel(ctx, keys, func() ([][]byte, error) { return keysOfSecret(s) }); err != nil {
				return err
			}
		}
	}
}

func (m *LocalMember) readKeysIntoChannel(ctx context.Context, keys chan<- [][]byte, read func() ([][]byte, error)) error {
	k, err := read()
	if err != nil {
		return err
	}
	select {
	case keys <- k:
	case <-ctx.Done():
	}
	return nil
}
