package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// The exit statuses of kubectl gantry.
const (
	kubectlGantryExitWell    = 0
	kubectlGantryExitNotWell = 1
	kubectlGantryExitUnknown = 2
)

// runKubectlGantry runs kubectl gantry as the cluster's administrator, and returns what it prints
// and its exit status.
func runKubectlGantry(ctx context.Context, s *cluster.Cluster, args ...string) (string, int, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(lab.RepositoryRoot(), "bin", "kubectl-gantry"), append([]string{"--kubeconfig", s.Kubeconfig()}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out.String(), exit.ExitCode(), nil
	}
	return out.String(), 0, err
}

// expectExplanationNamesCause waits until the first line of kubectl gantry explain names the cause
// of the fault.
func (h *faultTestCluster) expectExplanationNamesCause(ctx context.Context, t *testing.T, f fault) {
	t.Helper()
	text := f.text
	if f.explanationText != "" {
		text = f.explanationText
	}
	failOnError(t, h.awaitExplanation(ctx, f.service, kubectlGantryExitNotWell, text, "["))
}

// expectHealthyExplanation waits until kubectl gantry explain finds the Service well.
func (h *faultTestCluster) expectHealthyExplanation(ctx context.Context, t *testing.T, service string) {
	t.Helper()
	failOnError(t, h.awaitExplanation(ctx, service, kubectlGantryExitWell, "announced by", "[Announced]"))
}

// awaitExplanation waits until kubectl gantry explain exits with the status, and its first line has
// the texts.
func (h *faultTestCluster) awaitExplanation(ctx context.Context, service string, wantStatus int, texts ...string) error {
	return awaitExplanation(ctx, h.Cluster, []string{"service", service}, wantStatus, texts...)
}

// awaitExplanation waits until kubectl gantry explain exits with the status, and its first line has
// the texts.
func awaitExplanation(ctx context.Context, s *cluster.Cluster, subject []string, wantStatus int, texts ...string) error {
	return awaitExplanationOfRepeatedFault(ctx, s, func() error { return nil }, subject, wantStatus, texts...)
}

// awaitExplanationOfRepeatedFault causes the fault anew before each explanation.
func awaitExplanationOfRepeatedFault(ctx context.Context, s *cluster.Cluster, causeFault func() error, subject []string, wantStatus int, texts ...string) error {
	var lastAnswer error
	err := cluster.AwaitNoError(ctx, "the explanation of "+strings.Join(subject, " "), func(ctx context.Context) error {
		if err := causeFault(); err != nil {
			return err
		}
		out, status, err := runKubectlGantry(ctx, s, append([]string{"explain"}, subject...)...)
		if err != nil || ctx.Err() != nil { // it may have been killed
			return errors.Join(err, ctx.Err())
		}
		first, _, _ := strings.Cut(out, "\n")
		for _, text := range texts {
			if status != wantStatus || !strings.Contains(first, text) {
				lastAnswer = fmt.Errorf("kubectl gantry exits with %d, want %d, and its first line should have %q:\n%s", status, wantStatus, text, out)
				return lastAnswer
			}
		}
		return nil
	})
	if err != nil && lastAnswer != nil {
		return lastAnswer
	}
	return err
}

// explanationFault is a fault of one Service that only kubectl gantry explain has to name in its
// first line. repair undoes the edit; without both, the Service stays broken.
type explanationFault struct {
	name, service string
	manifests     string
	edit, repair  func(ctx context.Context) error
	reason        names.Reason
	text          string
}

// explanationFaultPrerequisites are the pools and reservations of explanationFaults.
var explanationFaultPrerequisites = strings.Replace(poolWithoutAutoAssignManifest("limited", "192.168.0.171-192.168.0.175", "spec: {ipAddressPools: [limited]}"), "autoAssign: false", "autoAssign: false, gantry: {quota: {perNamespace: 1}}", 1) +
	strings.Replace(poolWithoutAutoAssignManifest("gapped", "192.168.0.176-192.168.0.189", "spec: {ipAddressPools: [gapped]}"), "autoAssign: false", "autoAssign: false, gantry: {exclude: [192.168.0.177]}", 1) +
	allowingTwoPerService(poolWithoutAutoAssignManifest("pairs", "192.168.0.169-192.168.0.170", "spec: {ipAddressPools: [pairs]}")) +
	poolWithoutAutoAssignManifest("sixth", "fd00:a9::1-fd00:a9::9", "") + bgpAdvertisementManifest("sixth", "ipAddressPools: [sixth]") +
	"apiVersion: gantry.dev/v1alpha1\nkind: AddressReservation\nmetadata: {name: kept, namespace: metallb-system}\nspec: {service: {namespace: default, name: somebody}, addresses: [192.168.0.178]}\n---\n" +
	serviceManifest("limited-first", "metallb.io/address-pool: limited", "") +
	serviceManifest("policy-first", `metallb.io/loadBalancerIPs: 192.168.0.179, metallb.io/allow-shared-ip: policy`, "")

// explanationFaults are faults of Services of their own.
var explanationFaults = []explanationFault{
	{name: "a misspelt annotation", service: "misspelt-key", manifests: serviceManifest("misspelt-key", "metallb.io/adress-pool: tiny", ""), reason: names.ReasonUnknownAnnotation, text: "the annotation metallb.io/adress-pool is unknown and ignored: did you mean metallb.io/address-pool?"},
	{name: "another class", service: "other-class", manifests: serviceManifest("other-class", "", "loadBalancerClass: example.com/other"), reason: names.ReasonNotLoadBalancer, text: `its loadBalancerClass is "example.com/other"`},
	{name: "another type", service: "other-type", manifests: strings.Replace(serviceManifest("other-type", "", ""), "type: LoadBalancer", "type: ClusterIP", 1), reason: names.ReasonNotLoadBalancer, text: "its type is ClusterIP"},
	{name: "a quota", service: "limited", manifests: serviceManifest("limited", "metallb.io/address-pool: limited", ""), reason: names.ReasonQuotaExceeded, text: "namespace default has reached its quota"},
	{name: "a reservation", service: "reserved", manifests: serviceManifest("reserved", "metallb.io/loadBalancerIPs: 192.168.0.178", ""), reason: names.ReasonAddressReserved, text: `192.168.0.178 is reserved for Service default/somebody by AddressReservation "kept"`},
	{name: "an excluded address", service: "excluded", manifests: serviceManifest("excluded", "metallb.io/loadBalancerIPs: 192.168.0.177", ""), reason: names.ReasonAddressNotInPool, text: `pool "gapped" excludes the requested 192.168.0.177`},
	{name: "a pool and an address of another", service: "contradiction", manifests: serviceManifest("contradiction", "metallb.io/loadBalancerIPs: 192.168.0.176, metallb.io/address-pool: limited", ""), reason: names.ReasonInvalidRequest, text: `belongs to pool "gapped"`},
	{name: "another traffic policy on a shared address", service: "policy", manifests: strings.Replace(serviceManifest("policy", "metallb.io/loadBalancerIPs: 192.168.0.179, metallb.io/allow-shared-ip: policy", "externalTrafficPolicy: Local"), "port: 80", "port: 81", 1), reason: names.ReasonTrafficPolicyConflict, text: "192.168.0.179 is held by Service default/policy-first"},
	{name: "an address of the other family", service: "family", manifests: serviceManifest("family", `metallb.io/loadBalancerIPs: "fd00:a9::2"`, ""), reason: names.ReasonFamilyMismatch, text: "fd00:a9::2"},
	{name: "loadBalancerIP outside of the pools", service: "old-field", manifests: serviceManifest("old-field", "", "loadBalancerIP: 10.9.9.9"), reason: names.ReasonAddressNotInPool, text: "no pool contains the requested 10.9.9.9"},
	{name: "a domain of annotations that is misspelt", service: "misspelt-domain", manifests: serviceManifest("misspelt-domain", "metalb.io/address-pool: tiny", ""), reason: names.ReasonUnknownAnnotation, text: "the annotation metalb.io/address-pool is unknown and ignored: did you mean metallb.io/address-pool?"},
	{name: "an IPv6 address on an IPv4 session", service: "sixth", manifests: serviceManifest("sixth", "metallb.io/address-pool: sixth", "ipFamilies: [IPv6]"), reason: names.ReasonNoPeers, text: "for the family of the address"},
}

// peerAndControllerFaults are faults of the router's peer and of the controller.
func (h *faultTestCluster) peerAndControllerFaults() []explanationFault {
	patchPeer := func(patch string) func(context.Context) error {
		return h.kubectlFunc("-n", names.DefaultNamespace, "patch", "bgppeer", "tor", "--type=merge", "-p", patch)
	}
	scale := func(replicas string) func(context.Context) error {
		return h.kubectlFunc("-n", names.DefaultNamespace, "scale", "deployment", "gantry-controller", "--replicas="+replicas)
	}
	replacePeer := func(more string) func(context.Context) error {
		return h.runInSequenceFunc(h.kubectlFunc("-n", names.DefaultNamespace, "delete", "bgppeer", "tor"), func(ctx context.Context) error { return h.ApplyManifests(ctx, torPeerManifest(more)) })
	}
	patchPool := func(address string) func(context.Context) error {
		return h.kubectlFunc("-n", names.DefaultNamespace, "patch", "ipaddresspool", "edited", "--type=merge", "-p", `{"spec":{"addresses":["`+address+`"]}}`)
	}
	return []explanationFault{
		{name: "BFD on one side", service: "routed", manifests: "apiVersion: metallb.io/v1beta1\nkind: BFDProfile\nmetadata: {name: slow, namespace: metallb-system}\nspec: {}\n---\n",
			edit: patchPeer(`{"spec":{"bfdProfile":"slow"}}`), repair: patchPeer(`{"spec":{"bfdProfile":""}}`), reason: names.ReasonBFDDown, text: "is not watched by BFD"},
		{name: "BFD on the router's side only", service: "routed", edit: func(ctx context.Context) error {
			return h.tor.ChangeRunningConfig(ctx, "router bgp 65000\n neighbor nodes bfd\n")
		},
			repair: func(ctx context.Context) error {
				return h.tor.ChangeRunningConfig(ctx, "router bgp 65000\n no neighbor nodes bfd\n")
			},
			reason: names.ReasonBFDNotConfigured, text: "the router sends BFD packets, and BGPPeer tor has no bfdProfile"},
		{name: "an advertisement of a missing pool", service: "routed", edit: h.kubectlFunc("-n", names.DefaultNamespace, "patch", "bgpadvertisement", "routed", "--type=merge", "-p", `{"spec":{"ipAddressPools":["routde"]}}`),
			repair: h.kubectlFunc("-n", names.DefaultNamespace, "patch", "bgpadvertisement", "routed", "--type=merge", "-p", `{"spec":{"ipAddressPools":["routed"]}}`), reason: names.ReasonNoAdvertisement, text: `selects pool "routed"`},
		{name: "a Secret of another type", service: "routed", manifests: "apiVersion: v1\nkind: Secret\nmetadata: {name: opaque, namespace: metallb-system}\nstringData: {password: x}\n---\n", edit: replacePeer(", passwordSecret: {name: opaque}"), repair: replacePeer(""),
			reason: names.ReasonNoSession, text: "(UnknownSecret); Secret opaque exists, and is of type Opaque"},
		{name: "TTL security on one side", service: "routed", edit: replacePeer(", gantry: {ttlSecurityHops: 1}"), repair: replacePeer(""), reason: names.ReasonNoSession, text: "it sent no OPEN within 20s: does the router use TTL security too (ttlSecurityHops)?"},
		{name: "a dead link of the only Pod's node", service: "local", manifests: localTrafficPolicyServiceManifest, edit: func(ctx context.Context) error { return h.CutCable(ctx, "node1") },
			repair: func(ctx context.Context) error { return h.PlugCable(ctx, "node1") }, reason: names.ReasonNoSpeaker, text: "node1: its speaker is gone or silent"},
		{name: "kube-proxy is dead", service: "web", edit: h.signalKubeProxiesFunc(syscall.SIGSTOP), repair: h.signalKubeProxiesFunc(syscall.SIGCONT), reason: names.ReasonServiceProxySilent, text: "which announces it, is not fit: kube-proxy"},
		{name: "a pool that is edited under a Service", service: "edited", manifests: poolWithoutAutoAssignManifest("edited", "192.168.0.198", "spec: {ipAddressPools: [edited]}") + serviceManifest("edited", "metallb.io/address-pool: edited", ""), edit: h.runInSequenceFunc(
			func(ctx context.Context) error { return h.awaitAnnounced(ctx, "edited") }, patchPool("192.168.0.199")),
			repair: patchPool("192.168.0.198"), reason: names.ReasonAddressNotInPool, text: "is announced, but no pool contains 192.168.0.198; the Service keeps it"},
		{name: "another program writes the addresses", service: "edited", edit: func(ctx context.Context) error {
			return h.kubectlFunc("patch", "service", "edited", "--subresource=status", "--field-manager=kube-vip", "--type=merge", "-p", `{"status":{"loadBalancer":{"ingress":[{"ip":"10.99.0.1"}]}}}`)(ctx)
		}, repair: h.runInSequenceFunc(h.kubectlFunc("delete", "service", "edited"), func(ctx context.Context) error {
			return h.ApplyManifests(ctx, serviceManifest("edited", "metallb.io/address-pool: edited", ""))
		}), reason: names.ReasonOtherController, text: "another program writes its addresses too: kube-vip did at"},
		{name: "PodSecurity refuses the speakers", service: "web", edit: h.runInSequenceFunc(
			h.kubectlFunc("label", "namespace", names.DefaultNamespace, "--overwrite", "pod-security.kubernetes.io/enforce=baseline"),
			h.kubectlFunc("-n", names.DefaultNamespace, "delete", "pods", "--wait=false", "-l", "app.kubernetes.io/component=speaker")),
			repair: h.runInSequenceFunc(h.kubectlFunc("label", "namespace", names.DefaultNamespace, "--overwrite", "pod-security.kubernetes.io/enforce=privileged"), h.kubectlFunc("-n", names.DefaultNamespace, "rollout", "restart", "daemonset/gantry-speaker"), h.AwaitGantryRollout),
			reason: names.ReasonNoSpeaker, text: `the API server refuses its Pods: violates PodSecurity "baseline:latest"`},
		{name: "the controllers have no RBAC", service: "web", edit: h.kubectlFunc("-n", names.DefaultNamespace, "delete", "rolebinding", "gantry-controller"),
			repair: h.kubectlFunc("apply", "-f", filepath.Join(lab.RepositoryRoot(), "config", "rbac", "controller.yaml")), reason: names.ReasonNoController, text: "its ServiceAccount gantry-controller may not list ipaddresspools"},
		{name: "a slow API server", service: "web", edit: func(ctx context.Context) error { return h.DelayAPIRequests(ctx, 1100*time.Millisecond) },
			repair: func(ctx context.Context) error { return h.DelayAPIRequests(ctx, 0) }, reason: names.ReasonSlowAPIServer, text: "the API server is slow: its fastest answer took"},
		{name: "a webhook without endpoints", service: "unborn", manifests: deadWebhookManifest + serviceManifest("unborn", "metallb.io/address-pool: unborn", ""), edit: func(context.Context) error { return nil },
			repair: h.runInSequenceFunc(h.kubectlFunc("delete", "validatingwebhookconfiguration", "gantry-webhook"), func(ctx context.Context) error {
				return h.ApplyManifests(ctx, poolWithoutAutoAssignManifest("unborn", "192.168.0.195", "spec: {ipAddressPools: [unborn]}"))
			}), reason: names.ReasonWebhookDown, text: "Service metallb-system/gantry-webhook of ValidatingWebhookConfiguration gantry-webhook has no endpoint"},
		{name: "no controller", service: "late", edit: func(ctx context.Context) error {
			if err := scale("0")(ctx); err != nil {
				return err
			}
			return h.ApplyManifests(ctx, serviceManifest("late", "", ""))
		}, repair: scale("2"), reason: names.ReasonNoController, text: "Deployment gantry-controller has 0 of 0 Pods ready"},
	}
}

// signalKubeProxiesFunc sends a signal to kube-proxy on both nodes.
func (h *faultTestCluster) signalKubeProxiesFunc(s syscall.Signal) func(context.Context) error {
	return func(ctx context.Context) error {
		return errors.Join(h.SignalProgramOrPod(ctx, "node1", "kube-proxy", s), h.SignalProgramOrPod(ctx, "node2", "kube-proxy", s))
	}
}

// deadWebhookManifest is a webhook that the API server asks about pools, and that nobody answers.
const deadWebhookManifest = `apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: gantry-webhook}
webhooks:
- name: ipaddresspoolvalidationwebhook.metallb.io
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  timeoutSeconds: 1
  clientConfig: {service: {name: gantry-webhook, namespace: metallb-system, path: /validate}}
  rules: [{apiGroups: [metallb.io], apiVersions: [v1beta1], resources: [ipaddresspools], operations: [CREATE, UPDATE]}]
---
`

// runInSequenceFunc returns a function that runs the functions one after the other.
func (h *faultTestCluster) runInSequenceFunc(all ...func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		for _, step := range all {
			if err := step(ctx); err != nil {
				return err
			}
		}
		return nil
	}
}

// healthyServiceManifestByName are Services of many kinds that work.
var healthyServiceManifestByName = map[string]string{
	"well-local": serviceManifest("well-local", "", "externalTrafficPolicy: Local"), "well-asked": serviceManifest("well-asked", "metallb.io/loadBalancerIPs: 192.168.0.233", ""),
	"well-named": serviceManifest("well-named", "metallb.io/address-pool: gapped", ""), "well-old": serviceManifest("well-old", "metallb.universe.tf/address-pool: gapped", ""),
	"well-shared":  serviceManifest("well-shared", "metallb.io/loadBalancerIPs: 192.168.0.231, metallb.io/allow-shared-ip: well", ""),
	"well-sharing": strings.Replace(serviceManifest("well-sharing", "metallb.io/loadBalancerIPs: 192.168.0.231, metallb.io/allow-shared-ip: well", ""), "port: 80", "port: 81", 1),
	"well-routed":  serviceManifest("well-routed", "metallb.io/address-pool: routed", ""), "well-routed-local": serviceManifest("well-routed-local", "metallb.io/address-pool: routed", "externalTrafficPolicy: Local"),
	"well-without-node-ports": serviceManifest("well-without-node-ports", "", "allocateLoadBalancerNodePorts: false"), "well-two": serviceManifest("well-two", `metallb.io/address-pool: pairs, gantry.dev/address-count: "2"`, ""),
}

// testKubectlGantryExplainNamesCause makes faults that only an explanation has to name, and
// explains Services that work.
func (h *faultTestCluster) testKubectlGantryExplainNamesCause(ctx context.Context, t *testing.T) {
	failOnError(t, h.ApplyManifests(ctx, explanationFaultPrerequisites+userMistakePrerequisites))
	manifests := ""
	faultsOfOwnServices := slices.Concat(explanationFaults, userMistakes)
	for _, f := range faultsOfOwnServices {
		manifests += f.manifests
	}
	for _, m := range healthyServiceManifestByName {
		manifests += m
	}
	failOnError(t, h.ApplyManifests(ctx, manifests))
	for name := range healthyServiceManifestByName {
		if err := h.awaitExplanation(ctx, name, kubectlGantryExitWell, "announced by", "[Announced]"); err != nil {
			t.Error(err)
		}
	}
	for _, f := range faultsOfOwnServices {
		t.Run(f.name, func(t *testing.T) {
			failOnError(t, h.awaitExplanation(ctx, f.service, kubectlGantryExitNotWell, f.text, "["+string(f.reason)+"]"))
		})
	}
	for _, f := range slices.Concat(h.peerAndControllerFaults(), h.routerRefusalFaults(), h.otherHostFaults(), h.rivalFaults(), []explanationFault{h.wrongNamespaceFault()}) {
		t.Run(f.name, func(t *testing.T) {
			if f.manifests != "" {
				failOnError(t, h.ApplyManifests(ctx, f.manifests))
			}
			failOnError(t, f.edit(ctx))
			failOnError(t, h.awaitExplanation(ctx, f.service, kubectlGantryExitNotWell, f.text, "["+string(f.reason)+"]"))
			failOnError(t, f.repair(ctx))
			h.expectHealthyExplanation(ctx, t, f.service)
		})
	}
	h.awaitKubectlGantryOutput(ctx, t, func(status int) bool { return status == kubectlGantryExitUnknown }, "there is no Service default/well-locla: did you mean well-local", "explain", "service", "well-locla")
	h.awaitKubectlGantryOutput(ctx, t, func(status int) bool { return status == kubectlGantryExitNotWell }, "kubectl gantry explain service default/", "status")
	for _, command := range []string{"pools", "holders", "peers", "services", "moves"} {
		want := `"items"`
		if command == "moves" { // the speakers remember that they took addresses
			want = `"to": "node`
		}
		h.awaitKubectlGantryOutput(ctx, t, func(status int) bool { return status != kubectlGantryExitUnknown }, want, command, "-o", "json")
	}
}

// awaitKubectlGantryOutput waits until kubectl gantry with the arguments exits with a wanted status
// and prints the text.
func (h *faultTestCluster) awaitKubectlGantryOutput(ctx context.Context, t *testing.T, wantStatus func(int) bool, text string, args ...string) {
	t.Helper()
	failOnError(t, cluster.AwaitNoError(ctx, "kubectl gantry "+strings.Join(args, " "), func(ctx context.Context) error {
		out, status, err := runKubectlGantry(ctx, h.Cluster, args...)
		if err == nil && (!wantStatus(status) || !strings.Contains(out, text)) {
			err = fmt.Errorf("it exits with %d, and %q should be in\n%s", status, text, out)
		}
		return err
	}))
}
