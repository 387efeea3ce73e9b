// Package migrate looks at a cluster with MetalLB, says what differs with Gantry and which steps
// lead there, and does those steps that restart nothing. It deletes nothing that holds
// configuration.
package migrate

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
)

// ObjectKind is a kind of objects that this package reads or changes.
type ObjectKind struct {
	schema.GroupVersionKind
	// Resource is the plural.
	Resource        string
	isClusterScoped bool
}

// String names the resource as kubectl does, such as "services" or "bgppeers.metallb.io".
func (k ObjectKind) String() string {
	if k.Group == "" {
		return k.Resource
	}
	return k.Resource + "." + k.Group
}

func namespacedKind(gv schema.GroupVersion, kind, resource string) ObjectKind {
	return ObjectKind{gv.WithKind(kind), resource, false}
}

func clusterKind(gv schema.GroupVersion, kind, resource string) ObjectKind {
	return ObjectKind{gv.WithKind(kind), resource, true}
}

// The API groups of other projects.
var (
	coreGroup      = schema.GroupVersion{Version: "v1"}
	appsGroup      = schema.GroupVersion{Group: "apps", Version: "v1"}
	crdGroup       = schema.GroupVersion{Group: "apiextensions.k8s.io", Version: "v1"}
	admissionGroup = schema.GroupVersion{Group: "admissionregistration.k8s.io", Version: "v1"}
	discoveryGroup = schema.GroupVersion{Group: "discovery.k8s.io", Version: "v1"}
	frrK8sGroup    = schema.GroupVersion{Group: "frrk8s." + v1beta1.GroupVersion.Group, Version: "v1beta1"}
	metalLBGroup   = v1beta1.GroupVersion
)

// The kinds that are read.
var (
	deploymentKind     = namespacedKind(appsGroup, "Deployment", "deployments")
	daemonSetKind      = namespacedKind(appsGroup, "DaemonSet", "daemonsets")
	serviceKind        = namespacedKind(coreGroup, "Service", "services")
	secretKind         = namespacedKind(coreGroup, "Secret", "secrets")
	configMapKind      = namespacedKind(coreGroup, "ConfigMap", "configmaps")
	namespaceKind      = clusterKind(coreGroup, "Namespace", "namespaces")
	nodeKind           = clusterKind(coreGroup, "Node", "nodes")
	endpointSliceKind  = namespacedKind(discoveryGroup, "EndpointSlice", "endpointslices")
	crdKind            = clusterKind(crdGroup, "CustomResourceDefinition", "customresourcedefinitions")
	webhookKind        = clusterKind(admissionGroup, "ValidatingWebhookConfiguration", "validatingwebhookconfigurations")
	poolKind           = namespacedKind(metalLBGroup, "IPAddressPool", "ipaddresspools")
	l2AdvKind          = namespacedKind(metalLBGroup, "L2Advertisement", "l2advertisements")
	bgpAdvKind         = namespacedKind(metalLBGroup, "BGPAdvertisement", "bgpadvertisements")
	bfdProfileKind     = namespacedKind(metalLBGroup, "BFDProfile", "bfdprofiles")
	communityKind      = namespacedKind(metalLBGroup, "Community", "communities")
	peerKind           = namespacedKind(v1beta2.GroupVersion, "BGPPeer", "bgppeers")
	oldPoolKind        = namespacedKind(metalLBGroup, "AddressPool", "addresspools")
	operatorKind       = namespacedKind(metalLBGroup, "MetalLB", "metallbs")
	frrConfigKind      = namespacedKind(frrK8sGroup, "FRRConfiguration", "frrconfigurations")
	configurationKinds = []ObjectKind{poolKind, l2AdvKind, bgpAdvKind, peerKind, bfdProfileKind, communityKind}
	allKinds           = append([]ObjectKind{
		deploymentKind, daemonSetKind, serviceKind, secretKind, configMapKind, namespaceKind, nodeKind, endpointSliceKind, crdKind, webhookKind, oldPoolKind, operatorKind, frrConfigKind,
	}, configurationKinds...)
)

// ListQuery limits a list; empty fields limit nothing.
type ListQuery struct {
	Namespace string
	Labels    map[string]string
}

// ClusterAccess reads and changes objects with the rights of the user. The errors are those of the
// API server.
type ClusterAccess interface {
	ListObjects(context.Context, ObjectKind, ListQuery) ([]unstructured.Unstructured, error)
	// PatchObject applies a JSON merge patch.
	PatchObject(ctx context.Context, k ObjectKind, key types.NamespacedName, mergePatch []byte) error
	CreateObject(context.Context, *unstructured.Unstructured) error
	DeleteObject(context.Context, ObjectKind, types.NamespacedName) error
}

// apiAccess is the access to a real cluster.
type apiAccess struct{ apiClient client.Client }

// NewClusterAccess returns the access to the cluster of the configuration. It sends no request.
func NewClusterAccess(config *rest.Config) (ClusterAccess, error) {
	mapper := meta.NewDefaultRESTMapper(nil)
	for _, k := range allKinds {
		scope := meta.RESTScope(meta.RESTScopeNamespace)
		if k.isClusterScoped {
			scope = meta.RESTScopeRoot
		}
		resource := k.GroupVersion().WithResource(k.Resource)
		mapper.AddSpecific(k.GroupVersionKind, resource, resource, scope)
		mapper.AddSpecific(k.GroupVersion().WithKind(k.Kind+"List"), resource, resource, scope)
	}
	c, err := client.New(config, client.Options{Scheme: runtime.NewScheme(), Mapper: mapper})
	if err != nil {
		return nil, fmt.Errorf("connecting to the cluster: %w", err)
	}
	return apiAccess{c}, nil
}

// ListObjects implements ClusterAccess.
func (a apiAccess) ListObjects(ctx context.Context, k ObjectKind, q ListQuery) ([]unstructured.Unstructured, error) {
	var list unstructured.UnstructuredList
	list.SetGroupVersionKind(k.GroupVersion().WithKind(k.Kind + "List"))
	opts := []client.ListOption{client.InNamespace(q.Namespace)}
	if q.Labels != nil {
		opts = append(opts, client.MatchingLabels(q.Labels))
	}
	err := a.apiClient.List(ctx, &list, opts...)
	return list.Items, err
}

// PatchObject implements ClusterAccess.
func (a apiAccess) PatchObject(ctx context.Context, k ObjectKind, key types.NamespacedName, mergePatch []byte) error {
	return a.apiClient.Patch(ctx, newObject(k, key), client.RawPatch(types.MergePatchType, mergePatch), client.FieldOwner(fieldOwner))
}

// CreateObject implements ClusterAccess.
func (a apiAccess) CreateObject(ctx context.Context, o *unstructured.Unstructured) error {
	return a.apiClient.Create(ctx, o, client.FieldOwner(fieldOwner))
}

// DeleteObject implements ClusterAccess.
func (a apiAccess) DeleteObject(ctx context.Context, k ObjectKind, key types.NamespacedName) error {
	return a.apiClient.Delete(ctx, newObject(k, key))
}

// fieldOwner is the name under which the API server records the changes.
const fieldOwner = "kubectl-gantry-migrate"

func newObject(k ObjectKind, key types.NamespacedName) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(k.GroupVersionKind)
	o.SetNamespace(key.Namespace)
	o.SetName(key.Name)
	return o
}
