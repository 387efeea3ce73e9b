package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/test/apiserver"
)

// relay is the way to the API server, which can be cut.
type relay struct {
	net.Listener
	to string

	mu    sync.Mutex // guards all that follows
	cut   bool
	conns []net.Conn
}

// serve relays connections until the listener is closed.
func (r *relay) serve() {
	for {
		in, err := r.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", r.to)
		if err != nil || !r.enter(in, out) {
			_ = in.Close()
			continue
		}
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			go func() {
				_, _ = io.Copy(pair[0], pair[1])
				_ = pair[0].Close()
			}()
		}
	}
}

// enter takes in a connection, unless the way is cut.
func (r *relay) enter(in, out net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cut {
		_ = out.Close()
		return false
	}
	r.conns = append(r.conns, in, out)
	return true
}

// setCut cuts the way or mends it.
func (r *relay) setCut(cut bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = cut
	for _, c := range r.conns {
		_ = c.Close()
	}
	r.conns = nil
}

// process is a controller that runs as users run it, but for the Pod around it.
type process struct {
	health string
	ended  chan struct{}
}

// launch starts a controller.
func launch(t *testing.T, binary, kubeconfig string) *process {
	t.Helper()
	p := &process{health: freeAddress(t), ended: make(chan struct{})}
	cmd := exec.Command(binary, "--kubeconfig", kubeconfig, "--metrics-bind-address=0", "--health-probe-bind-address", p.health)
	log := &strings.Builder{}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.ended
		if t.Failed() {
			t.Logf("a controller said:\n%s", log)
		}
	})
	return p
}

// serviceWithAddress creates a Service and waits until it has an address.
func serviceWithAddress(t *testing.T, c client.Client, name string) {
	t.Helper()
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	s.Spec.Type, s.Spec.Ports = corev1.ServiceTypeLoadBalancer, []corev1.ServicePort{{Port: 80}}
	if err := c.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for len(s.Status.LoadBalancer.Ingress) == 0 {
		if err := c.Get(ctx, client.ObjectKeyFromObject(s), s); err != nil {
			t.Fatalf("Service %s has no address: %v", name, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// TestAnOutageOfTheAPIServer cuts the leader off, which ends itself, as it must, and is started again while the API server is still
// away, as the kubelet does. It is alive until the API server is back, and then gives addresses without another start.
func TestAnOutageOfTheAPIServer(t *testing.T) {
	config := apiserver.Start(t)
	dir := t.TempDir()
	binary := filepath.Join(dir, "controller")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("building the controller: %v\n%s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	way := &relay{Listener: l, to: strings.TrimPrefix(config.Host, "https://")}
	go way.serve()
	defer l.Close()
	kubeconfig := writeKubeconfig(t, dir, config, l.Addr().String())
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	pool := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Namespace: names.Namespace, Name: "p"}}
	pool.Spec.Addresses = []string{"198.51.100.0/24"}
	if err := c.Create(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	first := launch(t, binary, kubeconfig)
	serviceWithAddress(t, c, "before")
	awaitAnswer(t, first.health, "readyz", http.StatusOK)
	way.setCut(true)
	select {
	case <-first.ended:
	case <-time.After(time.Minute):
		t.Fatal("a leader that cannot reach the API server goes on")
	}
	second := launch(t, binary, kubeconfig)
	awaitAnswer(t, second.health, "healthz", http.StatusOK)
	awaitAnswer(t, second.health, "readyz", http.StatusServiceUnavailable)
	way.setCut(false)
	serviceWithAddress(t, c, "after")
	awaitAnswer(t, second.health, "readyz", http.StatusOK)
	select {
	case <-second.ended:
		t.Error("the controller that was started during the outage has ended")
	default:
	}
}

// writeKubeconfig writes how to reach the API server at another address.
func writeKubeconfig(t *testing.T, dir string, config *rest.Config, address string) string {
	t.Helper()
	k := clientcmdapi.NewConfig()
	k.Clusters["c"] = &clientcmdapi.Cluster{Server: "https://" + address, CertificateAuthority: config.CAFile}
	k.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: config.BearerToken}
	k.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	k.CurrentContext = "x"
	file := filepath.Join(dir, "kubeconfig")
	if err := clientcmd.WriteToFile(*k, file); err != nil {
		t.Fatal(err)
	}
	return file
}
