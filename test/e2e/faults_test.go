package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// faultReportTimeout is how soon a person who looks at a Service has to find the cause. It is for a
// machine on which kubectl describe takes no longer than kubectlDescribeDelayOnIdleMachine. On a
// busy machine it grows with the time that this command takes.
const (
	faultReportTimeout                = 10 * time.Second
	kubectlDescribeDelayOnIdleMachine = time.Second
)

// fault is something that a person may do wrong, or that may break.
type fault struct {
	name string
	// manifests are applied to make the fault, and edit runs after that. Either may be empty.
	manifests string
	edit      func(ctx context.Context) error
	// repair undoes the edit. repairManifests are applied after it.
	repair          func(ctx context.Context) error
	repairManifests string
	// service is the Service that a person looks at.
	service string
	// reason is the word, and text the part of the sentence, that the person has to find.
	reason names.Reason
	text   string
	// conditionOfWorkingService is set if the Service has an address and is announced all the same:
	// this condition is True, and its text names the cause.
	conditionOfWorkingService string
	// explanationText is what kubectl gantry explain says, if it differs from text.
	explanationText string
	// objectConditionNamingCause is set if the Service is announced all the same: then a condition
	// of this object names the cause, and not kubectl describe service.
	objectConditionNamingCause *objectCondition
}

// objectCondition is a condition of an object in Gantry's namespace.
type objectCondition struct{ kind, name, condition string }

// faultTestCluster is a cluster with a router, an L2 Service web and a BGP Service routed. All Pods
// run on node1.
type faultTestCluster struct {
	*cluster.Cluster
	tor *lab.Router

	mu          sync.Mutex // guards seenReasons
	seenReasons map[string]bool
}

// TestKubectlDescribeServiceNamesEachFault makes more than 35 faults, one after the other. kubectl
// describe service has to name the cause, and so has the condition, within 10 s. After the repair
// the Service works, its newest event is no Warning, and no condition of it is False. Faults with
// Services of their own happen all at once.
func TestKubectlDescribeServiceNamesEachFault(t *testing.T) {
	t.Parallel()
	if m := router.DescribeMissingPrerequisite(router.FRR); m != "" {
		t.Skip(m)
	}
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 2, Families: lab.DualStack})
	h := &faultTestCluster{Cluster: s, tor: s.RouterOnHost("router", router.FRR), seenReasons: map[string]bool{}}
	failOnError(t, h.tor.StartWithConfig(ctx, readFRRConfigFromDocs(t)))
	failOnError(t, s.ApplyManifests(ctx, healthyBaseManifests))
	failOnError(t, h.awaitAnnounced(ctx, "web"))
	failOnError(t, h.awaitAnnounced(ctx, "routed"))
	t.Run("columns", func(t *testing.T) { h.testKubectlGetColumns(ctx, t) })
	t.Run("addresses that the subnet reserves", func(t *testing.T) { h.testBroadcastAddressesAreReported(ctx, t) })
	t.Run("of one Service", func(t *testing.T) {
		failOnError(t, s.ApplyManifests(ctx, configurationFaultPrerequisites))
		var all []string
		for _, f := range configurationFaults {
			all = append(all, f.manifests)
		}
		failOnError(t, s.ApplyManifests(ctx, strings.Join(all, "---\n")))
		for _, f := range configurationFaults {
			t.Run(f.name, func(t *testing.T) {
				t.Parallel()
				f.manifests = "" // are applied
				h.testFaultAndRepair(ctx, t, f)
			})
		}
	})
	t.Run("a pool in another namespace", func(t *testing.T) { h.testPoolInOtherNamespaceIsReported(ctx, t) })
	for _, f := range slices.Concat([]fault{misspeltAnnotationFault}, h.nodeFaults(), h.routerFaults()) {
		t.Run(f.name, func(t *testing.T) { h.testFaultAndRepair(ctx, t, f) })
	}
	t.Run("blocked gossip", func(t *testing.T) { h.testBlockedGossipIsReported(ctx, t) })
	t.Run("no speaker", func(t *testing.T) { h.testStopOfAllSpeakersIsReported(ctx, t) })
	t.Run("another gossip key", func(t *testing.T) { h.testDifferentGossipKeysAreExplained(ctx, t) })
	t.Run("no controller", func(t *testing.T) { h.testWaitForControllerIsReported(ctx, t) })
	t.Run("nothing is left", func(t *testing.T) { h.expectNoFaultLeft(ctx, t) })
	t.Run("explained", func(t *testing.T) { h.testKubectlGantryExplainNamesCause(ctx, t) })
	h.expectSeenReasonsAreDocumented(t)
}

// makeFault makes a fault.
func (h *faultTestCluster) makeFault(ctx context.Context, f fault) error {
	if f.manifests != "" {
		if err := h.ApplyManifests(ctx, f.manifests); err != nil {
			return err
		}
	}
	if f.edit == nil {
		return nil
	}
	return f.edit(ctx)
}

// repairFault undoes a fault.
func (h *faultTestCluster) repairFault(ctx context.Context, f fault) error {
	if f.repair != nil {
		if err := f.repair(ctx); err != nil {
			return err
		}
	}
	if f.repairManifests == "" {
		return nil
	}
	return h.ApplyManifests(ctx, f.repairManifests)
}

// testFaultAndRepair makes a fault, looks at it and repairs it.
func (h *faultTestCluster) testFaultAndRepair(ctx context.Context, t *testing.T, f fault) {
	failOnError(t, h.makeFault(ctx, f))
	h.expectDescribeNamesCause(ctx, t, f)
	if f.objectConditionNamingCause == nil {
		h.expectExplanationNamesCause(ctx, t, f)
	}
	failOnError(t, h.repairFault(ctx, f))
	failOnError(t, h.awaitAnnounced(ctx, f.service))
	if f.objectConditionNamingCause != nil {
		failOnError(t, h.awaitObjectRepaired(ctx, f.objectConditionNamingCause))
		return
	}
	failOnError(t, cluster.AwaitNoError(ctx, "the end of all that says that the Service has a fault", func(ctx context.Context) error {
		if f.edit != nil { // the Service was announced before
			if text, err := h.kubectlDescribeService(ctx, f.service); err != nil || !strings.Contains(text, names.EventAnnounced+" ") {
				return fmt.Errorf("kubectl describe has no event of the recovery (%v):\n%s", err, text)
			}
		}
		return h.checkServiceHasNoFault(ctx, f.service)
	}))
	h.expectHealthyExplanation(ctx, t, f.service)
}

// expectDescribeNamesCause waits until kubectl describe and the condition name the cause of the
// fault.
func (h *faultTestCluster) expectDescribeNamesCause(ctx context.Context, t *testing.T, f fault) {
	t.Helper()
	begun := time.Now()
	defer func() {
		if took := time.Since(begun); took > faultReportTimeout && !t.Failed() {
			h.expectReportWithinTimeout(ctx, t, f, took)
		}
	}()
	if f.objectConditionNamingCause != nil {
		failOnError(t, h.awaitObjectFault(ctx, f.objectConditionNamingCause, f.reason, f.text))
		h.recordSeenReason(string(f.reason))
		return
	}
	failOnError(t, cluster.AwaitNoError(ctx, "the condition and the event", func(ctx context.Context) error {
		svc, err := h.GetService(ctx, "default", f.service)
		if err != nil {
			return err
		}
		c := meta.FindStatusCondition(svc.Status.Conditions, names.ConditionAnnounced)
		if len(svc.Status.LoadBalancer.Ingress) == 0 {
			c = meta.FindStatusCondition(svc.Status.Conditions, names.ConditionAddressAssigned)
		}
		wantStatus, wantReason, eventPrefix := metav1.ConditionFalse, f.reason, string(f.reason)+": "
		if f.conditionOfWorkingService != "" {
			c = meta.FindStatusCondition(svc.Status.Conditions, f.conditionOfWorkingService)
			wantStatus, wantReason, eventPrefix = metav1.ConditionTrue, names.ReasonAssigned, ""
		}
		if c == nil || c.Status != wantStatus || c.Reason != string(wantReason) || !strings.Contains(c.Message, f.text) {
			return fmt.Errorf("the condition is %+v, want %s: %s", c, wantReason, f.text)
		}
		h.recordSeenReason(string(f.reason))
		text, err := h.kubectlDescribeService(ctx, f.service)
		if err != nil {
			return err
		}
		for _, line := range strings.Split(text, "\n") {
			// A new Service without Pods is not worth a Warning yet.
			isKind := strings.Contains(line, "Warning") || f.reason == names.ReasonNoEndpoints && strings.Contains(line, "Normal")
			if isKind && strings.Contains(line, eventPrefix) && strings.Contains(line, f.text) {
				return nil
			}
		}
		return fmt.Errorf("kubectl describe has no Warning with %s and %q:\n%s", f.reason, f.text, text)
	}))
}

// expectReportWithinTimeout fails the test if a report took longer than faultReportTimeout allows
// on this machine.
func (h *faultTestCluster) expectReportWithinTimeout(ctx context.Context, t *testing.T, f fault, took time.Duration) {
	t.Helper()
	begun := time.Now()
	_, err := h.kubectlDescribeService(ctx, f.service)
	failOnError(t, err)
	describing := time.Since(begun)
	limit := faultReportTimeout
	if describing > kubectlDescribeDelayOnIdleMachine {
		limit = time.Duration(faultReportTimeout.Seconds() * float64(describing) / kubectlDescribeDelayOnIdleMachine.Seconds())
	}
	if took > limit {
		t.Errorf("the cause was reported after %s, more than %s: kubectl describe takes %s now", took, limit, describing)
	}
	t.Logf("the machine is busy: the cause was reported after %s, and kubectl describe takes %s", took, describing)
}

func (h *faultTestCluster) kubectlDescribeService(ctx context.Context, service string) (string, error) {
	return h.RunKubectl(ctx, "", "describe", "service", service)
}

func (h *faultTestCluster) recordSeenReason(reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seenReasons[reason] = true
}

// awaitAnnounced waits until the Service is announced, and nothing is wrong with it.
func (h *faultTestCluster) awaitAnnounced(ctx context.Context, service string) error {
	return awaitAnnouncedCondition(ctx, h.Cluster, service, "True", names.ReasonAnnounced)
}

// expectSeenReasonsAreDocumented compares the Reasons that were seen with docs/reasons.md.
func (h *faultTestCluster) expectSeenReasonsAreDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(lab.RepositoryRoot(), "docs", "reasons.md"))
	failOnError(t, err)
	for _, reason := range slices.Sorted(maps.Keys(h.seenReasons)) {
		if !strings.Contains(string(text), "\n| `"+reason+"` |") {
			t.Errorf("the lab showed %s, which has no row in docs/reasons.md", reason)
		}
	}
}

// testKubectlGetColumns checks what kubectl get shows of the two Services.
func (h *faultTestCluster) testKubectlGetColumns(ctx context.Context, t *testing.T) {
	for kind, want := range map[string]string{
		"ipap":     `first-pool +.*True +Valid`,
		"l2adv":    `example +.*True +Valid`,
		"bgpp":     `tor +192\.168\.0\.1 .*2/2 +True +Valid`,
		"bgps":     `tor\.node1 +node1 +tor +192\.168\.0\.1:179 +Established +Established`,
		"speakers": `node1 +True +True .*eth0`,
		"svcl2":    `default\.web\.node[12] +node[12] +web +default +\["192\.168\.0\.`,
		"svcbgp":   `default\.routed\.node1 +node1 +routed +default +\["tor"\]`,
		"gantry":   `bgpsession\.gantry\.dev/tor\.node1`,
	} {
		pattern := regexp.MustCompile(want)
		var shown string
		err := cluster.AwaitNoError(ctx, "the columns of "+kind, func(ctx context.Context) error {
			out, err := h.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "get", kind)
			if err != nil {
				return err
			}
			if shown = out; !pattern.MatchString(out) {
				err = fmt.Errorf("%s is not in it", want)
			}
			return err
		})
		if err != nil {
			t.Errorf("kubectl get %s shows, and %s is not in it (%v):\n%s", kind, want, err, shown)
		}
	}
}

// kubectlFunc returns a function that runs kubectl.
func (h *faultTestCluster) kubectlFunc(args ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := h.RunKubectl(ctx, "", args...)
		return err
	}
}

// misspeltAnnotationFault is an annotation with a misspelt key.
var misspeltAnnotationFault = fault{
	name: "a misspelt annotation", service: "misspelt", reason: names.ReasonUnknownAnnotation, conditionOfWorkingService: names.ConditionAddressAssigned,
	text:      "the annotation metallb.io/loadBalancerIP is unknown and ignored: did you mean metallb.io/loadBalancerIPs?",
	manifests: serviceManifest("misspelt", "metallb.io/loadBalancerIP: 192.168.0.225", ""), repairManifests: serviceManifest("misspelt", "metallb.io/loadBalancerIPs: 192.168.0.225", ""),
}

// testPoolInOtherNamespaceIsReported creates a pool in another namespace than Gantry's. The policy
// for the API server refuses that, so it is removed before.
func (h *faultTestCluster) testPoolInOtherNamespaceIsReported(ctx context.Context, t *testing.T) {
	manifest := poolWithoutAutoAssignManifest("elsewhere", "192.168.0.167", l2AdvertisementSpecOfPool("elsewhere", ""))
	failOnError(t, h.kubectlFunc("delete", "validatingadmissionpolicybinding", "gantry-configuration-namespace")(ctx))
	failOnError(t, cluster.AwaitNoError(ctx, "the end of the policy", func(ctx context.Context) error {
		return h.ApplyManifests(ctx, strings.ReplaceAll(manifest, "namespace: metallb-system", "namespace: default"))
	}))
	h.testFaultAndRepair(ctx, t, fault{
		service: "elsewhere", reason: names.ReasonPoolNotFound, text: `no IPAddressPool "elsewhere" exists in namespace metallb-system, the only one that Gantry reads: create it there`,
		explanationText: "IPAddressPool elsewhere is in namespace default, and only those in metallb-system count: create it there",
		manifests:       serviceManifest("elsewhere", "metallb.io/address-pool: elsewhere", ""),
		repair:          h.kubectlFunc("-n", "default", "delete", "ipaddresspool,l2advertisement", "elsewhere"), repairManifests: manifest,
	})
	failOnError(t, h.kubectlFunc("apply", "-f", filepath.Join(lab.RepositoryRoot(), "config", "policy", "policy.yaml"))(ctx))
}

// nodeFaults are faults of nodes and speakers, for Services whose Pod runs on node1.
func (h *faultTestCluster) nodeFaults() []fault {
	both := func(verb string, args ...string) func(context.Context) error {
		return h.kubectlFunc(append([]string{verb, "node", "node1", "node2", "--overwrite"}, args...)...)
	}
	return []fault{
		{name: "the node of the only Pod is excluded", service: "local", reason: names.ReasonNodeExcluded, text: "node1: it has the label",
			manifests: localTrafficPolicyServiceManifest, edit: h.kubectlFunc("label", "node", "node1", names.LabelExcludeNode+"="), repair: h.kubectlFunc("label", "node", "node1", names.LabelExcludeNode+"-")},
		{name: "every node is excluded", service: "web", reason: names.ReasonNodeExcluded, text: names.LabelExcludeNode,
			edit: both("label", names.LabelExcludeNode+"="), repair: both("label", names.LabelExcludeNode+"-")},
		{name: "every node is being drained", service: "web", reason: names.ReasonNodeLeaving, text: "node1, node2: the node is being drained",
			edit: both("annotate", names.AnnotationDrainNode+"="), repair: both("annotate", names.AnnotationDrainNode+"-")},
		{name: "the network of the Pod's node is unavailable", service: "local", reason: names.ReasonNodeNetworkUnavailable, text: "node1: its condition NetworkUnavailable",
			edit: h.setNetworkUnavailableFunc("node1", "True"), repair: h.setNetworkUnavailableFunc("node1", "False")},
		{name: "only nodes without the Pod are selected", service: "local", reason: names.ReasonNoLocalEndpoints, text: "node2: no endpoint of the Service serves there",
			manifests: l2AdvertisementManifestForNode("node2"), repairManifests: cluster.FirstPoolAndL2AdvertisementManifest,
			repair: h.kubectlFunc("-n", names.DefaultNamespace, "delete", "l2advertisement", "example")},
		{name: "no speaker runs on the Pod's node", service: "local", reason: names.ReasonNoSpeaker, text: "node1: ",
			edit:   h.kubectlFunc("-n", names.DefaultNamespace, "patch", "daemonset", "gantry-speaker", "-p", `{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":"node2"}}}}}`),
			repair: h.kubectlFunc("-n", names.DefaultNamespace, "patch", "daemonset", "gantry-speaker", "--type=json", "-p", `[{"op":"remove","path":"/spec/template/spec/nodeSelector/kubernetes.io~1hostname"}]`)},
		{name: "another host has the address", service: "taken", reason: names.ReasonForeignClaim, text: "192.168.0.240, since a host outside of the cluster",
			edit: func(ctx context.Context) error {
				if err := h.RunOnHost("client", "ip", "address", "add", "192.168.0.240/32", "dev", "eth0"); err != nil {
					return err
				}
				return h.ApplyManifests(ctx, serviceManifest("taken", `metallb.io/loadBalancerIPs: "192.168.0.240"`, ""))
			},
			manifests: poolWithoutAutoAssignManifest("taken", "192.168.0.240", "spec: {ipAddressPools: [taken]}"),
			repair: func(context.Context) error {
				return h.RunOnHost("client", "ip", "address", "del", "192.168.0.240/32", "dev", "eth0")
			}},
		{name: "the link of the Pod's node is down", service: "racked", reason: names.ReasonLinkDown, text: "node1: its link rack0 in the subnet of 198.18.7.10 is down",
			manifests: poolWithoutAutoAssignManifest("racked", "198.18.7.10", l2AdvertisementSpecOfPool("racked", "")),
			edit: func(ctx context.Context) error {
				// The carrier of rack0 on node1 is missing: the other end is down.
				for node, commands := range map[string][]string{
					"node1": {"link add rack0 type veth peer name rack1", "address add 198.18.7.1/24 dev rack0", "link set rack0 up"},
					"node2": {"link add rack0 type veth peer name rack1", "address add 198.18.7.2/24 dev rack0", "link set rack0 up", "link set rack1 up"},
				} {
					for _, c := range commands {
						if err := h.RunOnHost(node, "ip", strings.Fields(c)...); err != nil {
							return err
						}
					}
				}
				return h.ApplyManifests(ctx, serviceManifest("racked", `metallb.io/address-pool: racked`, "externalTrafficPolicy: Local"))
			},
			// Without any link in the subnet, each link may have the address.
			repair: func(context.Context) error {
				return errors.Join(h.RunOnHost("node1", "ip", "link", "del", "rack0"), h.RunOnHost("node2", "ip", "link", "del", "rack0"))
			}},
		{name: "the Pods are gone", service: "web", reason: names.ReasonNoEndpoints, text: "no endpoint of the Service can serve",
			edit: h.kubectlFunc("scale", "deployment", "web", "--replicas=0"), repair: h.kubectlFunc("scale", "deployment", "web", "--replicas=1")},
	}
}

func (h *faultTestCluster) setNetworkUnavailableFunc(node, status string) func(context.Context) error {
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"NetworkUnavailable","status":%q,"reason":"Test"}]}}`, status)
	return h.kubectlFunc("patch", "node", node, "--subresource=status", "--type=strategic", "-p", patch)
}

// routerFaults are faults of the router and its BGPPeer.
func (h *faultTestCluster) routerFaults() []fault {
	patch := func(spec string) func(context.Context) error {
		return h.kubectlFunc("-n", names.DefaultNamespace, "patch", "bgppeer", "tor", "--type=merge", "-p", `{"spec":`+spec+`}`)
	}
	const intact = `{"peerASN":65000,"peerAddress":"192.168.0.1","password":"","passwordSecret":null,"holdTime":null}`
	peerFault := func(name, spec string, reason names.Reason, text string) fault {
		return fault{name: name, service: "routed", reason: names.ReasonNoSession, text: text + " (" + string(reason), edit: patch(spec), repair: patch(intact)}
	}
	faults := []fault{
		peerFault("a wrong AS number", `{"peerASN":65001}`, names.ReasonWrongASNumber, ""),
		peerFault("a router address without a host", `{"peerAddress":"192.168.0.250"}`, names.ReasonUnreachable, ""),
		peerFault("a router address without BGP", `{"peerAddress":"192.168.0.100"}`, names.ReasonConnectionRefused, ""),
		peerFault("a wrong password", `{"password":"wrong","holdTime":"60s"}`, names.ReasonNoAnswer, ""),
	}
	for i := range faults {
		faults[i].text = strings.TrimPrefix(faults[i].text, " ")
	}
	// An edit to a missing Secret leaves the session as it was. So the BGPPeer is a new one.
	replacePeer := func(more string) func(context.Context) error {
		return func(ctx context.Context) error {
			if _, err := h.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "delete", "bgppeer", "tor"); err != nil {
				return err
			}
			return h.ApplyManifests(ctx, torPeerManifest(more))
		}
	}
	session := &objectCondition{"bgpsession", "tor.node1", names.ConditionBFDWatchesPath}
	faults = append(faults, fault{name: "BFD on one side", service: "routed", reason: names.ReasonBFDDown, text: "", objectConditionNamingCause: session,
		manifests: "apiVersion: metallb.io/v1beta1\nkind: BFDProfile\nmetadata: {name: fast, namespace: metallb-system}\nspec: {}\n---\n" + torPeerManifest(", bfdProfile: fast"), repairManifests: torPeerManifest("")})
	faults = append(faults, fault{name: "BFD on the router's side only", service: "routed", reason: names.ReasonBFDNotConfigured, text: "the router sends BFD packets, and BGPPeer tor has no bfdProfile", objectConditionNamingCause: session,
		edit: func(ctx context.Context) error {
			return h.tor.ChangeRunningConfig(ctx, "router bgp 65000\n neighbor nodes bfd\n")
		},
		repair: func(ctx context.Context) error {
			return h.tor.ChangeRunningConfig(ctx, "router bgp 65000\n no neighbor nodes bfd\n")
		}})
	faults = append(faults, fault{name: "a missing Secret", service: "routed", reason: names.ReasonNoSession, text: "(UnknownSecret)", edit: replacePeer(", passwordSecret: {name: missing}"), repair: replacePeer("")})
	return append(faults, fault{name: "the router dies", service: "routed", reason: names.ReasonNoSession, text: "0 of 2 BGP sessions carry the Service",
		edit:   func(ctx context.Context) error { return h.tor.Stop(ctx) },
		repair: func(ctx context.Context) error { return h.tor.StartEndedDaemons(ctx) }})
}
