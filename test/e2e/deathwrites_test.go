//go:build deathwrites

package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// writeCountTestCluster is a cluster with many Services, of which kube-proxy writes no rules.
type writeCountTestCluster struct {
	*cluster.Cluster
	t                       *testing.T
	nodeCount, serviceCount int
}

const (
	writeCountPoolManifest = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: many, namespace: metallb-system}
spec: {addresses: [198.51.0.0/21]}
---
`
	writeCountBGPAdvertisementManifest = `apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: many, namespace: metallb-system}
spec: {ipAddressPools: [many]}
---
`
	writeCountL2AdvertisementManifest = `apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: many, namespace: metallb-system}
spec: {ipAddressPools: [many]}
---
`
	// allServicesChangeTimeout bounds one change of all Services.
	allServicesChangeTimeout = 3 * time.Minute
)

// init gives the tests of this file more time: `make deaths` alone runs them.
func init() { extraLabLifeTimeout = 10 * time.Minute }

// startWriteCountTestCluster starts a cluster in which every Service has an address and no
// advertisement.
func startWriteCountTestCluster(t *testing.T) (context.Context, *writeCountTestCluster) {
	t.Helper()
	const nodes, services = 10, 1000
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: nodes})
	h := &writeCountTestCluster{Cluster: s, t: t, nodeCount: nodes, serviceCount: services}
	failOnError(t, s.ApplyManifests(ctx, webDeploymentManifest+writeCountPoolManifest))
	all, _ := newServices("many", services)
	for _, svc := range all { // kube-proxy ignores them
		svc.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "nobody"}
		svc.Spec.Selector = map[string]string{"app": "web"}
	}
	_, err := s.CreateServices(ctx, 8, all)
	failOnError(t, err)
	h.awaitAnnouncedStatusOfAll(ctx, metav1.ConditionFalse)
	return ctx, h
}

// TestDeathOfARouterCostsFewWrites counts the writes to the API server when the only router dies
// and returns.
func TestDeathOfARouterCostsFewWrites(t *testing.T) {
	if m := router.DescribeMissingPrerequisite(router.FRR); m != "" {
		t.Skip(m)
	}
	ctx, h := startWriteCountTestCluster(t)
	tor := h.RouterOnHost("router", router.FRR)
	failOnError(t, tor.StartWithConfig(ctx, h.frrConfigWithAllNodes()))
	// The advertisement comes last: a speaker with more than 500 Services writes no
	// ServiceBGPStatus, and with fewer it would write thousands of them before.
	failOnError(t, h.ApplyManifests(ctx, torPeerManifest("")+writeCountBGPAdvertisementManifest))
	h.awaitAnnouncedStatusOfAll(ctx, metav1.ConditionTrue)
	h.awaitSessionsOfAllNodes(ctx)
	h.countAPIWritesOfChange(ctx, func() {}) // until what follows from them is written

	died := h.countAPIWritesOfChange(ctx, func() {
		failOnError(t, tor.Stop(ctx))
		h.awaitAnnouncedStatusOfAll(ctx, metav1.ConditionFalse)
	})
	returned := h.countAPIWritesOfChange(ctx, func() {
		failOnError(t, tor.StartEndedDaemons(ctx))
		h.awaitAnnouncedStatusOfAll(ctx, metav1.ConditionTrue)
		h.awaitSessionsOfAllNodes(ctx)
	})
	for what, w := range map[string]cluster.RequestCountsByResource{"death": died, "return": returned} {
		t.Logf("the %s of the only router cost these writes: %v", what, w)
		// One change of a Reason is one write. The sessions come one after the other within ten
		// seconds, and 5 texts in a second may follow them.
		h.expectWritesAtMost("the "+what+" of the router", w, map[string]int{
			"services/status": h.serviceCount + 50, "events": h.serviceCount + 50,
			"bgpsessions/status": 6 * h.nodeCount, "bgppeers/status": h.nodeCount + 2,
		})
	}
}

// frrConfigWithAllNodes returns the configuration of FRR in the docs, with each node as a neighbour
// of the router. In the docs there are three.
func (h *writeCountTestCluster) frrConfigWithAllNodes() string {
	h.t.Helper()
	const lastNeighbor = " neighbor 192.168.0.13 peer-group nodes\n"
	var all strings.Builder
	for i := 3; i <= h.nodeCount; i++ {
		fmt.Fprintf(&all, " neighbor 192.168.0.%d peer-group nodes\n", 10+i)
	}
	config := readFRRConfigFromDocs(h.t)
	if strings.Count(config, lastNeighbor) != 1 {
		h.t.Fatalf("the configuration in the docs has no line %q, or several:\n%s", lastNeighbor, config)
	}
	return strings.Replace(config, lastNeighbor, all.String(), 1)
}

// awaitSessionsOfAllNodes waits until each node has a session with the router.
func (h *writeCountTestCluster) awaitSessionsOfAllNodes(ctx context.Context) {
	h.t.Helper()
	want := fmt.Sprintf("%d/%d", h.nodeCount, h.nodeCount)
	h.awaitNoErrorForLongChange(ctx, "the sessions of all nodes", func(ctx context.Context) error {
		got, err := h.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "get", "bgppeer", "tor", "-o", "jsonpath={.status.gantry.sessions}")
		if err == nil && got != want {
			err = fmt.Errorf("%s sessions are established, want %s", got, want)
		}
		return err
	})
}

// TestDeathOfANodeCostsFewWrites counts the writes to the API server when a node dies that holds
// its share of the addresses.
func TestDeathOfANodeCostsFewWrites(t *testing.T) {
	ctx, h := startWriteCountTestCluster(t)
	failOnError(t, h.ApplyManifests(ctx, writeCountL2AdvertisementManifest))
	victim := chooseNodeWithoutControllerPod(ctx, t, h.Cluster)
	held := 0
	awaitAllHeld := func(what, without string) {
		h.awaitNoErrorForLongChange(ctx, what, func(ctx context.Context) error {
			byNode, err := h.countL2StatusesByNode(ctx)
			held = byNode[victim]
			delete(byNode, without)
			if sum := sumOfValues(byNode); err == nil && sum != h.serviceCount {
				err = fmt.Errorf("%d of %d addresses are held", sum, h.serviceCount)
			}
			return err
		})
	}
	awaitAllHeld("all addresses to be held", "")
	heldBefore := held
	h.awaitAnnouncedStatusOfAll(ctx, metav1.ConditionTrue)
	h.countAPIWritesOfChange(ctx, func() {})
	dead := h.countAPIWritesOfChange(ctx, func() {
		failOnError(t, h.KillNode(ctx, victim))
		awaitAllHeld("the other nodes to hold all addresses", victim)
	})
	t.Logf("the death of a node that held %d of %d addresses cost these writes: %v", heldBefore, h.serviceCount, dead)
	taken := heldBefore + heldBefore/4 // two nodes may take an address, one after the other
	h.expectWritesAtMost("the death of the node", dead, map[string]int{
		"services/status": h.nodeCount, "servicel2statuses": 2*taken + h.nodeCount, "servicel2statuses/status": taken + h.nodeCount,
		"events": taken + 10*h.nodeCount, "speakerstatuses/status": 6 * h.nodeCount,
	})
}

// chooseNodeWithoutControllerPod returns a node on which no controller runs, nor the Pod of the
// Services.
func chooseNodeWithoutControllerPod(ctx context.Context, t *testing.T, s *cluster.Cluster) string {
	t.Helper()
	used, err := s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "get", "pods", "-l", "app.kubernetes.io/component=controller", "-o", "jsonpath={.items[*].spec.nodeName}")
	failOnError(t, err)
	nodes, err := s.RunKubectl(ctx, "", "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}")
	failOnError(t, err)
	for _, name := range strings.Fields(nodes) {
		if name != "node1" && !slices.Contains(strings.Fields(used), name) {
			return name
		}
	}
	t.Fatalf("controllers run on every node: %s", used)
	return ""
}

func sumOfValues(m map[string]int) (sum int) {
	for _, n := range m {
		sum += n
	}
	return sum
}

// expectWritesAtMost fails if more of these writes were counted.
func (h *writeCountTestCluster) expectWritesAtMost(what string, got cluster.RequestCountsByResource, limits map[string]int) {
	h.t.Helper()
	for _, resource := range slices.Sorted(maps.Keys(limits)) {
		if got[resource] > limits[resource] {
			h.t.Errorf("%s cost %d writes of %s, want at most %d", what, got[resource], resource, limits[resource])
		}
	}
}

// countAPIWritesOfChange counts the writes of a change, until three seconds pass without one that
// it could have caused.
func (h *writeCountTestCluster) countAPIWritesOfChange(ctx context.Context, change func()) cluster.RequestCountsByResource {
	h.t.Helper()
	before, err := h.CountAPIWrites(ctx)
	failOnError(h.t, err)
	change()
	var last, latest cluster.RequestCountsByResource
	quietSince := time.Now()
	h.awaitNoErrorForLongChange(ctx, "the end of the writes", func(ctx context.Context) error {
		now, err := h.CountAPIWrites(ctx)
		if err != nil {
			return err
		}
		counted := now.SubtractEarlierCounts(before)
		for _, ofCluster := range []string{"leases", "nodes/status", "pods/status", "endpointslices", "subjectaccessreviews", "tokenreviews"} {
			delete(counted, ofCluster)
		}
		if sumOfValues(counted) != sumOfValues(last) {
			latest = counted.SubtractEarlierCounts(last)
			last, quietSince = counted, time.Now()
		}
		if quiet := time.Since(quietSince); quiet < 3*time.Second {
			return fmt.Errorf("the last writes were %s ago: %v, of %v in all", quiet, latest, last)
		}
		return nil
	})
	return last
}

// awaitNoErrorForLongChange waits until check returns nil, for longer than the other tests wait.
func (h *writeCountTestCluster) awaitNoErrorForLongChange(ctx context.Context, what string, check func(context.Context) error) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, allServicesChangeTimeout)
	defer cancel()
	for err := check(ctx); err != nil; err = check(ctx) {
		select {
		case <-ctx.Done():
			h.t.Fatalf("waiting for %s: %v", what, err)
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// awaitAnnouncedStatusOfAll waits until the condition Announced of every Service has this status.
func (h *writeCountTestCluster) awaitAnnouncedStatusOfAll(ctx context.Context, want metav1.ConditionStatus) {
	h.t.Helper()
	h.awaitNoErrorForLongChange(ctx, "Announced="+string(want)+" on all Services", func(ctx context.Context) error {
		var list corev1.ServiceList
		if err := h.API.List(ctx, &list, client.InNamespace("default"), client.MatchingLabels{"service.kubernetes.io/service-proxy-name": "nobody"}); err != nil {
			return err
		}
		n := 0
		for i := range list.Items {
			if meta.IsStatusConditionPresentAndEqual(list.Items[i].Status.Conditions, names.ConditionAnnounced, want) {
				n++
			}
		}
		if n != h.serviceCount {
			return fmt.Errorf("it is so on %d of %d", n, h.serviceCount)
		}
		return nil
	})
}

// countL2StatusesByNode counts the ServiceL2Statuses by node.
func (h *writeCountTestCluster) countL2StatusesByNode(ctx context.Context) (map[string]int, error) {
	var list v1beta1.ServiceL2StatusList
	if err := h.API.List(ctx, &list, client.InNamespace(names.DefaultNamespace)); err != nil {
		return nil, err
	}
	out := map[string]int{}
	for i := range list.Items {
		out[list.Items[i].Labels[names.LabelServiceStatusNode]]++
	}
	return out, nil
}
