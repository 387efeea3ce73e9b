package apiserver

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Kubectl runs kubectl with all rights against an API server. Use NewKubectlOrSkip to create it.
type Kubectl struct {
	program string
	// Kubeconfig is the path of the file by which other programs reach the API server.
	Kubeconfig string
}

// NewKubectlOrSkip returns kubectl for an API server, or skips the test if there is no kubectl
// beside kube-apiserver.
func NewKubectlOrSkip(t testing.TB, config *rest.Config) *Kubectl {
	t.Helper()
	k := &Kubectl{filepath.Join(findControlPlaneDirectoryOrSkip(t), "kubectl"), filepath.Join(t.TempDir(), "kubeconfig")}
	if !isExecutable(k.program) {
		t.Skipf("%s is missing: run `make build && bin/lab build-kube`", k.program)
	}
	file := clientcmdapi.NewConfig()
	file.Clusters["c"] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthority: config.CAFile}
	file.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: config.BearerToken}
	file.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	file.CurrentContext = "x"
	if err := clientcmd.WriteToFile(*file, k.Kubeconfig); err != nil {
		t.Fatal(err)
	}
	return k
}

// Run runs kubectl with the text as its standard input, and returns its output. The error has its
// error output.
func (k *Kubectl) Run(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, k.program, append([]string{"--kubeconfig", k.Kubeconfig}, args...)...)
	var out, problems bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &problems
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w\n%s%s", strings.Join(args, " "), err, &out, &problems)
	}
	return out.String(), nil
}
