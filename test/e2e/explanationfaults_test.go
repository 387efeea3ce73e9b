package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// userMistakePrerequisites are the pools and advertisements of userMistakes.
var userMistakePrerequisites = strings.Replace(poolWithoutAutoAssignManifest("retiring", "192.168.0.190-192.168.0.191", "spec: {ipAddressPools: [retiring]}"), "autoAssign: false", "autoAssign: false, gantry: {retire: {addresses: [192.168.0.191]}}", 1) +
	poolWithoutAutoAssignManifest("aliased", "198.18.1.1", "") + bgpAdvertisementManifest("aliased", "ipAddressPools: [aliased], communities: [no-exprot]") +
	poolWithoutAutoAssignManifest("two-peers", "198.18.1.2", "") + bgpAdvertisementManifest("two-peers", "ipAddressPools: [two-peers], peers: [tor, tro]") +
	poolWithoutAutoAssignManifest("labelled", "192.168.0.192", "spec: {ipAddressPoolSelectors: [{matchLabels: {zone: a}}]}") +
	poolWithoutAutoAssignManifest("closed", "192.168.0.193", "")

// userMistakes are what users may write in a Service of their own, or in an object that it needs.
var userMistakes = []explanationFault{
	{name: "an address with a port", service: "with-port", manifests: serviceManifest("with-port", "", "loadBalancerIP: 192.168.0.231:80"), reason: names.ReasonInvalidRequest, text: `spec.loadBalancerIP: "192.168.0.231:80" is no address`},
	{name: "two addresses of one family", service: "two-addresses", manifests: serviceManifest("two-addresses", `metallb.io/loadBalancerIPs: "192.168.0.230,192.168.0.229"`, ""), reason: names.ReasonInvalidRequest, text: "asks for two addresses of one family"},
	{name: "both families from a pool of one", service: "both-families", manifests: serviceManifest("both-families", "metallb.io/address-pool: gapped", "ipFamilyPolicy: RequireDualStack"), reason: names.ReasonPoolExhausted, text: "no IPv6 addresses"},
	{name: "a retired address", service: "retired", manifests: serviceManifest("retired", "metallb.io/loadBalancerIPs: 192.168.0.191", ""), reason: names.ReasonAddressRetired, text: "192.168.0.191"},
	{name: "a holder that does not exist", service: "held", manifests: serviceManifest("held", "gantry.dev/holder: node9", ""), reason: names.ReasonHolderUnavailable, text: "there is no node node9: correct the annotation gantry.dev/holder"},
	{name: "a request in a label", service: "label", manifests: strings.Replace(serviceManifest("label", "", ""), "  annotations: {}", "  labels: {metallb.io/address-pool: gapped}", 1), reason: names.ReasonUnknownAnnotation, text: "the label metallb.io/address-pool of the Service has no effect: make it an annotation"},
	{name: "a name that no port of the Pods has", service: "port-name", manifests: strings.Replace(serviceManifest("port-name", "", ""), "targetPort: 9097", "targetPort: htpp", 1), reason: names.ReasonNoEndpoints, text: `no Pod has a port named "htpp": correct targetPort`},
	{name: "no selector", service: "no-selector", manifests: strings.Replace(serviceManifest("no-selector", "", ""), "  selector: {app: web}\n", "", 1), reason: names.ReasonNoEndpoints, text: "the Service has no selector"},
	{name: "an alias of a community that does not exist", service: "aliased", manifests: serviceManifest("aliased", "metallb.io/address-pool: aliased", ""), reason: names.ReasonNoAdvertisement, text: `BGPAdvertisement aliased has a fault: spec.communities[0]: no Community names the alias "no-exprot"`},
	{name: "one of two peers does not exist", service: "two-peers", manifests: serviceManifest("two-peers", "metallb.io/address-pool: two-peers", ""), reason: names.ReasonUnknownPeer, text: `the BGPAdvertisement two-peers has a fault: spec.peers[1]: no BGPPeer "tro" exists`},
	{name: "an advertisement by a label that no pool has", service: "labelled", manifests: serviceManifest("labelled", "metallb.io/address-pool: labelled", ""), reason: names.ReasonNoAdvertisement, text: "the ipAddressPoolSelectors of L2Advertisement labelled match no IPAddressPool"},
	{name: "an old annotation that disagrees with the new one", service: "both-spellings", manifests: serviceManifest("both-spellings", "metallb.io/address-pool: gaped, metallb.universe.tf/address-pool: gapped", ""), reason: names.ReasonPoolNotFound, text: `"gaped"`},
	{name: "an address of a pool that has no advertisement", service: "closed", manifests: serviceManifest("closed", "metallb.io/loadBalancerIPs: 192.168.0.193", ""), reason: names.ReasonNoAdvertisement, text: `selects pool "closed"`},
}

// routerRefusalFaults are sessions that the router ends, because of what the node offers or
// announces.
func (h *faultTestCluster) routerRefusalFaults() []explanationFault {
	changeRouter := func(lines string) func(context.Context) error {
		return func(ctx context.Context) error {
			if err := h.tor.ChangeRunningConfig(ctx, lines); err != nil {
				return err
			}
			_, err := h.tor.RunShowCommand(ctx, "clear bgp *")
			return err
		}
	}
	newPeer := h.runInSequenceFunc(h.kubectlFunc("-n", names.DefaultNamespace, "delete", "bgppeer", "tor"), func(ctx context.Context) error { return h.ApplyManifests(ctx, torPeerManifest("")) })
	return []explanationFault{
		// The rest of the text depends on who judges the OPEN of the other one first.
		{name: "the router refuses the multiprotocol capability", service: "routed", reason: names.ReasonNoSession, text: "activate",
			edit: changeRouter("router bgp 65000\n address-family ipv4 unicast\n  no neighbor nodes activate\n exit-address-family\n"),
			// The capabilities that the router refused are left out until the BGPPeer changes.
			repair: h.runInSequenceFunc(changeRouter("router bgp 65000\n address-family ipv4 unicast\n  neighbor nodes activate\n exit-address-family\n"), newPeer)},
		{name: "the router accepts fewer prefixes", service: "routed", reason: names.ReasonNoSession, text: "raise the limit for this neighbour there",
			edit:   changeRouter("router bgp 65000\n address-family ipv4 unicast\n  neighbor nodes maximum-prefix 1\n exit-address-family\n"),
			repair: changeRouter("router bgp 65000\n address-family ipv4 unicast\n  no neighbor nodes maximum-prefix 1\n exit-address-family\n")},
	}
}

// poolManifestInNamespace is a pool with one address.
func poolManifestInNamespace(namespace string) string {
	return "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: dmz, namespace: " + namespace + "}\nspec: {addresses: [192.168.0.168], autoAssign: false}\n---\n"
}

// wrongNamespaceFault is a pool from the time before the policy that refuses pools in namespaces
// which Gantry does not read.
func (h *faultTestCluster) wrongNamespaceFault() explanationFault {
	policy := filepath.Join(lab.RepositoryRoot(), "config", "policy", "policy.yaml")
	return explanationFault{name: "a pool in another namespace", service: "in-dmz", manifests: serviceManifest("in-dmz", "metallb.io/address-pool: dmz", ""),
		reason: names.ReasonPoolElsewhere, text: "IPAddressPool dmz is in namespace default, and only those in metallb-system count: create it there",
		edit: h.runInSequenceFunc(h.kubectlFunc("delete", "-f", policy), func(ctx context.Context) error {
			return cluster.AwaitNoError(ctx, "the end of the policy", func(ctx context.Context) error { return h.ApplyManifests(ctx, poolManifestInNamespace("default")) })
		}, h.kubectlFunc("apply", "-f", policy)),
		repair: func(ctx context.Context) error {
			return h.ApplyManifests(ctx, poolManifestInNamespace(names.DefaultNamespace)+"apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: dmz, namespace: metallb-system}\nspec: {ipAddressPools: [dmz]}\n---\n")
		}}
}

// probedPoolManifest has two addresses, for which the controller asks the LAN before it gives them.
const probedPoolManifest = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: probed, namespace: metallb-system}
spec: {addresses: [192.168.0.163-192.168.0.164], autoAssign: false, gantry: {probe: {quarantine: 1h}}}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: probed, namespace: metallb-system}
spec: {ipAddressPools: [probed]}
---
`

// otherHostFaults are other hosts that answer for addresses of the pools.
func (h *faultTestCluster) otherHostFaults() []explanationFault {
	var proxy *arpProxy
	proxied := ""
	for _, name := range []string{"proxied", "proxied-too", "proxied-as-well"} {
		proxied += serviceManifest(name, "metallb.io/address-pool: proxied", "")
	}
	return []explanationFault{
		{name: "an address in quarantine", service: "probed", manifests: probedPoolManifest, reason: names.ReasonQuarantined, text: "the requested 192.168.0.163 is in quarantine until",
			edit: func(ctx context.Context) error {
				if err := h.RunOnHost("client", "ip", "address", "add", "192.168.0.163/32", "dev", "eth0"); err != nil {
					return err
				}
				return h.ApplyManifests(ctx, serviceManifest("probed", "metallb.io/loadBalancerIPs: 192.168.0.163", ""))
			},
			repair: func(ctx context.Context) error {
				return errors.Join(h.RunOnHost("client", "ip", "address", "del", "192.168.0.163/32", "dev", "eth0"),
					h.ApplyManifests(ctx, serviceManifest("probed", "metallb.io/loadBalancerIPs: 192.168.0.164", "")))
			}},
		{name: "proxy ARP", service: "proxied", manifests: poolWithoutAutoAssignManifest("proxied", "192.168.0.144-192.168.0.146", l2AdvertisementSpecOfPool("proxied", "")), reason: names.ReasonForeignClaim, text: "answers for 3 addresses, as proxy ARP does: turn proxy ARP off there",
			edit: func(ctx context.Context) (err error) {
				if proxy, err = startARPProxy(h.Cluster, "client", netip.MustParsePrefix("192.168.0.144/30")); err != nil {
					return err
				}
				return h.ApplyManifests(ctx, proxied)
			},
			repair: func(context.Context) error { return proxy.stop() }},
		{name: "strictARP is missing", service: "stray", manifests: kubeProxyWithoutStrictARPManifest + poolWithoutAutoAssignManifest("stray", "192.168.0.147", l2AdvertisementSpecOfPool("stray", "")), reason: names.ReasonStrayAnswer, text: "answers for it and does not hold it: kube-proxy runs in mode ipvs without strictARP",
			// In mode ipvs, kube-proxy gives the addresses of all Services to a link of each node.
			// The Pod is on node1.
			edit: func(ctx context.Context) error {
				if err := h.RunOnHost("node2", "ip", "address", "add", "192.168.0.147/32", "dev", "lo"); err != nil {
					return err
				}
				return h.ApplyManifests(ctx, serviceManifest("stray", "metallb.io/address-pool: stray", "externalTrafficPolicy: Local"))
			},
			repair: h.runInSequenceFunc(func(context.Context) error {
				return h.RunOnHost("node2", "ip", "address", "del", "192.168.0.147/32", "dev", "lo")
			}, h.kubectlFunc("-n", "kube-system", "delete", "configmap", "kube-proxy"))},
	}
}

// kubeProxyWithoutStrictARPManifest is the configuration of kube-proxy in mode ipvs, as kubeadm
// writes it.
const kubeProxyWithoutStrictARPManifest = `apiVersion: v1
kind: ConfigMap
metadata: {name: kube-proxy, namespace: kube-system}
data:
  config.conf: |
    kind: KubeProxyConfiguration
    ipvs:
      strictARP: false
    mode: ipvs
---
`

// arpProxy is a host that answers ARP requests for addresses that it does not have.
type arpProxy struct {
	port  layer2.Port
	ended chan struct{}
}

// startARPProxy lets a host answer for all addresses of a prefix. The kernel's own proxy ARP does
// not answer probes for duplicate addresses, as many routers do.
func startARPProxy(s *cluster.Cluster, host string, addresses netip.Prefix) (*arpProxy, error) {
	p := &arpProxy{ended: make(chan struct{})}
	var link facts.Link
	err := s.NamespaceOfHost(host).RunInside(func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		link = facts.Link{Index: i.Index, Name: i.Name, MAC: facts.MAC(i.HardwareAddr)}
		p.port, err = wire.PacketSocketOpener{}.OpenPort(link, ipfamily.IPv4)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listening for ARP on %s: %w", host, err)
	}
	go func() {
		defer close(p.ended)
		_ = p.port.ReceiveFrames(func(f layer2.ARPOrNDPFrame) (layer2.ARPOrNDPFrame, bool) {
			if !addresses.Contains(f.TargetIP) {
				return layer2.ARPOrNDPFrame{}, false
			}
			answer, dropped := layer2.BuildReply(f, link.MAC)
			return answer, dropped == layer2.NotDropped
		}, nil)
	}()
	return p, nil
}

func (p *arpProxy) stop() error {
	err := p.port.Close()
	<-p.ended
	return err
}

// rivalNamespaceManifest has the rights and the Deployment of a second controller of Gantry, which
// serves the same class. It has no pools.
const rivalNamespaceManifest = `apiVersion: v1
kind: Namespace
metadata: {name: rival}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: gantry-controller, namespace: rival}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: rival}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, name: gantry-controller, namespace: rival}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: gantry-controller, namespace: rival, labels: {app.kubernetes.io/name: gantry, app.kubernetes.io/component: controller}}
spec:
  selector: {matchLabels: {app: rival}}
  template:
    metadata: {labels: {app: rival}}
    spec:
      serviceAccountName: gantry-controller
      containers:
      - name: controller
        image: gantry-lb/gantry:v0.1.0
        command: [/controller]
        env: [{name: GANTRY_NAMESPACE, value: rival}]
---
`

// metalLBElsewhereManifest is a controller of MetalLB in a namespace of its own, with the labels of
// MetalLB's chart. Its program is another one.
const metalLBElsewhereManifest = `apiVersion: v1
kind: Namespace
metadata: {name: other-lb}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: metallb-controller, namespace: other-lb, labels: {app.kubernetes.io/name: metallb, app.kubernetes.io/component: controller}}
spec:
  selector: {matchLabels: {app: other-lb}}
  template:
    metadata: {labels: {app: other-lb}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: controller, image: dashboard}]}
---
`

// rivalFaults are other controllers in the cluster.
func (h *faultTestCluster) rivalFaults() []explanationFault {
	apply := func(manifests string) func(context.Context) error {
		return func(ctx context.Context) error { return h.ApplyManifests(ctx, manifests) }
	}
	return []explanationFault{
		{name: "MetalLB in another namespace", service: "web", edit: apply(metalLBElsewhereManifest), repair: h.kubectlFunc("delete", "namespace", "other-lb"),
			reason: names.ReasonOtherController, text: "MetalLB (Deployment metallb-controller in namespace other-lb) runs beside Gantry"},
		{name: "two controllers of Gantry", service: "web", repair: h.runInSequenceFunc(h.kubectlFunc("delete", "namespace", "rival"), h.kubectlFunc("delete", "clusterrolebinding", "rival")),
			edit: h.runInSequenceFunc(apply(rivalNamespaceManifest), func(ctx context.Context) error {
				return cluster.AwaitNoError(ctx, "a decision of the second controller", func(ctx context.Context) error {
					holder, err := h.RunKubectl(ctx, "", "-n", "rival", "get", "lease", names.LeaderLease, "-o", "jsonpath={.spec.holderIdentity}")
					if err == nil && holder == "" {
						err = errors.New("nobody holds its Lease")
					}
					return err
				})
			}),
			reason: names.ReasonOtherController, text: "another Gantry is in namespace rival, and its Deployment gantry-controller serves the same Services"},
	}
}
