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

// answer is what a request says.
type answer uint8

// The answers, in the order in which they count: of those of two families, the lower one is that of
// both.
const (
	// answerUnknown: the proxy knows no endpoint here.
	answerUnknown answer = iota + 1
	// answerLate: the port is open, and no answer came in time.
	answerLate
	// answerNone: the port is closed, or not that of a service proxy.
	answerNone
	// answerKnown: the proxy knows an endpoint here.
	answerKnown
)

// requestTimeout bounds a request to one address.
const requestTimeout = time.Second

// maxBodyBytes bounds what is read of an answer. kube-proxy sends less than 400 bytes.
const maxBodyBytes = 4096

// newHTTPClient returns a client without a proxy. Each Service has a port of its own, so
// connections are not kept.
func newHTTPClient() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		Timeout:       requestTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// askFamilies asks about each family of the Service.
func askFamilies(ctx context.Context, client *http.Client, c intent.HealthCheck) answer {
	if c.Port == 0 {
		return answerNone
	}
	out := answerKnown
	for _, node := range []netip.Addr{c.IPv4, c.IPv6} {
		if node.IsValid() {
			out = min(out, askFamily(ctx, client, c, node))
		}
	}
	return out
}

// askFamily asks at the address of the node, and then at the loopback address. kube-proxy listens
// on all addresses of the node, or only on those that its nodePortAddresses contain.
func askFamily(ctx context.Context, client *http.Client, c intent.HealthCheck, node netip.Addr) answer {
	loopback := netip.IPv6Loopback()
	if node.Is4() {
		loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	out := askAddress(ctx, client, c, node)
	if out == answerNone && node != loopback {
		out = askAddress(ctx, client, c, loopback)
	}
	return out
}

// healthBody is the body of kube-proxy's answer.
type healthBody struct {
	Service        struct{ Namespace, Name string }
	LocalEndpoints *int
}

// askAddress asks at one address. The status of the answer does not matter: kube-proxy also
// answers 503 while its node is being deleted, or while it does not count as healthy itself.
func askAddress(ctx context.Context, client *http.Client, c intent.HealthCheck, at netip.Addr) answer {
	url := "http://" + netip.AddrPortFrom(at, c.Port).String() + "/"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return answerNone
	}
	response, err := client.Do(request)
	if err != nil {
		if dial := (*net.OpError)(nil); errors.As(err, &dial) && dial.Op == "dial" {
			return answerNone
		}
		return answerLate
	}
	defer func() { _ = response.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(response.Body, maxBodyBytes))
	if err != nil {
		return answerLate
	}
	var body healthBody
	if json.Unmarshal(raw, &body) != nil || body.LocalEndpoints == nil {
		// some proxies answer only by the header
		n, err := strconv.Atoi(response.Header.Get("X-Load-Balancing-Endpoint-Weight"))
		if err != nil {
			return answerNone
		}
		body.LocalEndpoints = &n
	}
	isOther := body.Service.Name != "" && (body.Service.Namespace != c.Namespace || body.Service.Name != c.Name)
	if isOther || *body.LocalEndpoints < 1 { // another Service had the port until now
		return answerUnknown
	}
	return answerKnown
}
