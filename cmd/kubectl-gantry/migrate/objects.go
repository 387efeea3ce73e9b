package migrate

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/view"
)

// readCRDs reads the CRDs of MetalLB's API.
func (r *findingsReader) readCRDs(ctx context.Context) error {
	items, err := r.listObjects(ctx, crdKind, ListQuery{})
	if err != nil {
		return err
	}
	for i := range items {
		o := &items[i]
		if !strings.HasSuffix(o.GetName(), "."+v1beta1.GroupVersion.Group) {
			continue
		}
		c := CRD{Name: o.GetName(), owner: ownershipOf(o)}
		if strategy, _, _ := unstructured.NestedString(o.Object, "spec", "conversion", "strategy"); strategy == "Webhook" {
			c.ConversionService = serviceOfClientConfig(o.Object, "spec", "conversion", "webhook", "clientConfig")
		}
		r.CRDs = append(r.CRDs, c)
	}
	return nil
}

// serviceOfClientConfig returns the Service of a webhook's client configuration.
func serviceOfClientConfig(o map[string]any, path ...string) types.NamespacedName {
	name, _, _ := unstructured.NestedString(o, append(slices.Clone(path), "service", "name")...)
	namespace, _, _ := unstructured.NestedString(o, append(slices.Clone(path), "service", "namespace")...)
	return types.NamespacedName{Namespace: namespace, Name: name}
}

// readConfiguration reads the objects that configure MetalLB, and those of kinds that Gantry does
// not know.
func (r *findingsReader) readConfiguration(ctx context.Context) error {
	for _, k := range configurationKinds {
		items, err := r.listObjects(ctx, k, ListQuery{Namespace: r.Namespace})
		if err != nil {
			return err
		}
		r.Configuration[k] = items
	}
	oldPools, err := r.listObjects(ctx, oldPoolKind, ListQuery{})
	if err != nil {
		return err
	}
	for i := range oldPools {
		r.OldPools = append(r.OldPools, keyOf(&oldPools[i]).String())
	}
	ofFRRK8s, err := r.listObjects(ctx, frrConfigKind, ListQuery{})
	if err != nil {
		return err
	}
	for i := range ofFRRK8s {
		if key := keyOf(&ofFRRK8s[i]); isWrittenByMetalLB(&ofFRRK8s[i]) {
			r.MetalLBFRRConfigurations = append(r.MetalLBFRRConfigurations, key)
		} else {
			r.FRRConfigurations = append(r.FRRConfigurations, key)
		}
	}
	if r.namespaces, err = r.listObjects(ctx, namespaceKind, ListQuery{}); err != nil {
		return err
	}
	r.nodes, err = r.listObjects(ctx, nodeKind, ListQuery{})
	return err
}

// isWrittenByMetalLB reports whether a speaker of MetalLB wrote an FRRConfiguration: it names it
// after the node, and selects this node by its host name.
func isWrittenByMetalLB(o *unstructured.Unstructured) bool {
	node, _, _ := unstructured.NestedString(o.Object, "spec", "nodeSelector", "matchLabels", corev1.LabelHostname)
	return o.GetName() == metalLBName+"-"+node
}

func keyOf(o *unstructured.Unstructured) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// readWebhooks reads the webhooks of other programs for configuration objects.
func (r *findingsReader) readWebhooks(ctx context.Context) error {
	items, err := r.listObjects(ctx, webhookKind, ListQuery{})
	if err != nil {
		return err
	}
	for i := range items {
		o := &items[i]
		webhooks, _, _ := unstructured.NestedSlice(o.Object, "webhooks")
		if slices.ContainsFunc(webhooks, isFRRK8sWebhook) {
			r.FRRK8sWebhooks = append(r.FRRK8sWebhooks, o.GetName())
		}
		at := slices.IndexFunc(webhooks, isMetalLBWebhook)
		if at < 0 {
			continue
		}
		w := Webhook{Name: o.GetName(), Service: serviceOfClientConfig(webhooks[at].(map[string]any), "clientConfig")}
		if w.HasEndpoint, err = r.hasEndpoint(ctx, w.Service); err != nil {
			return err
		}
		r.Webhooks = append(r.Webhooks, w)
	}
	return nil
}

// metalLBWebhookService is the Service of MetalLB's webhooks.
const metalLBWebhookService = "metallb-webhook-service"

// isMetalLBWebhook reports whether a webhook is MetalLB's. Those of Gantry and of policy engines
// have other Services.
func isMetalLBWebhook(w any) bool {
	m, isMap := w.(map[string]any)
	if !isMap {
		return false
	}
	s := serviceOfClientConfig(m, "clientConfig").Name
	return s == metalLBWebhookService || s == "webhook-service" && strings.HasSuffix(nameOf(m), "."+v1beta1.GroupVersion.Group)
}

// isFRRK8sWebhook reports whether a webhook is that of FRR-K8s.
func isFRRK8sWebhook(w any) bool {
	m, isMap := w.(map[string]any)
	return isMap && strings.HasSuffix(serviceOfClientConfig(m, "clientConfig").Name, frrK8sName+"-webhook-service")
}

func nameOf(m map[string]any) string {
	name, _, _ := unstructured.NestedString(m, "name")
	return name
}

// hasEndpoint reports whether a Pod answers for a Service. Without the right to know it does, so
// that nothing is deleted.
func (r *findingsReader) hasEndpoint(ctx context.Context, s types.NamespacedName) (bool, error) {
	endpointSlices, err := r.listObjects(ctx, endpointSliceKind, ListQuery{Namespace: s.Namespace, Labels: map[string]string{"kubernetes.io/service-name": s.Name}})
	if err != nil || slices.Contains(r.MissingRights, missingRightText(endpointSliceKind, s.Namespace)) {
		return true, err
	}
	for i := range endpointSlices {
		endpoints, _, _ := unstructured.NestedSlice(endpointSlices[i].Object, "endpoints")
		for _, e := range endpoints {
			m, _ := e.(map[string]any)
			if isReady, isSet, _ := unstructured.NestedBool(m, "conditions", "ready"); isReady || !isSet {
				return true, nil
			}
		}
	}
	return false, nil
}

// The ConfigMaps with the lists of interfaces on which nothing is announced, and their entry.
const (
	excludeListOfMetalLB = "metallb-excludel2"
	excludeListOfGantry  = "gantry-excludel2"
	excludeListEntry     = "excludel2.yaml"
)

// frrExtras is the ConfigMap with lines that MetalLB adds to the configuration of FRR.
const frrExtras = "bgpextras"

// readConfigMaps reads the lists of both products, and whether there are lines for FRR.
func (r *findingsReader) readConfigMaps(ctx context.Context) error {
	for _, namespace := range slices.Compact([]string{r.Namespace, r.GantryNamespace}) {
		items, err := r.listObjects(ctx, configMapKind, ListQuery{Namespace: namespace})
		if err != nil {
			return err
		}
		for i := range items {
			switch o := &items[i]; {
			case o.GetName() == excludeListOfMetalLB && namespace == r.Namespace:
				r.ExcludeList = parseExcludeList(o)
			case o.GetName() == excludeListOfGantry && namespace == r.GantryNamespace:
				r.OwnExcludeList = parseExcludeList(o)
			case o.GetName() == frrExtras && namespace == r.Namespace:
				r.HasFRRExtras = true
			}
		}
	}
	return nil
}

// parseExcludeList returns the expressions of a list; empty if nothing can be read.
func parseExcludeList(o *unstructured.Unstructured) []string {
	text, _, _ := unstructured.NestedString(o.Object, "data", excludeListEntry)
	var list struct {
		Expressions []string `json:"announcedInterfacesToExclude"`
	}
	if err := yaml.Unmarshal([]byte(text), &list); err != nil || list.Expressions == nil {
		return []string{}
	}
	return list.Expressions
}

// excludeListDefaults are what the releases of MetalLB put into the list: the last one since 0.15.
var excludeListDefaults = []string{
	"^docker.*", "^cbr.*", "^dummy.*", "^virbr.*", "^lxcbr.*", "^veth.*", "^lo$", "^cali.*", "^tunl.*", "^flannel.*", "^kube-ipvs.*", "^cni.*", "^nodelocaldns.*", "^lxc.*",
}

// isExcludeListEdited reports whether the list of MetalLB is none that a release put there.
func (f *Findings) isExcludeListEdited() bool {
	if f.ExcludeList == nil {
		return false
	}
	got, all := slices.Sorted(slices.Values(f.ExcludeList)), slices.Sorted(slices.Values(excludeListDefaults))
	older := slices.Sorted(slices.Values(excludeListDefaults[:len(excludeListDefaults)-1]))
	return !slices.Equal(got, all) && !slices.Equal(got, older)
}

// readServices reads the Services of type LoadBalancer.
func (r *findingsReader) readServices(ctx context.Context) error {
	items, err := r.listObjects(ctx, serviceKind, ListQuery{})
	if err != nil {
		return err
	}
	countByWriter := map[string]int{}
	for i := range items {
		o := &items[i]
		if kind, _, _ := unstructured.NestedString(o.Object, "spec", "type"); kind != "LoadBalancer" {
			continue
		}
		if other, _ := view.OtherStatusWriter(&corev1.Service{ObjectMeta: metav1.ObjectMeta{ManagedFields: o.GetManagedFields()}}); other != nil && other.Manager != metalLBWriter {
			countByWriter[other.Manager]++
		}
		s := LoadBalancerService{Key: types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}, annotations: o.GetAnnotations()}
		s.Class, _, _ = unstructured.NestedString(o.Object, "spec", "loadBalancerClass")
		policy, _, _ := unstructured.NestedString(o.Object, "spec", "externalTrafficPolicy")
		s.isLocal = policy == "Local"
		ingress, _, _ := unstructured.NestedSlice(o.Object, "status", "loadBalancer", "ingress")
		for _, in := range ingress {
			if m, isMap := in.(map[string]any); isMap {
				if ip, _, _ := unstructured.NestedString(m, "ip"); ip != "" {
					s.Addresses = append(s.Addresses, ip)
				}
			}
		}
		r.Services = append(r.Services, s)
	}
	for _, writer := range slices.Sorted(maps.Keys(countByWriter)) {
		r.OtherWriters = append(r.OtherWriters, fmt.Sprintf("%d Services have addresses from another program (%s): they keep them if a pool has them; stop this program before", countByWriter[writer], view.DescribeStatusWriter(writer)))
	}
	return nil
}

// metalLBWriter is the name that the API server records for MetalLB's controller.
const metalLBWriter = "controller"
