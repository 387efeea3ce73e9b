package command

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/internal/configuration"
)

// requestTimeout bounds a request unless the user gives --request-timeout: an API server that does
// not answer is a fault to report.
const requestTimeout = 20 * time.Second

// connection is a connection to a cluster.
type connection struct {
	api        client.WithWatch
	restConfig *rest.Config
	clock      *serverClock
}

// newConnection prepares a connection from the flags and the kubeconfig. It sends no request.
func (p *program) newConnection() (*connection, error) {
	if p.bundleFile != "" {
		return nil, errBundleIsNoCluster
	}
	config, err := p.kubeconfigFlags.ToRESTConfig()
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	config = rest.CopyConfig(config)
	config.QPS = -1 // a few requests, all at once
	if config.Timeout == 0 {
		config.Timeout = requestTimeout
	}
	config.WarningHandler = rest.NoWarnings{}
	clock := &serverClock{localNow: p.Now}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return &dateHeaderTransport{next, clock} })
	scheme, err := configuration.NewScheme()
	if err != nil {
		return nil, err
	}
	api, err := client.NewWithWatch(config, client.Options{Scheme: scheme, Mapper: configuration.NewOfflineRESTMapper(scheme, objects.PluginOnlyAPIGroups...)})
	if err != nil {
		return nil, fmt.Errorf("connecting to the cluster: %w", err)
	}
	return &connection{api, config, clock}, nil
}

// serverClock is the clock of the API server: that of the user's machine may be wrong. It also
// knows how fast the API server answers.
type serverClock struct {
	localNow func() time.Time

	mu                   sync.Mutex // guards all that follows
	aheadOfLocalInterval time.Duration
	// fastestResponseDelay is that of the fastest answer; 0 before the first one.
	fastestResponseDelay time.Duration
}

// keepShortestResponseDelay records how long an answer took.
func (c *serverClock) keepShortestResponseDelay(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fastestResponseDelay == 0 || d < c.fastestResponseDelay {
		c.fastestResponseDelay = d
	}
}

// shortestResponseDelay returns how long the fastest answer took.
func (c *serverClock) shortestResponseDelay() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fastestResponseDelay
}

// now returns the time of the API server, to a second.
func (c *serverClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.localNow().Add(c.aheadOfLocalInterval)
}

// setFromDateHeader takes the time from a response.
func (c *serverClock) setFromDateHeader(date string) {
	t, err := http.ParseTime(date)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// Less than this is the resolution of the header and the time of the answer.
	if aheadInterval := t.Sub(c.localNow()); aheadInterval.Abs() > 2*time.Second {
		c.aheadOfLocalInterval = aheadInterval
	}
}

// dateHeaderTransport reads the time of the API server from its responses.
type dateHeaderTransport struct {
	next  http.RoundTripper
	clock *serverClock
}

// RoundTrip implements http.RoundTripper.
func (r *dateHeaderTransport) RoundTrip(q *http.Request) (*http.Response, error) {
	begun := r.clock.localNow()
	response, err := r.next.RoundTrip(q)
	if err == nil {
		r.clock.keepShortestResponseDelay(r.clock.localNow().Sub(begun))
		r.clock.setFromDateHeader(response.Header.Get("Date"))
	}
	return response, err
}
