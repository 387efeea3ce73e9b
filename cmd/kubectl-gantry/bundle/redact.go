package bundle

import (
	"regexp"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/internal/view"
)

// redactObject returns a copy that has only what kubectl gantry reads. Of the kinds of Kubernetes
// it takes over the fields that are needed, so that a field that is new or unknown stays out.
func redactObject(o client.Object) client.Object {
	switch o := o.(type) {
	case *corev1.Service:
		return redactService(o)
	case *discoveryv1.EndpointSlice:
		return redactEndpointSlice(o)
	case *corev1.Node:
		return redactNode(o)
	case *corev1.Namespace:
		return &corev1.Namespace{ObjectMeta: redactMetadata(&o.ObjectMeta), Status: corev1.NamespaceStatus{Phase: o.Status.Phase}}
	case *appsv1.Deployment:
		return redactDeployment(o)
	case *appsv1.DaemonSet:
		return redactDaemonSet(o)
	case *corev1.Pod:
		return redactPod(o)
	case *coordinationv1.Lease:
		return &coordinationv1.Lease{ObjectMeta: redactMetadata(&o.ObjectMeta), Spec: o.Spec}
	case *corev1.Event:
		return redactEvent(o)
	case *corev1.ConfigMap:
		return redactProxyConfigMap(o)
	case *admissionv1.ValidatingWebhookConfiguration:
		return redactWebhookConfiguration(o)
	}
	return redactOwnObject(o)
}

// redactOwnObject returns a copy of an object of Gantry's or MetalLB's kinds. Their fields are all
// about addresses, but for the password of a BGPPeer.
func redactOwnObject(o client.Object) client.Object {
	out, ok := o.DeepCopyObject().(client.Object)
	if !ok {
		return o
	}
	if accessor, ok := out.(metav1.ObjectMetaAccessor); ok {
		if m, ok := accessor.GetObjectMeta().(*metav1.ObjectMeta); ok {
			*m = redactMetadata(m)
		}
	}
	if peer, ok := out.(*v1beta2.BGPPeer); ok && peer.Spec.Password != "" {
		peer.Spec.Password = substitutePassword(peer.Spec.Password)
	}
	return out
}

// passwordSubstitute stands for a password.
const passwordSubstitute = "removed"

// maxTCPMD5PasswordBytes is the kernel's limit for TCP MD5 keys (RFC 2385).
const maxTCPMD5PasswordBytes = 80

// substitutePassword returns another password with the same faults: empty, too long, or with a line
// break at its end.
func substitutePassword(password string) string {
	switch {
	case password == "":
		return ""
	case len(password) > maxTCPMD5PasswordBytes:
		return strings.Repeat("x", maxTCPMD5PasswordBytes+1)
	case strings.HasSuffix(password, "\n") || strings.HasSuffix(password, "\r"):
		return passwordSubstitute + "\n"
	}
	return passwordSubstitute
}

func redactService(s *corev1.Service) *corev1.Service {
	out := &corev1.Service{ObjectMeta: redactMetadata(&s.ObjectMeta), Spec: *s.Spec.DeepCopy()}
	out.Spec.ExternalName = ""
	out.Status.LoadBalancer = *s.Status.LoadBalancer.DeepCopy()
	for _, c := range s.Status.Conditions {
		if domain, _, _ := strings.Cut(c.Type, "/"); slices.Contains(view.ServiceAnnotationDomains, domain) {
			out.Status.Conditions = append(out.Status.Conditions, c)
		}
	}
	return out
}

func redactEndpointSlice(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{ObjectMeta: redactMetadata(&s.ObjectMeta), AddressType: s.AddressType, Ports: s.Ports}
	out.Labels = keepLabels(s.Labels, discoveryv1.LabelServiceName, discoveryv1.LabelManagedBy)
	for i := range s.Endpoints {
		p := &s.Endpoints[i]
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{Addresses: p.Addresses, Conditions: p.Conditions, NodeName: p.NodeName, Zone: p.Zone})
	}
	return out
}

func redactNode(n *corev1.Node) *corev1.Node {
	out := &corev1.Node{ObjectMeta: redactMetadata(&n.ObjectMeta)}
	out.Spec = corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs, Taints: n.Spec.Taints, Unschedulable: n.Spec.Unschedulable}
	out.Status.Addresses = n.Status.Addresses
	for _, c := range n.Status.Conditions {
		c.Message = redactText(c.Message)
		out.Status.Conditions = append(out.Status.Conditions, c)
	}
	return out
}

func redactDeployment(d *appsv1.Deployment) *appsv1.Deployment {
	out := &appsv1.Deployment{ObjectMeta: redactMetadata(&d.ObjectMeta)}
	out.Spec.Replicas, out.Spec.Template = d.Spec.Replicas, redactPodTemplate(&d.Spec.Template)
	out.Status = appsv1.DeploymentStatus{Replicas: d.Status.Replicas, ReadyReplicas: d.Status.ReadyReplicas, UpdatedReplicas: d.Status.UpdatedReplicas, AvailableReplicas: d.Status.AvailableReplicas, ObservedGeneration: d.Status.ObservedGeneration}
	return out
}

func redactDaemonSet(d *appsv1.DaemonSet) *appsv1.DaemonSet {
	out := &appsv1.DaemonSet{ObjectMeta: redactMetadata(&d.ObjectMeta)}
	out.Spec.Template = redactPodTemplate(&d.Spec.Template)
	out.Status = d.Status
	out.Status.Conditions = nil
	return out
}

func redactPodTemplate(t *corev1.PodTemplateSpec) corev1.PodTemplateSpec {
	var out corev1.PodTemplateSpec
	out.Labels = keepLabels(t.Labels, "app", names.LabelAppName, names.LabelComponent)
	out.Spec = corev1.PodSpec{ServiceAccountName: t.Spec.ServiceAccountName, NodeSelector: t.Spec.NodeSelector, Tolerations: t.Spec.Tolerations, HostNetwork: t.Spec.HostNetwork}
	for i := range t.Spec.Containers {
		c := &t.Spec.Containers[i]
		kept := corev1.Container{Name: c.Name, Image: c.Image, Command: redactArguments(c.Command), Args: redactArguments(c.Args)}
		for _, v := range c.Env {
			flag, isFlag := strings.CutPrefix(v.Name, environmentPrefix)
			if isFlag && isKeptFlag(strings.ToLower(strings.ReplaceAll(flag, "_", "-"))) || v.Name == kubeVIPServicesVariable {
				kept.Env = append(kept.Env, corev1.EnvVar{Name: v.Name, Value: v.Value})
			}
		}
		out.Spec.Containers = append(out.Spec.Containers, kept)
	}
	return out
}

// environmentPrefix begins the environment variables that are flags of Gantry's programs.
// kubeVIPServicesVariable says whether kube-vip serves Services.
const (
	environmentPrefix       = "GANTRY_"
	kubeVIPServicesVariable = "svc_enable"
)

// keptFlags are the flags of Gantry's and other programs whose values say what they serve.
var keptFlags = []string{
	"load-balancer-class", "lb-class", "bgp", "ignore-exclude-lb", "namespace", "leader-elect", "webhook-mode", "metrics-bind-address",
	"health-probe-bind-address", "routes-bind-address", "around-dead-nodes", "keep-connections", "gossip-bind-port", "gossip-key-file", "log-level", "metrics-protocol", "services",
}

func isKeptFlag(name string) bool { return slices.Contains(keptFlags, name) }

// redactArguments returns the arguments that are known flags, in the form --flag=value, and the
// path of the program.
func redactArguments(all []string) []string {
	var out []string
	for i, a := range all {
		flag, value, hasValue := strings.Cut(strings.TrimPrefix(a, "--"), "=")
		switch {
		case !strings.HasPrefix(a, "--"):
			if i == 0 && strings.HasPrefix(a, "/") {
				out = append(out, a)
			}
		case !isKeptFlag(flag):
		case hasValue:
			out = append(out, "--"+flag+"="+value)
		case i+1 < len(all) && !strings.HasPrefix(all[i+1], "-"):
			out = append(out, "--"+flag+"="+all[i+1])
		default:
			out = append(out, "--"+flag)
		}
	}
	return out
}

func redactPod(p *corev1.Pod) *corev1.Pod {
	out := &corev1.Pod{ObjectMeta: redactMetadata(&p.ObjectMeta)}
	out.Labels = keepLabels(p.Labels, "app", names.LabelAppName, names.LabelComponent)
	out.Spec = corev1.PodSpec{NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork}
	out.Status = corev1.PodStatus{Phase: p.Status.Phase, Reason: p.Status.Reason, PodIP: p.Status.PodIP, HostIP: p.Status.HostIP, StartTime: p.Status.StartTime}
	for _, c := range p.Status.Conditions {
		c.Message = redactText(c.Message)
		out.Status.Conditions = append(out.Status.Conditions, c)
	}
	out.Status.InitContainerStatuses = redactContainerStatuses(p.Status.InitContainerStatuses)
	out.Status.ContainerStatuses = redactContainerStatuses(p.Status.ContainerStatuses)
	return out
}

func redactContainerStatuses(all []corev1.ContainerStatus) []corev1.ContainerStatus {
	var out []corev1.ContainerStatus
	for i := range all {
		s := &all[i]
		out = append(out, corev1.ContainerStatus{Name: s.Name, Ready: s.Ready, RestartCount: s.RestartCount, Image: s.Image, Started: s.Started, State: redactContainerState(&s.State), LastTerminationState: redactContainerState(&s.LastTerminationState)})
	}
	return out
}

func redactContainerState(s *corev1.ContainerState) corev1.ContainerState {
	out := *s.DeepCopy()
	if out.Waiting != nil {
		out.Waiting.Message = redactText(out.Waiting.Message)
	}
	if out.Terminated != nil {
		out.Terminated.Message = "" // it may be the end of a log
	}
	return out
}

func redactEvent(e *corev1.Event) *corev1.Event {
	out := &corev1.Event{ObjectMeta: redactMetadata(&e.ObjectMeta), Reason: e.Reason, Message: redactText(e.Message), Type: e.Type, Count: e.Count}
	out.InvolvedObject = corev1.ObjectReference{Kind: e.InvolvedObject.Kind, Namespace: e.InvolvedObject.Namespace, Name: e.InvolvedObject.Name}
	out.FirstTimestamp, out.LastTimestamp, out.EventTime, out.Series = e.FirstTimestamp, e.LastTimestamp, e.EventTime, e.Series
	return out
}

// keptProxySettings are the settings of kube-proxy that matter.
var keptProxySettings = []string{"mode", "strictARP", "healthzBindAddress", "nodePortAddresses"}

// redactProxyConfigMap keeps the settings of kube-proxy that matter. The ConfigMap may also have a
// kubeconfig.
func redactProxyConfigMap(c *corev1.ConfigMap) *corev1.ConfigMap {
	out := &corev1.ConfigMap{ObjectMeta: redactMetadata(&c.ObjectMeta), Data: map[string]string{}}
	for file, text := range c.Data {
		var kept strings.Builder
		for line := range strings.Lines(text) {
			key, _, _ := strings.Cut(strings.TrimSpace(line), ":")
			if slices.Contains(keptProxySettings, key) {
				kept.WriteString(strings.TrimRight(line, "\n") + "\n")
			}
		}
		if kept.Len() > 0 {
			out.Data[file] = kept.String()
		}
	}
	return out
}

func redactWebhookConfiguration(c *admissionv1.ValidatingWebhookConfiguration) *admissionv1.ValidatingWebhookConfiguration {
	out := &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: redactMetadata(&c.ObjectMeta)}
	for i := range c.Webhooks {
		w := &c.Webhooks[i]
		kept := admissionv1.ValidatingWebhook{Name: w.Name, FailurePolicy: w.FailurePolicy, Rules: w.Rules}
		kept.ClientConfig.Service = w.ClientConfig.Service
		if len(w.ClientConfig.CABundle) > 0 {
			kept.ClientConfig.CABundle = []byte(passwordSubstitute)
		}
		out.Webhooks = append(out.Webhooks, kept)
	}
	return out
}

// secretTextPatterns match what looks like a secret in a text of another program.
var secretTextPatterns = []*regexp.Regexp{
	regexp.MustCompile(`(?is)-----BEGIN [A-Z ]*-----.*?(-----END [A-Z ]*-----|$)`),
	// a JSON Web Token, RFC 7519
	regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]*)?`),
	regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=_.-]{8,}`),
	regexp.MustCompile(`(?i)[A-Za-z0-9_-]*(password|passwd|token|secret|api[-_]?key|authorization)[A-Za-z0-9_-]*["']?\s*[=:]\s*\S+`),
	regexp.MustCompile(`://[^/\s@]+@`), // user and password of a URL
}

// redactText removes from a text what looks like a secret.
func redactText(text string) string {
	for _, p := range secretTextPatterns {
		text = p.ReplaceAllString(text, "("+passwordSubstitute+")")
	}
	return text
}
