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
	runNonce uint64
	// stateForNextRun is what the next run needs to join the gossip again. stateOfEarlierRun is
	// what an earlier run saved, nil without one.
	stateForNextRun   checkpoint.NodeState
	stateOfEarlierRun *checkpoint.NodeState
	// readCurrentKey reads the gossip key. usesUnverifiedKey is set while the saved key is used
	// instead.
	readCurrentKey    func(context.Context) ([]byte, error)
	usesUnverifiedKey bool
	log               *slog.Logger
}

// apiRequestWithSavedAnswerTimeout bounds a request to the API server if there is a saved answer.
const apiRequestWithSavedAnswerTimeout = time.Second

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
		runNonce: binary.BigEndian.Uint64(random[:]), log: log,
		stateForNextRun: checkpoint.NodeState{Node: o.NodeName}, stateOfEarlierRun: saved,
	}
	n.readCurrentKey = func(ctx context.Context) ([]byte, error) { return readGossipKey(ctx, api, o) }
	err := retryUntilSuccess(ctx, log, func() error {
		err := n.queryAPIWithOptionalTimeout(ctx, func(ctx context.Context) (err error) {
			if n.stateForNextRun.Key, err = n.readCurrentKey(ctx); err != nil {
				return err
			}
			n.stateForNextRun.Address, err = findGossipAddress(ctx, api, o)
			return err
		})
		if err != nil && saved != nil && isAPIUnreachable(err) {
			log.Warn("the API server is unreachable: resuming from the checkpoint of this node's last speaker",
				"reason", err.Error(), "addresses", len(saved.Bids))
			n.stateForNextRun.Key, n.stateForNextRun.Address, n.usesUnverifiedKey = saved.Key, saved.Address, true
			return nil
		}
		return err
	})
	if err != nil || ctx.Err() != nil {
		return gossipNode{}, err
	}
	n.Members, err = members.New(members.Options{
		Name: o.NodeName, Nonce: n.runNonce, BindAddress: n.stateForNextRun.Address, BindPort: o.GossipBindPort,
		Key: n.stateForNextRun.Key, Log: log,
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

// queryAPIWithOptionalTimeout calls f, with a timeout if the answer was saved.
func (n *gossipNode) queryAPIWithOptionalTimeout(ctx context.Context, f func(context.Context) error) error {
	if n.stateOfEarlierRun != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, apiRequestWithSavedAnswerTimeout)
		defer cancel()
	}
	return f(ctx)
}

// isAPIUnreachable reports whether the error is not an answer of the API server.
func isAPIUnreachable(err error) bool {
	return apierrors.ReasonForError(err) == metav1.StatusReasonUnknown
}

// restoredCheckpoint returns the saved checkpoint, nil without one. With BGP disabled it omits the
// routes.
func (n *gossipNode) restoredCheckpoint(scope configuration.Scope) *agent.Checkpoint {
	if n.stateOfEarlierRun == nil {
		return nil
	}
	c := n.stateOfEarlierRun.Checkpoint
	if scope.Layer2Only {
		c.BGP = bgp.Desired{}
	}
	return &c
}

// newCheckpointSaver returns a function that saves the agent's checkpoint together with the state
// of this node.
func (n *gossipNode) newCheckpointSaver(store *checkpoint.Store) func(agent.Checkpoint) {
	return func(c agent.Checkpoint) {
		s := n.stateForNextRun
		s.Checkpoint = c
		store.SaveState(s)
	}
}

// errKeyChanged ends a speaker that uses an old gossip key. The next run reads the new one.
var errKeyChanged = errors.New(
	"the gossip key changed while the API server was unreachable: restarting with the new key")

// verifySavedKey compares a saved key with the real one, once that can be read.
func (n *gossipNode) verifySavedKey(ctx context.Context) error {
	if !n.usesUnverifiedKey {
		return nil
	}
	same := true
	err := retryUntilSuccess(ctx, n.log, func() error {
		key, err := n.readCurrentKey(ctx)
		same = err != nil || bytes.Equal(key, n.stateForNextRun.Key)
		return err
	})
	if err == nil && !same {
		err = errKeyChanged
	}
	return err
}

// retryUntilSuccess calls f every half second until it succeeds or ctx ends. It logs each error
// once.
func retryUntilSuccess(ctx context.Context, log *slog.Logger, f func() error) error {
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
