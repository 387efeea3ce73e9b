package explain

import (
	"context"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/controller/announcedcondition"
	"github.com/gantry-lb/gantry/controller/clusternetwork"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// ClusterState is all that the decisions of the controller about all Services need.
type ClusterState struct {
	explainer *Explainer
	// Configuration has no Secrets that the user may not read: they count as right.
	Configuration *configurationreader.Configuration
	// GantryServices are of type LoadBalancer, and of Gantry's class.
	GantryServices []corev1.Service
	// SpeakerStatusByNode are the states of the speakers by node.
	SpeakerStatusByNode map[string]*v1alpha1.SpeakerStatusStatus
	// Layer2Statuses say which node answers for which address.
	Layer2Statuses []v1beta1.ServiceL2Status
	// Announcements explains by the objects of this state.
	Announcements *announcedcondition.Explainer
}

// ReadClusterState reads the state of the cluster. The Explanation is set if there is no Gantry, or
// if the user may not read what the decisions need: MissingRightsOf then says what.
func ReadClusterState(ctx context.Context, e *Explainer) (*ClusterState, names.Explanation, error) {
	o, absent, err := e.readOverview(ctx, withServices)
	if err != nil || absent.IsSet() {
		return nil, absent, err
	}
	err = e.objectReader.ListAndCacheKinds(ctx, objects.ListRequest{List: &discoveryv1.EndpointSliceList{}}, objects.ListRequest{List: &v1beta1.ServiceBGPStatusList{}, Namespace: e.gantryNamespace})
	if err != nil {
		return nil, names.Explanation{}, err
	}
	if !e.mayListEssentialResources() || e.objectReader.LacksRightToRead("services") {
		return nil, names.Explanation{Text: "you may not read all that decides about addresses and announcements"}, nil
	}
	state, err := newClusterState(ctx, o, nil)
	return state, names.Explanation{}, err
}

// WithEdits returns the state as if the edits were made. Its configuration is that of a controller
// that had the one before: an object that an edit broke keeps its last good state.
func (s *ClusterState) WithEdits(ctx context.Context, edits []objects.ObjectEdit) (*ClusterState, error) {
	edited := *s.explainer
	edited.objectReader, edited.installation, edited.rivals = s.explainer.objectReader.WithEdits(edits), nil, nil
	o, _, err := edited.readOverview(ctx, withServices)
	if err != nil {
		return nil, err
	}
	return newClusterState(ctx, o, s.Configuration.Snapshot)
}

func newClusterState(ctx context.Context, o *overview, previous *snapshot.Snapshot) (*ClusterState, error) {
	e := o.Explainer
	out := &ClusterState{explainer: e, GantryServices: o.gantryServices, SpeakerStatusByNode: o.installation.speakerStatusByNode}
	var err error
	if out.Configuration, err = readConfigurationAfter(ctx, e, previous); err != nil {
		return nil, err
	}
	if out.Announcements, err = e.newAnnouncementExplainer(ctx); err != nil {
		return nil, err
	}
	var reports v1beta1.ServiceL2StatusList
	if err := e.objectReader.List(ctx, &reports, client.InNamespace(e.gantryNamespace)); err != nil {
		return nil, err
	}
	out.Layer2Statuses = reports.Items
	return out, nil
}

// readConfigurationAfter builds the Snapshot as a controller does that had the previous one, with
// the addresses that the cluster itself uses.
func readConfigurationAfter(ctx context.Context, e *Explainer, previous *snapshot.Snapshot) (*configurationreader.Configuration, error) {
	secrets, err := e.listPasswordSecrets(ctx)
	if err != nil {
		return nil, err
	}
	o, err := configurationreader.ReadAllObjects(ctx, e.objectReader, e.configurationScope())
	if err != nil {
		return nil, err
	}
	o.PreviousSnapshot, o.Secrets = previous, append(secrets, e.substituteUnreadableSecrets(&o)...)
	if o.ClusterAddresses, err = readNodeAddresses(ctx, e); err != nil {
		return nil, err
	}
	config := &configurationreader.Configuration{Nodes: o.Nodes}
	config.Snapshot, config.Problems = snapshot.BuildSnapshot(o)
	return config, nil
}

// readNodeAddresses returns the addresses of the nodes and of their Pods.
func readNodeAddresses(ctx context.Context, e *Explainer) ([]snapshot.ClusterAddressRange, error) {
	var nodes corev1.NodeList
	if err := e.objectReader.ListFromServer(ctx, &nodes); err != nil {
		return nil, err
	}
	var out []snapshot.ClusterAddressRange
	for i := range nodes.Items {
		out = append(out, clusternetwork.AddressesAndPodNetworksOfNode(&nodes.Items[i])...)
	}
	return out, nil
}

// NewLedger returns a Ledger with what every Service has, and with what is withheld.
func (s *ClusterState) NewLedger(ctx context.Context) (*allocate.Ledger, error) {
	l := allocate.NewLedger()
	l.UseSnapshot(s.Configuration.Snapshot)
	return l, s.explainer.fillLedger(ctx, l, s.explainer.installation.loadBalancerClass)
}

// ServicesInOrderOfTurn returns the Services in the order in which the controller decides about
// them after an edit: those that it named first, then those with an address, then those that wait.
func (s *ClusterState) ServicesInOrderOfTurn(isEdited func(view.ObjectKey) bool) []view.Service {
	var out []view.Service
	for i := range s.GantryServices {
		out = append(out, view.FromService(&s.GantryServices[i]))
	}
	rank := func(v *view.Service) int {
		switch {
		case isEdited(v.Key):
			return 0
		case len(v.AssignedAddresses) > 0:
			return 1
		}
		return 2
	}
	slices.SortFunc(out, func(x, y view.Service) int {
		if d := rank(&x) - rank(&y); d != 0 {
			return d
		}
		return x.Key.Compare(y.Key)
	})
	return out
}

// MissingRightsOf returns the rights that the user of an Explainer lacked so far.
func MissingRightsOf(e *Explainer) []string {
	var out []string
	for _, m := range e.objectReader.MissingRights() {
		out = append(out, m.String())
	}
	return out
}

// ExpectEndpoints returns the EndpointSlices that Kubernetes would write for Services that are new,
// or that select other Pods, from the Pods that exist.
func (s *ClusterState) ExpectEndpoints(ctx context.Context, services []*corev1.Service) ([]objects.ObjectEdit, error) {
	var out []objects.ObjectEdit
	for _, svc := range services {
		var known discoveryv1.EndpointSliceList
		if err := s.explainer.objectReader.List(ctx, &known, client.InNamespace(svc.Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: svc.Name}); err != nil {
			return nil, err
		}
		for i := range known.Items {
			out = append(out, objects.ObjectEdit{Object: &known.Items[i], IsDeleted: true})
		}
		var pods corev1.PodList
		if err := s.explainer.objectReader.List(ctx, &pods, client.InNamespace(svc.Namespace), client.MatchingLabels(svc.Spec.Selector)); err != nil {
			return nil, err
		}
		for _, family := range svc.Spec.IPFamilies {
			out = append(out, objects.ObjectEdit{Object: newExpectedEndpointSlice(svc, family, pods.Items)})
		}
	}
	return out, nil
}

// newExpectedEndpointSlice has the Pods that are ready, by their addresses of one family.
func newExpectedEndpointSlice(s *corev1.Service, family corev1.IPFamily, pods []corev1.Pod) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressType(family)}
	out.Namespace, out.Name, out.Labels = s.Namespace, s.Name+"-expected-"+string(family), map[string]string{discoveryv1.LabelServiceName: s.Name}
	for i := range pods {
		p := &pods[i]
		isReady := p.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
		isReady = isReady || s.Spec.PublishNotReadyAddresses
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil && a.Is4() == (family == corev1.IPv4Protocol) {
				out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip.IP}, NodeName: &p.Spec.NodeName, Conditions: discoveryv1.EndpointConditions{Ready: &isReady}})
			}
		}
	}
	return out
}
