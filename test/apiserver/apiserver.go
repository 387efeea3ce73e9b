// Package apiserver starts a Kubernetes API for one test: a real etcd and kube-apiserver on
// loopback, with Gantry's CRDs and namespace. Tests use it instead of a fake. It runs no
// controllers and no nodes. Both programs end with the test, however the test ends. It never
// compiles anything: if the programs are missing, it skips the test and says how to get them.
package apiserver

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// apiServerStartTimeout limits the start of the API server, which takes a few seconds on two idle
// cores.
const apiServerStartTimeout = 5 * time.Minute

// StartUntilTestEnds runs an API server until the test ends, and returns a client configuration
// with all rights.
func StartUntilTestEnds(t testing.TB) *rest.Config {
	t.Helper()
	programs := findControlPlaneDirectoryOrSkip(t)
	dir := t.TempDir()
	client, peer, secure := FindFreeTCPPort(t), FindFreeTCPPort(t), FindFreeTCPPort(t)
	clientURL, peerURL := "http://127.0.0.1:"+client, "http://127.0.0.1:"+peer
	etcd := startProgramUntilTestEnds(t, dir, filepath.Join(programs, "etcd"),
		"--data-dir="+filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+clientURL, "--advertise-client-urls="+clientURL,
		"--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL, "--initial-cluster=default="+peerURL)
	token, key := writeAdminTokenAndServiceAccountKey(t, dir)
	api := startProgramUntilTestEnds(t, dir, filepath.Join(programs, "kube-apiserver"),
		"--etcd-servers="+clientURL, "--bind-address=127.0.0.1", "--secure-port="+secure,
		// By default it uses the machine's address, and a machine without a network has none. This
		// one is reserved for documentation (RFC 5737).
		"--advertise-address=192.0.2.1", "--cert-dir="+filepath.Join(dir, "certificates"),
		"--token-auth-file="+filepath.Join(dir, "tokens.csv"), "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+key, "--service-account-signing-key-file="+key,
		// No client reaches this server through a Service, and loopback is not allowed as an
		// endpoint.
		"--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112", "--endpoint-reconciler-type=none", "--profiling=false")
	config := &rest.Config{
		Host: "https://127.0.0.1:" + secure, BearerToken: token, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(dir, "certificates", "apiserver.crt")},
	}
	ctx, cancel := context.WithTimeout(t.Context(), apiServerStartTimeout)
	defer cancel()
	retryUntilNoErrorOrProgramEnds(ctx, t, []*serverProgram{etcd, api}, func() error {
		c, err := kubernetes.NewForConfig(config) // fails until the server has made its certificate
		if err != nil {
			return err
		}
		return c.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
	installCRDsNamespaceAndPolicies(ctx, t, config, []*serverProgram{etcd, api})
	return config
}

// findControlPlaneDirectoryOrSkip returns the directory of etcd and kube-apiserver, or skips the
// test.
func findControlPlaneDirectoryOrSkip(t testing.TB) string {
	t.Helper()
	var places []string
	for _, v := range []string{"LAB_KUBE", "KUBEBUILDER_ASSETS"} {
		if dir := os.Getenv(v); dir != "" {
			places = append(places, dir)
		}
	}
	if cache, err := os.UserCacheDir(); err == nil {
		// Built by bin/lab build-kube. The names end in a digest of the source, and any version
		// will do.
		built, _ := filepath.Glob(filepath.Join(cache, "gantry", "kube-*"))
		places = append(places, built...)
	}
	for _, dir := range places {
		if isExecutable(filepath.Join(dir, "etcd")) && isExecutable(filepath.Join(dir, "kube-apiserver")) {
			return dir
		}
	}
	t.Skip("etcd and kube-apiserver are missing: run `make build && bin/lab build-kube`, or set LAB_KUBE to their directory")
	return ""
}

func isExecutable(path string) bool {
	s, err := os.Stat(path)
	return err == nil && s.Mode().IsRegular() && s.Mode()&0o111 != 0
}

// FindFreeTCPPort returns a port that was free a moment ago. The kernel gives it to no outgoing
// connection and to no program that listens on any port: Linux takes 32768 and higher for these.
func FindFreeTCPPort(t testing.TB) string {
	t.Helper()
	var last error
	for range 100 {
		port := strconv.Itoa(20000 + mathrand.IntN(12000))
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
		if err == nil {
			_ = l.Close()
			return port
		}
		last = err
	}
	t.Fatalf("looking for a free port: %v", last)
	return ""
}

// writeAdminTokenAndServiceAccountKey writes the administrator's token and the key of service
// accounts, and returns the token and the key's path.
func writeAdminTokenAndServiceAccountKey(t testing.TB, dir string) (token, key string) {
	t.Helper()
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		t.Fatalf("creating a token: %v", err)
	}
	token = hex.EncodeToString(b[:])
	line := token + `,admin,admin,"system:masters"` + "\n"
	if err := os.WriteFile(filepath.Join(dir, "tokens.csv"), []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatalf("creating the key of service accounts: %v", err)
	}
	key = filepath.Join(dir, "sa.key")
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)}
	if err := os.WriteFile(key, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return token, key
}

// serverProgram is a program that runs until the test ends.
type serverProgram struct {
	name, logPath string
	closedOnExit  chan struct{} // closed when it has ended
	exitError     error         // set before closedOnExit is closed
}

// startProgramUntilTestEnds starts a program with its output in a log file. The kernel kills the
// program when the thread that started it ends, so a test that panics leaves nothing behind. The
// goroutine keeps its thread for that reason.
func startProgramUntilTestEnds(t testing.TB, dir, path string, args ...string) *serverProgram {
	t.Helper()
	p := &serverProgram{name: filepath.Base(path), logPath: filepath.Join(dir, filepath.Base(path)+".log"), closedOnExit: make(chan struct{})}
	out, err := os.Create(p.logPath)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer out.Close()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.exitError = cmd.Wait()
			close(p.closedOnExit)
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("starting %s: %v", p.name, err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // the program may have ended already
		<-p.closedOnExit
	})
	return p
}

// retryUntilNoErrorOrProgramEnds calls check until it succeeds. It fails the test if a program or
// ctx ends before.
func retryUntilNoErrorOrProgramEnds(ctx context.Context, t testing.TB, programs []*serverProgram, check func() error) {
	t.Helper()
	for {
		err := check()
		if err == nil {
			return
		}
		for _, p := range programs {
			select {
			case <-p.closedOnExit:
				t.Fatalf("%s ended: %v\n%s", p.name, p.exitError, readEndOfLogFile(p.logPath))
			default:
			}
		}
		select {
		case <-ctx.Done():
			var logs strings.Builder
			for _, p := range programs {
				fmt.Fprintf(&logs, "%s:\n%s\n", p.name, readEndOfLogFile(p.logPath))
			}
			t.Fatalf("waiting for the API server: %v\n%s", err, &logs)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// readEndOfLogFile returns the end of a log.
func readEndOfLogFile(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}
