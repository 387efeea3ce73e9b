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
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// ConfigurationWriter writes this speaker's ConfigurationState. It writes the latest Problems as
// fast as the API server accepts them.
type ConfigurationWriter struct {
	Client client.Client
	Cache  cache.Cache
	Log    *slog.Logger
	State  configuration.StateWriter

	latestProblems chan []snapshot.Problem
	objectDeleted  chan struct{}
}

// Init prepares the writer. It comes before ObserveProblems and Run.
func (w *ConfigurationWriter) Init() {
	w.latestProblems, w.objectDeleted = make(chan []snapshot.Problem, 1), make(chan struct{}, 1)
}

// ObserveProblems takes the Problems and returns at once. Calls must not overlap.
func (w *ConfigurationWriter) ObserveProblems(problems []snapshot.Problem) {
	select {
	case <-w.latestProblems:
	default:
	}
	w.latestProblems <- problems
}

// Run writes until ctx ends. It creates the object again if a user deletes it.
func (w *ConfigurationWriter) Run(ctx context.Context) error {
	informer, err := w.Cache.GetInformer(ctx, &v1beta1.ConfigurationState{})
	if err != nil {
		return err
	}
	deleted := func(o any) {
		if s, ok := lastKnownObject(o).(*v1beta1.ConfigurationState); ok && s.Name == w.State.ObjectName() {
			select {
			case w.objectDeleted <- struct{}{}:
			default:
			}
		}
	}
	if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{DeleteFunc: deleted}); err != nil {
		return err
	}
	var node corev1.Node
	if err := w.Cache.Get(ctx, client.ObjectKey{Name: w.State.Node}, &node); err == nil {
		// The Node is the owner, since the speaker's Pod is replaced too often.
		w.State.Owner = &metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}
	}
	var problems []snapshot.Problem
	known, retry := false, (<-chan time.Time)(nil)
	for {
		select {
		case <-ctx.Done():
			return nil
		case problems = <-w.latestProblems:
			known = true
		case <-w.objectDeleted:
		case <-retry:
		}
		if retry = nil; !known {
			continue
		}
		if err := w.State.WriteState(ctx, w.Client, problems); err != nil {
			w.Log.Debug("writing the state of the configuration", "error", err)
			retry = time.After(writeRetryDelay)
		}
	}
}
