package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/preview"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// plannedEdit is an edit that is planned and then made. wantKinds are kinds of effects that the
// plan must have, so that a plan without any effect is no success.
type plannedEdit struct {
	name       string
	manifests  string
	isDeletion bool
	isRefused  bool
	wantKinds  []preview.EffectKind
}

// secondPoolManifest is a pool with its L2Advertisement.
func secondPoolManifest(addresses string) string {
	return poolWithoutAutoAssignManifest("second", addresses, l2AdvertisementSpecOfPool("second", ""))
}

// firstPoolManifest is the pool of the Service web, with more fields.
func firstPoolManifest(more string) string {
	return "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: first-pool, namespace: metallb-system}\nspec: {addresses: [192.168.0.201-192.168.0.233]" + more + "}\n---\n"
}

// plannedEdits are edits of all kinds. Each begins where the one before ended.
var plannedEdits = []plannedEdit{
	{name: "a pool", manifests: secondPoolManifest("192.168.0.240-192.168.0.241")},
	{name: "a Service of the pool", manifests: serviceManifest("planned-a", "metallb.io/address-pool: second", ""), wantKinds: []preview.EffectKind{preview.EffectAddressGained}},
	{name: "a Service of a pool that does not exist", manifests: serviceManifest("planned-b", "metallb.io/address-pool: later", ""), wantKinds: []preview.EffectKind{preview.EffectReasonAppears}},
	{name: "the pool that a Service waits for", manifests: poolWithoutAutoAssignManifest("later", "192.168.0.242", l2AdvertisementSpecOfPool("later", "")), wantKinds: []preview.EffectKind{preview.EffectAddressGained, preview.EffectReasonEnds}},
	{name: "a pool without an address in use", manifests: secondPoolManifest("192.168.0.241"), wantKinds: []preview.EffectKind{preview.EffectPoolLost, preview.EffectReasonAppears}},
	{name: "a Service that releases an address", manifests: serviceManifest("planned-a", "metallb.io/address-pool: second, gantry.dev/release-address: 192.168.0.240", ""), wantKinds: []preview.EffectKind{preview.EffectAddressReplaced, preview.EffectReasonEnds}},
	{name: "a pool that gets an address back", manifests: secondPoolManifest("192.168.0.240-192.168.0.241")},
	{name: "a pool with nonsense", manifests: secondPoolManifest("nonsense"), isRefused: true},
	{name: "a pool that overlaps another", manifests: poolWithoutAutoAssignManifest("overlapping", "192.168.0.241-192.168.0.243", ""), wantKinds: []preview.EffectKind{preview.EffectProblemAppears}},
	{name: "the end of the overlap", manifests: poolWithoutAutoAssignManifest("overlapping", "192.168.0.243", ""), wantKinds: []preview.EffectKind{preview.EffectProblemEnds}},
	{name: "the deletion of an unused pool", manifests: poolWithoutAutoAssignManifest("overlapping", "192.168.0.243", ""), isDeletion: true},
	{name: "an L2Advertisement for node1", manifests: l2AdvertisementManifestForNode("node1")},
	{name: "an L2Advertisement for node2", manifests: l2AdvertisementManifestForNode("node2"), wantKinds: []preview.EffectKind{preview.EffectHolderChanges}},
	{name: "an L2Advertisement for no node", manifests: l2AdvertisementManifestForNode("node9"), wantKinds: []preview.EffectKind{preview.EffectReasonAppears}},
	{name: "an L2Advertisement for all nodes", manifests: "apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: example, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool]}\n---\n", wantKinds: []preview.EffectKind{preview.EffectReasonEnds}},
	{name: "a Service that asks for an address", manifests: serviceManifest("web", "metallb.io/loadBalancerIPs: 192.168.0.210", ""), wantKinds: []preview.EffectKind{preview.EffectAddressReplaced}},
	{name: "a Service that asks for the same address", manifests: serviceManifest("planned-c", "metallb.io/loadBalancerIPs: 192.168.0.210", ""), wantKinds: []preview.EffectKind{preview.EffectReasonAppears}},
	{name: "two Services that share an address", manifests: serviceManifest("web", "metallb.io/loadBalancerIPs: 192.168.0.210, metallb.io/allow-shared-ip: planned", "") +
		strings.Replace(serviceManifest("planned-c", "metallb.io/loadBalancerIPs: 192.168.0.210, metallb.io/allow-shared-ip: planned", ""), "port: 80", "port: 81", 1), wantKinds: []preview.EffectKind{preview.EffectAddressGained, preview.EffectReasonEnds}},
	{name: "the deletion of one of them", manifests: serviceManifest("planned-c", "", ""), isDeletion: true, wantKinds: []preview.EffectKind{preview.EffectAddressLost}},
	{name: "a pool that does not admit a Service any more", manifests: firstPoolManifest(", serviceAllocation: {namespaces: [other]}"), wantKinds: []preview.EffectKind{preview.EffectReasonAppears}},
	{name: "a pool that admits it again", manifests: firstPoolManifest(""), wantKinds: []preview.EffectKind{preview.EffectReasonEnds}},
	{name: "a Service that selects no Pod", manifests: strings.Replace(serviceManifest("web", "", ""), "{app: web}", "{app: nothing}", 1), wantKinds: []preview.EffectKind{preview.EffectReasonAppears}},
	{name: "a Service that selects its Pods again", manifests: serviceManifest("web", "", ""), wantKinds: []preview.EffectKind{preview.EffectReasonEnds}},
	{name: "a Service of another type", manifests: strings.Replace(serviceManifest("planned-b", "metallb.io/address-pool: later", ""), "type: LoadBalancer", "type: ClusterIP", 1), wantKinds: []preview.EffectKind{preview.EffectAddressLost}},
	{name: "a pool that retires an address", manifests: firstPoolManifest(", gantry: {retire: {addresses: [192.168.0.210], servicesPerMinute: 600}}"), wantKinds: []preview.EffectKind{preview.EffectAddressReplaced}},
	{name: "a reservation of an address that a Service has", manifests: "apiVersion: gantry.dev/v1alpha1\nkind: AddressReservation\nmetadata: {name: planned, namespace: metallb-system}\nspec: {service: {namespace: default, name: nobody}, addresses: [192.168.0.241]}\n---\n", wantKinds: []preview.EffectKind{preview.EffectReasonAppears}},
	{name: "a community", manifests: bgpAdvertisementManifest("routed", `ipAddressPools: [routed], communities: ["65000:7"]`), wantKinds: []preview.EffectKind{preview.EffectRouteChanges}},
	{name: "an aggregate", manifests: bgpAdvertisementManifest("routed", "ipAddressPools: [routed], aggregationLength: 24"), wantKinds: []preview.EffectKind{preview.EffectRouteVanishes, preview.EffectRouteAppears}},
	{name: "a peer that does not exist", manifests: bgpAdvertisementManifest("routed", "ipAddressPools: [routed], peers: [nobody]"), wantKinds: []preview.EffectKind{preview.EffectProblemAppears, preview.EffectReasonAppears, preview.EffectRouteVanishes}},
	{name: "all peers", manifests: bgpAdvertisementManifest("routed", "ipAddressPools: [routed]"), wantKinds: []preview.EffectKind{preview.EffectProblemEnds, preview.EffectReasonEnds, preview.EffectRouteAppears}},
	{name: "a BGPPeer for node2", manifests: torPeerManifest(", nodeSelectors: [{matchLabels: {kubernetes.io/hostname: node2}}]"), wantKinds: []preview.EffectKind{preview.EffectSessionEnds, preview.EffectRouteVanishes}},
	{name: "a BGPPeer for all nodes", manifests: torPeerManifest(""), wantKinds: []preview.EffectKind{preview.EffectSessionStarts, preview.EffectRouteAppears}},
	{name: "the deletion of a BGPAdvertisement", manifests: bgpAdvertisementManifest("routed", ""), isDeletion: true, wantKinds: []preview.EffectKind{preview.EffectReasonAppears, preview.EffectRouteVanishes}},
}

// TestPlansOfEditsAgreeWithTheCluster plans edits of all kinds, makes each, and compares what the
// plan said with what the cluster then does: faults of objects, addresses, Reasons, holders and
// routes.
func TestPlansOfEditsAgreeWithTheCluster(t *testing.T) {
	t.Parallel()
	if m := router.DescribeMissingPrerequisite(router.FRR); m != "" {
		t.Skip(m)
	}
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 2})
	h := &faultTestCluster{Cluster: s, tor: s.RouterOnHost("router", router.FRR), seenReasons: map[string]bool{}}
	failOnError(t, h.tor.StartWithConfig(ctx, readFRRConfigFromDocs(t)))
	failOnError(t, s.ApplyManifests(ctx, healthyBaseManifests))
	failOnError(t, h.awaitAnnounced(ctx, "web"))
	failOnError(t, h.awaitAnnounced(ctx, "routed"))
	for _, e := range plannedEdits {
		t.Run(e.name, func(t *testing.T) { testPlanAgreesWithCluster(ctx, t, s, e) })
	}
	t.Run("operations", func(t *testing.T) { testOperationsAreCarriedOut(ctx, t, s) })
}

// testOperationsAreCarriedOut moves the Service web with each command, and looks at the outcome.
func testOperationsAreCarriedOut(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	failOnError(t, s.ApplyManifests(ctx, firstPoolManifest("")+serviceManifest("web", "", "")+bgpAdvertisementManifest("routed", "ipAddressPools: [routed]")))
	holder, err := s.AwaitSingleAnnouncingNode(ctx, "web", "")
	failOnError(t, err)
	other := map[string]string{"node1": "node2", "node2": "node1"}[holder]
	address, err := s.AwaitFirstAddressOfService(ctx, "default", "web")
	failOnError(t, err)
	for _, c := range []struct {
		args       []string
		wantStatus int
		want       string
		wantHolder string
		isReleased bool
	}{
		{[]string{"move", "service", "web", "--to", other, "--dry-run"}, kubectlGantryExitWell, "would move from " + holder + " to " + other, holder, false},
		{[]string{"move", "service", "web", "--to", "node3"}, kubectlGantryExitUnknown, `nodes "node3" not found`, holder, false},
		{[]string{"move", "service", "web", "--to", other}, kubectlGantryExitWell, "is on " + other, other, false},
		{[]string{"drain", other}, kubectlGantryExitWell, "done: " + other + " announces nothing any more", holder, false},
		{[]string{"undrain", other}, kubectlGantryExitWell, "done: " + other + " may announce again", "", false},
		{[]string{"release", address.String(), "--dry-run"}, kubectlGantryExitNotWell, "would exchange " + address.String(), "", false},
		{[]string{"release", address.String()}, kubectlGantryExitWell, "done: no Service has " + address.String(), "", true},
		{[]string{"retire", "first-pool", "--addresses", "192.168.0.201-192.168.0.210", "--services-per-minute", "600"}, kubectlGantryExitWell, "done: no Service has a retired address", "", true},
		{[]string{"retire", "second", "--timeout", "30s"}, kubectlGantryExitNotWell, "left: Service default/planned-a keeps it: pool second retires", "", true},
	} {
		out, status, err := runKubectlGantry(ctx, s, c.args...)
		if err != nil || status != c.wantStatus || !strings.Contains(out, c.want) {
			t.Errorf("kubectl gantry %q exits with %d (%v), want %d and %q:\n%s", c.args, status, err, c.wantStatus, c.want, out)
		}
		if c.wantHolder != "" {
			if node, err := s.AwaitSingleAnnouncingNode(ctx, "web", map[string]string{"node1": "node2", "node2": "node1"}[c.wantHolder]); err != nil || node != c.wantHolder {
				t.Errorf("after %q, %s has the address (%v), want %s", c.args, node, err, c.wantHolder)
			}
		}
		if now, err := s.AwaitFirstAddressOfService(ctx, "default", "web"); err != nil || (now != address) != c.isReleased {
			t.Errorf("after %q, web has %s (%v); it had %s", c.args, now, err, address)
		}
	}
}

func testPlanAgreesWithCluster(ctx context.Context, t *testing.T, s *cluster.Cluster, e plannedEdit) {
	before, err := readObservableState(ctx, s)
	failOnError(t, err)
	plan := runPlan(ctx, t, s, e)
	for _, kind := range e.wantKinds {
		if !slices.ContainsFunc(plan.Effects, func(f preview.Effect) bool { return f.Kind == kind }) {
			t.Errorf("the plan has no effect of the kind %s: %+v", kind, plan.Effects)
		}
	}
	verb := "apply"
	if e.isDeletion {
		verb = "delete"
	}
	_, err = s.RunKubectl(ctx, e.manifests, verb, "-f", "-")
	isRefusalPlanned := slices.ContainsFunc(plan.Objects, func(o preview.EditedObject) bool { return o.Refusal != "" })
	if (err != nil) != e.isRefused || isRefusalPlanned != e.isRefused {
		t.Fatalf("kubectl says %v, and the plan %+v", err, plan.Objects)
	}
	want := before.afterEffects(plan.Effects)
	var after *observableState
	var difference error
	err = cluster.AwaitNoError(ctx, "what was planned", func(ctx context.Context) error {
		if after, err = readObservableState(ctx, s); err != nil {
			return err
		}
		difference = want.compare(after)
		return difference
	})
	if err != nil {
		t.Errorf("%v: %v\nthe plan said %+v", err, difference, plan.Effects)
	}
}

// runPlan runs kubectl gantry plan.
func runPlan(ctx context.Context, t *testing.T, s *cluster.Cluster, e plannedEdit) *preview.Preview {
	t.Helper()
	args := []string{"--kubeconfig", s.Kubeconfig(), "plan", "-f", "-", "-o", "json"}
	if e.isDeletion {
		args = append(args, "--delete")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(lab.RepositoryRoot(), "bin", "kubectl-gantry"), args...)
	cmd.Stdin = strings.NewReader(e.manifests)
	out, err := cmd.Output()
	plan := &preview.Preview{}
	if errJSON := json.Unmarshal(out, plan); errJSON != nil {
		t.Fatalf("%v, %v: %s", err, errJSON, out)
	}
	return plan
}

// observableState is what users see of the cluster, as text by subject.
type observableState struct {
	// addresses, assigned and announced are about Services: the addresses, and the Reasons of the
	// two conditions. Without an address, nobody should announce the Service.
	addresses, assigned, announced map[string]string
	// faulty are the configuration objects that are not valid, and the reservations that do not
	// count.
	faulty map[string]string
	// holders are the nodes by Service and address; a plan that names several has them separated by
	// " or ".
	holders map[string]string
	routes  map[string]string
}

// readObservableState reads the state of the namespace default and of Gantry.
func readObservableState(ctx context.Context, s *cluster.Cluster) (*observableState, error) {
	out := &observableState{map[string]string{}, map[string]string{}, map[string]string{}, map[string]string{}, map[string]string{}, map[string]string{}}
	var services corev1.ServiceList
	if err := s.API.List(ctx, &services, client.InNamespace("default")); err != nil {
		return nil, err
	}
	for i := range services.Items {
		svc := &services.Items[i]
		if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
			continue
		}
		subject := "Service default/" + svc.Name
		var addresses []string
		for _, in := range svc.Status.LoadBalancer.Ingress {
			addresses = append(addresses, in.IP)
		}
		out.addresses[subject] = strings.Join(addresses, ",")
		if c := meta.FindStatusCondition(svc.Status.Conditions, names.ConditionAddressAssigned); c != nil {
			out.assigned[subject] = c.Reason
		}
		if c := meta.FindStatusCondition(svc.Status.Conditions, names.ConditionAnnounced); c != nil && len(addresses) > 0 {
			out.announced[subject] = c.Reason
		}
	}
	if err := out.readFaultyObjects(ctx, s); err != nil {
		return nil, err
	}
	var reports v1beta1.ServiceL2StatusList
	if err := s.API.List(ctx, &reports, client.InNamespace(names.DefaultNamespace)); err != nil {
		return nil, err
	}
	for i := range reports.Items {
		if r := &reports.Items[i].Status; r.Gantry != nil {
			for _, a := range r.Gantry.Addresses {
				out.holders["Service "+r.ServiceNamespace+"/"+r.ServiceName+" "+a] = r.Node
			}
		}
	}
	return out, out.readRoutes(ctx, s)
}

func (o *observableState) readFaultyObjects(ctx context.Context, s *cluster.Cluster) error {
	for _, gvk := range []schema.GroupVersionKind{
		v1beta1.GroupVersion.WithKind("IPAddressPool"), v1beta1.GroupVersion.WithKind("L2Advertisement"), v1beta1.GroupVersion.WithKind("BGPAdvertisement"),
		v1beta1.GroupVersion.WithKind("BGPPeer"), v1alpha1.GroupVersion.WithKind("AddressReservation"),
	} {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(gvk)
		if err := s.API.List(ctx, list, client.InNamespace(names.DefaultNamespace)); err != nil {
			return err
		}
		for i := range list.Items {
			u := &list.Items[i]
			conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "gantry", "conditions")
			if conditions == nil {
				conditions, _, _ = unstructured.NestedSlice(u.Object, "status", "conditions")
			}
			for _, c := range conditions {
				c, _ := c.(map[string]any)
				if (c["type"] == names.ConditionValid || c["type"] == names.ConditionReservationEffective) && c["status"] == "False" {
					o.faulty[gvk.Kind+" "+u.GetName()] = fmt.Sprint(c["reason"])
				}
			}
		}
	}
	return nil
}

// readRoutes asks the speakers which routes the routers get from them.
func (o *observableState) readRoutes(ctx context.Context, s *cluster.Cluster) error {
	for _, node := range []string{"node1", "node2"} {
		out, _, err := runKubectlGantry(ctx, s, "routes", node, "-o", "json")
		if err != nil {
			return err
		}
		var listing struct{ Items []map[string]string }
		if err := json.Unmarshal([]byte(out), &listing); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		for _, row := range listing.Items {
			community := ""
			if _, list, found := strings.Cut(row["attributes"], "communities "); found {
				community, _, _ = strings.Cut(list, ",")
			}
			o.routes[row["prefix"]+" from "+node] = community
		}
	}
	return nil
}

// afterEffects returns the state that a plan leads to.
func (o *observableState) afterEffects(effects []preview.Effect) *observableState {
	out := &observableState{maps.Clone(o.addresses), maps.Clone(o.assigned), maps.Clone(o.announced), maps.Clone(o.faulty), maps.Clone(o.holders), maps.Clone(o.routes)}
	for _, e := range effects {
		switch e.Kind {
		case preview.EffectAddressGained, preview.EffectAddressReplaced:
			out.addresses[e.Subject] = strings.Join(slices.Concat(e.NewAddresses), ",")
			if e.Kind == preview.EffectAddressGained {
				out.addresses[e.Subject] = strings.Join(e.Addresses, ",")
				out.assigned[e.Subject], out.announced[e.Subject] = string(names.ReasonAssigned), string(names.ReasonAnnounced)
			}
		case preview.EffectAddressLost:
			delete(out.addresses, e.Subject)
			delete(out.assigned, e.Subject)
			delete(out.announced, e.Subject)
		case preview.EffectHolderChanges:
			out.holders[e.Subject+" "+e.Addresses[0]] = e.To
		case preview.EffectProblemAppears:
			out.faulty[e.Subject] = string(e.Reason)
		case preview.EffectProblemEnds:
			delete(out.faulty, e.Subject)
		case preview.EffectRouteVanishes:
			for _, node := range e.Nodes {
				delete(out.routes, e.Addresses[0]+" from "+node)
			}
		}
	}
	for _, e := range effects {
		out.addReason(&e)
		for _, node := range e.Nodes {
			if e.Kind == preview.EffectRouteAppears || e.Kind == preview.EffectRouteChanges {
				_, community, _ := strings.Cut(e.Text, "would have community ")
				community, _, _ = strings.Cut(community, ",")
				out.routes[e.Addresses[0]+" from "+node] = community
			}
		}
	}
	return out
}

// addReason adds what the plan says about a condition.
func (o *observableState) addReason(e *preview.Effect) {
	byCondition := map[string]map[string]string{names.ConditionAddressAssigned: o.assigned, names.ConditionAnnounced: o.announced, names.ConditionReservationEffective: o.faulty}
	wellByCondition := map[string]names.Reason{names.ConditionAddressAssigned: names.ReasonAssigned, names.ConditionAnnounced: names.ReasonAnnounced}
	reasons := byCondition[e.Condition]
	switch {
	case reasons == nil:
	case e.Kind == preview.EffectReasonAppears:
		reasons[e.Subject] = string(e.Reason)
	case e.Kind == preview.EffectReasonEnds:
		reasons[e.Subject] = string(wellByCondition[e.Condition])
	}
	if _, isKnown := o.addresses[e.Subject]; !isKnown && e.Kind == preview.EffectReasonAppears && e.Condition == names.ConditionAddressAssigned {
		o.addresses[e.Subject] = "" // a new Service
	}
}

// compare says how the cluster differs from what was planned.
func (o *observableState) compare(is *observableState) error {
	for what, pair := range map[string][2]map[string]string{
		"addresses": {o.addresses, is.addresses}, "reasons of " + names.ConditionAddressAssigned: {o.assigned, is.assigned},
		"reasons of " + names.ConditionAnnounced: {o.announced, is.announced}, "faulty objects": {o.faulty, is.faulty}, "routes": {o.routes, is.routes},
	} {
		if !maps.Equal(pair[0], pair[1]) {
			return fmt.Errorf("the %s are %v, and the plan says %v", what, pair[1], pair[0])
		}
	}
	for address, node := range o.holders {
		now, isHeld := is.holders[address]
		service, _, _ := strings.Cut(strings.TrimPrefix(address, "Service "), " ")
		isAnnounced := is.announced["Service "+service] == string(names.ReasonAnnounced) && strings.HasSuffix(address, " "+is.addresses["Service "+service])
		if isAnnounced && (!isHeld || !slices.Contains(strings.Split(node, " or "), now)) {
			return fmt.Errorf("%s is held by %q, and the plan says %q", address, now, node)
		}
	}
	return nil
}
