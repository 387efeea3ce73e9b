package explain

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/announcedcondition"
	"github.com/gantry-lb/gantry/internal/view"
)

// explainOtherStatusWriter says that another program writes the addresses of the Service. The API
// server records who wrote which field.
func (c *serviceDiagnosis) explainOtherStatusWriter() names.Explanation {
	other, own := view.OtherStatusWriter(c.service)
	if other != nil && own == nil && c.addressCondition == nil && len(c.service.Status.LoadBalancer.Ingress) > 0 && !c.installation.controllerFault.IsSet() {
		return names.NewExplanation(names.ReasonOtherController, "another program (%s) gave it %s at %s, and Gantry has given it nothing: let only one serve it, by spec.loadBalancerClass for example", view.DescribeStatusWriter(other.Manager), describeIngress(c.service), describeTime(other.Time))
	}
	if other = c.findRecentRivalWriter(c.service); other == nil {
		return names.Explanation{}
	}
	return names.NewExplanation(names.ReasonOtherController, "another program writes its addresses too: %s did at %s: let only one serve it, by spec.loadBalancerClass for example", view.DescribeStatusWriter(other.Manager), describeTime(other.Time))
}

// findRecentRivalWriter returns what the API server recorded of another program that writes the
// addresses of a Service of Gantry, nil if none does. One that served the Service before Gantry
// did, or that wrote once, is no fault.
func (e *Explainer) findRecentRivalWriter(s *corev1.Service) *metav1.ManagedFieldsEntry {
	other, own := view.OtherStatusWriter(s)
	if other == nil || own == nil || other.Time.Time.Before(own.Time.Add(-maxRivalWriteInterval)) || e.now().Sub(other.Time.Time) > rivalWriterStoppedTimeout {
		return nil
	}
	return other
}

// explainStatusWriters says that other programs write the addresses of Services of Gantry.
func (o *overview) explainStatusWriters() names.Explanation {
	servicesByWriter := map[string][]string{}
	for i := range o.gantryServices {
		s := &o.gantryServices[i]
		if other := o.findRecentRivalWriter(s); other != nil {
			servicesByWriter[other.Manager] = append(servicesByWriter[other.Manager], s.Namespace+"/"+s.Name)
		}
	}
	if len(servicesByWriter) == 0 {
		return names.Explanation{}
	}
	manager := slices.Min(slices.Collect(maps.Keys(servicesByWriter)))
	return names.NewExplanation(names.ReasonOtherController, "another program (%s) writes the addresses of %s too: let only one serve them, by spec.loadBalancerClass for example", view.DescribeStatusWriter(manager), joinFirstElements(servicesByWriter[manager], maxListedElements))
}

// describeIngress lists the addresses and host names in the status of a Service.
func describeIngress(s *corev1.Service) string {
	var out []string
	for _, in := range s.Status.LoadBalancer.Ingress {
		out = append(out, in.IP+in.Hostname)
	}
	return joinFirstElements(out, maxListedElements)
}

const (
	// maxRivalWriteInterval is how long before Gantry's last write another one counts as a
	// rival's. Gantry answers a rival within seconds.
	maxRivalWriteInterval = time.Minute
	// rivalWriterStoppedTimeout is how long a rival is quiet at least when it has stopped: it
	// writes as often as Gantry does.
	rivalWriterStoppedTimeout = 10 * time.Minute
)

// explainWebhookRefusal says that the API server refuses changes of the configuration, because
// nobody answers a webhook that it has to ask.
func (e *Explainer) explainWebhookRefusal(ctx context.Context) cause {
	var all admissionv1.ValidatingWebhookConfigurationList
	if err := e.objectReader.List(ctx, &all); err != nil {
		return cause{}
	}
	for i := range all.Items {
		for j := range all.Items[i].Webhooks {
			w := &all.Items[i].Webhooks[j]
			service := w.ClientConfig.Service
			if service == nil || w.FailurePolicy != nil && *w.FailurePolicy == admissionv1.Ignore || !slices.ContainsFunc(w.Rules, isWebhookForConfiguration) {
				continue
			}
			if why := e.explainSilentWebhook(ctx, all.Items[i].Name, &w.ClientConfig); why.IsSet() {
				return cause{why, repairTarget{kind: "ValidatingWebhookConfiguration", key: client.ObjectKey{Name: all.Items[i].Name}}}
			}
		}
	}
	return cause{}
}

// isWebhookForConfiguration reports whether the API server asks a webhook about objects of
// MetalLB's or Gantry's API.
func isWebhookForConfiguration(r admissionv1.RuleWithOperations) bool {
	return slices.Contains(r.APIGroups, "*") || slices.Contains(r.APIGroups, v1beta1.GroupVersion.Group) || slices.Contains(r.APIGroups, v1alpha1.GroupVersion.Group)
}

// explainSilentWebhook says why a webhook cannot answer.
func (e *Explainer) explainSilentWebhook(ctx context.Context, configuration string, config *admissionv1.WebhookClientConfig) names.Explanation {
	s := config.Service
	var ofService discoveryv1.EndpointSliceList
	if err := e.objectReader.List(ctx, &ofService, client.InNamespace(s.Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: s.Name}); err != nil || e.objectReader.LacksRightToRead("endpointslices.discovery.k8s.io") {
		return names.Explanation{}
	}
	isReady := func(p discoveryv1.Endpoint) bool { return p.Conditions.Ready == nil || *p.Conditions.Ready }
	switch hasEndpoint := slices.ContainsFunc(ofService.Items, func(o discoveryv1.EndpointSlice) bool { return slices.ContainsFunc(o.Endpoints, isReady) }); {
	case !hasEndpoint:
		return names.NewExplanation(names.ReasonWebhookDown, "the API server refuses changes of the configuration: Service %s/%s of ValidatingWebhookConfiguration %s has no endpoint", s.Namespace, s.Name, configuration)
	case len(config.CABundle) == 0:
		return names.NewExplanation(names.ReasonWebhookDown, "the API server refuses changes of the configuration: ValidatingWebhookConfiguration %s has no caBundle for Service %s/%s: the controller writes it, unless --webhook-mode is disabled", configuration, s.Namespace, s.Name)
	}
	return names.Explanation{}
}

// explainSlowAPIServer says that every answer of the API server took long.
func (e *Explainer) explainSlowAPIServer() names.Explanation {
	if e.fastestAPIAnswerDelay == nil {
		return names.Explanation{}
	}
	fastest := e.fastestAPIAnswerDelay()
	if fastest < minSlowAPIAnswerDelay {
		return names.Explanation{}
	}
	return names.NewExplanation(names.ReasonSlowAPIServer, "the API server is slow: its fastest answer took %.1f s: look at its load and that of etcd", fastest.Seconds())
}

// minSlowAPIAnswerDelay is what the fastest answer of a healthy API server stays below. Kubernetes
// itself aims at a second for 99 percent of the requests about single objects.
const minSlowAPIAnswerDelay = time.Second

// ProxyConfigMap has the configuration of kube-proxy, as kubeadm installs it.
var ProxyConfigMap = client.ObjectKey{Namespace: metav1.NamespaceSystem, Name: "kube-proxy"}

// ParseProxyConfiguration reads the mode of kube-proxy and whether strictARP is set, from the data
// of ProxyConfigMap. The mode is empty if it is not set.
func ParseProxyConfiguration(data map[string]string) (mode string, hasStrictARP bool) {
	for _, text := range data {
		for line := range strings.Lines(text) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			switch value = strings.Trim(value, " \"'"); key {
			case "mode":
				mode = value
			case "strictARP":
				hasStrictARP = value == "true"
			}
		}
	}
	return mode, hasStrictARP
}

// kubeProxyLacksStrictARP reports whether kube-proxy is configured for ipvs without strictARP:
// then the kernel of every node answers for every address.
func (e *Explainer) kubeProxyLacksStrictARP(ctx context.Context) bool {
	var config corev1.ConfigMap
	if err := e.objectReader.Get(ctx, ProxyConfigMap, &config); err != nil {
		return false
	}
	mode, hasStrictARP := ParseProxyConfiguration(config.Data)
	return mode == "ipvs" && !hasStrictARP
}

// explainMissingStrictARP says that kube-proxy lacks strictARP.
func (e *Explainer) explainMissingStrictARP(ctx context.Context) names.Explanation {
	if !e.kubeProxyLacksStrictARP(ctx) {
		return names.Explanation{}
	}
	return names.NewExplanation(names.ReasonStrayAnswer, "kube-proxy runs in mode ipvs without strictARP, so that the kernel of every node answers for every address: set ipvs.strictARP to true in ConfigMap %s, and restart kube-proxy", ProxyConfigMap)
}

// minAddressesOfARPProxy is for how many addresses one host answers that seems to do proxy ARP.
const minAddressesOfARPProxy = 3

// explainForeignAnswer says more about a host that answers for an address of the Service: it may
// be a node, or answer for everything.
func (c *serviceDiagnosis) explainForeignAnswer(ctx context.Context, why names.Explanation) names.Explanation {
	for _, f := range announcedcondition.FindReportedAddressConflicts(c.installation.speakerStatusByNode, c.view.AssignedAddresses) {
		mac := f.MAC
		if node := c.installation.findNodeWithMAC(mac); node != "" {
			if gossip := c.explainGossipFault(node); gossip.IsSet() {
				return names.NewExplanation(gossip.Reason, "%s (%s) answers for it too, and does not hear the other speakers: %s", node, mac, gossip.Text)
			}
			if strict := c.explainMissingStrictARP(ctx); strict.IsSet() {
				return names.NewExplanation(strict.Reason, "%s (%s) answers for it and does not hold it: %s", node, mac, strict.Text)
			}
			return names.NewExplanation(names.ReasonStrayAnswer, "%s (%s) answers for it and does not hold it: look there for the address on an interface, for proxy ARP, and for kube-proxy in mode ipvs without strictARP", node, mac)
		}
		if n := c.installation.countAddressesAnsweredByHost(mac); n >= minAddressesOfARPProxy {
			return names.NewExplanation(names.ReasonForeignClaim, "a host outside of the cluster (%s) answers for %d addresses, as proxy ARP does: turn proxy ARP off there", mac, n)
		}
	}
	return why
}

// lastTimeOfEvent is when an event happened the last time.
func lastTimeOfEvent(o *corev1.Event) *metav1.Time {
	switch {
	case o.Series != nil:
		return &metav1.Time{Time: o.Series.LastObservedTime.Time}
	case !o.LastTimestamp.IsZero():
		return &o.LastTimestamp
	case !o.EventTime.IsZero():
		return &metav1.Time{Time: o.EventTime.Time}
	}
	return &o.CreationTimestamp
}
