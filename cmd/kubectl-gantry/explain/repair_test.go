package explain

import (
	"context"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// secondRouterManifests are a second BGPPeer of node1, with a session whose condition is the text.
func secondRouterManifests(condition string) string {
	return strings.NewReplacer("name: tor", "name: spine", "peer: tor", "peer: spine", "192.168.0.1", "192.168.0.254", `status: "True", reason: Established, message: ""`, condition).
		Replace(routerManifests[:strings.Index(routerManifests, "apiVersion: metallb.io/v1beta1\nkind: BGPAdvertisement")] + routerManifests[strings.Index(routerManifests, "apiVersion: gantry.dev/v1alpha1\nkind: BGPSession"):strings.Index(routerManifests, "apiVersion: metallb.io/v1beta1\nkind: ServiceBGPStatus")])
}

// otherPoolOfExampleEdit lets the L2Advertisement cover a pool that exists and is not the one of
// the Service.
var otherPoolOfExampleEdit = manifestEdit{"spec: {ipAddressPools: [first-pool]}", "spec: {ipAddressPools: [second-pool]}"}

// bothPeersCarryEdit lets node1 report that both routers have the routes.
var bothPeersCarryEdit = manifestEdit{"peers: [tor]}", "peers: [tor, spine]}"}

const uncoveredPoolManifest = "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: second-pool, namespace: metallb-system}\nspec: {addresses: [10.7.0.0/24]}\n---\n"

// TestRepairOfServiceNamesTheFaultyObject looks at the commands for a Service.
func TestRepairOfServiceNamesTheFaultyObject(t *testing.T) {
	for _, c := range []struct {
		name          string
		edits         []manifestEdit
		moreManifests string
		want          string
	}{
		{name: "the first of two sessions", edits: []manifestEdit{bothPeersCarryEdit}, moreManifests: routerManifests + secondRouterManifests(lostSessionConditionText), want: "kubectl -n metallb-system edit bgppeer spine"},
		{name: "the second of two sessions", edits: []manifestEdit{bothPeersCarryEdit, sessionDownEdit(names.ReasonNoAnswer, "x")}, moreManifests: routerManifests + secondRouterManifests(`status: "True", reason: Established, message: ""`), want: "kubectl -n metallb-system edit bgppeer tor"},
		{name: "an advertisement for no node", edits: []manifestEdit{noAnsweringNodeEdit, {"spec: {ipAddressPools: [first-pool]}", "spec: {ipAddressPools: [first-pool], nodeSelectors: [{matchLabels: {rack: a}}]}"}}, want: "kubectl -n metallb-system edit l2advertisement example"},
		{name: "an advertisement of a pool that does not exist", edits: []manifestEdit{noAnsweringNodeEdit, {"spec: {ipAddressPools: [first-pool]}", "spec: {ipAddressPools: [frist-pool]}"}}, want: "kubectl -n metallb-system edit l2advertisement example"},
		{name: "an advertisement of another pool", edits: []manifestEdit{noAnsweringNodeEdit, otherPoolOfExampleEdit}, moreManifests: uncoveredPoolManifest, want: "kind: L2Advertisement\nmetadata: {name: first-pool, namespace: metallb-system}"},
		{name: "an advertisement of another pool that has the name of the pool", edits: []manifestEdit{noAnsweringNodeEdit, otherPoolOfExampleEdit, {"kind: L2Advertisement\nmetadata: {name: example", "kind: L2Advertisement\nmetadata: {name: first-pool"}}, moreManifests: uncoveredPoolManifest, want: "kubectl -n metallb-system edit l2advertisement first-pool  # add the pool to spec.ipAddressPools"},
		{name: "no advertisement, and a router", edits: []manifestEdit{noAnsweringNodeEdit, {"kind: L2Advertisement\nmetadata: {name: example, namespace: metallb-system}", "kind: L2Advertisement\nmetadata: {name: example, namespace: default}"}},
			moreManifests: routerManifests[:strings.Index(routerManifests, "apiVersion: metallb.io/v1beta1\nkind: BGPAdvertisement")], want: "kind: BGPAdvertisement\nmetadata: {name: first-pool, namespace: metallb-system}"},
		{name: "a misspelt annotation", edits: []manifestEdit{serviceAnnotationEdit("metallb.io/adress-pool", "first pool")}, want: "annotate service web --overwrite metallb.io/adress-pool- metallb.io/address-pool='first pool'"},
		{name: "a misspelt annotation that is long", edits: []manifestEdit{serviceAnnotationEdit("metallb.io/adress-pool", strings.Repeat("x", 256<<10))}, want: "kubectl -n default edit service web  # metadata.annotations: rename metallb.io/adress-pool to metallb.io/address-pool"},
		{name: "a misspelt annotation that a terminal obeys", edits: []manifestEdit{serviceAnnotationEdit("metallb.io/adress-pool", `"x\nkubectl delete namespace y"`)}, want: "kubectl -n default edit service web  # metadata.annotations: rename metallb.io/adress-pool to metallb.io/address-pool"},
		{name: "excluded nodes", edits: []manifestEdit{noAnsweringNodeEdit, {"kubernetes.io/hostname: node1", names.LabelExcludeNode + `: ""`}, {"kubernetes.io/hostname: node2", names.LabelExcludeNode + `: ""`}}, want: "kubectl label node node1 node2 " + names.LabelExcludeNode + "-"},
		{name: "a foreign host", edits: newForeignAnswerEdits("02:00:00:00:00:09"), want: "ip neigh show 192.168.0.201  # on a host of the network"},
		{name: "a silent kube-proxy", edits: []manifestEdit{silentKubeProxyOnNode1Edit}, want: "/healthz  # on node1"},
		{name: "a faulty pool", edits: []manifestEdit{{"addresses: [192.168.0.201-192.168.0.202]", "addresses: [192.168.0.201-192.168.0.202, 10.0.0.300]"}}, want: "kubectl -n metallb-system edit ipaddresspool first-pool  # spec.addresses"},
		{name: "a full pool", edits: append(noAddressEdits(names.ReasonPoolExhausted, "no free address in (first-pool)"), manifestEdit{"assignedIPv4: 1, assignedIPv6: 0, availableIPv4: 1", "assignedIPv4: 2, assignedIPv6: 0, availableIPv4: 0"}), want: "edit ipaddresspool first-pool  # add a range"},
		{name: "a webhook without endpoints", edits: append(noAddressEdits(names.ReasonNoPools, "no IPAddressPool exists"), noPoolsEdits...), moreManifests: webhookManifest, want: "kubectl delete validatingwebhookconfiguration gantry-webhook  # only if"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := explainTestService(t, applyManifestEdits(t, installationManifests+workingServiceManifests+c.moreManifests, c.edits))
			if got := strings.Join(r.Repair, "\n"); r.Result != report.ResultNotWell || !strings.Contains(got, c.want) {
				t.Errorf("%s: the repair is %q, want %q", r.AnswerWithReason(), got, c.want)
			}
		})
	}
}

// TestRepairOfObjectsOtherThanServices looks at the commands for each kind of object.
func TestRepairOfObjectsOtherThanServices(t *testing.T) {
	const advertisement = "spec: {ipAddressPools: [first-pool]}"
	for _, c := range []struct {
		name          string
		explainFunc   func(*Explainer, context.Context) (*report.Report, error)
		edits         []manifestEdit
		moreManifests string
		want          string
	}{
		{name: "an excluded node", explainFunc: explainFuncForObject((*Explainer).ExplainNode, "node1"), edits: []manifestEdit{{"kubernetes.io/hostname: node1}", "kubernetes.io/hostname: node1, node.kubernetes.io/exclude-from-external-load-balancers: x}"}}, want: "kubectl label node node1 " + names.LabelExcludeNode + "-"},
		{name: "a node without speaker", explainFunc: explainFuncForObject((*Explainer).ExplainNode, "node1"), edits: []manifestEdit{{"kind: SpeakerStatus\nmetadata: {name: node1", "kind: SpeakerStatus\nmetadata: {name: node3"}}, want: "describe daemonset gantry-speaker"},
		{name: "a session of a node", explainFunc: explainFuncForObject((*Explainer).ExplainNode, "node1"), edits: []manifestEdit{sessionDownEdit(names.ReasonNoAnswer, "x")}, want: "kubectl -n metallb-system edit bgppeer tor"},
		{name: "a full pool", explainFunc: explainFuncForObject((*Explainer).ExplainPool, "first-pool"), edits: []manifestEdit{{"availableIPv4: 1", "availableIPv4: 0"}}, want: "kubectl -n metallb-system edit ipaddresspool first-pool  # add a range to spec.addresses"},
		{name: "a faulty pool", explainFunc: explainFuncForObject((*Explainer).ExplainPool, "first-pool"), edits: []manifestEdit{{"192.168.0.201-192.168.0.202", "192.168.0.201-192.168.0.202, 10.0.0.300"}}, want: "kubectl -n metallb-system edit ipaddresspool first-pool  # spec.addresses"},
		{name: "a pool that nobody advertises", explainFunc: explainFuncForObject((*Explainer).ExplainPool, "second-pool"), moreManifests: uncoveredPoolManifest, want: "kind: L2Advertisement\nmetadata: {name: second-pool, namespace: metallb-system}"},
		{name: "a pool in another namespace", explainFunc: explainFuncForObject((*Explainer).ExplainPool, "dmz"), moreManifests: strings.Replace(uncoveredPoolManifest, "second-pool, namespace: metallb-system", "dmz, namespace: default", 1), want: "metadata: {name: dmz, namespace: metallb-system}\nspec:\n  addresses: [10.7.0.0/24]"},
		{name: "a lost session", explainFunc: explainFuncForObject((*Explainer).ExplainPeer, "tor"), edits: []manifestEdit{sessionDownEdit(names.ReasonNoAnswer, "x")}, want: "kubectl -n metallb-system edit bgppeer tor"},
		{name: "a peer for no node", explainFunc: explainFuncForObject((*Explainer).ExplainPeer, "tor"), edits: []manifestEdit{{"matchLabels: {kubernetes.io/hostname: node1}", "matchLabels: {rack: a}"}}, want: "kubectl -n metallb-system edit bgppeer tor  # spec.nodeSelectors"},
		{name: "an interface that no node has", explainFunc: explainFuncForObject((*Explainer).ExplainAdvertisement, "example"), edits: []manifestEdit{{advertisement, "spec: {ipAddressPools: [first-pool], interfaces: [eth77]}"}}, want: "kubectl -n metallb-system edit l2advertisement example  # spec.nodeSelectors, spec.interfaces"},
		{name: "an advertisement of a pool that does not exist", explainFunc: explainFuncForObject((*Explainer).ExplainAdvertisement, "example"), edits: []manifestEdit{{advertisement, "spec: {ipAddressPools: [dmz]}"}}, want: "kubectl -n metallb-system edit l2advertisement example  # spec.ipAddressPools[0]"},
		{name: "an advertisement by BGP for no node", explainFunc: explainFuncForObject((*Explainer).ExplainAdvertisement, "routed"), edits: []manifestEdit{{"metadata: {name: routed, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool]}", "metadata: {name: routed, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool], nodeSelectors: [{matchLabels: {rack: a}}]}"}}, want: "kubectl -n metallb-system edit bgpadvertisement routed"},
		{name: "an address outside of the pools", explainFunc: explainFuncForObject((*Explainer).ExplainAddress, "192.168.0.9"), want: "kubectl -n metallb-system edit ipaddresspool first-pool  # add 192.168.0.9-192.168.0.9 to spec.addresses"},
		{name: "an address in quarantine", explainFunc: explainFuncForObject((*Explainer).ExplainAddress, "192.168.0.202"), moreManifests: withheldAddressLedgerManifest(`reason: Quarantined, by: "02:00:00:00:00:09"`), want: "kubectl -n metallb-system get addressledger gantry-withheld"},
		{name: "an address of a foreign host", explainFunc: explainFuncForObject((*Explainer).ExplainAddress, "192.168.0.201"), edits: newForeignAnswerEdits("02:00:00:00:00:09"), want: "ip neigh show 192.168.0.201"},
	} {
		t.Run(c.name, func(t *testing.T) {
			manifests := applyManifestEdits(t, installationManifests+workingServiceManifests+routerManifests+c.moreManifests, c.edits)
			r, err := c.explainFunc(newTestExplainer(clustertest.NewAPIBuilder(t, manifests).Build()), t.Context())
			if err != nil || r.Result != report.ResultNotWell || !strings.Contains(strings.Join(r.Repair, "\n"), c.want) {
				t.Errorf("%v, %+v, want the repair %q", err, r, c.want)
			}
		})
	}
}
