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

// faultPoolManifest returns a pool that a Service has to name, with an L2Advertisement that has
// this spec; an empty spec stands for none.
func faultPoolManifest(name, addresses, l2Spec string) string {
	text := fmt.Sprintf("apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: %s, namespace: metallb-system}\nspec: {addresses: [%s], autoAssign: false}\n---\n", name, addresses)
	if l2Spec != "" {
		text += fmt.Sprintf("apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: %s, namespace: metallb-system}\n%s\n---\n", name, l2Spec)
	}
	return text
}

// faultPeerManifest returns the BGPPeer tor, with more fields.
func faultPeerManifest(more string) string {
	return fmt.Sprintf("apiVersion: metallb.io/v1beta2\nkind: BGPPeer\nmetadata: {name: tor, namespace: metallb-system}\nspec: {myASN: 64512, peerASN: 65000, peerAddress: 192.168.0.1, connectTime: 1s%s}\n---\n", more)
}

// bgpAdvertisementManifest returns a BGPAdvertisement.
func bgpAdvertisementManifest(name, spec string) string {
	return fmt.Sprintf("apiVersion: metallb.io/v1beta1\nkind: BGPAdvertisement\nmetadata: {name: %s, namespace: metallb-system}\nspec: {%s}\n---\n", name, spec)
}

func l2AdvertisementForNode(node string) string {
	return fmt.Sprintf("apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: example, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool], nodeSelectors: [{matchLabels: {kubernetes.io/hostname: %s}}]}\n---\n", node)
}

// faultBaseManifests are what works before any fault: Pods on node1, a Service by layer 2, one by
// BGP.
var faultBaseManifests = cluster.FirstPoolAndL2AdvertisementManifest + `---
apiVersion: apps/v1
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
` + faultPeerManifest("") + faultPoolManifest("routed", "198.51.100.0/24", "") + bgpAdvertisementManifest("routed", "ipAddressPools: [routed]") +
	serviceManifest("web", "", "") + serviceManifest("routed", "metallb.io/address-pool: routed", "")

// localServiceManifest is a Service with the traffic policy Local.
var localServiceManifest = serviceManifest("local", "", "externalTrafficPolicy: Local")

// configurationFaultPools are the pools of configurationFaults.
var configurationFaultPools = faultPoolManifest("tiny", "192.168.0.150", "spec: {ipAddressPools: [tiny]}") +
	faultPoolManifest("bare", "192.168.0.151", "") +
	faultPoolManifest("edge", "192.168.0.152", "spec: {ipAddressPools: [edge], nodeSelectors: [{matchLabels: {rack: edge}}]}") +
	faultPoolManifest("cabled", "192.168.0.153", "spec: {ipAddressPools: [cabled], interfaces: [eth77]}") +
	faultPoolManifest("selective", "192.168.0.154", "spec: {ipAddressPools: [selective], serviceSelectors: [{matchLabels: {app: web}}]}") +
	faultPoolManifest("lonely", "198.18.0.1", "") + bgpAdvertisementManifest("lonely", "ipAddressPools: [lonely], peers: [nobody]") +
	faultPoolManifest("other-service", "192.168.0.155", "spec: {ipAddressPools: [other-service], serviceSelectors: [{matchLabels: {app: db}}]}") +
	strings.Replace(faultPoolManifest("tenant", "192.168.0.156", ""), "autoAssign: false", "serviceAllocation: {namespaces: [other]}", 1) +
	serviceManifest("tiny-first", "metallb.io/address-pool: tiny", "") +
	serviceManifest("shared-first", `metallb.io/loadBalancerIPs: 192.168.0.232, metallb.io/allow-shared-ip: one`, "")

// configurationFaults are faults of Services of their own, and of their pools and advertisements.
var configurationFaults = []fault{
	{name: "a pool that is too small", service: "tiny", reason: names.ReasonPoolExhausted, text: "tiny", manifests: serviceManifest("tiny", "metallb.io/address-pool: tiny", "")},
	{name: "a misspelled pool", service: "misspelled", reason: names.ReasonPoolNotFound, text: "frist-pool", manifests: serviceManifest("misspelled", "metallb.io/address-pool: frist-pool", "")},
	{name: "a pool that does not admit the namespace", service: "tenant", reason: names.ReasonPoolNotAllowed, text: "tenant", manifests: serviceManifest("tenant", "metallb.io/address-pool: tenant", "")},
	{name: "an address outside of the pools", service: "outside", reason: names.ReasonAddressNotInPool, text: "10.9.9.9", manifests: serviceManifest("outside", "metallb.io/loadBalancerIPs: 10.9.9.9", "")},
	{name: "an address that cannot be read", service: "unreadable", reason: names.ReasonInvalidRequest, text: "192.168.0.300", manifests: serviceManifest("unreadable", "metallb.io/loadBalancerIPs: 192.168.0.300", "")},
	{name: "an address in use", service: "busy", reason: names.ReasonAddressInUse, text: "192.168.0.232", manifests: serviceManifest("busy", "metallb.io/loadBalancerIPs: 192.168.0.232", "")},
	{name: "another sharing key", service: "other-key", reason: names.ReasonSharingKeyDiffers, text: "192.168.0.232", manifests: serviceManifest("other-key", "metallb.io/loadBalancerIPs: 192.168.0.232, metallb.io/allow-shared-ip: two", "")},
	{name: "the same port on a shared address", service: "same-port", reason: names.ReasonPortConflict, text: "192.168.0.232", manifests: serviceManifest("same-port", "metallb.io/loadBalancerIPs: 192.168.0.232, metallb.io/allow-shared-ip: one", "")},
	{name: "no advertisement", service: "bare", reason: names.ReasonNoAdvertisement, text: `pool "bare" and this Service: create one`, manifests: serviceManifest("bare", "metallb.io/address-pool: bare", "")},
	{name: "a node selector that matches no node", service: "edge", reason: names.ReasonNoAdvertisement, text: `L2Advertisement "edge" match no node`, manifests: serviceManifest("edge", "metallb.io/address-pool: edge", "")},
	{name: "an interface that does not exist", service: "cabled", reason: names.ReasonNoLinks, text: "eth77", manifests: serviceManifest("cabled", "metallb.io/address-pool: cabled", "")},
	{name: "an advertisement for other Services", service: "other-service", reason: names.ReasonNoAdvertisement, text: `pool "other-service" and this Service`, manifests: serviceManifest("other-service", "metallb.io/address-pool: other-service", "")},
	{name: "a shared address and a Service selector", service: "selective", reason: names.ReasonSharedWithServiceSelector, text: `L2Advertisement "selective"`, manifests: strings.Replace(serviceManifest("selective", "metallb.io/address-pool: selective, metallb.io/allow-shared-ip: three", ""), "  annotations", "  labels: {app: web}\n  annotations", 1)},
	{name: "no such BGPPeer", service: "lonely", reason: names.ReasonNoPeers, text: "create one, or correct their spec.peers", manifests: serviceManifest("lonely", "metallb.io/address-pool: lonely", "")},
	{name: "a selector without Pods", service: "podless", reason: names.ReasonNoEndpoints, text: "no endpoint of the Service can serve", manifests: strings.Replace(serviceManifest("podless", "", ""), "app: web", "app: webb", 1)},
}
