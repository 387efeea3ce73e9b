package preflight

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestRivalsAreKnownByTheirWorkloads has the workloads of other programs, as their manifests and
// charts name them.
func TestRivalsAreKnownByTheirWorkloads(t *testing.T) {
	for _, c := range []struct {
		name      string
		labels    map[string]string
		container corev1.Container
		class     string
		want      string
	}{
		{"speaker", map[string]string{"app": "metallb"}, corev1.Container{}, "", "MetalLB"},
		{"metallb-speaker", map[string]string{"app.kubernetes.io/name": "metallb"}, corev1.Container{Args: []string{"--lb-class=x"}}, "", ""},
		{"metallb-speaker", map[string]string{"app.kubernetes.io/name": "metallb"}, corev1.Container{Args: []string{"--lb-class=x"}}, "x", "MetalLB"},
		{"kube-vip-ds", nil, corev1.Container{Env: []corev1.EnvVar{{Name: "svc_enable", Value: "true"}}}, "", "kube-vip"},
		{"kube-vip-ds", nil, corev1.Container{Env: []corev1.EnvVar{{Name: "svc_enable", Value: "false"}}}, "", ""},
		{"kube-vip-cloud-provider", nil, corev1.Container{}, "", "kube-vip's cloud provider"},
		{"svclb-traefik-1234", nil, corev1.Container{}, "", "ServiceLB of k3s"},
		{"lbnodeagent", map[string]string{"app": "purelb"}, corev1.Container{}, "", "PureLB"},
		{"openelb-speaker", nil, corev1.Container{}, "", "OpenELB"},
		{"gantry-controller", map[string]string{"app.kubernetes.io/name": "gantry", "app.kubernetes.io/component": "controller"}, corev1.Container{}, "", "another Gantry"},
		{"kube-proxy", nil, corev1.Container{}, "", ""},
	} {
		w := workload{"daemonset", &metav1.ObjectMeta{Name: c.name, Namespace: "other", Labels: c.labels}, &corev1.PodSpec{Containers: []corev1.Container{c.container}}}
		r, isRival := findRival(w, "metallb-system", c.class)
		if isRival != (c.want != "") || isRival && (r.Program != c.want || r.Mend == "") {
			t.Errorf("%s %v %v is %+v, %v, want %q", c.name, c.labels, c.container, r, isRival, c.want)
		}
	}
}
