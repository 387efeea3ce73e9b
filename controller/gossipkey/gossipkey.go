// Package gossipkey creates the Secret with the key that encrypts the gossip of the speakers, and
// replaces the key on request.
package gossipkey

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
)

// Options are the settings of a Creator.
type Options struct {
	Client    client.Client
	Log       *slog.Logger
	Namespace string
	// LiveReader reads the Secret without a cache.
	LiveReader client.Reader
	Flags
	// Now reads the clock.
	Now func() time.Time
}

// KeyRotator creates and rotates the gossip key of the speakers. Use NewKeyRotator to create it.
type KeyRotator struct {
	Options
	// keyChangedAt is since when the speakers encrypt with the key, in seconds since 1970; 0 before
	// it is known.
	keyChangedAt atomic.Int64
}

var keyChangeMetric = prometheus.NewDesc("gantry_gossip_key_changed_timestamp_seconds", "When the key of the gossip was created or last replaced, in seconds since 1970.", nil, nil)

var _ prometheus.Collector = (*KeyRotator)(nil)

// Describe is part of prometheus.Collector.
func (g *KeyRotator) Describe(c chan<- *prometheus.Desc) { c <- keyChangeMetric }

// Collect is part of prometheus.Collector. Before the Secret was read there is no metric.
func (g *KeyRotator) Collect(c chan<- prometheus.Metric) {
	if at := g.keyChangedAt.Load(); at != 0 {
		c <- prometheus.MustNewConstMetric(keyChangeMetric, prometheus.GaugeValue, float64(at))
	}
}

// NewKeyRotator returns a KeyRotator for a manager to start.
func NewKeyRotator(o Options) *KeyRotator { return &KeyRotator{Options: o} }

// Start creates the Secret unless it exists, and then rotates its key until ctx ends.
func (g *KeyRotator) Start(ctx context.Context) error {
	if err := g.ensureSecretExists(ctx); err != nil {
		return err
	}
	lastError := ""
	for ctx.Err() == nil {
		if err := g.advanceRotation(ctx); err != nil && err.Error() != lastError && ctx.Err() == nil {
			lastError = err.Error()
			g.Log.Error("rotating the gossip key", "secret", g.Namespace+"/"+names.GossipSecret, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(rotationCheckInterval):
		}
	}
	return nil
}

// ensureSecretExists creates the Secret, and returns when it exists. It never overwrites the
// Secret: speakers with different keys cannot talk to each other.
func (g *KeyRotator) ensureSecretExists(ctx context.Context) error {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return fmt.Errorf("creating a gossip key: %w", err)
	}
	s := &corev1.Secret{Data: map[string][]byte{names.GossipKeySecretEntry: key}, Type: corev1.SecretTypeOpaque}
	s.Namespace, s.Name = g.Namespace, names.GossipSecret
	name := g.Namespace + "/" + names.GossipSecret
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		err := g.Client.Create(ctx, s.DeepCopy())
		if err == nil {
			g.Log.Info("gossip key created", "secret", name)
			return nil
		}
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		g.Log.Error("creating the gossip key; speakers wait for it", "secret", name, "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}
