package explain

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// undecidedWith is the Service before the controller has seen it, with more edits: the decision
// code itself then says why it gets no address.
func undecidedWith(more ...edit) []edit { return slices.Concat(undecided, more) }

// withSpec adds fields to the spec of the Service.
func withSpec(fields string) edit {
	return edit{"spec: {type: LoadBalancer, clusterIP", "spec: {type: LoadBalancer, " + fields + ", clusterIP"}
}

// withoutLayer2 lets the L2Advertisement cover nothing, so that only routers get the Service.
var withoutLayer2 = []edit{noAnsweringNodeEdit, {"spec: {ipAddressPools: [first-pool]}", "spec: {ipAddressPools: [first-pool], nodeSelectors: [{matchLabels: {none: none}}]}"}}

// withGossip gives the speaker of node 1 or 2 a condition about its gossip.
func withGossip(node int, unreachable string, reason names.Reason, message string) []edit {
	held := map[int]string{1: "  held: 1\n", 2: ""}[node]
	before := fmt.Sprintf("  node: node%d\n%s  lastSeen: \"2026-03-01T11:59:30Z\"\n  usableLinks: [eth0]\n  conditions: [", node, held)
	condition := fmt.Sprintf("{type: gantry.dev/GossipComplete, status: \"False\", reason: %s, message: '%s', lastTransitionTime: \"2026-03-01T11:00:00Z\"}, ", reason, message)
	return []edit{{before, strings.Replace(before, "  usableLinks", "  unreachable: ["+unreachable+"]\n  usableLinks", 1) + condition}}
}

// noEstablishedSession is a session that is down.
func noEstablishedSession(reason names.Reason, message string) edit {
	return edit{`status: "True", reason: Established, message: ""`, fmt.Sprintf(`status: "False", reason: %s, message: '%s'`, reason, message)}
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

// withheldManifest keeps 192.168.0.202 from Services.
func withheldManifest(more string) string {
	return "apiVersion: gantry.dev/v1alpha1\nkind: AddressLedger\nmetadata: {name: gantry-withheld, namespace: metallb-system}\nspec: {withheld: [{address: 192.168.0.202, until: \"2026-03-01T13:00:00Z\", " + more + "}]}\n---\n"
}

// withLink lets a speaker describe its link.
var withLink = edit{"  usableLinks: [eth0]\n  conditions", "  usableLinks: [eth0]\n  links: [{name: eth0, usable: true, families: [IPv4], subnets: [192.168.0.0/24]}]\n  conditions"}

var asksForSecond = withAnnotation(names.AnnotationLoadBalancerIPs, "192.168.0.202")

// listedFaults are faults that the other tables lack.
var listedFaults = []serviceFault{
	{name: "a gossip key of one node differs", edits: slices.Concat(withGossip(1, "node3", names.ReasonGossipKeyDiffers, "x"), withGossip(2, "node3", names.ReasonGossipKeyDiffers, "x")), more: thirdNodeManifests,
		reason: names.ReasonGossipKeyDiffers, contains: `is announced, but a failover takes longer: the speaker of node3 has another gossip key than those of node1, node2: let all use the entry "key" of Secret metallb-system/gantry-gossip`, repair: "rollout restart daemonset gantry-speaker"},
	{name: "two nodes have different gossip keys, from files", edits: slices.Concat(withGossip(1, "node2", names.ReasonGossipKeyDiffers, "x"), withGossip(2, "node1", names.ReasonGossipKeyDiffers, "x"), []edit{{"containers: [{name: speaker}]", "containers: [{name: speaker, args: [--gossip-key-file=/etc/key]}]"}}),
		reason: names.ReasonGossipKeyDiffers, contains: `the speakers of node1, node2 have different gossip keys: let all use the entry "key" of Secret metallb-system/gantry-gossip; DaemonSet gantry-speaker lets each read its key from the file /etc/key`},
	{name: "a node with another gossip key answers too", edits: slices.Concat(withGossip(2, "node1", names.ReasonGossipKeyDiffers, "x"), newForeignAnswerEdits(strayMAC), []edit{foreignMACOnNode2Edit}),
		reason: names.ReasonGossipKeyDiffers, contains: "node2 (" + strayMAC + ") answers for it too, and does not hear the other speakers"},
	{name: "gossip is blocked in one direction", edits: withGossip(1, "node2", names.ReasonGossipBlocked, "gossip is blocked with the speakers of node2 (UDP), although they run"),
		reason: names.ReasonGossipBlocked, contains: "the speaker of node1: gossip is blocked with the speakers of node2 (UDP)", repair: "nc -vz NODE 7946"},
	{name: "a dead link on each node", edits: []edit{noAnsweringNodeEdit, {"usableLinks: [eth0]\n  conditions: [", "usableLinks: []\n  conditions: [{type: gantry.dev/Layer2Usable, status: \"False\", reason: NoLinks, message: 'no link is usable: eth0 is down', lastTransitionTime: \"2026-03-01T11:00:00Z\"}, "}, {"usableLinks: [eth0]\n  conditions: [", "usableLinks: []\n  conditions: [{type: gantry.dev/Layer2Usable, status: \"False\", reason: NoLinks, message: 'no link is usable: eth0 is down', lastTransitionTime: \"2026-03-01T11:00:00Z\"}, "}},
		reason: names.ReasonNoLinks, contains: "192.168.0.201 is not announced: no node announces it: node1, node2: no link is usable: eth0 is down"},
	{name: "a link that receives nothing", edits: []edit{{silentKubeProxyOnNode1Edit.old, strings.Replace(strings.Replace(silentKubeProxyOnNode1Edit.now, "ServiceProxySilent", "LinkSilent", 1), "kube-proxy on the node does not answer its health check any more: look at kube-proxy", "the link eth0 receives nothing", 1)}},
		reason: names.ReasonLinkSilent, contains: "node1, which announces it, is not fit: the link eth0 receives nothing"},
	{name: "a network address", edits: []edit{{"gantry: {addresses: [192.168.0.201]}", "gantry: {addresses: [192.168.0.201], reservedAddresses: [{address: 192.168.0.201, subnet: 192.168.0.201/30}]}"}},
		reason: names.ReasonBroadcastAddress, contains: "192.168.0.201 is the network address of the subnet"},
	{name: "an address in quarantine", edits: undecidedWith(asksForSecond), more: withheldManifest(`reason: Quarantined, by: "02:00:00:00:00:09"`),
		reason: names.ReasonQuarantined, contains: "the requested 192.168.0.202 is in quarantine until 2026-03-01T13:00:00Z: host 02:00:00:00:00:09 answered for it", repair: "annotate service web metallb.io/loadBalancerIPs-"},
	{name: "an address that cools down", edits: undecidedWith(asksForSecond), more: withheldManifest("reason: CoolingDown, namespace: shop, name: till"),
		reason: names.ReasonCoolingDown, contains: "was released by Service shop/till and cools down"},
	{name: "the pool was edited under the Service", edits: []edit{{"addresses: [192.168.0.201-192.168.0.202]", "addresses: [192.168.7.0/24]"}},
		reason: names.ReasonAddressNotInPool, contains: "is announced, but IPAddressPool first-pool does not contain 192.168.0.201 any more, and the Service keeps it: add it to the pool again, or let the Service have another one by the annotation gantry.dev/release-address=192.168.0.201"},
	{name: "the pool excludes the address by now", edits: []edit{{"addresses: [192.168.0.201-192.168.0.202]", "addresses: [192.168.0.201-192.168.0.202], gantry: {exclude: [192.168.0.201]}"}},
		reason: names.ReasonAddressNotInPool, contains: "IPAddressPool first-pool excludes 192.168.0.201 by now"},
	{name: "the pool lost the address of the Service", edits: []edit{noAnsweringNodeEdit, {"addresses: [192.168.0.201-192.168.0.202]", "addresses: [192.168.7.0/24]"}, {`  - {type: gantry.dev/AllocatedFromPool, status: "True", reason: Assigned, message: first-pool, lastTransitionTime: "2026-03-01T11:00:00Z"}` + "\n", ""}},
		reason: names.ReasonAddressOutsidePools, contains: "the address 192.168.0.201 is in no IPAddressPool in namespace metallb-system"},
}

// listedSessionFaults are faults of the session with the router.
var listedSessionFaults = []serviceFault{
	{name: "a wrong AS number", reason: names.ReasonWrongASNumber, contains: "it expects another AS number than 64512"},
	{name: "a wrong password", reason: names.ReasonNoAnswer, contains: "is the password the same on both sides?"},
	{name: "a wrong address", reason: names.ReasonUnreachable, contains: "no route to host"},
	{name: "a wrong TTL", reason: names.ReasonNoAnswer, contains: "the router may be several hops away: set ebgpMultiHop"},
	{name: "a capability", reason: names.ReasonRefusedByRouter, contains: "it requires a capability that this speaker did not offer"},
	{name: "a missing Secret", reason: names.ReasonUnknownSecret, contains: "no Secret tor exists"},
	{name: "a Secret of another type", reason: names.ReasonUnknownSecret, contains: "Secret tor is of type Opaque"},
	{name: "too many prefixes for the router", reason: names.ReasonTooManyPrefixes, contains: "raise the limit for this neighbour there"},
	{name: "BFD is down", reason: names.ReasonBFDDown, contains: "BFD found the path to be down"},
	{name: "BFD at the router alone", reason: names.ReasonBFDDown, contains: "the router watches the path by BFD: set bfdProfile"},
}

// strangerFaults are what somebody may try who does not know Gantry.
var strangerFaults = []serviceFault{
	{name: "loadBalancerIP outside of the pools", edits: undecidedWith(withSpec("loadBalancerIP: 10.9.9.9")), reason: names.ReasonAddressNotInPool, contains: "no pool contains the requested 10.9.9.9", repair: "edit service web  # spec.loadBalancerIP"},
	{name: "an address that cannot be parsed", edits: undecidedWith(withAnnotation(names.AnnotationLoadBalancerIPs, "192.168.0.2O1")), reason: names.ReasonInvalidRequest, contains: `annotation metallb.io/loadBalancerIPs: "192.168.0.2O1" is no address`},
	{name: "a range where one address is expected", edits: undecidedWith(withAnnotation(names.AnnotationLoadBalancerIPs, "192.168.0.201-192.168.0.202")), reason: names.ReasonInvalidRequest, contains: `"192.168.0.201-192.168.0.202" is no address`},
	{name: "both ways to ask for an address", edits: undecidedWith(withSpec("loadBalancerIP: 192.168.0.201"), asksForSecond), reason: names.ReasonInvalidRequest, contains: "keep one of them"},
	{name: "a family that no pool has", edits: undecidedWith(edit{"clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10]", "clusterIP: 'fd00:96::a', clusterIPs: ['fd00:96::a'], ipFamilies: [IPv6]"}),
		reason: names.ReasonPoolExhausted, contains: "first-pool has no IPv6 addresses", repair: "add a range to spec.addresses"},
	{name: "both families, and the cluster has one", edits: undecidedWith(withSpec("ipFamilyPolicy: RequireDualStack")), reason: names.ReasonFamilyMismatch, contains: "ipFamilyPolicy is RequireDualStack, but the Service has cluster IPs of one family only"},
	{name: "an interface that no node has", edits: []edit{noAnsweringNodeEdit, withLink, withLink, {"spec: {ipAddressPools: [first-pool]}", "spec: {ipAddressPools: [first-pool], interfaces: [eht0]}"}}, reason: names.ReasonNoLinks, contains: "eht0"},
	{name: "a misspelt nodeSelector", edits: []edit{noAnsweringNodeEdit, {"spec: {ipAddressPools: [first-pool]}", "spec: {ipAddressPools: [first-pool], nodeSelectors: [{matchLabels: {kubernetes.io/hostnme: node1}}]}"}}, reason: names.ReasonNoAdvertisement, contains: `the nodeSelectors of the L2Advertisement "example" match no node`},
	{name: "two advertisements of other pools", edits: []edit{noAnsweringNodeEdit, {"spec: {ipAddressPools: [first-pool]}", "spec: {ipAddressPools: [second-pool]}"}},
		more:   "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: second-pool, namespace: metallb-system}\nspec: {addresses: [10.7.0.0/24]}\n---\napiVersion: metallb.io/v1beta1\nkind: BGPAdvertisement\nmetadata: {name: other, namespace: metallb-system}\nspec: {ipAddressPools: [second-pool]}\n---\n",
		reason: names.ReasonNoAdvertisement, contains: `selects pool "first-pool" and this Service`},
	{name: "an advertisement of a misspelt pool", edits: []edit{noAnsweringNodeEdit, {"spec: {ipAddressPools: [first-pool]}", "spec: {ipAddressPools: [frist-pool]}"}}, reason: names.ReasonNoAdvertisement, contains: `L2Advertisement example has a fault: spec.ipAddressPools[0]: no IPAddressPool "frist-pool" exists`},
	{name: "an advertisement in another namespace", edits: []edit{noAnsweringNodeEdit, {"kind: L2Advertisement\nmetadata: {name: example, namespace: metallb-system}", "kind: L2Advertisement\nmetadata: {name: example, namespace: default}"}}, reason: names.ReasonNoAdvertisement, contains: "L2Advertisement example is in namespace default, where it does not count"},
	{name: "pools that are closed", edits: undecidedWith(edit{"spec: {addresses: [192.168.0.201-192.168.0.202]}", "spec: {addresses: [192.168.0.201-192.168.0.202], autoAssign: false}"}), reason: names.ReasonNoEligiblePool, contains: "(first-pool has autoAssign false)"},
	{name: "a pool for another namespace", edits: undecidedWith(edit{"spec: {addresses: [192.168.0.201-192.168.0.202]}", "spec: {addresses: [192.168.0.201-192.168.0.202], serviceAllocation: {namespaces: [shop]}}"}), reason: names.ReasonNoEligiblePool, contains: "the serviceAllocation of first-pool does not admit it"},
	{name: "external addresses", edits: []edit{{"spec: {type: LoadBalancer, clusterIP", "spec: {type: ClusterIP, externalIPs: [192.168.0.201], clusterIP"}}, reason: names.ReasonNotLoadBalancer, contains: "its type is ClusterIP, and only Services of type LoadBalancer get an address: set spec.type; nobody announces spec.externalIPs"},
	{name: "no class, and Gantry serves one", edits: undecidedWith(edit{"command: [/controller]", "command: [/controller, --load-balancer-class=example.com/lan]"}), reason: names.ReasonNotLoadBalancer, contains: `it has no loadBalancerClass, and Gantry serves only the class "example.com/lan"`},
	{name: "a speaker on the only Pod's node that ends again and again", edits: []edit{noAnsweringNodeEdit, withSpec("externalTrafficPolicy: Local"), {`status: "True", reason: SpeakerRuns`, `status: "False", reason: NoSpeaker`}, {"numberReady: 2", "numberReady: 1"}},
		more:   podManifest("speaker", `{phase: Running, containerStatuses: [{name: speaker, image: x, imageID: "", ready: false, restartCount: 7, lastState: {terminated: {exitCode: 2}}, state: {waiting: {reason: CrashLoopBackOff}}}]}`),
		reason: names.ReasonNoSpeaker, contains: "node1: its speaker is gone or silent"},
	{name: "endpoints that all terminate", edits: []edit{noAnsweringNodeEdit, {"conditions: {ready: true}", "conditions: {ready: false, serving: false, terminating: true}"}}, reason: names.ReasonNoEndpoints, contains: "no endpoint of the Service can serve"},
	{name: "two pools with the same addresses", edits: []edit{{"metadata: {name: first-pool, namespace: metallb-system}", "metadata: {name: first-pool, namespace: metallb-system, creationTimestamp: \"2026-03-01T11:00:00Z\"}"}},
		more:   "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: older, namespace: metallb-system, creationTimestamp: \"2026-03-01T10:00:00Z\"}\nspec: {addresses: [192.168.0.202-192.168.0.209]}\n---\n",
		reason: names.ReasonOverlap, contains: "the IPAddressPool first-pool has a fault"},
}

// strangerRouteFaults are the same for a Service that only a router gets.
var strangerRouteFaults = []serviceFault{
	{name: "peers that do not exist", edits: []edit{{"name: routed, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool]}", "name: routed, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool], peers: [tro]}"}, {"peers: [tor]", "peers: []"}},
		reason: names.ReasonNoPeers, contains: "the BGPAdvertisements that select the Service (routed) have no BGPPeer to announce it to, and none has the name tro"},
	{name: "a BGPPeer for no node", edits: []edit{{"nodeSelectors: [{matchLabels: {kubernetes.io/hostname: node1}}]", "nodeSelectors: [{matchLabels: {rack: a}}]"}, {"peers: [tor]", "peers: []"}}, reason: names.ReasonNoPeers, contains: "(routed) have no BGPPeer on a node that they select"},
	{name: "an aggregation that covers other addresses", edits: []edit{{"name: routed, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool]}", "name: routed, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool], aggregationLength: 24}"}, {"peers: [tor]", "peers: []"}},
		reason: names.ReasonNoAdvertisement, contains: "BGPAdvertisement routed has a fault: spec.aggregationLength"},
	{name: "a Secret of another type, as it is", edits: []edit{{"peerAddress: 192.168.0.1, node", "peerAddress: 192.168.0.1, passwordSecret: {name: tor}, node"}, {"peers: [tor]", "peers: []"},
		noEstablishedSession(names.ReasonUnknownSecret, "spec.passwordSecret: no Secret tor of type kubernetes.io/basic-auth exists")},
		more:   "apiVersion: v1\nkind: Secret\nmetadata: {name: tor, namespace: metallb-system}\ntype: Opaque\n---\n",
		reason: names.ReasonNoSession, contains: "(UnknownSecret); Secret tor exists, and is of type Opaque: create it again with the type kubernetes.io/basic-auth"},
	{name: "a BFDProfile that does not exist", edits: []edit{{"peerAddress: 192.168.0.1, node", "peerAddress: 192.168.0.1, bfdProfile: fats, node"}}, reason: names.ReasonUnknownBFDProfile, contains: "fats"},
}

func TestFaultsOfRoutesAreNamed(t *testing.T) {
	for _, f := range slices.Concat(listedSessionFaults, strangerRouteFaults) {
		t.Run(f.name, func(t *testing.T) {
			if f.edits == nil {
				f.edits = []edit{noEstablishedSession(f.reason, f.contains), {"peers: [tor]", "peers: []"}}
				f.contains, f.reason = "0 of 1 BGP sessions carry the Service", names.ReasonNoSession
			}
			manifests := replaceAll(t, installationManifests+workingServiceManifests+routerManifests, slices.Concat(withoutLayer2, f.edits))
			r := explainTestService(t, manifests+f.more)
			if r.Result != report.NotWell || r.Reason != f.reason || !strings.Contains(r.FirstLine(), f.contains) || len(r.Repair) == 0 {
				t.Errorf("%s: %s\n%+v\nwant %s: %s", r.Result, r.FirstLine(), r.Gates, f.reason, f.contains)
			}
		})
	}
}

// TestHarmlessPeculiarities has Services and clusters that look odd, and work.
func TestHarmlessPeculiarities(t *testing.T) {
	for name, c := range map[string]struct {
		edits []edit
		more  string
		want  string
	}{
		"a cordoned node":              {edits: []edit{{"metadata: {name: node1, labels: {kubernetes.io/hostname: node1}}", "metadata: {name: node1, labels: {kubernetes.io/hostname: node1}}\nspec: {unschedulable: true}"}}},
		"another advertisement":        {more: "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: second-pool, namespace: metallb-system}\nspec: {addresses: [10.7.0.0/24]}\n---\napiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: other, namespace: metallb-system}\nspec: {ipAddressPools: [second-pool], interfaces: [eth77]}\n---\n"},
		"source ranges":                {edits: []edit{withSpec("loadBalancerSourceRanges: [10.0.0.0/8]")}, want: "; only clients of 10.0.0.0/8 are admitted"},
		"external addresses, too":      {edits: []edit{withSpec("externalIPs: [192.0.2.7]")}},
		"the class that Gantry serves": {edits: []edit{{"command: [/controller]", "command: [/controller, --load-balancer-class=example.com/lan]"}, withSpec("loadBalancerClass: example.com/lan")}},
		"annotations of others":        {edits: []edit{withAnnotation("example.com/address-pool", "other")}},
	} {
		r := explainTestService(t, replaceAll(t, installationManifests+workingServiceManifests, c.edits)+c.more)
		if r.Result != report.Well || !strings.Contains(r.FirstLine(), "192.168.0.201 from pool first-pool is announced by layer 2; node1 answers"+c.want) {
			t.Errorf("%s: %s: %s", name, r.Result, r.FirstLine())
		}
	}
}

// TestUnknownNamespaceIsNamed asks for a Service in a namespace that does not exist.
func TestUnknownNamespaceIsNamed(t *testing.T) {
	r, err := newTestExplainer(newTestAPI(t, installationManifests+workingServiceManifests).Build()).ExplainService(t.Context(), client.ObjectKey{Namespace: "defualt", Name: "web"})
	if want := "there is no Service defualt/web: there is no namespace defualt; did you mean default?"; err != nil || r.Result != report.Unknown || r.FirstLine() != want {
		t.Errorf("%v, %+v, want %s", err, r, want)
	}
}

// TestServiceOfAnyNamespace asks for a Service without its namespace.
func TestServiceOfAnyNamespace(t *testing.T) {
	second := strings.Replace(strings.SplitN(workingServiceManifests, "---", 2)[0], "namespace: default", "namespace: shop", 1) + "---\n"
	for _, c := range []struct{ manifests, name, want string }{
		{installationManifests + workingServiceManifests, "web", "default/web: 192.168.0.201 from pool first-pool is announced by layer 2; node1 answers [Announced]"},
		{installationManifests + workingServiceManifests + second, "web", "the namespaces default, shop have a Service web: name one with -n"},
		{installationManifests + workingServiceManifests, "wbe", "no namespace has a Service wbe"},
	} {
		r, err := newTestExplainer(newTestAPI(t, c.manifests).Build()).ExplainService(t.Context(), client.ObjectKey{Name: c.name})
		if err != nil || r.FirstLine() != c.want {
			t.Errorf("%v, %+v, want %s", err, r, c.want)
		}
	}
}
