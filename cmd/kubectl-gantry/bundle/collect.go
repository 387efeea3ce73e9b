package bundle

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
)

// Collection says what to collect, and from where.
type Collection struct {
	API                            objects.APIClient
	GantryNamespace, UserNamespace string
	// RightsOfProgram are the rights that a program of Gantry needs, by the value of the label
	// app.kubernetes.io/component.
	RightsOfProgram func(component string) []authorizationv1.ResourceAttributes
	// FetchRoutePage fetches the page with the routes of a speaker; nil if none is wanted.
	FetchRoutePage func(ctx context.Context, pod string) ([]byte, error)
	// Now is the time of the API server, known after the first reading.
	Now func() time.Time
	// FastestAPIAnswerDelay is how long the fastest answer of the API server took.
	FastestAPIAnswerDelay func() time.Duration
}

// secretsResource is the one resource of which a Bundle has no objects.
const secretsResource = "secrets"

// maxParallelRequests bounds how many requests are open at once.
const maxParallelRequests = 8

// scope says in which namespaces a kind is read.
type scope string

const (
	everywhere        scope = "everywhere" // or in two namespaces, if the user may not do that
	inGantryNamespace scope = "in the namespace of Gantry"
	inSystemNamespace scope = "in kube-system"
	inCluster         scope = "without a namespace"
)

// collectedKind is a kind of which a Bundle has objects.
type collectedKind struct {
	newList func() client.ObjectList
	scope   scope
	options []client.ListOption
	// name is that of the only ConfigMap that is read; empty for another kind.
	name string
	// isWanted selects objects; nil for all.
	isWanted func(client.Object) bool
}

// collectedKinds are all kinds of which kubectl gantry reads objects, without Secrets.
func collectedKinds() []collectedKind {
	return []collectedKind{
		{newList: func() client.ObjectList { return &v1beta1.IPAddressPoolList{} }, scope: everywhere},
		{newList: func() client.ObjectList { return &v1beta1.L2AdvertisementList{} }, scope: everywhere},
		{newList: func() client.ObjectList { return &v1beta1.BGPAdvertisementList{} }, scope: everywhere},
		{newList: func() client.ObjectList { return &v1beta2.BGPPeerList{} }, scope: everywhere},
		{newList: func() client.ObjectList { return &v1beta1.BFDProfileList{} }, scope: everywhere},
		{newList: func() client.ObjectList { return &v1beta1.CommunityList{} }, scope: everywhere},
		{newList: func() client.ObjectList { return &v1beta1.ConfigurationStateList{} }, scope: everywhere},
		{newList: func() client.ObjectList { return &v1beta1.ServiceL2StatusList{} }, scope: everywhere},
		{newList: func() client.ObjectList { return &v1beta1.ServiceBGPStatusList{} }, scope: everywhere},
		{newList: func() client.ObjectList { return &v1alpha1.AddressReservationList{} }, scope: everywhere},
		{newList: func() client.ObjectList { return &v1alpha1.AddressLedgerList{} }, scope: everywhere},
		{newList: func() client.ObjectList { return &v1alpha1.SpeakerStatusList{} }, scope: everywhere},
		{newList: func() client.ObjectList { return &v1alpha1.BGPSessionList{} }, scope: everywhere},
		{newList: func() client.ObjectList { return &corev1.ServiceList{} }, scope: everywhere},
		{newList: func() client.ObjectList { return &discoveryv1.EndpointSliceList{} }, scope: everywhere},
		{newList: func() client.ObjectList { return &corev1.NodeList{} }, scope: inCluster},
		{newList: func() client.ObjectList { return &corev1.NamespaceList{} }, scope: inCluster},
		{newList: func() client.ObjectList { return &admissionv1.ValidatingWebhookConfigurationList{} }, scope: inCluster},
		{newList: func() client.ObjectList { return &appsv1.DeploymentList{} }, scope: everywhere, isWanted: isNetworkProgram},
		{newList: func() client.ObjectList { return &appsv1.DaemonSetList{} }, scope: everywhere, isWanted: isNetworkProgram},
		{newList: func() client.ObjectList { return &corev1.PodList{} }, scope: inGantryNamespace, options: []client.ListOption{client.MatchingLabels{names.LabelAppName: names.AppName}}},
		{newList: func() client.ObjectList { return &coordinationv1.LeaseList{} }, scope: inGantryNamespace, isWanted: func(o client.Object) bool { return o.GetName() == names.LeaderLease }},
		{newList: func() client.ObjectList { return &corev1.EventList{} }, scope: inGantryNamespace, options: []client.ListOption{client.MatchingFields{"reason": "FailedCreate"}}},
		{newList: func() client.ObjectList { return &corev1.ConfigMapList{} }, scope: inSystemNamespace, name: proxyConfigMap},
	}
}

// proxyConfigMap has the configuration of kube-proxy, as kubeadm installs it.
const proxyConfigMap = "kube-proxy"

// networkPrograms are parts of the names and labels of programs that serve Services of type
// LoadBalancer, or carry their traffic.
var networkPrograms = []string{names.AppName, "metallb", "kube-vip", "cilium", "servicelb", "svclb", "purelb", "openelb", "kube-proxy", "kube-router", "calico"}

// isNetworkProgram reports whether a workload is one of Gantry or of a program beside it.
func isNetworkProgram(o client.Object) bool {
	return slices.ContainsFunc([]string{o.GetName(), o.GetLabels()["app"], o.GetLabels()[names.LabelAppName], o.GetLabels()["k8s-app"]}, func(text string) bool {
		return slices.ContainsFunc(networkPrograms, func(p string) bool { return strings.Contains(text, p) })
	})
}

// collector fills one Bundle.
type collector struct {
	Collection

	mu     sync.Mutex // guards all that follows
	bundle *Bundle
}

// Collect reads the objects from the API server, and removes what is nobody else's concern. What
// the user may not read is missing. It fails only if the API server answers nothing.
func Collect(ctx context.Context, from Collection) (*Bundle, error) {
	c := &collector{Collection: from, bundle: &Bundle{objectsByResource: map[string][]client.Object{}, routePageByPod: map[string][]byte{}}}
	m := &c.bundle.Manifest
	m.FormatVersion, m.GantryNamespace, m.UserNamespace, m.FailureByPod = formatVersion, from.GantryNamespace, from.UserNamespace, map[string]string{}
	kinds := collectedKinds()
	failures := make([]error, len(kinds))
	workqueue.ParallelizeUntil(ctx, maxParallelRequests, len(kinds), func(i int) { failures[i] = c.readKind(ctx, &kinds[i]) })
	if !slices.Contains(failures, nil) {
		return nil, failures[0]
	}
	c.readPasswordSecrets(ctx)
	c.reviewRights(ctx)
	c.readRoutePages(ctx)
	slices.SortFunc(m.Readings, func(x, y Reading) int { return strings.Compare(x.Resource, y.Resource) })
	m.TakenAt = metav1.Time{Time: from.Now()}
	m.FastestAPIAnswerDelay.Duration = from.FastestAPIAnswerDelay()
	return c.bundle, ctx.Err()
}

// namespacesToTry returns the namespaces of a kind, in steps: the next step is tried if the user
// may not read those of the one before.
func (c *collector) namespacesToTry(s scope) [][]string {
	switch s {
	case inGantryNamespace:
		return [][]string{{c.GantryNamespace}}
	case inSystemNamespace:
		return [][]string{{metav1.NamespaceSystem}}
	case everywhere:
		return [][]string{{""}, slices.Compact([]string{c.GantryNamespace, c.UserNamespace})}
	case inCluster:
	}
	return [][]string{{""}}
}

// readKind reads the objects of one kind, and records how that went. An error is also recorded.
func (c *collector) readKind(ctx context.Context, kind *collectedKind) error {
	resource, err := resourceOf(kind.newList(), c.API.Scheme(), c.API.RESTMapper())
	if err != nil {
		return err
	}
	reading := Reading{Resource: resource}
	var kept []client.Object
	for _, step := range c.namespacesToTry(kind.scope) {
		for _, namespace := range step {
			var found []client.Object
			found, err = c.readObjects(ctx, kind, namespace)
			switch {
			case err == nil:
				reading.Namespaces = append(reading.Namespaces, namespace)
				for _, o := range found {
					kept = append(kept, redactObject(o))
				}
			case apierrors.IsForbidden(err):
				reading.IsForbidden, err = true, nil
			case meta.IsNoMatchError(err) || apierrors.IsNotFound(err):
				reading.IsAbsent, err = true, nil
			default:
				reading.Failure = fmt.Sprintf("reading the %s: %v", resource, err)
			}
		}
		if !reading.IsForbidden || len(reading.Namespaces) > 0 {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bundle.Manifest.Readings = append(c.bundle.Manifest.Readings, reading)
	if len(kept) > 0 {
		c.bundle.objectsByResource[resource] = kept
	}
	return err
}

// readObjects reads the objects of one kind in one namespace, or in all of them.
func (c *collector) readObjects(ctx context.Context, kind *collectedKind, namespace string) ([]client.Object, error) {
	if kind.name != "" {
		o := &corev1.ConfigMap{}
		err := c.API.Get(ctx, client.ObjectKey{Namespace: namespace, Name: kind.name}, o)
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		return []client.Object{o}, err
	}
	list := kind.newList()
	if err := c.API.List(ctx, list, append([]client.ListOption{client.InNamespace(namespace)}, kind.options...)...); err != nil {
		return nil, err
	}
	var out []client.Object
	err := meta.EachListItem(list, func(o runtime.Object) error {
		if object, ok := o.(client.Object); ok && (kind.isWanted == nil || kind.isWanted(object)) {
			out = append(out, object)
		}
		return nil
	})
	return out, err
}

// readPasswordSecrets reads the Secrets that BGPPeers name, and keeps only whether they can be
// used.
func (c *collector) readPasswordSecrets(ctx context.Context) {
	reading := Reading{Resource: secretsResource, Namespaces: []string{c.GantryNamespace}}
	var wanted []string
	for _, o := range c.bundle.objectsByResource["bgppeers."+v1beta2.GroupVersion.Group] {
		peer, ok := o.(*v1beta2.BGPPeer)
		if ok && peer.Namespace == c.GantryNamespace && peer.Spec.PasswordSecret.Name != "" {
			wanted = append(wanted, peer.Spec.PasswordSecret.Name)
		}
	}
	slices.Sort(wanted)
	for _, name := range slices.Compact(wanted) {
		var s corev1.Secret
		switch err := c.API.Get(ctx, client.ObjectKey{Namespace: c.GantryNamespace, Name: name}, &s); {
		case apierrors.IsForbidden(err):
			reading.IsForbidden, reading.Namespaces = true, nil
		case err == nil:
			kept := PasswordSecret{Name: name, Type: string(s.Type)}
			if password, ok := s.Data[corev1.BasicAuthPasswordKey]; ok {
				substitute := substitutePassword(string(password))
				kept.Substitute = &substitute
			}
			c.bundle.Manifest.PasswordSecrets = append(c.bundle.Manifest.PasswordSecrets, kept)
		case !apierrors.IsNotFound(err):
			reading.Failure = fmt.Sprintf("reading Secret %s: %v", name, err)
		}
	}
	c.bundle.Manifest.Readings = append(c.bundle.Manifest.Readings, reading)
}

// reviewRights asks which rights the programs of Gantry lack.
func (c *collector) reviewRights(ctx context.Context) {
	var questions []AccountRight
	ask := func(component, account string) {
		for _, right := range c.RightsOfProgram(component) {
			questions = append(questions, AccountRight{client.ObjectKey{Namespace: c.GantryNamespace, Name: account}, right})
		}
	}
	for _, o := range slices.Concat(c.bundle.objectsByResource["deployments.apps"], c.bundle.objectsByResource["daemonsets.apps"]) {
		if o.GetNamespace() != c.GantryNamespace || o.GetLabels()[names.LabelAppName] != names.AppName {
			continue
		}
		switch o := o.(type) {
		case *appsv1.Deployment:
			ask(o.Labels[names.LabelComponent], o.Spec.Template.Spec.ServiceAccountName)
		case *appsv1.DaemonSet:
			ask(o.Labels[names.LabelComponent], o.Spec.Template.Spec.ServiceAccountName)
		}
	}
	workqueue.ParallelizeUntil(ctx, maxParallelRequests, len(questions), func(i int) {
		q := questions[i]
		review := objects.NewAccessReview(q.Account, q.Right)
		err := c.API.Create(ctx, review)
		c.mu.Lock()
		defer c.mu.Unlock()
		switch {
		case apierrors.IsForbidden(err):
			c.bundle.Manifest.CannotReviewRights = true
		case err == nil && !review.Status.Allowed:
			c.bundle.Manifest.DeniedRights = append(c.bundle.Manifest.DeniedRights, q)
		}
	})
}

// isWithoutBGP reports whether the speakers have no BGP, and no page with routes.
func (c *collector) isWithoutBGP() bool {
	for _, o := range c.bundle.objectsByResource["daemonsets.apps"] {
		d, ok := o.(*appsv1.DaemonSet)
		if !ok || d.Namespace != c.GantryNamespace || d.Labels[names.LabelComponent] != names.ComponentSpeaker {
			continue
		}
		if objects.ReadFlagOfPodSpec(&d.Spec.Template.Spec, "bgp") == "disabled" {
			return true
		}
	}
	return false
}

// readRoutePages asks each speaker for its routes.
func (c *collector) readRoutePages(ctx context.Context) {
	var pods []string
	for _, o := range c.bundle.objectsByResource["pods"] {
		if p, ok := o.(*corev1.Pod); ok && p.Labels[names.LabelComponent] == names.ComponentSpeaker && p.Status.Phase == corev1.PodRunning {
			pods = append(pods, p.Name)
		}
	}
	if c.FetchRoutePage == nil || c.isWithoutBGP() {
		return
	}
	workqueue.ParallelizeUntil(ctx, maxParallelRequests, len(pods), func(i int) {
		page, err := c.FetchRoutePage(ctx, pods[i])
		c.mu.Lock()
		defer c.mu.Unlock()
		if err != nil {
			c.bundle.Manifest.FailureByPod[pods[i]] = redactText(err.Error())
			return
		}
		c.bundle.routePageByPod[pods[i]] = page
	})
}
