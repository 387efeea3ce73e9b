package reconcile

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/speaker/status"
)

// correctStatusesOfDeadNodes corrects once what the speakers of dead nodes wrote last. An error is
// only logged, and the next check tries again.
func (w *StatusWriter) correctStatusesOfDeadNodes(ctx context.Context) {
	now := w.options.Now()
	for name, n := range w.missingNodes.missingNodeByName {
		if n.areStatusesCorrected || !w.mustCleanUpAfterNode(ctx, name, now) {
			continue
		}
		if err := w.correctStatusesOfDeadNode(ctx, name); err != nil {
			if ctx.Err() == nil {
				w.options.Log.Warn("correcting what a dead speaker wrote; trying again", "node", name, "error", err)
			}
			continue
		}
		n.areStatusesCorrected = true
		w.missingNodes.missingNodeByName[name] = n
	}
}

// correctStatusesOfDeadNode writes that the speaker of the node is dead if nobody did so, and that
// nobody knows the sessions and the configuration of the node. It removes what says that the node
// announces Services.
func (w *StatusWriter) correctStatusesOfDeadNode(ctx context.Context, node string) error {
	text := status.DeadSpeakerText(node, w.options.Self)
	state := configuration.StateWriter{ReportingComponent: names.ComponentSpeaker, Node: node, Namespace: w.options.Namespace}
	err := w.markDeadSpeakerSilentSince(ctx, node, w.options.Now().Add(-staleSpeakerTimeout))
	err = errors.Join(err, state.WriteUnknownStateOfDeadSpeaker(ctx, w.options.UncachedReader, w.options.Client, text))
	if w.options.WithoutBGPKinds {
		return err
	}
	return errors.Join(err, w.markSessionsOfDeadNode(ctx, node, text), w.removeBGPStatusesOfNode(ctx, node))
}

// markSessionsOfDeadNode writes that the state of the node's BGP sessions is unknown.
func (w *StatusWriter) markSessionsOfDeadNode(ctx context.Context, node, text string) error {
	var sessions v1alpha1.BGPSessionList
	if err := w.options.UncachedReader.List(ctx, &sessions, w.selectObjectsOfNode(node)...); err != nil {
		return fmt.Errorf("listing the BGPSessions of node %s: %w", node, err)
	}
	var errs []error
	for i := range sessions.Items {
		o := &sessions.Items[i]
		base := client.MergeFrom(o.DeepCopy())
		o.Status = status.SessionStatusOfDeadSpeaker(o.Status, text, w.options.Now())
		if err := w.options.Client.Status().Patch(ctx, o, base); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("writing BGPSession %q: %w", o.Name, err))
		}
	}
	return errors.Join(errs...)
}

// removeBGPStatusesOfNode removes the ServiceBGPStatuses of a dead node.
func (w *StatusWriter) removeBGPStatusesOfNode(ctx context.Context, node string) error {
	var list v1beta1.ServiceBGPStatusList
	if err := w.options.UncachedReader.List(ctx, &list, w.selectObjectsOfNode(node)...); err != nil {
		return fmt.Errorf("listing the ServiceBGPStatuses of node %s: %w", node, err)
	}
	var g errgroup.Group // continues after an error
	g.SetLimit(concurrentWritesLimit)
	for i := range list.Items {
		g.Go(func() error {
			if err := w.options.Client.Delete(ctx, &list.Items[i]); client.IgnoreNotFound(err) != nil {
				return fmt.Errorf("removing ServiceBGPStatus %q: %w", list.Items[i].Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// selectObjectsOfNode select what the speaker of a node wrote.
func (w *StatusWriter) selectObjectsOfNode(node string) []client.ListOption {
	return []client.ListOption{client.InNamespace(w.options.Namespace), client.MatchingLabels{names.LabelServiceStatusNode: node}}
}
