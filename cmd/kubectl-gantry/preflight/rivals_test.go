package preflight

import (
	"fmt"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/explain"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
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

// TestProgramsWithoutWorkloadAreKnownByTheServices has Services that other programs serve, as the
// API server records it.
func TestProgramsWithoutWorkloadAreKnownByTheServices(t *testing.T) {
	manifests := ""
	for _, c := range []struct{ name, manager, class string }{
		{"mail", "cilium-operator-generic", ""}, {"web", "cilium-operator-generic", ""}, {"of-another-class", "cilium-operator-generic", "loadBalancerClass: io.cilium/l2-announcer, "},
		{"left-by-metallb", "controller", ""}, {"by-hand", "kubectl-edit", ""},
	} {
		manifests += fmt.Sprintf(`apiVersion: v1
kind: Service
metadata:
  name: %s
  namespace: shop
  managedFields:
  - {manager: %s, operation: Update, apiVersion: v1, subresource: status, time: "2026-03-01T11:59:01Z", fieldsType: FieldsV1, fieldsV1: {"f:status": {"f:loadBalancer": {"f:ingress": {}}}}}
spec: {%stype: LoadBalancer, ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}
---
`, c.name, c.manager, c.class)
	}
	api := clustertest.NewAPIBuilder(t, manifests).Build()
	c, err := ReadCluster(t.Context(), objects.NewReader(api, explain.LabelsFuncByIndex), "metallb-system")
	if err != nil {
		t.Fatal(err)
	}
	want := []StatusWriter{{"cilium-operator-generic, which is Cilium's LB-IPAM", []string{"shop/mail", "shop/web"}}}
	if !reflect.DeepEqual(c.StatusWriters, want) {
		t.Errorf("the programs are %+v, want %+v", c.StatusWriters, want)
	}
}
