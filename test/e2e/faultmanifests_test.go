package e2e

import (
	"fmt"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
)

// serviceManifest returns a Service for the Pods web, with annotations and more lines of its spec.
func serviceManifest(name, annotations, spec string) string {
	text := fmt.Sprintf(`apiVersion: v1
kind: Service
metadata:
  name: %s
  annotations: {%s}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{port: 80, targetPort: 9097}]
`, name, annotations)
	for _, line := range strings.Split(spec, "\n") {
		if line != "" {
			text += "  " + line + "\n"
		}
	}
	return text + "---\n"
}

// poolWithoutAutoAssignManifest returns a pool that a Service has to name, with an L2Advertisement
// that has this spec; an empty spec stands for none.
func poolWithoutAutoAssignManifest(name, addresses, l2Spec string) string {
	text := fmt.Sprintf("apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: %s, namespace: metallb-system}\nspec: {addresses: [%s], autoAssign: false}\n---\n", name, addresses)
	if l2Spec != "" {
		text += fmt.Sprintf("apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: %s, namespace: metallb-system}\n%s\n---\n", name, l2Spec)
	}
	return text
}

// torPeerManifest returns the BGPPeer tor, with more fields.
func torPeerManifest(more string) string {
	return fmt.Sprintf("apiVersion: metallb.io/v1beta2\nkind: BGPPeer\nmetadata: {name: tor, namespace: metallb-system}\nspec: {myASN: 64512, peerASN: 65000, peerAddress: 192.168.0.1, connectTime: 1s%s}\n---\n", more)
}

// bgpAdvertisementManifest returns a BGPAdvertisement.
func bgpAdvertisementManifest(name, spec string) string {
	return fmt.Sprintf("apiVersion: metallb.io/v1beta1\nkind: BGPAdvertisement\nmetadata: {name: %s, namespace: metallb-system}\nspec: {%s}\n---\n", name, spec)
}

func l2AdvertisementManifestForNode(node string) string {
	return fmt.Sprintf("apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: example, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool], nodeSelectors: [{matchLabels: {kubernetes.io/hostname: %s}}]}\n---\n", node)
}

// webDeploymentManifest is a Pod on node1 that answers HTTP requests.
const webDeploymentManifest = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      nodeName: node1
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: dashboard, ports: [{containerPort: 9097}]}]
---
`

// healthyBaseManifests are what works before any fault: Pods on node1, a Service by layer 2, one by
// BGP.
var healthyBaseManifests = strings.Replace(cluster.FirstPoolAndL2AdvertisementManifest, "spec:\n", "spec:\n  gantry: {maxPerService: 2}\n", 1) + "---\n" + webDeploymentManifest + torPeerManifest("") + poolWithoutAutoAssignManifest("routed", "198.51.100.0/24", "") + bgpAdvertisementManifest("routed", "ipAddressPools: [routed]") +
	serviceManifest("web", "", "") + serviceManifest("routed", "metallb.io/address-pool: routed", "")

// localTrafficPolicyServiceManifest is a Service with the traffic policy Local.
var localTrafficPolicyServiceManifest = serviceManifest("local", "", "externalTrafficPolicy: Local")

// l2AdvertisementSpecOfPool is the spec of an L2Advertisement of one pool, with more fields.
func l2AdvertisementSpecOfPool(pool, more string) string {
	return "spec: {ipAddressPools: [" + pool + "]" + more + "}"
}

// configurationFaultPrerequisites are what the faulty Services of configurationFaults need.
var configurationFaultPrerequisites = poolWithoutAutoAssignManifest("tiny", "192.168.0.150", l2AdvertisementSpecOfPool("tiny", "")) +
	poolWithoutAutoAssignManifest("bare", "192.168.0.151", "") +
	poolWithoutAutoAssignManifest("edge", "192.168.0.152", l2AdvertisementSpecOfPool("edge", ", nodeSelectors: [{matchLabels: {rack: edge}}]")) +
	poolWithoutAutoAssignManifest("cabled", "192.168.0.153", l2AdvertisementSpecOfPool("cabled", ", interfaces: [eth77]")) +
	poolWithoutAutoAssignManifest("selective", "192.168.0.154", l2AdvertisementSpecOfPool("selective", ", serviceSelectors: [{matchLabels: {app: web}}]")) +
	allowingTwoPerService(poolWithoutAutoAssignManifest("half", "192.168.0.157", l2AdvertisementSpecOfPool("half", ""))) +
	allowingTwoPerService(poolWithoutAutoAssignManifest("other-half", "192.168.0.158", "")) +
	poolWithoutAutoAssignManifest("sparing", "192.168.0.165-192.168.0.166", l2AdvertisementSpecOfPool("sparing", "")) +
	poolWithoutAutoAssignManifest("lonely", "198.18.0.1", "") + bgpAdvertisementManifest("lonely", "ipAddressPools: [lonely], peers: [nobody]") +
	poolWithoutAutoAssignManifest("other-service", "192.168.0.155", l2AdvertisementSpecOfPool("other-service", ", serviceSelectors: [{matchLabels: {app: db}}]")) +
	strings.Replace(poolWithoutAutoAssignManifest("tenant", "192.168.0.156", l2AdvertisementSpecOfPool("tenant", "")), "autoAssign: false", "autoAssign: false, serviceAllocation: {namespaces: [other]}", 1) +
	quotaPoolManifest(1, l2AdvertisementSpecOfPool("rationed", "")) +
	reservationManifest("somebody") +
	serviceManifest("tiny-first", "metallb.io/address-pool: tiny", "") +
	serviceManifest("rationed-first", "metallb.io/address-pool: rationed", "") +
	serviceManifest("shared-first", `metallb.io/loadBalancerIPs: 192.168.0.232, metallb.io/allow-shared-ip: one`, "")

// allowingTwoPerService returns the manifest of a pool that gives a Service two addresses.
func allowingTwoPerService(poolManifest string) string {
	return strings.Replace(poolManifest, "autoAssign: false", "autoAssign: false, gantry: {maxPerService: 2}", 1)
}

// quotaPoolManifest returns a pool of which each namespace may have n addresses.
func quotaPoolManifest(n int, l2Spec string) string {
	return strings.Replace(poolWithoutAutoAssignManifest("rationed", "192.168.0.161-192.168.0.162", l2Spec), "autoAssign: false", fmt.Sprintf("autoAssign: false, gantry: {quota: {perNamespace: %d}}", n), 1)
}

// reservationManifest keeps an address for a Service.
func reservationManifest(service string) string {
	return fmt.Sprintf("apiVersion: gantry.dev/v1alpha1\nkind: AddressReservation\nmetadata: {name: for-another, namespace: metallb-system}\nspec: {service: {namespace: default, name: %s}, addresses: [192.168.0.228]}\n---\n", service)
}

// withServicePort returns the manifest of a Service on another port.
func withServicePort(manifest string, port int) string {
	return strings.Replace(manifest, "port: 80,", fmt.Sprintf("port: %d,", port), 1)
}

// configurationFaults are faults of Services of their own, and of their pools and advertisements.
var configurationFaults = []fault{
	{name: "a pool that is too small", service: "tiny", reason: names.ReasonPoolExhausted, text: "tiny", manifests: serviceManifest("tiny", "metallb.io/address-pool: tiny", ""),
		repairManifests: strings.Replace(poolWithoutAutoAssignManifest("tiny", "192.168.0.150", ""), "192.168.0.150", "192.168.0.150, 192.168.0.160", 1)},
	{name: "a misspelled pool", service: "misspelled", reason: names.ReasonPoolNotFound, text: "frist-pool", manifests: serviceManifest("misspelled", "metallb.io/address-pool: frist-pool", ""),
		repairManifests: serviceManifest("misspelled", "metallb.io/address-pool: first-pool", "")},
	{name: "a pool that does not admit the namespace", service: "tenant", reason: names.ReasonPoolNotAllowed, text: "tenant", manifests: serviceManifest("tenant", "metallb.io/address-pool: tenant", ""),
		repairManifests: strings.Replace(poolWithoutAutoAssignManifest("tenant", "192.168.0.156", ""), "autoAssign: false", "autoAssign: false, serviceAllocation: {namespaces: [default]}", 1)},
	{name: "an address outside of the pools", service: "outside", reason: names.ReasonAddressNotInPool, text: "10.9.9.9", manifests: serviceManifest("outside", "metallb.io/loadBalancerIPs: 10.9.9.9", ""),
		repairManifests: serviceManifest("outside", "metallb.io/loadBalancerIPs: 192.168.0.227", "")},
	{name: "an address that cannot be read", service: "unreadable", reason: names.ReasonInvalidRequest, text: "192.168.0.300", manifests: serviceManifest("unreadable", "metallb.io/loadBalancerIPs: 192.168.0.300", ""),
		repairManifests: serviceManifest("unreadable", "metallb.io/loadBalancerIPs: 192.168.0.226", "")},
	{name: "an address in use", service: "busy", reason: names.ReasonAddressInUse, text: "192.168.0.232", manifests: serviceManifest("busy", "metallb.io/loadBalancerIPs: 192.168.0.232", ""),
		repairManifests: serviceManifest("busy", "metallb.io/loadBalancerIPs: 192.168.0.229", "")},
	{name: "another sharing key", service: "other-key", reason: names.ReasonSharingKeyDiffers, text: "192.168.0.232", manifests: serviceManifest("other-key", "metallb.io/loadBalancerIPs: 192.168.0.232, metallb.io/allow-shared-ip: two", ""),
		repairManifests: withServicePort(serviceManifest("other-key", "metallb.io/loadBalancerIPs: 192.168.0.232, metallb.io/allow-shared-ip: one", ""), 81)},
	{name: "the same port on a shared address", service: "same-port", reason: names.ReasonPortConflict, text: "192.168.0.232", manifests: serviceManifest("same-port", "metallb.io/loadBalancerIPs: 192.168.0.232, metallb.io/allow-shared-ip: one", ""),
		repairManifests: withServicePort(serviceManifest("same-port", "metallb.io/loadBalancerIPs: 192.168.0.232, metallb.io/allow-shared-ip: one", ""), 82)},
	{name: "another traffic policy on a shared address", service: "other-policy", reason: names.ReasonTrafficPolicyConflict, text: "192.168.0.232",
		manifests:       withServicePort(serviceManifest("other-policy", "metallb.io/loadBalancerIPs: 192.168.0.232, metallb.io/allow-shared-ip: one", "externalTrafficPolicy: Local"), 83),
		repairManifests: withServicePort(serviceManifest("other-policy", "metallb.io/loadBalancerIPs: 192.168.0.232, metallb.io/allow-shared-ip: one", "externalTrafficPolicy: Cluster"), 83)},
	{name: "a quota that is used up", service: "rationed", reason: names.ReasonQuotaExceeded, text: "rationed", manifests: serviceManifest("rationed", "metallb.io/address-pool: rationed", ""),
		repairManifests: quotaPoolManifest(2, "")},
	{name: "more addresses than the pool gives to one Service", service: "greedy", reason: names.ReasonServiceLimitReached, text: `pool "sparing" gives a Service at most 1 of each family`,
		manifests:       serviceManifest("greedy", `metallb.io/loadBalancerIPs: "192.168.0.165,192.168.0.166", gantry.dev/address-count: "2"`, ""),
		repairManifests: allowingTwoPerService(poolWithoutAutoAssignManifest("sparing", "192.168.0.165-192.168.0.166", ""))},
	{name: "an address that is kept for another Service", service: "late-comer", reason: names.ReasonAddressReserved, text: "192.168.0.228", manifests: serviceManifest("late-comer", "metallb.io/loadBalancerIPs: 192.168.0.228", ""),
		repairManifests: reservationManifest("late-comer")},
	{name: "no advertisement", service: "bare", reason: names.ReasonNoAdvertisement, text: `pool "bare" and this Service: create one`, manifests: serviceManifest("bare", "metallb.io/address-pool: bare", ""),
		repairManifests: poolWithoutAutoAssignManifest("bare", "192.168.0.151", l2AdvertisementSpecOfPool("bare", ""))},
	{name: "an advertisement for one of two addresses", service: "half", reason: names.ReasonNoAdvertisement, text: `192.168.0.157: announced by layer 2; 192.168.0.158: no L2Advertisement`,
		manifests:       serviceManifest("half", `metallb.io/loadBalancerIPs: "192.168.0.157,192.168.0.158", gantry.dev/address-count: "2"`, ""),
		repairManifests: poolWithoutAutoAssignManifest("other-half", "192.168.0.158", l2AdvertisementSpecOfPool("other-half", ""))},
	{name: "a node selector that matches no node", service: "edge", reason: names.ReasonNoAdvertisement, text: `L2Advertisement "edge" match no node`, manifests: serviceManifest("edge", "metallb.io/address-pool: edge", ""),
		repairManifests: poolWithoutAutoAssignManifest("edge", "192.168.0.152", l2AdvertisementSpecOfPool("edge", ""))},
	{name: "an interface that does not exist", service: "cabled", reason: names.ReasonNoLinks, text: "eth77", manifests: serviceManifest("cabled", "metallb.io/address-pool: cabled", ""),
		repairManifests: poolWithoutAutoAssignManifest("cabled", "192.168.0.153", l2AdvertisementSpecOfPool("cabled", ", interfaces: [eth0]"))},
	{name: "an advertisement for other Services", service: "other-service", reason: names.ReasonNoAdvertisement, text: `pool "other-service" and this Service`, explanationText: "the serviceSelectors of L2Advertisement other-service do not match the labels of the Service",
		manifests:       serviceManifest("other-service", "metallb.io/address-pool: other-service", ""),
		repairManifests: poolWithoutAutoAssignManifest("other-service", "192.168.0.155", l2AdvertisementSpecOfPool("other-service", ""))},
	{name: "a shared address and a Service selector", service: "selective", reason: names.ReasonSharedWithServiceSelector, text: `L2Advertisement "selective"`, manifests: strings.Replace(serviceManifest("selective", "metallb.io/address-pool: selective, metallb.io/allow-shared-ip: three", ""), "  annotations", "  labels: {app: web}\n  annotations", 1),
		repairManifests: poolWithoutAutoAssignManifest("selective", "192.168.0.154", l2AdvertisementSpecOfPool("selective", ""))},
	{name: "no such BGPPeer", service: "lonely", reason: names.ReasonNoPeers, text: "or correct their spec.peers", manifests: serviceManifest("lonely", "metallb.io/address-pool: lonely", ""),
		repairManifests: bgpAdvertisementManifest("lonely", "ipAddressPools: [lonely], peers: [tor]")},
	{name: "a selector without Pods", service: "podless", reason: names.ReasonNoEndpoints, text: "no endpoint of the Service can serve", manifests: strings.Replace(serviceManifest("podless", "", ""), "app: web", "app: webb", 1),
		repairManifests: serviceManifest("podless", "", "")},
}
