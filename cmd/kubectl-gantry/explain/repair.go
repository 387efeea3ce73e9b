package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// reasonsPageURL is where the Reasons are explained.
const reasonsPageURL = "https://github.com/gantry-lb/gantry/blob/main/docs/reasons.md"

// documentationSectionByReason are the sections of the page; a Reason without one is in the first.
var documentationSectionByReason = map[names.Reason]string{}

func init() {
	for section, reasons := range map[string][]names.Reason{
		"a-services-address": {
			names.ReasonNoPools, names.ReasonPoolNotFound, names.ReasonPoolNotAllowed, names.ReasonNoEligiblePool, names.ReasonPoolExhausted, names.ReasonAddressInUse,
			names.ReasonSharingKeyDiffers, names.ReasonPortConflict, names.ReasonTrafficPolicyConflict, names.ReasonQuotaExceeded, names.ReasonServiceLimitReached, names.ReasonAddressReserved, names.ReasonCoolingDown,
			names.ReasonQuarantined, names.ReasonProbing, names.ReasonAddressNotInPool, names.ReasonAddressRetired, names.ReasonInvalidRequest, names.ReasonFamilyMismatch, names.ReasonNoClusterIP, names.ReasonWriteFailed,
		},
		"a-services-announcement": {
			names.ReasonForeignClaim, names.ReasonAddressOutsidePools, names.ReasonNoAdvertisement, names.ReasonNoPeers, names.ReasonNoSession, names.ReasonNoEndpoints,
			names.ReasonNoLocalEndpoints, names.ReasonServiceProxyNotReady, names.ReasonServiceProxySilent, names.ReasonServiceProxyStarting, names.ReasonKubeletSilent, names.ReasonLinkSilent, names.ReasonNodeExcluded, names.ReasonNodeNetworkUnavailable, names.ReasonNodeLeaving, names.ReasonNoSpeaker,
			names.ReasonNoLinks, names.ReasonSharedWithServiceSelector, names.ReasonHolderUnavailable, names.ReasonNotAnnounced, names.ReasonNotLoadBalancer,
		},
		"a-node-and-its-links":          {names.ReasonGossipBlocked, names.ReasonGossipKeyDiffers},
		"what-only-kubectl-gantry-says": {names.ReasonNoController, names.ReasonNotInstalled, names.ReasonPoolElsewhere, names.ReasonUnknownAnnotation, names.ReasonOtherController, names.ReasonWebhookDown, names.ReasonSlowAPIServer, names.ReasonNodeSetting, names.ReasonLinksDiffer, names.ReasonNoConnection},
	} {
		for _, r := range reasons {
			documentationSectionByReason[r] = section
		}
	}
}

// documentationURLOfReason is the place that explains a Reason.
func documentationURLOfReason(r names.Reason) string {
	if section := documentationSectionByReason[r]; section != "" {
		return reasonsPageURL + "#" + section
	}
	return reasonsPageURL
}

// serviceRepair knows what to do about the cause that the diagnosis of a Service found.
type serviceRepair struct{ *serviceDiagnosis }

// suggestRepair returns the commands, or the lines of YAML, that mend the cause.
func (c serviceRepair) suggestRepair(why cause) []string {
	n, service := c.gantryNamespace, "-n "+c.key.Namespace
	if lines := c.suggestRepairOfTarget(&why.target); lines != nil {
		if why.Reason == names.ReasonClusterAddress {
			lines = append(lines, c.suggestRemovingAddressRequest())
		}
		return lines
	}
	switch why.Reason {
	case names.ReasonNoPools, names.ReasonPoolElsewhere:
		return kubectlApplyLines("v1beta1", "IPAddressPool", n, "first-pool", "addresses: [192.0.2.10-192.0.2.99]  # free addresses of your network")
	case names.ReasonPoolNotAllowed, names.ReasonNoEligiblePool:
		if p := findOnlyPoolOfService(c.serviceDiagnosis); p != nil {
			return []string{kubectlEdit(n, "IPAddressPool", p.Name, "spec.serviceAllocation")}
		}
		fallthrough
	case names.ReasonPoolNotFound:
		return []string{fmt.Sprintf("kubectl %s annotate service %s --overwrite %s=%s", service, c.key.Name, names.AnnotationRequestedPool, c.examplePoolName())}
	case names.ReasonUnknownAnnotation:
		if key := findRequestInLabel(c.serviceDiagnosis); key != "" {
			return []string{fmt.Sprintf("kubectl %s annotate service %s %s=%s", service, c.key.Name, key, quoteForShell(c.service.Labels[key])), fmt.Sprintf("kubectl %s label service %s %s-", service, c.key.Name, key)}
		}
		return []string{c.suggestCorrectAnnotation()}
	case names.ReasonPoolExhausted:
		return []string{kubectlEdit(n, "IPAddressPool", c.examplePoolName(), "add a range to spec.addresses")}
	case names.ReasonQuotaExceeded:
		return []string{fmt.Sprintf("kubectl -n %s edit ipaddresspool %s  # spec.gantry.quota", n, c.examplePoolName()), fmt.Sprintf("kubectl %s get services  # delete one that is not needed", service)}
	case names.ReasonServiceLimitReached:
		return []string{fmt.Sprintf("kubectl %s annotate service %s %s-", service, c.key.Name, names.AnnotationAddressesPerFamily), fmt.Sprintf("kubectl -n %s edit ipaddresspool %s  # or raise spec.gantry.maxPerService", n, c.examplePoolName())}
	case names.ReasonAddressReserved:
		return append(c.suggestEditsOfObjectsKeepingAddresses(), c.suggestRemovingAddressRequest())
	case names.ReasonInvalidRequest, names.ReasonAddressInUse, names.ReasonQuarantined, names.ReasonCoolingDown, names.ReasonAddressRetired, names.ReasonFamilyMismatch, names.ReasonAddressNotInPool:
		return []string{c.suggestRemovingAddressRequest()}
	case names.ReasonSharingKeyDiffers:
		return []string{fmt.Sprintf("kubectl %s annotate service %s --overwrite %s=KEY  # the key of the other Service", service, c.key.Name, names.AnnotationSharingKey)}
	case names.ReasonPortConflict, names.ReasonTrafficPolicyConflict, names.ReasonNoEndpoints, names.ReasonNoClusterIP, names.ReasonNotLoadBalancer:
		return c.suggestEditOfService(why.Reason)
	case names.ReasonNoAdvertisement:
		return c.suggestAdvertisementOfPool(c.config, c.view.RecordedPool)
	}
	return c.suggestRepairOfInstallation(why.Reason)
}

// suggestCorrectAnnotation returns the command that replaces a misspelt annotation.
func (c serviceRepair) suggestCorrectAnnotation() string {
	unknown := view.FindUnknownAnnotations(c.service)
	if len(unknown) == 0 {
		return fmt.Sprintf("kubectl -n %s edit service %s  # metadata.annotations", c.key.Namespace, c.key.Name)
	}
	wrong := unknown[0].Key
	if value := c.service.Annotations[wrong]; len(value) > maxShownAnnotationBytes || strings.ContainsFunc(value, unicode.IsControl) {
		return fmt.Sprintf("kubectl -n %s edit service %s  # metadata.annotations: rename %s to %s", c.key.Namespace, c.key.Name, wrong, unknown[0].NearestKnownKey)
	}
	return fmt.Sprintf("kubectl -n %s annotate service %s --overwrite %s- %s=%s", c.key.Namespace, c.key.Name, wrong, unknown[0].NearestKnownKey, quoteForShell(c.service.Annotations[wrong]))
}

// suggestEditsOfObjectsKeepingAddresses returns the commands that edit the reservations of the
// requested addresses.
func (c serviceRepair) suggestEditsOfObjectsKeepingAddresses() []string {
	if c.config == nil {
		return nil
	}
	var out []string
	for _, r := range c.config.Snapshot.Reservations {
		isRequested := func(a netip.Addr) bool { return slices.Contains(c.view.RequestedAddresses, a) }
		if slices.ContainsFunc(slices.Concat(r.Addresses, r.StatusAddresses), isRequested) {
			out = append(out, kubectlEdit(c.gantryNamespace, "AddressReservation", r.Name, "spec.service"))
		}
	}
	return out[:min(len(out), maxSuggestedEdits)]
}

// suggestRemovingAddressRequest returns the command that takes back the request for an address.
func (c serviceRepair) suggestRemovingAddressRequest() string {
	if c.service.Spec.LoadBalancerIP != "" {
		return fmt.Sprintf("kubectl -n %s edit service %s  # spec.loadBalancerIP", c.key.Namespace, c.key.Name)
	}
	if len(c.view.RequestedAddresses) == 0 && len(c.view.AssignedAddresses) == 0 && !hasAnnotation(c.service, names.AnnotationLoadBalancerIPs, names.AnnotationLoadBalancerIPsOld) {
		return fmt.Sprintf("kubectl -n %s edit service %s  # the annotation or the field in the first line", c.key.Namespace, c.key.Name)
	}
	if len(c.view.RequestedAddresses) == 0 && len(c.view.AssignedAddresses) > 0 {
		return fmt.Sprintf("kubectl -n %s annotate service %s %s=%s  # it gets another one first", c.key.Namespace, c.key.Name, names.AnnotationAddressesToExchange, view.JoinAddresses(c.view.AssignedAddresses))
	}
	return fmt.Sprintf("kubectl -n %s annotate service %s %s-  # or ask for another address", c.key.Namespace, c.key.Name, names.AnnotationLoadBalancerIPs)
}

// suggestEditOfService returns what to edit in the Service itself.
func (c serviceRepair) suggestEditOfService(r names.Reason) []string {
	edit := fmt.Sprintf("kubectl -n %s edit service %s", c.key.Namespace, c.key.Name)
	if r == names.ReasonNoEndpoints && len(c.service.Spec.Selector) == 0 {
		return []string{fmt.Sprintf("kubectl -n %s get endpointslices --show-labels  # which has the label %s=%s, and which ports?", c.key.Namespace, discoveryv1.LabelServiceName, c.key.Name)}
	}
	if r == names.ReasonNoEndpoints {
		return []string{fmt.Sprintf("kubectl -n %s get pods -l %s  # are there any, and are they ready?", c.key.Namespace, podSelectorText(c.service)), edit + "  # spec.selector"}
	}
	return []string{edit}
}

// suggestRepairOfInstallation returns what to do about nodes, sessions, faulty objects and the
// programs of Gantry.
func (c serviceRepair) suggestRepairOfInstallation(reason names.Reason) []string {
	if reason == names.ReasonOtherController {
		return []string{"kubectl get deployments,daemonsets -A  # which of them serves Services of type LoadBalancer?", fmt.Sprintf("kubectl -n %s get service %s -o yaml --show-managed-fields  # who writes status.loadBalancer?", c.key.Namespace, c.key.Name)}
	}
	if commands := suggestRepairOfServiceByReason(c.serviceDiagnosis, reason); len(commands) > 0 {
		return commands
	}
	if lines := c.suggestRepairByReason(reason, c.repairValuesOfReason(reason)); lines != nil {
		return lines
	}
	return []string{fmt.Sprintf("kubectl -n %s describe service %s", c.key.Namespace, c.key.Name)}
}

// suggestRepairOfServiceByReason returns what to edit in the Service or in its pools; none if the
// Reason is about something else.
func suggestRepairOfServiceByReason(c *serviceDiagnosis, reason names.Reason) []string {
	service := fmt.Sprintf("-n %s edit service %s", c.key.Namespace, c.key.Name)
	switch reason {
	case names.ReasonNoLocalEndpoints:
		return []string{"kubectl " + service + "  # spec.externalTrafficPolicy: Cluster", fmt.Sprintf("kubectl -n %s get endpointslices -l %s=%s -o yaml  # nodeName: on which nodes are they?", c.key.Namespace, discoveryv1.LabelServiceName, c.key.Name)}
	case names.ReasonHolderUnavailable:
		return []string{fmt.Sprintf("kubectl -n %s annotate service %s --overwrite %s=%s", c.key.Namespace, c.key.Name, names.AnnotationRequestedHolder, exampleHolder(c))}
	case names.ReasonAddressOutsidePools:
		return []string{fmt.Sprintf("kubectl -n %s edit ipaddresspools  # add %s to spec.addresses of one", c.gantryNamespace, view.JoinAddresses(c.view.AssignedAddresses))}
	}
	return nil
}

// hasAnnotation reports whether the Service has one of the annotations.
func hasAnnotation(s *corev1.Service, keys ...string) bool {
	return slices.ContainsFunc(keys, func(k string) bool { return s.Annotations[k] != "" })
}

// repairValuesOfReason returns the nodes and the peer that have the fault, and the address.
func (c serviceRepair) repairValuesOfReason(r names.Reason) *repairValues {
	v := &repairValues{pool: c.view.RecordedPool}
	if len(c.view.AssignedAddresses) > 0 {
		v.address = c.view.AssignedAddresses[0].String()
	}
	if c.announcementFinding == nil {
		return v
	}
	if len(c.announcementFinding.MissingAddresses) > 0 {
		v.address = c.announcementFinding.MissingAddresses[0].String()
	}
	for _, of := range c.nodesOfAddresses {
		for i := range of.nodes {
			n := &of.nodes[i]
			s := c.installation.speakerStatusByNode[n.Node]
			isUnfit := s != nil && slices.ContainsFunc(s.Conditions, func(f metav1.Condition) bool { return f.Status == metav1.ConditionFalse && f.Reason == string(r) })
			if (n.Fault().Reason == r || n.Layer2Fault.Reason == r || isUnfit) && !slices.Contains(v.nodes, n.Node) {
				v.nodes = append(v.nodes, n.Node)
			}
		}
	}
	v.peer = c.peerWithFault(r)
	return v
}

// peerWithFault returns the peer of the first session with the fault of the Reason, or else with
// any fault; "" if all sessions are well.
func (c serviceRepair) peerWithFault(r names.Reason) string {
	other := ""
	for _, f := range c.announcementFinding.Sessions {
		s := c.sessionOfNodeAndPeer(f.Node, f.Peer)
		if f.Fault.Reason == r || s != nil && faultOfSession(s).Reason == r {
			return f.Peer
		}
		if f.Fault.IsSet() {
			other = cmp.Or(other, f.Peer)
		}
	}
	return other
}

// examplePoolName names a pool for an example.
func (c serviceRepair) examplePoolName() string {
	if c.config != nil {
		var known []string
		for _, p := range c.config.Snapshot.Pools {
			known = append(known, p.Name)
			if p.Name == c.view.RequestedPool {
				return p.Name
			}
		}
		if near := findSimilarNames(c.view.RequestedPool, known); len(near) > 0 {
			return near[0]
		}
		if len(known) == 1 {
			return known[0]
		}
		if open := namesOfPoolsToUse(c.serviceDiagnosis); len(open) > 0 {
			return open[0]
		}
		for _, p := range c.config.Snapshot.Pools {
			if p.ServiceAllocation == nil { // a Service that names it gets its addresses
				return p.Name
			}
		}
	}
	return "POOL"
}

// exampleHolder names a node for an example: the one that was probably meant.
func exampleHolder(c *serviceDiagnosis) string {
	if c.config != nil {
		known := namesOf(c.config.Nodes, func(n snapshot.NodeLabels) string { return n.Name })
		if near := findSimilarNames(c.view.RequestedHolder, known); len(near) > 0 && !slices.Contains(known, c.view.RequestedHolder) {
			return near[0]
		}
	}
	return "NODE"
}

// kubectlEdit returns the command that edits an object of the configuration, and says what in it.
func kubectlEdit(namespace, kind, name, what string) string {
	return fmt.Sprintf("kubectl -n %s edit %s %s  # %s", namespace, strings.ToLower(kind), name, what)
}

// kubectlApplyLines returns the lines of a manifest of a metallb.io kind.
func kubectlApplyLines(version, kind, namespace, name, spec string) []string {
	text := fmt.Sprintf("apiVersion: metallb.io/%s\nkind: %s\nmetadata: {name: %s, namespace: %s}\nspec:\n  %s", version, kind, name, namespace, spec)
	return append([]string{"kubectl apply -f - <<EOF"}, append(strings.Split(text, "\n"), "EOF")...)
}
