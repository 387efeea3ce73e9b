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

// NewService is a Service of type LoadBalancer of a class; empty is none. It has no node port: there are fewer than 3,000 of them.
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

// CreationTimes is when a Service was asked for, and when the API server had it.
type CreationTimes struct{ Requested, Completed time.Time }

// CreateServices creates Services over so many connections as fast as the API server takes them.
func (s *Cluster) CreateServices(ctx context.Context, connections int, services []*corev1.Service) ([]CreationTimes, error) {
	config, err := s.RESTConfig()
	if err != nil {
		return nil, err
	}
	out := make([]CreationTimes, len(services))
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range connections {
		own := rest.CopyConfig(config)
		own.Dial = (&net.Dialer{}).DialContext // or client-go would have all share one connection
		c, err := client.New(own, client.Options{Scheme: s.API.Scheme()})
		if err != nil {
			return nil, fmt.Errorf("making a client: %w", err)
		}
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(services) {
					return nil
				}
				out[i].Requested = time.Now()
				if err := c.Create(ctx, services[i]); err != nil {
					return fmt.Errorf("creating Service %s: %w", services[i].Name, err)
				}
				out[i].Completed = time.Now()
			}
		})
	}
	return out, g.Wait()
}

// WriteCounts is how many requests changed something, by resource and subresource: "services/status", say.
type WriteCounts map[string]int

// CountWrites asks the API server how many there were since it started.
func (s *Cluster) CountWrites(ctx context.Context) (WriteCounts, error) {
	return s.CountRequests(ctx, "POST", "PUT", "PATCH", "APPLY", "DELETE")
}

// CountRequests asks the API server how many requests of these verbs it has answered since it started, LIST say.
func (s *Cluster) CountRequests(ctx context.Context, verbs ...string) (WriteCounts, error) {
	config, err := s.RESTConfig()
	if err != nil {
		return nil, err
	}
	c, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	r, err := c.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking for the API server's metrics: %w", err)
	}
	defer r.Body.Close()
	out := WriteCounts{}
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		labels, count, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "apiserver_request_total{"), "} ")
		n, err := strconv.ParseFloat(count, 64)
		if labels == lines.Text() || !ok || err != nil || !strings.Contains(labels, `code="2`) {
			continue
		}
		if slices.Contains(verbs, metricLabel(labels, "verb")) {
			name := metricLabel(labels, "resource")
			if sub := metricLabel(labels, "subresource"); sub != "" {
				name += "/" + sub
			}
			out[name] += int(n)
		}
	}
	return out, lines.Err()
}

// metricLabel is the value of one label of a metric.
func metricLabel(labels, name string) string {
	_, rest, _ := strings.Cut(","+labels, ","+name+`="`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// Since returns how many writes came after an earlier count.
func (w WriteCounts) Since(before WriteCounts) WriteCounts {
	out := WriteCounts{}
	for k, n := range w {
		if n -= before[k]; n != 0 {
			out[k] = n
		}
	}
	return out
}
