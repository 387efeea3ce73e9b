package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// undecidedServiceEditsWith is the Service before the controller has seen it, with more edits: the
// decision code itself then says why it gets no address.
func undecidedServiceEditsWith(more ...manifestEdit) []manifestEdit {
	return slices.Concat(undecidedServiceEdits, more)
}

// serviceSpecEdit adds fields to the spec of the Service.
func serviceSpecEdit(fields string) manifestEdit {
	return manifestEdit{"spec: {type: LoadBalancer, clusterIP", "spec: {type: LoadBalancer, " + fields + ", clusterIP"}
}

// noLayer2Edits lets the L2Advertisement cover nothing, so that only routers get the Service.
var noLayer2Edits = []manifestEdit{noAnsweringNodeEdit, {"spec: {ipAddressPools: [first-pool]}", "spec: {ipAddressPools: [first-pool], nodeSelectors: [{matchLabels: {none: none}}]}"}}

// gossipConditionEdits gives the speaker of node 1 or 2 a condition about its gossip.
func gossipConditionEdits(node int, unreachable string, reason names.Reason, message string) []manifestEdit {
	held := map[int]string{1: "  held: 1\n", 2: ""}[node]
	before := fmt.Sprintf("  node: node%d\n%s  lastSeen: \"2026-03-01T11:59:30Z\"\n  usableLinks: [eth0]\n  conditions: [", node, held)
	condition := fmt.Sprintf("{type: gantry.dev/GossipComplete, status: \"False\", reason: %s, message: '%s', lastTransitionTime: \"2026-03-01T11:00:00Z\"}, ", reason, message)
	return []manifestEdit{{before, strings.Replace(before, "  usableLinks", "  unreachable: ["+unreachable+"]\n  usableLinks", 1) + condition}}
}

// sessionDownEdit is a session that is down.
func sessionDownEdit(reason names.Reason, message string) manifestEdit {
	return manifestEdit{`status: "True", reason: Established, message: ""`, fmt.Sprintf(`status: "False", reason: %s, message: '%s'`, reason, message)}
}

// thirdNodeManifests are a third node with its speaker.
const thirdNodeManifests = `apiVersion: v1
kind: Node
metadata: {name: node3, labels: {kubernetes.io/hostname: node3}}
---
apiVersion: gantry.dev/v1alpha1
kind: SpeakerStatus
metadata: {name: node3, namespace: metallb-system}
status:
  node: node3
  lastSeen: "2026-03-01T11:59:30Z"
  usableLinks: [eth0]
  unreachable: [node1, node2]
  conditions: [{type: gantry.dev/GossipComplete, status: "False", reason: GossipKeyDiffers, message: x, lastTransitionTime: "2026-03-01T11:00:00Z"}, {type: gantry.dev/Ready, status: "True", reason: SpeakerRuns, message: "", lastTransitionTime: "2026-03-01T11:00:00Z"}]
---
`

// withheldAddressLedgerManifest keeps 192.168.0.202 from Services.
func withheldAddressLedgerManifest(more string) string {
	return "apiVersion: gantry.dev/v1alpha1\nkind: AddressLedger\nmetadata: {name: gantry-withheld, namespace: metallb-system}\nspec: {withheld: [{address: 192.168.0.202, until: \"2026-03-01T13:00:00Z\", " + more + "}]}\n---\n"
}

// addSpeakerLinkDetailsEdit lets a speaker describe its link.
var addSpeakerLinkDetailsEdit = manifestEdit{"  usableLinks: [eth0]\n  conditions", "  usableLinks: [eth0]\n  links: [{name: eth0, usable: true, families: [IPv4], subnets: [192.168.0.0/24]}]\n  conditions"}

var requestSecondAddressEdit = serviceAnnotationEdit(names.AnnotationLoadBalancerIPs, "192.168.0.202")

// otherServiceFaults are faults that the other tables lack.
var otherServiceFaults = []serviceFaultCase{
	{name: "a gossip key of one node differs", edits: slices.Concat(gossipConditionEdits(1, "node3", names.ReasonGossipKeyDiffers, "x"), gossipConditionEdits(2, "node3", names.ReasonGossipKeyDiffers, "x")), moreManifests: thirdNodeManifests,
		wantReason: names.ReasonGossipKeyDiffers, answerContains: `is announced, but a failover takes longer: the speaker of node3 has another gossip key than those of node1, node2: let all use the entry "key" of Secret metallb-system/gantry-gossip`, wantRepairPart: "rollout restart daemonset gantry-speaker"},
	{name: "two nodes have different gossip keys, from files", edits: slices.Concat(gossipConditionEdits(1, "node2", names.ReasonGossipKeyDiffers, "x"), gossipConditionEdits(2, "node1", names.ReasonGossipKeyDiffers, "x"), []manifestEdit{{"containers: [{name: speaker}]", "containers: [{name: speaker, args: [--gossip-key-file=/etc/key]}]"}}),
		wantReason: names.ReasonGossipKeyDiffers, answerContains: `the speakers of node1, node2 have different gossip keys: let all use the entry "key" of Secret metallb-system/gantry-gossip; DaemonSet gantry-speaker lets each read its key from the file /etc/key`},
	{name: "a node with another gossip key answers too", edits: slices.Concat(gossipConditionEdits(2, "node1", names.ReasonGossipKeyDiffers, "x"), newForeignAnswerEdits(strayAnswererMAC), []manifestEdit{giveStrayMACToNode2Edit}),
		wantReason: names.ReasonGossipKeyDiffers, answerContains: "node2 (" + strayAnswererMAC + ") answers for it too, and does not hear the other speakers"},
	{name: "gossip is blocked in one direction", edits: gossipConditionEdits(1, "node2", names.ReasonGossipBlocked, "gossip is blocked with the speakers of node2 (UDP), although they run"),
		wantReason: names.ReasonGossipBlocked, answerContains: "the speaker of node1: gossip is blocked with the speakers of node2 (UDP)", wantRepairPart: "nc -vz NODE 7946"},
	{name: "a dead link on each node", edits: []manifestEdit{noAnsweringNodeEdit, {"usableLinks: [eth0]\n  conditions: [", "usableLinks: []\n  conditions: [{type: gantry.dev/Layer2Usable, status: \"False\", reason: NoLinks, message: 'no link is usable: eth0 is down', lastTransitionTime: \"2026-03-01T11:00:00Z\"}, "}, {"usableLinks: [eth0]\n  conditions: [", "usableLinks: []\n  conditions: [{type: gantry.dev/Layer2Usable, status: \"False\", reason: NoLinks, message: 'no link is usable: eth0 is down', lastTransitionTime: \"2026-03-01T11:00:00Z\"}, "}},
		wantReason: names.ReasonNoLinks, answerContains: "192.168.0.201 is not announced: no node announces it: node1, node2: no link is usable: eth0 is down"},
	{name: "a link that receives nothing", edits: []manifestEdit{{silentKubeProxyOnNode1Edit.oldText, strings.Replace(strings.Replace(silentKubeProxyOnNode1Edit.newText, "ServiceProxySilent", "LinkSilent", 1), "kube-proxy on the node does not answer its health check any more: look at kube-proxy", "the link eth0 receives nothing", 1)}},
		wantReason: names.ReasonLinkSilent, answerContains: "node1, which announces it, is not fit: the link eth0 receives nothing"},
	{name: "a network address", edits: []manifestEdit{{"gantry: {addresses: [192.168.0.201]}", "gantry: {addresses: [192.168.0.201], reservedAddresses: [{address: 192.168.0.201, subnet: 192.168.0.201/30}]}"}},
		wantReason: names.ReasonBroadcastAddress, answerContains: "192.168.0.201 is the network address of the subnet"},
	{name: "an address in quarantine", edits: undecidedServiceEditsWith(requestSecondAddressEdit), moreManifests: withheldAddressLedgerManifest(`reason: Quarantined, by: "02:00:00:00:00:09"`),
		wantReason: names.ReasonQuarantined, answerContains: "the requested 192.168.0.202 is in quarantine until 2026-03-01T13:00:00Z: host 02:00:00:00:00:09 answered for it", wantRepairPart: "annotate service web metallb.io/loadBalancerIPs-"},
	{name: "an address that cools down", edits: undecidedServiceEditsWith(requestSecondAddressEdit), moreManifests: withheldAddressLedgerManifest("reason: CoolingDown, namespace: shop, name: till"),
		wantReason: names.ReasonCoolingDown, answerContains: "was released by Service shop/till and cools down"},
	{name: "the pool was edited under the Service", edits: []manifestEdit{{"addresses: [192.168.0.201-192.168.0.202]", "addresses: [192.168.7.0/24]"}},
		wantReason: names.ReasonAddressNotInPool, answerContains: "is announced, but IPAddressPool first-pool does not contain 192.168.0.201 any more, and the Service keeps it: add it to the pool again, or let the Service have another one by the annotation gantry.dev/release-address=192.168.0.201"},
	{name: "the pool excludes the address by now", edits: []manifestEdit{{"addresses: [192.168.0.201-192.168.0.202]", "addresses: [192.168.0.201-192.168.0.202], gantry: {exclude: [192.168.0.201]}"}},
		wantReason: names.ReasonAddressNotInPool, answerContains: "IPAddressPool first-pool excludes 192.168.0.201 by now"},
	{name: "the pool lost the address of the Service", edits: []manifestEdit{noAnsweringNodeEdit, {"addresses: [192.168.0.201-192.168.0.202]", "addresses: [192.168.7.0/24]"}, {`  - {type: gantry.dev/AllocatedFromPool, status: "True", reason: Assigned, message: first-pool, lastTransitionTime: "2026-03-01T11:00:00Z"}` + "\n", ""}},
		wantReason: names.ReasonAddressOutsidePools, answerContains: "the address 192.168.0.201 is in no IPAddressPool in namespace metallb-system"},
}

// bgpSessionFaults are faults of the session with the router.
var bgpSessionFaults = []serviceFaultCase{
	{name: "a wrong AS number", wantReason: names.ReasonWrongASNumber, answerContains: "it expects another AS number than 64512"},
	{name: "a wrong password", wantReason: names.ReasonNoAnswer, answerContains: "is the password the same on both sides?"},
	{name: "a wrong address", wantReason: names.ReasonUnreachable, answerContains: "no route to host"},
	{name: "a wrong TTL", wantReason: names.ReasonNoAnswer, answerContains: "the router may be several hops away: set ebgpMultiHop"},
	{name: "a capability", wantReason: names.ReasonRefusedByRouter, answerContains: "it requires a capability that this speaker did not offer"},
	{name: "a missing Secret", wantReason: names.ReasonUnknownSecret, answerContains: "no Secret tor exists"},
	{name: "a Secret of another type", wantReason: names.ReasonUnknownSecret, answerContains: "Secret tor is of type Opaque"},
	{name: "too many prefixes for the router", wantReason: names.ReasonTooManyPrefixes, answerContains: "raise the limit for this neighbour there"},
	{name: "BFD is down", wantReason: names.ReasonBFDDown, answerContains: "BFD found the path to be down"},
	{name: "BFD at the router alone", wantReason: names.ReasonBFDDown, answerContains: "the router watches the path by BFD: set bfdProfile"},
}

// newcomerMistakes are what somebody may try who does not know Gantry.
var newcomerMistakes = []serviceFaultCase{
	{name: "loadBalancerIP outside of the pools", edits: undecidedServiceEditsWith(serviceSpecEdit("loadBalancerIP: 10.9.9.9")), wantReason: names.ReasonAddressNotInPool, answerContains: "no pool contains the requested 10.9.9.9", wantRepairPart: "edit service web  # spec.loadBalancerIP"},
	{name: "an address that cannot be parsed", edits: undecidedServiceEditsWith(serviceAnnotationEdit(names.AnnotationLoadBalancerIPs, "192.168.0.2O1")), wantReason: names.ReasonInvalidRequest, answerContains: `annotation metallb.io/loadBalancerIPs: "192.168.0.2O1" is no address`},
	{name: "a range where one address is expected", edits: undecidedServiceEditsWith(serviceAnnotationEdit(names.AnnotationLoadBalancerIPs, "192.168.0.201-192.168.0.202")), wantReason: names.ReasonInvalidRequest, answerContains: `"192.168.0.201-192.168.0.202" is no address`},
	{name: "both ways to ask for an address", edits: undecidedServiceEditsWith(serviceSpecEdit("loadBalancerIP: 192.168.0.201"), requestSecondAddressEdit), wantReason: names.ReasonInvalidRequest, answerContains: "keep one of them"},
	{name: "a family that no pool has", edits: undecidedServiceEditsWith(manifestEdit{"clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10]", "clusterIP: 'fd00:96::a', clusterIPs: ['fd00:96::a'], ipFamilies: [IPv6]"}),
		wantReason: names.ReasonPoolExhausted, answerContains: "first-pool has no IPv6 addresses", wantRepairPart: "add a range to spec.addresses"},
	{name: "both families, and the cluster has one", edits: undecidedServiceEditsWith(serviceSpecEdit("ipFamilyPolicy: RequireDualStack")), wantReason: names.ReasonFamilyMismatch, answerContains: "ipFamilyPolicy is RequireDualStack, but the Service has cluster IPs of one family only"},
	{name: "an interface that no node has", edits: []manifestEdit{noAnsweringNodeEdit, addSpeakerLinkDetailsEdit, addSpeakerLinkDetailsEdit, {"spec: {ipAddressPools: [first-pool]}", "spec: {ipAddressPools: [first-pool], interfaces: [eht0]}"}}, wantReason: names.ReasonNoLinks, answerContains: "eht0"},
	{name: "a misspelt nodeSelector", edits: []manifestEdit{noAnsweringNodeEdit, {"spec: {ipAddressPools: [first-pool]}", "spec: {ipAddressPools: [first-pool], nodeSelectors: [{matchLabels: {kubernetes.io/hostnme: node1}}]}"}}, wantReason: names.ReasonNoAdvertisement, answerContains: `the nodeSelectors of the L2Advertisement "example" match no node`},
	{name: "two advertisements of other pools", edits: []manifestEdit{noAnsweringNodeEdit, {"spec: {ipAddressPools: [first-pool]}", "spec: {ipAddressPools: [second-pool]}"}},
		moreManifests: "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: second-pool, namespace: metallb-system}\nspec: {addresses: [10.7.0.0/24]}\n---\napiVersion: metallb.io/v1beta1\nkind: BGPAdvertisement\nmetadata: {name: other, namespace: metallb-system}\nspec: {ipAddressPools: [second-pool]}\n---\n",
		wantReason:    names.ReasonNoAdvertisement, answerContains: `selects pool "first-pool" and this Service`},
	{name: "an advertisement of a misspelt pool", edits: []manifestEdit{noAnsweringNodeEdit, {"spec: {ipAddressPools: [first-pool]}", "spec: {ipAddressPools: [frist-pool]}"}}, wantReason: names.ReasonNoAdvertisement, answerContains: `L2Advertisement example has a fault: spec.ipAddressPools[0]: no IPAddressPool "frist-pool" exists`},
	{name: "an advertisement in another namespace", edits: []manifestEdit{noAnsweringNodeEdit, {"kind: L2Advertisement\nmetadata: {name: example, namespace: metallb-system}", "kind: L2Advertisement\nmetadata: {name: example, namespace: default}"}}, wantReason: names.ReasonNoAdvertisement, answerContains: "L2Advertisement example is in namespace default, where it does not count"},
	{name: "pools that are closed", edits: undecidedServiceEditsWith(manifestEdit{"spec: {addresses: [192.168.0.201-192.168.0.202]}", "spec: {addresses: [192.168.0.201-192.168.0.202], autoAssign: false}"}), wantReason: names.ReasonNoEligiblePool, answerContains: "(first-pool has autoAssign false)"},
	{name: "a pool for another namespace", edits: undecidedServiceEditsWith(manifestEdit{"spec: {addresses: [192.168.0.201-192.168.0.202]}", "spec: {addresses: [192.168.0.201-192.168.0.202], serviceAllocation: {namespaces: [shop]}}"}), wantReason: names.ReasonNoEligiblePool, answerContains: "the serviceAllocation of first-pool does not admit it"},
	{name: "external addresses", edits: []manifestEdit{{"spec: {type: LoadBalancer, clusterIP", "spec: {type: ClusterIP, externalIPs: [192.168.0.201], clusterIP"}}, wantReason: names.ReasonNotLoadBalancer, answerContains: "its type is ClusterIP, and only Services of type LoadBalancer get an address: set spec.type; nobody announces spec.externalIPs"},
	{name: "no class, and Gantry serves one", edits: undecidedServiceEditsWith(manifestEdit{"command: [/controller]", "command: [/controller, --load-balancer-class=example.com/lan]"}), wantReason: names.ReasonNotLoadBalancer, answerContains: `it has no loadBalancerClass, and Gantry serves only the class "example.com/lan"`},
	{name: "a speaker on the only Pod's node that ends again and again", edits: []manifestEdit{noAnsweringNodeEdit, serviceSpecEdit("externalTrafficPolicy: Local"), {`status: "True", reason: SpeakerRuns`, `status: "False", reason: NoSpeaker`}, {"numberReady: 2", "numberReady: 1"}},
		moreManifests: gantryPodManifest("speaker", `{phase: Running, containerStatuses: [{name: speaker, image: x, imageID: "", ready: false, restartCount: 7, lastState: {terminated: {exitCode: 2}}, state: {waiting: {reason: CrashLoopBackOff}}}]}`),
		wantReason:    names.ReasonNoSpeaker, answerContains: "node1: its speaker is gone or silent"},
	{name: "endpoints that all terminate", edits: []manifestEdit{noAnsweringNodeEdit, {"conditions: {ready: true}", "conditions: {ready: false, serving: false, terminating: true}"}}, wantReason: names.ReasonNoEndpoints, answerContains: "no endpoint of the Service can serve"},
	{name: "two pools with the same addresses", edits: []manifestEdit{{"metadata: {name: first-pool, namespace: metallb-system}", "metadata: {name: first-pool, namespace: metallb-system, creationTimestamp: \"2026-03-01T11:00:00Z\"}"}},
		moreManifests: "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: older, namespace: metallb-system, creationTimestamp: \"2026-03-01T10:00:00Z\"}\nspec: {addresses: [192.168.0.202-192.168.0.209]}\n---\n",
		wantReason:    names.ReasonOverlap, answerContains: "the IPAddressPool first-pool has a fault"},
}

// newcomerBGPMistakes are the same for a Service that only a router gets.
var newcomerBGPMistakes = []serviceFaultCase{
	{name: "peers that do not exist", edits: []manifestEdit{{"name: routed, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool]}", "name: routed, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool], peers: [tro]}"}, {"peers: [tor]", "peers: []"}},
		wantReason: names.ReasonNoPeers, answerContains: "the BGPAdvertisements that select the Service (routed) have no BGPPeer to announce it to, and none has the name tro"},
	{name: "a BGPPeer for no node", edits: []manifestEdit{{"nodeSelectors: [{matchLabels: {kubernetes.io/hostname: node1}}]", "nodeSelectors: [{matchLabels: {rack: a}}]"}, {"peers: [tor]", "peers: []"}}, wantReason: names.ReasonNoPeers, answerContains: "(routed) have no BGPPeer on a node that they select"},
	{name: "an aggregation that covers other addresses", edits: []manifestEdit{{"name: routed, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool]}", "name: routed, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool], aggregationLength: 24}"}, {"peers: [tor]", "peers: []"}},
		wantReason: names.ReasonNoAdvertisement, answerContains: "BGPAdvertisement routed has a fault: spec.aggregationLength"},
	{name: "a Secret of another type, as it is", edits: []manifestEdit{{"peerAddress: 192.168.0.1, node", "peerAddress: 192.168.0.1, passwordSecret: {name: tor}, node"}, {"peers: [tor]", "peers: []"},
		sessionDownEdit(names.ReasonUnknownSecret, "spec.passwordSecret: no Secret tor of type kubernetes.io/basic-auth exists")},
		moreManifests: "apiVersion: v1\nkind: Secret\nmetadata: {name: tor, namespace: metallb-system}\ntype: Opaque\n---\n",
		wantReason:    names.ReasonNoSession, answerContains: "(UnknownSecret); Secret tor exists, and is of type Opaque: create it again with the type kubernetes.io/basic-auth"},
	{name: "a BFDProfile that does not exist", edits: []manifestEdit{{"peerAddress: 192.168.0.1, node", "peerAddress: 192.168.0.1, bfdProfile: fats, node"}}, wantReason: names.ReasonUnknownBFDProfile, answerContains: "fats"},
}

func TestExplainServiceNamesBGPFaults(t *testing.T) {
	for _, f := range slices.Concat(bgpSessionFaults, newcomerBGPMistakes, moreBGPMistakes, combinedBGPMistakes) {
		t.Run(f.name, func(t *testing.T) {
			if f.edits == nil {
				f.edits = []manifestEdit{sessionDownEdit(f.wantReason, f.answerContains), {"peers: [tor]", "peers: []"}}
				f.answerContains, f.wantReason = "0 of 1 BGP sessions carry the Service", names.ReasonNoSession
			}
			manifests := applyManifestEdits(t, installationManifests+workingServiceManifests+routerManifests, slices.Concat(noLayer2Edits, f.edits))
			r := explainTestService(t, manifests+f.moreManifests)
			if r.Result != report.ResultNotWell || r.Reason != f.wantReason || !strings.Contains(r.AnswerWithReason(), f.answerContains) || !strings.Contains(strings.Join(r.Repair, "\n"), cmp.Or(f.wantRepairPart, "kubectl")) {
				t.Errorf("%s: %s\n%+v\nwant %s: %s", r.Result, r.AnswerWithReason(), r.Repair, f.wantReason, f.answerContains)
			}
		})
	}
}

// TestOddButWorkingServicesAreWell has Services and clusters that look odd, and work.
func TestOddButWorkingServicesAreWell(t *testing.T) {
	for name, c := range map[string]struct {
		edits []manifestEdit
		more  string
		want  string
	}{
		"a cordoned node":              {edits: []manifestEdit{{"metadata: {name: node1, labels: {kubernetes.io/hostname: node1}}", "metadata: {name: node1, labels: {kubernetes.io/hostname: node1}}\nspec: {unschedulable: true}"}}},
		"another advertisement":        {more: "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: second-pool, namespace: metallb-system}\nspec: {addresses: [10.7.0.0/24]}\n---\napiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: other, namespace: metallb-system}\nspec: {ipAddressPools: [second-pool], interfaces: [eth77]}\n---\n"},
		"source ranges":                {edits: []manifestEdit{serviceSpecEdit("loadBalancerSourceRanges: [10.0.0.0/8]")}, want: "; only clients of 10.0.0.0/8 are admitted"},
		"external addresses, too":      {edits: []manifestEdit{serviceSpecEdit("externalIPs: [192.0.2.7]")}},
		"the class that Gantry serves": {edits: []manifestEdit{{"command: [/controller]", "command: [/controller, --load-balancer-class=example.com/lan]"}, serviceSpecEdit("loadBalancerClass: example.com/lan")}},
		"annotations of others":        {edits: []manifestEdit{serviceAnnotationEdit("example.com/address-pool", "other")}},
	} {
		r := explainTestService(t, applyManifestEdits(t, installationManifests+workingServiceManifests, c.edits)+c.more)
		if r.Result != report.ResultWell || !strings.Contains(r.AnswerWithReason(), "192.168.0.201 from pool first-pool is announced by layer 2; node1 answers"+c.want) {
			t.Errorf("%s: %s: %s", name, r.Result, r.AnswerWithReason())
		}
	}
}

// TestUnknownNamespaceIsNamed asks for a Service in a namespace that does not exist.
func TestUnknownNamespaceIsNamed(t *testing.T) {
	r, err := newTestExplainer(clustertest.NewAPIBuilder(t, installationManifests+workingServiceManifests).Build()).ExplainService(t.Context(), client.ObjectKey{Namespace: "defualt", Name: "web"})
	if want := "there is no Service defualt/web: there is no namespace defualt; did you mean default?"; err != nil || r.Result != report.ResultUnknown || r.AnswerWithReason() != want {
		t.Errorf("%v, %+v, want %s", err, r, want)
	}
}

// TestServiceIsFoundWithoutNamespace asks for a Service without its namespace.
func TestServiceIsFoundWithoutNamespace(t *testing.T) {
	second := strings.Replace(strings.SplitN(workingServiceManifests, "---", 2)[0], "namespace: default", "namespace: shop", 1) + "---\n"
	for _, c := range []struct{ manifests, name, want string }{
		{installationManifests + workingServiceManifests, "web", "default/web: 192.168.0.201 from pool first-pool is announced by layer 2; node1 answers [Announced]"},
		{installationManifests + workingServiceManifests + second, "web", "the namespaces default, shop have a Service web: name one with -n"},
		{installationManifests + workingServiceManifests, "wbe", "no namespace has a Service wbe"},
	} {
		r, err := newTestExplainer(clustertest.NewAPIBuilder(t, c.manifests).Build()).ExplainService(t.Context(), client.ObjectKey{Name: c.name})
		if err != nil || r.AnswerWithReason() != c.want {
			t.Errorf("%v, %+v, want %s", err, r, c.want)
		}
	}
}
