package healthcheck

import (
	"context"
	"net/http"
	"time"

	"github.com/gantry-lb/gantry/internal/latest"
)

// proxyCheckInterval is the time between two questions to the service proxy whether it works.
const proxyCheckInterval = time.Second

// ProxyWatcher asks the service proxy of this node whether it works. kube-proxy answers at
// --healthz-bind-address, with the status 200 while it keeps its rules up to date.
type ProxyWatcher struct {
	address       string
	client        *http.Client
	healthUpdates *latest.Value[bool]
}

// NewProxyWatcher returns a ProxyWatcher for an address and port. With an empty address it asks
// nothing.
func NewProxyWatcher(address string) *ProxyWatcher {
	return &ProxyWatcher{address: address, client: newHTTPClient(), healthUpdates: latest.NewValue[bool]()}
}

// HealthUpdates delivers after each question whether the service proxy answered that it works.
func (w *ProxyWatcher) HealthUpdates() <-chan bool { return w.healthUpdates.C() }

// Run asks until ctx ends.
func (w *ProxyWatcher) Run(ctx context.Context) error {
	if w.address == "" {
		<-ctx.Done()
		return nil
	}
	t := time.NewTicker(proxyCheckInterval)
	defer t.Stop()
	for {
		w.healthUpdates.Put(w.askProxy(ctx))
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func (w *ProxyWatcher) askProxy(ctx context.Context) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.address+"/healthz", http.NoBody)
	if err != nil {
		return false
	}
	response, err := w.client.Do(request)
	if err != nil {
		return false
	}
	_ = response.Body.Close() // the status says all
	return response.StatusCode == http.StatusOK
}
