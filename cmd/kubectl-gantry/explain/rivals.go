package explain

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// metalLBName is the value of the labels of MetalLB's workloads.
const metalLBName = "metallb"

// rivalSelectors find the workloads of MetalLB, as its manifests and its chart label them, and
// those of Gantry.
func rivalSelectors() []labels.Selector {
	return []labels.Selector{
		labels.SelectorFromSet(labels.Set{"app": metalLBName}),
		labels.SelectorFromSet(labels.Set{names.LabelAppName: metalLBName}),
		labels.SelectorFromSet(labels.Set{names.LabelAppName: names.AppName}),
	}
}

// rivalListRequests are the workloads of MetalLB and Gantry in all namespaces, and whose namespaces
// have SpeakerStatuses.
func rivalListRequests() []objects.ListRequest {
	out := []objects.ListRequest{{List: newSpeakerMetadataList()}}
	for _, s := range rivalSelectors() {
		out = append(out, objects.ListRequest{List: &appsv1.DeploymentList{}, Labels: s}, objects.ListRequest{List: &appsv1.DaemonSetList{}, Labels: s})
	}
	return out
}

func newSpeakerMetadataList() *metav1.PartialObjectMetadataList {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("SpeakerStatusList"))
	return list
}

// productWorkload is a Deployment or DaemonSet of MetalLB or Gantry.
type productWorkload struct {
	kind   string
	key    client.ObjectKey
	labels map[string]string
	// podSpec is that of its Pods, of which it has some if it is running.
	podSpec   *corev1.PodSpec
	isRunning bool
}

func (w *productWorkload) isMetalLB() bool {
	return w.labels["app"] == metalLBName || w.labels[names.LabelAppName] == metalLBName
}

// describe names the workload, as it is seen from Gantry's namespace.
func (w *productWorkload) describe(gantryNamespace string) string {
	if w.key.Namespace == gantryNamespace {
		return w.kind + " " + w.key.Name
	}
	return fmt.Sprintf("%s %s in namespace %s", w.kind, w.key.Name, w.key.Namespace)
}

// rivalSearch is what was found of programs that may serve the Services of Gantry too.
type rivalSearch struct {
	// workloads are those of MetalLB and Gantry, by namespace, kind and name.
	workloads []productWorkload
	// isIncomplete is set if the user may not list workloads in all namespaces.
	isIncomplete bool
}

// readRivals looks for workloads of MetalLB and Gantry in all namespaces, once. A user who may not
// do that sees those in Gantry's namespace.
func (e *Explainer) readRivals(ctx context.Context) (*rivalSearch, error) {
	if e.rivals != nil {
		return e.rivals, nil
	}
	if err := e.objectReader.ListAndCacheKinds(ctx, rivalListRequests()...); err != nil {
		return nil, err
	}
	out := &rivalSearch{isIncomplete: e.objectReader.LacksRightToListIn("deployments.apps", "") || e.objectReader.LacksRightToListIn("daemonsets.apps", "")}
	for _, s := range rivalSelectors() {
		for _, namespace := range []string{"", e.gantryNamespace} {
			if err := out.addWorkloads(ctx, e.objectReader, s, namespace); err != nil {
				return nil, err
			}
		}
	}
	slices.SortFunc(out.workloads, func(x, y productWorkload) int {
		return cmp.Or(cmp.Compare(x.key.Namespace, y.key.Namespace), -cmp.Compare(x.kind, y.kind), cmp.Compare(x.key.Name, y.key.Name))
	})
	out.workloads = slices.CompactFunc(out.workloads, func(x, y productWorkload) bool { return x.key == y.key && x.kind == y.kind })
	e.rivals = out
	return out, nil
}

// addWorkloads adds the workloads of a namespace, or of all of them, that a selector
// matches.
func (r *rivalSearch) addWorkloads(ctx context.Context, from client.Reader, s labels.Selector, namespace string) error {
	found, err := objects.ListWorkloads(ctx, from, client.InNamespace(namespace), client.MatchingLabelsSelector{Selector: s})
	for _, w := range found {
		r.workloads = append(r.workloads, productWorkload{w.Kind, client.ObjectKey{Namespace: w.Meta.Namespace, Name: w.Meta.Name}, w.Meta.Labels, w.PodSpec, w.PodCount > 0})
	}
	return err
}

// runsMetalLB reports whether a Deployment or DaemonSet of MetalLB is in the cluster.
func runsMetalLB(ctx context.Context, e *Explainer) bool {
	found, err := e.readRivals(ctx)
	return err == nil && slices.ContainsFunc(found.workloads, func(w productWorkload) bool { return w.isMetalLB() })
}

// explainRival says that another controller runs and serves the Services of Gantry too: MetalLB, or
// a second Gantry.
func (e *Explainer) explainRival(ctx context.Context) (cause, error) {
	found, err := e.readRivals(ctx)
	if err != nil {
		return cause{}, err
	}
	if e.installation.controllerDeployment == nil && e.installation.speakerDaemonSet == nil {
		return cause{}, nil
	}
	for i := range found.workloads {
		w := &found.workloads[i]
		isOwn := w.key.Namespace == e.gantryNamespace
		switch {
		case !w.isRunning:
		case w.isMetalLB() && objects.ReadFlagOfPodSpec(w.podSpec, "lb-class") == e.installation.loadBalancerClass:
			return newCauseOfWorkload(w, names.ReasonOtherController, "MetalLB (%s) runs beside Gantry, and both serve the same Services: uninstall one of them", w.describe(e.gantryNamespace)), nil
		case !isOwn && objects.HasComponentLabels(w.labels, names.ComponentController) && objects.ReadFlagOfPodSpec(w.podSpec, "load-balancer-class") == e.installation.loadBalancerClass:
			return newCauseOfWorkload(w, names.ReasonOtherController, "another Gantry is in namespace %s, and its %s %s serves the same Services: uninstall one of them, or give each one its own --load-balancer-class", w.key.Namespace, w.kind, w.key.Name), nil
		}
	}
	return cause{}, nil
}

// explainRemainsOfGantry says that a Gantry whose controller is not seen has SpeakerStatuses in
// another namespace.
func explainRemainsOfGantry(ctx context.Context, e *Explainer) names.Explanation {
	everywhere := newSpeakerMetadataList()
	if err := e.objectReader.List(ctx, everywhere); err != nil {
		return names.Explanation{}
	}
	namespaces := namesOf(everywhere.Items, func(s metav1.PartialObjectMetadata) string { return s.Namespace })
	slices.Sort(namespaces)
	for _, n := range slices.Compact(namespaces) {
		isOfRunningController := func(w productWorkload) bool {
			return w.isRunning && w.key.Namespace == n && objects.HasComponentLabels(w.labels, names.ComponentController)
		}
		if n == e.gantryNamespace || slices.ContainsFunc(e.rivals.workloads, isOfRunningController) {
			continue
		}
		return names.NewExplanation(names.ReasonOtherController, "another Gantry is in namespace %s: uninstall one of them, or give each one its own --load-balancer-class, and delete the SpeakerStatuses of one that is gone", n)
	}
	return names.Explanation{}
}

// unseenRivalsText says what a user without rights does not see.
const unseenRivalsText = "you may not list Deployments and DaemonSets in all namespaces: MetalLB or a second Gantry in another namespace would not be seen"

// addRivalChecks says which other controllers serve the same Services.
func (o *overview) addRivalChecks(ctx context.Context) error {
	rival, err := o.explainRival(ctx)
	if err != nil {
		return err
	}
	if rival.IsSet() {
		o.addCheck(rivalCheckName, report.ResultNotWell, rival.Explanation)
	}
	if writer := o.explainStatusWriters(); !rival.IsSet() && writer.IsSet() {
		o.addCheck(rivalCheckName, report.ResultNotWell, writer)
	}
	if remains := explainRemainsOfGantry(ctx, o.Explainer); remains.IsSet() {
		o.addCheck(rivalCheckName, report.ResultNotWell, remains)
	}
	if !rival.IsSet() && o.rivals.isIncomplete {
		o.addCheck(rivalCheckName, report.ResultUnknown, names.Explanation{Text: unseenRivalsText})
	}
	return nil
}

const rivalCheckName = "other controllers"

// addRivalCheck says that another controller serves the Service too. The cause is empty if none
// does.
func (c *serviceDiagnosis) addRivalCheck(ctx context.Context) (cause, error) {
	// All controllers of Gantry write under the same name: their writes do not tell a second one.
	rival, err := c.explainRival(ctx)
	if err != nil {
		return cause{}, err
	}
	if !rival.IsSet() {
		rival.Explanation = c.explainOtherStatusWriter()
	}
	switch {
	case rival.IsSet():
		c.addCheck(rivalCheckName, report.ResultNotWell, rival.Explanation)
	case c.rivals.isIncomplete:
		c.addCheck(rivalCheckName, report.ResultUnknown, names.Explanation{Text: unseenRivalsText})
	}
	return rival, nil
}
