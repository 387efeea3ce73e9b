package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// kubeletPort is the port at which the API server asks a node.
const kubeletPort = 10250

// portForwardProtocol is the protocol of pods/portforward between the API server and a node. Each
// connection has two streams: one with the data, one with an error text.
const portForwardProtocol = "portforward.k8s.io"

// servePortForwards answers the API server's requests for pods/portforward until ctx ends, as the
// kubelet does.
func (a *Agent) servePortForwards(ctx context.Context) error {
	certificate, err := newSelfSignedCertificate()
	if err != nil {
		return err
	}
	l, err := a.config.NetNS.Listen("tcp", net.JoinHostPort(a.config.Addresses[0].String(), strconv.Itoa(kubeletPort)))
	if err != nil {
		return fmt.Errorf("listening for the API server on node %s: %w", a.config.Name, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/portForward/{namespace}/{pod}", func(w http.ResponseWriter, r *http.Request) { a.handlePortForward(ctx, w, r) })
	server := &http.Server{Handler: mux}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	// HTTP/2 is not offered, since the streams replace HTTP/1.1.
	err = server.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{certificate}}))
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serving the API server on node %s: %w", a.config.Name, err)
}

// newSelfSignedCertificate returns a certificate for one run of a node. The API server of the lab
// does not verify those of kubelets.
func newSelfSignedCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("creating the key of a node: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(365 * 24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("creating the certificate of a node: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// findRunningPod returns the Pod of that name. It returns nil unless a container of it runs.
func (a *Agent) findRunningPod(namespace, name string) *pod {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.podByUID {
		if p.firstObject.Namespace == namespace && p.firstObject.Name == name && slices.ContainsFunc(p.containers, (*podContainer).isRunning) {
			return p
		}
	}
	return nil
}

// isRunning reports whether the process of the container runs.
func (r *podContainer) isRunning() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.runningCommand != nil
}

// handlePortForward forwards the connections of one client to a Pod.
func (a *Agent) handlePortForward(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	p := a.findRunningPod(r.PathValue("namespace"), r.PathValue("pod"))
	if p == nil {
		http.Error(w, fmt.Sprintf("the Pod %s/%s does not run on node %s", r.PathValue("namespace"), r.PathValue("pod"), a.config.Name), http.StatusNotFound)
		return
	}
	if _, err := httpstream.Handshake(r, w, []string{portForwardProtocol}); err != nil {
		return // the answer says why
	}
	f := &portForwardClient{pod: p, waitingStreamByRequest: map[string]httpstream.Stream{}}
	connection := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, replySent <-chan struct{}) error {
		go func() {
			<-replySent
			f.forwardWhenBothStreamsExist(ctx, s)
		}()
		return nil
	})
	if connection == nil {
		return // the answer says why
	}
	defer connection.Close()
	select {
	case <-connection.CloseChan():
	case <-ctx.Done():
	case <-p.ctx.Done():
	}
}

// portForwardClient is one client of a Pod.
type portForwardClient struct {
	pod *pod

	mu                     sync.Mutex // guards the map
	waitingStreamByRequest map[string]httpstream.Stream
}

// forwardWhenBothStreamsExist forwards a connection when both of its streams exist.
func (f *portForwardClient) forwardWhenBothStreamsExist(ctx context.Context, s httpstream.Stream) {
	id := s.Headers().Get(corev1.PortForwardRequestIDHeader)
	f.mu.Lock()
	other := f.waitingStreamByRequest[id]
	f.waitingStreamByRequest[id] = s
	if other != nil {
		delete(f.waitingStreamByRequest, id)
	}
	f.mu.Unlock()
	if other == nil {
		return
	}
	data, fault := s, other
	if s.Headers().Get(corev1.StreamType) == corev1.StreamTypeError {
		data, fault = other, s
	}
	defer fault.Close()
	defer data.Close()
	if err := f.pod.forwardToPort(ctx, data, data.Headers().Get(corev1.PortHeader)); err != nil {
		fmt.Fprint(fault, err)
	}
}

// forwardToPort copies both ways between a stream and a port of the Pod's loopback, until the Pod
// closes the connection.
func (p *pod) forwardToPort(ctx context.Context, data io.ReadWriter, port string) error {
	c, err := p.networkNamespace.Dial(ctx, "tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return fmt.Errorf("connecting to port %s of the Pod %s/%s: %w", port, p.firstObject.Namespace, p.firstObject.Name, err)
	}
	defer c.Close()
	stop := context.AfterFunc(p.ctx, func() { c.Close() })
	defer stop()
	go func() {
		_, _ = io.Copy(c, data)
		if half, ok := c.(*net.TCPConn); ok {
			_ = half.CloseWrite()
		}
	}()
	_, err = io.Copy(data, c)
	return err
}
