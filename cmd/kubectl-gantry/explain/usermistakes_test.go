package explain

import (
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// poolSpecEdit gives the pool another spec.
func poolSpecEdit(spec string) manifestEdit {
	return manifestEdit{"spec: {addresses: [192.168.0.201-192.168.0.202]}", "spec: {" + spec + "}"}
}

// l2AdvertisementSpecEdit gives the L2Advertisement another spec.
func l2AdvertisementSpecEdit(spec string) manifestEdit {
	return manifestEdit{"spec: {ipAddressPools: [first-pool]}", "spec: {" + spec + "}"}
}

// bgpAdvertisementSpecEdit adds fields to the spec of the BGPAdvertisement.
func bgpAdvertisementSpecEdit(fields string) manifestEdit {
	const before = "name: routed, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool]"
	return manifestEdit{before + "}", before + ", " + fields + "}"}
}

// unavailableNodesEdits lets no node announce anything, for one reason.
func unavailableNodesEdits(reason names.Reason) []manifestEdit {
	return []manifestEdit{noAnsweringNodeEdit, {"  node: node1\n  held", "  node: node1\n  unavailable: " + string(reason) + "\n  held"}, {"  node: node2\n  last", "  node: node2\n  unavailable: " + string(reason) + "\n  last"}}
}

// layer2FaultEdit gives the first speaker that has no such condition a fault of layer 2.
func layer2FaultEdit(reason names.Reason, message string) manifestEdit {
	return manifestEdit{"usableLinks: [eth0]\n  conditions: [", "usableLinks: []\n  conditions: [{type: gantry.dev/Layer2Usable, status: \"False\", reason: " + string(reason) + ", message: '" + message + "', lastTransitionTime: \"2026-03-01T11:00:00Z\"}, "}
}

// emptyPoolStatusEdit is the status of a pool that may give nothing.
var emptyPoolStatusEdit = manifestEdit{"assignedIPv4: 1, assignedIPv6: 0, availableIPv4: 1", "assignedIPv4: 0, assignedIPv6: 0, availableIPv4: 0"}

// noSelectorEdit is a Service whose EndpointSlices are written by hand.
var noSelectorEdit = manifestEdit{"selector: {app: web}, ", ""}

// secondPoolManifest is another pool with this spec.
func secondPoolManifest(spec string) string {
	return "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: second-pool, namespace: metallb-system}\nspec: {" + spec + "}\n---\n"
}

// sharingServiceManifest is a Service in this namespace that holds 192.168.0.201 with a sharing
// key.
func sharingServiceManifest(namespace string) string {
	return "apiVersion: v1\nkind: Service\nmetadata: {name: first, namespace: " + namespace + ", annotations: {metallb.io/allow-shared-ip: k}}\n" +
		"spec: {type: LoadBalancer, clusterIP: 10.96.0.11, clusterIPs: [10.96.0.11], ports: [{port: 80, protocol: TCP}]}\nstatus: {loadBalancer: {ingress: [{ip: 192.168.0.201}]}}\n---\n"
}

// taintedNodeManifest is a third node, without a speaker.
const taintedNodeManifest = "apiVersion: v1\nkind: Node\nmetadata: {name: node3, labels: {kubernetes.io/hostname: node3}}\nspec: {taints: [{key: node.kubernetes.io/unschedulable, effect: NoSchedule}, {key: dedicated, value: gpu, effect: NoSchedule}]}\n---\n"

// foreignStatusEdit is a Service whose status only another program writes.
func foreignStatusEdit(ingress string) manifestEdit {
	return manifestEdit{"ports: [{port: 80, protocol: TCP}]}\n---", "ports: [{port: 80, protocol: TCP}]}\nstatus: {loadBalancer: {ingress: [" + ingress + "]}}\n---"}
}

// writtenByK3sEdit records k3s as the one who wrote the status.
var writtenByK3sEdit = manifestEdit{"metadata: {name: web, namespace: default,", `metadata: {name: web, namespace: default, managedFields: [{manager: k3s, operation: Update, apiVersion: v1, subresource: status, time: "2026-03-01T11:59:01Z", fieldsType: FieldsV1, fieldsV1: {"f:status": {"f:loadBalancer": {"f:ingress": {}}}}}],`}

func serviceLabelEdit(key, value string) manifestEdit {
	return manifestEdit{"metadata: {name: web, namespace: default,", "metadata: {name: web, namespace: default, labels: {" + key + ": " + value + "},"}
}

// mistakesOfRequests are mistakes of what a Service asks for, and of the pools.
var mistakesOfRequests = []serviceFaultCase{
	{name: "a requested address of another family", edits: undecidedServiceEditsWith(serviceAnnotationEdit(names.AnnotationLoadBalancerIPs, `"2001:db8::1"`)), wantReason: names.ReasonFamilyMismatch, answerContains: "the requested 2001:db8::1 does not match the families of the Service's cluster IPs (10.96.0.10)", wantRepairPart: "annotate service web metallb.io/loadBalancerIPs-"},
	{name: "RequireDualStack and no request", edits: undecidedServiceEditsWith(serviceSpecEdit("ipFamilyPolicy: RequireDualStack")), wantReason: names.ReasonFamilyMismatch, answerContains: "ipFamilyPolicy is RequireDualStack", wantRepairPart: "kubectl -n default edit service web"},
	{name: "no number of addresses", edits: undecidedServiceEditsWith(serviceAnnotationEdit(names.AnnotationAddressesPerFamily, `"0"`)), wantReason: names.ReasonInvalidRequest, answerContains: `annotation gantry.dev/address-count: "0" is no number`, wantRepairPart: "kubectl -n default edit service web"},
	{name: "a prefix as loadBalancerIP", edits: undecidedServiceEditsWith(serviceSpecEdit("loadBalancerIP: 192.168.0.201/32")), wantReason: names.ReasonInvalidRequest, answerContains: `spec.loadBalancerIP: "192.168.0.201/32" is no address`, wantRepairPart: "# spec.loadBalancerIP"},
	{name: "an address of another pool", edits: undecidedServiceEditsWith(serviceAnnotationEdit(names.AnnotationRequestedPool, "first-pool"), serviceSpecEdit("loadBalancerIP: 10.0.0.7")), moreManifests: secondPoolManifest("addresses: [10.0.0.0/24]"), wantReason: names.ReasonInvalidRequest, answerContains: `the requested 10.0.0.7 belongs to pool "second-pool", but the annotation metallb.io/address-pool asks for pool "first-pool"`},
	{name: "the name of a pool in capitals", edits: undecidedServiceEditsWith(serviceAnnotationEdit(names.AnnotationRequestedPool, "First-Pool")), wantReason: names.ReasonPoolNotFound, answerContains: "did you mean first-pool?", wantRepairPart: "metallb.io/address-pool=first-pool"},
	{name: "a request in a label", edits: undecidedServiceEditsWith(serviceLabelEdit(names.AnnotationRequestedPool, "first-pool"), poolSpecEdit("addresses: [192.168.0.201-192.168.0.202], autoAssign: false")), wantReason: names.ReasonUnknownAnnotation, answerContains: "the label metallb.io/address-pool of the Service has no effect: make it an annotation", wantRepairPart: "label service web metallb.io/address-pool-"},
	{name: "a request in a label of a Service that works", edits: []manifestEdit{serviceLabelEdit(names.AnnotationLoadBalancerIPs, "192.168.0.202")}, wantReason: names.ReasonUnknownAnnotation, answerContains: "is announced, but the label metallb.io/loadBalancerIPs of the Service has no effect", wantRepairPart: "annotate service web metallb.io/loadBalancerIPs=192.168.0.202"},
	{name: "a headless Service", edits: []manifestEdit{{"spec: {type: LoadBalancer, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10]", "spec: {type: ClusterIP, clusterIP: None, clusterIPs: [None]"}}, wantReason: names.ReasonNotLoadBalancer, answerContains: "create the Service again: it is headless"},
	{name: "an ExternalName", edits: undecidedServiceEditsWith(manifestEdit{"spec: {type: LoadBalancer, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10]", "spec: {type: ExternalName, externalName: example.com"}), wantReason: names.ReasonNotLoadBalancer, answerContains: "its type is ExternalName"},
	{name: "a misspelt class", edits: undecidedServiceEditsWith(manifestEdit{"command: [/controller]", "command: [/controller, --load-balancer-class=example.com/lan]"}, serviceSpecEdit("loadBalancerClass: example.com/lna")), wantReason: names.ReasonNotLoadBalancer, answerContains: `its loadBalancerClass is "example.com/lna", and Gantry serves only the class "example.com/lan"`},
	{name: "a range that ends before it starts", edits: undecidedServiceEditsWith(poolSpecEdit("addresses: [192.168.0.210-192.168.0.201]"), emptyPoolStatusEdit), wantReason: names.ReasonInvalidAddress, answerContains: `no pool has a free address, and the IPAddressPool first-pool has a fault: spec.addresses[0]: the range "192.168.0.210-192.168.0.201" ends before it starts`, wantRepairPart: "edit ipaddresspool first-pool"},
	{name: "avoidBuggyIPs leaves nothing", edits: undecidedServiceEditsWith(poolSpecEdit("addresses: [192.168.1.0/32, 192.168.1.255/32], avoidBuggyIPs: true"), emptyPoolStatusEdit), wantReason: names.ReasonPoolExhausted, answerContains: "the IPAddressPool first-pool may give none of its IPv4 addresses, because of avoidBuggyIPs", wantRepairPart: "edit ipaddresspool first-pool"},
	{name: "an exclusion leaves nothing", edits: undecidedServiceEditsWith(poolSpecEdit("addresses: [192.168.0.201-192.168.0.202], gantry: {exclude: [192.168.0.0/24]}"), emptyPoolStatusEdit), wantReason: names.ReasonPoolExhausted, answerContains: "because of gantry.exclude"},
	{name: "an address that avoidBuggyIPs leaves out", edits: undecidedServiceEditsWith(poolSpecEdit("addresses: [192.168.0.0/24], avoidBuggyIPs: true"), serviceSpecEdit("loadBalancerIP: 192.168.0.255")), wantReason: names.ReasonAddressNotInPool, answerContains: `pool "first-pool" excludes the requested 192.168.0.255, by gantry.exclude or avoidBuggyIPs`},
	{name: "the last address is reserved", edits: undecidedServiceEditsWith(poolSpecEdit("addresses: [192.168.0.201/32]")), moreManifests: "apiVersion: gantry.dev/v1alpha1\nkind: AddressReservation\nmetadata: {name: kept, namespace: metallb-system}\nspec: {addresses: [192.168.0.201], service: {namespace: shop, name: till}}\n---\n", wantReason: names.ReasonPoolExhausted, answerContains: "AddressReservation kept keeps 192.168.0.201 for Service shop/till"},
	{name: "the last address is in quarantine", edits: undecidedServiceEditsWith(poolSpecEdit("addresses: [192.168.0.202/32]")), moreManifests: withheldAddressLedgerManifest(`reason: Quarantined, by: "02:00:00:00:00:09"`), wantReason: names.ReasonPoolExhausted, answerContains: "192.168.0.202 is withheld until 2026-03-01 13:00:00 UTC (Quarantined)"},
	{name: "two full pools of one priority", edits: undecidedServiceEditsWith(poolSpecEdit("addresses: [192.168.0.201/32], serviceAllocation: {priority: 10}"), manifestEdit{"assignedIPv4: 1, assignedIPv6: 0, availableIPv4: 1", "assignedIPv4: 1, assignedIPv6: 0, availableIPv4: 0"}),
		moreManifests: secondPoolManifest("addresses: ['2001:db8::/120'], serviceAllocation: {priority: 10}") + sharingServiceManifest("shop"), wantReason: names.ReasonPoolExhausted, answerContains: "(first-pool has 1 of 1 IPv4 addresses in use, second-pool has no IPv4 addresses)"},
	{name: "namespaceSelectors of a pool", edits: undecidedServiceEditsWith(poolSpecEdit("addresses: [192.168.0.201-192.168.0.202], serviceAllocation: {namespaceSelectors: [{matchLabels: {team: a}}]}")), wantReason: names.ReasonNoEligiblePool, answerContains: "the serviceAllocation of first-pool does not admit it: its namespaceSelectors (team=a) match no namespace", wantRepairPart: "edit ipaddresspool first-pool  # spec.serviceAllocation"},
	{name: "serviceSelectors of a pool", edits: undecidedServiceEditsWith(poolSpecEdit("addresses: [192.168.0.201-192.168.0.202], serviceAllocation: {serviceSelectors: [{matchLabels: {tier: front}}]}")), wantReason: names.ReasonNoEligiblePool, answerContains: "first-pool does not admit it: it admits only Services with the labels tier=front", wantRepairPart: "# spec.serviceAllocation"},
	{name: "a misspelt namespace of a pool", edits: undecidedServiceEditsWith(poolSpecEdit("addresses: [192.168.0.201-192.168.0.202], serviceAllocation: {namespaces: [defualt]}")), wantReason: names.ReasonNoEligiblePool, answerContains: "it admits only the namespaces defualt, not default", wantRepairPart: "edit ipaddresspool first-pool"},
	{name: "a named pool for another namespace", edits: undecidedServiceEditsWith(serviceAnnotationEdit(names.AnnotationRequestedPool, "first-pool"), poolSpecEdit("addresses: [192.168.0.201-192.168.0.202], serviceAllocation: {namespaces: [shop]}")), wantReason: names.ReasonPoolNotAllowed, answerContains: `pool "first-pool" does not admit this Service`, wantRepairPart: "edit ipaddresspool first-pool"},
	{name: "the pool was deleted under the Service", edits: []manifestEdit{{"metadata: {name: first-pool, namespace", "metadata: {name: second-pool, namespace"}, poolSpecEdit("addresses: [10.0.0.0/24]")}, wantReason: names.ReasonAddressNotInPool, answerContains: "there is no IPAddressPool first-pool with 192.168.0.201 any more", wantRepairPart: "gantry.dev/release-address=192.168.0.201"},
	{name: "the only pool was deleted, and nobody announces", edits: append([]manifestEdit{noAnsweringNodeEdit}, noPoolsEdits...), wantReason: names.ReasonAddressOutsidePools, answerContains: "the address 192.168.0.201 is in no IPAddressPool in namespace metallb-system", wantRepairPart: "edit ipaddresspools  # add 192.168.0.201"},
	{name: "the port of another Service on a shared address", edits: undecidedServiceEditsWith(serviceAnnotationEdit(names.AnnotationSharingKey, "k"), serviceSpecEdit("loadBalancerIP: 192.168.0.201")), moreManifests: sharingServiceManifest("default"), wantReason: names.ReasonPortConflict, answerContains: "the requested 192.168.0.201 is held by Service default/first and cannot be shared: both use TCP/80"},
	{name: "a shared address in a full pool", edits: undecidedServiceEditsWith(poolSpecEdit("addresses: [192.168.0.201/32]"), serviceAnnotationEdit(names.AnnotationSharingKey, "k")), moreManifests: sharingServiceManifest("default"), wantReason: names.ReasonPortConflict, answerContains: "192.168.0.201 is held by Service default/first and cannot be shared: both use TCP/80"},
	{name: "an empty sharing key", edits: undecidedServiceEditsWith(serviceAnnotationEdit(names.AnnotationSharingKey, `""`), serviceSpecEdit("loadBalancerIP: 192.168.0.201")), moreManifests: sharingServiceManifest("shop"), wantReason: names.ReasonAddressInUse, answerContains: "held by Service shop/first and cannot be shared: this Service has no sharing key"},
	{name: "Local and Cluster on a shared address", edits: undecidedServiceEditsWith(serviceAnnotationEdit(names.AnnotationSharingKey, "k"), serviceSpecEdit("externalTrafficPolicy: Local, loadBalancerIP: 192.168.0.201"), manifestEdit{"{port: 80, protocol: TCP}]}", "{port: 81, protocol: TCP}]}"}), moreManifests: sharingServiceManifest("default"), wantReason: names.ReasonTrafficPolicyConflict, answerContains: "one has externalTrafficPolicy Local and the other Cluster"},
	{name: "a quota of one address", edits: undecidedServiceEditsWith(poolSpecEdit("addresses: [192.168.0.201-192.168.0.202], gantry: {quota: {perNamespace: 1}}")), moreManifests: sharingServiceManifest("default"), wantReason: names.ReasonQuotaExceeded, answerContains: "namespace default has reached its quota in the pools open to this Service (first-pool)", wantRepairPart: "edit ipaddresspool first-pool  # spec.gantry.quota"},
	{name: "a host name from a cloud", edits: undecidedServiceEditsWith(foreignStatusEdit("{hostname: x.elb.example.com}")), wantReason: names.ReasonOtherController, answerContains: "its status has x.elb.example.com, which another program wrote", wantRepairPart: "--show-managed-fields"},
	{name: "the load balancer of k3s", edits: undecidedServiceEditsWith(foreignStatusEdit("{ip: 192.168.0.11}"), noAnsweringNodeEdit, writtenByK3sEdit), wantReason: names.ReasonOtherController, answerContains: "another program (k3s, which is ServiceLB of K3s) gave it 192.168.0.11 at 2026-03-01 11:59:01 UTC, and Gantry has given it nothing"},
	{name: "no replica of the controller", edits: undecidedServiceEditsWith(manifestEdit{"11:59:59.000000Z", "11:58:00.000000Z"}, manifestEdit{"spec: {replicas: 2,", "spec: {replicas: 0,"}, manifestEdit{"replicas: 2, readyReplicas: 2", "replicas: 0"}), wantReason: names.ReasonNoController, answerContains: "Deployment gantry-controller has 0 of 0 Pods ready"},
}

// mistakesOfAnnouncements are mistakes of endpoints, advertisements and nodes.
var mistakesOfAnnouncements = []serviceFaultCase{
	{name: "an EndpointSlice without the label", edits: []manifestEdit{noAnsweringNodeEdit, noSelectorEdit, {"labels: {kubernetes.io/service-name: web}}", "labels: {}}"}}, wantReason: names.ReasonNoEndpoints, answerContains: "EndpointSlice web-1 lacks the label kubernetes.io/service-name=web", wantRepairPart: "get endpointslices --show-labels"},
	{name: "an EndpointSlice with a misspelt label", edits: []manifestEdit{noAnsweringNodeEdit, noSelectorEdit, {"labels: {kubernetes.io/service-name: web}}", "labels: {kubernetes.io/service-name: wbe}}"}}, wantReason: names.ReasonNoEndpoints, answerContains: "EndpointSlice web-1 has the label kubernetes.io/service-name=wbe, not web"},
	{name: "an EndpointSlice with another name of the port", edits: []manifestEdit{noSelectorEdit, {`ports: [{name: "", port: 8080`, `ports: [{name: http, port: 8080`}}, wantReason: names.ReasonNoEndpoints, answerContains: `no endpoint serves its port 80: EndpointSlice web-1 has no port with the name "" and the protocol TCP`},
	{name: "an EndpointSlice of another protocol", edits: []manifestEdit{noSelectorEdit, {"port: 8080, protocol: TCP", "port: 8080, protocol: UDP"}}, wantReason: names.ReasonNoEndpoints, answerContains: "EndpointSlice web-1 has no port with the name \"\" and the protocol TCP"},
	{name: "an EndpointSlice without ports", edits: []manifestEdit{noSelectorEdit, {"ports: [{name: \"\", port: 8080, protocol: TCP}]\n", ""}}, wantReason: names.ReasonNoEndpoints, answerContains: "EndpointSlice web-1 has no port"},
	{name: "an EndpointSlice of names", edits: []manifestEdit{noSelectorEdit, {"addressType: IPv4\nendpoints: [{addresses: [10.244.0.5]", "addressType: FQDN\nendpoints: [{addresses: [example.com]"}}, wantReason: names.ReasonNoEndpoints, answerContains: "EndpointSlice web-1 has the addressType FQDN"},
	{name: "an EndpointSlice of another family", edits: []manifestEdit{noAnsweringNodeEdit, noSelectorEdit, {"addressType: IPv4\nendpoints: [{addresses: [10.244.0.5]", "addressType: IPv6\nendpoints: [{addresses: ['fd00::5']"}}, wantReason: names.ReasonNoEndpoints, answerContains: "no endpoint of the Service has an IPv4 address: check spec.ipFamilies and the families of its Pods; the Service has no selector, and its EndpointSlice web-1 (addressType IPv6)"},
	{name: "Local, and endpoints without a node", edits: []manifestEdit{noAnsweringNodeEdit, serviceSpecEdit("externalTrafficPolicy: Local"), noSelectorEdit, {"nodeName: node1, ", ""}}, wantReason: names.ReasonNoLocalEndpoints, answerContains: "the endpoints in EndpointSlice web-1 do not name their nodes", wantRepairPart: "# spec.externalTrafficPolicy: Cluster"},
	{name: "Local, and the holder has no Pod", edits: []manifestEdit{serviceSpecEdit("externalTrafficPolicy: Local"), {"nodeName: node1, conditions", "nodeName: node2, conditions"}}, wantReason: names.ReasonNoLocalEndpoints, answerContains: "node1 answers for it and should not: externalTrafficPolicy is Local, and no endpoint of the Service serves there"},
	{name: "Local, and the node of the Pod is excluded", edits: []manifestEdit{noAnsweringNodeEdit, serviceSpecEdit("externalTrafficPolicy: Local"), {"kubernetes.io/hostname: node1", names.LabelExcludeNode + `: ""`}}, wantReason: names.ReasonNodeExcluded, answerContains: "node1: it has the label " + names.LabelExcludeNode},
	{name: "Local, and a taint keeps the speaker from the node of the Pod", edits: []manifestEdit{noAnsweringNodeEdit, serviceSpecEdit("externalTrafficPolicy: Local"), {"nodeName: node1, conditions", "nodeName: node3, conditions"}}, moreManifests: taintedNodeManifest,
		wantReason: names.ReasonNoSpeaker, answerContains: "node3 has the taint dedicated=gpu:NoSchedule, which DaemonSet gantry-speaker does not tolerate", wantRepairPart: "edit daemonset gantry-speaker  # spec.template.spec.tolerations"},
	{name: "a nodeSelector of the DaemonSet without nodes", edits: []manifestEdit{noAnsweringNodeEdit, {"spec: {template: {spec: {containers: [{name: speaker}]}}}\nstatus: {desiredNumberScheduled: 2, numberReady: 2}", "spec: {template: {spec: {nodeSelector: {role: edge}, containers: [{name: speaker}]}}}\nstatus: {desiredNumberScheduled: 0, numberReady: 0}"}, {"11:59:30Z", "11:40:30Z"}, {"11:59:30Z", "11:40:30Z"}},
		wantReason: names.ReasonNoSpeaker, answerContains: "DaemonSet gantry-speaker has the nodeSelector role=edge, which does not match node1"},
	{name: "every node is drained", edits: unavailableNodesEdits(names.ReasonNodeLeaving), wantReason: names.ReasonNodeLeaving, answerContains: "node1, node2: the node is being drained (annotation gantry.dev/drain)", wantRepairPart: "annotate node node1 node2 gantry.dev/drain-"},
	{name: "no node has a network", edits: unavailableNodesEdits(names.ReasonNodeNetworkUnavailable), wantReason: names.ReasonNodeNetworkUnavailable, answerContains: "node1, node2: its condition NetworkUnavailable is True", wantRepairPart: "kubectl describe node node1 node2"},
	{name: "no raw socket", edits: []manifestEdit{noAnsweringNodeEdit, layer2FaultEdit(names.ReasonRawSocketDenied, "no raw socket: give the container the capability NET_RAW"), layer2FaultEdit(names.ReasonRawSocketDenied, "no raw socket: give the container the capability NET_RAW")}, wantReason: names.ReasonRawSocketDenied, answerContains: "node1, node2: no raw socket", wantRepairPart: "edit daemonset gantry-speaker"},
	{name: "two L2Advertisements with different interfaces", edits: []manifestEdit{noAnsweringNodeEdit, addSpeakerLinkDetailsEdit, addSpeakerLinkDetailsEdit, l2AdvertisementSpecEdit("ipAddressPools: [first-pool], nodeSelectors: [{matchLabels: {kubernetes.io/hostname: node1}}], interfaces: [eth1]")},
		moreManifests: "apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: second, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool], nodeSelectors: [{matchLabels: {kubernetes.io/hostname: node2}}], interfaces: [eth2]}\n---\n",
		wantReason:    names.ReasonNoLinks, answerContains: "node1: the L2Advertisements limit the Service to links with exactly the names eth1, and the usable links are eth0", wantRepairPart: "edit l2advertisements  # spec.interfaces"},
	{name: "serviceSelectors of the L2Advertisement", edits: []manifestEdit{noAnsweringNodeEdit, l2AdvertisementSpecEdit("ipAddressPools: [first-pool], serviceSelectors: [{matchLabels: {tier: front}}]")}, wantReason: names.ReasonNoAdvertisement, answerContains: "192.168.0.201 is not announced: the serviceSelectors of L2Advertisement example do not match the labels of the Service", wantRepairPart: "edit l2advertisement example"},
	{name: "ipAddressPoolSelectors of the L2Advertisement", edits: []manifestEdit{noAnsweringNodeEdit, l2AdvertisementSpecEdit("ipAddressPoolSelectors: [{matchLabels: {zone: a}}]")}, wantReason: names.ReasonNoAdvertisement, answerContains: "the ipAddressPoolSelectors of L2Advertisement example match no IPAddressPool", wantRepairPart: "edit l2advertisement example"},
	{name: "a holder that does not exist", edits: []manifestEdit{serviceAnnotationEdit(names.AnnotationRequestedHolder, "node9")}, wantReason: names.ReasonHolderUnavailable, answerContains: "is announced, but there is no node node9: correct the annotation gantry.dev/holder; did you mean node1 or node2?", wantRepairPart: "gantry.dev/holder=node1"},
	{name: "a holder with a long name", edits: []manifestEdit{serviceAnnotationEdit(names.AnnotationRequestedHolder, strings.Repeat("node1", 50_000))}, wantReason: names.ReasonHolderUnavailable, answerContains: `there is no node "` + strings.Repeat("node1", 20) + `"…: correct the annotation gantry.dev/holder [`},
	{name: "a holder that is excluded", edits: []manifestEdit{serviceAnnotationEdit(names.AnnotationRequestedHolder, "node2"), {"kubernetes.io/hostname: node2", names.LabelExcludeNode + `: ""`}}, wantReason: names.ReasonHolderUnavailable, answerContains: "node2, which the annotation gantry.dev/holder names, cannot hold it: it has the label " + names.LabelExcludeNode},
	{name: "a BGPAdvertisement, and BGP is off", edits: []manifestEdit{noAnsweringNodeEdit, {"command: [/controller]", "command: [/controller, --bgp=disabled]"}, {"kind: L2Advertisement", "kind: BGPAdvertisement"}}, wantReason: names.ReasonNoAdvertisement, answerContains: "BGP is turned off (--bgp=disabled of Deployment gantry-controller), so that BGPAdvertisement example does not count", wantRepairPart: "edit deployment gantry-controller"},
}

// moreBGPMistakes are mistakes of a Service that only a router gets.
var moreBGPMistakes = []serviceFaultCase{
	{name: "one of two peers does not exist", edits: []manifestEdit{bgpAdvertisementSpecEdit("peers: [tor, tro]")}, wantReason: names.ReasonUnknownPeer, answerContains: `the BGPAdvertisement routed has a fault: spec.peers[1]: no BGPPeer "tro" exists`, wantRepairPart: "edit bgpadvertisement routed"},
	{name: "an unknown alias of a community", edits: []manifestEdit{bgpAdvertisementSpecEdit("communities: [no-exprot]")}, wantReason: names.ReasonUnknownCommunity, answerContains: `the BGPAdvertisement routed has a fault: spec.communities[0]: no Community names the alias "no-exprot"`, wantRepairPart: "edit bgpadvertisement routed"},
	{name: "two values of localPref", moreManifests: "apiVersion: metallb.io/v1beta1\nkind: BGPAdvertisement\nmetadata: {name: second, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool], localPref: 200}\n---\n", edits: []manifestEdit{bgpAdvertisementSpecEdit("localPref: 100")}, wantReason: names.ReasonConflictingAdvertisements, answerContains: "spec.localPref"},
	{name: "a VRF that no node has", edits: []manifestEdit{{"peerAddress: 192.168.0.1, node", "peerAddress: 192.168.0.1, vrf: red, node"}, sessionDownEdit(names.ReasonSourceUnavailable, "the node has no VRF red"), {"peers: [tor]", "peers: []"}}, wantReason: names.ReasonNoSession, answerContains: "tor on node1: the node has no VRF red (SourceUnavailable)", wantRepairPart: "edit bgppeer tor"},
	{name: "the advertisement and the peer have no node in common", edits: []manifestEdit{bgpAdvertisementSpecEdit("nodeSelectors: [{matchLabels: {kubernetes.io/hostname: node2}}]"), {"peers: [tor]", "peers: []"}}, wantReason: names.ReasonNoPeers, answerContains: "BGPPeer tor is only for node1"},
	{name: "a peer whose nodeSelectors match nothing", edits: []manifestEdit{{"nodeSelectors: [{matchLabels: {kubernetes.io/hostname: node1}}]", "nodeSelectors: [{matchLabels: {rack: a}}]"}, {"peers: [tor]", "peers: []"}}, wantReason: names.ReasonNoPeers, answerContains: "the nodeSelectors of BGPPeer tor match no node"},
	{name: "a peer in another namespace", edits: []manifestEdit{{"metadata: {name: tor, namespace: metallb-system}\nspec: {my", "metadata: {name: tor, namespace: default}\nspec: {my"}, {"peers: [tor]", "peers: []"}}, wantReason: names.ReasonNoPeers, answerContains: "BGPPeer tor is in namespace default, where it does not count"},
	{name: "a BGPAdvertisement in another namespace", edits: []manifestEdit{{"metadata: {name: routed, namespace: metallb-system}", "metadata: {name: routed, namespace: default}"}, {"peers: [tor]", "peers: []"}}, wantReason: names.ReasonNoAdvertisement, answerContains: "BGPAdvertisement routed is in namespace default, where it does not count"},
	{name: "a peer address that is none", edits: []manifestEdit{{"peerAddress: 192.168.0.1, node", "peerAddress: 192.168.0.300, node"}, {"peers: [tor]", "peers: []"}}, wantReason: names.ReasonNoSession, answerContains: `the BGPPeer tor has a fault: spec.peerAddress: "192.168.0.300" is no IP address`, wantRepairPart: "edit bgppeer tor"},
	{name: "Local, and the Pod is on a node without a peer", edits: []manifestEdit{serviceSpecEdit("externalTrafficPolicy: Local"), {"nodeName: node1, conditions", "nodeName: node2, conditions"}, {"peers: [tor]", "peers: []"}}, wantReason: names.ReasonNoPeers, answerContains: "BGPPeer tor is only for node1"},
}

// TestUnusualServicesAreWell has Services that somebody may hold for broken, and that work.
func TestUnusualServicesAreWell(t *testing.T) {
	for name, c := range map[string]struct {
		edits []manifestEdit
		more  string
		want  string
	}{
		"two pools of one priority":            {edits: []manifestEdit{poolSpecEdit("addresses: [192.168.0.201-192.168.0.202], serviceAllocation: {priority: 10}")}, more: secondPoolManifest("addresses: [10.0.0.0/24], serviceAllocation: {priority: 10}")},
		"addresses of Pods that are not ready": {edits: []manifestEdit{serviceSpecEdit("publishNotReadyAddresses: true")}},
		"Local without node ports":             {edits: []manifestEdit{serviceSpecEdit("allocateLoadBalancerNodePorts: false, externalTrafficPolicy: Local")}},
		"an EndpointSlice by hand":             {edits: []manifestEdit{noSelectorEdit}},
		"a holder that has the address":        {edits: []manifestEdit{serviceAnnotationEdit(names.AnnotationRequestedHolder, "node1")}},
		"both families preferred":              {edits: []manifestEdit{serviceSpecEdit("ipFamilyPolicy: PreferDualStack")}},
		"a second L2Advertisement that counts": {edits: []manifestEdit{addSpeakerLinkDetailsEdit, addSpeakerLinkDetailsEdit, l2AdvertisementSpecEdit("ipAddressPools: [first-pool], interfaces: [eth1]")}, more: "apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: second, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool], interfaces: [eth0]}\n---\n"},
		"an address in no subnet":              {edits: []manifestEdit{addSpeakerLinkDetailsEdit, {"subnets: [192.168.0.0/24]", "subnets: [10.7.0.0/24]"}, addSpeakerLinkDetailsEdit, {"subnets: [192.168.0.0/24]", "subnets: [10.7.0.0/24]"}}, want: "; no node has a link in the subnet of 192.168.0.201, so that clients need a route to it"},
	} {
		r := explainTestService(t, applyManifestEdits(t, installationManifests+workingServiceManifests, c.edits)+c.more)
		if r.Result != report.ResultWell || !strings.Contains(r.AnswerWithReason(), "192.168.0.201 from pool first-pool is announced by layer 2; node1 answers"+c.want) {
			t.Errorf("%s: %s: %s", name, r.Result, r.AnswerWithReason())
		}
	}
}
