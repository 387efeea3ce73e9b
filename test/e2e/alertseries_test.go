//go:build alertseries

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// recordedFault is a fault for which at least one alert has to fire.
type recordedFault struct {
	name         string // of the file with the metrics
	edit, repair func(ctx context.Context) error
	signs        []string // keys of faultSigns: those that the programs show during the fault
}

// faultSigns are regular expressions. A line of the metrics matches one while the fault is there.
var faultSigns = map[string]*regexp.Regexp{
	"BFD session down":        regexp.MustCompile(`^metallb_bfd_session_up\{.* 0$`),
	"BGP session down":        regexp.MustCompile(`^metallb_bgp_session_up\{.* 0$`),
	"Service not announced":   regexp.MustCompile(`^gantry_services_not_announced\{.* [1-9]`),
	"Service without address": regexp.MustCompile(`^gantry_services_without_address\{.* [1-9]`),
	"dead speaker":            regexp.MustCompile(`^gantry_dead_speakers\{.* [1-9]`),
	"foreign claim":           regexp.MustCompile(`^gantry_speaker_foreign_claims\{.* [1-9]`),
	"full pool":               regexp.MustCompile(`^metallb_allocator_ipv4_addresses_in_use_total\{.*pool="(tiny|taken)".* 1$`),
	"full pool of IPv6":       regexp.MustCompile(`^metallb_allocator_ipv6_addresses_in_use_total\{.*pool="tiny6".* 1$`),
	"gossip blocked":          regexp.MustCompile(`^gantry_speaker_unreachable_nodes\{.* [1-9]`),
	"no configuration":        regexp.MustCompile(`^metallb_k8s_client_config_loaded_bool\{.* 0$`),
	"no progress":             regexp.MustCompile(`^gantry_controller_no_progress_seconds\{.* (1[3-9][0-9]|[2-9][0-9][0-9])`),
	"stale configuration":     regexp.MustCompile(`^metallb_k8s_client_config_stale_bool\{.* 1$`),
}

// noLeaderSign is shown by a line that is missing.
const noLeaderSign = "no leader"

var leaderLine = regexp.MustCompile(`^leader_election_master_status\{.* 1$`)

// shownSigns returns the signs that the metrics show.
func shownSigns(lines []string) []string {
	var out []string
	for sign, expression := range faultSigns {
		if slices.ContainsFunc(lines, expression.MatchString) {
			out = append(out, sign)
		}
	}
	if !slices.ContainsFunc(lines, leaderLine.MatchString) {
		out = append(out, noLeaderSign)
	}
	slices.Sort(out)
	return out
}

// recordingTimeout is longer than the time after which the controller makes no progress.
const recordingTimeout = 5 * time.Minute

// TestRecordMetricsForAlerts makes the faults that the alerts are about, and writes the metrics of
// both programs, before and during each fault, into tools/alerts/testdata. The tests of the alerts
// and of the dashboards use them.
func TestRecordMetricsForAlerts(t *testing.T) {
	if m := router.DescribeMissingPrerequisite(router.FRR); m != "" {
		t.Skip(m)
	}
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 2, Families: lab.DualStack})
	h := &faultTestCluster{Cluster: s, tor: s.RouterOnHost("router", router.FRR), seenReasons: map[string]bool{}}
	failOnError(t, h.installWithWebhookAndContinuity(ctx))
	failOnError(t, h.tor.StartWithConfig(ctx, readFRRConfigFromDocs(t)))
	failOnError(t, s.ApplyManifests(ctx, healthyBaseManifests))
	failOnError(t, h.awaitAnnounced(ctx, "web"))
	failOnError(t, h.awaitAnnounced(ctx, "routed"))
	recorder := newMetricsRecorder(t, h)
	recorder.record(ctx, "healthy")
	for _, f := range h.recordedFaults() {
		t.Run(f.name, func(t *testing.T) {
			recorder.t = t
			failOnError(t, f.edit(ctx))
			recorder.record(ctx, f.name, f.signs...)
			failOnError(t, f.repair(ctx))
			failOnError(t, h.awaitAnnounced(ctx, "web"))
			failOnError(t, h.awaitAnnounced(ctx, "routed"))
			recorder.awaitSigns(ctx)
		})
	}
}

// recordedFaultOf returns a fault that kubectl describe service has to name too, for a file.
func (h *faultTestCluster) recordedFaultOf(name, file string, signs ...string) recordedFault {
	all := slices.Concat(h.nodeFaults(), h.routerFaults())
	f := all[slices.IndexFunc(all, func(f fault) bool { return f.name == name })]
	return recordedFault{
		name: file, signs: signs,
		edit:   func(ctx context.Context) error { return h.makeFault(ctx, f) },
		repair: func(ctx context.Context) error { return h.repairFault(ctx, f) },
	}
}

func (h *faultTestCluster) recordedFaults() []recordedFault {
	inSystemNamespace := func(args ...string) func(context.Context) error {
		return h.kubectlFunc(append([]string{"-n", names.DefaultNamespace}, args...)...)
	}
	apply := func(manifests string) func(context.Context) error {
		return func(ctx context.Context) error { return h.ApplyManifests(ctx, manifests) }
	}
	foreignHost := h.recordedFaultOf("another host has the address", "foreign-host", "Service not announced", "foreign claim", "full pool")
	foreignHost.repair = h.runInSequenceFunc(foreignHost.repair, h.kubectlFunc("delete", "service", "taken"))
	return []recordedFault{
		h.recordedFaultOf("the Pods are gone", "no-endpoints", "Service not announced"),
		{name: "full-pool", signs: []string{"Service without address", "full pool", "full pool of IPv6"},
			edit: apply(poolWithoutAutoAssignManifest("tiny", "192.168.0.150", l2AdvertisementSpecOfPool("tiny", "")) + poolWithoutAutoAssignManifest("tiny6", "fd00:a9::1", l2AdvertisementSpecOfPool("tiny6", "")) +
				serviceManifest("tiny-first", "metallb.io/address-pool: tiny", "") + serviceManifest("tiny6-first", "metallb.io/address-pool: tiny6", "ipFamilies: [IPv6]") + serviceManifest("tiny", "metallb.io/address-pool: tiny", "")),
			repair: h.kubectlFunc("delete", "service", "tiny", "tiny-first", "tiny6-first")},
		foreignHost,
		{name: "blocked-gossip", signs: []string{"gossip blocked"},
			edit: func(ctx context.Context) error {
				return h.BlockGossipOneWay(ctx, []string{"node1"}, []string{"node2"}, "udp")
			},
			repair: func(ctx context.Context) error {
				return errors.Join(h.UnblockPorts(ctx, "node1"), h.UnblockPorts(ctx, "node2"))
			}},
		h.recordedFaultOf("no speaker runs on the Pod's node", "no-speaker", "dead speaker"),
		h.recordedFaultOf("BFD on one side", "bfd-on-one-side", "BFD session down"),
		h.recordedFaultOf("the router dies", "dead-router", "BGP session down", "Service not announced"),
		{name: "faulty-object", signs: []string{"stale configuration"},
			// The webhook would refuse the object.
			edit: h.runInSequenceFunc(h.kubectlFunc("delete", "validatingwebhookconfiguration", "gantry-webhook"),
				apply("apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: faulty, namespace: metallb-system}\nspec: {nodeSelectors: [{matchExpressions: [{key: a, operator: Near}]}]}\n---\n")),
			repair: h.runInSequenceFunc(inSystemNamespace("delete", "l2advertisement", "faulty"), h.installWithWebhookAndContinuity)},
		{name: "no-progress", signs: []string{"no progress"},
			// A webhook without a server fails each write of the AddressLedger.
			edit: apply(deadLedgerWebhookManifest + serviceManifest("stuck", "", "")),
			repair: h.runInSequenceFunc(h.kubectlFunc("delete", "validatingwebhookconfiguration", "dead-ledger-webhook"),
				h.kubectlFunc("wait", "service", "stuck", "--for=jsonpath={.status.loadBalancer.ingress}", "--timeout=60s"), h.kubectlFunc("delete", "service", "stuck"))},
		{name: "no-rights", signs: []string{"no configuration"},
			edit:   h.runInSequenceFunc(inSystemNamespace("delete", "rolebinding", "gantry-speaker"), inSystemNamespace("delete", "pods", "-l", "app.kubernetes.io/component=speaker", "--field-selector=spec.nodeName=node2")),
			repair: h.runInSequenceFunc(h.kubectlFunc("apply", "-f", filepath.Join(lab.RepositoryRoot(), "config", "rbac", "speaker.yaml")), h.AwaitGantryRollout)},
		{name: "no-controller", signs: []string{noLeaderSign},
			edit: inSystemNamespace("scale", "deployment", "gantry-controller", "--replicas=0"), repair: h.runInSequenceFunc(inSystemNamespace("scale", "deployment", "gantry-controller", "--replicas=2"), h.AwaitGantryRollout)},
	}
}

// installWithWebhookAndContinuity installs what exports the metrics of all panels.
func (h *faultTestCluster) installWithWebhookAndContinuity(ctx context.Context) error {
	folder, err := os.MkdirTemp("", "gantry-alert-series")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	config, err := filepath.Rel(folder, filepath.Join(lab.RepositoryRoot(), "config"))
	if err != nil {
		return err
	}
	text := fmt.Sprintf("resources: [%[1]s/default]\ncomponents: [%[1]s/components/webhook, %[1]s/components/continuity]\n", config)
	if err := os.WriteFile(filepath.Join(folder, "kustomization.yaml"), []byte(text), 0o644); err != nil {
		return err
	}
	if err := h.kubectlFunc("apply", "-k", folder)(ctx); err != nil {
		return err
	}
	return h.AwaitGantryRollout(ctx)
}

// deadLedgerWebhookManifest lets the API server ask a server that does not exist before it writes
// an AddressLedger.
const deadLedgerWebhookManifest = `apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: dead-ledger-webhook}
webhooks:
- name: dead.example.com
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  clientConfig: {url: "https://127.0.0.1:1/"}
  rules: [{apiGroups: [gantry.dev], apiVersions: ["*"], operations: [CREATE, UPDATE], resources: [addressledgers]}]
---
`

// metricsRecorder writes what Prometheus would store of the programs' metrics.
type metricsRecorder struct {
	t      *testing.T
	h      *faultTestCluster
	used   map[string]bool // the metrics in alerts and dashboards
	folder string
}

func newMetricsRecorder(t *testing.T, h *faultTestCluster) *metricsRecorder {
	t.Helper()
	root := lab.RepositoryRoot()
	component := filepath.Join(root, "config", "components", "prometheus")
	r := &metricsRecorder{t: t, h: h, used: map[string]bool{}, folder: filepath.Join(root, "tools", "alerts", "testdata")}
	boards, err := filepath.Glob(filepath.Join(component, "dashboards", "*.json"))
	failOnError(t, err)
	for _, path := range append(boards, filepath.Join(component, "rules.yaml")) {
		text, err := os.ReadFile(path)
		failOnError(t, err)
		for _, m := range regexp.MustCompile(`(?:gantry|metallb|leader_election|process)_[a-z0-9_]+`).FindAllString(string(text), -1) {
			r.used[m] = true
		}
	}
	failOnError(t, os.MkdirAll(r.folder, 0o755))
	return r
}

// record waits until the metrics show exactly these signs, and writes them into a file.
func (r *metricsRecorder) record(ctx context.Context, name string, signs ...string) {
	r.t.Helper()
	lines := r.awaitSigns(ctx, signs...)
	text := fmt.Sprintf("# Recorded by make alert-series at the Unix time %d.\n%s\n", time.Now().Unix(), strings.Join(lines, "\n"))
	failOnError(r.t, os.WriteFile(filepath.Join(r.folder, name+".prom"), []byte(text), 0o644))
}

// awaitSigns waits until the metrics show exactly these signs, and returns the metrics.
func (r *metricsRecorder) awaitSigns(ctx context.Context, signs ...string) []string {
	r.t.Helper()
	deadline := time.Now().Add(recordingTimeout)
	for {
		var lines []string
		err := cluster.AwaitNoError(ctx, "the signs of the fault", func(ctx context.Context) (err error) {
			if lines, err = r.scrape(ctx); err != nil {
				return err
			}
			if shown := shownSigns(lines); !slices.Equal(shown, signs) {
				return fmt.Errorf("the metrics show %q, want %q", shown, signs)
			}
			return nil
		})
		if err == nil {
			return lines
		}
		if time.Now().After(deadline) {
			r.t.Fatal(err)
		}
	}
}

// scrape returns the used metrics of all programs, with the labels that Prometheus adds.
func (r *metricsRecorder) scrape(ctx context.Context) ([]string, error) {
	config, err := clientcmd.BuildConfigFromFlags("", r.h.Kubeconfig())
	if err != nil {
		return nil, err
	}
	var pods corev1.PodList
	if err := r.h.API.List(ctx, &pods, client.InNamespace(names.DefaultNamespace), client.MatchingLabels{"app.kubernetes.io/name": "gantry"}); err != nil {
		return nil, err
	}
	var out []string
	for _, p := range pods.Items {
		component := p.Labels["app.kubernetes.io/component"]
		port := map[string]string{"controller": ":7472", "speaker": ":7473"}[component]
		if port == "" || p.DeletionTimestamp != nil || p.Status.PodIP == "" {
			continue
		}
		text, err := r.h.FetchMetrics(ctx, "client", p.Status.PodIP+port, config.BearerToken)
		if err != nil {
			return nil, err
		}
		for _, line := range strings.Split(text, "\n") {
			if added, isUsed := r.addTargetLabels(line, `job="gantry-`+component+`",pod="`+p.Name+`"`); isUsed {
				out = append(out, added)
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// addTargetLabels adds the labels of the target to a line of its metrics. Labels of the metric
// win, as honorLabels says.
func (r *metricsRecorder) addTargetLabels(line, labels string) (string, bool) {
	parts := regexp.MustCompile(`^([a-z0-9_]+)(?:\{(.*)\})? (\S+)$`).FindStringSubmatch(line)
	if parts == nil || !r.used[parts[1]] {
		return "", false
	}
	own := parts[2]
	if !strings.Contains(","+own, `,namespace="`) {
		labels = `namespace="` + names.DefaultNamespace + `",` + labels
	}
	if own != "" {
		own += ","
	}
	return parts[1] + "{" + own + labels + "} " + parts[3], true
}
