package gossipkey

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/option"
)

// Flags are the flags about the gossip key.
type Flags struct {
	// RotationInterval is how often the key is replaced without a request; 0 is never.
	RotationInterval time.Duration
}

// DeclareFlags declares the flags.
func (f *Flags) DeclareFlags(fs *pflag.FlagSet) {
	fs.DurationVar(&f.RotationInterval, "gossip-key-rotation-interval", 0, "how often to replace the key of the gossip between speakers; 0 for never, else at least 1h")
}

// ValidateValues says which flag has a value that cannot be used.
func (f *Flags) ValidateValues() error {
	if f.RotationInterval != 0 && f.RotationInterval < time.Hour {
		return option.InvalidOptionError("gossip-key-rotation-interval", f.RotationInterval.String(), "write 0, or 1h or more")
	}
	return nil
}

const (
	// rotationCheckInterval is how often the Secret is read.
	rotationCheckInterval = 10 * time.Second
	// rotationStepDelay is the time between two steps of a rotation. The speakers watch the Secret,
	// and need seconds to follow a step.
	rotationStepDelay = 2 * time.Minute
)

// advanceRotation carries out the next step of a rotation if it is due. The speakers accept all
// keys of the Secret, and encrypt with one of them. So no speaker gets a message that it cannot
// read: the new key is accepted everywhere before a speaker encrypts with it, and the old one until
// no speaker does.
func (g *KeyRotator) advanceRotation(ctx context.Context) error {
	var s corev1.Secret
	if err := g.LiveReader.Get(ctx, client.ObjectKey{Namespace: g.Namespace, Name: names.GossipSecret}, &s); err != nil {
		return fmt.Errorf("reading the Secret: %w", err)
	}
	g.keyChangedAt.Store(keyChangeTime(&s).Unix())
	newKey := make([]byte, 32)
	if _, err := rand.Read(newKey); err != nil {
		return fmt.Errorf("creating a gossip key: %w", err)
	}
	step := applyDueRotationStep(&s, newKey, g.RotationInterval, g.Now())
	if step == "" {
		return nil
	}
	if err := g.Client.Update(ctx, &s); err != nil { // fails if the Secret changed meanwhile
		return fmt.Errorf("writing the Secret: %w", err)
	}
	g.Log.Info("rotating the gossip key", "secret", g.Namespace+"/"+names.GossipSecret, "step", step)
	return nil
}

// keyChangeTime returns when the controller last changed the Secret, or created it.
func keyChangeTime(s *corev1.Secret) time.Time {
	if t, err := time.Parse(time.RFC3339, s.Annotations[names.AnnotationGossipKeyChangedAt]); err == nil {
		return t
	}
	return s.CreationTimestamp.Time
}

// applyDueRotationStep edits the Secret by the step that is due, and says which one that is. It is
// empty if none is due.
func applyDueRotationStep(s *corev1.Secret, newKey []byte, interval time.Duration, now time.Time) string {
	age := now.Sub(keyChangeTime(s))
	next, hasNext := s.Data[names.GossipNextKeySecretEntry]
	_, hasPrevious := s.Data[names.GossipPreviousKeySecretEntry]
	_, isRequested := s.Annotations[names.AnnotationRotateGossipKey]
	step := ""
	switch {
	case (hasNext || hasPrevious) && age < rotationStepDelay:
		return ""
	case hasNext:
		step = "the speakers encrypt with the new key"
		s.Data[names.GossipPreviousKeySecretEntry] = s.Data[names.GossipKeySecretEntry]
		s.Data[names.GossipKeySecretEntry] = next
		delete(s.Data, names.GossipNextKeySecretEntry)
	case hasPrevious:
		step = "the speakers no longer accept the previous key"
		delete(s.Data, names.GossipPreviousKeySecretEntry)
	case isRequested || interval > 0 && age >= interval:
		step = "the speakers accept a new key"
		s.Data[names.GossipNextKeySecretEntry] = newKey
		delete(s.Annotations, names.AnnotationRotateGossipKey)
	default:
		return ""
	}
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	s.Annotations[names.AnnotationGossipKeyChangedAt] = now.UTC().Format(time.RFC3339)
	return step
}
