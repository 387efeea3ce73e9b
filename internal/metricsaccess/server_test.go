package metricsaccess

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/gantry-lb/gantry/internal/option"
	"github.com/gantry-lb/gantry/test/apiserver"
)

// metricsServerHarness has the metrics of a speaker, with its token and its rights, and a real API
// server.
type metricsServerHarness struct {
	*testing.T
	admin *kubernetes.Clientset
}

// serveMetrics serves the metrics until the test ends, and returns their address.
func (h *metricsServerHarness) serveMetrics(speaker *rest.Config, protocol string) (address string) {
	h.Helper()
	address = net.JoinHostPort("127.0.0.1", apiserver.FindFreeTCPPort(h))
	o, err := BuildServerOptions(option.CommonOptions{MetricsBindAddress: address, MetricsProtocol: protocol}, slog.New(slog.DiscardHandler))
	if err != nil {
		h.Fatal(err)
	}
	mgr, err := ctrl.NewManager(speaker, ctrl.Options{Metrics: o})
	if err != nil {
		h.Fatal(err)
	}
	ctx, cancel := context.WithCancel(h.Context())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	h.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			h.Error(err)
		}
	})
	return address
}

// createReader creates a service account and returns its token.
func (h *metricsServerHarness) createReader(name string) (token string) {
	h.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := h.admin.CoreV1().ServiceAccounts("default").Create(h.Context(), account, metav1.CreateOptions{}); err != nil {
		h.Fatal(err)
	}
	t, err := h.admin.CoreV1().ServiceAccounts("default").CreateToken(h.Context(), name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		h.Fatal(err)
	}
	return t.Status.Token
}

// awaitStatus gets a URL until the answer has the wanted status: rights count after a moment.
func (h *metricsServerHarness) awaitStatus(url, token string, want int) {
	h.Helper()
	c := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	ctx, cancel := context.WithTimeout(h.Context(), time.Minute)
	defer cancel()
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			h.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		got := 0
		answer, err := c.Do(r)
		if err == nil {
			got = answer.StatusCode
			answer.Body.Close()
		}
		if got == want {
			return
		}
		select {
		case <-ctx.Done():
			h.Fatalf("%s gives %d, %v, want %d", url, got, err, want)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// With the rights that the packages give to the programs, a token with the right to get /metrics
// gets the metrics by HTTPS, and nobody else does.
func TestMetricsByHTTPSAskARealAPIServer(t *testing.T) {
	config := apiserver.StartUntilTestEnds(t)
	h := &metricsServerHarness{T: t, admin: kubernetes.NewForConfigOrDie(config)}
	apiserver.CreateObjectsOfConfigFile(t, config, "rbac/metrics.yaml")
	speaker := apiserver.CreateSpeakerPodAndToken(t, config, "node1")
	prometheus, tenant := h.createReader("prometheus"), h.createReader("tenant")
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "prometheus"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "gantry-metrics-reader"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "default", Name: "prometheus"}},
	}
	if _, err := h.admin.RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	address := h.serveMetrics(speaker, option.MetricsProtocolHTTPS)
	h.awaitStatus("https://"+address+metricsPath, prometheus, http.StatusOK)
	administrator := config.BearerToken
	h.awaitStatus("https://"+address+metricsPath, administrator, http.StatusOK)
	h.awaitStatus("https://"+address+metricsPath, tenant, http.StatusForbidden)
	h.awaitStatus("https://"+address+metricsPath, "forged", http.StatusUnauthorized)
	h.awaitStatus("https://"+address+metricsPath, "", http.StatusUnauthorized)
	h.awaitStatus("http://"+address+metricsPath, prometheus, http.StatusBadRequest)
	h.awaitStatus("https://"+address+"/debug/pprof/", prometheus, http.StatusNotFound)

	plain := h.serveMetrics(speaker, option.MetricsProtocolHTTP)
	h.awaitStatus("http://"+plain+metricsPath, "", http.StatusOK)
}
