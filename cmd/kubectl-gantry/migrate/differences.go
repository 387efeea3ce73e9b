package migrate

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/gantry-lb/gantry/api/names"
)

// difference is a point in which Gantry behaves differently from MetalLB, on purpose.
type difference struct {
	// text is that of docs/differences.md.
	text string
	// matters reports whether it makes a difference for a cluster.
	matters func(*Findings) bool
}

// differences is the list of docs/differences.md, in its order.
func differences() []difference {
	return []difference{
		{"An edit of a pool takes no address from a Service, unless the edit sets `spec.gantry.retire`. If no pool contains the Service's address any more, the Service's condition `gantry.dev/AddressAssigned` says so.",
			(*Findings).hasPools},
		{"If a node fails and then returns, the addresses that it held stay on the nodes that took them over.",
			func(f *Findings) bool { return len(f.Configuration[l2AdvKind]) > 0 }},
		{"A pool accepts single addresses as well as CIDRs and ranges. It rejects a range that starts in one address family and ends in the other.",
			(*Findings).hasEntryOfTwoFamilies},
		{"If an entry of a pool is faulty, or overlaps an older entry, only the faulty or newer entry is disabled. The other entries of the pool work.",
			func(f *Findings) bool { return len(f.reportFaults()) > 0 }},
		{"The webhook accepts a pool that overlaps another pool, with a warning: the newer of the two entries is disabled. So a pool can be split in one commit, in any order. MetalLB's webhook rejects such a pool.",
			func(f *Findings) bool { return len(f.Webhooks) > 0 && len(f.Configuration[poolKind]) > 1 }},
		{"If the `namespaceSelectors` of a pool match no namespace, the pool admits no Service.",
			(*Findings).hasNamespaceSelectorWithoutMatch},
		{"If a router is in another AS, and on no link of the node, its BGPPeer needs `ebgpMultiHop: true`. If the field is missing, the BGPSession object says so. MetalLB's FRR modes need the field too; MetalLB's native mode connects without it.",
			func(f *Findings) bool { return f.BGPMode == bgpModeNative && f.hasPeer(isDirectExternalPeer) }},
		{"A Service gets one address of each family, unless the pool allows more (`spec.gantry.maxPerService`). MetalLB's API has no way to ask for more.",
			func(f *Findings) bool { return len(f.summarizeServices().withSeveralAddresses) > 0 }},
		{"If an address is not available because of a Service in another namespace, the condition and the event do not name that Service.",
			(*Findings).hasServicesInSeveralNamespaces},
		{"Gantry reads the Secret of a BGPPeer by its name, and looks at it again every 30 s. It has no right to list or to watch Secrets. MetalLB watches all Secrets of its namespace, so a new password reaches it at once.",
			func(f *Findings) bool { return f.hasPeer(hasPasswordSecret) }},
		{"The controller runs as two replicas with leader election.", alwaysMatters},
		{"`status.loadBalancer.ingress` has `ipMode: VIP`.", func(f *Findings) bool { return len(f.Services) > 0 }},
		{"The token of a speaker writes only objects of the speaker's own node. Policies of the API server refuse the rest ([security.md](security.md#what-a-node-can-do)).", alwaysMatters},
		{"The metrics of BGP sessions have one more label, `bgppeer`, with the name of the BGPPeer.",
			func(f *Findings) bool { return len(f.Configuration[peerKind]) > 0 }},
		{"The metrics have their names in MetalLB, and the ports that MetalLB had before version 0.16. As in MetalLB since then, they are served by HTTPS, and only to tokens whose user may get `/metrics`. `--metrics-protocol=http` serves them to everybody.", alwaysMatters},
	}
}

func alwaysMatters(*Findings) bool { return true }

// listDifferences returns the texts that matter for the cluster.
func (f *Findings) listDifferences() (out []string) {
	for _, d := range differences() {
		if d.matters(f) {
			out = append(out, d.text)
		}
	}
	return out
}

func (f *Findings) hasPools() bool { return len(f.Configuration[poolKind]) > 0 }

func (f *Findings) hasEntryOfTwoFamilies() bool {
	return slices.ContainsFunc(f.Configuration[poolKind], func(o unstructured.Unstructured) bool {
		entries, _, _ := unstructured.NestedStringSlice(o.Object, "spec", "addresses")
		return slices.ContainsFunc(entries, func(e string) bool {
			first, last, isRange := strings.Cut(e, "-")
			return isRange && strings.Contains(first, ":") != strings.Contains(last, ":")
		})
	})
}

// hasNamespaceSelectorWithoutMatch reports whether a pool is limited to namespaces that do not
// exist.
func (f *Findings) hasNamespaceSelectorWithoutMatch() bool {
	return slices.ContainsFunc(f.Configuration[poolKind], func(o unstructured.Unstructured) bool {
		list, _, _ := unstructured.NestedSlice(o.Object, "spec", "serviceAllocation", "namespaceSelectors")
		return len(list) > 0 && !slices.ContainsFunc(f.namespaces, func(n unstructured.Unstructured) bool {
			return slices.ContainsFunc(list, func(s any) bool { return isSelectorMatch(s, n.GetLabels()) })
		})
	})
}

// isSelectorMatch reports whether a selector in an object matches labels.
func isSelectorMatch(selector any, l map[string]string) bool {
	m, isMap := selector.(map[string]any)
	var parsed metav1.LabelSelector
	if !isMap || runtime.DefaultUnstructuredConverter.FromUnstructured(m, &parsed) != nil {
		return false
	}
	s, err := metav1.LabelSelectorAsSelector(&parsed)
	return err == nil && s.Matches(labels.Set(l))
}

func (f *Findings) hasPeer(has func(unstructured.Unstructured) bool) bool {
	return slices.ContainsFunc(f.Configuration[peerKind], has)
}

// isDirectExternalPeer reports whether a router in another AS has to be on a link.
func isDirectExternalPeer(o unstructured.Unstructured) bool {
	own, _, _ := unstructured.NestedInt64(o.Object, "spec", "myASN")
	other, _, _ := unstructured.NestedInt64(o.Object, "spec", "peerASN")
	dynamic, _, _ := unstructured.NestedString(o.Object, "spec", "dynamicASN")
	isMultiHop, _, _ := unstructured.NestedBool(o.Object, "spec", "ebgpMultiHop")
	return !isMultiHop && dynamic != "internal" && own != other
}

func hasPasswordSecret(o unstructured.Unstructured) bool {
	name, _, _ := unstructured.NestedString(o.Object, "spec", "passwordSecret", "name")
	return name != ""
}

func (f *Findings) hasServicesInSeveralNamespaces() bool {
	return slices.ContainsFunc(f.Services, func(s LoadBalancerService) bool { return s.Key.Namespace != f.Services[0].Key.Namespace })
}

// countOldAnnotations counts the Services with annotations in the older spelling, which both
// products read.
func (f *Findings) countOldAnnotations() (n int) {
	for _, s := range f.Services {
		if slices.ContainsFunc([]string{names.AnnotationRequestedPoolOld, names.AnnotationLoadBalancerIPsOld, names.AnnotationSharingKeyOld}, func(key string) bool { return s.annotations[key] != "" }) {
			n++
		}
	}
	return n
}
