package preflight

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
)

// workload is a Deployment or DaemonSet.
type workload struct {
	kind string
	meta *metav1.ObjectMeta
	spec *corev1.PodSpec
}

// isCalled reports whether the workload has the word in its name or its usual labels.
func (w workload) isCalled(word string) bool {
	return slices.ContainsFunc([]string{w.meta.Name, w.meta.Labels["app"], w.meta.Labels[names.LabelAppName]}, func(text string) bool { return strings.Contains(text, word) })
}

// hasVariable reports whether a container has an environment variable with the value.
func (w workload) hasVariable(name, value string) bool {
	for i := range w.spec.Containers {
		if slices.ContainsFunc(w.spec.Containers[i].Env, func(v corev1.EnvVar) bool { return v.Name == name && v.Value == value }) {
			return true
		}
	}
	return false
}

// hasArgument reports whether a container has an argument.
func (w workload) hasArgument(argument string) bool {
	for i := range w.spec.Containers {
		if slices.Contains(w.spec.Containers[i].Args, argument) || slices.Contains(w.spec.Containers[i].Command, argument) {
			return true
		}
	}
	return false
}

// serviceLBPrefix begins the names of the DaemonSets that ServiceLB of k3s makes of Services.
const serviceLBPrefix = "svclb-"

// findRival reports whether a workload serves the Services that Gantry serves, which have the
// class.
func findRival(w workload, gantryNamespace, class string) (Rival, bool) {
	out := Rival{Workload: w.kind + "/" + w.meta.Name, Namespace: w.meta.Namespace}
	remove := fmt.Sprintf("kubectl -n %s delete %s", out.Namespace, out.Workload)
	switch {
	case w.isCalled("metallb"):
		out.Program, out.Mend = "MetalLB", remove
		return out, objects.ReadFlagOfPodSpec(w.spec, "lb-class") == class
	case strings.HasPrefix(w.meta.Name, serviceLBPrefix):
		out.Program, out.Mend = "ServiceLB of k3s", "start the servers of k3s with --disable servicelb"
		return out, class == ""
	case w.isCalled("kube-vip-cloud-provider"):
		out.Program, out.Mend = "kube-vip's cloud provider", remove
		return out, class == ""
	case w.isCalled("kube-vip"):
		out.Program, out.Mend = "kube-vip", fmt.Sprintf("kubectl -n %s set env %s svc_enable=false", out.Namespace, out.Workload)
		return out, class == "" && (w.hasVariable("svc_enable", "true") || w.hasArgument("--services"))
	case w.isCalled("purelb"):
		out.Program, out.Mend = "PureLB", remove
		return out, class == ""
	case w.isCalled("openelb"):
		out.Program, out.Mend = "OpenELB", remove
		return out, class == ""
	case objects.HasComponentLabels(w.meta.Labels, names.ComponentController) && w.meta.Namespace != gantryNamespace:
		out.Program, out.Mend = "another Gantry", remove
		return out, objects.ReadFlagOfPodSpec(w.spec, "load-balancer-class") == class
	}
	return Rival{}, false
}
