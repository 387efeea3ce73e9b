// Package gossip makes this node a member of the gossip between the speakers. It finds the gossip
// key and the address of the node, in the API server or in the checkpoint of the node's last
// speaker. Package members carries the messages.
package gossip

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/checkpoint"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/members"
)

// Options are what a LocalMember needs.
type Options struct {
	NodeName  string
	Namespace string // of the Secret with the key
	// BindAddress is empty for the internal address of the node.
	BindAddress string
	BindPort    int
	// KeyFile is empty for the Secret that the controller creates.
	KeyFile string
	// API reads and watches without a cache.
	API client.WithWatch
	// AddressOfClusterFirstFamily is an address of the family that comes first in the cluster, the
	// same on all nodes; invalid if it is not known.
	AddressOfClusterFirstFamily netip.Addr
	// CheckpointStore has the checkpoint of the last speaker, and saves that of this one.
	CheckpointStore *checkpoint.Store
	// ConfigurationScope is the part of the configuration that the speaker reads.
	ConfigurationScope configuration.ConfigurationScope
	Log                *slog.Logger
}

// LocalMember is this node in the gossip.
type LocalMember struct {
	*members.Members
	options  Options
	runNonce uint64
	// nodeStateToSave is this run's own. It is saved, so that the next run can join the gossip
	// again. nodeStateOfPreviousRun is what an earlier run saved, nil without one. mu guards
	// nodeStateToSave and agentHasMadeCheckpoint.
	mu                     sync.Mutex
	nodeStateToSave        checkpoint.SavedNodeState
	nodeStateOfPreviousRun *checkpoint.SavedNodeState
	agentHasMadeCheckpoint bool // the agent has made one
	// nodeInternalAddressUpdates delivers the internal addresses of the node, whenever they change.
	nodeInternalAddressUpdates *latest.Value[[]netip.Addr]
}

// apiRequestWithSavedAnswerTimeout bounds a request to the API server if there is a saved answer.
const apiRequestWithSavedAnswerTimeout = time.Second

// OpenLocalMember waits for the gossip key and the address of this node, then opens the sockets. If
// the API server is unreachable, it uses the saved ones. It returns nil if ctx ends first.
func OpenLocalMember(ctx context.Context, o Options) (*LocalMember, error) {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("making a nonce: %w", err)
	}
	m := &LocalMember{
		options: o, runNonce: binary.BigEndian.Uint64(random[:]),
		nodeStateToSave:        checkpoint.SavedNodeState{NodeName: o.NodeName},
		nodeStateOfPreviousRun: o.CheckpointStore.LoadState(o.NodeName), nodeInternalAddressUpdates: latest.NewValue[[]netip.Addr](),
	}
	err := retryUntilSuccess(ctx, o.Log, func() error { return m.findGossipKeysAndAddress(ctx) })
	if err != nil || ctx.Err() != nil {
		return nil, err
	}
	m.Members, err = members.New(members.Options{
		NodeName: o.NodeName, RunNonce: m.runNonce, MaxMessageFormat: elect.NewestMessageFormat, IsReceivedMessageUrgent: elect.IsReceivedMessageUrgent, BindAddress: m.nodeStateToSave.GossipAddress, BindPort: o.BindPort,
		GossipKeys: m.nodeStateToSave.GossipKeys, Now: time.Now, Log: o.Log,
	})
	if err != nil {
		return nil, err
	}
	if saved := m.nodeStateOfPreviousRun; saved != nil {
		var seeds []string
		for _, a := range saved.MemberAddresses {
			seeds = append(seeds, a.String())
		}
		m.SetSeeds(seeds)
	}
	return m, nil
}

// RunNonce identifies this run of the process.
func (m *LocalMember) RunNonce() uint64 { return m.runNonce }

// findGossipKeysAndAddress reads the key and the address from the API server. If that is
// unreachable, it uses the saved ones.
func (m *LocalMember) findGossipKeysAndAddress(ctx context.Context) error {
	saved := m.nodeStateOfPreviousRun
	err := m.queryAPIWithOptionalTimeout(ctx, func(ctx context.Context) (err error) {
		if m.nodeStateToSave.GossipKeys, err = m.options.readGossipKeys(ctx); err != nil {
			return err
		}
		m.nodeStateToSave.GossipAddress, err = m.options.findGossipAddress(ctx)
		return err
	})
	if err != nil && saved != nil && isAPIUnreachable(err) {
		m.options.Log.Warn("the API server is unreachable: resuming from the checkpoint of this node's last speaker",
			"error", err, "addresses", len(saved.BidsOfLastPlan))
		m.nodeStateToSave.GossipKeys, m.nodeStateToSave.GossipAddress = saved.GossipKeys, saved.GossipAddress
		return nil
	}
	return err
}

// queryAPIWithOptionalTimeout calls f, with a timeout if the answer was saved.
func (m *LocalMember) queryAPIWithOptionalTimeout(ctx context.Context, f func(context.Context) error) error {
	if m.nodeStateOfPreviousRun != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, apiRequestWithSavedAnswerTimeout)
		defer cancel()
	}
	return f(ctx)
}

// isAPIUnreachable reports whether the error is that of a request to the API server, and not its
// answer.
func isAPIUnreachable(err error) bool {
	var request apiRequestError
	return errors.As(err, &request) && apierrors.ReasonForError(request) == metav1.StatusReasonUnknown
}

// RestoredCheckpoint returns the saved checkpoint, nil without one. With BGP disabled it omits the
// routes.
func (m *LocalMember) RestoredCheckpoint() *agent.Checkpoint {
	if m.nodeStateOfPreviousRun == nil {
		return nil
	}
	c := m.nodeStateOfPreviousRun.Checkpoint
	if m.options.ConfigurationScope.WithoutBGPKinds {
		c.DesiredBGP = bgp.DesiredState{}
	}
	return &c
}

// SaveCheckpoint saves the agent's checkpoint together with the state of this node. It does not
// block.
func (m *LocalMember) SaveCheckpoint(c agent.Checkpoint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nodeStateToSave.Checkpoint, m.agentHasMadeCheckpoint = c, true
	m.options.CheckpointStore.ReplaceStateToWrite(m.nodeStateToSave)
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
			log.Warn("waiting for what gossip needs", "error", lastError)
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}
