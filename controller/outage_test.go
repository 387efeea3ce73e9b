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

// interruptibleTCPRelay is the connection to the API server, which can be interrupted.
type interruptibleTCPRelay struct {
	net.Listener
	targetAddress string

	mu                 sync.Mutex // guards all that follows
	refusesConnections bool
	openConnections    []net.Conn
}

// acceptConnections relays connections until the listener is closed.
func (r *interruptibleTCPRelay) acceptConnections() {
	for {
		in, err := r.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", r.targetAddress)
		if err != nil || !r.trackConnectionPairUnlessInterrupted(in, out) {
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

// trackConnectionPairUnlessInterrupted adds the two ends of a connection, unless it is interrupted.
func (r *interruptibleTCPRelay) trackConnectionPairUnlessInterrupted(in, out net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refusesConnections {
		_ = out.Close()
		return false
	}
	r.openConnections = append(r.openConnections, in, out)
	return true
}

// setInterrupted interrupts the connection or restores it.
func (r *interruptibleTCPRelay) setInterrupted(cut bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusesConnections = cut
	for _, c := range r.openConnections {
		_ = c.Close()
	}
	r.openConnections = nil
}

// controllerProcess is a controller as users run it, without the Pod around it.
type controllerProcess struct {
	healthAddress string
	endedSignal   chan struct{}
}

// startControllerProcess starts a controller.
func startControllerProcess(t *testing.T, binary, kubeconfig string) *controllerProcess {
	t.Helper()
	p := &controllerProcess{healthAddress: findFreeListenAddress(t), endedSignal: make(chan struct{})}
	cmd := exec.Command(binary, "--kubeconfig", kubeconfig, "--metrics-bind-address=0", "--health-probe-bind-address", p.healthAddress)
	log := &strings.Builder{}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		close(p.endedSignal)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.endedSignal
		if t.Failed() {
			t.Logf("a controller said:\n%s", log)
		}
	})
	return p
}

// createServiceAndAwaitAddress creates a Service and waits until it has an address.
func createServiceAndAwaitAddress(t *testing.T, c client.Client, name string) {
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

// TestRestartedControllerAssignsAfterAPIServerOutage disconnects the leader, which then ends as it
// must. Like the kubelet, it starts it again while the API server is still away. The controller is
// alive until the API server is back, and then assigns addresses without another restart.
func TestRestartedControllerAssignsAfterAPIServerOutage(t *testing.T) {
	config := apiserver.StartUntilTestEnds(t)
	dir := t.TempDir()
	binary := filepath.Join(dir, "controller")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("building the controller: %v\n%s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	way := &interruptibleTCPRelay{Listener: l, targetAddress: strings.TrimPrefix(config.Host, "https://")}
	go way.acceptConnections()
	defer l.Close()
	kubeconfig := writeKubeconfigWithServerAddress(t, dir, config, l.Addr().String())
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	pool := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "p"}}
	pool.Spec.Addresses = []string{"198.51.100.0/24"}
	if err := c.Create(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	first := startControllerProcess(t, binary, kubeconfig)
	createServiceAndAwaitAddress(t, c, "before")
	awaitHealthStatusCode(t, first.healthAddress, "readyz", http.StatusOK)
	way.setInterrupted(true)
	select {
	case <-first.endedSignal:
	case <-time.After(time.Minute):
		t.Fatal("a leader that cannot reach the API server continues to run")
	}
	second := startControllerProcess(t, binary, kubeconfig)
	awaitHealthStatusCode(t, second.healthAddress, "healthz", http.StatusOK)
	awaitHealthStatusCode(t, second.healthAddress, "readyz", http.StatusServiceUnavailable)
	way.setInterrupted(false)
	createServiceAndAwaitAddress(t, c, "after")
	awaitHealthStatusCode(t, second.healthAddress, "readyz", http.StatusOK)
	select {
	case <-second.endedSignal:
		t.Error("the controller that was started during the outage has ended")
	default:
	}
}

// writeKubeconfigWithServerAddress writes a kubeconfig for the API server at another address.
func writeKubeconfigWithServerAddress(t *testing.T, dir string, config *rest.Config, address string) string {
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
