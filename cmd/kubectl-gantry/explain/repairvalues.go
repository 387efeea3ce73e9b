package explain

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// repairValues are what the commands of a repair name. One that is not known is empty.
type repairValues struct {
	// nodes are those with the fault.
	nodes               []string
	peer, address, pool string
}

// nodesOrPlaceholder returns the nodes as arguments of a command.
func (v *repairValues) nodesOrPlaceholder() string {
	return cmp.Or(strings.Join(v.nodes, " "), "NODE")
}

// nodeText names the node on which a command has to run.
func (v *repairValues) nodeText() string {
	if len(v.nodes) == 0 {
		return "the node in the first line"
	}
	return joinFirstElements(v.nodes, maxListedElements)
}

// suggestRepairByReason returns what to do about nodes, sessions and the programs of Gantry; nil if
// the Reason is about something else.
func (e *Explainer) suggestRepairByReason(reason names.Reason, v *repairValues) []string {
	n := e.gantryNamespace
	switch reason {
	case names.ReasonServiceProxySilent, names.ReasonServiceProxyStarting:
		return []string{"kubectl -n kube-system get pods -o wide -l k8s-app=kube-proxy", "curl -sS http://127.0.0.1:10256/healthz  # on " + v.nodeText()}
	case names.ReasonKubeletSilent:
		return []string{"systemctl status kubelet  # on " + v.nodeText()}
	case names.ReasonSlowAPIServer:
		return []string{"kubectl get --raw '/readyz?verbose'", "kubectl -n kube-system get pods -o wide  # the API server and etcd"}
	case names.ReasonStrayAnswer:
		return []string{"ip address  # on the node in the first line: does an interface have the address?", fmt.Sprintf("kubectl -n %s edit configmap %s  # ipvs.strictARP: true", ProxyConfigMap.Namespace, ProxyConfigMap.Name)}
	case names.ReasonNodeExcluded:
		return []string{fmt.Sprintf("kubectl label node %s %s-", v.nodesOrPlaceholder(), names.LabelExcludeNode)}
	case names.ReasonNodeLeaving:
		return []string{fmt.Sprintf("kubectl annotate node %s %s-  # when the node is ready again", v.nodesOrPlaceholder(), names.AnnotationDrainNode)}
	case names.ReasonNodeNetworkUnavailable:
		return []string{fmt.Sprintf("kubectl describe node %s  # condition NetworkUnavailable", v.nodesOrPlaceholder())}
	case names.ReasonNoLinks, names.ReasonLinkDown, names.ReasonLinkSilent, names.ReasonNoAddressFamily:
		return []string{fmt.Sprintf("kubectl -n %s get speakerstatus %s -o yaml  # status.links", n, v.nodesOrPlaceholder()), fmt.Sprintf("kubectl -n %s edit l2advertisements  # spec.interfaces", n)}
	case names.ReasonRawSocketDenied:
		return []string{fmt.Sprintf("kubectl -n %s edit daemonset gantry-speaker  # securityContext.capabilities.add: [NET_RAW]", n)}
	case names.ReasonNoSpeaker, names.ReasonNotAnnounced, names.ReasonServiceProxyNotReady:
		return []string{fmt.Sprintf("kubectl -n %s get pods -o wide -l %s=%s", n, names.LabelComponent, names.ComponentSpeaker), fmt.Sprintf("kubectl -n %s describe daemonset gantry-speaker", n)}
	case names.ReasonNoController:
		return []string{fmt.Sprintf("kubectl -n %s get pods -l %s=%s", n, names.LabelComponent, names.ComponentController), fmt.Sprintf("kubectl -n %s describe deployment gantry-controller", n)}
	case names.ReasonForeignClaim:
		return []string{fmt.Sprintf("ip neigh show %s  # on a host of the network: who has it?", cmp.Or(v.address, "ADDRESS")), kubectlEdit(n, "IPAddressPool", cmp.Or(v.pool, "POOL"), "spec.gantry.exclude")}
	case names.ReasonGossipKeyDiffers:
		return []string{fmt.Sprintf("kubectl -n %s rollout restart daemonset gantry-speaker  # each reads Secret %s again", n, names.GossipSecret), fmt.Sprintf("kubectl -n %s get daemonset gantry-speaker -o yaml  # --gossip-key-file: the same key on each node?", n)}
	case names.ReasonGossipBlocked:
		return []string{fmt.Sprintf("kubectl -n %s get speakerstatuses  # UNREACHABLE: between which nodes?", n), "nc -vz NODE 7946; nc -vzu NODE 7946  # from the other node, in both directions"}
	case names.ReasonNoPeers:
		return []string{fmt.Sprintf("kubectl -n %s get bgppeers,bgpadvertisements", n)}
	}
	if v.peer != "" {
		return []string{fmt.Sprintf("kubectl -n %s get bgpsessions -o wide", n), fmt.Sprintf("kubectl -n %s edit bgppeer %s", n, v.peer)}
	}
	return nil
}

// suggestAdvertisementOfPool returns how to let an advertisement cover the pool: one that names it,
// or that has a fault, is to be corrected. Otherwise a new one is needed.
func (e *Explainer) suggestAdvertisementOfPool(config *configurationreader.Configuration, pool string) []string {
	kind, name := "L2Advertisement", cmp.Or(pool, "POOL")
	if config != nil {
		edit := func(kind, name, what string) []string {
			return []string{kubectlEdit(e.gantryNamespace, kind, name, what)}
		}
		if lines := suggestEditsOfAdvertisements(e.gantryNamespace, config.Snapshot, pool); len(lines) > 0 {
			return lines
		}
		for _, p := range config.Problems {
			if strings.HasSuffix(p.Object.Kind, "Advertisement") && !p.IsOnlyAdvice() {
				return edit(p.Object.Kind, p.Object.Name, cmp.Or(p.Field, "spec"))
			}
		}
		existing := namesOf(config.Snapshot.L2Advertisements, func(ad *snapshot.L2Advertisement) string { return ad.Name })
		if len(existing) == 0 && len(config.Snapshot.Peers) > 0 {
			kind, existing = "BGPAdvertisement", namesOf(config.Snapshot.BGPAdvertisements, func(ad *snapshot.BGPAdvertisement) string { return ad.Name })
		}
		if slices.Contains(existing, name) {
			return edit(kind, name, "add the pool to spec.ipAddressPools")
		}
	}
	return kubectlApplyLines("v1beta1", kind, e.gantryNamespace, name, fmt.Sprintf("ipAddressPools: [%s]", name))
}

// maxSuggestedEdits bounds how many objects a repair names.
const maxSuggestedEdits = 4

// suggestEditsOfAdvertisements returns the commands that edit the advertisements that select the
// pool.
func suggestEditsOfAdvertisements(namespace string, s *snapshot.Snapshot, pool string) []string {
	var out []string
	for _, ad := range advertisementsOfPool(s, pool) {
		what := "its selectors"
		if ad.Kind == "BGPAdvertisement" {
			what += ", and spec.peers"
		}
		out = append(out, kubectlEdit(namespace, ad.Kind, ad.Name, what))
	}
	return out[:min(len(out), maxSuggestedEdits)]
}

// suggestRepairOfTarget returns the commands that change the object of a cause; nil if it has none.
func (e *Explainer) suggestRepairOfTarget(t *repairTarget) []string {
	n := e.gantryNamespace
	switch {
	case t.remedy == remedyAllowPods:
		return []string{fmt.Sprintf("kubectl label namespace %s --overwrite %s=privileged", n, labelPodSecurity)}
	case t.remedy == remedyApplyRBAC:
		return []string{"kubectl apply -f config/rbac  # or helm upgrade, as Gantry was installed"}
	case t.remedy == remedyEnableBGP:
		return []string{fmt.Sprintf("kubectl -n %s edit deployment gantry-controller  # --bgp", n), fmt.Sprintf("kubectl -n %s edit daemonset gantry-speaker  # --bgp", n)}
	case t.remedy == remedyUninstall:
		return []string{
			fmt.Sprintf("kubectl -n %s get %s %s -o yaml  # which product is it, and how was it installed?", t.key.Namespace, strings.ToLower(t.kind), t.key.Name),
			"kubectl get deployments,daemonsets -A  # the rest of the product",
		}
	case t.kind == "ValidatingWebhookConfiguration":
		return []string{fmt.Sprintf("kubectl -n %s get pods,endpointslices", n), fmt.Sprintf("kubectl delete validatingwebhookconfiguration %s  # only if nothing uses it any more", t.key.Name)}
	case t.kind != "":
		return []string{kubectlEdit(t.key.Namespace, t.kind, t.key.Name, cmp.Or(t.field, "spec"))}
	}
	return nil
}

var shellWordPattern = regexp.MustCompile(`^[A-Za-z0-9._,:/=@+-]+$`)

// quoteForShell returns a value as one word of a command.
func quoteForShell(value string) string {
	if shellWordPattern.MatchString(value) {
		return value
	}
	return "'" + strings.ReplaceAll(value, "'", `'\''`) + "'"
}
