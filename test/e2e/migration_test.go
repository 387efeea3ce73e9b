package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/packages"
)

// migrationStreamService is the Service of the client's stream, and migrationStreamAddress its
// address.
const (
	migrationStreamService = "migrated-stream"
	migrationStreamAddress = "192.168.0.111"
	firstMigrationAddress  = 111
	migrationNodeCount     = 3
)

// migrationRun walks docs/from-metallb.md.
type migrationRun struct {
	*quickstartStepRunner
	standIn   cluster.MetalLBStandIn
	addresses map[string]string // of each Service, as MetalLB gave them
	stream    *cluster.RequestStream
}

// TestMovingFromMetalLBAndBackChangesNoAddress follows docs/from-metallb.md literally: with Helm
// to Gantry and back, and with manifests to Gantry and back. 40 Services keep their addresses,
// each is answered after each walk, and a client's stream sees no more than failovers.
func TestMovingFromMetalLBAndBackChangesNoAddress(t *testing.T) {
	if m := packages.DescribeUnbuiltHelmOrKustomize(); m != "" {
		t.Skip(m)
	}
	ctx, s := startLabWithoutGantry(t, lab.Options{Nodes: migrationNodeCount})
	w := newMigrationRun(ctx, t, s)
	w.carryOutText(ctx, t, "helm install metallb "+filepath.Join(w.cloneDir, "metallb")+" --namespace metallb-system --wait")
	w.applyConfigurationAndServices(ctx, t)
	w.startStream(ctx, t)
	for _, section := range []string{"Helm", "Back with Helm", "Manifests and kustomize", "Back with manifests"} {
		t.Run(section, func(t *testing.T) {
			if section == "Manifests and kustomize" {
				w.replaceHelmReleaseByManifests(ctx, t)
			}
			w.followSection(ctx, t, section)
			w.checkServices(ctx, t)
			if !strings.HasPrefix(section, "Back ") {
				w.awaitGantryWell(ctx, t)
			}
		})
	}
	result := w.stream.StopAndAwaitLateAnswers()
	t.Logf("the stream lost %d of %d requests, and the longest time without an answer was %v", result.LostCount, result.SentCount, result.LongestTimeWithoutAnswer)
	if result.LongestTimeWithoutAnswer > migrationOutageLimit {
		t.Errorf("the client had no answer for %v", result.LongestTimeWithoutAnswer)
	}
}

// migrationOutageLimit is well above one failover on a busy machine, and well below the start of a
// program. `make bench` measures failovers.
const migrationOutageLimit = 5 * time.Second

func newMigrationRun(ctx context.Context, t *testing.T, s *cluster.Cluster) *migrationRun {
	t.Helper()
	w := &migrationRun{quickstartStepRunner: newQuickstartStepRunner(t, s), addresses: map[string]string{}}
	w.standIn.GossipPort = 7946
	for i := 1; i <= migrationNodeCount; i++ {
		w.standIn.Nodes = append(w.standIn.Nodes, fmt.Sprintf("node%d", i))
	}
	for i := range 35 {
		w.standIn.Addresses = append(w.standIn.Addresses, fmt.Sprintf("192.168.0.%d", firstMigrationAddress+i))
	}
	failOnError(t, w.standIn.WriteChart(filepath.Join(w.cloneDir, "metallb")))
	failOnError(t, os.WriteFile(filepath.Join(w.cloneDir, "metallb-native.yaml"), []byte(w.standIn.Manifests()), 0o600))
	runKubectl(ctx, t, s, "", "create", "namespace", "metallb-system")
	return w
}

// migratedServicesManifest are the Services, with a Pod of each on each node.
func migratedServicesManifest() (manifests string, services []string) {
	var b strings.Builder
	b.WriteString(strings.Replace(cluster.PodOnEachNodeManifest, "type: LoadBalancer", "type: ClusterIP", 1))
	manifests = strings.Replace(b.String(), "  allocateLoadBalancerNodePorts: false\n", "", 1)
	b.Reset()
	add := func(name, annotations, more string, port int) {
		services = append(services, name)
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, annotations: {%s}}\nspec: {type: LoadBalancer, selector: {app: everywhere}, ports: [{port: %d, targetPort: web}]%s}\n", name, annotations, port, more)
	}
	for i := range 19 {
		add(fmt.Sprintf("migrated-plain-%d", i), "", "", 80)
	}
	for i := range 5 {
		add(fmt.Sprintf("migrated-named-%d", i), fmt.Sprintf("metallb.universe.tf/loadBalancerIPs: 192.168.0.%d", firstMigrationAddress+20+i), "", 80)
	}
	for i := range 5 {
		add(fmt.Sprintf("migrated-local-%d", i), "metallb.io/address-pool: migrated", ", externalTrafficPolicy: Local", 80)
	}
	for i := range 10 {
		add(fmt.Sprintf("migrated-shared-%d", i), fmt.Sprintf("metallb.io/allow-shared-ip: pair-%d", i/2), "", 80+i%2)
	}
	return manifests + b.String() + "---\n" + cluster.UDPEchoServiceManifest(migrationStreamService, "node2"), services
}

// migrationConfigurationManifest is the configuration of MetalLB. Nobody is at the router's
// address.
const migrationConfigurationManifest = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: migrated, namespace: metallb-system}
spec: {addresses: [192.168.0.111-192.168.0.149]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: migrated, namespace: metallb-system}
spec: {ipAddressPools: [migrated]}
`

// applyConfigurationAndServices applies what users of MetalLB apply, and gives the addresses as
// its controller does. The webhook answers nothing here, so it is away meanwhile.
func (w *migrationRun) applyConfigurationAndServices(ctx context.Context, t *testing.T) {
	t.Helper()
	saved := runKubectl(ctx, t, w.Cluster, "", "get", "validatingwebhookconfiguration", "metallb-webhook-configuration", "-o", "yaml")
	runKubectl(ctx, t, w.Cluster, "", "delete", "validatingwebhookconfiguration", "metallb-webhook-configuration")
	failOnError(t, w.ApplyManifests(ctx, migrationConfigurationManifest))
	runKubectl(ctx, t, w.Cluster, saved, "create", "-f", "-")
	manifests, services := migratedServicesManifest()
	failOnError(t, w.ApplyManifests(ctx, manifests))
	next := firstMigrationAddress + 1
	for _, name := range services {
		address := fmt.Sprintf("192.168.0.%d", next)
		if _, after, isShared := strings.Cut(name, "migrated-shared-"); !isShared || after[0]%2 == 1 {
			next++
		}
		w.giveAddress(ctx, t, name, address)
	}
	w.giveAddress(ctx, t, migrationStreamService, migrationStreamAddress)
	if len(w.addresses) != 40 {
		t.Fatalf("there are %d Services, want 40", len(w.addresses))
	}
	runKubectl(ctx, t, w.Cluster, "", "rollout", "status", "daemonset/everywhere", "--timeout=3m")
	w.checkServices(ctx, t)
}

// giveAddress writes the status of a Service as MetalLB's controller does.
func (w *migrationRun) giveAddress(ctx context.Context, t *testing.T, name, address string) {
	t.Helper()
	o, err := w.GetService(ctx, "default", name)
	failOnError(t, err)
	o.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: address}}
	failOnError(t, w.API.Status().Update(ctx, o, client.FieldOwner("controller")))
	w.addresses[name] = address
}

func (w *migrationRun) startStream(ctx context.Context, t *testing.T) {
	t.Helper()
	failOnError(t, w.SendUDPUntilAnswered(ctx, "client", migrationStreamAddress+":7000"))
	stream, err := w.StartUDPStream(ctx, "client", migrationStreamAddress+":7000", 100)
	failOnError(t, err)
	failOnError(t, stream.AwaitMoreAnswers(ctx, 10))
	w.stream = stream
}

// replaceHelmReleaseByManifests leaves MetalLB as its manifests do: without Helm's marks.
func (w *migrationRun) replaceHelmReleaseByManifests(ctx context.Context, t *testing.T) {
	t.Helper()
	w.carryOutText(ctx, t, `kubectl apply --server-side --force-conflicts -f metallb-native.yaml
kubectl -n metallb-system delete secret -l owner=helm,name=metallb
kubectl -n metallb-system delete deployment/metallb-controller daemonset/metallb-speaker
kubectl -n metallb-system rollout status daemonset/speaker`)
}

// carryOutText runs commands. What the page leaves to the reader, such as a registry, is filled
// in.
func (w *migrationRun) carryOutText(ctx context.Context, t *testing.T, commands string) {
	t.Helper()
	commands = strings.ReplaceAll(commands, "kubectl gantry migrate\n", "kubectl gantry migrate --yes\n")
	commands = strings.ReplaceAll(commands, "kubectl gantry status\n", "") // see awaitGantryWell
	if strings.HasPrefix(commands, "kubectl patch service NAME") {
		return
	}
	commands = strings.ReplaceAll(commands, "metallb/metallb ", "./metallb ")
	w.carryOutCodeBlock(ctx, t, quickstartBlock{language: "sh", text: commands}, "client")
}

// followSection carries out the code blocks of a section of the page.
func (w *migrationRun) followSection(ctx context.Context, t *testing.T, title string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(lab.RepositoryRoot(), "docs", "from-metallb.md"))
	failOnError(t, err)
	_, section, found := strings.Cut(strings.ReplaceAll(string(text), "\n### ", "\n## "), "\n## "+title+"\n")
	if !found {
		t.Fatalf("the page has no section %q", title)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	blocks := fencedBlockPattern.FindAllStringSubmatch(strings.ReplaceAll(section, "\n   ", "\n"), -1)
	if len(blocks) < 3 {
		t.Fatalf("the section %q has %d code blocks: this test looks in the wrong place", title, len(blocks))
	}
	for _, b := range blocks {
		if b[1] == "yaml" {
			failOnError(t, os.WriteFile(filepath.Join(w.cloneDir, "kustomization.yaml"), []byte(b[2]), 0o600))
			continue
		}
		w.carryOutText(ctx, t, b[2])
	}
}

// checkServices checks that each Service has its address, and that a client is answered there. The
// pools and the advertisement are there too.
func (w *migrationRun) checkServices(ctx context.Context, t *testing.T) {
	t.Helper()
	runKubectl(ctx, t, w.Cluster, "", "-n", "metallb-system", "get", "ipaddresspool/migrated", "l2advertisement/migrated")
	for name, address := range w.addresses {
		o, err := w.GetService(ctx, "default", name)
		failOnError(t, err)
		if in := o.Status.LoadBalancer.Ingress; len(in) != 1 || in[0].IP != address {
			t.Errorf("Service %s has %v, want %s", name, in, address)
		}
		if name == migrationStreamService {
			failOnError(t, w.awaitStreamAnswers(ctx))
			continue
		}
		_, err = w.FetchURLUntilSuccess(ctx, "client", fmt.Sprintf("http://%s:%d/", address, o.Spec.Ports[0].Port))
		failOnError(t, err)
	}
}

// awaitStreamAnswers waits for more answers of the stream, if it runs.
func (w *migrationRun) awaitStreamAnswers(ctx context.Context) error {
	if w.stream == nil {
		return nil
	}
	return w.stream.AwaitMoreAnswers(ctx, 10)
}

// awaitGantryWell waits until kubectl gantry status says that all is well.
func (w *migrationRun) awaitGantryWell(ctx context.Context, t *testing.T) {
	t.Helper()
	failOnError(t, cluster.AwaitNoError(ctx, "an installation that is well", func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, filepath.Join(lab.RepositoryRoot(), "bin", "kubectl-gantry"), "status")
		cmd.Env = w.environment
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
}
