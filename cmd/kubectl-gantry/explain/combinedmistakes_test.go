package explain

import (
	"strings"

	"github.com/gantry-lb/gantry/api/names"
)

// dualStackServiceEdit gives the Service a cluster IP of each family, with this family policy.
func dualStackServiceEdit(policy string) manifestEdit {
	return manifestEdit{"clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10]", "ipFamilyPolicy: " + policy + ", ipFamilies: [IPv4, IPv6], clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd00:96::a']"}
}

// serviceAnnotationsEdit gives the Service several annotations.
func serviceAnnotationsEdit(annotations string) manifestEdit {
	return manifestEdit{"metadata: {name: web, namespace: default,", "metadata: {name: web, namespace: default, annotations: {" + annotations + "},"}
}

// bothFamiliesEdits are a Service with an address of each family, of which a node announces that of
// IPv4: no link has IPv6.
var bothFamiliesEdits = []manifestEdit{addSpeakerLinkDetailsEdit, addSpeakerLinkDetailsEdit, dualStackServiceEdit("RequireDualStack"), {"ingress: [{ip: 192.168.0.201}]", "ingress: [{ip: 192.168.0.201}, {ip: '2001:db8::1'}]"}, poolSpecEdit("addresses: [192.168.0.201-192.168.0.202, '2001:db8::/120']")}

const ipv6EndpointSliceManifest = `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-2, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
endpoints: [{addresses: ['fd00:244::5'], nodeName: node1, conditions: {ready: true}}]
ports: [{name: "", port: 8080, protocol: TCP}]
---
`

const firstPoolSpec = "addresses: [192.168.0.201-192.168.0.202]"

// combinedRequestMistakes are mistakes of requests and pools that come together, or that one sees
// only beside other objects.
var combinedRequestMistakes = []serviceFaultCase{
	{name: "three pools, each closed for another reason", edits: undecidedServiceEditsWith(poolSpecEdit(firstPoolSpec + ", autoAssign: false")),
		moreManifests: secondPoolManifest("addresses: [10.0.0.0/24], serviceAllocation: {namespaces: [shop]}") + strings.ReplaceAll(secondPoolManifest("addresses: [10.1.0.0/24], serviceAllocation: {serviceSelectors: [{matchLabels: {tier: front}}]}"), "second-pool", "third-pool"),
		wantReason:    names.ReasonNoEligiblePool, answerContains: "(first-pool has autoAssign false, the serviceAllocation of second-pool does not admit it: it admits only the namespaces shop, not default, the serviceAllocation of third-pool does not admit it: it admits only Services with the labels tier=front)", wantRepairPart: "metallb.io/address-pool=first-pool"},
	{name: "an open pool is full, and the others are closed", edits: undecidedServiceEditsWith(poolSpecEdit("addresses: [192.168.0.201/32]"), manifestEdit{"availableIPv4: 1", "availableIPv4: 0"}),
		moreManifests: secondPoolManifest("addresses: [10.0.0.0/24], autoAssign: false") + sharingServiceManifest("shop"), wantReason: names.ReasonPoolExhausted, answerContains: "first-pool has 1 of 1 IPv4 addresses in use", wantRepairPart: "edit ipaddresspool first-pool  # add a range"},
	{name: "both families are required, and the pool has one", edits: undecidedServiceEditsWith(dualStackServiceEdit("RequireDualStack")), wantReason: names.ReasonPoolExhausted, answerContains: "first-pool has 1 of 2 IPv4 addresses in use and no IPv6 addresses"},
	{name: "both families are preferred, and the Service has one", edits: []manifestEdit{dualStackServiceEdit("PreferDualStack"), {`status: "True", reason: Assigned, message: 'assigned 192.168.0.201 from pool "first-pool"'`, `status: "True", reason: PoolExhausted, message: 'no IPv6 address is free in the pools open to this Service (first-pool)'`}},
		wantReason: names.ReasonPoolExhausted, answerContains: "192.168.0.201 is announced, but no IPv6 address is free"},
	{name: "two spellings of an annotation disagree", edits: undecidedServiceEditsWith(serviceAnnotationsEdit("metallb.io/loadBalancerIPs: 192.168.0.202, metallb.universe.tf/loadBalancerIPs: 192.168.0.201"), poolSpecEdit("addresses: [192.168.0.201/32]")), wantReason: names.ReasonAddressNotInPool, answerContains: "192.168.0.202"},
	{name: "a pool and its old spelling disagree", edits: undecidedServiceEditsWith(serviceAnnotationsEdit("metallb.io/address-pool: frist-pool, metallb.universe.tf/address-pool: first-pool")), wantReason: names.ReasonPoolNotFound, answerContains: "frist-pool"},
	{name: "an address of a Service in another namespace", edits: undecidedServiceEditsWith(serviceAnnotationEdit(names.AnnotationLoadBalancerIPs, "192.168.0.201")), moreManifests: sharingServiceManifest("shop"), wantReason: names.ReasonAddressInUse, answerContains: "the requested 192.168.0.201 is held by Service shop/first and cannot be shared"},
	{name: "an address with a port", edits: undecidedServiceEditsWith(serviceSpecEdit("loadBalancerIP: '192.168.0.201:80'")), wantReason: names.ReasonInvalidRequest, answerContains: `spec.loadBalancerIP: "192.168.0.201:80" is no address`},
	{name: "a host name instead of an address", edits: undecidedServiceEditsWith(serviceSpecEdit("loadBalancerIP: web.example.com")), wantReason: names.ReasonInvalidRequest, answerContains: `"web.example.com" is no address`},
	{name: "more addresses than the pool has", edits: undecidedServiceEditsWith(serviceAnnotationEdit(names.AnnotationAddressesPerFamily, `"3"`), poolSpecEdit("addresses: [192.168.0.201/32]")), moreManifests: sharingServiceManifest("shop"), wantReason: names.ReasonPoolExhausted, answerContains: "first-pool"},
	{name: "two addresses, and a number of one", edits: undecidedServiceEditsWith(serviceAnnotationEdit(names.AnnotationLoadBalancerIPs, `"192.168.0.201,192.168.0.202"`)), wantReason: names.ReasonInvalidRequest, answerContains: "asks for two addresses of one family"},
	{name: "a retired address", edits: undecidedServiceEditsWith(requestSecondAddressEdit, poolSpecEdit(firstPoolSpec+", gantry: {retire: {addresses: [192.168.0.202]}}")), wantReason: names.ReasonAddressRetired, answerContains: "192.168.0.202"},
	{name: "a retired pool", edits: undecidedServiceEditsWith(poolSpecEdit(firstPoolSpec+", gantry: {retire: {}}"), emptyPoolStatusEdit), wantReason: names.ReasonPoolExhausted, answerContains: "the IPAddressPool first-pool may give none of its IPv4 addresses, because of gantry.retire"},
	{name: "a reservation of a Service with a misspelt name", edits: undecidedServiceEditsWith(requestSecondAddressEdit), moreManifests: "apiVersion: gantry.dev/v1alpha1\nkind: AddressReservation\nmetadata: {name: kept, namespace: metallb-system}\nspec: {addresses: [192.168.0.202], service: {namespace: default, name: wbe}}\n---\n",
		wantReason: names.ReasonAddressReserved, answerContains: `192.168.0.202 is reserved for Service default/wbe by AddressReservation "kept"`, wantRepairPart: "kubectl -n metallb-system edit addressreservation kept"},
	{name: "a quota of another namespace", edits: undecidedServiceEditsWith(poolSpecEdit(firstPoolSpec + ", gantry: {quota: {namespaces: [{namespace: default, addresses: 0}]}}")), wantReason: names.ReasonQuotaExceeded, answerContains: "namespace default has reached its quota"},
	{name: "an IPv6 cluster and a pool of IPv4", edits: undecidedServiceEditsWith(manifestEdit{"clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10]", "clusterIP: 'fd00:96::a', clusterIPs: ['fd00:96::a'], ipFamilies: [IPv6], ipFamilyPolicy: SingleStack"}), wantReason: names.ReasonPoolExhausted, answerContains: "first-pool has no IPv6 addresses"},
	{name: "the addresses of a pool are multicast", edits: undecidedServiceEditsWith(poolSpecEdit("addresses: [239.0.0.1-239.0.0.9]"), emptyPoolStatusEdit), wantReason: names.ReasonInvalidAddress, answerContains: "the IPAddressPool first-pool has a fault: spec.addresses[0]"},
	{name: "a pool without addresses", edits: undecidedServiceEditsWith(poolSpecEdit("addresses: []"), emptyPoolStatusEdit), wantReason: names.ReasonPoolExhausted, answerContains: "first-pool"},
	{name: "two Services with one sharing key and different Pods", edits: undecidedServiceEditsWith(serviceAnnotationEdit(names.AnnotationSharingKey, "k"), serviceSpecEdit("externalTrafficPolicy: Local, loadBalancerIP: 192.168.0.201"), manifestEdit{"{port: 80, protocol: TCP}]}", "{port: 81, protocol: TCP}]}"}),
		moreManifests: strings.Replace(sharingServiceManifest("default"), "spec: {type: LoadBalancer", "spec: {selector: {app: db}, externalTrafficPolicy: Local, type: LoadBalancer", 1), wantReason: names.ReasonTrafficPolicyConflict, answerContains: "192.168.0.201 is held by Service default/first and cannot be shared"},
	{name: "a class that nobody serves", edits: undecidedServiceEditsWith(serviceSpecEdit("loadBalancerClass: example.com/nobody")), wantReason: names.ReasonNotLoadBalancer, answerContains: `its loadBalancerClass is "example.com/nobody", and Gantry serves only Services without a class`},
	{name: "the Deployment of the controller is gone", edits: undecidedServiceEditsWith(manifestEdit{"11:59:59.000000Z", "11:58:00.000000Z"}, manifestEdit{"labels: {app.kubernetes.io/name: gantry, app.kubernetes.io/component: controller}", "labels: {}"}), wantReason: names.ReasonNoController, answerContains: "there is no Deployment of the controller in namespace metallb-system"},
}

// clusterAddressEdits are a pool with an address of a node, which the Service has.
var clusterAddressEdits = []manifestEdit{
	{"metadata: {name: node1, labels: {kubernetes.io/hostname: node1}}", "metadata: {name: node1, labels: {kubernetes.io/hostname: node1}}\nstatus: {addresses: [{type: InternalIP, address: 192.168.0.201}]}"},
	{"availableIPv4: 1, availableIPv6: 0}", "availableIPv4: 1, availableIPv6: 0, gantry: {conditions: [{type: gantry.dev/Valid, status: \"False\", reason: ClusterAddress, message: x, lastTransitionTime: \"2026-03-01T11:00:00Z\"}]}}"},
}

// combinedAnnouncementMistakes are the same for the announcement.
var combinedAnnouncementMistakes = []serviceFaultCase{
	{name: "the address of a node", edits: clusterAddressEdits, wantReason: names.ReasonClusterAddress, answerContains: "is announced, but 192.168.0.201 is the address of node node1, so that clients do not reach the Service", wantRepairPart: "edit ipaddresspool first-pool  # spec.gantry.exclude"},
	{name: "the pool with the highest priority has no advertisement", edits: []manifestEdit{noAnsweringNodeEdit, l2AdvertisementSpecEdit("ipAddressPools: [second-pool]")}, moreManifests: secondPoolManifest("addresses: [10.0.0.0/24], serviceAllocation: {priority: 20}"), wantReason: names.ReasonNoAdvertisement, answerContains: `no L2Advertisement or BGPAdvertisement in namespace metallb-system selects pool "first-pool"`, wantRepairPart: "ipAddressPools: [first-pool]"},
	{name: "another advertisement has a fault, and that of the pool selects no node", edits: []manifestEdit{noAnsweringNodeEdit, l2AdvertisementSpecEdit("ipAddressPools: [first-pool], nodeSelectors: [{matchLabels: {rack: edge}}]")},
		moreManifests: "apiVersion: metallb.io/v1beta1\nkind: BGPAdvertisement\nmetadata: {name: broken, namespace: metallb-system}\nspec: {ipAddressPools: [dmz]}\n---\n", wantReason: names.ReasonNoAdvertisement, answerContains: `the nodeSelectors of the L2Advertisement "example" match no node`, wantRepairPart: "edit l2advertisement example"},
	{name: "faulty advertisements of others, and one by a label that no pool has", edits: []manifestEdit{noAnsweringNodeEdit, l2AdvertisementSpecEdit("ipAddressPoolSelectors: [{matchLabels: {zone: a}}]")},
		moreManifests: "apiVersion: metallb.io/v1beta1\nkind: BGPAdvertisement\nmetadata: {name: aliased, namespace: metallb-system}\nspec: {ipAddressPools: [dmz], communities: [no-exprot]}\n---\n", wantReason: names.ReasonNoAdvertisement, answerContains: "192.168.0.201 is not announced: the ipAddressPoolSelectors of L2Advertisement example match no IPAddressPool", wantRepairPart: "edit l2advertisement example  # spec.ipAddressPoolSelectors"},
	{name: "the pool is misspelt in the second of two faulty advertisements", edits: []manifestEdit{noAnsweringNodeEdit, l2AdvertisementSpecEdit("ipAddressPools: [dmz]")},
		moreManifests: "apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: second, namespace: metallb-system}\nspec: {ipAddressPools: [frist-pool]}\n---\n", wantReason: names.ReasonNoAdvertisement, answerContains: "192.168.0.201 is not announced: L2Advertisement second has a fault", wantRepairPart: "edit l2advertisement second"},
	{name: "Local, and the only Pod is not ready", edits: []manifestEdit{noAnsweringNodeEdit, serviceSpecEdit("externalTrafficPolicy: Local"), {"conditions: {ready: true}", "conditions: {ready: false}"}}, wantReason: names.ReasonNoEndpoints, answerContains: "the selector app=web matches 1 Pod, and none is ready", wantRepairPart: "get pods -l app=web"},
	{name: "Local, and the only Pod's node is excluded", edits: []manifestEdit{noAnsweringNodeEdit, serviceSpecEdit("externalTrafficPolicy: Local"), {"kubernetes.io/hostname: node1", names.LabelExcludeNode + `: ""`}}, wantReason: names.ReasonNodeExcluded, answerContains: "node1: it has the label " + names.LabelExcludeNode, wantRepairPart: "label node node1 " + names.LabelExcludeNode + "-"},
	{name: "Local, and the advertisement leaves the only Pod's node out", edits: []manifestEdit{noAnsweringNodeEdit, serviceSpecEdit("externalTrafficPolicy: Local"), l2AdvertisementSpecEdit("ipAddressPools: [first-pool], nodeSelectors: [{matchLabels: {kubernetes.io/hostname: node2}}]")}, wantReason: names.ReasonNoLocalEndpoints, answerContains: "node2: no endpoint of the Service serves there"},
	{name: "one node is excluded, and the other has no speaker", edits: []manifestEdit{noAnsweringNodeEdit, {"kubernetes.io/hostname: node1", names.LabelExcludeNode + `: ""`}, node2HasNoSpeakerEdit, {"numberReady: 2", "numberReady: 1"}}, wantReason: names.ReasonNodeExcluded, answerContains: "node1: it has the label " + names.LabelExcludeNode + ": remove it; node2: no speaker runs there"},
	{name: "every node is out of service", edits: unavailableNodesEdits(names.ReasonNodeLeaving), wantReason: names.ReasonNodeLeaving, answerContains: "node1, node2: "},
	{name: "the DaemonSet of the speakers is gone", edits: []manifestEdit{noAnsweringNodeEdit, {"app.kubernetes.io/component: speaker}}\nspec", "app.kubernetes.io/component: gone}}\nspec"}, {"11:59:30Z", "11:40:30Z"}, {"11:59:30Z", "11:40:30Z"}}, wantReason: names.ReasonNoSpeaker, answerContains: "there is no DaemonSet of the speaker"},
	{name: "an interface and a node that do not fit together", edits: []manifestEdit{noAnsweringNodeEdit, addSpeakerLinkDetailsEdit, addSpeakerLinkDetailsEdit, l2AdvertisementSpecEdit("ipAddressPools: [first-pool], interfaces: [eth0.100]")}, wantReason: names.ReasonNoLinks, answerContains: "eth0.100"},
	{name: "the Service lost its advertisement and its endpoints", edits: []manifestEdit{noAnsweringNodeEdit, l2AdvertisementSpecEdit("ipAddressPools: [frist-pool]"), {"conditions: {ready: true}", "conditions: {ready: false}"}}, wantReason: names.ReasonNoAdvertisement, answerContains: "frist-pool"},
	{name: "both families, and the Pods have one", edits: bothFamiliesEdits, wantReason: names.ReasonNoEndpoints, answerContains: "192.168.0.201: announced by layer 2; 2001:db8::1: no endpoint of the Service has an IPv6 address: check spec.ipFamilies and the families of its Pods"},
	{name: "both families, and the links have one", edits: bothFamiliesEdits, moreManifests: ipv6EndpointSliceManifest, wantReason: names.ReasonNoAddressFamily, answerContains: "192.168.0.201: announced by layer 2; 2001:db8::1: ", wantRepairPart: "get speakerstatus node1 node2"},
	{name: "both families, and neither links nor routers take IPv6", edits: bothFamiliesEdits, moreManifests: ipv6EndpointSliceManifest + routerManifests, wantReason: names.ReasonNoAddressFamily, answerContains: "2001:db8::1"},
}

// combinedBGPMistakes are the same for a Service that only routers get.
var combinedBGPMistakes = []serviceFaultCase{
	{name: "two passwords", edits: []manifestEdit{{"peerAddress: 192.168.0.1, node", "peerAddress: 192.168.0.1, password: x, passwordSecret: {name: tor}, node"}, {"peers: [tor]", "peers: []"}}, wantReason: names.ReasonNoSession, answerContains: "BGPPeer tor has a fault"},
	{name: "no node has the label with the AS number", edits: []manifestEdit{{"peerASN: 65000, ", "gantry: {peerASNLabel: example.com/asn}, "}, {"peers: [tor]", "peers: []"}, sessionDownEdit(names.ReasonNodeLabel, "x")}, wantReason: names.ReasonNoSession, answerContains: "the BGPPeer tor has a fault: spec.gantry: 1 of the selected nodes do not peer, node \"node1\" among them", wantRepairPart: "edit bgppeer tor  # spec.gantry"},
	{name: "an advertisement for no node", edits: []manifestEdit{bgpAdvertisementSpecEdit("nodeSelectors: [{matchLabels: {rack: edge}}]"), {"peers: [tor]", "peers: []"}}, wantReason: names.ReasonNoAdvertisement, answerContains: `and the BGPAdvertisement "routed" match no node`, wantRepairPart: "edit bgpadvertisement routed"},
	{name: "a family that the session does not carry", edits: []manifestEdit{{"ingress: [{ip: 192.168.0.201}]", "ingress: [{ip: '2001:db8::1'}]"}, {"clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10]", "clusterIP: 'fd00:96::a', clusterIPs: ['fd00:96::a'], ipFamilies: [IPv6]"}, poolSpecEdit("addresses: ['2001:db8::/120']"), {"peers: [tor]", "peers: []"}}, wantReason: names.ReasonNoPeers, answerContains: "for the family of the address"},
	{name: "two peers with one router", moreManifests: "apiVersion: metallb.io/v1beta2\nkind: BGPPeer\nmetadata: {name: again, namespace: metallb-system}\nspec: {myASN: 64512, peerASN: 65000, peerAddress: 192.168.0.1}\n---\n", edits: []manifestEdit{{"peers: [tor]", "peers: []"}}, wantReason: names.ReasonNoSession, answerContains: "again"},
	{name: "an alias that does not exist, in the only advertisement", edits: []manifestEdit{bgpAdvertisementSpecEdit("communities: [no-exprot]"), {"peers: [tor]", "peers: []"}}, wantReason: names.ReasonNoAdvertisement, answerContains: `BGPAdvertisement routed has a fault: spec.communities[0]: no Community names the alias "no-exprot"`, wantRepairPart: "edit bgpadvertisement routed  # spec.communities[0]"},
	{name: "a community that is a word", edits: []manifestEdit{bgpAdvertisementSpecEdit("communities: ['65535:65281:x']")}, wantReason: names.ReasonInvalidCommunity, answerContains: "the BGPAdvertisement routed has a fault: spec.communities[0]", wantRepairPart: "edit bgpadvertisement routed  # spec.communities[0]"},
}
