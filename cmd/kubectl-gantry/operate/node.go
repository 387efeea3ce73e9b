package operate

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/view"
)

// DrainNode makes a node hand over all its addresses, and withdraw its routes.
func (o *Operator) DrainNode(ctx context.Context, name string) (*Operation, error) {
	node, err := o.readNode(ctx, name)
	if err != nil {
		return nil, err
	}
	duties, err := o.readNodeDuties(ctx, name)
	if err != nil {
		return nil, err
	}
	return &Operation{
		Title: "draining " + name, Changes: []ObjectChange{{node, setAnnotation(names.AnnotationDrainNode, "")}},
		ReadProgress: func(ctx context.Context) (Progress, error) { return o.readDrainProgress(ctx, name, duties.services) },
	}, nil
}

func (o *Operator) readNode(ctx context.Context, name string) (*corev1.Node, error) {
	node := &corev1.Node{}
	if err := o.API.Get(ctx, client.ObjectKey{Name: name}, node); err != nil {
		return nil, fmt.Errorf("reading the node: %w", err)
	}
	return node, nil
}

// nodeDuties are what a node announces.
type nodeDuties struct {
	speaker *v1alpha1.SpeakerStatusStatus // nil if no speaker runs there
	// services have an address for which the node answers, or a route from it. addresses are those
	// for which it answers.
	services  []client.ObjectKey
	addresses []string
	// routers are the BGPPeers that have routes from the node.
	routers []string
}

func (o *Operator) readNodeDuties(ctx context.Context, node string) (*nodeDuties, error) {
	out := &nodeDuties{}
	var speaker v1alpha1.SpeakerStatus
	err := o.API.Get(ctx, client.ObjectKey{Namespace: o.GantryNamespace, Name: node}, &speaker)
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("reading the state of the speaker: %w", err)
	}
	if err == nil {
		out.speaker = &speaker.Status
	}
	var reports v1beta1.ServiceL2StatusList
	if err := o.API.List(ctx, &reports, client.InNamespace(o.GantryNamespace), client.MatchingLabels{names.LabelServiceStatusNode: node}); err != nil {
		return nil, fmt.Errorf("reading which addresses the node has: %w", err)
	}
	for i := range reports.Items {
		s := &reports.Items[i].Status
		if s.Node != node || s.Gantry == nil {
			continue
		}
		out.services = append(out.services, client.ObjectKey{Namespace: s.ServiceNamespace, Name: s.ServiceName})
		out.addresses = append(out.addresses, s.Gantry.Addresses...)
	}
	var routes v1beta1.ServiceBGPStatusList
	if err := o.API.List(ctx, &routes, client.InNamespace(o.GantryNamespace), client.MatchingLabels{names.LabelServiceStatusNode: node}); err != nil && !meta.IsNoMatchError(err) && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("reading which Services the node announces by BGP: %w", err)
	}
	for i := range routes.Items {
		if s := &routes.Items[i].Status; s.Node == node {
			out.services = append(out.services, client.ObjectKey{Namespace: s.ServiceNamespace, Name: s.ServiceName})
		}
	}
	slices.Sort(out.addresses)
	out.addresses = slices.Compact(out.addresses)
	var sessions v1alpha1.BGPSessionList
	if err := o.API.List(ctx, &sessions, client.InNamespace(o.GantryNamespace)); err != nil && !meta.IsNoMatchError(err) && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("reading the BGP sessions of the node: %w", err)
	}
	for i := range sessions.Items {
		if s := &sessions.Items[i].Status; s.Node == node && s.Prefixes > 0 {
			out.routers = append(out.routers, s.Peer)
		}
	}
	slices.Sort(out.routers)
	return out, nil
}

// readDrainProgress says what a node that is drained still announces, and which of its former
// Services nobody announces.
func (o *Operator) readDrainProgress(ctx context.Context, node string, before []client.ObjectKey) (Progress, error) {
	d, err := o.readNodeDuties(ctx, node)
	if err != nil {
		return Progress{}, err
	}
	switch {
	case d.speaker == nil:
		return o.readDrainProgressByPods(ctx, node)
	case d.speaker.Unavailable != string(names.ReasonNodeLeaving):
		return Progress{Text: "the speaker on " + node + " has not seen it yet", Left: []string{"the speaker does not say that its node is leaving: look at its Pod"}}, nil
	}
	out := Progress{IsDone: d.speaker.Held == 0 && len(d.addresses)+len(d.routers) == 0, Text: node + " announces nothing any more"}
	if !out.IsDone {
		out.Text = fmt.Sprintf("%s still answers for %d addresses, and %d routers still have routes from it", node, max(int(d.speaker.Held), len(d.addresses)), len(d.routers))
	}
	for _, a := range d.addresses {
		out.Left = append(out.Left, fmt.Sprintf("%s still answers for %s", node, a))
	}
	for _, r := range d.routers {
		out.Left = append(out.Left, fmt.Sprintf("the router %s still has routes from %s", r, node))
	}
	unannounced, err := o.describeUnannounced(ctx, before)
	out.Left = append(out.Left, unannounced...)
	return out, err
}

// readDrainProgressByPods says whether a node without a SpeakerStatus announces nothing: no speaker
// runs there, in whichever namespace.
func (o *Operator) readDrainProgressByPods(ctx context.Context, node string) (Progress, error) {
	var pods corev1.PodList
	if err := o.API.List(ctx, &pods, client.MatchingLabels{names.LabelAppName: names.AppName, names.LabelComponent: names.ComponentSpeaker}); err != nil {
		return Progress{}, fmt.Errorf("reading whether a speaker runs on %s: %w", node, err)
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.Spec.NodeName == node && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			return Progress{Text: "the speaker on " + node + " says nothing", Left: []string{fmt.Sprintf(
				"%s has the speaker Pod %s/%s, and no SpeakerStatus in namespace %s says what it announces: look at the log of the Pod", node, p.Namespace, p.Name, o.GantryNamespace)}}, nil
		}
	}
	return Progress{IsDone: true, Text: "no speaker runs on " + node + ": it announces nothing"}, nil
}

// describeUnannounced says which of the Services nobody announces in full, and why.
func (o *Operator) describeUnannounced(ctx context.Context, keys []client.ObjectKey) ([]string, error) {
	var out []string
	for _, k := range keys {
		var s corev1.Service
		if err := o.API.Get(ctx, k, &s); apierrors.IsNotFound(err) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("reading Service %s: %w", k, err)
		}
		if c := meta.FindStatusCondition(s.Status.Conditions, names.ConditionAnnounced); c != nil && c.Status == metav1.ConditionFalse {
			out = append(out, fmt.Sprintf("Service %s is not announced: %s (%s)", k, c.Message, c.Reason))
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// UndrainNode lets a node have addresses and announce routes again.
func (o *Operator) UndrainNode(ctx context.Context, name string) (*Operation, error) {
	node, err := o.readNode(ctx, name)
	if err != nil {
		return nil, err
	}
	return &Operation{
		Title: "undraining " + name, Changes: []ObjectChange{{node, removeAnnotation(names.AnnotationDrainNode)}},
		ReadProgress: func(ctx context.Context) (Progress, error) { return o.readUndrainProgress(ctx, name) },
	}, nil
}

func (o *Operator) readUndrainProgress(ctx context.Context, name string) (Progress, error) {
	node, err := o.readNode(ctx, name)
	if err != nil {
		return Progress{}, err
	}
	d, err := o.readNodeDuties(ctx, name)
	if err != nil {
		return Progress{}, err
	}
	isLeaving := view.FromNode(node).IsLeaving
	switch {
	case d.speaker == nil:
		return Progress{IsDone: true, Text: "no speaker runs on " + name, Left: []string{"no speaker runs on " + name + ": look at its Pod, and whether the DaemonSet covers the node"}}, nil
	case d.speaker.Unavailable == "" && !isLeaving:
		return Progress{IsDone: true, Text: name + " may announce again; the addresses that it had stay where they are"}, nil
	case isLeaving:
		return Progress{IsDone: true, Text: name + " is still leaving", Left: []string{fmt.Sprintf("%s is leaving for another cause: look at its taints (%s), and whether it is shut down", name, names.TaintOutOfService)}}, nil
	case d.speaker.Unavailable != string(names.ReasonNodeLeaving):
		return Progress{IsDone: true, Text: name + " announces nothing", Left: []string{fmt.Sprintf("%s announces nothing for another cause (%s): kubectl gantry explain node %s", name, d.speaker.Unavailable, name)}}, nil
	}
	return Progress{Text: "the speaker on " + name + " has not seen it yet", Left: []string{"the speaker still says that its node is leaving: look at its Pod"}}, nil
}

// joinSorted joins texts in order.
func joinSorted(all []string) string {
	slices.Sort(all)
	return strings.Join(all, ", ")
}
