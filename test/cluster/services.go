package cluster

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// NewService returns a Service of type LoadBalancer with a class, which may be empty. It has no
// node port: a cluster has fewer than 3,000 of them.
func NewService(namespace, name, class string) *corev1.Service {
	none := false
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80}}, AllocateLoadBalancerNodePorts: &none},
	}
	if class != "" {
		s.Spec.LoadBalancerClass = &class
	}
	return s
}

// ServiceCreationTimes has the time of the request for a Service and that of the API server's
// answer.
type ServiceCreationTimes struct{ RequestSentAt, AnswerReceivedAt time.Time }

// CreateServices creates Services over a number of connections, as fast as the API server accepts
// them.
func (s *Cluster) CreateServices(ctx context.Context, connections int, services []*corev1.Service) ([]ServiceCreationTimes, error) {
	config, err := s.RESTConfig()
	if err != nil {
		return nil, err
	}
	out := make([]ServiceCreationTimes, len(services))
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range connections {
		ownConfig := rest.CopyConfig(config)
		ownConfig.Dial = (&net.Dialer{}).DialContext // otherwise client-go shares one connection
		c, err := client.New(ownConfig, client.Options{Scheme: s.API.Scheme()})
		if err != nil {
			return nil, fmt.Errorf("creating a client: %w", err)
		}
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(services) {
					return nil
				}
				out[i].RequestSentAt = time.Now()
				if err := c.Create(ctx, services[i]); err != nil {
					return fmt.Errorf("creating Service %s: %w", services[i].Name, err)
				}
				out[i].AnswerReceivedAt = time.Now()
			}
		})
	}
	return out, g.Wait()
}

// RequestCountsByResource is the number of write requests by resource and subresource, for example
// "services/status".
type RequestCountsByResource map[string]int

// CountAPIWrites returns the write requests since the start of the API server, from its metrics.
func (s *Cluster) CountAPIWrites(ctx context.Context) (RequestCountsByResource, error) {
	return s.CountAPIRequestsOfVerbs(ctx, "POST", "PUT", "PATCH", "APPLY", "DELETE")
}

// CountAPIRequestsOfVerbs asks the API server how many requests of these verbs it has answered
// since it started, LIST say.
func (s *Cluster) CountAPIRequestsOfVerbs(ctx context.Context, verbs ...string) (RequestCountsByResource, error) {
	config, err := s.RESTConfig()
	if err != nil {
		return nil, err
	}
	c, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("creating a client: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	r, err := c.Do(req)
	if err != nil {
		return nil, fmt.Errorf("reading the metrics of the API server: %w", err)
	}
	defer r.Body.Close()
	out := RequestCountsByResource{}
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		labels, count, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "apiserver_request_total{"), "} ")
		n, err := strconv.ParseFloat(count, 64)
		if labels == lines.Text() || !ok || err != nil || !strings.Contains(labels, `code="2`) {
			continue
		}
		if slices.Contains(verbs, readMetricLabel(labels, "verb")) {
			name := readMetricLabel(labels, "resource")
			if sub := readMetricLabel(labels, "subresource"); sub != "" {
				name += "/" + sub
			}
			out[name] += int(n)
		}
	}
	return out, lines.Err()
}

// readMetricLabel returns the value of one label of a metric.
func readMetricLabel(labels, name string) string {
	_, rest, _ := strings.Cut(","+labels, ","+name+`="`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// SubtractEarlierCounts returns the writes after an earlier count.
func (w RequestCountsByResource) SubtractEarlierCounts(before RequestCountsByResource) RequestCountsByResource {
	out := RequestCountsByResource{}
	for k, n := range w {
		if n -= before[k]; n != 0 {
			out[k] = n
		}
	}
	return out
}
