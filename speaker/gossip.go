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
	"github.com/gantry-lb/gantry/speaker/members"
	"github.com/gantry-lb/gantry/speaker/recall"
)

// node is this node's place among the speakers, with the nonce of this life.
type node struct {
	*members.Members
	nonce uint64
	// own is what a later life has to know to take this place again; kept is what an earlier life knew, if anything.
	own  recall.State
	kept *recall.State
	// key reads the key from where it really is; trusted says that the kept one is used meanwhile.
	key     func(context.Context) ([]byte, error)
	trusted bool
	log     *slog.Logger
}

// patience bounds a question to the API server whose answer was kept.
const patience = time.Second

// newMembers waits for what gossip needs, the key and an address, and opens its sockets. When the API server cannot be
// reached, what was kept is used.
func newMembers(ctx context.Context, api client.Reader, o options, kept *recall.State, log *slog.Logger) (node, error) {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return node{}, fmt.Errorf("making a nonce: %w", err)
	}
	n := node{nonce: binary.BigEndian.Uint64(random[:]), own: recall.State{Node: o.NodeName}, kept: kept, log: log}
	n.key = func(ctx context.Context) ([]byte, error) { return gossipKey(ctx, api, o) }
	err := await(ctx, log, func() error {
		err := n.ask(ctx, func(ctx context.Context) (err error) {
			if n.own.Key, err = n.key(ctx); err != nil {
				return err
			}
			n.own.Address, err = gossipAddress(ctx, api, o)
			return err
		})
		if err != nil && kept != nil && unreachable(err) {
			log.Warn("the API server cannot be reached: going on from what an earlier speaker of this node knew", "reason", err.Error(), "addresses", len(kept.Bids))
			n.own.Key, n.own.Address, n.trusted = kept.Key, kept.Address, true
			return nil
		}
		return err
	})
	if err != nil || ctx.Err() != nil {
		return node{}, err
	}
	n.Members, err = members.New(members.Options{
		Name: o.NodeName, Nonce: n.nonce, BindAddress: n.own.Address, BindPort: o.GossipBindPort, Key: n.own.Key, Log: log,
	})
	if kept != nil && err == nil {
		var seeds []string
		for _, p := range kept.Peers {
			seeds = append(seeds, p.String())
		}
		n.SetSeeds(seeds)
	}
	return n, err
}

// ask calls f, and waits the less for it when the answer was kept.
func (n *node) ask(ctx context.Context, f func(context.Context) error) error {
	if n.kept != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	return f(ctx)
}

// unreachable says that an error is no answer of the API server.
func unreachable(err error) bool { return apierrors.ReasonForError(err) == metav1.StatusReasonUnknown }

// memory is what an earlier life knew, nil for nothing. A speaker that has nothing to do with routers leaves what they were told.
func (n *node) memory(scope configuration.Scope) *agent.Memory {
	if n.kept == nil {
		return nil
	}
	m := n.kept.Memory
	if scope.Layer2Alone {
		m.BGP = bgp.Desired{}
	}
	return &m
}

// remember has what the agent knows kept, with what this node is.
func (n *node) remember(store *recall.Store) func(agent.Memory) {
	return func(m agent.Memory) {
		s := n.own
		s.Memory = m
		store.Keep(s)
	}
}

// errOtherKey ends a speaker that talks with a key which is not in use any more: the next one reads the new key.
var errOtherKey = errors.New("the gossip key was changed while the API server could not be reached: starting again with the new one")

// confirm compares a key that was kept with the real one, once that can be read.
func (n *node) confirm(ctx context.Context) error {
	if !n.trusted {
		return nil
	}
	same := true
	err := await(ctx, n.log, func() error {
		key, err := n.key(ctx)
		same = err != nil || bytes.Equal(key, n.own.Key)
		return err
	})
	if err == nil && !same {
		err = errOtherKey
	}
	return err
}

// await tries again each half second until f succeeds or ctx ends; what is missing is said once.
func await(ctx context.Context, log *slog.Logger, f func() error) error {
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

func gossipKey(ctx context.Context, api client.Reader, o options) ([]byte, error) {
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

func gossipAddress(ctx context.Context, api client.Reader, o options) (netip.Addr, error) {
	if o.GossipBindAddress != "" {
		return netip.ParseAddr(o.GossipBindAddress)
	}
	var n corev1.Node
	if err := api.Get(ctx, client.ObjectKey{Name: o.NodeName}, &n); err != nil {
		return netip.Addr{}, fmt.Errorf("reading the address of node %q (or give --gossip-bind-address): %w", o.NodeName, err)
	}
	if v := view.FromNode(&n); len(v.Addresses) > 0 {
		return v.Addresses[0], nil
	}
	return netip.Addr{}, fmt.Errorf("node %q has no internal address: give --gossip-bind-address", o.NodeName)
}
