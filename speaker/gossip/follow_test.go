package gossip

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/checkpoint"
)

const testAwaitTimeout = time.Minute

// openTestMember returns a member on loopback, whose keys are in a Secret.
func openTestMember(t *testing.T, secret *corev1.Secret) (*LocalMember, *checkpoint.Store) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	store := checkpoint.NewStore(t.TempDir(), log)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}}}}
	m, err := OpenLocalMember(t.Context(), Options{
		NodeName: "n1", Namespace: names.DefaultNamespace, API: fake.NewClientBuilder().WithObjects(secret, node).Build(), CheckpointStore: store, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	return m, store
}

// runUntilCleanup runs a function until the test ends.
func runUntilCleanup(t *testing.T, run func(context.Context) error) {
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
}

// TestChangedKeysAreUsedAndSaved: a speaker that starts again without the API server needs them.
func TestChangedKeysAreUsedAndSaved(t *testing.T) {
	first, second := []byte("the first key, 16 bytes or more"), []byte("the second key, 16 bytes or more")
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: names.GossipSecret}, Data: map[string][]byte{names.GossipKeySecretEntry: first}}
	m, store := openTestMember(t, secret)
	runUntilCleanup(t, m.Run)
	runUntilCleanup(t, m.FollowKeysAndNodeAddress)
	runUntilCleanup(t, store.Run)
	m.SaveCheckpoint(agent.Checkpoint{})
	secret.Data = map[string][]byte{names.GossipKeySecretEntry: second, names.GossipPreviousKeySecretEntry: first}
	updated := secret.DeepCopy()
	updated.ResourceVersion = ""
	deadline := time.Now().Add(testAwaitTimeout)
	for {
		// the stand-in of the API server sends no objects at the start of a watch
		if err := m.options.API.Update(t.Context(), updated); err != nil {
			t.Fatal(err)
		}
		if s := store.LoadState("n1"); s != nil && len(s.GossipKeys) == 2 && string(s.GossipKeys[0]) == string(second) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the changed keys are not saved")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestChangedNodeAddressEndsSpeaker(t *testing.T) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: names.GossipSecret}, Data: map[string][]byte{names.GossipKeySecretEntry: []byte("a key of 16 bytes or more")}}
	m, _ := openTestMember(t, secret)
	runUntilCleanup(t, m.Run)
	ended := make(chan error, 1)
	go func() { ended <- m.FollowKeysAndNodeAddress(t.Context()) }()
	m.SetObservedNodeAddresses([]netip.Addr{netip.MustParseAddr("127.0.0.1")})
	m.SetObservedNodeAddresses(nil)
	m.SetObservedNodeAddresses([]netip.Addr{netip.MustParseAddr("192.0.2.9")})
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "192.0.2.9") {
			t.Errorf("it ends with %v", err)
		}
	case <-time.After(testAwaitTimeout):
		t.Error("the speaker continues with the former address")
	}
}

func TestWatchKeysReadsKeyFileAtStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte("a key of 16 bytes or more"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := &LocalMember{options: Options{KeyFile: path, Log: slog.New(slog.DiscardHandler)}}
	keys := make(chan [][]byte)
	ctx, stop := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { m.watchKeys(ctx, keys) })
	if got := <-keys; !slices.EqualFunc(got, [][]byte{[]byte("a key of 16 bytes or more")}, slices.Equal[[]byte]) {
		t.Errorf("the keys are %q", got)
	}
	stop()
	watching.Wait()
}
