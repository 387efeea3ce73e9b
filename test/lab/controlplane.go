package lab

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/gantry-lb/gantry/test/lab/netns"
)

// startControlPlane starts etcd, the API server behind its relay, the controller manager and the
// scheduler.
func (s *supervisor) startControlPlane(ctx context.Context) error {
	cred := filepath.Join(s.options.Dir, "credentials")
	if err := writeCertificatesTokensAndKubeconfigs(cred, &s.options); err != nil {
		return err
	}
	ns := s.hostByName["cp"].namespace
	in := func(name string) string { return filepath.Join(cred, name) }
	start := func(name string, args ...string) (*process, error) {
		return s.programs.startProgram(ns, s.logDir(), name, filepath.Join(s.options.ControlPlaneProgramsDir, name), args...)
	}
	if _, err := start("etcd", "--data-dir="+filepath.Join(s.options.Dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=default=http://127.0.0.1:2380"); err != nil {
		return err
	}
	// The API server listens on loopback only. All other hosts connect to the relay, on the same
	// port. The relay can be stopped and slowed down.
	audit, err := s.writeAuditPolicyAndReturnFlags()
	if err != nil {
		return err
	}
	api, err := start("kube-apiserver", append(audit, "--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=127.0.0.1", "--secure-port=6444", "--advertise-address="+s.options.apiServerIPAddress(),
		"--tls-cert-file="+in("server.crt"), "--tls-private-key-file="+in("server.key"), "--token-auth-file="+in("tokens.csv"),
		"--authorization-mode=RBAC", "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+in("sa.key"), "--service-account-signing-key-file="+in("sa.key"),
		"--service-cluster-ip-range="+strings.Join(s.options.networksOfEnabledFamilies(clusterIPv4Network, clusterIPv6Network), ","),
		// The API server calls webhooks at the Pods' own addresses, because no kube-proxy runs next
		// to it.
		"--enable-aggregator-routing=true",
		// The lab has no DNS for the names of its nodes.
		"--kubelet-preferred-address-types=InternalIP",
		"--allow-privileged=true", "--profiling=false")...)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{
		// used only for the readiness check, on loopback
		DialContext: ns.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}, Timeout: 10 * time.Second}
	err = api.retryUntilNoErrorOrProcessEnds(ctx, func(ctx context.Context) error {
		return checkHTTPStatusOK(ctx, &client, "https://127.0.0.1:6444/readyz")
	})
	if err != nil {
		return err
	}
	s.relay.namespace, s.relay.address = ns, s.options.apiServerIPAndPort()
	if err := s.relay.startListening(); err != nil {
		return err
	}
	if _, err := start("kube-controller-manager", "--kubeconfig="+in("kube-controller-manager.kubeconfig"),
		"--service-account-private-key-file="+in("sa.key"), "--root-ca-file="+in("ca.crt"), "--use-service-account-credentials=true",
		"--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false"); err != nil {
		return err
	}
	_, err = start("kube-scheduler", "--kubeconfig="+in("kube-scheduler.kubeconfig"),
		"--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false")
	return err
}

// writeAuditPolicyAndReturnFlags returns the API server's flags for its audit log.
func (s *supervisor) writeAuditPolicyAndReturnFlags() ([]string, error) {
	if s.options.AuditedNamespace == "" {
		return nil, nil
	}
	policy := fmt.Sprintf(`apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
omitManagedFields: true
rules:
- {level: Metadata, userGroups: ["system:serviceaccounts:%s"]}
- {level: None}
`, s.options.AuditedNamespace)
	path := filepath.Join(s.options.Dir, "audit.yaml")
	if err := os.WriteFile(path, []byte(policy), 0o600); err != nil {
		return nil, fmt.Errorf("writing the audit policy: %w", err)
	}
	return []string{"--audit-policy-file=" + path, "--audit-log-path=" + filepath.Join(s.logDir(), "audit.log"), "--audit-log-mode=blocking-strict"}, nil
}

func checkHTTPStatusOK(ctx context.Context, c *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	r, err := c.Do(req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, r.Status)
	}
	return nil
}

// startKubeProxy runs kube-proxy on a node. The configuration turns its conntrack limits off: they
// would change those of the machine.
func (s *supervisor) startKubeProxy(h *host) error {
	config := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
clusterCIDR: %s
hostnameOverride: %s
bindAddress: %s
clientConnection: {kubeconfig: %s}
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
%s: {minSyncPeriod: 50ms}
`, s.options.ProxyMode, strings.Join(s.options.networksOfEnabledFamilies(podIPv4Network, podIPv6Network), ","), h.name, h.addresses[0],
		filepath.Join(s.options.Dir, "credentials", "kube-proxy.kubeconfig"), s.options.ProxyMode)
	path := filepath.Join(s.options.Dir, h.name+"-kube-proxy.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return err
	}
	_, err := s.programs.startProgram(h.namespace, s.logDir(), h.name+"/kube-proxy", filepath.Join(s.options.ControlPlaneProgramsDir, "kube-proxy"), "--config="+path)
	return err
}

// proxyHealthPort is the port of kube-proxy's health check.
const proxyHealthPort = "10256"

// restartKubeProxy kills kube-proxy on a node, starts it again, and waits until it answers its
// health check.
func (s *supervisor) restartKubeProxy(ctx context.Context, name string) error {
	h, before := s.hostByName[name], s.programs.findByName(name+"/kube-proxy")
	if h == nil || before == nil {
		return fmt.Errorf("no kube-proxy is running on %q", name)
	}
	if err := s.programs.sendSignal(before.name, syscall.SIGKILL); err != nil {
		return err
	}
	<-before.endedSignal
	if err := s.startKubeProxy(h); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, labStartTimeout)
	defer cancel()
	client := http.Client{Transport: &http.Transport{DialContext: h.namespace.Dial, DisableKeepAlives: true}}
	url := "http://" + net.JoinHostPort(h.addresses[0].String(), proxyHealthPort) + "/healthz"
	return s.programs.findByName(before.name).retryUntilNoErrorOrProcessEnds(ctx, func(ctx context.Context) error {
		return checkHTTPStatusOK(ctx, &client, url)
	})
}

// awaitNodeReady waits until the node is Ready and the API server can be reached from it.
func (s *supervisor) awaitNodeReady(ctx context.Context, name string) error {
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(s.options.Dir, "credentials", "admin.kubeconfig"))
	if err != nil {
		return err
	}
	config.Dial = s.hostByName["cp"].namespace.Dial
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	proxy := s.programs.findByName(name + "/kube-proxy")
	return proxy.retryUntilNoErrorOrProcessEnds(ctx, func(ctx context.Context) error {
		n, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, t := range n.Spec.Taints {
			if t.Key == corev1.TaintNodeNotReady {
				return fmt.Errorf("node %s still has the taint %s", name, t.Key)
			}
		}
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		c, err := s.hostByName[name].namespace.Dial(short, "tcp", net.JoinHostPort(s.options.apiServerClusterIPAddress(), "443"))
		if err != nil {
			return fmt.Errorf("the API server is unreachable at its cluster IP: %w", err)
		}
		return c.Close()
	})
}

// apiServerRelay forwards connections to the API server. Stopping or slowing it affects all clients
// at once.
type apiServerRelay struct {
	namespace netns.Path
	address   string // where it listens

	mu              sync.Mutex // guards the fields below
	listener        net.Listener
	openConnections map[net.Conn]struct{}
	requestDelay    time.Duration
}

func (r *apiServerRelay) startListening() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener != nil {
		return nil
	}
	l, err := r.namespace.Listen("tcp", r.address)
	if err != nil {
		return fmt.Errorf("listening for the API server's clients: %w", err)
	}
	r.listener, r.openConnections = l, map[net.Conn]struct{}{}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if r.trackConnection(l, c) {
				go r.relayConnection(c)
			}
		}
	}()
	return nil
}

// trackConnection records a connection that l accepted. It closes the connection and returns false
// if the relay was stopped in the meantime.
func (r *apiServerRelay) trackConnection(l net.Listener, c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener != l {
		c.Close()
		return false
	}
	r.openConnections[c] = struct{}{}
	return true
}

// stopListening makes the API server unreachable: open connections break and new ones are refused.
func (r *apiServerRelay) stopListening() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener == nil {
		return
	}
	r.listener.Close()
	r.listener = nil
	for c := range r.openConnections {
		c.Close()
	}
}

// setDelay delays everything that clients send by d.
func (r *apiServerRelay) setDelay(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requestDelay = d
}

func (r *apiServerRelay) relayConnection(c net.Conn) {
	defer func() {
		c.Close()
		r.mu.Lock()
		delete(r.openConnections, c)
		r.mu.Unlock()
	}()
	server, err := r.namespace.Dial(context.Background(), "tcp", "127.0.0.1:6444")
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(c, server)
		c.Close()
	}()
	b := make([]byte, 32<<10)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		r.mu.Lock()
		d := r.requestDelay
		r.mu.Unlock()
		if d > 0 {
			time.Sleep(d)
		}
		if _, err := server.Write(b[:n]); err != nil {
			return
		}
	}
}
