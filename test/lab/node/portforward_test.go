package node

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"

	"github.com/gantry-lb/gantry/test/lab/netns"
)

// TestPortForwardReachesPortsOfAPod connects to a Pod through the node, as the API server does, and
// to a port at which nothing listens. The Pod is in the network namespace of the test.
func TestPortForwardReachesPortsOfAPod(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("entering a network namespace needs root")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "answer of the Pod")
			c.Close()
		}
	}()
	object := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "echo"}}
	p := &pod{firstObject: object, networkNamespace: netns.Path("/proc/self/ns/net"), ctx: t.Context(), containers: []*podContainer{{runningCommand: &exec.Cmd{}}}}
	a := &Agent{config: Config{Name: "node1"}, podByUID: map[types.UID]*pod{"1": p}}
	mux := http.NewServeMux()
	mux.HandleFunc("/portForward/{namespace}/{pod}", func(w http.ResponseWriter, r *http.Request) { a.handlePortForward(t.Context(), w, r) })
	server := httptest.NewTLSServer(mux)
	defer server.Close()

	_, port, _ := net.SplitHostPort(l.Addr().String())
	for range 3 {
		if got, faults := readThroughPortForward(t, server.URL+"/portForward/default/echo", port); got != "answer of the Pod" {
			t.Errorf("the client got %q: %s", got, faults)
		}
	}
	if got, faults := readThroughPortForward(t, server.URL+"/portForward/default/echo", "1"); got != "" || !strings.Contains(faults, "lost connection to pod") {
		t.Errorf("from a port at which nothing listens the client got %q: %s", got, faults)
	}
	answer, err := server.Client().Post(server.URL+"/portForward/default/other", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusNotFound {
		t.Errorf("for another Pod the node answers %s", answer.Status)
	}
}

// readThroughPortForward connects to a port of a Pod, and reads until the end. It returns what was
// read, and the errors that the client prints.
func readThroughPortForward(t *testing.T, url, port string) (got, faults string) {
	t.Helper()
	request, err := http.NewRequest(http.MethodPost, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	var printed bytes.Buffer
	f, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, request.URL), []string{"0:" + port}, stop, ready, io.Discard, &printed)
	if err != nil {
		t.Fatal(err)
	}
	go func() { ended <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("the forwarding ended: %v", err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", fmt.Sprint(ports[0].Local)))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	read, err := io.ReadAll(c)
	c.Close()
	close(stop)
	if end := <-ended; end != nil && err == nil {
		err = end
	}
	return string(read), fmt.Sprint(printed.String(), " ", err)
}
