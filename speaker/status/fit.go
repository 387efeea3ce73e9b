package status

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
)

// textByUnfitReason says why a node is unfit, and what to do.
var textByUnfitReason = map[names.Reason]string{
	names.ReasonServiceProxySilent:   "kube-proxy on the node does not answer its health check any more: look at kube-proxy. Other nodes serve the addresses, as far as their kube-proxy answers",
	names.ReasonServiceProxyStarting: "the node has just booted, and kube-proxy on it has not answered its health check yet",
	names.ReasonKubeletSilent:        "the kubelet of the node does not report any more: look at the kubelet. Other nodes serve the addresses",
	names.ReasonLinkSilent:           "no neighbour answers on a link that has carrier: look at the cable, the switch and the VLAN. Other nodes serve the addresses of this link",
}

// buildFitCondition says whether other nodes should serve addresses rather than this one.
func buildFitCondition(in StatusInputs) metav1.Condition {
	reason := in.Plan.NodeUnfitReason
	if reason == "" {
		return metav1.Condition{Type: names.ConditionNodeFit, Status: metav1.ConditionTrue, Reason: string(names.ReasonFit), Message: "nothing speaks against the node as one that serves addresses"}
	}
	return metav1.Condition{Type: names.ConditionNodeFit, Status: metav1.ConditionFalse, Reason: string(reason), Message: textByUnfitReason[reason]}
}
