package healthcheck

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// proxyAnswer is what a request says.
type proxyAnswer uint8

// The answers. If kube-proxy gives different answers for the two address families, the one with the
// lower value counts for both.
const (
	// answerNoEndpoints: the proxy knows no endpoint here.
	answerNoEndpoints proxyAnswer = iota + 1
	// answerTimedOut: the port is open, and no answer came in time.
	answerTimedOut
	// answerNoProxy: the port is closed, or not that of a service proxy.
	answerNoProxy
	// answerEndpointsKnown: the proxy knows an endpoint here.
	answerEndpointsKnown
)

// proxyRequestTimeout bounds a request to one address.
const proxyRequestTimeout = time.Second

// maxBodyBytes bounds what is read of an answer. kube-proxy sends less than 400 bytes.
const maxBodyBytes = 4096

// newHTTPClient returns a client without a proxy. Each Service has a port of its own, so
// connections are not kept.
func newHTTPClient() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		Timeout:       proxyRequestTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// askProxyAboutAllFamilies asks about each family of the Service.
func askProxyAboutAllFamilies(ctx context.Context, client *http.Client, c intent.HealthCheck) proxyAnswer {
	if c.HealthCheckNodePort == 0 {
		return answerNoProxy
	}
	out := answerEndpointsKnown
	for _, node := range []netip.Addr{c.NodeIPv4, c.NodeIPv6} {
		if node.IsValid() {
			out = min(out, askAtNodeAddressThenLoopback(ctx, client, c, node))
		}
	}
	return out
}

// askAtNodeAddressThenLoopback asks at the address of the node, and then at the loopback address.
// kube-proxy listens on all addresses of the node, or only on those that its nodePortAddresses
// contain.
func askAtNodeAddressThenLoopback(ctx context.Context, client *http.Client, c intent.HealthCheck, node netip.Addr) proxyAnswer {
	loopback := netip.IPv6Loopback()
	if node.Is4() {
		loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	out := askProxyAtAddress(ctx, client, c, node)
	if out == answerNoProxy && node != loopback {
		out = askProxyAtAddress(ctx, client, c, loopback)
	}
	return out
}

// healthBody is the body of kube-proxy's answer.
type healthBody struct {
	Service        struct{ Namespace, Name string }
	LocalEndpoints *int
}

// askProxyAtAddress asks at one address. The status of the answer does not matter: kube-proxy also
// answers 503 while its node is being deleted, or while it does not count as healthy itself.
func askProxyAtAddress(ctx context.Context, client *http.Client, c intent.HealthCheck, at netip.Addr) proxyAnswer {
	url := "http://" + netip.AddrPortFrom(at, c.HealthCheckNodePort).String() + "/"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return answerNoProxy
	}
	response, err := client.Do(request)
	if err != nil {
		if dial := (*net.OpError)(nil); errors.As(err, &dial) && dial.Op == "dial" {
			return answerNoProxy
		}
		return answerTimedOut
	}
	defer func() { _ = response.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(response.Body, maxBodyBytes))
	if err != nil {
		return answerTimedOut
	}
	var body healthBody
	if json.Unmarshal(raw, &body) != nil || body.LocalEndpoints == nil {
		// some proxies answer only by the header
		n, err := strconv.Atoi(response.Header.Get("X-Load-Balancing-Endpoint-Weight"))
		if err != nil {
			return answerNoProxy
		}
		body.LocalEndpoints = &n
	}
	isOther := body.Service.Name != "" && (body.Service.Namespace != c.ServiceNamespace || body.Service.Name != c.ServiceName)
	if isOther || *body.LocalEndpoints < 1 { // another Service had the port until now
		return answerNoEndpoints
	}
	return answerEndpointsKnown
}
