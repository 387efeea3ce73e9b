// Package configuration reads the configuration objects for both binaries, and writes the
// ConfigurationState in which each says what is wrong with them. Package snapshot decides what the
// objects mean. The reader may be a cache or the API server itself; nothing here starts a goroutine
// or waits.
package configuration

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// RequiredCRDResources are the resources that must be installed before the configuration can be
// read.
var RequiredCRDResources = []schema.GroupVersionResource{
	v1beta1.GroupVersion.WithResource("ipaddresspools"), v1beta1.GroupVersion.WithResource("l2advertisements"),
	v1beta1.GroupVersion.WithResource("bgpadvertisements"), v1beta1.GroupVersion.WithResource("bgppeers"),
	v1beta1.GroupVersion.WithResource("bfdprofiles"), v1beta1.GroupVersion.WithResource("communities"),
	v1beta1.GroupVersion.WithResource("configurationstates"), v1beta2.GroupVersion.WithResource("bgppeers"),
}

// passwordSecretKey is the entry with the password in a Secret of type kubernetes.io/basic-auth.
const passwordSecretKey = corev1.BasicAuthPasswordKey

// NewScheme returns a scheme with every kind that the binaries use.
func NewScheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientscheme.AddToScheme, v1beta1.AddToScheme, v1beta2.AddToScheme, v1alpha1.AddToScheme,
	} {
		if err := add(s); err != nil {
			return nil, fmt.Errorf("registering the kinds: %w", err)
		}
	}
	return s, nil
}

// registeredAPIGroups are the API groups of the kinds that the binaries use. clusterScopedKinds are
// their kinds without a namespace.
var (
	registeredAPIGroups = []string{"", "discovery.k8s.io", "events.k8s.io", v1beta1.GroupVersion.Group, v1alpha1.GroupVersion.Group}
	clusterScopedKinds  = map[string]bool{
		"Node": true, "Namespace": true, "PersistentVolume": true, "ComponentStatus": true, "SubjectAccessReview": true, "ValidatingWebhookConfiguration": true,
	}
)

// NewOfflineRESTMapper returns the resources of the kinds in the scheme without asking the API
// server: a speaker must start while that is away.
// moreGroups are API groups beyond those that the binaries use.
func NewOfflineRESTMapper(s *runtime.Scheme, moreGroups ...string) meta.RESTMapper {
	m := meta.NewDefaultRESTMapper(s.PrioritizedVersionsAllGroups())
	for kind := range s.AllKnownTypes() {
		if !slices.Contains(registeredAPIGroups, kind.Group) && !slices.Contains(moreGroups, kind.Group) || strings.HasSuffix(kind.Kind, "List") {
			continue
		}
		scope := meta.RESTScope(meta.RESTScopeNamespace)
		if clusterScopedKinds[kind.Kind] {
			scope = meta.RESTScopeRoot
		}
		plural, singular := meta.UnsafeGuessKindToResource(kind)
		m.AddSpecific(kind, plural, singular, scope)
		m.AddSpecific(kind.GroupVersion().WithKind(kind.Kind+"List"), plural, singular, scope)
	}
	return m
}

// ConfigurationScope says which part of the configuration is read.
type ConfigurationScope struct {
	Namespace string
	// WithoutBGPKinds leaves out the kinds for BGP.
	WithoutBGPKinds bool
	// IgnoreExcludeLabel lets nodes announce that have the label names.LabelExcludeNode.
	IgnoreExcludeLabel bool
}

// WatchedKinds are the kinds whose objects make up the configuration. Secrets are not among them:
// see PasswordSecrets.
func (s ConfigurationScope) WatchedKinds() []client.Object {
	out := []client.Object{&v1beta1.IPAddressPool{}, &v1beta1.L2Advertisement{}}
	if !s.WithoutBGPKinds {
		out = append(out, &v1beta1.BGPAdvertisement{}, &v1beta2.BGPPeer{}, &v1beta1.BFDProfile{}, &v1beta1.Community{})
	}
	return out
}

// SpeakerReportKinds are the kinds in which speakers report what they announce.
func (s ConfigurationScope) SpeakerReportKinds() []client.Object {
	out := []client.Object{&v1beta1.ServiceL2Status{}}
	if !s.WithoutBGPKinds {
		out = append(out, &v1beta1.ServiceBGPStatus{})
	}
	return out
}

// CacheOptionsByObject limits a cache to what ReadObjects reads: one namespace.
func (s ConfigurationScope) CacheOptionsByObject() map[client.Object]cache.ByObject {
	own := map[string]cache.Config{s.Namespace: {}}
	out := map[client.Object]cache.ByObject{}
	for _, k := range s.WatchedKinds() {
		out[k] = cache.ByObject{Namespaces: own}
	}
	return out
}

// ReadObjects reads every configuration object of the scope, except for Secrets, Nodes and
// Namespaces.
func (s ConfigurationScope) ReadObjects(ctx context.Context, c client.Reader) (snapshot.ConfigurationObjects, error) {
	var (
		pools       v1beta1.IPAddressPoolList
		l2Ads       v1beta1.L2AdvertisementList
		bgpAds      v1beta1.BGPAdvertisementList
		peers       v1beta2.BGPPeerList
		profiles    v1beta1.BFDProfileList
		communities v1beta1.CommunityList
	)
	lists := []client.ObjectList{&pools, &l2Ads}
	if !s.WithoutBGPKinds {
		lists = append(lists, &bgpAds, &peers, &profiles, &communities)
	}
	for _, list := range lists {
		if err := c.List(ctx, list, client.InNamespace(s.Namespace)); err != nil {
			return snapshot.ConfigurationObjects{}, fmt.Errorf("reading the configuration: %w", err)
		}
	}
	return snapshot.ConfigurationObjects{
		Namespace: s.Namespace, IgnoreExcludeLabel: s.IgnoreExcludeLabel,
		Pools: pools.Items, L2Advertisements: l2Ads.Items, BGPAdvertisements: bgpAds.Items,
		BGPPeers: peers.Items, BFDProfiles: profiles.Items, Communities: communities.Items,
	}, nil
}

// BasicAuthSecretOf returns what the configuration needs of a Secret; ok is false if the Secret has
// another type.
func BasicAuthSecretOf(s *corev1.Secret) (out snapshot.BasicAuthSecret, ok bool) {
	password, set := s.Data[passwordSecretKey]
	return snapshot.BasicAuthSecret{Name: s.Name, Password: string(password), HasPassword: set}, s.Type == corev1.SecretTypeBasicAuth
}

// ReadNodes reads the labels of all nodes, from their metadata only.
func ReadNodes(ctx context.Context, c client.Reader) ([]snapshot.NodeLabels, error) {
	list, err := readMetadataOfKind(ctx, c, "NodeList")
	var out []snapshot.NodeLabels
	for i := range list.Items {
		out = append(out, snapshot.NodeLabels{Name: list.Items[i].Name, Labels: list.Items[i].Labels})
	}
	return out, err
}

// ReadNamespaces reads the labels of all namespaces, from their metadata only.
func ReadNamespaces(ctx context.Context, c client.Reader) ([]snapshot.NamespaceLabels, error) {
	list, err := readMetadataOfKind(ctx, c, "NamespaceList")
	var out []snapshot.NamespaceLabels
	for i := range list.Items {
		out = append(out, snapshot.NamespaceLabels{Name: list.Items[i].Name, Labels: list.Items[i].Labels})
	}
	return out, err
}

func readMetadataOfKind(ctx context.Context, c client.Reader, kind string) (*metav1.PartialObjectMetadataList, error) {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(kind))
	if err := c.List(ctx, list); err != nil {
		return list, fmt.Errorf("reading the %s: %w", kind, err)
	}
	return list, nil
}

// NewMetadataObject returns an object that stands for the metadata of a core kind in a watch.
func NewMetadataObject(kind string) *metav1.PartialObjectMetadata {
	o := &metav1.PartialObjectMetadata{}
	o.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(kind))
	return o
}
