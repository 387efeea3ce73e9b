// Package cluster installs Gantry in a lab, as a user does, and observes it as a user does: through
// the API and from a client on the LAN. The demonstration, the end-to-end tests and the benchmarks
// use it.
package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/test/lab"
)

// Cluster is a lab with a client for its API server.
type Cluster struct {
	*lab.Lab
	API client.WithWatch
}

// StartLabWithoutGantry starts a lab. Unless o.GantryBinDir names others, it runs the binaries in
// the repository's bin directory.
func StartLabWithoutGantry(ctx context.Context, o lab.Options) (*Cluster, error) {
	if o.GantryBinDir == "" {
		o.GantryBinDir = filepath.Join(lab.RepositoryRoot(), "bin")
	}
	l, err := lab.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	return NewClusterOfRunningLab(l)
}

// NewClusterOfRunningLab returns a Cluster for a running lab. It closes the lab if that fails.
func NewClusterOfRunningLab(l *lab.Lab) (*Cluster, error) {
	config, err := l.RESTConfig()
	if err != nil {
		l.Close()
		return nil, err
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, v1alpha1.AddToScheme, v1beta1.AddToScheme} {
		if err := add(scheme); err != nil {
			l.Close()
			return nil, err
		}
	}
	ctrl.SetLogger(logr.Discard()) // keeps the library's log out of the caller's output
	// Gantry's kinds are not installed yet. The scheme is enough to use them later.
	api, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("creating a client: %w", err)
	}
	return &Cluster{Lab: l, API: api}, nil
}

// InstallGantry applies config/default and waits until every Pod of it is ready.
func (s *Cluster) InstallGantry(ctx context.Context) error {
	return s.InstallGantryOverlay(ctx, "default")
}

// InstallGantryOverlay applies an overlay of config and waits until every Pod of it is ready.
func (s *Cluster) InstallGantryOverlay(ctx context.Context, overlay string) error {
	if _, err := s.RunKubectl(ctx, "", "apply", "-k", filepath.Join(lab.RepositoryRoot(), "config", overlay)); err != nil {
		return err
	}
	return s.AwaitGantryRollout(ctx)
}

// AwaitGantryRollout waits until all of Gantry's Pods are ready and of the latest version.
func (s *Cluster) AwaitGantryRollout(ctx context.Context) error {
	for _, w := range []string{"deployment/gantry-controller", "daemonset/gantry-speaker"} {
		if _, err := s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "rollout", "status", "--timeout=5m", w); err != nil {
			return err
		}
	}
	return nil
}

// ApplyManifests applies manifests.
func (s *Cluster) ApplyManifests(ctx context.Context, manifests string) error {
	_, err := s.RunKubectl(ctx, manifests, "apply", "-f", "-")
	return err
}

// awaitNoErrorTimeout limits every wait: on a busy machine a kubectl command alone may take several
// seconds. pollInterval and maxPollInterval limit the time between two checks, and
// httpRequestTimeout limits one HTTP request.
const (
	awaitNoErrorTimeout = 90 * time.Second
	pollInterval        = 20 * time.Millisecond
	maxPollInterval     = time.Second
	httpRequestTimeout  = 5 * time.Second
)

// AwaitNoError calls check until it returns nil. The error has the name of what was awaited and the
// last error of check. Between two checks it waits as long as the first one took: a check that runs
// kubectl would otherwise keep a processor busy that the awaited program needs.
func AwaitNoError(ctx context.Context, what string, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, awaitNoErrorTimeout)
	defer cancel()
	for {
		begun := time.Now()
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, err)
		case <-time.After(min(max(time.Since(begun), pollInterval), maxPollInterval)):
		}
	}
}

// GetService reads a Service.
func (s *Cluster) GetService(ctx context.Context, namespace, name string) (*corev1.Service, error) {
	var svc corev1.Service
	err := s.API.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &svc)
	return &svc, err
}

// AwaitFirstAddressOfService waits until the Service has an address and returns the first.
func (s *Cluster) AwaitFirstAddressOfService(ctx context.Context, namespace, name string) (netip.Addr, error) {
	var a netip.Addr
	err := AwaitNoError(ctx, "an address of Service "+name, func(ctx context.Context) error {
		svc, err := s.GetService(ctx, namespace, name)
		if err != nil {
			return err
		}
		if len(svc.Status.LoadBalancer.Ingress) == 0 {
			return fmt.Errorf("it has no address: %v", svc.Status.Conditions)
		}
		a, err = netip.ParseAddr(svc.Status.LoadBalancer.Ingress[0].IP)
		return err
	})
	return a, err
}

// AwaitSingleAnnouncingNode waits until exactly one node announces the Service, according to the
// API, and it is not the node named by not.
func (s *Cluster) AwaitSingleAnnouncingNode(ctx context.Context, service, not string) (string, error) {
	var node string
	err := AwaitNoError(ctx, "a holder of Service "+service, func(ctx context.Context) error {
		var list v1beta1.ServiceL2StatusList
		if err := s.API.List(ctx, &list, client.InNamespace(names.DefaultNamespace), client.MatchingLabels{names.LabelServiceName: service}); err != nil {
			return err
		}
		if len(list.Items) != 1 || list.Items[0].Status.Node == not || list.Items[0].Status.Node == "" {
			return fmt.Errorf("%d nodes announce it", len(list.Items))
		}
		node = list.Items[0].Status.Node
		return nil
	})
	return node, err
}

// FetchURLFromHost gets a URL from a host of the lab, over a new connection.
func (s *Cluster) FetchURLFromHost(ctx context.Context, host, url string) (string, error) {
	return fetchURL(ctx, s.NamespaceOfHost(host).Dial, url)
}

// FetchURLFromSourceAddress does the same from one of several addresses of the host.
func (s *Cluster) FetchURLFromSourceAddress(ctx context.Context, host string, source netip.Addr, url string) (string, error) {
	return fetchURL(ctx, func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = s.NamespaceOfHost(host).RunInside(func() (err error) {
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0)), FallbackDelay: -1}
			c, err = d.DialContext(ctx, network, address)
			return err
		})
		return c, err
	}, url)
}

func fetchURL(ctx context.Context, dial func(ctx context.Context, network, address string) (net.Conn, error), url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, httpRequestTimeout)
	defer cancel()
	c := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	r, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

// FetchMetrics gets the metrics that a program serves at an address and port, from a host of the
// lab. The token says who asks.
func (s *Cluster) FetchMetrics(ctx context.Context, host, address, token string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, httpRequestTimeout)
	defer cancel()
	// No one can check the certificate, which is signed by itself.
	c := http.Client{Transport: &http.Transport{DialContext: s.NamespaceOfHost(host).Dial, DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/metrics", nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	r, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("the metrics at %s: %s: %s", address, r.Status, b)
	}
	return string(b), err
}

// FetchSpeakerMetrics gets the metrics of the speaker on a node, with the rights of the
// administrator.
func (s *Cluster) FetchSpeakerMetrics(ctx context.Context, node string) (string, error) {
	config, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig())
	if err != nil {
		return "", err
	}
	return s.FetchMetrics(ctx, node, "127.0.0.1:7473", config.BearerToken)
}

// FetchSpeakerMetricsUntilSuccess gets the metrics of the speaker on a node again and again until
// it succeeds.
func (s *Cluster) FetchSpeakerMetricsUntilSuccess(ctx context.Context, node string) (string, error) {
	var text string
	err := AwaitNoError(ctx, "the metrics of the speaker on "+node, func(ctx context.Context) (err error) {
		text, err = s.FetchSpeakerMetrics(ctx, node)
		return err
	})
	return text, err
}

// FetchURLUntilSuccess gets a URL again and again until it succeeds, and returns the body.
func (s *Cluster) FetchURLUntilSuccess(ctx context.Context, host, url string) (string, error) {
	var body string
	err := AwaitNoError(ctx, url+" from "+host, func(ctx context.Context) (err error) {
		body, err = s.FetchURLFromHost(ctx, host, url)
		return err
	})
	return body, err
}
