package cluster

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/ndp"
)

// metalLBStandInArg makes a test program act as a speaker of MetalLB on a node: it answers ARP and
// NDP for some addresses, and asks nobody before; and it announces routes to a router by BGP.
// metalLBStandInNodeVariable names the node.
const (
	metalLBStandInArg          = "act-as-metallb-speaker"
	metalLBStandInNodeVariable = "NODE_NAME"
)

// RunAsMetalLBSpeakerIfRequested acts as a speaker until the process is killed, if the program was
// started for that. It returns at once otherwise.
func RunAsMetalLBSpeakerIfRequested() {
	if len(os.Args) != 5 || os.Args[1] != metalLBStandInArg {
		return
	}
	ended := make(chan error)
	go func() { ended <- answerForShare(strings.Split(os.Args[2], ","), strings.Split(os.Args[3], ",")) }()
	if os.Args[4] != "" {
		go announceRoutesUntilKilled(strings.Split(os.Args[4], ","))
	}
	fmt.Fprintln(os.Stderr, <-ended)
	os.Exit(1)
}

// answerForShare answers for each address whose turn it is to be on this node.
func answerForShare(nodes, addresses []string) error {
	own := slices.Index(nodes, os.Getenv(metalLBStandInNodeVariable))
	if own < 0 {
		return fmt.Errorf("%s is none of the nodes %q", os.Getenv(metalLBStandInNodeVariable), nodes)
	}
	link, err := net.InterfaceByName(lanLinkName)
	if err != nil {
		return err
	}
	share := map[bool][]netip.Addr{} // by whether it is IPv6
	for i, text := range addresses {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		if i%len(nodes) == own {
			share[a.Is6()] = append(share[a.Is6()], a)
		}
	}
	ended := make(chan error, 1)
	if len(share[true]) > 0 {
		go func() { ended <- answerNDP(link, share[true]) }()
	}
	go func() { ended <- answerARP(link, share[false]) }()
	return <-ended
}

func answerARP(link *net.Interface, addresses []netip.Addr) error {
	c, err := arp.Dial(link)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		announcement, err := arp.NewPacket(arp.OperationReply, link.HardwareAddr, a, ethernet.Broadcast, a)
		if err != nil {
			return err
		}
		if err := c.WriteTo(announcement, ethernet.Broadcast); err != nil {
			return err
		}
	}
	for {
		question, _, err := c.Read()
		switch {
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil || question.Operation != arp.OperationRequest || !slices.Contains(addresses, question.TargetIP):
			continue
		}
		if err := c.Reply(question, link.HardwareAddr, question.TargetIP); err != nil {
			return err
		}
	}
}

func answerNDP(link *net.Interface, addresses []netip.Addr) error {
	c, _, err := ndp.Listen(link, ndp.LinkLocal)
	if err != nil {
		return err
	}
	answer := func(a, to netip.Addr) error {
		isSolicited := to != allNodesAddress
		return c.WriteTo(&ndp.NeighborAdvertisement{
			Solicited: isSolicited, Override: true, TargetAddress: a,
			Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: link.HardwareAddr}},
		}, nil, to)
	}
	for _, a := range addresses {
		group, err := ndp.SolicitedNodeMulticast(a)
		if err != nil {
			return err
		}
		if err := c.JoinGroup(group); err != nil {
			return err
		}
		if err := answer(a, allNodesAddress); err != nil {
			return err
		}
	}
	for {
		m, _, from, err := c.ReadFrom()
		if err != nil {
			return err
		}
		question, isQuestion := m.(*ndp.NeighborSolicitation)
		if !isQuestion || !slices.Contains(addresses, question.TargetAddress) {
			continue
		}
		to := from
		if from.IsUnspecified() { // a host that looks for a duplicate
			to = allNodesAddress
		}
		if err := answer(question.TargetAddress, to); err != nil {
			return err
		}
	}
}

// allNodesAddress is the multicast address of all nodes.
var allNodesAddress = netip.MustParseAddr("ff02::1")

// MetalLBStandIn is an installation in the form in which MetalLB's chart and manifests leave
// theirs. Its speakers answer ARP and NDP, and speak BGP. Its controller does nothing.
type MetalLBStandIn struct {
	// Nodes are the nodes with speakers, and Addresses those for which they answer.
	Nodes, Addresses []string
	// Routes are the prefixes that each node announces to the router of the LAN.
	Routes []string
	// GossipPort is the port that a speaker uses on its node, by TCP and UDP.
	GossipPort int
}

// Manifests are the objects as `kubectl apply` of MetalLB's manifests leaves them.
func (m *MetalLBStandIn) Manifests() string {
	return m.format("controller", "speaker", "app: metallb", "component", fmt.Sprint(m.GossipPort)) + "---\n" + m.crdManifests()
}

// WriteChart writes a chart into an empty directory. Its objects have the names and labels of
// MetalLB's chart for a release with the name metallb, and it takes the value
// speaker.memberlist.mlBindPort.
func (m *MetalLBStandIn) WriteChart(dir string) error {
	labels := "app.kubernetes.io/name: metallb, app.kubernetes.io/instance: metallb"
	for name, text := range map[string]string{
		"Chart.yaml":               "apiVersion: v2\nname: metallb\nversion: 0.14.9\nappVersion: v0.14.9\n",
		"values.yaml":              fmt.Sprintf("speaker: {memberlist: {mlBindPort: %d}}\n", m.GossipPort),
		"templates/crds.yaml":      m.crdManifests(),
		"templates/workloads.yaml": m.format("metallb-controller", "metallb-speaker", labels, "app.kubernetes.io/component", "{{ .Values.speaker.memberlist.mlBindPort }}"),
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// format writes the programs, their Service and the webhook.
func (m *MetalLBStandIn) format(controller, speaker, labels, componentLabel, port string) string {
	program, _ := os.Executable()
	return strings.NewReplacer("CONTROLLER", controller, "SPEAKER", speaker, "LABELS", labels, "COMPONENT", componentLabel, "PORT", port,
		"PROGRAM", program, "ARGUMENT", metalLBStandInArg, "NODES", strings.Join(m.Nodes, ","), "ADDRESSES", strings.Join(m.Addresses, ","), "ROUTES", strings.Join(m.Routes, ","), "VARIABLE", metalLBStandInNodeVariable).Replace(metalLBWorkloadManifests)
}

const metalLBWorkloadManifests = `apiVersion: v1
kind: ConfigMap
metadata: {name: metallb-excludel2, namespace: metallb-system, labels: {LABELS}}
data: {excludel2.yaml: "announcedInterfacesToExclude: [\"^docker.*\", \"^veth.*\", \"^lo$\", \"^backup0$\"]"}
---
apiVersion: v1
kind: Service
metadata: {name: metallb-webhook-service, namespace: metallb-system, labels: {LABELS}}
spec: {selector: {LABELS, COMPONENT: controller}, ports: [{port: 443, targetPort: 9443}]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: metallb-webhook-configuration, labels: {LABELS}}
webhooks:
- name: ipaddresspoolvalidationwebhook.metallb.io
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  clientConfig: {service: {name: metallb-webhook-service, namespace: metallb-system, path: /validate-metallb-io-v1beta1-ipaddresspool}}
  rules: [{apiGroups: [metallb.io], apiVersions: [v1beta1], resources: [ipaddresspools], operations: [CREATE, UPDATE]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: CONTROLLER, namespace: metallb-system, labels: {LABELS, COMPONENT: controller}}
spec:
  replicas: 1
  selector: {matchLabels: {LABELS, COMPONENT: controller}}
  template:
    metadata: {labels: {LABELS, COMPONENT: controller}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: controller, image: "quay.io/metallb/controller:v0.14.9", ports: [{containerPort: 9443}]}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: SPEAKER, namespace: metallb-system, labels: {LABELS, COMPONENT: speaker}}
spec:
  selector: {matchLabels: {LABELS, COMPONENT: speaker}}
  template:
    metadata: {labels: {LABELS, COMPONENT: speaker}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      containers:
      - {name: speaker, image: "quay.io/metallb/speaker:v0.14.9", ports: [{containerPort: PORT}, {containerPort: PORT, protocol: UDP}]}
      - name: answers
        image: lab/machine
        command: [PROGRAM, ARGUMENT, "NODES", "ADDRESSES", "ROUTES"]
        env: [{name: VARIABLE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        securityContext: {runAsUser: 0, capabilities: {drop: [ALL], add: [NET_RAW]}}
`

// crdManifests are CRDs of MetalLB's kinds, with the conversion webhook of BGPPeers. They accept
// any object of these kinds.
func (m *MetalLBStandIn) crdManifests() string {
	var out []string
	for _, kind := range []string{"IPAddressPool", "L2Advertisement", "BGPAdvertisement", "BFDProfile", "Community", "BGPPeer", "ServiceL2Status", "ServiceBGPStatus", "ConfigurationState"} {
		plural := strings.ToLower(kind) + "s"
		switch {
		case kind == "Community":
			plural = "communities"
		case strings.HasSuffix(kind, "Status"):
			plural = strings.ToLower(kind) + "es"
		}
		text := fmt.Sprintf("apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: %s.metallb.io}\nspec:\n  group: metallb.io\n  scope: Namespaced\n  names: {kind: %s, plural: %s, singular: %s, listKind: %sList}\n  versions:\n", plural, kind, plural, strings.ToLower(kind), kind)
		const version = "  - {name: %s, served: true, storage: %t, subresources: {status: {}}, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}\n"
		text += fmt.Sprintf(version, "v1beta1", kind != "BGPPeer")
		if kind == "BGPPeer" {
			text += fmt.Sprintf(version, "v1beta2", true) +
				"  conversion:\n    strategy: Webhook\n    webhook:\n      conversionReviewVersions: [v1beta1, v1beta2]\n      clientConfig: {service: {namespace: metallb-system, name: metallb-webhook-service, path: /convert}}\n"
		}
		out = append(out, text)
	}
	return strings.Join(out, "---\n")
}
