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

// gossipNode is this node in the gossip, with the nonce of this run.
type gossipNode struct {
	*members.Members
	nonce uint64
	// ownState is what the next run needs to join the gossip again. savedState is what an earlier
	// run saved, nil without one.
	ownState   checkpoint.NodeState
	savedState *checkpoint.NodeState
	// readKey reads the gossip key. keyUnverified is set while the saved key is used instead.
	readKey       func(context.Context) ([]byte, error)
	keyUnverified bool
	log           *slog.Logger
}

// apiTimeout bounds a request to the API server if there is a saved answer.
const apiTimeout = time.Second

// openGossip waits for the gossip key and the address of this node, then opens the sockets. If the
// API server is unreachable, it uses the saved ones.
func openGossip(
	ctx context.Context, api client.Reader, o options, saved *checkpoint.NodeState, log *slog.Logger,
) (gossipNode, error) {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return gossipNode{}, fmt.Errorf("making a nonce: %w", err)
	}
	n := gossipNode{
		nonce: binary.BigEndian.Uint64(random[:]), log: log,
		ownState: checkpoint.NodeState{Node: o.NodeName}, savedState: saved,
	}
	n.readKey = func(ctx context.Context) ([]byte, error) { return readGossipKey(ctx, api, o) }
	err := retryUntilDone(ctx, log, func() error {
		err := n.queryAPI(ctx, func(ctx context.Context) (err error) {
			if n.ownState.Key, err = n.readKey(ctx); err != nil {
				return err
			}
			n.ownState.Address, err = findGossipAddress(ctx, api, o)
			return err
		})
		if err != nil && saved != nil && isUnreachable(err) {
			log.Warn("the API server is unreachable: resuming from the checkpoint of this node's last speaker",
				"reason", err.Error(), "addresses", len(saved.Bids))
			n.ownState.Key, n.ownState.Address, n.keyUnverified = saved.Key, saved.Address, true
			return nil
		}
		return err
	})
	if err != nil || ctx.Err() != nil {
		return gossipNode{}, err
	}
	n.Members, err = members.New(members.Options{
		Name: o.NodeName, Nonce: n.nonce, BindAddress: n.ownState.Address, BindPort: o.GossipBindPort,
		Key: n.ownState.Key, Log: log,
	})
	if saved != nil && err == nil {
		var seeds []string
		for _, a := range saved.MemberAddresses {
			seeds = append(seeds, a.String())
		}
		n.SetSeeds(seeds)
	}
	return n, err
}

// queryAPI calls f, with a timeout if the answer was saved.
func (n *gossipNode) queryAPI(ctx context.Context, f func(context.Context) error) error {
	if n.savedState != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, apiTimeout)
		defer cancel()
	}
	return f(ctx)
}

// isUnreachable reports whether the error is not an answer of the API server.
func isUnreachable(err error) bool {
	return apierrors.ReasonForError(err) == metav1.StatusReasonUnknown
}

// restoredCheckpoint returns the saved checkpoint, nil without one. With BGP disabled it omits the
// routes.
func (n *gossipNode) restoredCheckpoint(scope configuration.Scope) *agent.Checkpoint {
	if n.savedState == nil {
		return nil
	}
	c := n.savedState.Checkpoint
	if scope.Layer2Only {
		c.BGP = bgp.Desired{}
	}
	return &c
}

// checkpointSaver returns a function that saves the agent's checkpoint together with the state of
// this node.
func (n *gossipNode) checkpointSaver(store *checkpoint.Store) func(agent.Checkpoint) {
	return func(c agent.Checkpoint) {
		s := n.ownState
		s.Checkpoint = c
		store.SaveState(s)
	}
}

// errKeyChanged ends a speaker that uses an old gossip key. The next run reads the new one.
var errKeyChanged = errors.New(
	"the gossip key changed while the API server was unreachable: restarting with the new key")

// verifyKey compares a saved key with the real one, once that can be read.
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

// retryUntilDone calls f every half second until it succeeds or ctx ends. It logs each error once.
func retryUntilDone(ctx context.Context, log *slog.Logger, f func() error) error {
	lastError := ""
	for {
		err := f()
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if err.Error() != lastError {
			lastError = err.Error()
			log.Warn("waiting for what gossip needs", "reason", lastError)
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
			return nil, fmt.Errorf("the gossip key in %q (--gossip-key-file) has %d bytes: use 32 random bytes",
				o.GossipKeyFile, len(key))
		}
		return key, nil
	}
	var s corev1.Secret
	if err := api.Get(ctx, client.ObjectKey{Namespace: o.Namespace, Name: names.GossipSecret}, &s); err != nil {
		return nil, fmt.Errorf("reading the gossip key, which the controller creates: %w", err)
	}
	if len(s.Data[names.GossipSecretKey]) < 16 {
		return nil, fmt.Errorf("the Secret %s/%s has no usable entry %q: "+
			"delete it, and restart the controller to create a new one",
			o.Namespace, names.GossipSecret, names.GossipSecretKey)
	}
	return s.Data[names.GossipSecretKey], nil
}

func findGossipAddress(ctx context.Context, api client.Reader, o options) (netip.Addr, error) {
	if o.GossipBindAddress != "" {
		return netip.ParseAddr(o.GossipBindAddress)
	}
	var n corev1.Node
	if err := api.Get(ctx, client.ObjectKey{Name: o.NodeName}, &n); err != nil {
		return netip.Addr{}, fmt.Errorf("reading the address of node %q (or set --gossip-bind-address): %w",
			o.NodeName, err)
	}
	if v := view.FromNode(&n); len(v.InternalAddresses) > 0 {
		return v.InternalAddresses[0], nil
	}
	return netip.Addr{}, fmt.Errorf("node %q has no internal address: set --gossip-bind-address", o.NodeName)
}
