package explain

import (
	"context"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
)

// maxNodesAskedForTaints bounds how many nodes are read one by one.
const maxNodesAskedForTaints = 4

// explainNodesLeftOut says why the DaemonSet of the speakers leaves out a node that should announce
// the Service. Its text is the end of a sentence.
func explainNodesLeftOut(ctx context.Context, c *serviceDiagnosis) cause {
	d := c.installation.speakerDaemonSet
	if d == nil {
		return cause{}
	}
	asked, silent := 0, c.findSilentSpeakers(ctx)
	for i := range c.announcementFinding.NodeExplanations {
		n := &c.announcementFinding.NodeExplanations[i]
		isSilent := n.Fault().Reason == names.ReasonNoSpeaker || slices.Contains(silent, n.Node)
		if asked == maxNodesAskedForTaints || !isSilent {
			continue
		}
		asked++
		var node corev1.Node
		if err := c.objectReader.GetFromServer(ctx, client.ObjectKey{Name: n.Node}, &node); err != nil {
			continue
		}
		if why := explainNodeLeftOut(d, &node); why.IsSet() {
			why.Text = "; " + why.Text
			return why
		}
	}
	return cause{}
}

// explainNodeLeftOut says why a DaemonSet has no Pod on a node, if that is known.
func explainNodeLeftOut(d *appsv1.DaemonSet, node *corev1.Node) cause {
	because := func(field, format string, args ...any) cause {
		return cause{names.NewExplanation(names.ReasonNoSpeaker, format, args...), repairTarget{kind: "DaemonSet", key: client.ObjectKeyFromObject(d), field: "spec.template.spec." + field}}
	}
	spec := &d.Spec.Template.Spec
	if wanted := labels.SelectorFromSet(spec.NodeSelector); !wanted.Matches(labels.Set(node.Labels)) {
		return because("nodeSelector", "DaemonSet %s has the nodeSelector %s, which does not match %s: correct it, or label the node", d.Name, wanted, node.Name)
	}
	for i := range node.Spec.Taints {
		taint := &node.Spec.Taints[i]
		tolerates := func(t corev1.Toleration) bool { return t.ToleratesTaint(klog.Background(), taint, false) }
		// Each DaemonSet tolerates what Kubernetes itself says about a node.
		isOfKubernetes := strings.HasPrefix(taint.Key, "node.kubernetes.io/") && taint.Key != names.TaintOutOfService
		if taint.Effect == corev1.TaintEffectPreferNoSchedule || isOfKubernetes || slices.ContainsFunc(spec.Tolerations, tolerates) {
			continue
		}
		return because("tolerations", "%s has the taint %s, which DaemonSet %s does not tolerate: add it to the tolerations there", node.Name, taint.ToString(), d.Name)
	}
	return cause{}
}
