package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/checkpoint"
	"github.com/gantry-lb/gantry/speaker/members"
)

// gossipNode is this node's place among the speakers, with the nonce of this life.
type gossipNode struct {
	*members.Members
	nonce uint64
	// ownState is what a later life has to know to take this place again; kept is what an earlier life knew, if anything.
	ownState   checkpoint.NodeState
	savedState *checkpoint.NodeState
	// readKey reads the key from where it really is; trusted says that the kept one is used meanwhile.
	readKey       func(context.Context) ([]byte, error)
	keyUnverified bool
	log           *slog.Logger
}

// apiTimeout bounds a question to the API server whose answer was kept.
const apiTimeout = time.Second

// openGossip waits for what gossip needs, the key and an address, and opens its sockets. When the API server cannot be
// reached, what was kept is used.
func openGossip(ctx context.Context, api client.Reader, o options, kept *checkpoint.NodeState, log *slog.Logger) (gossipNode, error) {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return gossipNode{}, fmt.Errorf("making a nonce: %w", err)
	}
	n := gossipNode{nonce: binary.BigEndian.Uint64(random[:]), ownState: checkpoint.NodeState{Node: o.NodeName}, savedState: kept, log: log}
	n.readKey = func(ctx context.Context) ([]byte, error) { return readGossipKey(ctx, api, o) }
	err := retryUntilDone(ctx, log, func() error {
		err := n.queryAPI(ctx, func(ctx context.Context) (err error) {
			if n.ownState.Key, err = n.readKey(ctx); err != nil {
				return err
			}
			n.ownState.Address, err = findGossipAddress(ctx, api, o)
			return err
		})
		if err != nil && kept != nil && isUnreachable(err) {
			log.Warn("the API server cannot be reached: going on from what an earlier speaker of this node knew", "reason", err.Error(), "addresses", len(kept.Bids))
			n.ownState.Key, n.ownState.Address, n.keyUnverified = kept.Key, kept.Address, true
			return nil
		}
		return err
	})
	if err != nil || ctx.Err() != nil {
		return gossipNode{}, err
	}
	n.Members, err = members.New(members.Options{
		Name: o.NodeName, Nonce: n.nonce, BindAddress: n.ownState.Address, BindPort: o.GossipBindPort, Key: n.ownState.Key, Log: log,
	})
	if kept != nil && err == nil {
		var seeds []string
		for _, p := range kept.MemberAddresses {
			seeds = append(seeds, p.String())
		}
		n.SetSeeds(seeds)
	}
	return n, err
}

// queryAPI calls f, and waits the less for it when the answer was kept.
func (n *gossipNode) queryAPI(ctx context.Context, f func(context.Context) error) error {
	if n.savedState != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, apiTimeout)
		defer cancel()
	}
	return f(ctx)
}

// isUnreachable says that an error is no answer of the API server.
func isUnreachable(err error) bool {
	return apierrors.ReasonForError(err) == metav1.StatusReasonUnknown
}

// restoredCheckpoint is what an earlier life knew, nil for nothing. A speaker that has nothing to do with routers leaves what they were told.
func (n *gossipNode) restoredCheckpoint(scope configuration.Scope) *agent.Checkpoint {
	if n.savedState == nil {
		return nil
	}
	m := n.savedState.Checkpoint
	if scope.Layer2Only {
		m.BGP = bgp.Desired{}
	}
	return &m
}

// checkpointSaver has what the agent knows kept, with what this node is.
func (n *gossipNode) checkpointSaver(store *checkpoint.Store) func(agent.Checkpoint) {
	return func(m agent.Checkpoint) {
		s := n.ownState
		s.Checkpoint = m
		store.SaveState(s)
	}
}

// errKeyChanged ends a speaker that talks with a key which is not in use any more: the next one reads the new key.
var errKeyChanged = errors.New("the gossip key was changed while the API server could not be reached: starting again with the new one")

// verifyKey compares a key that was kept with the real one, once that can be read.
func (n *gossipNode) verifyKey(ctx context.Context) error {
	if !n.keyUnverified {
		return nil
	}
	same := true
	err := retryUntilDone(ctx, n.log, func() error {
		key, err := n.readKey(ctx)
		same = err != nil || bytes.Equal(key, n.ownState.Key)
		return err
	})
	if err == nil && !same {
		err = errKeyChanged
	}
	return err
}

// retryUntilDone tries again each half second until f succeeds or ctx ends; what is missing is said once.
func retryUntilDone(ctx context.Context, log *slog.Logger, f func() error) error {
	told := ""
	for {
		err := f()
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if err.Error() != told {
			told = err.Error()
			log.Warn("waiting to talk to the other speakers", "reason", told)
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func readGossipKey(ctx context.Context, api client.Reader, o options) ([]byte, error) {
	if o.GossipKeyFile != "" {
		key, err := os.ReadFile(o.GossipKeyFile)
		if err != nil {
			return nil, fmt.Errorf("reading the gossip key (--gossip-key-file): %w", err)
		}
		if len(key) < 16 {
			return nil, fmt.Errorf("the gossip key in %q (--gossip-key-file) has %d bytes: use 32 random bytes", o.GossipKeyFile, len(key))
		}
		return key, nil
	}
	var s corev1.Secret
	if err := api.Get(ctx, client.ObjectKey{Namespace: o.Namespace, Name: names.GossipSecret}, &s); err != nil {
		return nil, fmt.Errorf("reading the gossip key, which the controller makes: %w", err)
	}
	if len(s.Data[names.GossipSecretKey]) < 16 {
		return nil, fmt.Errorf("the Secret %s/%s has no usable entry %q: delete it, and restart the controller to make a new one", o.Namespace, names.GossipSecret, names.GossipSecretKey)
	}
	return s.Data[names.GossipSecretKey], nil
}

func findGossipAddress(ctx context.Context, api client.Reader, o options) (netip.Addr, error) {
	if o.GossipBindAddress != "" {
		return netip.ParseAddr(o.GossipBindAddress)
	}
	var n corev1.Node
	if err := api.Get(ctx, client.ObjectKey{Name: o.NodeName}, &n); err != nil {
		return netip.Addr{}, fmt.Errorf("reading the address of node %q (or give --gossip-bind-address): %w", o.NodeName, err)
	}
	if v := view.FromNode(&n); len(v.InternalAddresses) > 0 {
		return v.InternalAddresses[0], nil
	}
	return netip.Addr{}, fmt.Errorf("node %q has no internal address: give --gossip-bind-address", o.NodeName)
}
