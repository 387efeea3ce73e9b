package explain

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/internal/configuration"
)

// workloadListRequests are the kinds of the workloads of Gantry.
func (e *Explainer) workloadListRequests() []objects.ListRequest {
	return []objects.ListRequest{
		{List: &appsv1.DeploymentList{}, Namespace: e.gantryNamespace},
		{List: &appsv1.DaemonSetList{}, Namespace: e.gantryNamespace},
		{List: &coordinationv1.LeaseList{}, Namespace: e.gantryNamespace},
	}
}

// installation is what is known of the programs of Gantry.
type installation struct {
	controllerDeployment *appsv1.Deployment // nil if there is none
	speakerDaemonSet     *appsv1.DaemonSet  // nil if there is none
	leaderLease          *coordinationv1.Lease
	// loadBalancerClass is the class that the controller serves.
	loadBalancerClass string
	// isWithoutBGP is set if the programs read no kinds of BGP.
	isWithoutBGP bool
	// ignoresExcludeLabel is set if nodes with the label names.LabelExcludeNode may announce.
	ignoresExcludeLabel bool
	// controllerFault is why no controller works; empty if one does, or if that is unknown.
	controllerFault cause
	// speakerStatusByNode are the states of the speakers by node. Their LastSeen is by the clock of
	// the API server, if that is known.
	speakerStatusByNode map[string]*v1alpha1.SpeakerStatusStatus
}

// leaderLeaseRenewalTimeout is how old the last renewal of the Lease is at least when no controller
// leads. A controller renews it twice a second, and leads no more 6 s after the last renewal. A
// second is the resolution of the API server's clock.
const leaderLeaseRenewalTimeout = 8 * time.Second

// readInstallation reads the workloads of Gantry and the states of its speakers, once.
func (e *Explainer) readInstallation(ctx context.Context) (*installation, error) {
	if e.installation == nil {
		read, err := e.readOwnPrograms(ctx)
		if err != nil {
			return nil, err
		}
		e.installation = read
	}
	return e.installation, nil
}

// readOwnPrograms reads the workloads of Gantry, its Lease, and what its speakers report.
func (e *Explainer) readOwnPrograms(ctx context.Context) (*installation, error) {
	out := &installation{speakerStatusByNode: map[string]*v1alpha1.SpeakerStatusStatus{}}
	var deployments appsv1.DeploymentList
	var daemonSets appsv1.DaemonSetList
	var leases coordinationv1.LeaseList
	var speakers v1alpha1.SpeakerStatusList
	for _, list := range []client.ObjectList{&deployments, &daemonSets, &leases, &speakers} {
		if err := e.objectReader.List(ctx, list, client.InNamespace(e.gantryNamespace)); err != nil {
			return nil, err
		}
	}
	for i := range deployments.Items {
		if objects.HasComponentLabels(deployments.Items[i].Labels, names.ComponentController) {
			out.controllerDeployment = &deployments.Items[i]
		}
	}
	for i := range daemonSets.Items {
		if objects.HasComponentLabels(daemonSets.Items[i].Labels, names.ComponentSpeaker) {
			out.speakerDaemonSet = &daemonSets.Items[i]
		}
	}
	for i := range leases.Items {
		if leases.Items[i].Name == names.LeaderLease {
			out.leaderLease = &leases.Items[i]
		}
	}
	for i := range speakers.Items {
		s := &speakers.Items[i]
		if s.Status.LastSeen != nil {
			s.Status.LastSeen = &metav1.Time{Time: timeOfLastWrite(s, s.Status.LastSeen.Time)}
		}
		out.speakerStatusByNode[s.Name] = &s.Status
	}
	if out.controllerDeployment != nil {
		out.loadBalancerClass = objects.ReadFlagOfPodSpec(&out.controllerDeployment.Spec.Template.Spec, "load-balancer-class")
		out.isWithoutBGP = objects.ReadFlagOfPodSpec(&out.controllerDeployment.Spec.Template.Spec, "bgp") == "disabled"
		out.ignoresExcludeLabel = objects.IsSwitchOfPodSpecOn(&out.controllerDeployment.Spec.Template.Spec, "ignore-exclude-lb")
	}
	if !e.objectReader.LacksRightToListIn("leases.coordination.k8s.io", e.gantryNamespace) && !e.objectReader.LacksRightToListIn("deployments.apps", e.gantryNamespace) {
		out.controllerFault.Explanation = out.explainNoLeadingController(e.now(), e.gantryNamespace)
	}
	if d := out.controllerDeployment; out.controllerFault.IsSet() && d != nil && (d.Spec.Replicas == nil || *d.Spec.Replicas > 0) {
		if f := e.explainWorkloadFailure(ctx, workload{d.Name, names.ComponentController, d.Spec.Template.Spec.ServiceAccountName}); f.text != "" {
			out.controllerFault.Text += ": " + f.text
			out.controllerFault.target.remedy = f.remedy
		}
	}
	return out, nil
}

// timeOfLastWrite returns when an object was last written, by the clock of the API server. The
// clock of the writer may be wrong: what the writer says counts only if the API server has recorded
// no time.
func timeOfLastWrite(o client.Object, saysWriter time.Time) time.Time {
	var newest time.Time
	for _, f := range o.GetManagedFields() {
		if f.Time != nil && f.Time.After(newest) {
			newest = f.Time.Time
		}
	}
	if newest.IsZero() {
		return saysWriter
	}
	return newest
}

// configurationScope is the part of the configuration that Gantry reads.
func (e *Explainer) configurationScope() configuration.ConfigurationScope {
	s := configuration.ConfigurationScope{Namespace: e.gantryNamespace}
	if e.installation != nil {
		s.WithoutBGPKinds, s.IgnoreExcludeLabel = e.installation.isWithoutBGP, e.installation.ignoresExcludeLabel
	}
	return s
}

// explainNoLeadingController says why no controller works.
func (i *installation) explainNoLeadingController(now time.Time, namespace string) names.Explanation {
	var since string
	switch l := i.leaderLease; {
	case l == nil:
		since = "the Lease " + names.LeaderLease + " does not exist"
	case l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity == "":
		since = "nobody holds the Lease " + names.LeaderLease
	case l.Spec.RenewTime != nil && now.Sub(timeOfLastWrite(l, l.Spec.RenewTime.Time)) > leaderLeaseRenewalTimeout:
		since = fmt.Sprintf("the Lease %s was last renewed at %s", names.LeaderLease, timeOfLastWrite(l, l.Spec.RenewTime.Time).UTC().Format(time.TimeOnly))
	default:
		return names.Explanation{}
	}
	if i.controllerDeployment == nil {
		return names.NewExplanation(names.ReasonNoController, "no controller leads: there is no Deployment of the controller in namespace %s, and %s", namespace, since)
	}
	want := int32(1)
	if i.controllerDeployment.Spec.Replicas != nil {
		want = *i.controllerDeployment.Spec.Replicas
	}
	return names.NewExplanation(names.ReasonNoController, "no controller leads: Deployment %s has %d of %d Pods ready, and %s", i.controllerDeployment.Name, i.controllerDeployment.Status.ReadyReplicas, want, since)
}

// explainMissingInstallation says that Gantry is not installed, if so.
func (e *Explainer) explainMissingInstallation(ctx context.Context) names.Explanation {
	hasMetalLBKinds := !e.objectReader.IsKindAbsent(&v1beta1.IPAddressPoolList{})
	hasOwnKinds := !e.objectReader.IsKindAbsent(&v1alpha1.SpeakerStatusList{})
	switch {
	case !hasMetalLBKinds && !hasOwnKinds:
		return names.NewExplanation(names.ReasonNotInstalled, "Gantry is not installed in this cluster: it knows neither IPAddressPools nor SpeakerStatuses")
	case !hasOwnKinds && runsMetalLB(ctx, e):
		return names.NewExplanation(names.ReasonNotInstalled, "MetalLB runs in this cluster, and not Gantry: this command explains only Gantry")
	case !hasOwnKinds:
		return names.NewExplanation(names.ReasonNotInstalled, "Gantry is not installed in this cluster: its kinds (gantry.dev) are missing, although MetalLB's kinds are there")
	}
	return e.explainInstallationElsewhere(ctx)
}

// explainInstallationElsewhere says that Gantry runs in another namespace, if so. Then nothing of
// it is in this one.
func (e *Explainer) explainInstallationElsewhere(ctx context.Context) names.Explanation {
	i, err := e.readInstallation(ctx)
	if err != nil || i.controllerDeployment != nil || i.speakerDaemonSet != nil || len(i.speakerStatusByNode) > 0 {
		return names.Explanation{}
	}
	everywhere := newSpeakerMetadataList()
	if err := e.objectReader.List(ctx, everywhere); err != nil || len(everywhere.Items) == 0 {
		return names.Explanation{}
	}
	other := everywhere.Items[0].Namespace
	return names.NewExplanation(names.ReasonNotInstalled, "Gantry is not in namespace %s, but in %s: add --gantry-namespace %s", e.gantryNamespace, other, other)
}

// explainMissingSpeakers says why speakers are missing, as far as their DaemonSet and its Pods
// tell.
func (e *Explainer) explainMissingSpeakers(ctx context.Context) workloadFailure {
	d := e.installation.speakerDaemonSet
	if d == nil {
		return workloadFailure{text: "there is no DaemonSet of the speaker"}
	}
	text := fmt.Sprintf("DaemonSet %s covers %d nodes", d.Name, d.Status.DesiredNumberScheduled)
	if d.Status.NumberReady < d.Status.DesiredNumberScheduled {
		text = fmt.Sprintf("DaemonSet %s has %d of %d Pods ready", d.Name, d.Status.NumberReady, d.Status.DesiredNumberScheduled)
	}
	why := e.explainWorkloadFailure(ctx, workload{d.Name, names.ComponentSpeaker, d.Spec.Template.Spec.ServiceAccountName})
	if why.text != "" {
		text += ": " + why.text
	}
	return workloadFailure{text, why.remedy}
}

// findNodeWithMAC is the node that has a link with the Ethernet address; "" if it is none of the
// cluster.
func (i *installation) findNodeWithMAC(mac string) string {
	for _, node := range slices.Sorted(maps.Keys(i.speakerStatusByNode)) {
		if slices.ContainsFunc(i.speakerStatusByNode[node].Links, func(l v1alpha1.SpeakerLink) bool { return l.MAC != "" && l.MAC == mac }) {
			return node
		}
	}
	return ""
}

// countAddressesAnsweredByHost counts the addresses for which the host answers without holding
// them.
func (i *installation) countAddressesAnsweredByHost(mac string) int {
	addresses := map[string]bool{}
	for _, s := range i.speakerStatusByNode {
		if s.WasFoundDead() {
			continue
		}
		for _, f := range s.Conflicts {
			addresses[f.Address] = addresses[f.Address] || f.MAC == mac
		}
	}
	n := 0
	for _, isOfHost := range addresses {
		if isOfHost {
			n++
		}
	}
	return n
}
