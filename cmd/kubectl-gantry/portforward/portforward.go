// Package portforward fetches a page from a port of a Pod, through the API server. The port may
// be bound to an address of the node itself. It knows nothing of Gantry.
package portforward

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// PodPageLocation is a page of a Pod.
type PodPageLocation struct {
	Namespace, Pod string
	Port           int
	Path           string
}

const (
	// fetchTimeout bounds one page: its content is in the memory of the Pod.
	fetchTimeout = 10 * time.Second
	// maxPageBytes is far above what a speaker with 10,000 routes to 10 routers has.
	maxPageBytes = 256 << 20
)

// FetchPodPage returns the content of the page.
func FetchPodPage(ctx context.Context, config *rest.Config, p PodPageLocation) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	server, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("reading the address of the API server: %w", err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, fmt.Errorf("preparing the port-forward: %w", err)
	}
	target := server.JoinPath("api", "v1", "namespaces", p.Namespace, "pods", p.Pod, "portforward")
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, target)
	ready, failed := make(chan struct{}), make(chan error, 1)
	forwarder, err := portforward.NewOnAddressesWithContext(ctx, dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", p.Port)}, ready, io.Discard, io.Discard)
	if err != nil {
		return nil, fmt.Errorf("preparing the port-forward: %w", err)
	}
	go func() { failed <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-failed:
		return nil, fmt.Errorf("forwarding port %d of Pod %s: %w", p.Port, p.Pod, err)
	case <-ctx.Done():
		return nil, fmt.Errorf("forwarding port %d of Pod %s: %w", p.Port, p.Pod, ctx.Err())
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		return nil, fmt.Errorf("forwarding port %d of Pod %s: %w", p.Port, p.Pod, err)
	}
	return fetchLocalPage(ctx, fmt.Sprintf("http://127.0.0.1:%d%s", ports[0].Local, p.Path))
}

// fetchLocalPage fetches a page of this machine.
func fetchLocalPage(ctx context.Context, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("reading the page: %w", err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("reading the page: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("reading the page: %s", response.Status)
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, maxPageBytes))
	if err != nil {
		return nil, fmt.Errorf("reading the page: %w", err)
	}
	return text, nil
}
