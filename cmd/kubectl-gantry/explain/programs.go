package explain

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// workload is a Deployment or DaemonSet of Gantry.
type workload struct {
	name, component, serviceAccount string
}

// workloadFailure is why the Pods of a workload are missing, do not run, or do nothing. The text is
// empty if that is not known.
type workloadFailure struct {
	text   string
	remedy remedy
}

// explainWorkloadFailure says why the Pods of a workload are missing, do not run, or do nothing.
func (e *Explainer) explainWorkloadFailure(ctx context.Context, w workload) workloadFailure {
	var pods corev1.PodList
	err := e.objectReader.List(ctx, &pods, client.InNamespace(e.gantryNamespace), client.MatchingLabels{names.LabelAppName: names.AppName, names.LabelComponent: w.component})
	if err != nil {
		return workloadFailure{}
	}
	if len(pods.Items) > 0 {
		// A program without rights may end again and again.
		if text := e.explainServiceAccountLacksRight(ctx, w); text != "" {
			return workloadFailure{text, remedyApplyRBAC}
		}
	}
	for i := range pods.Items {
		if text := DescribePodNotRunning(&pods.Items[i]); text != "" {
			return workloadFailure{text: text}
		}
	}
	return e.explainRefusedPods(ctx, w)
}

// DescribePodNotRunning says why a Pod does not run; "" if it runs.
func DescribePodNotRunning(p *corev1.Pod) string {
	at := "Pod " + p.Name
	if p.Spec.NodeName != "" {
		at += " on " + p.Spec.NodeName
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return fmt.Sprintf("%s gets no node: %s", at, shortenText(c.Message))
		}
	}
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		ended := c.LastTerminationState.Terminated
		switch waiting := c.State.Waiting; {
		case waiting != nil && ended != nil:
			return fmt.Sprintf("%s ends again and again (%s), the last time with exit code %d: look at its log (kubectl -n %s logs %s --previous)", at, waiting.Reason, ended.ExitCode, p.Namespace, p.Name)
		case waiting != nil && waiting.Reason != "ContainerCreating" && waiting.Reason != "PodInitializing":
			return fmt.Sprintf("%s does not start: %s: %s", at, waiting.Reason, shortenText(waiting.Message))
		}
	}
	return ""
}

// explainRefusedPods quotes the newest event that says why the Pods of a workload cannot be
// created: because of PodSecurity or a quota, for example.
func (e *Explainer) explainRefusedPods(ctx context.Context, w workload) workloadFailure {
	var events corev1.EventList
	if err := e.objectReader.List(ctx, &events, client.InNamespace(e.gantryNamespace), client.MatchingFields{"reason": "FailedCreate"}); err != nil {
		return workloadFailure{}
	}
	var newest *corev1.Event
	for i := range events.Items {
		o := &events.Items[i]
		// The Pods of a Deployment belong to a ReplicaSet, whose name continues its own.
		isAbout := o.InvolvedObject.Name == w.name || strings.HasPrefix(o.InvolvedObject.Name, w.name+"-")
		if isAbout && (newest == nil || lastTimeOfEvent(newest).Before(lastTimeOfEvent(o))) {
			newest = o
		}
	}
	if newest == nil {
		return workloadFailure{}
	}
	_, refusal, isRefused := strings.Cut(newest.Message, " is forbidden: ")
	if !isRefused {
		return workloadFailure{text: "its Pods cannot be created: " + shortenText(newest.Message)}
	}
	out := workloadFailure{text: "the API server refuses its Pods: " + shortenText(refusal)}
	// Kubernetes says why only in this text.
	if strings.Contains(refusal, "violates PodSecurity") {
		out.text += fmt.Sprintf(": give namespace %s the label %s=privileged", e.gantryNamespace, labelPodSecurity)
		out.remedy = remedyAllowPods
	}
	return out
}

// labelPodSecurity is the label of a namespace that says which Pods it admits.
const labelPodSecurity = "pod-security.kubernetes.io/enforce"

// RightsOfProgram returns the rights without which a program of Gantry does nothing. The component
// is the value of the label names.LabelComponent.
func RightsOfProgram(component, namespace string) []authorizationv1.ResourceAttributes {
	pools, speakers := v1beta1.GroupVersion.Group, v1alpha1.GroupVersion.Group
	out := []authorizationv1.ResourceAttributes{
		{Verb: "list", Resource: "services"},
		{Verb: "list", Group: pools, Resource: "ipaddresspools", Namespace: namespace},
	}
	if component == names.ComponentController {
		return append(out,
			authorizationv1.ResourceAttributes{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Name: names.LeaderLease, Namespace: namespace},
			authorizationv1.ResourceAttributes{Verb: "patch", Resource: "services", Subresource: "status"})
	}
	return append(out, authorizationv1.ResourceAttributes{Verb: "patch", Group: speakers, Resource: "speakerstatuses", Subresource: "status", Namespace: namespace})
}

// explainServiceAccountLacksRight says which right the programs of a workload lack. Without RBAC of
// their own, they run and do nothing.
func (e *Explainer) explainServiceAccountLacksRight(ctx context.Context, w workload) string {
	for _, right := range RightsOfProgram(w.component, e.gantryNamespace) {
		if !e.objectReader.IsServiceAccountDenied(ctx, client.ObjectKey{Namespace: e.gantryNamespace, Name: w.serviceAccount}, right) {
			continue
		}
		resource := right.Resource
		if right.Subresource != "" {
			resource += "/" + right.Subresource
		}
		return fmt.Sprintf("its ServiceAccount %s may not %s %s: apply the RBAC of the installation again", cmp.Or(w.serviceAccount, "default"), right.Verb, resource)
	}
	return ""
}

// maxQuotedLetters bounds what is quoted of a text of Kubernetes.
const maxQuotedLetters = 240

// shortenText returns the beginning of a long text.
func shortenText(text string) string {
	text = strings.TrimSuffix(strings.Join(strings.Fields(text), " "), ".")
	if len(text) <= maxQuotedLetters {
		return text
	}
	return strings.ToValidUTF8(text[:maxQuotedLetters], "") + " ..."
}
