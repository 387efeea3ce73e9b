package configuration

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

const (
	// secretReadInterval is how often each Secret is read again.
	secretReadInterval = 30 * time.Second
	// firstSecretRetryDelay is the delay after a Secret was not found or not read. It doubles up to
	// secretReadInterval: the Secret is often created with the BGPPeer, a moment after it.
	firstSecretRetryDelay = time.Second
	// secretReadTimeout limits how long a reading of the configuration waits for new Secrets.
	secretReadTimeout = 3 * time.Second
)

// PasswordSecretsOptions are the settings of PasswordSecrets.
type PasswordSecretsOptions struct {
	// LiveReader reads from the API server itself, without a cache.
	LiveReader client.Reader
	Namespace  string
	Now        func() time.Time
	Log        *slog.Logger
}

// PasswordSecrets reads the Secrets that BGPPeers name. It reads each one by its name: a right to
// list or to watch Secrets would be a right to read all of them. So it looks at each again from
// time to time. It stores only the passwords. Any goroutine may call the methods. Use
// NewPasswordSecrets to create it.
type PasswordSecrets struct {
	options  PasswordSecretsOptions
	nameWake *latest.Wake

	mu         sync.Mutex // guards all that follows
	readByName map[string]secretReading
}

// secretReading is the last reading of a Secret.
type secretReading struct {
	// secret is nil while there is no Secret of the right type.
	secret              *snapshot.BasicAuthSecret
	consecutiveFailures int
	nextReadingAt       time.Time
}

// NewPasswordSecrets returns PasswordSecrets that have read nothing.
func NewPasswordSecrets(o PasswordSecretsOptions) *PasswordSecrets {
	return &PasswordSecrets{options: o, nameWake: latest.NewWake(), readByName: map[string]secretReading{}}
}

// SecretsOfPeers returns the Secrets that the BGPPeers name, as they were when they were last read.
// It reads those that were not named before. From now on, only these Secrets are read again.
func (p *PasswordSecrets) SecretsOfPeers(ctx context.Context, peers []v1beta2.BGPPeer) []snapshot.BasicAuthSecret {
	readings := p.readingsOfPeers(ctx, peers)
	p.mu.Lock()
	p.readByName = readings
	p.mu.Unlock()
	p.nameWake.Signal()
	return foundSecrets(readings)
}

// PeekSecretsOfPeers returns the same, and leaves it as it is which Secrets are read again.
func (p *PasswordSecrets) PeekSecretsOfPeers(ctx context.Context, peers []v1beta2.BGPPeer) []snapshot.BasicAuthSecret {
	return foundSecrets(p.readingsOfPeers(ctx, peers))
}

// readingsOfPeers returns the readings of the Secrets that the BGPPeers name.
func (p *PasswordSecrets) readingsOfPeers(ctx context.Context, peers []v1beta2.BGPPeer) map[string]secretReading {
	ctx, cancel := context.WithTimeout(ctx, secretReadTimeout)
	defer cancel()
	p.mu.Lock()
	known := maps.Clone(p.readByName)
	p.mu.Unlock()
	out := map[string]secretReading{}
	for i := range peers {
		name := peers[i].Spec.PasswordSecret.Name
		if name == "" {
			continue
		}
		reading, isKnown := known[name]
		if !isKnown {
			reading = p.readAgain(ctx, name, secretReading{})
			known[name] = reading
		}
		out[name] = reading
	}
	return out
}

func foundSecrets(readings map[string]secretReading) []snapshot.BasicAuthSecret {
	var out []snapshot.BasicAuthSecret
	for _, name := range slices.Sorted(maps.Keys(readings)) {
		if s := readings[name].secret; s != nil {
			out = append(out, *s)
		}
	}
	return out
}

// readAgain reads a Secret. If the API server does not answer, what was read before stays in force.
func (p *PasswordSecrets) readAgain(ctx context.Context, name string, before secretReading) secretReading {
	var s corev1.Secret
	err := p.options.LiveReader.Get(ctx, client.ObjectKey{Namespace: p.options.Namespace, Name: name}, &s)
	out := secretReading{nextReadingAt: p.options.Now().Add(secretReadInterval)}
	switch {
	case err == nil:
		if secret, ok := BasicAuthSecretOf(&s); ok {
			out.secret = &secret
			return out
		}
	case apierrors.IsForbidden(err):
		out.secret = &snapshot.BasicAuthSecret{Name: name, IsForbidden: true}
	case !apierrors.IsNotFound(err):
		p.options.Log.Error("reading the Secret of a BGPPeer; what was read before stays in force", "secret", p.options.Namespace+"/"+name, "error", err)
		out.secret = before.secret
	}
	out.consecutiveFailures = before.consecutiveFailures + 1
	delay := firstSecretRetryDelay << min(before.consecutiveFailures, 10)
	out.nextReadingAt = p.options.Now().Add(min(delay, secretReadInterval))
	return out
}

// Run reads each Secret again when it is time, until ctx ends. It calls notifyChanged when one has
// changed.
func (p *PasswordSecrets) Run(ctx context.Context, notifyChanged func()) {
	for {
		wait, pending := p.nextReading()
		var due <-chan time.Time
		if pending {
			due = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-p.nameWake.C():
		case <-due:
			if p.readDueSecrets(ctx) && ctx.Err() == nil {
				notifyChanged()
			}
		}
	}
}

// nextReading returns in which time the next Secret is due; pending is false when there is none.
func (p *PasswordSecrets) nextReading() (wait time.Duration, pending bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var next time.Time
	for _, r := range p.readByName {
		if next.IsZero() || r.nextReadingAt.Before(next) {
			next = r.nextReadingAt
		}
	}
	return next.Sub(p.options.Now()), !next.IsZero()
}

// readDueSecrets reads the Secrets that are due, and says whether one has changed.
func (p *PasswordSecrets) readDueSecrets(ctx context.Context) bool {
	p.mu.Lock()
	due := maps.Clone(p.readByName)
	p.mu.Unlock()
	maps.DeleteFunc(due, func(_ string, r secretReading) bool { return r.nextReadingAt.After(p.options.Now()) })
	changed := false
	for _, name := range slices.Sorted(maps.Keys(due)) {
		after := p.readAgain(ctx, name, due[name])
		before := due[name].secret
		p.mu.Lock()
		if _, isNamed := p.readByName[name]; isNamed {
			p.readByName[name] = after
			changed = changed || (before == nil) != (after.secret == nil) || before != nil && *before != *after.secret
		}
		p.mu.Unlock()
	}
	return changed
}
