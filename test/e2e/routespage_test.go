package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/rib"
	"github.com/gantry-lb/gantry/test/cluster"
)

// unreachableBGPPeerManifest is a BGPPeer at whose address no host answers.
const unreachableBGPPeerManifest = `apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: silent, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 65000, peerAddress: 192.168.0.77}
`

// testRoutesPageThroughPortForward reads what node1 announces as an administrator does: with
// kubectl port-forward.
func (b *bgpTestCluster) testRoutesPageThroughPortForward(ctx context.Context, t *testing.T) {
	failOnError(t, b.ApplyManifests(ctx, unreachableBGPPeerManifest))
	defer func() {
		_, err := b.RunKubectl(context.WithoutCancel(ctx), "", "-n", "metallb-system", "delete", "bgppeer", "silent")
		failOnError(t, err)
	}()
	pod, err := b.RunKubectl(ctx, "", "-n", "metallb-system", "get", "pods", "-l", "app.kubernetes.io/component=speaker", "--field-selector", "spec.nodeName=node1", "-o", "name")
	failOnError(t, err)
	address := b.startPortForward(ctx, t, strings.TrimSpace(pod), "7475")
	failOnError(t, cluster.AwaitNoError(ctx, "the page of node1", func(ctx context.Context) error {
		page, err := readRoutesPage(ctx, "http://"+address+"/bgp/routes")
		if err != nil {
			return err
		}
		if len(page) != 2 || page[0].PeerName != "silent" || page[1].PeerName != "tor" || len(page[0].Routes) != 1 || len(page[1].Routes) != 1 {
			return fmt.Errorf("it has %+v", page)
		}
		withheld, announced := page[0].Routes[0], page[1].Routes[0]
		if withheld.Announced || withheld.WithheldReason != names.ReasonNoSession || withheld.Prefix != b.serviceRoute {
			return fmt.Errorf("the peer without a session has %+v", withheld)
		}
		if !announced.Announced || announced.Prefix != b.serviceRoute || announced.Attributes == nil || announced.Attributes.NextHop != "192.168.0.11" || !slices.Equal(announced.AdvertisementNames, []string{"routed"}) {
			return fmt.Errorf("the router has %+v", announced)
		}
		return nil
	}))
	b.testKubectlGantryAsksSpeakers(ctx, t)
}

// readOnlyUserManifest is a user that may read everything, and forward no port.
const readOnlyUserManifest = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules: [{apiGroups: ["*"], resources: ["*"], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects: [{kind: User, name: reader}]
`

// testKubectlGantryAsksSpeakers lets kubectl gantry ask the speakers, as the administrator and as a
// user without the right to. The peer silent has no session.
func (b *bgpTestCluster) testKubectlGantryAsksSpeakers(ctx context.Context, t *testing.T) {
	failOnError(t, b.ApplyManifests(ctx, readOnlyUserManifest))
	const noRight = "you have no right to create pods/portforward in namespace metallb-system"
	route := b.serviceRoute.String()
	for _, c := range []struct {
		args       []string
		wantStatus int
		want       []string
	}{
		{[]string{"routes", "node1"}, kubectlGantryExitNotWell, []string{"tor      " + route + "   yes         routed           next hop 192.168.0.11", "silent   " + route + "   NoSession   routed"}},
		{[]string{"routes", "node1", "--as", "reader"}, kubectlGantryExitUnknown, []string{noRight}},
		{[]string{"routes", "nod1"}, kubectlGantryExitUnknown, []string{"did you mean node1"}},
		{[]string{"explain", "service", "echo", "--live"}, kubectlGantryExitNotWell, []string{
			"default/echo: " + b.serviceRoute.Addr().String() + " is announced, but 3 of 6 BGP sessions do not carry it: silent on node1: ",
			"✓ live routes of node2 to tor: " + route + ", next hop 192.168.0.12", "✗ live routes of node1 to silent: " + route + ": "}},
		{[]string{"explain", "service", "echo", "--live", "--as", "reader"}, kubectlGantryExitNotWell, []string{"3 of 6 BGP sessions do not carry it", "? live routes of node1: " + noRight}},
	} {
		failOnError(t, cluster.AwaitNoError(ctx, strings.Join(c.args, " "), func(ctx context.Context) error {
			out, status, err := runKubectlGantry(ctx, b.Cluster, c.args...)
			for _, want := range c.want {
				if err == nil && (status != c.wantStatus || !strings.Contains(out, want)) {
					err = fmt.Errorf("kubectl gantry exits with %d, want %d and %q:\n%s", status, c.wantStatus, want, out)
				}
			}
			return err
		}))
	}
}

// readRoutesPage reads the routes of a speaker.
func readRoutesPage(ctx context.Context, url string) ([]rib.PeerRIB, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	var page []rib.PeerRIB
	if err := json.NewDecoder(answer.Body).Decode(&page); err != nil {
		return nil, fmt.Errorf("reading %s (%s): %w", url, answer.Status, err)
	}
	return page, nil
}

// startPortForward runs kubectl port-forward until the test ends, and returns its local address.
func (b *bgpTestCluster) startPortForward(ctx context.Context, t *testing.T, pod, port string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, filepath.Join(b.ControlPlaneProgramsDir(), "kubectl"), "-n", "metallb-system", "port-forward", pod, ":"+port)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+b.Kubeconfig())
	var faults strings.Builder
	cmd.Stderr = &faults
	out, err := cmd.StdoutPipe()
	failOnError(t, err)
	failOnError(t, cmd.Start())
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // its error is that it was killed
		if t.Failed() {
			t.Logf("kubectl port-forward: %s", faults.String())
		}
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, rest, ok := strings.Cut(lines.Text(), "Forwarding from "); ok {
			address, _, _ := strings.Cut(rest, " ")
			return address
		}
	}
	t.Fatal("kubectl port-forward has ended")
	return ""
}
