package configuration

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// secretServer is an API server that answers a Get of a Secret by its name, and nothing else.
type secretServer struct {
	client.Reader // nil: every other request panics

	mu           sync.Mutex // guards all that follows
	secretByName map[string]*corev1.Secret
	errorByName  map[string]error
	readCount    map[string]int
}

var secretsResource = schema.GroupResource{Resource: "secrets"}

// Get implements client.Reader.
func (s *secretServer) Get(_ context.Context, key client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readCount[key.Name]++
	secret, found := s.secretByName[key.Name]
	switch err := s.errorByName[key.Name]; {
	case err != nil:
		return err
	case !found || key.Namespace != "gantry":
		return apierrors.NewNotFound(secretsResource, key.Name)
	}
	secret.DeepCopyInto(o.(*corev1.Secret))
	return nil
}

func (s *secretServer) setSecret(name string, kind corev1.SecretType, password string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secretByName[name] = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Type: kind, Data: map[string][]byte{"username": []byte("u"), "password": []byte(password)}}
}

func (s *secretServer) setError(name string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errorByName[name] = err
}

// readNames returns the names that were read since the last call, with the number of times.
func (s *secretServer) readNames() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := maps.Clone(s.readCount)
	clear(s.readCount)
	return out
}

// followedSecrets are PasswordSecrets that run, and the number of changes that they reported.
type followedSecrets struct {
	*testing.T
	passwords *PasswordSecrets
	server    *secretServer

	mu          sync.Mutex // guards changeCount
	changeCount int
}

// runWithFollowedSecrets calls f in a bubble with fake time.
func runWithFollowedSecrets(t *testing.T, f func(*followedSecrets)) {
	synctest.Test(t, func(t *testing.T) {
		s := &followedSecrets{T: t, server: &secretServer{secretByName: map[string]*corev1.Secret{}, errorByName: map[string]error{}, readCount: map[string]int{}}}
		s.passwords = NewPasswordSecrets(PasswordSecretsOptions{LiveReader: s.server, Namespace: "gantry", Now: time.Now, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			s.passwords.Run(ctx, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.changeCount++
			})
		})
		f(s)
		cancel()
		running.Wait()
	})
}

func (s *followedSecrets) wantChanges(n int) {
	s.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changeCount != n {
		s.Errorf("%d changes were reported, want %d", s.changeCount, n)
	}
	s.changeCount = 0
}

func (s *followedSecrets) wantSecrets(peers []v1beta2.BGPPeer, want ...snapshot.BasicAuthSecret) {
	s.Helper()
	if diff := gocmp.Diff(want, s.passwords.SecretsOfPeers(s.Context(), peers)); diff != "" {
		s.Errorf("the Secrets of the BGPPeers:\n%s", diff)
	}
}

func peersWithSecrets(names ...string) []v1beta2.BGPPeer {
	out := make([]v1beta2.BGPPeer, len(names))
	for i, n := range names {
		out[i].Spec.PasswordSecret.Name = n
	}
	return out
}

func basicAuth(name, password string) snapshot.BasicAuthSecret {
	return snapshot.BasicAuthSecret{Name: name, Password: password, HasPassword: true}
}

func TestOnlySecretsThatPeersNameAreRead(t *testing.T) {
	runWithFollowedSecrets(t, func(s *followedSecrets) {
		for _, name := range []string{"a", "b", "gantry-gossip"} {
			s.server.setSecret(name, corev1.SecretTypeBasicAuth, name+"-password")
		}
		s.wantSecrets(peersWithSecrets("a", "", "b", "a"), basicAuth("a", "a-password"), basicAuth("b", "b-password"))
		if got, want := s.server.readNames(), map[string]int{"a": 1, "b": 1}; !maps.Equal(got, want) {
			t.Errorf("the reads are %v, want %v", got, want)
		}
		// a reading of the configuration costs no request
		s.wantSecrets(peersWithSecrets("a", "b"), basicAuth("a", "a-password"), basicAuth("b", "b-password"))
		if got := s.server.readNames(); len(got) > 0 {
			t.Errorf("known Secrets are read again at once: %v", got)
		}
		time.Sleep(10*secretReadInterval + time.Second)
		s.wantSecrets(peersWithSecrets("b"), basicAuth("b", "b-password"))
		synctest.Wait()
		s.server.readNames()
		time.Sleep(10 * secretReadInterval)
		synctest.Wait()
		if got, want := s.server.readNames(), map[string]int{"b": 10}; !maps.Equal(got, want) {
			t.Errorf("in 300 s the reads are %v, want %v", got, want)
		}
		s.wantChanges(0)
	})
}

func TestChangedPasswordIsSeenWithinThirtySeconds(t *testing.T) {
	runWithFollowedSecrets(t, func(s *followedSecrets) {
		peers := peersWithSecrets("a")
		s.server.setSecret("a", corev1.SecretTypeBasicAuth, "old")
		s.wantSecrets(peers, basicAuth("a", "old"))
		s.server.setSecret("a", corev1.SecretTypeBasicAuth, "new")
		time.Sleep(30 * time.Second)
		s.wantChanges(1)
		s.wantSecrets(peers, basicAuth("a", "new"))
		s.server.setSecret("a", corev1.SecretTypeOpaque, "new")
		time.Sleep(30 * time.Second)
		s.wantChanges(1)
		s.wantSecrets(peers)
	})
}

// A Secret that is created a moment after its BGPPeer is seen soon.
func TestMissingSecretIsSeenSoonAfterItsCreation(t *testing.T) {
	runWithFollowedSecrets(t, func(s *followedSecrets) {
		peers := peersWithSecrets("a")
		s.wantSecrets(peers)
		time.Sleep(500 * time.Millisecond)
		s.server.setSecret("a", corev1.SecretTypeBasicAuth, "p")
		time.Sleep(time.Second)
		s.wantChanges(1)
		s.wantSecrets(peers, basicAuth("a", "p"))
	})
	runWithFollowedSecrets(t, func(s *followedSecrets) {
		s.wantSecrets(peersWithSecrets("never"))
		s.server.readNames()
		time.Sleep(10 * time.Minute)
		if n := s.server.readNames()["never"]; n < 20 || n > 30 {
			t.Errorf("a Secret that does not exist is read %d times in 600 s, want about one read in 30 s", n)
		}
	})
}

func TestUnansweredReadKeepsThePassword(t *testing.T) {
	runWithFollowedSecrets(t, func(s *followedSecrets) {
		peers := peersWithSecrets("a")
		s.server.setSecret("a", corev1.SecretTypeBasicAuth, "p")
		s.wantSecrets(peers, basicAuth("a", "p"))
		s.server.setError("a", errors.New("no connection"))
		time.Sleep(5 * time.Minute)
		s.wantSecrets(peers, basicAuth("a", "p"))
		s.server.setError("a", apierrors.NewForbidden(secretsResource, "a", errors.New("no right")))
		time.Sleep(time.Minute)
		s.wantChanges(1)
		s.wantSecrets(peers, snapshot.BasicAuthSecret{Name: "a", IsForbidden: true})
	})
}

// The webhook looks at objects that may never exist.
func TestPeekingDoesNotChangeWhichSecretsAreRead(t *testing.T) {
	runWithFollowedSecrets(t, func(s *followedSecrets) {
		s.server.setSecret("a", corev1.SecretTypeBasicAuth, "p")
		s.server.setSecret("b", corev1.SecretTypeBasicAuth, "q")
		s.wantSecrets(peersWithSecrets("a"), basicAuth("a", "p"))
		if got := s.passwords.PeekSecretsOfPeers(s.Context(), peersWithSecrets("a", "b")); !slices.Equal(got, []snapshot.BasicAuthSecret{basicAuth("a", "p"), basicAuth("b", "q")}) {
			t.Errorf("the Secrets are %v", got)
		}
		s.server.readNames()
		time.Sleep(31 * time.Second)
		if got, want := s.server.readNames(), map[string]int{"a": 1}; !maps.Equal(got, want) {
			t.Errorf("the reads are %v, want %v", got, want)
		}
	})
}
