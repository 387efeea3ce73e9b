package packages

import (
	"cmp"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/test/apiserver"
)

// awaitTimeout limits the wait for the API server.
const awaitTimeout = 2 * time.Minute

// packageInstaller installs packages on an API server, as users do. Nothing runs there.
type packageInstaller struct {
	*testing.T
	kubectl   *apiserver.Kubectl
	apiClient client.Client
	chart     string // the directory of the chart that Helm installs; empty for charts/gantry
	helm      string // the program that installs: helm, or helm3 for Helm 3; empty for helm
}

// newPackageInstaller starts an API server that runs until the test ends. It has the CRDs and the
// namespace, but not the policies, whose fields would belong to this test.
func newPackageInstaller(t *testing.T) *packageInstaller {
	t.Helper()
	skipWithoutHelmAndKustomize(t)
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	config := apiserver.StartUntilTestEnds(t)
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	b := &packageInstaller{t, apiserver.NewKubectlOrSkip(t, config), c, "", ""}
	b.runKubectl("", "delete", "validatingadmissionpolicies,validatingadmissionpolicybindings", "--all")
	b.runKubectl("", "-n", "metallb-system", "delete", "configmap", "gantry-configuration-namespace")
	return b
}

// runKubectl runs kubectl, and fails the test if kubectl fails.
func (b *packageInstaller) runKubectl(stdin string, args ...string) string {
	b.Helper()
	out, err := b.kubectl.Run(b.Context(), stdin, args...)
	if err != nil {
		b.Fatal(err)
	}
	return out
}

// runHelm runs a command of Helm about a release, and returns its output. It fails the test if Helm
// fails.
func (b *packageInstaller) runHelm(values, command, release string, args ...string) string {
	b.Helper()
	out, err := b.tryHelm(values, command, release, args...)
	if err != nil {
		b.Fatalf("helm %s %s: %v\n%s", command, release, err, out)
	}
	return out
}

// tryHelm runs a command of Helm about a release, with the chart if the command takes one, and
// returns its output.
func (b *packageInstaller) tryHelm(values, command, release string, args ...string) (string, error) {
	all := append(strings.Fields(command), release)
	if command == "install" || command == "upgrade" {
		all = append(all, cmp.Or(b.chart, filepath.Join(RepositoryRoot(), "charts", "gantry")))
		all = append(append(all, HelmImageArguments()...), "--values", "-")
	}
	if !slices.Contains(args, "--namespace") {
		args = append(args, "--namespace", "metallb-system")
	}
	cmd := exec.CommandContext(b.Context(), filepath.Join(RepositoryRoot(), "bin", cmp.Or(b.helm, "helm")), append(all, args...)...)
	dir := b.TempDir()
	cmd.Env = append(os.Environ(), "KUBECONFIG="+b.kubectl.Kubeconfig, "HELM_CACHE_HOME="+dir, "HELM_CONFIG_HOME="+dir, "HELM_DATA_HOME="+dir)
	cmd.Stdin = strings.NewReader(values)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// await waits until attempt succeeds.
func (b *packageInstaller) await(what string, attempt func(context.Context) error) {
	b.Helper()
	retryUntilNoError(b.T, what, attempt)
}

// retryUntilNoError calls attempt until it succeeds.
func retryUntilNoError(t *testing.T, what string, attempt func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), awaitTimeout)
	defer cancel()
	for {
		err := attempt(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waiting for %s: %v", what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
