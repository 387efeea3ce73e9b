package healthcheck

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// serveHTTPAtAddress serves HTTP at an address, with any port, and returns the port.
func serveHTTPAtAddress(t *testing.T, address string, handler http.HandlerFunc) uint16 {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: listener, Config: &http.Server{Handler: handler, ReadHeaderTimeout: testRequestTimeout}}
	s.Start()
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(listener.Addr().String()).Port()
}

// testRequestTimeout is for a machine that is busy.
const testRequestTimeout = time.Minute

// newClientWithLongTimeout returns the client of the speaker, which waits longer.
func newClientWithLongTimeout() *http.Client {
	client := newHTTPClient()
	client.Timeout = testRequestTimeout
	return client
}

// kubeProxyBody is the body that kube-proxy sends for a Service.
func kubeProxyBody(name string, localEndpoints int) string {
	return fmt.Sprintf("\t{\n\t\"service\": {\"namespace\": \"default\", \"name\": %q},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": false\n}", name, localEndpoints)
}

func TestHTTPResponsesAreClassified(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		header string // X-Load-Balancing-Endpoint-Weight
		body   string
		want   proxyAnswer
	}{
		"an endpoint":                      {200, "1", kubeProxyBody("web", 1), answerEndpointsKnown},
		"an endpoint, and kube-proxy ails": {503, "1", kubeProxyBody("web", 1), answerEndpointsKnown},
		"no endpoint":                      {503, "0", kubeProxyBody("web", 0), answerNoEndpoints},
		"another Service":                  {200, "1", kubeProxyBody("other", 1), answerNoEndpoints},
		"only a header":                    {200, "2", "", answerEndpointsKnown},
		"only a header, without endpoints": {503, "0", "", answerNoEndpoints},
		"another program":                  {200, "", "<html>welcome</html>", answerNoProxy},
		"another program with JSON":        {200, "", "{}", answerNoProxy},
		"a redirect":                       {302, "", "", answerNoProxy},
	} {
		t.Run(name, func(t *testing.T) {
			port := serveHTTPAtAddress(t, "127.0.0.1", func(w http.ResponseWriter, _ *http.Request) {
				if tt.header != "" {
					w.Header().Set("X-Load-Balancing-Endpoint-Weight", tt.header)
				}
				w.Header().Set("Location", "http://192.0.2.1/")
				w.WriteHeader(tt.status)
				_, _ = fmt.Fprint(w, tt.body)
			})
			c := intent.HealthCheck{ServiceNamespace: "default", ServiceName: "web", HealthCheckNodePort: port, NodeIPv4: netip.MustParseAddr("127.0.0.1")}
			if got := askProxyAboutAllFamilies(t.Context(), newClientWithLongTimeout(), c); got != tt.want {
				t.Errorf("the answer counts as %d, want %d", got, tt.want)
			}
		})
	}
}

// TestProxyIsAskedAtNodeIPAndLoopback: the proxy may listen on the address of the node or on
// loopback. Each family has to know the endpoint.
func TestProxyIsAskedAtNodeIPAndLoopback(t *testing.T) {
	knows := func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, kubeProxyBody("web", 1)) }
	nodeAddress, loopback := netip.MustParseAddr("127.0.0.7"), netip.MustParseAddr("127.0.0.1")
	for name, tt := range map[string]struct {
		listensOn  string
		ipv4, ipv6 netip.Addr
		want       proxyAnswer
	}{
		"the address of the node":         {"127.0.0.7", nodeAddress, netip.Addr{}, answerEndpointsKnown},
		"loopback":                        {"127.0.0.1", nodeAddress, netip.Addr{}, answerEndpointsKnown},
		"another address":                 {"127.0.0.8", nodeAddress, netip.Addr{}, answerNoProxy},
		"IPv6":                            {"::1", netip.Addr{}, netip.IPv6Loopback(), answerEndpointsKnown},
		"both families, and IPv6 is late": {"127.0.0.1", loopback, netip.IPv6Loopback(), answerNoProxy},
	} {
		t.Run(name, func(t *testing.T) {
			c := intent.HealthCheck{ServiceNamespace: "default", ServiceName: "web", HealthCheckNodePort: serveHTTPAtAddress(t, tt.listensOn, knows), NodeIPv4: tt.ipv4, NodeIPv6: tt.ipv6}
			if got := askProxyAboutAllFamilies(t.Context(), newClientWithLongTimeout(), c); got != tt.want {
				t.Errorf("the answer counts as %d, want %d", got, tt.want)
			}
		})
	}
	if got := askProxyAboutAllFamilies(t.Context(), newClientWithLongTimeout(), intent.HealthCheck{NodeIPv4: loopback}); got != answerNoProxy {
		t.Errorf("a Service without the port: the answer counts as %d", got)
	}
}

// TestASlowProxyIsNotSilent: the port is open, and the proxy does not answer.
func TestASlowProxyIsNotSilent(t *testing.T) {
	stop := make(chan struct{})
	port := serveHTTPAtAddress(t, "127.0.0.1", func(http.ResponseWriter, *http.Request) { <-stop })
	defer close(stop)
	client := newHTTPClient()
	client.Timeout = proxyRequestTimeout / 2
	c := intent.HealthCheck{ServiceNamespace: "default", ServiceName: "web", HealthCheckNodePort: port, NodeIPv4: netip.MustParseAddr("127.0.0.1")}
	if got := askProxyAboutAllFamilies(context.Background(), client, c); got != answerTimedOut {
		t.Errorf("the answer counts as %d, want %d", got, answerTimedOut)
	}
}
