package objects

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
)

// Workload is a Deployment or a DaemonSet.
type Workload struct {
	// Kind is Deployment or DaemonSet.
	Kind string
	Meta *metav1.ObjectMeta
	// PodSpec is that of its Pods, of which it has PodCount.
	PodSpec  *corev1.PodSpec
	PodCount int32
}

// ListWorkloads returns the Deployments and DaemonSets that the options select.
func ListWorkloads(ctx context.Context, from client.Reader, options ...client.ListOption) ([]Workload, error) {
	var deployments appsv1.DeploymentList
	var daemonSets appsv1.DaemonSetList
	for _, list := range []client.ObjectList{&deployments, &daemonSets} {
		if err := from.List(ctx, list, options...); err != nil {
			return nil, err
		}
	}
	var out []Workload
	for i := range deployments.Items {
		d := &deployments.Items[i]
		out = append(out, Workload{"Deployment", &d.ObjectMeta, &d.Spec.Template.Spec, d.Status.Replicas})
	}
	for i := range daemonSets.Items {
		d := &daemonSets.Items[i]
		out = append(out, Workload{"DaemonSet", &d.ObjectMeta, &d.Spec.Template.Spec, d.Status.DesiredNumberScheduled})
	}
	return out, nil
}

// HasComponentLabels reports whether labels are those of a program of Gantry.
func HasComponentLabels(l map[string]string, component string) bool {
	return l[names.LabelAppName] == names.AppName && l[names.LabelComponent] == component
}
