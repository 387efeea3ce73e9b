package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// dualStackPoolManifest is a pool of both families. dualStackWebManifest is a dual-stack
// Service with three Pods.
const dualStackPoolManifest = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: dual, namespace: metallb-system}
spec:
  addresses: [192.168.0.210-192.168.0.219, "fd00:a8::210-fd00:a8::219"]
`

const dualStackWebManifest = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: web
        ports: [{containerPort: 80}]
---
apiVersion: v1
kind: Service
metadata:
  name: web
  labels: {app: web}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80}]
`

// l2AdvertisementManifest returns an L2Advertisement with this spec.
func l2AdvertisementManifest(spec string) string {
	text := "apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: ad, namespace: metallb-system}\nspec:\n"
	for _, line := range strings.Split(strings.TrimSpace(spec), "\n") {
		text += "  " + line + "\n"
	}
	return text
}

// TestSelectorEditsChangeAnnouncingNode edits everything that decides which node announces, one
// after the other, and checks after each edit who answers for both addresses of a Service.
func TestSelectorEditsChangeAnnouncingNode(t *testing.T) {
	t.Parallel()
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 3, Families: lab.DualStack})
	kubectl := func(args ...string) {
		t.Helper()
		_, err := s.RunKubectl(ctx, "", args...)
		failOnError(t, err)
	}
	for _, n := range []string{"node1", "node2", "node3"} {
		kubectl("label", "node", n, "rack="+n)
	}
	failOnError(t, s.ApplyManifests(ctx, dualStackPoolManifest))
	failOnError(t, s.ApplyManifests(ctx, dualStackWebManifest))
	_, err := s.AwaitFirstAddressOfService(ctx, "default", "web")
	failOnError(t, err)
	failOnError(t, awaitAnnouncedCondition(ctx, s, "web", "False", names.ReasonNoAdvertisement))

	steps := []struct {
		name, spec string
		edit       func()
		want       string // the node that holds the addresses, or the Reason why none does
	}{
		{name: "a node selector", spec: "nodeSelectors: [{matchLabels: {rack: node2}}]", want: "node2"},
		{name: "another node selector", spec: "nodeSelectors: [{matchLabels: {rack: node3}}]", want: "node3"},
		{name: "a selector that matches no node", spec: "nodeSelectors: [{matchLabels: {rack: nowhere}}]", want: string(names.ReasonNoAdvertisement)},
		{name: "a label that makes it match", edit: func() { kubectl("label", "--overwrite", "node", "node1", "rack=nowhere") }, want: "node1"},
		{name: "the standard label that excludes a node", edit: func() { kubectl("label", "node", "node1", names.LabelExcludeNode+"=") }, want: string(names.ReasonNodeExcluded)},
		{name: "that label removed", edit: func() { kubectl("label", "node", "node1", names.LabelExcludeNode+"-") }, want: "node1"},
		{name: "a node whose network is unavailable", edit: func() { setNetworkUnavailableCondition(ctx, t, s, "node1", "True") }, want: string(names.ReasonNodeNetworkUnavailable)},
		{name: "that node's network available again", edit: func() { setNetworkUnavailableCondition(ctx, t, s, "node1", "False") }, want: "node1"},
		{name: "an interface that does not exist", spec: "interfaces: [eth77]", want: string(names.ReasonNoLinks)},
		{name: "an interface that exists", spec: "interfaces: [eth0, eth77]\nnodeSelectors: [{matchLabels: {rack: node2}}]", want: "node2"},
		{name: "a Service selector that matches other Services", spec: "serviceSelectors: [{matchLabels: {app: other}}]", want: string(names.ReasonNoAdvertisement)},
		{name: "a Service selector that matches, and a preferred node", spec: "serviceSelectors: [{matchLabels: {app: web}}]\npreferredNodeSelectors: [{weight: 10, preference: {matchLabels: {rack: node3}}}]", want: "node3"},
		{name: "a pool selector that matches no pool", spec: "ipAddressPoolSelectors: [{matchLabels: {zone: a}}]", want: string(names.ReasonNoAdvertisement)},
		{name: "a label that makes the pool match", edit: func() { kubectl("-n", names.DefaultNamespace, "label", "ipaddresspool", "dual", "zone=a") }, want: "node"},
		{name: "no serving endpoint", edit: func() { kubectl("scale", "deployment", "web", "--replicas=0") }, want: string(names.ReasonNoEndpoints)},
		{name: "serving endpoints again", edit: func() { kubectl("scale", "deployment", "web", "--replicas=3") }, want: "node"},
	}
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			if step.spec != "" {
				failOnError(t, s.ApplyManifests(ctx, l2AdvertisementManifest(step.spec)))
			}
			if step.edit != nil {
				step.edit()
			}
			if !strings.HasPrefix(step.want, "node") {
				failOnError(t, awaitAnnouncedCondition(ctx, s, "web", "False", names.Reason(step.want)))
				failOnError(t, awaitAnnounceFailedEvent(ctx, s, "web", names.Reason(step.want)))
				failOnError(t, awaitNoAddressAnswersClient(ctx, s))
				return
			}
			failOnError(t, awaitAnnouncedCondition(ctx, s, "web", "True", names.ReasonAnnounced))
			failOnError(t, awaitHoldersWithNodeNamePrefix(ctx, s, "web", step.want))
			for _, url := range []string{"http://192.168.0.210/", "http://[fd00:a8::210]/"} {
				_, err := s.FetchURLUntilSuccess(ctx, "client", url)
				failOnError(t, err)
			}
		})
	}
	t.Run("Services that share an address share its holder", func(t *testing.T) { testSharedAddressHasOneHolder(ctx, t, s) })
	t.Run("every component reports the state of the configuration", func(t *testing.T) { testConfigurationStatesReportFault(ctx, t, s) })
}

// awaitAnnouncedCondition waits until the condition Announced of the Service has this status and
// reason.
func awaitAnnouncedCondition(ctx context.Context, s *cluster.Cluster, service, status string, reason names.Reason) error {
	return cluster.AwaitNoError(ctx, fmt.Sprintf("Announced=%s, %s on Service %s", status, reason, service), func(ctx context.Context) error {
		svc, err := s.GetService(ctx, "default", service)
		if err != nil {
			return err
		}
		c := meta.FindStatusCondition(svc.Status.Conditions, names.ConditionAnnounced)
		if c == nil || string(c.Status) != status || c.Reason != string(reason) {
			return fmt.Errorf("it is %+v", c)
		}
		return nil
	})
}

// awaitAnnounceFailedEvent waits for the event that no node announces the Service any more.
func awaitAnnounceFailedEvent(ctx context.Context, s *cluster.Cluster, service string, reason names.Reason) error {
	return cluster.AwaitNoError(ctx, fmt.Sprintf("the event %s for %s on Service %s", names.EventAnnounceFailed, reason, service), func(ctx context.Context) error {
		var events eventsv1.EventList
		if err := s.API.List(ctx, &events, client.InNamespace("default")); err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.Regarding.Name == service && e.Reason == names.EventAnnounceFailed && strings.HasPrefix(e.Note, string(reason)+": ") {
				return nil
			}
		}
		return fmt.Errorf("none of %d events is", len(events.Items))
	})
}

// awaitHoldersWithNodeNamePrefix waits until the Service has a ServiceL2Status, and the node of
// each one has this prefix.
func awaitHoldersWithNodeNamePrefix(ctx context.Context, s *cluster.Cluster, service, node string) error {
	return cluster.AwaitNoError(ctx, service+" at "+node, func(ctx context.Context) error {
		var list v1beta1.ServiceL2StatusList
		if err := s.API.List(ctx, &list, client.InNamespace(names.DefaultNamespace), client.MatchingLabels{names.LabelServiceName: service}); err != nil {
			return err
		}
		for i := range list.Items {
			if !strings.HasPrefix(list.Items[i].Status.Node, node) {
				return fmt.Errorf("it is at %s", list.Items[i].Status.Node)
			}
		}
		if len(list.Items) == 0 {
			return fmt.Errorf("no node announces it")
		}
		return nil
	})
}

// awaitNoAddressAnswersClient waits until neither address answers a client without neighbor
// entries.
func awaitNoAddressAnswersClient(ctx context.Context, s *cluster.Cluster) error {
	return cluster.AwaitNoError(ctx, "silence", func(ctx context.Context) error {
		if err := s.NamespaceOfHost("client").RunInside(flushNeighborsOfCurrentNamespace); err != nil {
			return err
		}
		var four, six error
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { _, four = s.FetchURLFromHost(ctx, "client", "http://192.168.0.210/"); return nil })
		g.Go(func() error { _, six = s.FetchURLFromHost(ctx, "client", "http://[fd00:a8::210]/"); return nil })
		_ = g.Wait()
		if four == nil || six == nil {
			return fmt.Errorf("an address answers: %v, %v", four, six)
		}
		return nil
	})
}

// flushNeighborsOfCurrentNamespace deletes all neighbor entries of the current namespace.
func flushNeighborsOfCurrentNamespace() error {
	known, err := netlink.NeighList(0, netlink.FAMILY_ALL)
	for i := range known {
		_ = netlink.NeighDel(&known[i]) // it may be gone already
	}
	return err
}

// setNetworkUnavailableCondition sets the condition NetworkUnavailable of a node.
func setNetworkUnavailableCondition(ctx context.Context, t *testing.T, s *cluster.Cluster, node, status string) {
	t.Helper()
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"NetworkUnavailable","status":%q,"reason":"Test","message":"set by a test"}]}}`, status)
	_, err := s.RunKubectl(ctx, "", "patch", "node", node, "--subresource=status", "--type=strategic", "-p", patch)
	failOnError(t, err)
}

// testSharedAddressHasOneHolder adds two Services that share an address, and one of another class,
// which Gantry may not touch.
func testSharedAddressHasOneHolder(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	service := func(name, protocol, more string) string {
		return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata:
  name: %s
  annotations: {metallb.io/allow-shared-ip: dns, metallb.io/loadBalancerIPs: 192.168.0.215}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{port: 53, protocol: %s, targetPort: 80}]
%s---
`, name, protocol, more)
	}
	failOnError(t, s.ApplyManifests(ctx, service("dns-tcp", "TCP", "")+service("dns-udp", "UDP", "")+service("foreign", "TCP", "  loadBalancerClass: example.com/other\n")))
	for _, name := range []string{"dns-tcp", "dns-udp"} {
		a, err := s.AwaitFirstAddressOfService(ctx, "default", name)
		failOnError(t, err)
		if a.String() != "192.168.0.215" {
			t.Errorf("%s got %s", name, a)
		}
		failOnError(t, awaitAnnouncedCondition(ctx, s, name, "True", names.ReasonAnnounced))
	}
	first, err := s.AwaitSingleAnnouncingNode(ctx, "dns-tcp", "")
	failOnError(t, err)
	if second, err := s.AwaitSingleAnnouncingNode(ctx, "dns-udp", ""); err != nil || first != second {
		t.Errorf("the shared address is held by %s and by %s (%v)", first, second, err)
	}
	if _, err := s.FetchURLUntilSuccess(ctx, "client", "http://192.168.0.215:53/"); err != nil {
		t.Error(err)
	}
	foreign, err := s.GetService(ctx, "default", "foreign")
	failOnError(t, err)
	if n := len(foreign.Status.LoadBalancer.Ingress) + len(foreign.Status.Conditions); n > 0 || foreign.Annotations["metallb.io/ip-allocated-from-pool"] != "" {
		t.Errorf("a Service of another class was changed: %+v", foreign.Status)
	}
}

// testConfigurationStatesReportFault applies an invalid object and deletes it. The
// ConfigurationState of the controller and of each speaker has to report both.
func testConfigurationStatesReportFault(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	expect := func(result v1beta1.ConfigurationResult, text string) {
		t.Helper()
		failOnError(t, cluster.AwaitNoError(ctx, string(result)+" from every component", func(ctx context.Context) error {
			var list v1beta1.ConfigurationStateList
			if err := s.API.List(ctx, &list, client.InNamespace(names.DefaultNamespace)); err != nil {
				return err
			}
			if len(list.Items) != 4 {
				return fmt.Errorf("%d ConfigurationStates, want one of the controller and three of speakers", len(list.Items))
			}
			for _, c := range list.Items {
				if c.Status.Result != result || !strings.Contains(c.Status.ErrorSummary, text) {
					return fmt.Errorf("%s has %s %q", c.Name, c.Status.Result, c.Status.ErrorSummary)
				}
			}
			return nil
		}))
	}
	expect(v1beta1.ConfigurationValid, "")
	failOnError(t, s.ApplyManifests(ctx, strings.NewReplacer("name: dual", "name: second", "192.168.0.210-192.168.0.219, ", "192.168.0.230-192.168.0.220, ", "210-fd", "230-fd", "219\"", "239\"").Replace(dualStackPoolManifest)))
	expect(v1beta1.ConfigurationInvalid, `configuration error: IPAddressPool metallb-system/second: spec.addresses[0]: the range "192.168.0.230-192.168.0.220" ends before it starts`)
	_, err := s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "delete", "configurationstate", "speaker-node2", "controller")
	failOnError(t, err)
	expect(v1beta1.ConfigurationInvalid, "ends before it starts")
	_, err = s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "delete", "ipaddresspool", "second")
	failOnError(t, err)
	expect(v1beta1.ConfigurationValid, "")
}
