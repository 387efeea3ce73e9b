package reconcile

import (
	"context"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// ConfigurationStateWriter writes this speaker's ConfigurationState. It writes the latest Problems
// as fast as the API server accepts them.
type ConfigurationStateWriter struct {
	options ConfigurationStateWriterOptions

	latestProblems *latest.Value[[]snapshot.Problem]
	// stateLostOrMarkedDeadSignal wakes the writer when somebody deleted the object, or wrote that
	// this speaker is dead.
	stateLostOrMarkedDeadSignal *latest.Wake
}

// ConfigurationStateWriterOptions are what a ConfigurationStateWriter needs.
type ConfigurationStateWriterOptions struct {
	Client      client.Client
	Cache       cache.Cache
	Log         *slog.Logger
	StateWriter configuration.StateWriter
}

// NewConfigurationStateWriter returns a ConfigurationStateWriter that writes nothing before Run.
func NewConfigurationStateWriter(o ConfigurationStateWriterOptions) *ConfigurationStateWriter {
	return &ConfigurationStateWriter{
		options: o, latestProblems: latest.NewValue[[]snapshot.Problem](), stateLostOrMarkedDeadSignal: latest.NewWake(),
	}
}

// ObserveProblems takes the Problems and returns at once.
func (w *ConfigurationStateWriter) ObserveProblems(problems []snapshot.Problem) {
	w.latestProblems.Put(problems)
}

// Run writes until ctx ends. It creates the object again if a user deletes it, and corrects it if
// another speaker took this one for dead.
func (w *ConfigurationStateWriter) Run(ctx context.Context) error {
	informer, err := w.options.Cache.GetInformer(ctx, &v1beta1.ConfigurationState{})
	if err != nil {
		return err
	}
	deleted := func(o any) {
		if s, ok := unwrapDeletedObject(o).(*v1beta1.ConfigurationState); ok && s.Name == w.options.StateWriter.ObjectName() {
			w.stateLostOrMarkedDeadSignal.Signal()
		}
	}
	updated := func(_, o any) {
		if s, ok := o.(*v1beta1.ConfigurationState); ok && s.Name == w.options.StateWriter.ObjectName() && s.Status.Result == v1beta1.ConfigurationUnknown {
			w.stateLostOrMarkedDeadSignal.Signal()
		}
	}
	if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{DeleteFunc: deleted, UpdateFunc: updated}); err != nil {
		return err
	}
	var node corev1.Node
	if err := w.options.Cache.Get(ctx, client.ObjectKey{Name: w.options.StateWriter.Node}, &node); err == nil {
		// The Node is the owner, since the speaker's Pod is replaced too often.
		w.options.StateWriter.Owner = &metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}
	}
	var problems []snapshot.Problem
	known, retry := false, (<-chan time.Time)(nil)
	for {
		select {
		case <-ctx.Done():
			return nil
		case problems = <-w.latestProblems.C():
			known = true
		case <-w.stateLostOrMarkedDeadSignal.C():
		case <-retry:
		}
		if retry = nil; !known {
			continue
		}
		if err := w.options.StateWriter.WriteProblemsIntoState(ctx, w.options.Client, problems); err != nil {
			w.options.Log.Debug("writing the state of the configuration", "error", err)
			retry = time.After(writeRetryDelay)
		}
	}
}
